//! Datagrams between programs on loopback. The tests use the public API only.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, future::join};
use throughline::{Config, Connection, Connector, ErrorKind, PathEvent, PathKind, server::Server};
use tokio::time::{interval, timeout};

use common::{PATIENCE, echo_streams, echoed, peer, relay, until, until_path};

mod common;

fn config(relays: &[&Server]) -> Config {
    let mut config = common::config();
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config
}

/// Both ends of a connection, and the peers that hold them.
struct Pair {
    alice: Connection,
    bob: Connection,
    _peers: [Connector; 2],
}

async fn connect(from: Config, to: Config, relayed: bool) -> Pair {
    let to = peer(to).await;
    let from = peer(from).await;
    until(|| relayed || !to.ticket().addresses().is_empty()).await;
    let ticket = match relayed {
        true => to.ticket().without_addresses(),
        false => to.ticket(),
    };
    let (alice, bob) = join(from.connect(&ticket), to.accept()).await;
    Pair {
        alice: alice.unwrap(),
        bob: bob.unwrap(),
        _peers: [from, to],
    }
}

async fn next(connection: &Connection) -> Vec<u8> {
    let next = timeout(PATIENCE, async { connection.datagrams().next().await });
    next.await.expect("a datagram comes").expect("it is open")
}

/// Sends datagrams until one arrives, because each may be lost.
async fn passes(from: &Connection, to: &Connection, datagram: &[u8]) {
    let mut tick = interval(Duration::from_millis(20));
    let sends = async {
        loop {
            tick.tick().await;
            from.send_datagram(datagram).unwrap();
        }
    };
    let arrives = async { while next(to).await != datagram {} };
    tokio::select! {
        () = sends => {}
        () = arrives => {}
    }
}

async fn both_ways(pair: &Pair) {
    passes(&pair.alice, &pair.bob, b"there").await;
    passes(&pair.bob, &pair.alice, b"and back").await;
    passes(&pair.alice, &pair.bob, b"").await;
    let most = pair.alice.max_datagram_size().unwrap();
    passes(&pair.alice, &pair.bob, &vec![7; most]).await;
    let most = pair.alice.max_datagram_size().unwrap();
    let error = pair.alice.send_datagram(&vec![7; most + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.message().contains(&most.to_string()), "{error}");
}

#[tokio::test]
async fn quic_carries_datagrams_and_tells_how_long_they_may_be() {
    let pair = connect(config(&[]), config(&[]), false).await;
    let mut events = pair.alice.path_events();
    both_ways(&pair).await;
    // QUIC probes the path beside other traffic only.
    let mut tick = interval(Duration::from_millis(20));
    let grown = async {
        while pair.alice.max_datagram_size() <= Some(1200) {
            tokio::select! {
                _ = tick.tick() => pair.alice.send_datagram(b"more").unwrap(),
                event = events.next() => {
                    if let PathEvent::DatagramSize { max_datagram_size, .. } = event.unwrap() {
                        assert_eq!(pair.alice.max_datagram_size(), max_datagram_size);
                    }
                }
            }
        }
    };
    let grown = timeout(PATIENCE, grown).await;
    grown.expect("QUIC finds what loopback carries");
}

#[tokio::test]
async fn a_circuit_carries_datagrams_in_a_substream() {
    let relay = relay().await;
    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let pair = connect(relayed.clone(), relayed, true).await;
    assert_eq!(pair.alice.path().unwrap().kind, PathKind::Relayed);
    assert_eq!(pair.alice.max_datagram_size(), Some(1120));
    both_ways(&pair).await;
}

#[tokio::test]
async fn tcp_carries_datagrams_in_a_substream() {
    let tcp = || {
        let mut tcp = config(&[]);
        tcp.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        tcp
    };
    let pair = connect(tcp(), tcp(), false).await;
    assert_eq!(pair.alice.max_datagram_size(), Some(1120));
    both_ways(&pair).await;
}

#[tokio::test]
async fn datagrams_follow_the_path_and_come_once() {
    let relay = relay().await;
    let pair = connect(config(&[&relay]), config(&[&relay]), true).await;
    let mut tick = interval(Duration::from_millis(5));
    let mut sent = 0u32;
    let ticks = async {
        let moved = until_path(&pair.alice, PathKind::Direct);
        let mut moved = std::pin::pin!(moved.fuse());
        let mut after = 0;
        while after < 100 {
            tick.tick().await;
            pair.alice.send_datagram(&sent.to_be_bytes()).unwrap();
            sent += 1;
            if (&mut moved).now_or_never().is_some() || after > 0 {
                after += 1;
            }
        }
        pair.alice.close().await;
    };
    let reads = async {
        let mut seen = Vec::new();
        let mut datagrams = pair.bob.datagrams();
        while let Some(datagram) = datagrams.next().await {
            seen.push(u32::from_be_bytes(datagram.try_into().unwrap()));
        }
        seen
    };
    let ((), mut seen) = timeout(PATIENCE, join(ticks, reads)).await.unwrap();
    assert!(seen.contains(&(sent - 2)), "datagrams go over the new path");
    let arrived = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), arrived, "one came twice");
    // Loopback loses nothing, but datagrams on a path that is left may be lost.
    assert!(arrived * 10 >= sent as usize * 9, "{arrived} of {sent}");
}

/// Connects a pair, directly or over `relay`, and waits until datagrams pass in both directions.
async fn passing(relay: &Server, relayed: bool) -> Pair {
    let config = || match relayed {
        true => {
            let mut relayed = config(&[relay]);
            relayed.direct = false;
            relayed
        }
        false => config(&[]),
    };
    let pair = connect(config(), config(), relayed).await;
    passes(&pair.alice, &pair.bob, b"x").await;
    pair
}

/// A picture of a video is many datagrams at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_arrives() {
    let relay = relay().await;
    for relayed in [false, true] {
        let pair = passing(&relay, relayed).await;
        for number in 0..100u8 {
            pair.alice.send_datagram(&[number; 1120]).unwrap();
        }
        let mut arrived = 0;
        let last = timeout(Duration::from_secs(5), async {
            while next(&pair.bob).await != [99; 1120] {
                arrived += 1;
            }
        });
        last.await.expect("the last one comes");
        // QUIC holds 56 of them until the connection's task has its turn.
        assert!(arrived >= 50, "{arrived} of 100, relayed: {relayed}");
    }
}

#[tokio::test]
async fn an_end_is_an_end_for_both() {
    let pair = connect(config(&[]), config(&[]), false).await;
    passes(&pair.alice, &pair.bob, b"x").await;
    pair.alice.close().await;
    let rest = async { pair.bob.datagrams().count().await };
    timeout(PATIENCE, rest).await.expect("the datagrams end");
    for end in [&pair.alice, &pair.bob] {
        let error = end.send_datagram(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionClosed);
        assert_eq!(end.max_datagram_size(), None);
    }
}

/// Nobody reads the flood, and the streams go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_holds_no_stream_up() {
    let relay = relay().await;
    for relayed in [false, true] {
        let pair = passing(&relay, relayed).await;
        echo_streams(pair.bob.clone());
        let flooding = pair.alice.clone();
        let flood = tokio::spawn(async move {
            while flooding.send_datagram(&[7; 1000]).is_ok() {
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..20 {
            echoed(&pair.alice).await;
        }
        flood.abort();
        let left = std::iter::from_fn(|| pair.bob.datagrams().next().now_or_never());
        assert!(left.count() <= 2 * 256);
    }
}
