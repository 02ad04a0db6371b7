//! Peers between which no hole can be punched connect through a TURN server: Debian's coturn, which they
//! are told to use, and our own, to which the relay gives them access.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use throughline_lab::{Coturn, NatKind, Pairing, Peer, Site, Spec, Stage};

mod common;

/// Runs the tests one at a time. Many labs at once would be so slow that they look like failures.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long a path through TURN may take from the start of a program. It is usually up in less than
/// two seconds, because other ways come first. A program sends for longer than that.
const WITHIN: Duration = Duration::from_secs(8);
/// How long an allocation may be there after its connection: a peer keeps it for half a minute, because the
/// next connection may need one, too.
const GIVEN_BACK: Duration = Duration::from_secs(45);

/// Connects two programs behind `nat`, with the arguments that `turn` returns, and checks that data
/// flow through a TURN server.
fn meet_behind(nat: NatKind, turn: impl FnOnce(&Stage) -> (Vec<String>, Option<Coturn>)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let mut stage = Stage::up(Spec::pair(nat, nat), &parts).unwrap();
    let (arguments, _coturn) = turn(&stage);
    stage.add_arguments(arguments);
    let listener = stage.listen(Peer::Native, "b").unwrap();
    let dialler = stage
        .dial("a", &listener.ticket, &["--bench", "3"])
        .unwrap();
    let path = wait_for_turn(&dialler);
    assert_eq!(path["strategy"], "turn");
    let bench = dialler.wait("bench", WITHIN);
    let bench = bench.unwrap_or_else(|error| {
        let listener = listener.program.as_ref().map(|program| program.log());
        panic!("{error}\nthe listener:\n{}", listener.unwrap_or_default())
    });
    println!(
        "{nat:?}: on TURN after {} ms, {} Mbit/s",
        path["ms"], bench["mbit_s"]
    );
    assert_eq!(bench["path"], "turn");
    assert!(bench["mbit_s"].as_f64().unwrap() > 1.0, "{bench}");
}

fn wait_for_turn(dialler: &throughline_lab::Program) -> Value {
    let deadline = Instant::now() + WITHIN;
    loop {
        match dialler.next(deadline) {
            Some(event) if event["event"] == "path" && event["path"] == "turn" => return event,
            Some(event) if event["event"] == "error" => panic!("{event}\n{}", dialler.log()),
            Some(_) => {}
            None => panic!("no path through TURN:\n{}", dialler.log()),
        }
    }
}

fn of_coturn(url: String) -> Vec<String> {
    let (user, password) = (Coturn::USER, Coturn::PASSWORD);
    ["--turn", &url, "--turn-user", user, "--turn-pass", password]
        .map(str::to_owned)
        .into()
}

#[test]
fn symmetric_nats_connect_through_coturn_over_udp() {
    meet_behind(NatKind::SymmetricRandom, |stage| {
        let coturn = Coturn::start(&stage.lab).unwrap();
        (of_coturn(coturn.turn_url("udp")), Some(coturn))
    });
}

#[test]
fn networks_without_udp_connect_through_coturn_over_tcp() {
    meet_behind(NatKind::UdpBlocked, |stage| {
        let coturn = Coturn::start(&stage.lab).unwrap();
        (of_coturn(coturn.turn_url("tcp")), Some(coturn))
    });
}

#[test]
fn networks_that_let_only_https_out_connect_through_coturn_over_tls() {
    meet_behind(NatKind::Tcp443, |stage| {
        let coturn = Coturn::start_tls(&stage.lab).unwrap();
        let mut arguments = of_coturn(coturn.turns_url());
        let authority = coturn.authority().unwrap().display().to_string();
        arguments.extend(["--turn-ca".to_owned(), authority]);
        (arguments, Some(coturn))
    });
}

/// Connects a program with IPv6 only and one with IPv4 only through a server with addresses of both
/// families. The one that asks the server, by its own family, sends from a relayed address of the
/// other family (RFC 8656 section 7.1).
fn families_meet(
    transport: &str,
    start: fn(&throughline_lab::Lab) -> throughline_lab::Result<Coturn>,
) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = Spec::default()
        .site(Site::new("six", NatKind::PortRestricted).ipv6_only())
        .site(Site::new("four", NatKind::SymmetricRandom))
        .without_turn();
    for (asks, other) in [("six", "four"), ("four", "six")] {
        let mut stage = Stage::up(spec.clone(), &parts).unwrap();
        let coturn = start(&stage.lab).unwrap();
        let listener = stage.listen(Peer::Native, other).unwrap();
        let url = match (transport, asks) {
            ("tls", "six") => coturn.turns_url6(),
            ("tls", _) => coturn.turns_url(),
            (_, "six") => coturn.turn_url6(transport),
            _ => coturn.turn_url(transport),
        };
        stage.add_arguments(of_coturn(url));
        if let Some(authority) = coturn.authority() {
            let authority = authority.display().to_string();
            stage.add_arguments(["--turn-ca".to_owned(), authority]);
        }
        let dialler = stage
            .dial(asks, &listener.ticket, &["--bench", "2"])
            .unwrap();
        let path = wait_for_turn(&dialler);
        let local: SocketAddr = path["local"].as_str().unwrap().parse().unwrap();
        assert_eq!(local.is_ipv4(), asks == "six", "{path}");
        let bench = dialler.wait("bench", WITHIN).unwrap();
        println!(
            "{asks} over {transport}: on TURN after {} ms, {} Mbit/s",
            path["ms"], bench["mbit_s"]
        );
        assert_eq!(bench["path"], "turn");
        assert!(bench["mbit_s"].as_f64().unwrap() > 1.0, "{bench}");
    }
}

