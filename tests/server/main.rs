//! The server, as stock libp2p peers, STUN clients and browsers see it.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    num::NonZeroUsize,
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport as _,
    core::{muxing::StreamMuxerBox, upgrade::Version},
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{
        NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use libp2p_stream as stream;
use throughline::server::{Layout, Server, ServerConfig};
use tokio::time::timeout;

use common::{PATIENCE, free_ports, server_config as config, until};

mod acme;
mod autonat;
#[path = "../common/mod.rs"]
mod common;
mod direct;
mod http;
mod one_port;
mod packaging;
mod proxied;
mod secured;
#[path = "../common/stock.rs"]
mod stock;
mod stun;

const ECHO: StreamProtocol = StreamProtocol::new("/test/echo");

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    ping: ping::Behaviour,
    stream: stream::Behaviour,
}

async fn start(config: ServerConfig) -> Server {
    Server::start(config).await.unwrap()
}

/// Makes a stock libp2p peer with every transport that the server has.
fn client() -> Swarm<Behaviour> {
    // The DTLS of libp2p-webrtc needs one. An error says that another test has chosen it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let webrtc = |keys: &libp2p::identity::Keypair| {
        let certificate = libp2p_webrtc::tokio::Certificate::generate(&mut rand::rng()).unwrap();
        libp2p_webrtc::tokio::Transport::new(keys.clone(), certificate)
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
    };
    let websocket = |keys: &libp2p::identity::Keypair| {
        libp2p_websocket::Config::new(tcp::tokio::Transport::new(tcp::Config::default()))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(keys).unwrap())
            .multiplex(yamux::Config::default())
    };
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .unwrap()
        .with_quic()
        .with_other_transport(webrtc)
        .unwrap()
        .with_other_transport(websocket)
        .unwrap()
        .with_dns_config(Default::default(), Default::default())
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_, relay| Behaviour {
            relay,
            ping: ping::Behaviour::default(),
            stream: stream::Behaviour::new(),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

fn address(server: &Server, has: &str) -> Multiaddr {
    let found = server.addresses().iter().find(|text| text.contains(has));
    found.unwrap().parse().unwrap()
}

/// Waits for the first event that `pick` takes, and returns what it makes of it.
async fn event<T>(
    swarm: &mut Swarm<Behaviour>,
    mut pick: impl FnMut(&SwarmEvent<BehaviourEvent>) -> Option<T>,
) -> T {
    let events = async {
        loop {
            let event = swarm.select_next_some().await;
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    };
    timeout(PATIENCE, events).await.expect("the event comes")
}

/// Asks for a reservation. Returns the addresses that came with it, or why there is none.
async fn reserve(
    swarm: &mut Swarm<Behaviour>,
    relay: Multiaddr,
) -> Result<BTreeSet<Multiaddr>, String> {
    swarm.listen_on(relay.with(Protocol::P2pCircuit)).unwrap();
    let mut addresses = BTreeSet::new();
    let mut accepted = false;
    loop {
        let next = event(swarm, |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(Ok(Some(address.clone()))),
            SwarmEvent::ListenerClosed { reason, .. } => Some(Err(format!("{reason:?}"))),
            SwarmEvent::Behaviour(BehaviourEvent::Relay(
                relay::client::Event::ReservationReqAccepted { .. },
            )) => Some(Ok(None)),
            _ => None,
        });
        match next.await? {
            Some(address) => {
                addresses.insert(address);
            }
            None => accepted = true,
        }
        // The listener reports all addresses of the reservation at once.
        if accepted && addresses.len() == 4 {
            return Ok(addresses);
        }
    }
}

fn drive(mut swarm: Swarm<Behaviour>) {
    tokio::spawn(async move {
        loop {
            swarm.next().await;
        }
    });
}

/// Starts a peer that has a reservation and echoes. Returns its circuit address.
async fn reserved_echo(server: &Server) -> Multiaddr {
    let mut swarm = client();
    let peer = *swarm.local_peer_id();
    let relay = address(server, "quic-v1");
    reserve(&mut swarm, relay.clone()).await.unwrap();
    let mut incoming = swarm.behaviour().stream.new_control().accept(ECHO).unwrap();
    drive(swarm);
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            tokio::spawn(async move {
                let (reader, mut writer) = stream.split();
                let _ = futures::io::copy(reader, &mut writer).await;
                let _ = writer.close().await;
            });
        }
    });
    relay.with(Protocol::P2pCircuit).with(Protocol::P2p(peer))
}

