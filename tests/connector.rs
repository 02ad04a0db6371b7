//! Two peers and a relay on loopback. The tests use the public API only.

use std::{net::Ipv4Addr, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::join};
use throughline::{
    Attempt, Cause, Config, Connector, Error, ErrorKind, PathKind, Ticket, server::Server,
};
use tokio::time::timeout;

use common::{
    PATIENCE, echo, echoed, echoing, exchange, free_ports, peer, relay, server_config, until,
    until_path, until_polled,
};

mod common;

fn config(relays: &[&Server]) -> Config {
    let mut config = common::config();
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config
}

/// Returns a ticket that leads through relays only.
fn through_relays(me: &Connector) -> Ticket {
    me.ticket().without_addresses()
}

#[tokio::test]
async fn without_a_relay_the_ticket_has_an_address_at_once() {
    for _ in 0..20 {
        let mut anywhere = Config::default();
        anywhere.port_mapping = false;
        let me = peer(anywhere).await;
        assert!(!me.ticket().addresses().is_empty());
    }
}

#[tokio::test]
async fn a_circuit_is_usable_at_once_and_carries_both_directions() {
    let relay = relay().await;
    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let bob = echoing(relayed.clone()).await;
    relayed.reserve = false;
    let alice = peer(relayed).await;
    let conn = alice.connect(&bob.ticket()).await.unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Relayed);
    assert_eq!(conn.peer_id(), bob.peer_id());
    echoed(&conn).await;
    // This is more than the 128 KiB that a stock relay lets through.
    let mut stream = echo(&conn).await.unwrap();
    exchange(&mut stream, &vec![7; 1 << 20]).await.unwrap();
    alice.close().await;
    bob.close().await;
}

#[tokio::test]
async fn a_direct_address_is_used_without_a_relay() {
    let bob = echoing(config(&[])).await;
    let alice = peer(config(&[])).await;
    // The listeners report their ports as soon as they are polled.
    until(|| !bob.ticket().addresses().is_empty()).await;
    let ticket = bob.ticket();
    let conn = alice.connect(&ticket).await.unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Direct);
    echoed(&conn).await;
}

#[tokio::test]
async fn a_stream_opened_on_the_circuit_moves_to_the_direct_path() {
    let relay = relay().await;
    let bob = echoing(config(&[&relay])).await;
    let mut dialler = config(&[&relay]);
    dialler.reserve = false;
    let alice = peer(dialler).await;
    let conn = alice.connect(&through_relays(&bob)).await.unwrap();
    let mut stream = echo(&conn).await.unwrap();
    until_path(&conn, PathKind::Direct).await;
    exchange(&mut stream, b"after").await.unwrap();
    exchange(&mut stream, &vec![3; 300_000]).await.unwrap();
    let metrics = alice.metrics();
    assert!(
        metrics.contains("nat_traversal_current_method{strategy=\"direct\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("nat_traversal_successes_total{strategy=\"circuit_relay\"} 1"));
}

/// The offer that a peer refuses goes over the circuit, or sealed through the relay when the link is up.
#[tokio::test]
async fn a_peer_that_keeps_to_its_relay_says_so_once() {
    let relay = relay().await;
    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let bob = echoing(relayed).await;
    for warm in [true, false] {
        let mut dialler = config(&[&relay]);
        dialler.reserve = warm;
        dialler.upgrade_backoff = Duration::from_millis(10);
        let alice = peer(dialler).await;
        let conn = alice.connect(&bob.ticket()).await.unwrap();
        let failed = || {
            let attempts = conn.attempts().into_iter();
            let failed = attempts.filter(|attempt| attempt.cause == Some(Cause::Refused));
            failed.collect::<Vec<_>>()
        };
        until(|| !failed().is_empty()).await;
        let within = Duration::from_millis(300);
        let error = conn.wait_direct(within).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(
            error.attempts(),
            failed(),
            "nothing else was tried, and nothing twice"
        );
        let strategies = failed().len();
        assert!((1..4).contains(&strategies), "{:?}", failed());
        for attempt in failed() {
            let reason = attempt.reason.unwrap();
            assert!(reason.ends_with("the peer keeps to its relay"), "{reason}");
        }
        echoed(&conn).await;
        alice.close().await;
    }
}

#[tokio::test]
async fn whoever_waits_for_a_direct_path_gets_it_or_learns_of_the_end() {
    let relay = relay().await;
    let bob = echoing(config(&[&relay])).await;
    let alice = peer(config(&[&relay])).await;
    let conn = alice.connect(&through_relays(&bob)).await.unwrap();
    let path = conn.wait_direct(PATIENCE).await.unwrap();
    assert_eq!(path.kind, PathKind::Direct);

    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let carol = peer(relayed).await;
    let conn = alice.connect(&carol.ticket()).await.unwrap();
    let (ended, ()) = join(conn.wait_direct(PATIENCE), conn.close()).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionClosed);
}

