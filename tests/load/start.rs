//! From the start of a process to its first connected peer.

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Form, Row,
    report::{Times, ms},
};

const PROMISED: Duration = Duration::from_secs(30);
const AIM: Duration = Duration::from_secs(1);

/// A program that ends when dropped. What it prints is kept from being refused: it would end.
struct Program(Child, Lines<BufReader<ChildStdout>>);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Starts it and waits for an event.
    fn start(arguments: &[&str], event: &str) -> (Self, Value) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_throughline"))
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self(child, stdout.lines());
        let lines = program.1.by_ref().map_while(Result::ok);
        let mut events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let found = events.find(|value| value["event"] == event);
        (program, found.unwrap_or_else(|| panic!("no {event}")))
    }
}

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
    let (_serve, ready) = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"], "ready");
    let relays = ready["addresses"].as_array().unwrap();
    let relay = relays
        .iter()
        .filter_map(Value::as_str)
        .find(|a| a.contains("/quic-v1/"));
    let relay = relay.unwrap();
    let here = [
        "--bind",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "--no-port-mapping",
    ];
    let listen = ["listen", "--echo", "--relay", relay];
    let (_listen, ready) = Program::start(&[&listen[..], &here].concat(), "ready");
    let ticket = ready["ticket"].as_str().unwrap();
    let connect = ["connect", ticket, "--ping", "1", "--relay", relay];
    let connect = [&connect[..], &here].concat();
    let times = (0..repeat).map(|_| {
        let start = Instant::now();
        Program::start(&connect, "first_byte");
        start.elapsed()
    });
    Times::new(times.collect())
}
