//! Tests the contract of the `throughline` program, on which scripts, tests and benchmarks rely.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

use common::program::{Program, throughline};

#[path = "../common/mod.rs"]
mod common;
mod demo;
mod forward;
mod life;
mod serve;
mod streams;
mod terminal;
mod usage;

fn serve() -> (Program, Value) {
    let server = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"]);
    let ready = server.event("ready");
    (server, ready)
}

/// Returns the relay's first address of this kind, as `--relay` takes it.
fn relay<'a>(ready: &'a Value, kind: &str) -> &'a str {
    let addresses = ready["addresses"].as_array().unwrap();
    let mut texts = addresses.iter().map(|address| address.as_str().unwrap());
    texts.find(|text| text.contains(kind)).unwrap()
}

/// Returns the command for a listener behind the relay.
fn listen(ready: &Value, arguments: &[&str]) -> Command {
    let mut command = throughline(&["listen", "--relay", relay(ready, "quic-v1")]);
    command.args(["--stun", ready["stun"][0].as_str().unwrap()]);
    command.args(["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"]);
    command.args(arguments);
    command
}

/// Starts a relay, and a listener behind it. Returns the listener's ticket as well.
fn listening(arguments: &[&str]) -> (Program, Program, String) {
    let (server, ready) = serve();
    let listener = Program::spawn(listen(&ready, arguments).arg("--json"));
    let ready = listener.event("ready");
    let ticket = ready["ticket"].as_str().unwrap().to_owned();
    (server, listener, ticket)
}

fn fields(event: &Value) -> BTreeSet<&str> {
    event
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[track_caller]
fn has_fields(event: &Value, names: &[&str]) {
    for name in names {
        assert!(fields(event).contains(name), "no `{name}` in {event}");
    }
}

#[track_caller]
fn is_millis(value: &Value) {
    let ms = value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"));
    assert!((0.0..60_000.0).contains(&ms), "{ms}");
}

/// Runs a command that fails to its end, and returns the error event.
#[track_caller]
fn failure(arguments: &[&str]) -> Value {
    let (events, status) = Program::start(arguments).finish();
    let error = events.last().expect("an error event").clone();
    assert_eq!(error["event"], "error");
    has_fields(&error, &["code", "message"]);
    let expected = match error["code"].as_str().unwrap() {
        "no_relay" | "unreachable" | "wrong_peer" => 3,
        "timeout" => 4,
        "access_denied" | "protocol_refused" | "limit_exceeded" => 5,
        code if code.starts_with("invalid_") => 2,
        _ => 1,
    };
    assert_eq!(status.code(), Some(expected), "{arguments:?}: {events:?}");
    error
}

#[track_caller]
fn refused(arguments: &[&str], code: &str, named: &str) {
    let error = failure(arguments);
    assert_eq!(error["code"], code, "{error}");
    assert!(
        error["message"].as_str().unwrap().contains(named),
        "{error}"
    );
}

#[test]
fn bad_input_is_an_error_that_names_the_field() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad_server = file("server.toml", "[relay]\ncircuitz = 1\n");
    let bad_peer = file("peer.toml", "connect_timeout_ms = \"soon\"\n");
    let open_key = file("identity", "secret");
    for (arguments, code, named) in [
        (&["serve", "--port", "x"][..], "invalid_config", "--port"),
        (&["serve", "--port", "65533"], "invalid_config", "port"),
        (
            &["serve", "--host", "localhost"],
            "invalid_config",
            "--host",
        ),
        (
            &["serve", "--announce", "x", "--port", "0"],
            "invalid_address",
            "announce",
        ),
        (
            &["serve", "--config", &bad_server],
            "invalid_config",
            "unknown option \"circuitz\": did you mean \"circuits\"?",
        ),
        (&["serve", "--config", "/no/such"], "io", "/no/such"),
        (&["serve", "--nonsense"], "invalid_config", "--nonsense"),
        (&["listen", "--relay", "x y"], "invalid_address", "relays"),
        (
            &["listen", "--relay", "/ip4/127.0.0.1/tcp/1"],
            "invalid_address",
            "relays",
        ),
        (&["listen", "--stun", "127.0.0.1"], "invalid_config", "stun"),
        (&["listen", "--bind", "x"], "invalid_address", "listen"),
        (
            &["listen", "--config", &bad_peer],
            "invalid_config",
            "connect_timeout_ms",
        ),
        (
            &["listen", "--identity", &open_key],
            "invalid_identity",
            "chmod 600",
        ),
        (&["listen", "--recv", "/dev/null/x"], "io", "--recv"),
        (&["connect"], "invalid_config", "arguments"),
        (&["connect", "nonsense"], "invalid_ticket", "tl1"),
        (&["connect", "tl1AAAA"], "invalid_ticket", "peer id"),
        (
            &["connect", "T", "--bench", "61"],
            "invalid_config",
            "--bench",
        ),
        (&["connect", "T", "--ping", "x"], "invalid_config", "--ping"),
        (
            &["connect", "T", "--wait-direct", "86401"],
            "invalid_config",
            "--wait-direct",
        ),
        (&["ping", "nonsense"], "invalid_ticket", "tl1"),
        (&["netcheck", "--relay", "x y"], "invalid_address", "relays"),
    ] {
        refused(arguments, code, named);
    }
}

