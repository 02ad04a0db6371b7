//! The race on loopback, through the public API alone: what is tried, what it costs, and that every
//! counter tells it.
#![cfg(feature = "server")]

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroUsize, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use throughline::{
    Cause, Config, Connection, Connector, Error, ErrorKind, Outcome, PathKind, Strategy, Ticket,
    server::{Server, ServerConfig},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, UdpSocket},
    time::timeout,
};

mod ice;

const PATIENCE: Duration = Duration::from_secs(20);

fn server() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config
}

async fn relay() -> Server {
    Server::start(server()).await.unwrap()
}

/// A peer that is reachable through `relays` and by its own addresses.
fn listener(relays: &[&Server]) -> Config {
    let mut config = Config::default();
    // The books below are of strategies that this machine decides alone.
    config.port_mapping = false;
    config.birthday = false;
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config.relay_reservations = relays.len().max(1);
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".into(),
        "/ip4/127.0.0.1/udp/0/quic-v1".into(),
    ];
    config
}

/// A peer that only dials.
fn dialler() -> Config {
    let mut config = listener(&[]);
    config.reserve = false;
    config
}

fn relayed(mut config: Config) -> Config {
    config.direct = false;
    config
}

async fn peer(config: Config) -> Connector {
    Connector::builder().config(config).bind().await.unwrap()
}

/// Accepts whatever comes, and keeps it.
fn accepting(me: &Connector) {
    let me = me.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(conn) = me.accept().await {
            kept.push(conn);
        }
    });
}

/// Waits for what only a snapshot tells.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let turned = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(turned.await.is_ok(), "{what}");
}

async fn until_direct(conn: &Connection) {
    until("the path becomes direct", || {
        conn.path().is_some_and(|p| p.kind == PathKind::Direct)
    })
    .await;
}

/// What a line of the metrics text says, 0 if there is none.
fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |rest| rest.trim().parse().unwrap())
}

fn circuits_made(relay: &Server) -> u64 {
    let name = "throughline_relay_circuit_requests_total{outcome=\"accepted\"}";
    value(&relay.metrics(), name)
}

/// Every counter and gauge of the race that is not 0, as `attempts direct 1`. Each success is in
/// the histogram of its strategy, and nothing else.
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
        .expect("connect ends within its budget")
        .unwrap_err()
}

/// The causes of an error's attempts, by strategy.
fn causes(error: &Error) -> Vec<(Strategy, Cause)> {
    let attempts = error.attempts().iter();
    attempts.map(|a| (a.strategy, a.cause.unwrap())).collect()
}

/// A ticket of a peer that is not there, with these relays and addresses.
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
    // The signalling went over the same circuit.
    until_direct(&first).await;
    for _ in 0..20 {
        alice.connect(&ticket).await.unwrap();
    }
    assert_eq!(circuits_made(&relay), 1);
    drop((first, second));
}

#[tokio::test]
async fn a_second_relay_stands_by() {
    let (near, other) = (relay().await, relay().await);
    let bob = peer(relayed(listener(&[&near, &other]))).await;
    until("both relays hold a reservation", || {
        bob.metrics().contains("throughline_reservations 2")
    })
    .await;
    accepting(&bob);
    let alice = peer(relayed(dialler())).await;
    let _conn = alice.connect(&bob.ticket()).await.unwrap();
    assert_eq!(circuits_made(&near) + circuits_made(&other), 1);
    // It is there when the first is not.
    let carol = peer(relayed(dialler())).await;
    let relays = [gone_address(), other.addresses()[0].clone()];
    let ticket = Ticket::from_parts(bob.peer_id(), &relays, &[] as &[String]).unwrap();
    carol.connect(&ticket).await.unwrap();
}

/// A relay's address where nobody listens.
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
    until("one circuit is left", || {
        value(&relay.metrics(), "throughline_relay_circuits ") == 1
    })
    .await;
    assert!(a.path().is_some() && b.path().is_some());
    assert!(circuits_made(&relay) <= 2);
}

#[tokio::test]
async fn dead_stun_servers_cost_a_connect_nothing() {
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
    // It came back on the circuit, before anything that needs the servers had ended.
    let ended: Vec<_> = conn.attempts().iter().map(|a| a.strategy).collect();
    assert_eq!(ended, [Strategy::CircuitRelay]);
    until_direct(&conn).await;
}

#[tokio::test]
async fn quic_comes_before_tcp_however_they_are_listed() {
    let bob = peer(listener(&[])).await;
    accepting(&bob);
    until("both addresses are known", || {
        bob.ticket().addresses().len() == 2
    })
    .await;
    let mut addresses = bob.ticket().addresses();
    addresses.sort_by_key(|a| a.contains("quic"));
    let ticket = Ticket::from_parts(bob.peer_id(), &[] as &[String], &addresses).unwrap();
    let alice = peer(dialler()).await;
    let conn = alice.connect(&ticket).await.unwrap();
    let remote = conn.path().unwrap().remote.unwrap();
    assert!(remote.contains("quic-v1"), "{remote}");
}

#[tokio::test]
async fn a_held_back_circuit_gives_way_to_the_direct_path() {
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
async fn a_loser_is_taken_back() {
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
    // The connection attempt ends with the race, not at its timeout.
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

#[tokio::test]
async fn a_direct_dial_counts_each_of_its_ends() {
    let bob = peer(listener(&[])).await;
    accepting(&bob);
    until("both addresses are known", || {
        bob.ticket().addresses().len() == 2
    })
    .await;
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
        // Nothing is sent there, whoever names it.
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
    let mut config = server();
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
    // The relay's limit.
    let error = refused(&alice, &carol.ticket()).await;
    assert_eq!(causes(&error), [(Strategy::CircuitRelay, Cause::Limit)]);
    conn.close().await;
    until("the relay has closed the circuit", || {
        value(&relay.metrics(), "throughline_relay_circuits ") == 0
    })
    .await;
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
    // A circuit that is a fallback only makes room.
    let conn = alice.connect(&to_bob).await.unwrap();
    until_direct(&conn).await;
    alice.connect(&to_carol).await.unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn a_dropped_connect_takes_its_attempts_back() {
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
    stream.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"hello");
}
