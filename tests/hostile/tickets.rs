//! Tests tickets that aim their reader. Canaries on this machine's own addresses see what a dialler
//! sends.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use libp2p::multiaddr::Protocol;
use throughline::{Identity, Ticket};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::*;

/// The most addresses in a ticket, as in src/ticket.rs.
const ADDRESSES: usize = 32;

/// The first bytes of a dialler over TCP. All are ours: those of multistream-select, and the length
/// that Noise begins with. An ephemeral key follows.
const FIRST: &[u8] = b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20";
const FIRST_LEN: usize = FIRST.len() + 32;

/// Listens at an address where nobody should connect, and keeps the bytes that come.
struct Canary {
    at: SocketAddr,
    udp: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _listening: JoinSet<()>,
}

impl Canary {
    async fn at(ip: &str) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        let tcp = TcpListener::bind((ip, 0)).await.unwrap();
        let udp = UdpSocket::bind((ip, 0)).await.unwrap();
        let (at, udp_at) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut listening = JoinSet::new();
        let all = heard.clone();
        listening.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                // A connection counts, even if it sends nothing.
                let place = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let all = all.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        all.lock().unwrap()[place].extend_from_slice(&buffer[..count]);
                    }
                });
            }
        });
        let all = heard.clone();
        listening.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((count, _)) = udp.recv_from(&mut buffer).await {
                all.lock().unwrap().push(buffer[..count].to_vec());
            }
        });
        Self {
            at,
            udp: udp_at,
            heard,
            _listening: listening,
        }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap().clone()
    }
}

/// Makes a ticket of a peer that does not exist, with these addresses of the peer and of a relay.
fn ticket(relays: &[String], addresses: &[String]) -> Result<Ticket, throughline::Error> {
    let relay = Identity::generate().peer_id();
    let relays = relays
        .iter()
        .map(|relay_at| format!("{relay_at}/p2p/{relay}"));
    Ticket::from_parts(
        Identity::generate().peer_id(),
        relays.collect::<Vec<_>>(),
        addresses.to_vec(),
    )
}

/// Starts a peer that gives up late enough to have dialled several addresses, which are dialled one
/// after the other.
async fn dialler(dial_private: bool) -> Connector {
    let mut config = config();
    config.dial_private = dial_private;
    config.connect_timeout = Duration::from_secs(3);
    peer(config).await
}

/// Connects by a ticket that has `addresses` for the peer and for a relay. Returns the error.
async fn led(me: &Connector, addresses: &[String]) -> throughline::Error {
    let ticket = ticket(addresses, addresses).unwrap();
    let connected = timeout(PATIENCE, me.connect(&ticket)).await;
    connected.expect("an end").map(drop).unwrap_err()
}

fn is_forbidden(error: &throughline::Error) -> bool {
    let mut causes = error.attempts().iter().filter_map(|attempt| attempt.cause);
    causes.any(|cause| cause.as_str() == "forbidden")
}

#[tokio::test]
async fn paths_and_names_that_are_none_make_no_ticket() {
    let request = "/ HTTP/1.1\r\nHost: a\r\n\r\nFLUSHALL\r\n";
    let tcp: Multiaddr = "/ip4/127.0.0.2/tcp/6379".parse().unwrap();
    let dns = |name: &'static str| Multiaddr::from(Protocol::Dns(name.into()));
    for aimed in [
        tcp.clone().with(Protocol::Ws(request.into())),
        tcp.clone().with(Protocol::Wss("/a b".into())),
        tcp.clone()
            .with(Protocol::Tls)
            .with(Protocol::Sni("a\r\nb".into())),
        dns("a\r\nb")
            .with(Protocol::Tcp(80))
            .with(Protocol::Ws("/".into())),
        dns("127.1").with(Protocol::Tcp(80)),
    ] {
        for (relays, addresses) in [(vec![aimed.clone()], vec![]), (vec![], vec![aimed])] {
            let text =
                |all: Vec<Multiaddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
            let error = ticket(&text(relays), &text(addresses)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTicket, "{error}");
            assert!(!error.message().contains(char::is_control), "{error}");
        }
    }
}

#[tokio::test]
async fn this_machine_hears_nothing_that_a_ticket_has_chosen() {
    let canary = Canary::at("127.0.0.2").await;
    let home = Canary::at("127.0.0.1").await;
    let (at, port) = (canary.at.port(), home.at.port());
    let me = dialler(true).await;
    let aimed = [
        format!("/ip4/127.0.0.2/tcp/{at}/x-parity-ws/%2flatest%2fmeta-data"),
        format!("/ip4/127.0.0.2/tcp/{at}/x-parity-ws/%2f%3faction=flush"),
        format!("/ip4/127.0.0.2/tcp/{at}/tls/sni/admin.example/ws"),
        format!("/ip6/::ffff:127.0.0.2/tcp/{at}/x-parity-wss/%2fa"),
        format!("/dns4/localhost/tcp/{port}/x-parity-ws/%2fa"),
        format!("/dns4/a.localhost/tcp/{port}/x-parity-ws/%2fa"),
    ];
    let error = led(&me, &aimed).await;
    assert!(is_forbidden(&error), "{error:?}");
    assert_eq!((canary.heard(), home.heard()), (vec![], vec![]));

    // Addresses that may be dialled there get first bytes of ours only.
    led(&me, &[format!("/ip4/127.0.0.2/tcp/{at}")]).await;
    let heard = canary.heard();
    assert!(!heard.is_empty());
    for first in &heard {
        assert!(first.is_empty() || first.starts_with(FIRST), "{first:?}");
        assert!(first.len() <= FIRST_LEN, "{first:?}");
    }
    led(&me, &[format!("/dns4/localhost/tcp/{port}/ws")]).await;
    let host = format!("Host: localhost:{port}\r\n").to_lowercase();
    assert!(!home.heard().is_empty());
    for request in home.heard() {
        let request = String::from_utf8(request).unwrap().to_lowercase();
        assert!(
            request.is_empty() || request.starts_with("get / http/1.1\r\n"),
            "{request}"
        );
        assert!(request.is_empty() || request.contains(&host), "{request}");
    }
}

