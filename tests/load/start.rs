//! Measures the time from the start of a process to its first connected peer.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    Form, Row,
    common::program::Program,
    report::{Times, ms},
};

const PROMISED: Duration = Duration::from_secs(30);
const AIM: Duration = Duration::from_secs(1);

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let measured = tokio::task::spawn_blocking(move || measure(form.pick(3, 20)));
    let times = measured.await.unwrap();
    vec![Row {
        scenario: "cold start: process start to first echoed byte, through a relay".into(),
        promised: "< 30 s",
        aim: "< 1 s",
        measured: format!("median {}, worst {}", ms(times.median()), ms(times.worst())),
        kept: times.worst() < PROMISED,
        reached: times.worst() < AIM,
        known: None,
    }]
}

fn measure(repeat: usize) -> Times {
    let serve = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"]);
    let ready = serve.event("ready");
    let relays = ready["addresses"].as_array().unwrap();
    let relay = relays
        .iter()
        .filter_map(Value::as_str)
        .find(|a| a.contains("/quic-v1/"));
    let relay = relay.unwrap();
    let here = ["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let listen = ["listen", "--echo", "--relay", relay];
    let listen = Program::start(&[&listen[..], &here].concat());
    let ready = listen.event("ready");
    let ticket = ready["ticket"].as_str().unwrap();
    let connect = ["connect", ticket, "--ping", "1", "--relay", relay];
    let connect = [&connect[..], &here].concat();
    let times = (0..repeat).map(|_| {
        let start = Instant::now();
        let dialler = Program::start(&connect);
        dialler.event("first_byte");
        start.elapsed()
    });
    Times::new(times.collect())
}
