//! The race on loopback: what is tried, what it costs, and whether every counter shows it. The
//! tests use the public API only.

use std::{collections::BTreeSet, num::NonZeroUsize, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use throughline::{
    Cause, Config, Connection, Connector, Error, ErrorKind, Outcome, PathKind, Strategy, Ticket,
    server::Server,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, UdpSocket},
    time::timeout,
};

use common::{PATIENCE, peer, server_config, until, until_path};

#[path = "../common/mod.rs"]
mod common;
mod ice;
mod nearest;

async fn relay() -> Server {
    Server::start(server_config()).await.unwrap()
}

/// Returns the configuration of a peer that is reachable through `relays` and by its own addresses.
fn listener(relays: &[&Server]) -> Config {
    let mut config = Config::default();
    // Only strategies whose result does not depend on other machines are counted below.
    config.port_mapping = false;
    config.birthday = false;
    // A test chooses the ways to a peer by what it leaves in a ticket.
    config.directory = false;
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config.relay_reservations = relays.len().max(1);
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".into(),
        "/ip4/127.0.0.1/udp/0/quic-v1".into(),
    ];
    config
}

/// Returns the configuration of a peer that only dials.
fn dialler() -> Config {
    let mut config = listener(&[]);
    config.reserve = false;
    config
}

fn relayed(mut config: Config) -> Config {
    config.direct = false;
    config
}

/// Accepts every connection and keeps it.
fn accepting(me: &Connector) {
    let me = me.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(conn) = me.accept().await {
            kept.push(conn);
        }
    });
}

async fn until_direct(conn: &Connection) {
    until_path(conn, PathKind::Direct).await;
}

/// Returns the value of a metric, or 0 if there is none.
fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |rest| rest.trim().parse().unwrap())
}

fn circuits_made(relay: &Server) -> u64 {
    let name = "throughline_relay_circuit_requests_total{outcome=\"accepted\"}";
    value(&relay.metrics(), name)
}

/// Returns every counter and gauge of the race that is not 0, as `attempts direct 1`. Checks that
/// the histogram of each strategy holds its successes and nothing else.
fn books(me: &Connector) -> BTreeSet<String> {
    let metrics = me.metrics();
    for strategy in Strategy::ALL {
        let labels = format!("{{strategy=\"{strategy}\"");
        let successes = format!("nat_traversal_successes_total{labels}}}");
        let successes = value(&metrics, &successes);
        let seconds = "nat_traversal_connect_seconds";
        for name in [
            format!("{seconds}_count{labels}}}"),
            format!("{seconds}_bucket{{le=\"+Inf\",strategy=\"{strategy}\"}}"),
        ] {
            assert_eq!(value(&metrics, &name), successes, "{name}");
        }
    }
    let lines = metrics.lines().filter_map(|line| {
        let line = line.strip_prefix("nat_traversal_")?;
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.split_once("} ")?;
        let name = name.trim_end_matches("_total");
        let counted = ["attempts", "successes", "failures", "current_method"];
        if value == "0" || !counted.contains(&name) {
            return None;
        }
        let labels: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
        Some(format!("{name} {} {value}", labels.join(" ")))
    });
    lines.collect()
}

