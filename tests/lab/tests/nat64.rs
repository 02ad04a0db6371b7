//! A program in a network that has only IPv6, and reaches IPv4 by a NAT64.

use std::time::Duration;

use throughline_lab::{NatKind, Pairing, Peer, Program, Site, Spec, Stage};

mod common;

/// How long a path may take, unless ports have to be guessed.
const WITHIN: Duration = Duration::from_secs(6);
/// How long a direct path may take by guessed ports. A guess takes some seconds, and one in a few is in vain and
/// begins anew.
const GUESSED: Duration = Duration::from_secs(40);

const PROGRAMS: Pairing = Pairing {
    dialler: Peer::Native,
    listener: Peer::Native,
};

fn spec(nat64: NatKind, other: NatKind) -> Spec {
    Spec::default()
        .site(Site::new("six", nat64).nat64())
        .site(Site::new("four", other))
}

fn stage(spec: Spec) -> Option<Stage> {
    let parts = common::parts_or_skip(false)?;
    let mut stage = Stage::up(spec, &parts).unwrap();
    stage.add_arguments(["--no-port-mapping".to_owned()]);
    Some(stage)
}

/// The relay and the STUN server are configured by their IPv4 addresses, and the other peer has only IPv4.
#[test]
fn it_reaches_ipv4_by_literal_addresses_from_either_side() {
    let kinds = [
        (NatKind::PortRestricted, NatKind::PortRestricted, WITHIN),
        (NatKind::PortRestricted, NatKind::SymmetricRandom, GUESSED),
        (NatKind::SymmetricRandom, NatKind::FullCone, WITHIN),
    ];
    for (six, four, within) in kinds {
        let Some(mut stage) = stage(spec(six, four).without_turn()) else {
            return;
        };
        for (from, to) in [("six", "four"), ("four", "six")] {
            let run = stage.meet(PROGRAMS, from, to, within).unwrap();
            println!(
                "{six} and {four}, {from} dials: direct after {:?} ms",
                run.direct_ms
            );
            assert_eq!(
                run.path.as_deref(),
                Some("direct"),
                "{from} dials: {run:#?}"
            );
        }
    }
}

/// Nobody can know the ports of either NAT.
#[test]
fn it_uses_a_turn_server_by_its_literal_address() {
    let kind = NatKind::SymmetricRandom;
    let Some(mut stage) = stage(spec(kind, kind)) else {
        return;
    };
    for (from, to) in [("six", "four"), ("four", "six")] {
        let run = stage.meet(PROGRAMS, from, to, WITHIN).unwrap();
        assert_eq!(run.path.as_deref(), Some("turn"), "{from} dials: {run:#?}");
    }
}

#[test]
fn it_reaches_a_server_by_its_name() {
    let kind = NatKind::PortRestricted;
    let Some(stage) = stage(spec(kind, kind)) else {
        return;
    };
    let relays = stage.serve.addresses();
    let named: Vec<_> = relays
        .iter()
        .filter(|address| address.contains("/p2p/") && !address.contains("/webrtc-direct"))
        .filter_map(|address| address.strip_prefix("/ip4/11.1.0.2/"))
        .map(|rest| format!("/dns/relay.example/{rest}"))
        .collect();
    assert!(!named.is_empty(), "{relays:?}");
    for relay in named {
        let mut command = stage.lab.host("six").unwrap().command(stage.program());
        command.args(["listen", "--json", "--echo", "--relay", &relay]);
        let program = Program::start(format!("a listener by {relay}"), command).unwrap();
        let ready = program.wait("ready", WITHIN).unwrap();
        println!("{relay}: {}", ready["ticket"]);
        let run = stage
            .dial("four", ready["ticket"].as_str().unwrap(), &["--ping", "1"])
            .unwrap();
        run.wait("connected", WITHIN).unwrap();
    }
}
