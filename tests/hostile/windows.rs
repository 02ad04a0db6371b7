//! Tests what the windows of a server's circuits cost honest peers.

use super::{
    common::PATIENCE,
    config, peer,
    server::{ATTACKER, HONEST, Served},
};
use std::time::Instant;

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// Windows as large as the settings allow. A link within one machine never holds so much.
const LARGE: &str = "[connections]\nwindow = 16777216\n[relay]\ncircuit_window = 16777216\n";

/// The number of transfers with each server. Their median counts.
const TRANSFERS: usize = 7;
const LENGTH: usize = 64 << 20;

/// Returns the Mbit/s of one stream through a circuit of `served`.
async fn carried(served: &Served, way: &str) -> f64 {
    let mut config = config();
    config.listen = vec![format!("/ip4/{HONEST}/udp/0/quic-v1")];
    config.relays = vec![served.address(way).to_string()];
    config.direct = false;
    let bob = peer(config.clone()).await;
    config.listen = vec![format!("/ip4/{ATTACKER}/udp/0/quic-v1")];
    config.reserve = false;
    let alice = peer(config).await;
    let sent = async {
        let connection = alice.connect(&bob.ticket()).await.unwrap();
        let mut stream = connection.open("sink/1").await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        let begun = Instant::now();
        let chunk = vec![7; 64 * 1024];
        for _ in 0..LENGTH / chunk.len() {
            stream.write_all(&chunk).await.unwrap();
        }
        stream.flush().await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        begun.elapsed()
    };
    let received = async {
        let connection = bob.accept().await.unwrap();
        let (_, mut stream) = connection.accept_stream().await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        stream.write_all(b"y").await.unwrap();
        stream.flush().await.unwrap();
        let (mut left, mut chunk) = (LENGTH, vec![0; 64 * 1024]);
        while left > 0 {
            left -= stream.read(&mut chunk).await.unwrap();
        }
        stream.write_all(b"y").await.unwrap();
        stream.flush().await.unwrap();
        connection.closed().await;
    };
    let took = tokio::select! {
        took = timeout(4 * PATIENCE, sent) => took.expect("a transfer"),
        () = received => unreachable!("the sender closes last"),
    };
    alice.close().await;
    bob.close().await;
    LENGTH as f64 * 8.0 / 1e6 / took.as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Where round trips take no time, no window limits a circuit. Elsewhere, a circuit carries one
/// window in each round trip.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures throughput, which needs a release build: scripts/hostile runs it"]
async fn small_windows_carry_as_much_as_large_ones_where_nobody_is_far() {
    let (small, large) = (Served::start(""), Served::start(LARGE));
    for way in ["/quic-v1", "/tcp/"] {
        let (mut with_small, mut with_large) = (Vec::new(), Vec::new());
        for _ in 0..TRANSFERS {
            with_small.push(carried(&small, way).await);
            with_large.push(carried(&large, way).await);
        }
        let (by_small, by_large) = (median(with_small.clone()), median(with_large.clone()));
        let ratio = by_small / by_large;
        println!(
            "circuits over {way}: {by_small:.0} Mbit/s by default, {by_large:.0} with 16 MiB \
             ({ratio:.3}); {with_small:.0?}, {with_large:.0?}"
        );
        // Where two cores do everything, the figures vary by more than the promised difference.
        assert!(ratio > 0.85, "{way}: {ratio}");
    }
}
