//! What opens NATs that hide their ports: port mappings, and guessing the next port of a sequence.

use std::time::Duration;

use throughline_lab::{NatKind, Pairing, Parts, PortMapping, Run, Site, Spec, Stage};

mod common;

/// Long enough for the slowest try in the lab's round trips.
const WITHIN: Duration = Duration::from_secs(12);

/// Native peers `a`, which dials, and `b`.
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
fn a_router_that_lies_costs_nothing_but_the_hope() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let wait = Duration::from_secs(3);
    let symmetric_pair = Spec::pair(NatKind::SymmetricRandom, NatKind::SymmetricRandom);
    let honest = meet(symmetric_pair, &parts, wait);
    let lying = meet(symmetric(PortMapping::LYING), &parts, wait);
    for run in [&honest, &lying] {
        assert!(is(run, "relayed", "circuit_relay"), "{run:#?}");
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