#[tokio::test]
async fn an_unreachable_peer_is_an_error_that_lists_what_was_tried() {
    let relay = relay().await;
    let mut dialler = config(&[&relay]);
    dialler.reserve = false;
    let alice = peer(dialler).await;
    let bob = peer(config(&[&relay])).await;
    let ticket = through_relays(&bob);
    bob.close().await;
    let error = timeout(PATIENCE, alice.connect(&ticket))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(!error.attempts().is_empty(), "{error}");
}

/// Returns the reason of a connect that a relay refuses, and alice's metrics.
async fn refused(alice: &Connector, ticket: &Ticket, kind: ErrorKind) -> (String, String) {
    let connect = timeout(PATIENCE, alice.connect(ticket)).await.unwrap();
    let error = connect.unwrap_err();
    assert_eq!(error.kind(), kind);
    let reason = error.attempts()[0].reason.clone().unwrap();
    (reason, alice.metrics())
}

#[tokio::test]
async fn a_peer_without_a_reservation_is_reported_as_such() {
    let relay = relay().await;
    let bob = peer(config(&[&relay])).await;
    let ticket = through_relays(&bob);
    bob.close().await;
    // The link to the relay is up before, or is dialled for the connect. The two cases ask the
    // relay in different ways.
    for warm in [true, false] {
        let mut dialler = config(&[&relay]);
        dialler.reserve = warm;
        let alice = peer(dialler).await;
        let (reason, metrics) = refused(&alice, &ticket, ErrorKind::Unreachable).await;
        assert!(reason.contains("holds no reservation"), "{reason}");
        let failure = "strategy=\"circuit_relay\",reason=\"no_reservation\"} 1";
        assert!(metrics.contains(failure), "{metrics}");
    }
}

/// Starts a relay with room for one circuit of each peer.
async fn small_relay() -> Server {
    let mut server = server_config();
    server.relay.circuits_per_peer = std::num::NonZeroUsize::MIN;
    Server::start(server).await.unwrap()
}

#[tokio::test]
async fn another_relay_is_used_if_the_first_is_full() {
    let (full, other) = (small_relay().await, relay().await);
    let relayed = |relays: &[&Server]| {
        let mut relayed = config(relays);
        relayed.direct = false;
        relayed
    };
    let carol = peer(relayed(&[&full])).await;
    let bob = peer(relayed(&[&full, &other])).await;
    let named = |relay: &Server, ticket: &Ticket| {
        let addresses = relay.addresses();
        ticket.relays().iter().any(|a| addresses.contains(a))
    };
    until(|| {
        [&full, &other]
            .iter()
            .all(|relay| named(relay, &bob.ticket()))
    })
    .await;
    let alice = peer(relayed(&[&full])).await;
    let _conn = alice.connect(&carol.ticket()).await.unwrap();
    let ticket = bob.ticket();
    let connect = timeout(PATIENCE, alice.connect(&ticket)).await;
    let conn = connect.unwrap().unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Relayed);
    let tried = conn.attempts();
    let refused = |attempt: &Attempt| attempt.cause == Some(Cause::Limit);
    assert!(tried.iter().any(refused), "{tried:?}");
}

#[tokio::test]
async fn a_full_relay_is_reported_as_such() {
    let relay = small_relay().await;
    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let bob = peer(relayed.clone()).await;
    let carol = peer(relayed.clone()).await;
    for warm in [true, false] {
        let mut dialler = relayed.clone();
        dialler.reserve = warm;
        let alice = peer(dialler).await;
        let _conn = alice.connect(&bob.ticket()).await.unwrap();
        let (reason, metrics) = refused(&alice, &carol.ticket(), ErrorKind::LimitExceeded).await;
        assert!(reason.contains("no room"), "{reason}");
        let failure = "strategy=\"circuit_relay\",reason=\"limit\"} 1";
        assert!(metrics.contains(failure), "{metrics}");
    }
}

#[tokio::test]
async fn an_address_that_others_can_dial_is_confirmed_and_leads_the_ticket() {
    let relay = relay().await;
    let mut listener = config(&[&relay]);
    listener.autonat_retry = Duration::from_secs(5);
    let bob = peer(listener).await;
    let name = "throughline_confirmed_addresses ";
    let confirmed = |line: &str| line.starts_with(name) && !line.ends_with(" 0");
    until(|| bob.metrics().lines().any(confirmed)).await;
    let report = bob.report().await.unwrap();
    assert_eq!(bob.ticket().addresses()[0], report.confirmed[0]);
    assert!(report.listening.contains(&report.confirmed[0]));
}

/// A peer that has read the other's last byte may close the connection at once. The other's `close`
/// must not see that as a lost connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_is_closed_in_good_order_by_a_peer_that_leaves_at_its_end() {
    let bob = peer(config(&[])).await;
    let alice = peer(config(&[])).await;
    until(|| !bob.ticket().addresses().is_empty()).await;
    let ticket = bob.ticket();
    for round in 0..100 {
        let ask = async {
            let conn = alice.connect(&ticket).await.unwrap();
            let mut stream = conn.open("echo/1").await.unwrap();
            stream.write_all(b"request").await.unwrap();
            stream.close().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
            conn.close().await;
        };
        let answer = async {
            let conn = bob.accept().await.unwrap();
            let (_, mut stream) = conn.accept_stream().await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            let closed = stream.close().await;
            assert!(closed.is_ok(), "round {round}: {closed:?}");
            assert_eq!(conn.closed().await, ErrorKind::ConnectionClosed);
        };
        timeout(PATIENCE, join(ask, answer)).await.unwrap();
    }
}

