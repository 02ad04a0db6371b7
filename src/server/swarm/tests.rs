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
