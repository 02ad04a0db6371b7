//! NATs whose ports are not known in advance, which port mappings and guessed ports open.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use throughline_lab::{
    Listener, NatKind, Pairing, Parts, Peer, PortMapping, Run, Site, Spec, Stage,
};

mod common;

/// How long the slowest try may take with the lab's round trips.
const WITHIN: Duration = Duration::from_secs(12);

/// How long the peers may take if the first guess was made by the wrong one.
const DOUBTED: Duration = Duration::from_secs(40);

/// Connects the native peer on `a` to the one on `b`.
fn meet(spec: Spec, parts: &Parts, wait: Duration) -> Run {
    let native = Pairing::ALL[0];
    let mut stage = Stage::up(spec.figure_delays(), parts).unwrap();
    stage.meet(native, "a", "b", wait).unwrap()
}

fn symmetric(offers: PortMapping) -> Spec {
    Spec::default()
        .site(Site::new("a", NatKind::SymmetricRandom).port_mapping(offers))
        .site(Site::new("b", NatKind::SymmetricRandom))
}

/// Returns the counters of the dialler on `a` when an event has the fields of `event`.
fn books(spec: Spec, parts: &Parts, settings: &[&str], event: &Value) -> BTreeSet<String> {
    let mut stage = Stage::up(spec.figure_delays(), parts).unwrap();
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    stage.add_arguments(settings.map(str::to_owned));
    let fields = event.as_object().unwrap();
    common::books(&mut stage, WITHIN, |told| {
        fields.iter().all(|(name, value)| told[name] == *value)
    })
}

fn is(run: &Run, path: &str, strategy: &str) -> bool {
    run.path.as_deref() == Some(path) && run.strategy.as_deref() == Some(strategy)
}

#[test]
fn a_mapped_port_connects_two_random_symmetric_nats() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    for offers in [PortMapping::UPNP, PortMapping::PCP] {
        let run = meet(symmetric(offers), &parts, WITHIN);
        println!("{offers:?}: direct after {:?} ms", run.direct_ms);
        assert!(is(&run, "direct", "upnp"), "{offers:?} {run:#?}");
    }
}

#[test]
fn a_lying_router_delays_nothing() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let wait = Duration::from_secs(3);
    let symmetric_pair = Spec::pair(NatKind::SymmetricRandom, NatKind::SymmetricRandom);
    let honest = meet(symmetric_pair, &parts, wait);
    let lying = meet(symmetric(PortMapping::LYING), &parts, wait);
    for run in [&honest, &lying] {
        assert!(is(run, "turn", "turn"), "{run:#?}");
    }
    let first_byte = |run: &Run| run.first_byte_ms.unwrap();
    println!("{} ms, {} ms", first_byte(&honest), first_byte(&lying));
    assert!(first_byte(&lying) < first_byte(&honest) + 500.0);
}

#[test]
fn the_next_port_of_a_sequence_is_guessed_from_either_side() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let (hard, easy) = (NatKind::SymmetricSequential, NatKind::PortRestricted);
    for (a, b) in [(easy, hard), (hard, easy)] {
        let run = meet(Spec::pair(a, b), &parts, WITHIN);
        println!("{a} to {b}: direct after {:?} ms", run.direct_ms);
        assert!(is(&run, "direct", "stun"), "{a} to {b}: {run:#?}");
    }
}

#[test]
fn a_random_port_is_guessed_from_either_side_and_counted_as_birthday() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let (hard, easy) = (NatKind::SymmetricRandom, NatKind::PortRestricted);
    for (a, b) in [(easy, hard), (hard, easy)] {
        let event = json!({ "event": "path", "path": "direct", "strategy": "birthday" });
        // With the default numbers, one run in fifty would fail.
        let settings = ["port_mapping=false", "birthday_sockets=1024"];
        let counted = books(Spec::pair(a, b), &parts, &settings, &event);
        let expected = [
            "attempts birthday 1",
            "attempts circuit_relay 1",
            "attempts direct 2",
            "attempts stun 1",
            "connect_seconds_count birthday 1",
            "connect_seconds_count circuit_relay 1",
            "current_method birthday 1",
            "failures direct cancelled 2",
            "failures stun cancelled 1",
            "successes birthday 1",
            "successes circuit_relay 1",
        ];
        assert_eq!(counted, common::entries(&expected), "{a} to {b}");
    }
}

/// All STUN servers of the lab have one address, so this NAT looks as if it had one mapping.
#[test]
fn a_nat_with_another_mapping_for_each_address_is_found_out() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let (hard, easy) = (NatKind::AddressDependent, NatKind::PortRestricted);
    for (a, b) in [(easy, hard), (hard, easy)] {
        let spec = Spec::pair(a, b).figure_delays();
        let mut stage = Stage::up(spec, &parts).unwrap();
        // Both peers are unsure, and either may open the sockets first.
        let settings = ["port_mapping=false", "birthday_sockets=1024"];
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        stage.add_arguments(settings.map(str::to_owned));
        let run = stage.meet(Pairing::ALL[0], "a", "b", DOUBTED).unwrap();
        println!("{a} to {b}: direct after {:?} ms", run.direct_ms);
        assert!(is(&run, "direct", "birthday"), "{a} to {b}: {run:#?}");
    }
}

/// Settings with which no guess meets a port.
const IN_VAIN: [&str; 4] = [
    "port_mapping=false",
    "birthday_sockets=1",
    "birthday_probes=1",
    "upgrade_tries=0",
];

