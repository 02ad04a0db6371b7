//! Peers that come and go, for as long as there is time.

use std::time::{Duration, Instant};

use crate::{Form, Row, common, held::Held, peers};

/// How much of the time it takes until every pool, cache and heap has its size.
const WARM_UP: f64 = 0.4;
const PROMISED: i64 = 10 << 10;
const AIM: i64 = 1 << 10;
/// An hour, but for the time in which the relay holds a socket for the AutoNAT test that is due after
/// one, which is the longest pause that can be asked for.
const HOUR: u64 = 3500;
/// Tasks of connections that were just closed and linger; a leak would be of hundreds.
const FEW: i64 = 16;

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let time = Duration::from_secs(match form {
        Form::Short => 45,
        Form::Long => 600,
        Form::Hour => HOUR,
    });
    let relay = peers::relay(1024).await;
    let mut config = peers::config(&relay);
    config.idle_timeout = Duration::ZERO;
    // A relay keeps the socket that it dials back from (AutoNAT) for a while: no test is due here.
    config.autonat_retry = Duration::from_secs(3600);
    let listener = common::echoing(config.clone()).await;
    let start = Instant::now();
    let (mut rounds, mut at_warm, mut warm) = (0u32, 0, None);
    while start.elapsed() < time {
        round(&config, &listener, rounds).await;
        rounds += 1;
        if warm.is_none() && start.elapsed() > time.mul_f64(WARM_UP) {
            warm = Some(Held::settled().await);
            at_warm = rounds;
        }
    }
    let (warm, end) = (warm.unwrap(), Held::settled().await);
    let grown = end.resident_kib - warm.resident_kib;
    let (descriptors, tasks) = (end.descriptors - warm.descriptors, end.tasks - warm.tasks);
    vec![Row {
        scenario: format!(
            "{rounds} connections opened, upgraded and closed in {} s, both ends and the relay in one process",
            time.as_secs()
        ),
        promised: "< 10 MiB growth in an hour",
        aim: "< 1 MiB growth after warm-up, descriptors and tasks flat",
        measured: format!(
            "{grown:+} KiB resident to {} KiB in the last {} connections, descriptors {descriptors:+}, tasks {tasks:+}",
            end.resident_kib,
            rounds - at_warm,
        ),
        kept: grown < PROMISED && descriptors <= 2 && tasks <= FEW,
        reached: grown < AIM && descriptors <= 0 && tasks <= FEW,
        known: None,
    }]
}

/// A new peer comes, is upgraded to a direct path, and leaves in one way or the other.
async fn round(config: &throughline::Config, listener: &throughline::Connector, number: u32) {
    let dialler = peers::dialler(config.clone()).await;
    let (connection, _) = peers::meet(&dialler, listener).await.unwrap();
    if !number.is_multiple_of(4) {
        assert!(peers::until_direct(&connection).await, "no direct path");
        peers::round_trip(&connection).await.unwrap();
    }
    match number % 3 {
        0 => connection.close().await,
        1 => drop(connection),
        // The whole peer goes, with its connection open.
        _ => {}
    }
    dialler.close().await;
}