fn entries(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

async fn refused(me: &Connector, ticket: &Ticket) -> Error {
    timeout(PATIENCE, me.connect(ticket))
        .await
        .expect("connect ends within its timeout")
        .unwrap_err()
}

/// Returns the strategy and the cause of each attempt of an error.
fn causes(error: &Error) -> Vec<(Strategy, Cause)> {
    let attempts = error.attempts().iter();
    attempts.map(|a| (a.strategy, a.cause.unwrap())).collect()
}

/// Makes a ticket of a peer that does not exist, with these relays and addresses.
fn ticket(relays: &[String], addresses: &[String]) -> Ticket {
    let nobody = throughline::Identity::generate().peer_id();
    Ticket::from_parts(nobody, relays, addresses).unwrap()
}

#[tokio::test]
async fn a_circuit_is_made_once_and_used_for_everything() {
    let relay = relay().await;
    let bob = peer(listener(&[&relay])).await;
    accepting(&bob);
    let alice = peer(dialler()).await;
    let ticket = bob.ticket().without_addresses();
    let (first, second) = tokio::join!(alice.connect(&ticket), alice.connect(&ticket));
    let (first, second) = (first.unwrap(), second.unwrap());
    // The signalling goes over the same circuit.
    until_direct(&first).await;
    for _ in 0..20 {
        alice.connect(&ticket).await.unwrap();
    }
    assert_eq!(circuits_made(&relay), 1);
    drop((first, second));
}

#[tokio::test]
async fn a_second_relay_is_used_only_if_the_first_fails() {
    let (near, other) = (relay().await, relay().await);
    let bob = peer(relayed(listener(&[&near, &other]))).await;
    until(|| bob.metrics().contains("throughline_reservations 2")).await;
    accepting(&bob);
    let alice = peer(relayed(dialler())).await;
    let _conn = alice.connect(&bob.ticket()).await.unwrap();
    assert_eq!(circuits_made(&near) + circuits_made(&other), 1);
    // The second relay is asked because the first is gone.
    let carol = peer(relayed(dialler())).await;
    let relays = [gone_address(), other.addresses()[0].clone()];
    let ticket = Ticket::from_parts(bob.peer_id(), &relays, &[] as &[String]).unwrap();
    carol.connect(&ticket).await.unwrap();
}

/// Returns the address of a relay at which nobody listens.
fn gone_address() -> String {
    let nobody = throughline::Identity::generate().peer_id();
    format!("/ip4/127.0.0.1/tcp/1/p2p/{nobody}")
}

#[tokio::test]
async fn two_peers_that_dial_each_other_end_with_one_circuit() {
    let relay = relay().await;
    let config = relayed(listener(&[&relay]));
    let (alice, bob) = (peer(config.clone()).await, peer(config).await);
    accepting(&alice);
    accepting(&bob);
    let (to_bob, to_alice) = (bob.ticket(), alice.ticket());
    let (a, b) = tokio::join!(alice.connect(&to_bob), bob.connect(&to_alice));
    let (a, b) = (a.unwrap(), b.unwrap());
    until(|| value(&relay.metrics(), "throughline_relay_circuits ") == 1).await;
    assert!(a.path().is_some() && b.path().is_some());
    assert!(circuits_made(&relay) <= 2);
}

#[tokio::test]
async fn dead_stun_servers_do_not_delay_a_connect() {
    let relay = relay().await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let stun = format!("stun:{}", silent.local_addr().unwrap());
    let mut bob = listener(&[&relay]);
    bob.stun = vec![stun.clone()];
    let bob = peer(bob).await;
    accepting(&bob);
    let mut alice = dialler();
    alice.stun = vec![stun];
    let alice = peer(alice).await;
    let ticket = bob.ticket().without_addresses();
    let conn = alice.connect(&ticket).await.unwrap();
    // The circuit was up before anything that needs the servers had ended.
    let ended: Vec<_> = conn.attempts().iter().map(|a| a.strategy).collect();
    assert_eq!(ended, [Strategy::CircuitRelay]);
    until_direct(&conn).await;
}

#[tokio::test]
async fn quic_is_dialled_before_tcp_in_any_order_of_the_ticket() {
    let bob = peer(listener(&[])).await;
    accepting(&bob);
    until(|| bob.ticket().addresses().len() == 2).await;
    let mut addresses = bob.ticket().addresses();
    addresses.sort_by_key(|a| a.contains("quic"));
    let ticket = Ticket::from_parts(bob.peer_id(), &[] as &[String], &addresses).unwrap();
    let alice = peer(dialler()).await;
    let conn = alice.connect(&ticket).await.unwrap();
    let remote = conn.path().unwrap().remote.unwrap();
    assert!(remote.contains("quic-v1"), "{remote}");
}

#[tokio::test]
async fn with_an_acceptance_delay_the_direct_path_is_given_and_not_the_circuit() {
    let relay = relay().await;
    let bob = peer(listener(&[&relay])).await;
    accepting(&bob);
    let mut alice = dialler();
    alice.acceptance_delay = PATIENCE;
    let alice = peer(alice).await;
    let ticket = bob.ticket().without_addresses();
    let conn = alice.connect(&ticket).await.unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn an_attempt_that_loses_the_race_is_cancelled() {
    let relay = relay().await;
    let bob = peer(listener(&[&relay])).await;
    accepting(&bob);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let addresses = [format!("/ip4/127.0.0.1/tcp/{port}")];
    let ticket = Ticket::from_parts(bob.peer_id(), &bob.ticket().relays(), &addresses).unwrap();
    let alice = peer(dialler()).await;
    let conn = alice.connect(&ticket).await.unwrap();
    let (mut socket, _) = silent.accept().await.unwrap();
    until_direct(&conn).await;
    // The dial ends with the race and not at its timeout.
    let mut said = Vec::new();
    let ended = timeout(PATIENCE / 4, socket.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the dial goes on");
    let cancelled = |a: &throughline::Attempt| {
        a.strategy == Strategy::Direct && a.outcome == Outcome::Cancelled
    };
    assert!(conn.attempts().iter().any(cancelled));
    conn.close().await;
    assert_eq!(
        books(&alice),
        entries(&[
            "attempts circuit_relay 1",
            "attempts direct 2",
            "attempts stun 1",
            "successes circuit_relay 1",
            "successes direct 1",
            "failures direct cancelled 1",
            "failures stun cancelled 1",
        ])
    );
}

/// Two machines with the same private address are enough for this.
#[tokio::test]
async fn a_stranger_at_one_address_does_not_end_the_dial() {
    let (bob, stranger) = (peer(listener(&[])).await, peer(listener(&[])).await);
    accepting(&bob);
    accepting(&stranger);
    for end in [&bob, &stranger] {
        until(|| end.ticket().addresses().len() == 2).await;
    }
    // The stranger answers first, because it is dialled by QUIC and the peer's only address is TCP.
    let mut addresses = stranger.ticket().addresses();
    addresses.extend(
        bob.ticket()
            .addresses()
            .into_iter()
            .filter(|a| a.contains("/tcp/")),
    );
    let ticket = Ticket::from_parts(bob.peer_id(), &[] as &[String], &addresses).unwrap();
    let alice = peer(dialler()).await;
    let conn = alice.connect(&ticket).await.unwrap();
    assert_eq!(conn.peer_id(), bob.peer_id());
}

#[tokio::test]
async fn every_result_of_a_direct_dial_is_counted() {
    let bob = peer(listener(&[])).await;
    accepting(&bob);
    until(|| bob.ticket().addresses().len() == 2).await;
    let alice = peer(dialler()).await;
    let conn = alice.connect(&bob.ticket()).await.unwrap();
    let up = [
        "attempts direct 1",
        "successes direct 1",
        "current_method direct 1",
    ];
    assert_eq!(books(&alice), entries(&up));
    conn.close().await;
    assert_eq!(books(&alice), entries(&up[..2]));

    let alice = peer(dialler()).await;
    let closed = ticket(&[], &["/ip4/127.0.0.1/tcp/1".into()]);
    let error = refused(&alice, &closed).await;
    assert_eq!(causes(&error), [(Strategy::Direct, Cause::Refused)]);
    let addresses = bob.ticket().addresses();
    let error = refused(&alice, &ticket(&[], &addresses)).await;
    assert_eq!(error.kind(), ErrorKind::WrongPeer);
    assert_eq!(causes(&error), [(Strategy::Direct, Cause::WrongPeer)]);
    assert_eq!(
        books(&alice),
        entries(&[
            "attempts direct 2",
            "failures direct refused 1",
            "failures direct wrong_peer 1",
        ])
    );

    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = dialler();
    config.strategy_timeout = Duration::from_millis(200);
    let alice = peer(config).await;
    let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let error = refused(&alice, &ticket(&[], &[address])).await;
    assert_eq!(causes(&error), [(Strategy::Direct, Cause::Timeout)]);
    let lost = ["attempts direct 1", "failures direct timeout 1"];
    assert_eq!(books(&alice), entries(&lost));

    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = rude.local_addr().unwrap().port();
    tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    let alice = peer(dialler()).await;
    for (address, cause) in [
        (format!("/ip4/127.0.0.1/tcp/{port}"), Cause::Transport),
        // Nothing is ever sent to this address.
        ("/ip4/255.255.255.255/tcp/1".into(), Cause::Forbidden),
        ("/ip4/127.0.0.1/udp/1/utp".into(), Cause::NoAddress),
    ] {
        let error = refused(&alice, &ticket(&[], &[address])).await;
        assert_eq!(causes(&error), [(Strategy::Direct, cause)], "{error}");
    }
    let lost = [
        "attempts direct 3",
        "failures direct forbidden 1",
        "failures direct no_address 1",
        "failures direct transport 1",
    ];
    assert_eq!(books(&alice), entries(&lost));
}

#[tokio::test]
async fn a_circuit_counts_each_of_its_ends() {
    let mut config = server_config();
    config.relay.circuits_per_peer = NonZeroUsize::new(1).unwrap();
    let relay = Server::start(config).await.unwrap();
    let (bob, carol) = (
        peer(relayed(listener(&[&relay]))).await,
        peer(relayed(listener(&[&relay]))).await,
    );
    accepting(&bob);
    accepting(&carol);
    let alice = peer(relayed(dialler())).await;
    let conn = alice.connect(&bob.ticket()).await.unwrap();
    let mut counted = entries(&[
        "attempts circuit_relay 1",
        "successes circuit_relay 1",
        "current_method circuit_relay 1",
    ]);
    assert_eq!(books(&alice), counted);
    // The relay's limit refuses this circuit.
    let error = refused(&alice, &carol.ticket()).await;
    assert_eq!(causes(&error), [(Strategy::CircuitRelay, Cause::Limit)]);
    conn.close().await;
    until(|| value(&relay.metrics(), "throughline_relay_circuits ") == 0).await;
    let relays = relay.addresses().to_vec();
    let error = refused(&alice, &ticket(&relays, &[])).await;
    let missing = [(Strategy::CircuitRelay, Cause::NoReservation)];
    assert_eq!(causes(&error), missing);
    let error = refused(&alice, &ticket(&[gone_address()], &[])).await;
    let unreachable = [(Strategy::CircuitRelay, Cause::RelayUnreachable)];
    assert_eq!(causes(&error), unreachable);
    assert!(
        error.to_string().contains("check that the relay runs"),
        "{error}"
    );
    counted = entries(&[
        "attempts circuit_relay 4",
        "successes circuit_relay 1",
        "failures circuit_relay limit 1",
        "failures circuit_relay no_reservation 1",
        "failures circuit_relay relay_unreachable 1",
    ]);
    assert_eq!(books(&alice), counted);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = relayed(dialler());
    config.connect_timeout = Duration::from_millis(200);
    let alice = peer(config).await;
    let nobody = throughline::Identity::generate().peer_id();
    let relays = [format!("/ip4/127.0.0.1/tcp/{port}/p2p/{nobody}")];
    let error = refused(&alice, &ticket(&relays, &[])).await;
    assert_eq!(causes(&error), [(Strategy::CircuitRelay, Cause::Timeout)]);
    let lost = [
        "attempts circuit_relay 1",
        "failures circuit_relay timeout 1",
    ];
    assert_eq!(books(&alice), entries(&lost));
}

#[tokio::test]
async fn our_own_limit_of_circuits_holds() {
    let relay = relay().await;
    let (bob, carol) = (
        peer(listener(&[&relay])).await,
        peer(relayed(listener(&[&relay]))).await,
    );
    accepting(&bob);
    accepting(&carol);
    let mut config = dialler();
    config.max_circuits = 1;
    let alice = peer(config).await;
    let (to_bob, to_carol) = (bob.ticket().without_addresses(), carol.ticket());
    let relay_only = peer({
        let mut config = relayed(dialler());
        config.max_circuits = 1;
        config
    })
    .await;
    let _held = relay_only.connect(&to_bob).await.unwrap();
    let error = refused(&relay_only, &to_carol).await;
    assert_eq!(causes(&error), [(Strategy::CircuitRelay, Cause::Limit)]);
    assert!(error.to_string().contains("max_circuits: 1"), "{error}");
    // A circuit that is only a fallback is closed to make room.
    let conn = alice.connect(&to_bob).await.unwrap();
    until_direct(&conn).await;
    alice.connect(&to_carol).await.unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn dropping_a_connect_cancels_its_attempts() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let alice = peer(dialler()).await;
    let nowhere = ticket(&[], &[format!("/ip4/127.0.0.1/tcp/{port}")]);
    let mut socket = tokio::select! {
        _ = alice.connect(&nowhere) => panic!("nobody answers"),
        accepted = silent.accept() => accepted.unwrap().0,
    };
    let mut said = Vec::new();
    let ended = timeout(PATIENCE / 4, socket.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the dial goes on");
    let taken_back = ["attempts direct 1", "failures direct cancelled 1"];
    assert_eq!(books(&alice), entries(&taken_back));
}

#[tokio::test]
async fn streams_survive_the_end_of_the_race() {
    let relay = relay().await;
    let bob = peer(listener(&[&relay])).await;
    let alice = peer(dialler()).await;
    let ticket = bob.ticket();
    let (accepted, conn) = tokio::join!(bob.accept(), alice.connect(&ticket));
    let (accepted, conn) = (accepted.unwrap(), conn.unwrap());
    let mut stream = conn.open("x").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    until_direct(&conn).await;
    stream.close().await.unwrap();
    let (_, mut stream) = accepted.accept_stream().await.unwrap();
    let mut read = Vec::new();
    futures::AsyncReadExt::read_to_end(&mut stream, &mut read)
        .await
        .unwrap();
    assert_eq!(read, b"hello");
}
