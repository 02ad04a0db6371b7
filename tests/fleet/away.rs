//! NATS servers and relays that die.

use std::time::{Duration, Instant};

use super::{
    Nats,
    common::{PATIENCE, echo, echoed, echoing, exchange, peer},
    config, connect, connect_at_last, count, counted, enter, fleet, listed, relay, until_counted,
    until_members, until_some, until_told, until_whole,
};

/// How long it may take until everything is known again.
pub(crate) const CONVERGED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_what_is_there_goes_on_and_with_it_all_is_known_again() {
    let mut nats = Nats::start(3).await;
    let relays = fleet::<3>(&nats).await;
    let [first, second, third] = &relays;
    let bob = listed(first, config(&[first])).await;
    let alice = peer(config(&[second])).await;
    // Of three NATS servers, the one that is asked may be a moment behind.
    let connection = connect_at_last(&alice, &bob).await;
    let mut stream = echo(&connection).await.unwrap();
    let inside = enter(&bob, b"Bob").await;
    let other = enter(&alice, b"Alice").await;
    until_members(&inside, &[(&alice, b"Alice")]).await;

    // One of three is not missed for long.
    nats.kill(0);
    let carol = listed(third, config(&[third])).await;
    let found = || count(second, "throughline_fleet_lookups_total{outcome=\"found\"}");
    let before = found();
    echoed(&connect_at_last(&alice, &carol).await).await;
    assert!(found() > before);
    other.show(b"Alice, away").unwrap();
    until_members(&inside, &[(&alice, b"Alice, away")]).await;

    nats.kill_all();
    for relay in &relays {
        until_counted(relay, "throughline_fleet_up 0").await;
    }
    exchange(&mut stream, b"over the old connection")
        .await
        .unwrap();
    let lost = |why: &str| {
        let name = format!("throughline_fleet_lookups_total{{outcome=\"{why}\"}}");
        count(second, &name)
    };
    // Whom a relay has found before, it finds as it was. For a second it does not even ask.
    until_some(|| async {
        let dave = peer(config(&[second])).await;
        echoed(&connect(&dave, &bob).await).await;
        ["cut_off", "late", "failed"]
            .into_iter()
            .find(|why| lost(why) > 0)
    })
    .await;
    // A relay serves its own.
    let erin = echoing(config(&[first])).await;
    until_counted(first, "throughline_directory_records 2").await;
    let frank = peer(config(&[first])).await;
    echoed(&connect(&frank, &erin).await).await;
    inside.show(b"Bob, alone").unwrap();
    assert!(health(second).await.contains("the fleet is out of reach"));

    nats.run().await;
    // A cluster needs some time to agree on its leader. What the relays need begins then.
    for relay in &relays {
        until_counted(relay, "throughline_fleet_up 1").await;
    }
    let began = Instant::now();
    until_members(&other, &[(&bob, b"Bob, alone")]).await;
    until_told(first).await;
    echoed(&connect(&alice, &erin).await).await;
    let took = began.elapsed();
    assert!(took < CONVERGED, "{took:?}");
    assert!(health(second).await.ends_with("ok\n"));
    for relay in &relays {
        assert!(counted(relay, "throughline_fleet_unsound_total 0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_starts_without_nats_and_joins_the_fleet_later() {
    let mut nats = Nats::start(1).await;
    nats.kill_all();
    let first = relay(&nats, |_| {}).await;
    let bob = echoing(config(&[&first])).await;
    until_counted(&first, "throughline_directory_records 1").await;
    nats.run().await;
    let second = relay(&nats, |_| {}).await;
    let relays = [first, second];
    until_whole(&relays).await;
    until_told(&relays[0]).await;
    let alice = peer(config(&[&relays[1]])).await;
    echoed(&connect(&alice, &bob).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_found_through_another_relay_when_its_own_dies() {
    let nats = Nats::start(1).await;
    let [first, second, third] = fleet::<3>(&nats).await;
    let mut hidden = config(&[&first, &second]);
    hidden.direct = false;
    let bob = echoing(hidden).await;
    let mut dialler = config(&[&third]);
    dialler.direct = false;
    for relay in [&first, &second] {
        until_counted(relay, "throughline_relay_reservations 1").await;
        until_told(relay).await;
    }
    drop(first);
    let began = Instant::now();
    let alice = peer(dialler).await;
    let connection = connect(&alice, &bob).await;
    let took = began.elapsed();
    echoed(&connection).await;
    assert!(took < PATIENCE / 3, "{took:?}");
    eprintln!("found again after {took:?}");
}

/// What `/health` says.
async fn health(relay: &throughline::server::Server) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let host = relay
        .http_url()
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
