//! Every NAT kind behaves as described. An independent STUN server (RFC 5780) shows that from
//! behind the NAT.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use throughline_lab::{
    Coturn, Filtering, Lab, Mapping, Nat, NatKind, Ports, SEQUENTIAL_FIRST_PORT, Site, Spec,
    classify::{Report, classify},
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

mod common;
use common::{SOON, echo, receives, seen_by};

fn classify_from(lab: &Lab, host: &str, server: SocketAddr) -> Option<Report> {
    lab.host(host)
        .unwrap()
        .run(async move || classify(server).await.unwrap())
        .unwrap()
}

#[test]
fn each_kind_behaves_as_described() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    // There is one site for each kind, and all are classified at the same time.
    let spec = NatKind::ALL
        .into_iter()
        .fold(Spec::default(), |spec, kind| {
            spec.site(Site::new(kind.name(), kind))
        });
    let lab = Lab::up(spec).unwrap();
    println!("{} sites up in {:?}", NatKind::ALL.len(), lab.setup_time());
    let coturn = Coturn::start(&lab).unwrap();
    let asked: Vec<_> = NatKind::ALL
        .into_iter()
        .map(|kind| {
            let server = coturn.address();
            (
                kind,
                lab.host(kind.name())
                    .unwrap()
                    .spawn(async move || classify(server).await.unwrap())
                    .unwrap(),
            )
        })
        .collect();
    for (kind, answer) in asked {
        let seen = answer.join().unwrap().unwrap();
        println!("{kind:>22}: {seen:?}");
        let expected = kind.behaviour();
        assert_eq!(
            seen.map(|r| (r.mapping, r.filtering, r.ports)),
            expected.map(|b| (b.mapping, b.filtering, b.ports)),
            "{kind}"
        );
        if let Some(report) = seen {
            // Without a NAT, a host has its own address and reaches it.
            let hairpin =
                (report.mapping == Mapping::EndpointIndependent).then_some(kind.is_public());
            assert_eq!(report.hairpin, hairpin, "{kind}");
        }
    }
}

#[test]
fn a_nat_behind_a_carrier_nat_is_as_strict_as_the_stricter_one() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let pairs = [
        (NatKind::FullCone, NatKind::PortRestricted),
        (NatKind::PortRestricted, NatKind::FullCone),
        (NatKind::FullCone, NatKind::FullCone),
        (NatKind::PortRestricted, NatKind::SymmetricRandom),
        (NatKind::SymmetricSequential, NatKind::Masquerade),
    ];
    let spec = pairs
        .iter()
        .enumerate()
        .fold(Spec::default(), |spec, (i, (home, carrier))| {
            let isp = format!("isp{i}");
            spec.carrier(&isp, *carrier)
                .site(Site::new(format!("home{i}"), *home).behind(&isp))
        });
    let lab = Lab::up(spec).unwrap();
    let coturn = Coturn::start(&lab).unwrap();
    for (i, (home, carrier)) in pairs.into_iter().enumerate() {
        let seen = classify_from(&lab, &format!("home{i}"), coturn.address()).unwrap();
        let expected = home
            .behaviour()
            .unwrap()
            .behind(carrier.behaviour().unwrap());
        assert_eq!(
            (seen.mapping, seen.filtering),
            (expected.mapping, expected.filtering),
            "{home} behind {carrier}"
        );
        assert_eq!(
            seen.external.ip(),
            IpAddr::V4(lab.host(&format!("isp{i}")).unwrap().ipv4().unwrap())
        );
    }
}

#[test]
fn hairpinning_works_if_it_is_configured() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let on = [
        NatKind::FullCone,
        NatKind::AddressRestricted,
        NatKind::PortRestricted,
        NatKind::NonPreserving,
    ];
    let spec = on.into_iter().fold(Spec::default(), |spec, kind| {
        spec.site(Site::new(kind.name(), Nat::from(kind).with_hairpin()).hosts(2))
    });
    let lab = Lab::up(spec).unwrap();
    let coturn = Coturn::start(&lab).unwrap();
    for kind in on {
        let seen = classify_from(&lab, kind.name(), coturn.address()).unwrap();
        assert_eq!(seen.hairpin, Some(true), "{kind}");
        assert_eq!(
            seen.filtering,
            kind.behaviour().unwrap().filtering,
            "{kind}"
        );
    }
}

