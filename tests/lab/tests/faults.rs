//! Faults that must cost little or nothing: gateways that do not help, and links that lose frames.

use std::time::Duration;

use throughline_lab::{Lab, Link, NatKind, Pairing, Parts, PortMapping, Run, Site, Spec, Stage};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, UdpSocket},
};

mod common;

/// A delay that counts as noticeable. A lab on a busy machine is not exact, and every timeout in
/// question is longer than this.
const NOTICEABLE_MS: f64 = 400.0;
const WAIT: Duration = Duration::from_secs(16);

type Time = fn(&Run) -> Option<f64>;

/// A gateway, as the peers behind it find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gateway {
    /// There is no gateway.
    None,
    /// The gateway answers the search, takes every connection, and then says nothing.
    Hanging,
    /// The gateway grants mappings and forwards nothing.
    Lying,
}

#[test]
fn a_gateway_that_does_not_help_costs_nothing() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let kinds = [Gateway::None, Gateway::Hanging, Gateway::Lying];
    // The kinds take turns, so that other work of the machine affects all of them alike.
    let runs: Vec<Vec<Run>> = (0..2)
        .map(|_| kinds.iter().map(|kind| behind(*kind, &parts)).collect())
        .collect();
    let best = |index: usize, time: Time| {
        let times = runs.iter().filter_map(|round| time(&round[index]));
        times.fold(f64::INFINITY, f64::min)
    };
    let times: [(&str, Time); 2] = [
        ("first byte", |run| run.first_byte_ms),
        ("direct", |run| run.direct_ms),
    ];
    for (what, time) in times {
        let without = best(0, time);
        for (index, kind) in kinds.iter().enumerate().skip(1) {
            let with = best(index, time);
            println!("{what}: {without:.0} ms without a gateway, {with:.0} ms with a {kind:?} one");
            assert!(
                with < without * 1.5 + NOTICEABLE_MS,
                "{what} behind {kind:?}"
            );
        }
    }
}

fn behind(gateway: Gateway, parts: &Parts) -> Run {
    let mut site = Site::new("a", NatKind::PortRestricted);
    if gateway == Gateway::Lying {
        site = site.port_mapping(PortMapping {
            upnp: true,
            pcp: true,
            lies: true,
        });
    }
    let mut spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
    spec.sites[0] = site;
    let mut stage = Stage::up(spec.figure_delays(), parts).unwrap();
    if gateway == Gateway::Hanging {
        hang(&stage.lab);
    }
    let run = stage.meet(Pairing::ALL[0], "a", "b", WAIT).unwrap();
    assert!(run.connected, "{gateway:?}: {run:?}");
    run
}

/// Answers UPnP's search at the gateway of `a` with the address of a server that accepts
/// connections and is silent. Requests of NAT-PMP and PCP get no answer either.
fn hang(lab: &Lab) {
    let router = lab.host("a-router").unwrap();
    let output = router
        .command("ip")
        .args(["-4", "-o", "address", "show", "lan"])
        .output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let lan = output
        .split_whitespace()
        .nth(3)
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let lan: std::net::Ipv4Addr = lan.parse().unwrap();
    let (ready, started) = std::sync::mpsc::channel();
    router
        .spawn(async move || {
            let search = UdpSocket::bind("0.0.0.0:1900").await.unwrap();
            search
                .join_multicast_v4([239, 255, 255, 250].into(), lan)
                .unwrap();
            let _mapping = UdpSocket::bind("0.0.0.0:5351").await.unwrap();
            let server = TcpListener::bind((lan, 5000)).await.unwrap();
            ready.send(()).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
                 ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                 USN: uuid:1::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                 EXT:\r\nSERVER: silence\r\nLOCATION: http://{lan}:5000/rootDesc.xml\r\n\r\n"
            );
            let mut buffer = [0; 2048];
            loop {
                tokio::select! {
                    Ok((_, from)) = search.recv_from(&mut buffer) => {
                        let _ = search.send_to(answer.as_bytes(), from).await;
                    }
                    Ok((mut stream, _)) = server.accept() => {
                        tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
                    }
                }
            }
        })
        .unwrap();
    started.recv().unwrap();
}

#[test]
fn peers_connect_over_links_that_lose_frames() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let lossy = |loss| Link {
        loss,
        ..Link::default()
    };
    // Each end loses in each direction, so a round trip is lost four times as often.
    let links = [
        ("1 % lost", lossy(0.01)),
        ("5 % lost", lossy(0.05)),
        ("20 % lost", lossy(0.20)),
        (
            "10 % sent twice, 10 % overtaking",
            Link {
                duplicate: 0.1,
                reorder: 0.1,
                ..Link::default()
            },
        ),
        (
            "nothing beyond 1280 bytes",
            Link {
                mtu: 1280,
                ..Link::default()
            },
        ),
    ];
    for (name, link) in links {
        let mut spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
        for site in &mut spec.sites {
            site.link = Some(link);
        }
        let mut stage = Stage::up(spec.figure_delays(), &parts).unwrap();
        let run = stage.meet(Pairing::ALL[0], "a", "b", WAIT).unwrap();
        println!(
            "{name}: first byte after {:?} ms, direct after {:?} ms",
            run.first_byte_ms, run.direct_ms
        );
        assert!(run.connected, "{name}: {run:?}");
        assert!(
            run.path.as_deref() == Some("direct") || link.loss > 0.1,
            "{name}: {run:?}"
        );
    }
}