#[test]
fn ipv4_and_ipv6_connect_through_coturn_over_udp() {
    families_meet("udp", Coturn::start);
}

#[test]
fn ipv4_and_ipv6_connect_through_coturn_over_tcp() {
    families_meet("tcp", Coturn::start);
}

#[test]
fn ipv4_and_ipv6_connect_through_coturn_over_tls() {
    families_meet("tls", Coturn::start_tls);
}

#[test]
fn symmetric_nats_connect_through_our_server_over_udp() {
    meet_behind(NatKind::SymmetricRandom, |_| (Vec::new(), None));
}

#[test]
fn networks_without_udp_connect_through_our_server_over_tcp() {
    meet_behind(NatKind::UdpBlocked, |_| (Vec::new(), None));
}

/// A page that rests before it connects knows the server, too, and then tries without TURN first. The
/// program joins its own relayed address in both cases.
#[test]
fn a_page_and_a_program_connect_through_our_server() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(true) else {
        return;
    };
    let hard = NatKind::SymmetricRandom;
    for rests in [false, true] {
        let mut stage = Stage::up(Spec::pair(hard, hard), &parts).unwrap();
        stage.warm = rests;
        let pairing = Pairing::ALL[1];
        let run = stage
            .meet(pairing, "a", "b", Duration::from_secs(3))
            .unwrap();
        println!("{pairing}, the page rests: {rests}: {run:?}");
        assert_eq!(run.path.as_deref(), Some("turn"), "{run:?}");
    }
}

/// An allocation ends with its connection, and an idle peer has none.
#[test]
fn allocations_are_made_when_needed_and_given_back() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let hard = NatKind::SymmetricRandom;
    let mut stage = Stage::up(Spec::pair(hard, hard), &parts).unwrap();
    let listener = stage.listen(Peer::Native, "b").unwrap();
    assert_eq!(allocations(&stage), 0.0, "the peers are idle");
    let dialler = stage
        .dial("a", &listener.ticket, &["--bench", "3"])
        .unwrap();
    wait_for_turn(&dialler);
    assert!(allocations(&stage) > 0.0, "there is no allocation");
    dialler.wait("bench", WITHIN).unwrap();
    // The program closes its connector before it ends.
    while dialler.next(Instant::now() + WITHIN).is_some() {}
    let deadline = Instant::now() + GIVEN_BACK;
    while allocations(&stage) > 0.0 {
        assert!(
            Instant::now() < deadline,
            "the peers gave not everything back"
        );
        // The server has a rate for those who ask for its counters.
        thread::sleep(Duration::from_millis(250));
    }
}

fn allocations(stage: &Stage) -> f64 {
    let gauge = "throughline_turn_allocations ";
    stage.serve.metric(&stage.lab, gauge).unwrap()
}

/// Whether the server was asked for any relayed address.
fn was_asked(stage: &Stage) -> bool {
    let counter = "throughline_turn_requests_total{outcome=\"granted\"} ";
    stage.serve.metric(&stage.lab, counter).unwrap() > 0.0
}

/// An address costs the server a port and a state.
#[test]
fn peers_that_are_direct_in_time_ask_for_no_allocation() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let easy = NatKind::PortRestricted;
    let spec = Spec::pair(easy, easy).figure_delays();
    let mut stage = Stage::up(spec, &parts).unwrap();
    let run = stage.meet(Pairing::ALL[0], "a", "b", WITHIN).unwrap();
    assert_eq!(run.path.as_deref(), Some("direct"), "{run:?}");
    assert!(!was_asked(&stage));
}

#[test]
fn a_path_over_our_server_is_counted_as_turn() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let nat = NatKind::SymmetricRandom;
    let mut stage = Stage::up(Spec::pair(nat, nat), &parts).unwrap();
    stage.add_arguments(["--no-port-mapping".to_owned()]);
    let counted = common::books(&mut stage, WITHIN, |event| {
        event["event"] == "path" && event["path"] == "turn"
    });
    // The peer's own addresses are still being dialled.
    let expected = [
        "attempts circuit_relay 1",
        "attempts direct 2",
        "attempts stun 1",
        "attempts turn 1",
        "connect_seconds_count circuit_relay 1",
        "connect_seconds_count turn 1",
        "current_method turn 1",
        "failures direct cancelled 1",
        "failures stun cancelled 1",
        "successes circuit_relay 1",
        "successes turn 1",
    ];
    assert_eq!(counted, common::entries(&expected));
}