/// Punches a hole between two hosts as ICE does: both learn their external endpoint and send to
/// that of the other.
fn punch(lab: &Lab, a: &str, b: &str) -> bool {
    let server = SocketAddr::new(lab.host("relay").unwrap().ip().unwrap(), common::ECHO);
    let (to_b, from_a) = std::sync::mpsc::channel();
    let (to_a, from_b) = std::sync::mpsc::channel();
    let side = |name: &str,
                tell: std::sync::mpsc::Sender<SocketAddr>,
                hear: std::sync::mpsc::Receiver<SocketAddr>| {
        let host = lab.host(name).unwrap();
        host.spawn(async move || {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            tell.send(seen_by(&socket, server).await.unwrap()).unwrap();
            let peer = hear.recv().unwrap();
            for _ in 0..3 {
                socket.send_to(b"punch", peer).await.unwrap();
                if let Some(from) = receives(&socket).await {
                    // The answer goes to the source, which a symmetric NAT makes differ from the
                    // announced endpoint.
                    socket.send_to(b"punch", from).await.unwrap();
                    return true;
                }
            }
            false
        })
        .unwrap()
    };
    let (one, two) = (side(a, to_b, from_b), side(b, to_a, from_a));
    let (one, two) = (one.join().unwrap().unwrap(), two.join().unwrap().unwrap());
    one && two
}

#[test]
fn two_homes_behind_one_carrier_connect_only_if_it_hairpins() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let homes = |carrier: Nat| {
        Spec::default()
            .carrier("isp", carrier)
            .site(Site::new("a", NatKind::PortRestricted).behind("isp"))
            .site(Site::new("b", NatKind::PortRestricted).behind("isp"))
    };
    let mut lab = Lab::up(homes(NatKind::PortRestricted.into())).unwrap();
    echo(&lab.host("relay").unwrap());
    assert!(!punch(&lab, "a", "b"));
    lab.set_nat("isp", Nat::from(NatKind::PortRestricted).with_hairpin())
        .unwrap();
    assert!(punch(&lab, "a", "b"));
}

#[test]
fn punching_succeeds_exactly_where_the_kinds_allow_it() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let mut lab = Lab::up(Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted)).unwrap();
    echo(&lab.host("relay").unwrap());
    assert!(punch(&lab, "a", "b"));
    for (a, b, works) in [
        (NatKind::SymmetricRandom, NatKind::PortRestricted, false),
        (NatKind::SymmetricRandom, NatKind::FullCone, true),
        (NatKind::AddressDependent, NatKind::Masquerade, false),
        (NatKind::SymmetricSequential, NatKind::None, true),
        (NatKind::Firewall, NatKind::NonPreserving, true),
    ] {
        // The hosts' addresses change with the NAT kind while the lab runs.
        lab.set_nat("a", a).unwrap();
        lab.set_nat("b", b).unwrap();
        assert_eq!(punch(&lab, "a", "b"), works, "{a} and {b}");
    }
}

#[test]
fn two_hosts_with_one_port_keep_their_mappings_apart() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab =
        Lab::up(Spec::default().site(Site::new("a", NatKind::PortRestricted).hosts(2))).unwrap();
    let (one, two) = (
        echo(&lab.host("relay").unwrap()),
        echo(&lab.host("other").unwrap()),
    );
    let endpoints = |host: &str| {
        lab.host(host)
            .unwrap()
            .run(async move || {
                let socket = UdpSocket::bind("0.0.0.0:5000").await.unwrap();
                (
                    seen_by(&socket, one).await.unwrap(),
                    seen_by(&socket, two).await.unwrap(),
                )
            })
            .unwrap()
    };
    let first = endpoints("a");
    let second = endpoints("a2");
    assert_eq!(first.0, first.1);
    assert_eq!(second.0, second.1);
    assert_eq!(first.0.port(), 5_000);
    assert_ne!(first.0.port(), second.0.port());
}

