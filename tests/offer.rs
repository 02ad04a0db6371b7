//! Offers that need no circuit, on loopback, through the public API alone.
#![cfg(feature = "server")]

use std::{net::Ipv4Addr, num::NonZeroUsize, time::Duration};

use throughline::{
    Config, Connection, Connector, PathKind,
    server::{Server, ServerConfig},
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay with room for so many circuits.
async fn relay(circuits: usize) -> Server {
    let mut config = ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config.relay.circuits = NonZeroUsize::new(circuits).unwrap();
    Server::start(config).await.unwrap()
}

/// A peer that has its link to the relay.
async fn peer(relay: &Server, direct: bool) -> Connector {
    let mut config = Config::default();
    config.port_mapping = false;
    config.birthday = false;
    config.direct = direct;
    config.relays = relay.addresses().to_vec();
    Connector::builder().config(config).bind().await.unwrap()
}

/// Accepts whatever comes, and keeps it.
fn accepting(me: &Connector) {
    let me = me.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(conn) = me.accept().await {
            kept.push(conn);
        }
    });
}

/// Connects through the peer's relays alone. What the relay can do shows some time after the link
/// to it is up, so a refusal may be of that time.
async fn connect(me: &Connector, peer: &Connector) -> Connection {
    let ticket = peer.ticket().without_addresses();
    let connected = timeout(PATIENCE, async {
        loop {
            if let Ok(connected) = me.connect(&ticket).await {
                return connected;
            }
        }
    });
    connected.await.expect("there is a path")
}

#[tokio::test]
async fn a_path_is_found_although_the_relay_has_no_circuit_left() {
    let relay = relay(1).await;
    let (other, listener) = (peer(&relay, false).await, peer(&relay, true).await);
    accepting(&listener);
    let only = connect(&other, &listener).await;
    assert_eq!(only.path().unwrap().kind, PathKind::Relayed);

    let dialler = peer(&relay, true).await;
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.peer_id(), listener.peer_id());
    assert_eq!(connected.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn a_peer_that_allows_no_direct_path_is_reached_by_the_circuit() {
    let relay = relay(16).await;
    let (listener, dialler) = (peer(&relay, false).await, peer(&relay, true).await);
    accepting(&listener);
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.path().unwrap().kind, PathKind::Relayed);
}