/// Dials one more connection to `address`. Returns the peer, or what the relay said.
async fn dial(swarm: &mut Swarm<Behaviour>, address: Multiaddr) -> Result<PeerId, String> {
    let Some(Protocol::P2p(peer)) = address.iter().last() else {
        panic!("{address} names a peer");
    };
    let options = DialOpts::peer_id(peer)
        .addresses(vec![address])
        .condition(PeerCondition::Always)
        .build();
    let id = options.connection_id();
    swarm.dial(options).unwrap();
    event(swarm, |event| match event {
        SwarmEvent::ConnectionEstablished {
            connection_id,
            peer_id,
            ..
        } if *connection_id == id => Some(Ok(*peer_id)),
        SwarmEvent::OutgoingConnectionError {
            connection_id,
            error,
            ..
        } if *connection_id == id => Some(Err(format!("{error:?}"))),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_reservation_carries_every_address() {
    let server = start(config()).await;
    let mut swarm = client();
    let reserved = reserve(&mut swarm, address(&server, "/tcp/"))
        .await
        .unwrap();
    let circuit = format!("/p2p-circuit/p2p/{}", swarm.local_peer_id());
    let expected: BTreeSet<Multiaddr> = server
        .addresses()
        .iter()
        .map(|address| format!("{address}{circuit}").parse().unwrap())
        .collect();
    assert_eq!(reserved, expected);
    for road in ["/quic-v1/", "/ws/", "/webrtc-direct/certhash/"] {
        assert!(
            reserved
                .iter()
                .any(|address| address.to_string().contains(road)),
            "{road}"
        );
    }
    let metrics = server.metrics();
    assert!(
        metrics.contains("throughline_relay_reservations 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn every_listener_is_dialled() {
    let server = start(config()).await;
    for road in ["/quic-v1", "/tcp/", "/ws", "/webrtc-direct"] {
        let mut swarm = direct::listening().await;
        let peer = dial(&mut swarm, address(&server, road)).await.expect(road);
        assert_eq!(peer.to_string(), server.peer_id().to_string());
    }
}

#[tokio::test]
async fn a_circuit_carries_more_than_a_stock_relay_lets_through() {
    let server = start(config()).await;
    let target = reserved_echo(&server).await;
    let mut swarm = client();
    let peer = dial(&mut swarm, target).await.unwrap();
    let mut control = swarm.behaviour().stream.new_control();
    drive(swarm);
    let stream = control.open_stream(peer, ECHO).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n >> 3) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.close().await.unwrap();
    };
    let ((), read) = timeout(
        PATIENCE,
        futures::future::join(write, reader.read_to_end(&mut received)),
    )
    .await
    .expect("the bytes come back");
    read.unwrap();
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
    assert!(server.metrics().contains("throughline_relay_circuits 1\n"));
}

#[tokio::test]
async fn a_circuit_beyond_the_limit_is_refused_and_the_others_go_on() {
    let mut config = config();
    config.relay.circuits_per_peer = NonZeroUsize::new(2).unwrap();
    config.relay.circuits = NonZeroUsize::new(3).unwrap();
    config.connections.share_per_address = 100;
    let server = start(config).await;
    let target = reserved_echo(&server).await;

    let mut first = client();
    dial(&mut first, target.clone()).await.unwrap();
    dial(&mut first, target.clone()).await.unwrap();
    let refusal = dial(&mut first, target.clone()).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");

    let mut second = client();
    dial(&mut second, target.clone()).await.unwrap();
    let refusal = dial(&mut second, target).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");
    let metrics = server.metrics();
    assert!(
        metrics.contains("throughline_relay_circuits 3\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("requests_total{outcome=\"limit\"} 2\n"),
        "{metrics}"
    );

    // The open circuits are still open.
    let peer = *second
        .connected_peers()
        .find(|peer| peer.to_string() != server.peer_id().to_string())
        .unwrap();
    let mut control = second.behaviour().stream.new_control();
    drive(second);
    let mut stream = control.open_stream(peer, ECHO).await.unwrap();
    stream.write_all(b"still here").await.unwrap();
    let mut echoed = [0; 10];
    timeout(PATIENCE, stream.read_exact(&mut echoed))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&echoed, b"still here");
}

#[tokio::test]
async fn a_reservation_beyond_the_limit_is_refused() {
    let mut config = config();
    config.relay.reservations = NonZeroUsize::new(1).unwrap();
    let server = start(config).await;
    let relay = address(&server, "quic-v1");
    let mut first = client();
    reserve(&mut first, relay.clone()).await.unwrap();
    let refusal = reserve(&mut client(), relay.clone()).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");
    // The place of a peer is free as soon as the peer leaves.
    drop(first);
    let none = "throughline_relay_reservations 0\n";
    until(|| server.metrics().contains(none)).await;
    reserve(&mut client(), relay).await.unwrap();
}

#[tokio::test]
async fn a_circuit_to_a_peer_without_a_reservation_is_refused() {
    let server = start(config()).await;
    let nobody = address(&server, "quic-v1")
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(PeerId::random()));
    let refusal = dial(&mut client(), nobody).await.unwrap_err();
    assert!(refusal.contains("NoReservation"), "{refusal}");
}

#[tokio::test]
async fn a_restart_keeps_identity_and_certificate() {
    let home = tempfile::tempdir().unwrap();
    let mut config = config();
    config.data = Some(home.path().join("data"));
    let names = |server: &Server| {
        let certhash = address(server, "certhash")
            .iter()
            .find_map(|part| match part {
                Protocol::Certhash(hash) => Some(hash),
                _ => None,
            });
        (server.peer_id(), certhash.unwrap())
    };
    let first = start(config.clone()).await;
    let before = names(&first);
    first.shutdown().await;
    let second = start(config).await;
    assert_eq!(names(&second), before);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_service() {
    for (service, n) in [
        ("quic", 0),
        ("tcp", 0),
        ("websocket", 1),
        ("webrtc-direct", 1),
        ("http", 2),
    ] {
        let mut config = config();
        config.port = free_ports();
        config.layout = Layout::Five;
        let taken = ("127.0.0.1", config.port + n);
        let (_udp, _tcp) = match service {
            "quic" | "webrtc-direct" => (Some(UdpSocket::bind(taken).unwrap()), None),
            _ => (None, Some(TcpListener::bind(taken).unwrap())),
        };
        let error = Server::start(config).await.unwrap_err();
        assert_eq!(error.kind(), throughline::ErrorKind::Io);
        let named = format!("cannot bind {service} to 127.0.0.1:{}: ", taken.1);
        assert!(error.message().starts_with(&named), "{error}");
        assert!(error.message().contains("in use"), "{error}");
    }
}

#[tokio::test]
async fn two_servers_do_not_share_a_port() {
    let mut config = config();
    config.port = free_ports();
    let _first = start(config.clone()).await;
    let error = Server::start(config).await.unwrap_err();
    assert!(error.message().contains("cannot bind"), "{error}");
}

#[tokio::test]
async fn both_families_are_served_side_by_side() {
    if UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6");
        return;
    }
    let mut config = config();
    config.hosts = vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
    config.port = free_ports();
    let server = start(config.clone()).await;
    for family in ["/ip4/", "/ip6/"] {
        for road in ["/quic-v1", "/tcp/", "/ws", "/webrtc-direct"] {
            let mut swarm = client();
            // libp2p-webrtc dials from a listener's socket only.
            let any = match family {
                "/ip4/" => "/ip4/0.0.0.0/udp/0/webrtc-direct",
                _ => "/ip6/::/udp/0/webrtc-direct",
            };
            swarm.listen_on(any.parse().unwrap()).unwrap();
            event(&mut swarm, |e| {
                matches!(e, SwarmEvent::NewListenAddr { .. }).then_some(())
            })
            .await;
            let all = server.addresses().iter();
            let mut found = all.filter(|text| text.starts_with(family) && text.contains(road));
            // If a machine has only loopback in one family, that address is not announced.
            let Some(to) = found.next() else { continue };
            let peer = dial(&mut swarm, to.parse().unwrap()).await.expect(to);
            assert_eq!(peer.to_string(), server.peer_id().to_string());
        }
    }
    // The loopback address of each family is served too.
    for host in ["127.0.0.1", "::1"] {
        let ip: std::net::IpAddr = host.parse().unwrap();
        TcpStream::connect((ip, config.port)).unwrap();
    }
}

#[tokio::test]
async fn garbage_at_every_port_harms_nobody() {
    let server = start(config()).await;
    let roads: Vec<Multiaddr> = server
        .addresses()
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    tokio::task::spawn_blocking(move || {
        for road in roads {
            let mut parts = road.iter();
            let Some(Protocol::Ip4(ip)) = parts.next() else {
                panic!("an IPv4 address");
            };
            match parts.next() {
                Some(Protocol::Udp(port)) => {
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    for length in [0, 1, 20, 1200, 1400] {
                        socket.send_to(&vec![0xc3; length], (ip, port)).unwrap();
                    }
                }
                Some(Protocol::Tcp(port)) => {
                    let mut stream = TcpStream::connect((ip, port)).unwrap();
                    stream.write_all(&[0xc3; 4096]).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    reserve(&mut client(), address(&server, "/ws"))
        .await
        .unwrap();
}