#[test]
fn sequential_ports_count_up_and_random_ones_do_not() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(
        Spec::default()
            .site(Site::new("s", NatKind::SymmetricSequential))
            .site(Site::new("r", NatKind::SymmetricRandom)),
    )
    .unwrap();
    let server = echo(&lab.host("relay").unwrap());
    let ports = |host: &str| {
        lab.host(host)
            .unwrap()
            .run(async move || {
                let mut ports = Vec::new();
                for _ in 0..5 {
                    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
                    ports.push(seen_by(&socket, server).await.unwrap().port());
                }
                ports
            })
            .unwrap()
    };
    let sequential = ports("s");
    assert_eq!(
        sequential,
        (SEQUENTIAL_FIRST_PORT..).take(5).collect::<Vec<_>>()
    );
    let random = ports("r");
    assert!(
        random.windows(2).any(|pair| pair[1].abs_diff(pair[0]) > 16),
        "{random:?}"
    );
}

#[test]
fn idle_mappings_end_after_the_timeout() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let short = |kind: NatKind| Nat::from(kind).with_idle_timeout(Duration::from_secs(2));
    let kinds = [
        NatKind::FullCone,
        NatKind::PortRestricted,
        NatKind::Masquerade,
        NatKind::SymmetricRandom,
    ];
    let spec = kinds.into_iter().fold(Spec::default(), |spec, kind| {
        spec.site(Site::new(kind.name(), short(kind)))
    });
    let lab = Lab::up(spec).unwrap();
    let relay = lab.host("relay").unwrap();
    let open_after: Vec<_> = kinds
        .into_iter()
        .flat_map(|kind| [(kind, 1_500), (kind, 3_000)])
        .map(|(kind, idle)| {
            let (mapped, external) = std::sync::mpsc::channel();
            let address = SocketAddr::new(relay.ip().unwrap(), 9_000 + idle as u16 + kind as u16);
            let server = relay
                .spawn(async move || {
                    let socket = UdpSocket::bind(address).await.unwrap();
                    let (_, from) = socket.recv_from(&mut [0; 16]).await.unwrap();
                    mapped.send(from).unwrap();
                    // The test is about this pause.
                    tokio::time::sleep(Duration::from_millis(idle)).await;
                    socket.send_to(b"late", from).await.unwrap();
                })
                .unwrap();
            let client = lab.host(kind.name()).unwrap().spawn(async move || {
                let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
                // The server begins to listen soon, and a datagram before that is lost silently.
                while external.try_recv().is_err() {
                    socket.send_to(b"hello", address).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                timeout(
                    Duration::from_millis(idle) + SOON,
                    socket.recv_from(&mut [0; 16]),
                )
                .await
                .is_ok()
            });
            (kind, idle, server, client.unwrap())
        })
        .collect();
    for (kind, idle, server, client) in open_after {
        server.join().unwrap().unwrap();
        assert_eq!(
            client.join().unwrap().unwrap(),
            idle < 2_000,
            "{kind} after {idle} ms"
        );
    }
}

#[test]
fn an_absolute_lifetime_ends_busy_mappings_too() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let nat = Nat::from(NatKind::NonPreserving).with_lifetime(Duration::from_secs(1));
    let lab = Lab::up(
        Spec::default()
            .site(Site::new("a", nat))
            .site(Site::new("b", NatKind::NonPreserving)),
    )
    .unwrap();
    let server = echo(&lab.host("relay").unwrap());
    // Probes until `enough` ports are seen, or 40 times, which takes more than twice the lifetime.
    let externals = |host: &str, enough: usize| {
        lab.host(host)
            .unwrap()
            .run(async move || {
                let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
                let mut seen = HashSet::new();
                for _ in 0..40 {
                    seen.extend(seen_by(&socket, server).await);
                    if seen.len() >= enough {
                        break;
                    }
                    // The lifetime of the mapping has to pass.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                seen.len()
            })
            .unwrap()
    };
    assert_eq!(externals("a", 3), 3);
    assert_eq!(externals("b", 2), 1);
}