/// This machine's names in /etc/hosts while [`a_name_that_leads_to_this_machine_is_not_said_there`]
/// runs.
const HOSTS: [(&str, &str); 2] = [("127.0.0.1", "first.test"), ("127.0.0.9", "second.test")];
/// The variable that makes a test the child with these names.
const NAMED: &str = "HOSTILE_NAMED";

/// The test runs once more in a mount namespace, where it has a hosts file of its own. So what it
/// tests does not depend on the names that this machine has.
#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_not_said_there() {
    if std::env::var_os(NAMED).is_none() {
        return in_a_namespace_with_names(
            "tickets::a_name_that_leads_to_this_machine_is_not_said_there",
        );
    }
    let me = dialler(true).await;
    for (ip, name) in HOSTS {
        let canary = Canary::at(ip).await;
        let port = canary.at.port();
        let error = led(&me, &[format!("/dns4/{name}/tcp/{port}/ws")]).await;
        assert!(is_forbidden(&error), "{error:?}");
        assert_eq!(canary.heard(), Vec::<Vec<u8>>::new());
    }
}

fn in_a_namespace_with_names(test: &str) {
    let home = tempfile::tempdir().unwrap();
    let hosts = home.path().join("hosts");
    let lines = HOSTS.map(|(ip, name)| format!("{ip} {name}\n"));
    std::fs::write(&hosts, lines.concat()).unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec"]);
    command.arg("mount --bind \"$0\" /etc/hosts; exec \"$@\"");
    command.arg(&hosts).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    let output = command.env(NAMED, "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn nobody_is_dialled_where_nobody_goes() {
    let me = dialler(true).await;
    let aimed = [
        "/ip4/169.254.169.254/tcp/80/ws",
        "/ip4/169.254.169.254/udp/80/quic-v1",
        "/ip4/0.0.0.0/tcp/80",
        "/ip4/224.0.0.251/udp/5353/quic-v1",
        "/ip4/255.255.255.255/udp/9/quic-v1",
        "/ip4/240.0.0.1/tcp/80",
        "/ip4/168.63.129.16/tcp/80/ws",
        "/ip6/fe80::1/tcp/80",
        "/ip6/ff02::1/udp/9/quic-v1",
        "/ip6/64:ff9b::a9fe:a9fe/tcp/80/ws",
        "/ip6/::ffff:169.254.169.254/tcp/80/ws",
    ];
    for aimed in aimed {
        let error = led(&me, &[aimed.to_owned()]).await;
        assert!(is_forbidden(&error), "{aimed}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_is_not_led_to_itself() {
    let canary = Canary::at("127.0.0.3").await;
    let home = Canary::at("127.0.0.1").await;
    let me = dialler(false).await;
    let (tcp, udp) = (canary.at.port(), canary.udp.port());
    let (home_tcp, home_udp) = (home.at.port(), home.udp.port());
    let error = led(
        &me,
        &[
            format!("/ip4/127.0.0.3/tcp/{tcp}"),
            format!("/ip4/127.0.0.3/tcp/{tcp}/ws"),
            format!("/ip4/127.0.0.3/tcp/{tcp}/wss"),
            format!("/ip4/127.0.0.3/udp/{udp}/quic-v1"),
            format!("/ip6/::ffff:127.0.0.3/tcp/{tcp}"),
            format!("/dns4/localhost/tcp/{home_tcp}"),
            format!("/dns4/localhost/tcp/{home_tcp}/ws"),
            format!("/dns/localhost/udp/{home_udp}/quic-v1"),
        ],
    )
    .await;
    assert!(is_forbidden(&error), "{error:?}");
    assert_eq!((canary.heard(), home.heard()), (vec![], vec![]));
}

/// A relay that the user names is dialled, and gives a reservation.
#[tokio::test]
async fn a_server_dials_the_relay_that_it_is_told_to() {
    let relay = common::relay().await;
    let mut config = config();
    config.relays = relay.addresses().to_vec();
    config.dial_private = false;
    let me = peer(config).await;
    assert!(!me.ticket().relays().is_empty());
}

#[tokio::test]
async fn sixteen_full_tickets_make_so_many_dials_and_no_more() {
    const TICKETS: usize = 16;
    // Each canary listens on all addresses of this machine, at a port of its own.
    let canaries = join_all((0..TICKETS).map(async |_| Canary::at("0.0.0.0").await)).await;
    let me = dialler(true).await;
    let tickets = canaries.iter().map(|canary| {
        let port = canary.at.port();
        let addresses = (1..=ADDRESSES).map(|n| format!("/ip4/127.0.1.{n}/tcp/{port}"));
        ticket(&[], &addresses.collect::<Vec<_>>()).unwrap()
    });
    let tickets: Vec<_> = tickets.collect();
    let connects = tickets.iter().map(|ticket| me.connect(ticket));
    let ends = timeout(PATIENCE, join_all(connects)).await.expect("ends");
    assert!(ends.iter().all(Result::is_err));
    for canary in &canaries {
        // Each address is dialled once, and once more for each retry.
        assert!(
            canary.heard().len() <= 5 * ADDRESSES,
            "{}",
            canary.heard().len()
        );
    }
}
