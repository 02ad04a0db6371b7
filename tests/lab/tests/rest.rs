//! A connection that carries nothing gives its circuit back, and leaves a dead path all the same.

use std::time::{Duration, Instant};

use serde_json::json;
use throughline_lab::{Host, NatKind, Spec, Stage};

mod common;

/// How long anything but the test's own figures may take.
const WITHIN: Duration = Duration::from_secs(30);
/// How long a line may take over the circuit that is made for it: the path is found dead within a second,
/// and a circuit in a lab without delays takes a fraction of one.
const STALL: Duration = Duration::from_secs(3);

/// Waits until the server carries so many circuits. Only its metrics show that.
fn wait_for_circuits(stage: &Stage, count: f64) {
    let gauge = "throughline_relay_circuits ";
    let deadline = Instant::now() + WITHIN;
    while stage.serve.metric(&stage.lab, gauge).unwrap() != count {
        assert!(Instant::now() < deadline, "there are not {count} circuits");
    }
}

#[test]
fn a_connection_at_rest_has_no_circuit_and_leaves_a_dead_path() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let nat = NatKind::PortRestricted;
    let mut stage = Stage::up(Spec::pair(nat, nat), &parts).unwrap();
    let rest = [
        "--set",
        "circuit_idle_timeout_ms=1000",
        "--set",
        "probe_interval_ms=500",
    ];
    stage.add_arguments(rest.map(str::to_owned));
    let listener = stage.chat("b").unwrap();
    let heard = listener.program.as_ref().unwrap();
    let mut dialler = stage.dial("a", &listener.ticket, &[]).unwrap();
    let say = |dialler: &mut throughline_lab::Program, word: &str| {
        let begun = Instant::now();
        dialler.send(&json!(word)).unwrap();
        heard.wait("message", WITHIN).unwrap();
        begun.elapsed()
    };
    wait_for_circuits(&stage, 1.0);
    dialler
        .wait_for(WITHIN, "a direct path", |event| event["path"] == "direct")
        .unwrap();
    say(&mut dialler, "over the direct path");
    wait_for_circuits(&stage, 0.0);

    let other = stage.lab.host("b-router").unwrap().ip().unwrap();
    let block = format!(
        "nft add table ip block\n\
         nft add chain ip block forward '{{ type filter hook forward priority -10; }}'\n\
         nft add rule ip block forward ip daddr {other} drop\n\
         nft add rule ip block forward ip saddr {other} drop\n"
    );
    let mut router = stage.lab.host("a-router").unwrap().command("sh");
    assert!(router.args(["-ec", &block]).status().unwrap().success());
    let took = say(&mut dialler, "over the circuit");
    println!("a line took {took:?} when the path was dead");
    assert!(took < STALL, "{took:?}");
}

/// How long the bytes of a connection at rest are counted. A STUN server is asked every 20 s, and the
/// other periods are shorter.
const COUNTED: Duration = Duration::from_secs(60);
/// The most bytes in an hour, in both directions together, with the headers of IP and Ethernet.
const HOURLY: u64 = 1_800_000;

/// The bytes that a host has sent and received.
fn bytes(host: &Host) -> u64 {
    let mut command = host.command("ip");
    let shown = command
        .args(["-s", "-j", "link", "show", "dev", "eth0"])
        .output();
    let shown: serde_json::Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
    let stats = &shown[0]["stats64"];
    stats["rx"]["bytes"].as_u64().unwrap() + stats["tx"]["bytes"].as_u64().unwrap()
}

#[test]
fn a_connection_at_rest_costs_little_traffic() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let nat = NatKind::PortRestricted;
    let mut stage = Stage::up(Spec::pair(nat, nat), &parts).unwrap();
    stage.add_arguments(["--set", "circuit_idle_timeout_ms=1000"].map(str::to_owned));
    let listener = stage.chat("b").unwrap();
    let host = stage.lab.host("a").unwrap();
    let dialler = stage.dial("a", &listener.ticket, &[]).unwrap();
    wait_for_circuits(&stage, 1.0);
    dialler
        .wait_for(WITHIN, "a direct path", |event| event["path"] == "direct")
        .unwrap();
    wait_for_circuits(&stage, 0.0);
    let from = bytes(&host);
    // This is a measurement, and no event says that time has passed.
    std::thread::sleep(COUNTED);
    let cost = (bytes(&host) - from) * 3600 / COUNTED.as_secs();
    println!("{} kB an hour", cost / 1000);
    assert!(cost < HOURLY, "{cost} bytes an hour");
}