#[test]
fn a_rebooted_router_gives_new_ports() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(Spec::default().site(Site::new("a", NatKind::NonPreserving))).unwrap();
    let server = echo(&lab.host("relay").unwrap());
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (answer, answered) = std::sync::mpsc::channel();
    let client = lab
        .host("a")
        .unwrap()
        .spawn(async move || {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            while asked.recv().is_ok() {
                answer.send(seen_by(&socket, server).await).unwrap();
            }
        })
        .unwrap();
    let external = || {
        ask.send(()).unwrap();
        answered.recv().unwrap().unwrap()
    };
    let first = external();
    assert_eq!(external(), first);
    lab.forget_mappings("a").unwrap();
    assert_ne!(external(), first);
    drop(ask);
    client.join().unwrap().unwrap();
}

#[test]
fn hostile_firewalls_let_through_only_what_their_kind_allows() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(
        Spec::default()
            .site(Site::new("u", NatKind::UdpBlocked).dual_stack())
            .site(Site::new("t", NatKind::Tcp443).dual_stack())
            .site(Site::new("p", NatKind::PortRestricted).dual_stack()),
    )
    .unwrap();
    let relay = lab.host("relay").unwrap();
    let (ip4, ip6) = (
        IpAddr::V4(relay.ipv4().unwrap()),
        IpAddr::V6(relay.ipv6().unwrap()),
    );
    let (ready, started) = std::sync::mpsc::channel();
    relay
        .spawn(async move || {
            let mut all = Vec::new();
            for ip in [ip4, ip6] {
                for port in [443, 80] {
                    all.push(TcpListener::bind((ip, port)).await.unwrap());
                }
            }
            ready.send(()).unwrap();
            std::future::pending::<()>().await;
        })
        .unwrap();
    started.recv().unwrap();
    echo(&relay);
    for (host, udp, tcp80) in [("u", false, true), ("t", false, false), ("p", true, true)] {
        let seen = lab
            .host(host)
            .unwrap()
            .run(async move || {
                let mut seen = Vec::new();
                for ip in [ip4, ip6] {
                    let tcp = async |port| {
                        timeout(SOON, TcpStream::connect((ip, port)))
                            .await
                            .is_ok_and(|r| r.is_ok())
                    };
                    seen.push((tcp(443).await, tcp(80).await));
                }
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
                (
                    seen,
                    seen_by(&socket, SocketAddr::new(ip4, common::ECHO))
                        .await
                        .is_some(),
                )
            })
            .unwrap();
        assert_eq!(seen, (vec![(true, tcp80); 2], udp), "{host}");
    }
}

#[test]
fn ipv6_has_a_stateful_firewall_and_no_nat() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(
        Spec::default()
            .site(Site::new("six", NatKind::PortRestricted).ipv6_only())
            .site(Site::new("open", NatKind::None).ipv6_only())
            .site(
                Site::new("home", NatKind::SymmetricRandom)
                    .dual_stack()
                    .behind("isp"),
            )
            .carrier("isp", NatKind::SymmetricRandom),
    )
    .unwrap();
    let coturn = Coturn::start(&lab).unwrap();
    for (name, filtering) in [
        ("six", Filtering::AddressAndPortDependent),
        ("open", Filtering::EndpointIndependent),
        ("home", Filtering::AddressAndPortDependent),
    ] {
        let seen = classify_from(&lab, name, coturn.address6()).unwrap();
        assert_eq!(
            (seen.mapping, seen.filtering, seen.ports),
            (Mapping::EndpointIndependent, filtering, Ports::Preserved)
        );
        assert_eq!(
            seen.external.ip(),
            IpAddr::V6(lab.host(name).unwrap().ipv6().unwrap())
        );
    }
    // The first site has no IPv4 at all.
    assert_eq!(lab.host("six").unwrap().ipv4(), None);
    let server = coturn.address();
    let answer = lab
        .host("six")
        .unwrap()
        .run(async move || classify(server).await)
        .unwrap();
    assert!(answer.is_err() || answer.unwrap().is_none());
}
