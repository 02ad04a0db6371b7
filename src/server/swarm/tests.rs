use std::net::IpAddr;

use libp2p::identity;
use tokio::sync::mpsc;

use super::*;
use crate::server::{config::ServerConfig, directory::Memory};

#[tokio::test]
async fn a_server_dials_nobody_by_itself() {
    let config = ServerConfig {
        hosts: vec!["127.0.0.1".parse().unwrap()],
        port: 0,
        ..ServerConfig::default()
    };
    let metrics = Metrics::new(&config);
    let pools = Pools::new(&Settings::fixed(config), &metrics);
    let keypair = identity::Keypair::generate_ed25519();
    let (descriptors, usage) = (Descriptors::unlimited(), Usage::default());
    let arrivals = Arrivals {
        queue: mpsc::channel(1).1,
        bound: Vec::new(),
        ways: Vec::new(),
        forwarded: pools.limits.forwarded.clone(),
    };
    let directory = Arc::new(Memory::new(pools.rooms()));
    let parts = RelayParts {
        access: Access::open(&pools),
        metrics,
        pools,
        descriptors,
        usage,
        directory,
        sisters: Sisters::default(),
    };
    let sockets = Sockets::bind_one("127.0.0.1:0".parse().unwrap()).unwrap();
    let bound = Bound {
        arrivals,
        quic: vec![sockets.clone()],
        direct: vec![sockets],
    };
    let relay = Relay::start(&keypair, bound, Vec::new(), parts);
    let mut relay = relay.await.unwrap();
    let victim = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Multiaddr::from(IpAddr::from([127, 0, 0, 1]));
    let address = address.with(Protocol::Tcp(victim.local_addr().unwrap().port()));
    let dialled = relay.swarm.dial(address);
    assert!(
        matches!(dialled, Err(swarm::DialError::Denied { .. })),
        "{dialled:?}"
    );
}
