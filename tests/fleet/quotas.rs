//! Quotas of which each relay has a part.

use tempfile::TempDir;
use throughline::{
    Connector,
    server::{Server, UsageBy, usage},
};

use super::{config, connect, relay, until_whole};
use crate::{
    common::{echo, echoing, exchange, peer, until_some},
    nats::Nats,
};

/// The quota of each peer in a day.
const QUOTA: u64 = 4_000_000;
/// What the peers send at once. It comes back, so twice as much is carried.
const PIECE: usize = 32_768;

/// Starts relays that carry [`QUOTA`] for each peer.
async fn relays(nats: &Nats, homes: &[TempDir]) -> Vec<Server> {
    let mut relays = Vec::new();
    for home in homes {
        let edit = |config: &mut throughline::server::ServerConfig| {
            config.data = Some(home.path().to_owned());
            config.traffic.peer_quota = Some("4MB/day".to_owned());
        };
        relays.push(relay(nats, edit).await);
    }
    until_whole(&relays).await;
    relays
}

/// Sends pieces until the relays carry none any more.
async fn use_up(alice: &Connector, bob: &Connector, mut between: impl AsyncFnMut(usize)) {
    let connection = connect(alice, bob).await;
    let mut stream = echo(&connection).await.unwrap();
    for sent in 0..200 {
        between(sent).await;
        if exchange(&mut stream, &[7; PIECE]).await.is_err() {
            return;
        }
    }
    panic!("the quota has no end");
}

/// Returns what the relays carried for a peer, once that is not less than `least`.
async fn carried(homes: &[TempDir], bob: &Connector, least: u64) -> u64 {
    let name = bob.peer_id().to_string();
    until_some(|| async {
        let rows = homes
            .iter()
            .map(|home| usage(home.path(), None, UsageBy::Peer));
        let rows = rows.filter_map(Result::ok).flatten();
        let bytes = rows.filter(|row| row.name == name).map(|row| row.bytes);
        Some(bytes.sum()).filter(|sum| *sum >= least)
    })
    .await
}

fn relayed(relays: &[Server]) -> throughline::Config {
    let mut config = config(&relays.iter().collect::<Vec<_>>());
    config.direct = false;
    config.relay_reservations = relays.len();
    config.resume_timeout = std::time::Duration::from_secs(3);
    config
}

#[tokio::test]
async fn two_relays_together_carry_a_quota_once() {
    let nats = Nats::start(1).await;
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let relays = relays(&nats, &homes).await;
    let bob = echoing(relayed(&relays)).await;
    for relay in &relays {
        super::until_counted(relay, "throughline_relay_reservations 1").await;
    }
    let alice = peer(relayed(&relays)).await;
    use_up(&alice, &bob, async |_| {}).await;
    let both = carried(&homes, &bob, QUOTA * 9 / 10).await;
    assert!(both < QUOTA * 5 / 4, "{both}");
}

#[tokio::test]
async fn without_nats_a_relay_carries_its_part() {
    let mut nats = Nats::start(1).await;
    let homes = [tempfile::tempdir().unwrap()];
    let relays = relays(&nats, &homes).await;
    let bob = echoing(relayed(&relays)).await;
    let alice = peer(relayed(&relays)).await;
    use_up(&alice, &bob, async |sent| {
        if sent == 2 {
            nats.kill_all();
        }
    })
    .await;
    // Its lease was an eighth, and it may carry a little more.
    let carried = carried(&homes, &bob, QUOTA / 8).await;
    assert!(carried < QUOTA / 2, "{carried}");
}
