//! A relay that has no circuit left for a peer.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::{
    Row, common, peers,
    report::{Times, ms},
};

/// The default limit of a relay.
const LIMIT: usize = 16;
/// A refusal must come sooner than any timeout. The shortest timeout is 10 s.
const PROMISED: Duration = Duration::from_secs(5);

pub(crate) async fn run() -> Vec<Row> {
    let relay = peers::relay(LIMIT).await;
    let mut config = peers::config(&relay);
    config.direct = false;
    let listeners = (0..=LIMIT).map(|_| common::echoing(config.clone()));
    let listeners = join_all(listeners).await;
    let dialler = peers::dialler(config).await;
    let mut connections = Vec::new();
    let mut times = Vec::new();
    for listener in &listeners[..LIMIT] {
        let (connection, time) = peers::meet(&dialler, listener).await.unwrap();
        connections.push(connection);
        times.push(time);
    }
    let granted = Times::new(times);
    let before = round_trips(&connections).await;
    let start = Instant::now();
    let (refused, during) = tokio::join!(
        async {
            (
                peers::meet(&dialler, &listeners[LIMIT]).await,
                start.elapsed(),
            )
        },
        round_trips(&connections)
    );
    let (outcome, time) = refused;
    let said = match &outcome {
        Ok(_) => "was let in".into(),
        Err(error) => peers::reasons(error),
    };
    // A connection that closes makes room.
    connections.pop().unwrap().close().await;
    let mut again = None;
    while again.is_none() && start.elapsed() < peers::DEADLINE {
        again = peers::meet(&dialler, &listeners[LIMIT]).await.ok();
    }
    let row = Row {
        scenario: format!("relay circuits exhausted: {LIMIT} in use, another one comes"),
        promised: "handled",
        aim: "clear refusal in one round trip, nothing else slowed",
        measured: format!(
            "refused after {} (a grant takes {}), {said:?}; a byte there and back on the {LIMIT} others {} before, {} \
             meanwhile; room again when one left: {}",
            ms(time),
            ms(granted.median()),
            ms(before.median()),
            ms(during.median()),
            if again.is_some() { "yes" } else { "no" },
        ),
        kept: outcome.is_err() && time < PROMISED && again.is_some(),
        reached: outcome.is_err_and(|error| error.code() == "limit_exceeded")
            && time < granted.worst()
            && during.median() < before.median().mul_f64(1.5) + Duration::from_millis(5),
        known: None,
    };
    dialler.close().await;
    join_all(listeners.iter().map(|listener| listener.close())).await;
    vec![row]
}

async fn round_trips(connections: &[throughline::Connection]) -> Times {
    let mut times = Vec::new();
    for connection in connections {
        times.push(peers::round_trip(connection).await.unwrap());
    }
    Times::new(times)
}
