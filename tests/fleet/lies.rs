//! Somebody who may write into the buckets, and is no relay.

use async_nats::{ConnectOptions, jetstream};

use super::{
    Nats,
    common::{echoing, peer, until, until_some},
    config, count, enter, fleet, listed, until_members, until_told,
};

pub(crate) async fn bucket(nats: &Nats, name: &str) -> jetstream::kv::Store {
    let options = ConnectOptions::with_user_and_password("relay".into(), "s3cret".into());
    let url = nats.urls()[0].rsplit_once('@').unwrap().1.to_owned();
    let client = options.connect(url).await.unwrap();
    jetstream::new(client).get_key_value(name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_a_peer_in_the_buckets() {
    let nats = Nats::start(1).await;
    let [first, second] = fleet::<2>(&nats).await;
    let bob = listed(&first, config(&[&first])).await;
    let mallory = echoing(config(&[&second])).await;
    until_told(&second).await;
    let unsound = |relay| count(relay, "throughline_fleet_unsound_total");
    let peers = bucket(&nats, "throughline_peers").await;
    let [of_bob, of_mallory] = [&bob, &mallory].map(|peer| peer.peer_id().to_string());

    // Mallory's own record leads nobody to her who looks for Bob.
    let record = peers.get(&of_mallory).await.unwrap().unwrap();
    for lie in [
        record,
        "noise".into(),
        Vec::<u8>::new().into(),
        vec![0_u8; 4_200].into(),
    ] {
        let before = unsound(&first) + unsound(&second);
        peers.put(&of_bob, lie).await.unwrap();
        let mut dialler = config(&[&second]);
        dialler.connect_timeout = std::time::Duration::from_secs(2);
        let alice = peer(dialler).await;
        let ticket = throughline::Ticket::from(bob.peer_id());
        // The relay of Bob may have put the truth in its place by now.
        if let Ok(connection) = alice.connect(&ticket).await {
            assert_eq!(connection.peer_id(), bob.peer_id());
        }
        assert!(unsound(&first) + unsound(&second) > before);
        alice.close().await;
    }

    // In a room, the relay that holds Bob sees the lie, and puts the truth in its place.
    let inside = enter(&bob, b"Bob").await;
    let other = enter(&mallory, b"Mallory").await;
    until_members(&other, &[(&bob, b"Bob")]).await;
    let rooms = bucket(&nats, "throughline_rooms").await;
    let mut keys = rooms.keys().await.unwrap();
    let mut key = None;
    while let Some(Ok(next)) = futures::StreamExt::next(&mut keys).await {
        if next.ends_with(&of_bob) {
            key = Some(next);
        }
    }
    let key = key.expect("Bob is in a room");
    let of_other = rooms
        .get(key.replace(&of_bob, &of_mallory))
        .await
        .unwrap()
        .unwrap();
    let before = unsound(&first);
    rooms.put(&key, of_other).await.unwrap();
    until(|| unsound(&first) > before && unsound(&second) > 0).await;
    rooms.delete(&key).await.unwrap();
    // The relay of Bob writes it again, and everybody sees him.
    until_members(&other, &[(&bob, b"Bob")]).await;
    until_told(&first).await;
    until_some(|| async { rooms.get(&key).await.ok().flatten() }).await;
    until_members(&inside, &[(&mallory, b"Mallory")]).await;

    // Nor for a relay.
    let relays = bucket(&nats, "throughline_relays").await;
    let status = relays
        .get(first.peer_id().to_string())
        .await
        .unwrap()
        .unwrap();
    let before = unsound(&second);
    relays
        .put(
            throughline::Identity::generate().peer_id().to_string(),
            status,
        )
        .await
        .unwrap();
    until(|| unsound(&second) > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_purges_is_written_again_while_nats_is_reached() {
    let nats = Nats::start(1).await;
    let [first, second] = fleet::<2>(&nats).await;
    let bob = listed(&first, config(&[&first])).await;
    let alice = listed(&second, config(&[&second])).await;
    let peers = bucket(&nats, "throughline_peers").await;
    peers.stream.purge().await.unwrap();
    for id in [bob.peer_id(), alice.peer_id()] {
        let (peers, id) = (&peers, id.to_string());
        until_some(|| {
            let id = id.clone();
            async move { peers.get(&id).await.ok().flatten() }
        })
        .await;
    }
}