#[tokio::test]
async fn closing_tells_the_peer() {
    let relay = relay().await;
    close_is_told(config(&[&relay]), config(&[&relay])).await;
}

#[tokio::test]
async fn closing_tells_the_peer_over_a_relay_that_only_the_ticket_names() {
    let relay = relay().await;
    let mut listener = config(&[&relay]);
    listener.direct = false;
    let mut dialler = config(&[]);
    dialler.direct = false;
    close_is_told(dialler, listener).await;
}

/// Connects and closes at once, again and again. Returns the errors. The attempts of one connection are
/// often still under way when the next one begins.
async fn connected_and_closed(rounds: usize, burst: u32) -> Vec<Error> {
    let mut server = server_config();
    server.relay.circuit_burst = burst.try_into().unwrap();
    let relay = Server::start(server).await.unwrap();
    let bob = peer(config(&[&relay])).await;
    let alice = peer(config(&[&relay])).await;
    let ticket = bob.ticket().without_addresses();
    let accepting = tokio::spawn(async move { while bob.accept().await.is_some() {} });
    let mut errors = Vec::new();
    for _ in 0..rounds {
        match timeout(PATIENCE, alice.connect(&ticket)).await.unwrap() {
            Ok(conn) => timeout(PATIENCE, conn.close()).await.unwrap(),
            Err(error) => errors.push(error),
        }
    }
    accepting.abort();
    errors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_is_reached_again_right_after_a_close() {
    let errors = connected_and_closed(200, 1000).await;
    assert!(errors.is_empty(), "{errors:?}");
}

/// ICE fails only because there is no circuit, so the limit is the reason of every failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_relay_that_was_asked_for_too_many_circuits_is_reported_as_such() {
    let errors = connected_and_closed(40, 5).await;
    assert!(!errors.is_empty());
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    }
}

async fn close_is_told(dialler: Config, listener: Config) {
    let (alice, bob) = (peer(dialler).await, peer(listener).await);
    let ticket = bob.ticket();
    let (accepted, conn) = tokio::join!(bob.accept(), alice.connect(&ticket));
    let (accepted, conn) = (accepted.unwrap(), conn.unwrap());
    let mut stream = conn.open("chat/1").await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let (protocol, _kept) = accepted.accept_stream().await.unwrap();
    assert_eq!(protocol, "chat/1");
    conn.close().await;
    let reason = timeout(PATIENCE, accepted.closed()).await.unwrap();
    assert_eq!(reason, ErrorKind::ConnectionClosed);
    assert!(accepted.accept_stream().await.is_none());
    assert_eq!(
        accepted.open("x").await.unwrap_err().kind(),
        ErrorKind::ConnectionClosed
    );
}

#[tokio::test]
async fn a_reservation_comes_back_on_another_relay() {
    let (first, second) = (relay().await, relay().await);
    let mut listener = config(&[&first, &second]);
    listener.relay_reservations = 1;
    listener.direct = false;
    let bob = echoing(listener).await;
    let before = bob.ticket().relays();
    first.shutdown().await;
    // The rest of the ticket may change while it still names the first relay.
    let moved = |relays: Vec<String>| !relays.is_empty() && relays != before;
    until(|| moved(bob.ticket().relays())).await;
    let after = bob.ticket();
    let mut dialler = config(&[]);
    dialler.direct = false;
    let alice = peer(dialler).await;
    let conn = alice.connect(&after).await.unwrap();
    echoed(&conn).await;
}

#[tokio::test]
async fn a_reservation_comes_back_when_its_relay_does() {
    let data = tempfile::tempdir().unwrap();
    let mut server = server_config();
    server.data = Some(data.path().to_owned());
    // The second server is found where the first was.
    server.port = free_ports();
    let first = Server::start(server.clone()).await.unwrap();
    let mut listener = config(&[&first]);
    listener.direct = false;
    let bob = echoing(listener).await;
    first.shutdown().await;
    until(|| bob.ticket().relays().is_empty()).await;
    // QUIC keeps its socket until the peers have had time to hear of the close.
    let port = server.port;
    until_polled(|| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()).await;
    let _second = Server::start(server).await.unwrap();
    until(|| !bob.ticket().relays().is_empty()).await;
    let mut dialler = config(&[]);
    dialler.direct = false;
    let alice = peer(dialler).await;
    let conn = alice.connect(&bob.ticket()).await.unwrap();
    echoed(&conn).await;
}

#[tokio::test]
async fn a_relay_that_cannot_be_reached_is_named_in_the_error() {
    let mut config = config(&[]);
    let id = peer(config.clone()).await.peer_id();
    config.relays = vec![format!("/ip4/127.0.0.1/tcp/1/p2p/{id}")];
    let error = Connector::builder()
        .config(config)
        .bind()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRelay);
    assert!(error.message().contains(&id.to_string()), "{error}");
}
