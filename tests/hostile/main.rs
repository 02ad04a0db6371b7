//! Tests hostile peers: each limit at its edge, while others are unharmed.
#![cfg(not(target_arch = "wasm32"))]

use std::{io, net::Ipv4Addr, time::Duration};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _,
    future::{self, join_all},
    stream::{self, FuturesUnordered},
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm,
    swarm::{
        SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use throughline::{Config, Connection, Connector, ErrorKind, Ticket};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    sync::mpsc,
    time::timeout,
};

use common::{PATIENCE, config, echo, echoed, echoing, free_ports, peer, until, until_polled};

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "cli")]
mod direct;
#[cfg(feature = "cli")]
mod entrance;
mod http;
mod measure;
#[cfg(feature = "cli")]
mod server;
mod signalling;
#[path = "../common/stock.rs"]
mod stock;
mod tickets;
mod turn;
#[cfg(feature = "cli")]
mod windows;

/// The limits of src/native/behaviours/mod.rs and src/node.
const HANDSHAKES_OF_AN_ADDRESS: usize = 102;
const CONNECTIONS_OF_A_PEER: usize = 16;
const WAITING_CONNECTIONS: usize = 64;
const WAITING_STREAMS: usize = 64;

/// Nothing that is held open ends by itself within this time, so an end within it is a refusal.
const SOON: Duration = Duration::from_secs(5);

/// Waits until the peer knows the addresses that it listens on.
async fn listening(me: Connector) -> Connector {
    until(|| me.ticket().addresses().len() >= 2).await;
    me
}

/// Starts a peer that echoes, with this configuration.
async fn victim(config: Config) -> Connector {
    listening(echoing(config).await).await
}

async fn connect(to: &Connector) -> (Connector, Connection) {
    let me = peer(config()).await;
    let connection = me.connect(&to.ticket()).await.unwrap();
    (me, connection)
}

fn address(of: &Connector, has: &str) -> Multiaddr {
    let ticket = of.ticket();
    let mut addresses = ticket.addresses().into_iter();
    addresses
        .find(|text| text.contains(has))
        .unwrap()
        .parse()
        .unwrap()
}

fn id(of: &Connector) -> PeerId {
    of.peer_id().to_string().parse().unwrap()
}

/// Makes a libp2p node, which can do as it likes.
fn hostile() -> Swarm<libp2p_stream::Behaviour> {
    stock::node(|_| libp2p_stream::Behaviour::new())
}

/// Starts a hostile node that is connected to `victim`.
async fn connected(victim: &Connector) -> libp2p_stream::Control {
    let mut swarm = hostile();
    let to = DialOpts::peer_id(id(victim)).addresses(vec![address(victim, "/quic-v1")]);
    swarm.dial(to.build()).unwrap();
    let control = swarm.behaviour().new_control();
    let (sender, mut established) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::ConnectionEstablished { .. } = swarm.select_next_some().await {
                let _ = sender.try_send(());
            }
        }
    });
    timeout(PATIENCE, established.recv())
        .await
        .expect("a connection");
    control
}

#[tokio::test]
async fn one_peer_has_so_many_connections_and_no_more() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    let mut swarm = hostile();
    let beyond = 4;
    for _ in 0..CONNECTIONS_OF_A_PEER + beyond {
        let to = DialOpts::peer_id(id(&victim)).addresses(vec![address(&victim, "/quic-v1")]);
        swarm
            .dial(to.condition(PeerCondition::Always).build())
            .unwrap();
    }
    let (mut refused, mut made) = (0, 0);
    let refusals = async {
        while refused < beyond || made < CONNECTIONS_OF_A_PEER {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => made += 1,
                SwarmEvent::ConnectionClosed { .. } => {
                    (refused, made) = (refused + 1, made - 1);
                }
                SwarmEvent::OutgoingConnectionError { .. } => refused += 1,
                _ => {}
            }
        }
    };
    timeout(SOON, refusals).await.expect("refusals");
    assert_eq!((made, refused), (CONNECTIONS_OF_A_PEER, beyond));
    echoed(&connection).await;
}

#[tokio::test]
async fn handshakes_that_nobody_goes_on_with_are_bounded() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    let tcp = address(&victim, "/tcp/");
    let port = tcp.iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let beyond = 8;
    let dial = |ip: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind((ip.parse::<Ipv4Addr>().unwrap(), 0).into())
            .unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, port.unwrap()).into())
    };
    let dials = (0..HANDSHAKES_OF_AN_ADDRESS + beyond).map(|_| dial("127.0.0.2"));
    let dials = join_all(dials).await.into_iter().map(Result::unwrap);
    // A refused connection ends. The others are answered, and wait for what comes next.
    const HELLO: &[u8] = b"\x13/multistream/1.0.0\n";
    let answers = dials.map(async |mut stream| {
        let _ = stream.write_all(HELLO).await;
        let mut answer = [0; HELLO.len()];
        let answered = timeout(SOON, stream.read_exact(&mut answer)).await;
        answered.expect("an answer or an end").ok()?;
        Some(stream)
    });
    let held: Vec<_> = join_all(answers).await.into_iter().flatten().collect();
    assert_eq!(held.len(), HANDSHAKES_OF_AN_ADDRESS);
    echoed(&connection).await;
    // Others come in meanwhile by the same transport.
    let other = peer(config()).await;
    let ticket = victim.ticket();
    let tcp_only = Ticket::from_parts(ticket.peer_id(), [], [tcp.to_string()]).unwrap();
    echoed(&other.connect(&tcp_only).await.unwrap()).await;
    drop(held);
    let (_late, connection) = connect(&victim).await;
    echoed(&connection).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let mut few = config();
    few.max_connections = 2;
    let victim = victim(few).await;
    let (_first, first) = connect(&victim).await;
    let (_second, second) = connect(&victim).await;
    echoed(&second).await;
    let third = peer(config()).await;
    let refused = async {
        match third.connect(&victim.ticket()).await {
            Ok(connection) => echo(&connection).await.map(drop),
            Err(error) => Err(io::Error::other(error)),
        }
    };
    timeout(PATIENCE, refused)
        .await
        .expect("a refusal")
        .unwrap_err();
    echoed(&first).await;
    echoed(&second).await;
    first.close().await;
    let again = async {
        while echo(&third.connect(&victim.ticket()).await.unwrap())
            .await
            .is_err()
        {}
    };
    timeout(PATIENCE, again).await.expect("room for another");
}