#[test]
fn turn_servers_are_asked_once_guesses_have_failed() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = Spec::pair(NatKind::SymmetricRandom, NatKind::PortRestricted);
    let event = json!({ "event": "path", "path": "turn", "strategy": "turn" });
    let books = books(spec, &parts, &IN_VAIN, &event);
    // The peer's own addresses are still being dialled.
    let expected = [
        "attempts birthday 1",
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "attempts turn 1",
        "connect_seconds_count circuit_relay 1",
        "connect_seconds_count turn 1",
        "current_method turn 1",
        "failures birthday no_pair 1",
        "failures direct cancelled 1",
        "failures stun cancelled 1",
        "successes circuit_relay 1",
        "successes turn 1",
    ];
    assert_eq!(books, common::entries(&expected));
}

#[test]
fn failed_guesses_are_counted_as_a_failure_of_birthday() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = Spec::pair(NatKind::SymmetricRandom, NatKind::PortRestricted).without_turn();
    let event = json!({ "event": "attempt", "strategy": "stun", "outcome": "failed" });
    let books = books(spec, &parts, &IN_VAIN, &event);
    // The peer's own addresses are still being dialled.
    let expected = [
        "attempts birthday 1",
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "connect_seconds_count circuit_relay 1",
        "current_method circuit_relay 1",
        "failures birthday no_pair 1",
        "failures direct no_pair 1",
        "failures stun no_pair 1",
        "successes circuit_relay 1",
    ];
    assert_eq!(books, common::entries(&expected));
}

#[test]
fn a_mapped_port_is_counted_as_upnp() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = symmetric(PortMapping::UPNP);
    let event = json!({ "event": "path", "path": "direct", "strategy": "upnp" });
    let books = books(spec, &parts, &[], &event);
    let expected = [
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "attempts upnp 1",
        "connect_seconds_count circuit_relay 1",
        "connect_seconds_count upnp 1",
        "current_method upnp 1",
        "failures direct cancelled 2",
        "failures stun cancelled 1",
        "successes circuit_relay 1",
        "successes upnp 1",
    ];
    assert_eq!(books, common::entries(&expected));
}

#[test]
fn without_a_gateway_upnp_fails_and_a_punched_hole_is_counted_as_stun() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
    let event = json!({ "event": "path", "path": "direct", "strategy": "stun" });
    let counted = books(spec, &parts, &["port_mapping=false"], &event);
    let punched = [
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "connect_seconds_count circuit_relay 1",
        "connect_seconds_count stun 1",
        "current_method stun 1",
        "failures direct cancelled 2",
        "successes circuit_relay 1",
        "successes stun 1",
    ];
    assert_eq!(counted, common::entries(&punched));

    let hard = NatKind::SymmetricRandom;
    let spec = Spec::pair(hard, hard).without_turn();
    let event = json!({ "event": "attempt", "strategy": "upnp" });
    let settings = ["port_mapping_timeout_ms=1000", "upgrade_tries=0"];
    let counted = books(spec, &parts, &settings, &event);
    let failed = [
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "attempts upnp 1",
        "connect_seconds_count circuit_relay 1",
        "current_method circuit_relay 1",
        "failures upnp no_gateway 1",
        "successes circuit_relay 1",
    ];
    assert_eq!(counted, common::entries(&failed));
}

/// Starts a listener on `a` whose port the router forwards, and waits until a server has reached it
/// there.
fn confirmed(parts: &Parts) -> (Stage, Listener) {
    let mut stage = Stage::up(symmetric(PortMapping::UPNP), parts).unwrap();
    let arguments = [
        "--metrics",
        common::METRICS,
        "--set",
        "autonat_retry_ms=1000",
    ];
    stage.add_arguments(arguments.map(str::to_owned));
    let listener = stage.listen(Peer::Native, "a").unwrap();
    // Only a mapped port lets the server through a NAT of this kind.
    wait_for_confirmed(&stage, 1, WITHIN);
    (stage, listener)
}

fn wait_for_confirmed(stage: &Stage, count: u32, within: Duration) {
    let host = stage.lab.host("a").unwrap();
    let line = format!("throughline_confirmed_addresses {count}");
    let deadline = Instant::now() + within;
    while !common::metrics(&host).lines().any(|l| l == line) {
        assert!(Instant::now() < deadline, "not {line}");
        // Only the program's metrics show it.
        thread::sleep(Duration::from_millis(50));
    }
}

fn runs(stage: &Stage, host: &str, command: &[&str]) {
    let host = stage.lab.host(host).unwrap();
    let mut command_line = host.command(command[0]);
    assert!(command_line.args(&command[1..]).status().unwrap().success());
}

#[test]
fn a_mapped_port_is_confirmed_until_the_network_changes() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let (stage, _listener) = confirmed(&parts);
    let flush = ["ip", "-4", "address", "flush", "scope", "global"];
    runs(&stage, "a", &flush);
    wait_for_confirmed(&stage, 0, WITHIN);
}

#[test]
fn a_mapped_port_that_the_router_silently_stops_forwarding_is_no_longer_confirmed() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let (stage, _listener) = confirmed(&parts);
    let flush = ["nft", "flush", "chain", "inet", "upnp", "prerouting"];
    runs(&stage, "a-router", &flush);
    // The port is tested again 20 s after it was confirmed, and a dial without an answer takes 10
    // s.
    wait_for_confirmed(&stage, 0, Duration::from_secs(45));
}
