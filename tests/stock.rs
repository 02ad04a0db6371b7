//! Stock rust-libp2p peers, which know hole punching by DCUtR only, and a relay, on loopback.
#![cfg(feature = "server")]

use std::{net::Ipv4Addr, time::Duration};

use futures::{StreamExt as _, channel::mpsc};
use libp2p::{Multiaddr, PeerId, Swarm, multiaddr::Protocol};
use throughline::{
    Config, Connection, Connector, Outcome, PathEvent, PathKind, Strategy, Ticket,
    server::{Server, ServerConfig},
};
use tokio::time::timeout;

#[path = "../examples/libp2p_dcutr.rs"]
mod stock;

const PATIENCE: Duration = Duration::from_secs(20);

async fn relay() -> (Server, Multiaddr) {
    let mut config = ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    let server = Server::start(config).await.unwrap();
    let quic = server.addresses().iter().find(|a| a.contains("quic"));
    let address = quic.unwrap().parse().unwrap();
    (server, address)
}

async fn ours(relay: &Multiaddr) -> Connector {
    let mut config = Config::default();
    config.relays = vec![relay.to_string()];
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into()];
    let me = Connector::builder().config(config).bind().await.unwrap();
    // Without a round trip in between, the peer may ask for our address before the relay has told it.
    let told = async { while me.report().await.unwrap().observed.is_empty() {} };
    timeout(PATIENCE, told)
        .await
        .expect("the relay tells our address");
    me
}

/// A stock peer that knows its address as the relay sees it.
async fn theirs(relay: &Multiaddr) -> Swarm<stock::Behaviour> {
    let mut swarm = stock::peer("127.0.0.1").unwrap();
    stock::meet_relay(&mut swarm, relay).await.unwrap();
    swarm
}

/// Runs a stock peer, and tells of its connections: who, and whether it is direct.
fn run(
    mut swarm: Swarm<stock::Behaviour>,
    relay: Multiaddr,
) -> mpsc::UnboundedReceiver<(PeerId, bool)> {
    let (sender, receiver) = mpsc::unbounded();
    tokio::spawn(async move {
        while !sender.is_closed() {
            let connection = stock::connection(&mut swarm, &relay).await;
            let _ = sender.unbounded_send(connection);
        }
    });
    receiver
}

/// Waits until the connection is direct, and says that a punched hole made it so.
async fn punched(conn: &Connection) {
    let mut events = conn.path_events();
    let direct = async {
        while conn.path().is_none_or(|p| p.kind != PathKind::Direct) {
            let event = events.next().await.expect("the connection stays open");
            assert!(!matches!(event, PathEvent::Closed { .. }), "{event:?}");
        }
    };
    timeout(PATIENCE, direct).await.expect("the path changes");
    assert_eq!(conn.path().unwrap().strategy, Strategy::Stun);
    let succeeded = conn
        .attempts()
        .iter()
        .filter(|a| a.strategy == Strategy::Stun && a.outcome == Outcome::Succeeded)
        .count();
    assert_eq!(succeeded, 1, "{:?}", conn.attempts());
}

#[tokio::test]
async fn a_circuit_to_a_stock_peer_becomes_direct() {
    let (_server, relay) = relay().await;
    let mut swarm = theirs(&relay).await;
    stock::reserve(&mut swarm, &relay).await.unwrap();
    let peer = swarm.local_peer_id().to_string().parse().unwrap();
    let mut seen = run(swarm, relay.clone());

    let me = ours(&relay).await;
    let ticket = Ticket::from_parts(peer, [relay.to_string()], []).unwrap();
    let conn = me.connect(&ticket).await.unwrap();
    punched(&conn).await;
    assert!(!seen.next().await.unwrap().1, "a circuit is first");
    assert!(seen.next().await.unwrap().1, "then comes a direct one");
    let metrics = me.metrics();
    assert!(
        metrics.contains("nat_traversal_successes_total{strategy=\"stun\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_circuit_from_a_stock_peer_becomes_direct() {
    let (_server, relay) = relay().await;
    let me = ours(&relay).await;
    let mut swarm = theirs(&relay).await;
    let peer: PeerId = me.peer_id().to_string().parse().unwrap();
    let circuit = relay.clone().with(Protocol::P2pCircuit);
    swarm.dial(circuit.with(Protocol::P2p(peer))).unwrap();
    let _seen = run(swarm, relay);
    let conn = timeout(PATIENCE, me.accept()).await.unwrap().unwrap();
    punched(&conn).await;
}