#[tokio::test]
async fn connections_that_nobody_accepts_are_bounded() {
    // The victim has one address only. A dial to a second address would still be under way after
    // the refusal, and would succeed because there is room then.
    let mut quic = config();
    quic.listen.retain(|address| address.ends_with("/quic-v1"));
    let victim = peer(quic).await;
    let ticket = victim.ticket();
    assert_eq!(ticket.addresses().len(), 1);
    let peers = (0..=WAITING_CONNECTIONS).map(async |_| {
        let peer = peer(config()).await;
        let connection = peer.connect(&ticket).await.unwrap();
        (peer, connection)
    });
    let peers: Vec<_> = stream::iter(peers).buffered(8).collect().await;
    // One peer is told that it came too late, and does not come back.
    let mut closed: FuturesUnordered<_> = peers
        .iter()
        .map(|(_, connection)| async move { connection.closed().await })
        .collect();
    timeout(SOON, closed.next()).await.expect("a refusal");
    let mut accepted = 0;
    while let Ok(Some(_)) = timeout(Duration::from_millis(200), victim.accept()).await {
        accepted += 1;
    }
    assert_eq!(accepted, WAITING_CONNECTIONS);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let mut few = config();
    few.max_streams = 4;
    let victim = victim(few).await;
    let (_honest, honest) = connect(&victim).await;
    let (_hostile, connection) = connect(&victim).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(echo(&connection).await.unwrap());
    }
    let error = echo(&connection).await.map(drop).unwrap_err();
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<throughline::Error>());
    assert_eq!(
        inner.map(|e| e.kind()),
        Some(ErrorKind::LimitExceeded),
        "{error}"
    );
    echoed(&honest).await;
    held.pop().unwrap().close().await.unwrap();
    let again = async { while echo(&connection).await.is_err() {} };
    timeout(PATIENCE, again).await.expect("room for another");
}

#[tokio::test]
async fn streams_that_nobody_accepts_are_bounded() {
    let mut few = config();
    few.max_streams = WAITING_STREAMS;
    let victim = listening(peer(few).await).await;
    let (_hostile, connection) = connect(&victim).await;
    let _held = timeout(PATIENCE, victim.accept()).await.unwrap().unwrap();
    let mut streams = Vec::new();
    for _ in 0..=WAITING_STREAMS {
        let mut stream = connection.open("echo/1").await.unwrap();
        futures::AsyncWriteExt::write_all(&mut stream, b"?")
            .await
            .unwrap();
        streams.push(stream);
    }
    let mut ends: FuturesUnordered<_> = streams
        .iter_mut()
        .map(|stream| async move { futures::AsyncReadExt::read(stream, &mut [0]).await })
        .collect();
    let first = timeout(SOON, ends.next()).await.expect("a refusal");
    first.unwrap().unwrap_err();
    assert_eq!(ends.len(), WAITING_STREAMS);
}

#[tokio::test]
async fn streams_without_a_header_are_bounded() {
    let mut few = config();
    few.max_streams = 4;
    let victim = victim(few).await;
    let (_honest, honest) = connect(&victim).await;
    let mut control = connected(&victim).await;
    let mut streams = Vec::new();
    for _ in 0..=4 {
        let protocol = StreamProtocol::new("/throughline/stream/1");
        let mut stream = control.open_stream(id(&victim), protocol).await.unwrap();
        stream.flush().await.unwrap();
        streams.push(stream);
    }
    let mut ends: FuturesUnordered<_> = streams
        .iter_mut()
        .map(|stream| async move { stream.read(&mut [0]).await.unwrap_or_default() })
        .collect();
    let first = timeout(SOON, ends.next()).await.expect("a refusal");
    assert_eq!((first, ends.len()), (Some(0), 4));
    echoed(&honest).await;
}

/// The attacker opens as many streams as it can, without a header or with nonsense.
#[tokio::test]
async fn streams_that_say_nothing_or_nonsense_harm_nobody() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    for (protocol, nonsense) in [
        ("/throughline/stream/1", &[][..]),
        ("/throughline/stream/1", &[0xff; 512]),
        ("/webrtc-signaling/0.0.1", &[]),
        ("/webrtc-signaling/0.0.1", &[0x7f; 4096]),
        ("/throughline/close/1", &[1; 64]),
    ] {
        let control = connected(&victim).await;
        let to = id(&victim);
        let opens = (0..1000).map(move |_| {
            let mut control = control.clone();
            async move {
                let protocol = StreamProtocol::new(protocol);
                let mut stream = control.open_stream(to, protocol).await.ok()?;
                let _ = stream.write_all(nonsense).await;
                let _ = stream.flush().await;
                Some(stream)
            }
        });
        // The streams stay open.
        let flood = tokio::spawn(async move {
            let _held = join_all(opens).await;
            future::pending::<()>().await;
        });
        let others = async {
            for _ in 0..10 {
                echoed(&connection).await;
            }
            let (_late, late) = connect(&victim).await;
            echoed(&late).await;
        };
        timeout(SOON, others).await.expect("others are unharmed");
        flood.abort();
    }
}
