use super::*;

fn addresses(texts: &[&str]) -> BTreeSet<Multiaddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn ports_follow_the_base() {
    let texts: Vec<_> = listen_addresses(&["127.0.0.1".parse().unwrap()], 4001)
        .iter()
        .map(Multiaddr::to_string)
        .collect();
    assert_eq!(
        texts,
        [
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/127.0.0.1/tcp/4002/ws",
            "/ip4/127.0.0.1/udp/4002/webrtc-direct",
        ]
    );
    let ephemeral = listen_addresses(&["::".parse().unwrap()], 0);
    assert!(ephemeral.iter().all(|a| a.to_string().contains("/0")));
}

#[test]
fn loopback_is_announced_only_where_nothing_else_is_there() {
    let mut announce = Announcements::new(vec!["/dns4/r.example/tcp/443/wss".parse().unwrap()]);
    announce.bound = addresses(&["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"]);
    assert_eq!(
        announce.current(),
        addresses(&[
            "/ip4/127.0.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/dns4/r.example/tcp/443/wss"
        ])
    );
    announce
        .bound
        .extend(addresses(&["/ip4/192.0.2.1/tcp/1", "/ip6/fe80::1/tcp/1"]));
    assert_eq!(
        announce.current(),
        addresses(&["/ip4/192.0.2.1/tcp/1", "/dns4/r.example/tcp/443/wss"])
    );
}

#[tokio::test]
async fn a_server_dials_nobody_by_itself() {
    let config = ServerConfig {
        hosts: vec!["127.0.0.1".parse().unwrap()],
        port: 0,
        ..ServerConfig::default()
    };
    let metrics = Metrics::new(&config);
    let pools = Pools::new(&config, &metrics);
    let keypair = identity::Keypair::generate_ed25519();
    let descriptors = Descriptors::unlimited();
    let relay = Relay::start(&config, &keypair, metrics, pools, Vec::new(), descriptors);
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
