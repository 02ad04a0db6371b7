//! Stock rust-libp2p peers and a relay on loopback. Stock peers punch holes by DCUtR only.

use futures::{StreamExt as _, channel::mpsc};
use libp2p::{Multiaddr, PeerId, Swarm, multiaddr::Protocol};
use throughline::{
    Config, Connection, Connector, ErrorKind, Outcome, PathEvent, PathKind, Strategy, Ticket,
    server::Server,
};
use tokio::time::timeout;

use common::{PATIENCE, server_config, until, until_some};

mod common;
#[path = "../examples/libp2p_dcutr.rs"]
mod stock;

async fn relay() -> (Server, Multiaddr) {
    let server = Server::start(server_config()).await.unwrap();
    let quic = server.addresses().iter().find(|a| a.contains("quic"));
    let address = quic.unwrap().parse().unwrap();
    (server, address)
}

async fn ours(relay: &Multiaddr) -> Connector {
    let mut config = Config::default();
    config.relays = vec![relay.to_string()];
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into()];
    let me = Connector::builder().config(config).bind().await.unwrap();
    // The relay must have told our address before the peer asks for it.
    until_some(|| async { me.report().await.unwrap().observed.pop() }).await;
    me
}

/// Starts a stock peer that knows its address as the relay sees it.
async fn theirs(relay: &Multiaddr) -> Swarm<stock::Behaviour> {
    let mut swarm = stock::peer("127.0.0.1").unwrap();
    stock::meet_relay(&mut swarm, relay).await.unwrap();
    swarm
}

/// Runs a stock peer. Reports the peer of each of its connections, and whether it is direct.
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

/// Waits until the connection is direct, and checks that a punched hole made it so.
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
    // Until identify has told what the peer serves, a datagram waits.
    until(|| conn.send_datagram(b"x").is_err()).await;
    let error = conn.send_datagram(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(conn.max_datagram_size(), None);
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
    assert!(!seen.next().await.unwrap().1, "the circuit is first");
    assert!(seen.next().await.unwrap().1, "the direct path is second");
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
