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
/// More pieces than two quotas.
const MANY: usize = 200;
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

/// Sends pieces until the relays carry none any more, or until there were `most`.
async fn send(
    alice: &Connector,
    bob: &Connector,
    most: usize,
    mut between: impl AsyncFnMut(usize),
) {
    let connection = connect(alice, bob).await;
    let mut stream = echo(&connection).await.unwrap();
    for sent in 0..most {
        between(sent).await;
        if exchange(&mut stream, &[7; PIECE]).await.is_err() {
            return;
        }
    }
    assert!(most < MANY, "the quota has no end");
}

/// Returns what each relay carried for a peer, once the sum is not less than `least`.
async fn carried(homes: &[TempDir], bob: &Connector, least: u64) -> Vec<u64> {
    let name = bob.peer_id().to_string();
    let of = |home: &TempDir| {
        let rows = usage(home.path(), None, UsageBy::Peer).unwrap_or_default();
        let row = rows.into_iter().find(|row| row.name == name);
        row.map_or(0, |row| row.bytes)
    };
    until_some(|| async {
        let each: Vec<_> = homes.iter().map(of).collect();
        (each.iter().sum::<u64>() >= least).then_some(each)
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
    // A third of the quota goes over each relay, and the rest over either.
    let piece = 2 * PIECE as u64;
    for relay in &relays {
        let alice = peer(relayed(std::slice::from_ref(relay))).await;
        send(&alice, &bob, (QUOTA / 3 / piece) as usize, async |_| {}).await;
        alice.close().await;
    }
    let alice = peer(relayed(&relays)).await;
    send(&alice, &bob, MANY, async |_| {}).await;
    let each = carried(&homes, &bob, QUOTA * 9 / 10).await;
    assert!(each.iter().all(|bytes| *bytes > QUOTA / 4), "{each:?}");
    assert!(each.iter().sum::<u64>() < QUOTA * 5 / 4, "{each:?}");
}

#[tokio::test]
async fn without_nats_a_relay_carries_its_part() {
    let mut nats = Nats::start(1).await;
    let homes = [tempfile::tempdir().unwrap()];
    let relays = relays(&nats, &homes).await;
    let bob = echoing(relayed(&relays)).await;
    let alice = peer(relayed(&relays)).await;
    send(&alice, &bob, MANY, async |sent| {
        if sent == 2 {
            nats.kill_all();
        }
    })
    .await;
    // Its lease was an eighth, and it may carry a little more.
    let each = carried(&homes, &bob, QUOTA / 8).await;
    assert!(each[0] < QUOTA / 2, "{each:?}");
}