#[test]
fn help_is_for_people() {
    let output = throughline(&["connect", "--help"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for option in [
        "--relay",
        "--stun",
        "--turn",
        "--wait-direct",
        "--send",
        "--bench",
        "--ping",
    ] {
        assert!(text.contains(option), "{option}");
    }
    let output = throughline(&["connect"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty(), "errors go to stderr");
}

#[test]
fn a_relay_that_is_not_there_is_an_error() {
    let (server, ready) = serve();
    let address = relay(&ready, "/tcp/").to_owned();
    drop(server);
    refused(&["listen", "--relay", &address], "no_relay", "");
}

#[test]
fn a_peer_that_is_not_there_is_unreachable_with_every_attempt() {
    let (_server, listener, ticket) = listening(&["--echo"]);
    drop(listener);
    let error = failure(&["connect", &ticket, "--ping", "1"]);
    assert_eq!(error["code"], "unreachable", "{error}");
    let attempts = error["attempts"].as_array().unwrap();
    assert!(!attempts.is_empty());
    for attempt in attempts {
        has_fields(attempt, &["strategy", "outcome", "reason"]);
    }
}

/// Runs a connect to its end, and returns what it logs.
fn logged(ticket: &str, verbose: &[&str]) -> String {
    let line = ["connect", ticket, "--bind", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let mut command = throughline(&line);
    command.args(["--relay-only", "--ping", "1", "--json"]);
    let output = command.args(verbose).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn one_address_is_enough_and_the_status_says_when_it_is_lost() {
    let (server, ready) = serve();
    let http = ready["http"].as_str().unwrap();
    let at = http.strip_prefix("http://127.0.0.1").unwrap();
    let listener = Program::start(&["listen", "--echo", "--relay", &format!("localhost{at}")]);
    let ticket = listener.event("ready")["ticket"]
        .as_str()
        .unwrap()
        .to_owned();
    let pinned = format!("{http}/p2p/{}", ready["peer_id"].as_str().unwrap());
    let dialler = Program::start(&["connect", &ticket, "--ping", "1", "--relay", &pinned]);
    dialler.event("ping");
    let reached = listener.event("status");
    has_fields(&reached, &["state", "ticket", "relays", "nat"]);
    assert_eq!(reached["relays"][0]["name"], format!("localhost{at}"));
    drop(server);
    let lost = listener.find(|event| event["event"] == "status" && event["state"] != "reachable");
    let lost = lost.unwrap();
    assert!(
        lost["ticket"].as_str().unwrap().len() < ticket.len(),
        "{lost}"
    );
}

#[test]
fn the_log_follows_one_connection() {
    let (_server, _listener, ticket) = listening(&["--echo"]);
    let peer = ticket.parse::<throughline::Ticket>().unwrap().peer_id();
    assert_eq!(logged(&ticket, &[]), "");

    let told = logged(&ticket, &["-v"]);
    let of_connection = format!("connection{{peer={peer}}}");
    for words in [
        "connecting",
        "connected",
        "succeeded",
        "the path changed",
        "closed",
    ] {
        let mut lines = told.lines();
        let line = lines.find(|line| line.contains(words));
        let line = line.unwrap_or_else(|| panic!("no `{words}` in {told}"));
        assert!(line.contains(&of_connection), "{line}");
    }
    let attempt = "attempt{by=circuit_relay}: throughline::connection: succeeded";
    assert!(told.contains(attempt), "{told}");
    assert!(!told.contains("127.0.0.1"), "no addresses: {told}");
    assert!(!told.contains('\x1b'), "no colours for a file: {told}");

    let detail = logged(&ticket, &["-vv"]);
    assert!(detail.contains("127.0.0.1"), "{detail}");
    assert!(!detail.contains('\x1b'), "no colours for a file: {detail}");
}

#[test]
fn ping_over_the_relay_says_every_step() {
    let (_server, listener, ticket) = listening(&["--echo"]);
    let arguments = ["connect", &ticket, "--ping", "3", "--relay-only"];
    let (events, status) = Program::start(&arguments).finish();
    assert!(status.success(), "{events:#?}");
    let named = |name: &str| -> Vec<&Value> {
        events
            .iter()
            .filter(|event| event["event"] == name)
            .collect()
    };
    let connected = named("connected")[0];
    assert_eq!(connected["path"], "relayed");
    assert_eq!(connected["strategy"], "circuit_relay");
    is_millis(&connected["ms"]);
    is_millis(&named("first_byte")[0]["ms"]);
    has_fields(
        named("path")[0],
        &["path", "strategy", "ms", "local", "remote"],
    );
    let attempt = named("attempt")[0];
    has_fields(attempt, &["strategy", "outcome", "ms", "reason"]);
    is_millis(&attempt["ms"]);
    let pongs = named("pong");
    assert_eq!(pongs.len(), 3);
    for (index, pong) in pongs.iter().enumerate() {
        assert_eq!(pong["seq"], index + 1);
        is_millis(&pong["rtt_ms"]);
        assert_eq!(pong["path"], "relayed");
    }
    has_fields(named("ping")[0], &["count", "min_ms", "mean_ms", "max_ms"]);
    let connection = listener.event("connection");
    has_fields(&connection, &["peer_id", "path"]);
    assert_eq!(connection["path"], "relayed");
    has_fields(&listener.event("disconnected"), &["peer_id", "code"]);
}

#[test]
fn a_direct_path_is_reported() {
    let (_server, _listener, ticket) = listening(&["--echo"]);
    let (events, status) = Program::start(&[
        "connect",
        &ticket,
        "--wait-direct",
        "20",
        "--bind",
        "/ip4/127.0.0.1/udp/0/quic-v1",
    ])
    .finish();
    assert!(status.success(), "{events:#?}");
    let direct = events
        .iter()
        .find(|event| event["event"] == "path" && event["path"] == "direct")
        .expect("a direct path");
    has_fields(direct, &["strategy", "ms", "local", "remote"]);
    is_millis(&direct["ms"]);
}

#[test]
fn no_direct_path_in_time_is_an_error_that_says_why() {
    let (_server, _listener, ticket) = listening(&["--echo", "--relay-only"]);
    let arguments = ["connect", &ticket, "--wait-direct", "1"];
    refused(&arguments, "timeout", "--wait-direct");
    let attempts = &failure(&arguments)["attempts"];
    let attempts = attempts.as_array().unwrap();
    assert!(!attempts.is_empty());
    for attempt in attempts {
        assert_eq!(attempt["cause"], "refused", "{attempt}");
        let reason = attempt["reason"].as_str().unwrap();
        assert!(reason.ends_with("the peer keeps to its relay"), "{reason}");
    }
    let output = throughline(&arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let line = "  hole punching (stun, ";
    let told = text.lines().filter(|told| told.starts_with(line));
    assert_eq!(told.count(), 1, "{text}");
}

#[test]
fn whoever_is_relayed_is_told_why() {
    let (_server, _listener, ticket) = listening(&["--echo", "--relay-only"]);
    let output = throughline(&["ping", &ticket, "--count", "2"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    let told = text
        .lines()
        .find(|line| line.starts_with("not directly by hole punching (stun, "));
    let told = told.unwrap_or_else(|| panic!("{text}"));
    assert!(told.ends_with("the peer keeps to its relay"), "{told}");
}

#[test]
fn ctrl_c_has_its_status() {
    let (_server, listener, ticket) = listening(&["--echo"]);
    let connect = Program::start(&["ping", &ticket, "--count", "1000000"]);
    connect.event("pong");
    connect.signal("-INT");
    let (events, status) = connect.finish();
    assert_eq!(status.code(), Some(130));
    assert_eq!(events.last().unwrap()["code"], "aborted");
    listener.signal("-INT");
    assert_eq!(listener.finish().1.code(), Some(130));
}

#[test]
fn completions_and_the_manual_are_printed() {
    let printed = |arguments: &[&str]| {
        let output = throughline(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let text = printed(&["completions", shell]);
        assert!(
            text.contains("netcheck") && text.contains("wait-direct"),
            "{shell}"
        );
    }
    assert!(printed(&["man"]).contains(".TH throughline 1"));
    let home = tempfile::tempdir().unwrap();
    let pages = home.path().join("man1");
    assert_eq!(printed(&["man", "--dir", pages.to_str().unwrap()]), "");
    let page = std::fs::read_to_string(pages.join("throughline-connect.1")).unwrap();
    assert!(page.contains("throughline connect TICKET"), "{page}");
}

#[test]
fn ping_and_netcheck() {
    let (_server, ready) = serve();
    let address = relay(&ready, "/ws/");
    let stun = |i: usize| ready["stun"][i].as_str().unwrap();
    let line = [
        "netcheck",
        "--relay",
        address,
        "--stun",
        stun(0),
        "--stun",
        stun(1),
    ];
    let (events, status) = Program::start(&line).finish();
    assert!(status.success(), "{events:#?}");
    let report = &events[0];
    assert_eq!(report["event"], "report");
    has_fields(
        report,
        &["peer_id", "relays", "listening", "observed", "strategies"],
    );
    assert_eq!(report["relays"][0]["reserved"], true);
    assert!(report["relays"][0]["rtt_ms"].as_f64().is_some());
    let nat = &report["nat"];
    has_fields(nat, &["external", "mapped", "port_step", "protocols"]);
    assert_eq!(nat["mapping"], "none");
    assert_eq!(nat["ports"], "preserved");
    // Both STUN ports of the server have one address.
    assert_eq!(nat["filtering"], "address_dependent");
    assert_eq!(nat["port_mapping"], "off");
    for server in nat["stun"].as_array().unwrap() {
        assert!(server["rtt_ms"].as_f64().is_some(), "{server}");
    }

    let (_server, _listener, ticket) = listening(&["--echo"]);
    let (events, status) = Program::start(&["ping", &ticket, "--count", "2"]).finish();
    assert!(status.success(), "{events:#?}");
    assert_eq!(
        events
            .iter()
            .filter(|event| event["event"] == "pong")
            .count(),
        2
    );
}

#[test]
fn netcheck_reports_everything_although_a_relay_is_dead() {
    let ((gone, dead), (_server, ready)) = (serve(), serve());
    let address = relay(&dead, "/tcp/");
    drop(gone);
    let line = [
        "netcheck",
        "--relay",
        address,
        "--relay",
        relay(&ready, "quic-v1"),
        "--stun",
        ready["stun"][0].as_str().unwrap(),
    ];
    let (events, status) = Program::start(&line).finish();
    assert_eq!(status.code(), Some(3));
    let report = &events[0];
    assert_eq!(report["event"], "report");
    has_fields(
        report,
        &["verdict", "reachable", "nat", "listening", "turn"],
    );
    assert_eq!(report["reachable"], true);
    let dead: Vec<_> = report["relays"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["dead"])
        .collect();
    assert_eq!(dead, [true, false]);
    assert_eq!(events[1]["code"], "no_relay");

    let output = throughline(&line).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.lines().next().unwrap();
    assert!(
        verdict.starts_with("Every peer can reach this machine"),
        "{text}"
    );
    assert!(
        text.contains("  DEAD relay ") && text.contains("  ok   relay "),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "no colours for a file");

    // Without any relay, nobody comes to an address of loopback.
    let alone = ["netcheck", "--bind", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let (events, status) = Program::start(&alone).finish();
    assert_eq!(status.code(), Some(3));
    assert_eq!(events[0]["reachable"], false);
    assert_eq!(events[1]["code"], "unreachable");
}

#[test]
fn a_listener_without_a_relay_is_warned() {
    let listener = Program::start(&["listen", "--bind", "/ip4/127.0.0.1/udp/0/quic-v1"]);
    listener.event("ready");
    assert_eq!(listener.event("warning")["code"], "no_relay");
}

#[test]
fn what_is_no_ticket_and_no_relay_has_a_hint() {
    for (arguments, code, hint) in [
        (
            ["ping", "/ip4/192.0.2.1/udp/1/quic-v1"],
            "invalid_ticket",
            "this is an address",
        ),
        (
            [
                "ping",
                "12D3KooWGzBXWNvHpLALvmnF57A3BjNPZb6GcZT7ANHNQRHQdkCs",
            ],
            "no_relay",
            "where the peer can be looked up",
        ),
        (
            ["ping", "https://a.example/"],
            "invalid_ticket",
            "no ticket behind its #",
        ),
        (
            ["listen", "--relay=ftp://127.0.0.1:1"],
            "invalid_address",
            "relays",
        ),
    ] {
        refused(&arguments, code, hint);
    }
}

#[test]
fn a_ticket_is_found_in_a_link_and_a_scheme_may_be_in_capitals() {
    let (_server, _listener, ticket) = listening(&["--echo"]);
    let (start, end) = ticket.split_at(40);
    let link = format!("\"http://127.0.0.1:4001/#{start}\n{end}\"");
    let line = ["ping", &link, "--count", "1", "--stun", "STUN:127.0.0.1:9"];
    let (events, status) = Program::start(&line).finish();
    assert!(status.success(), "{events:#?}");
}
