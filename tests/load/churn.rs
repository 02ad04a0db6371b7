//! Peers that come and go until the time is over.

use std::time::{Duration, Instant};

use crate::{Form, Row, common, held::Held, peers};

/// The part of the time after which every pool, cache and heap has its final size.
const WARM_UP: f64 = 0.4;
const PROMISED: i64 = 10 << 10;
const AIM: i64 = 1 << 10;
/// Almost an hour. An AutoNAT test is due after an hour, which is the longest pause that can be
/// configured, and the relay holds a socket for it.
const HOUR: u64 = 3500;
/// How many tasks of closed connections may linger. A leak would show hundreds.
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
    // A relay keeps the socket of an AutoNAT dial for a while, so no test is due here.
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

/// Starts a peer, connects it, in most rounds waits for the direct path, and ends it in one of
/// three ways.
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
        // The peer closes below while its connection is still open.
        _ => {}
    }
    dialler.close().await;
}
