//! NATS servers that do not reach each other, that hang, or that come back with old data.

use std::time::Instant;

use futures::StreamExt as _;
use throughline::server::{AccessMode, ServerConfig, UsageBy, usage, usage_of_fleet};

use super::{
    Nats,
    away::CONVERGED,
    common::{echo, echoed, echoing, exchange, peer, until, until_some},
    config, connect, connect_at_last, counted, enter, fleet, id_of,
    lies::bucket,
    listed, relay, sum, token, token_key, until_counted, until_members, until_told, until_whole,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_nats_server_is_cut_off_goes_on_alone_and_comes_back() {
    let nats = Nats::start(3).await;
    let mut relays = Vec::new();
    for node in 0..3 {
        let only = vec![nats.url(node)];
        relays.push(relay(&nats, |config| config.fleet.servers = only).await);
    }
    until_whole(&relays).await;
    let [first, second, third] = [0, 1, 2].map(|number| &relays[number]);
    let bob = listed(first, config(&[first])).await;
    let alice = peer(config(&[second])).await;
    let carol = listed(third, config(&[third])).await;
    let connection = connect(&carol, &bob).await;
    let mut stream = echo(&connection).await.unwrap();
    let [of_bob, of_alice] = [enter(&bob, b"Bob").await, enter(&alice, b"Alice").await];
    let of_carol = enter(&carol, b"Carol").await;
    until_members(&of_carol, &[(&bob, b"Bob"), (&alice, b"Alice")]).await;

    nats.part(2);
    // Its NATS server still answers, and can promise nothing.
    until_counted(third, "throughline_fleet_up 0").await;
    exchange(&mut stream, b"over the old connection")
        .await
        .unwrap();
    // It serves its own, and finds others as they were.
    let dave = peer(config(&[third])).await;
    echoed(&connect(&dave, &carol).await).await;
    echoed(&connect(&dave, &bob).await).await;
    of_carol.show(b"Carol, alone").unwrap();
    // The others go on without it.
    for relay in [first, second] {
        until_counted(relay, "throughline_fleet_up 1").await;
    }
    of_bob.show(b"Bob, meanwhile").unwrap();
    until(|| {
        let mut there = of_alice.members().into_iter();
        there.any(|member| member.data == b"Bob, meanwhile")
    })
    .await;
    let erin = echoing(config(&[second])).await;
    until_counted(second, "throughline_directory_records 2").await;
    until_told(second).await;
    echoed(&connect_at_last(&bob, &erin).await).await;

    nats.join();
    until_counted(third, "throughline_fleet_up 1").await;
    let began = Instant::now();
    until_members(&of_carol, &[(&bob, b"Bob, meanwhile"), (&alice, b"Alice")]).await;
    until_members(
        &of_alice,
        &[(&bob, b"Bob, meanwhile"), (&carol, b"Carol, alone")],
    )
    .await;
    // It may take a part of the time that the fleet has to be whole again.
    echoed(&connect_at_last(&carol, &erin).await).await;
    let took = began.elapsed();
    assert!(took < CONVERGED, "{took:?}");
    for relay in &relays {
        assert!(counted(relay, "throughline_fleet_unsound_total 0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_hangs_is_given_up_until_it_answers() {
    let nats = Nats::start(1).await;
    let [first, second] = fleet::<2>(&nats).await;
    let bob = listed(&first, config(&[&first])).await;
    let alice = peer(config(&[&second])).await;
    let mut stream = echo(&connect(&alice, &bob).await).await.unwrap();
    nats.pause(0);
    for relay in [&first, &second] {
        until_counted(relay, "throughline_fleet_up 0").await;
    }
    exchange(&mut stream, b"over the old connection")
        .await
        .unwrap();
    let carol = echoing(config(&[&first])).await;
    until_counted(&first, "throughline_directory_records 2").await;
    nats.resume(0);
    for relay in [&first, &second] {
        until_counted(relay, "throughline_fleet_up 1").await;
    }
    let began = Instant::now();
    until_told(&first).await;
    echoed(&connect(&alice, &carol).await).await;
    assert!(began.elapsed() < CONVERGED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_comes_back_with_old_data_is_told_what_it_has_lost() {
    const SIZE: usize = 10_000;
    let mut nats = Nats::start(1).await;
    let home = tempfile::tempdir().unwrap();
    let (key, revoked) = token_key(&home);
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let first = relay(&nats, |config| config.data = Some(data.clone())).await;
    let second = relay(&nats, |config| {
        config.access.mode = Some(AccessMode::Token);
        config.access.keys = vec![key.public()];
        config.access.revoked = Some(revoked.clone());
    });
    let relays = [first, second.await];
    until_whole(&relays).await;
    let [first, second] = &relays;

    let mut relayed = config(&[first]);
    relayed.direct = false;
    let bob = echoing(relayed.clone()).await;
    let alice = peer(relayed).await;
    let mut stream = echo(&connect(&alice, &bob).await).await.unwrap();
    let mut settings = ServerConfig::default();
    settings.fleet.servers = nats.urls();
    let fleet = &settings.fleet;
    // Waits until the fleet has everything of this relay, and returns the bytes.
    let whole = async |more_than: u64| {
        until_some(|| async {
            let rows = usage_of_fleet(fleet, None, UsageBy::Peer).await.ok()?;
            let own = usage(&data, None, UsageBy::Peer).unwrap();
            let bytes = sum(&rows)[0];
            (bytes > more_than && sum(&rows) == sum(&own)).then_some(bytes)
        })
        .await
    };
    let before = whole(0).await;
    nats.back_up();
    nats.run().await;
    until_whole(&relays).await;

    exchange(&mut stream, &[7; SIZE]).await.unwrap();
    std::fs::write(&revoked, id_of(&token(&key))).unwrap();
    second.reload_access();
    let after = whole(before + SIZE as u64).await;
    until_revoked(&nats).await;

    nats.restore();
    nats.run().await;
    whole(after - 1).await;
    until_revoked(&nats).await;
    let carol = peer(config(&[first])).await;
    echoed(&connect(&carol, &bob).await).await;
}

/// Waits until one token is in the bucket.
async fn until_revoked(nats: &Nats) {
    let revoked = bucket(nats, "throughline_revoked").await;
    until_some(|| async {
        let keys = revoked.keys().await.ok()?;
        let keys: Vec<_> = keys.collect().await;
        (keys.len() == 1).then_some(())
    })
    .await;
}
