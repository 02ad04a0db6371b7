//! Sealed offers and early data on loopback. They need no circuit. The tests use the public API
//! only.

use std::{num::NonZeroUsize, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::join_all, join};
use throughline::{Config, Connection, Connector, ErrorKind, Identity, PathKind, server::Server};
use tokio::time::timeout;

use common::{
    PATIENCE, echo_streams, echoing, exchange, peer, relay, server_config, until_path, until_some,
};
use tap::Tap;

mod common;
#[path = "common/tap.rs"]
mod tap;

fn config(relay: &Server, direct: bool) -> Config {
    let mut config = Config::default();
    config.port_mapping = false;
    config.birthday = false;
    config.directory = false;
    config.direct = direct;
    config.connect_timeout = Duration::from_secs(5);
    config.relays = relay.addresses().to_vec();
    config
}

async fn peer_as(identity: Identity, config: Config) -> Connector {
    let builder = Connector::builder().identity(identity).config(config);
    builder.bind().await.unwrap()
}

/// Connects through the peer's relays only. The relay says what it serves some time after the link
/// is up, and a connect before that may be refused, so this tries again.
async fn connect(me: &Connector, peer: &Connector) -> Connection {
    let ticket = peer.ticket().without_addresses();
    let connected = timeout(PATIENCE, async {
        loop {
            if let Ok(connected) = me.connect(&ticket).await {
                return connected;
            }
        }
    });
    connected.await.expect("there is a path")
}

/// Accepts the next connection and echoes its streams.
async fn accept(me: &Connector) -> Connection {
    let connection = timeout(PATIENCE, me.accept()).await;
    let connection = connection.expect("somebody connects").unwrap();
    echo_streams(connection.clone());
    connection
}

/// Starts a peer that knows that its relay forwards. It asks for no circuit for one second.
async fn early_peer(relay: &Server) -> Connector {
    let mut config = config(relay, false);
    config.start_delays.circuit_relay = Duration::from_secs(1);
    informed_peer(config).await
}

/// Starts a peer that knows that its first relay forwards.
async fn informed_peer(config: Config) -> Connector {
    let me = peer(config).await;
    until_some(|| async {
        let report = me.report().await.unwrap();
        report.relays[0].forwards.then_some(())
    })
    .await;
    me
}

#[tokio::test]
async fn a_path_is_found_although_the_relay_has_no_circuit_left() {
    let mut one = server_config();
    one.relay.circuits = NonZeroUsize::MIN;
    let relay = Server::start(one).await.unwrap();
    let other = peer(config(&relay, false)).await;
    let listener = echoing(config(&relay, true)).await;
    let only = connect(&other, &listener).await;
    assert_eq!(only.path().unwrap().kind, PathKind::Relayed);

    let dialler = peer(config(&relay, true)).await;
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.peer_id(), listener.peer_id());
    assert_eq!(connected.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn a_peer_that_allows_no_direct_path_is_reached_by_the_circuit() {
    let relay = relay().await;
    let listener = echoing(config(&relay, false)).await;
    let dialler = peer(config(&relay, true)).await;
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.path().unwrap().kind, PathKind::Relayed);
}

#[tokio::test]
async fn an_early_stream_is_answered_before_there_is_a_path_and_goes_on_over_the_first_path() {
    let relay = relay().await;
    let listener = peer(config(&relay, true)).await;
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();

    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    assert_eq!(connection.peer_id(), listener.peer_id());
    let (answered, accepted) = join!(exchange(&mut stream, b"early"), accept(&listener));
    answered.unwrap();
    assert!(connection.path().is_none());
    assert_eq!(accepted.peer_id(), dialler.peer_id());
    assert!(accepted.path().is_none());

    let found = dialler.connect(&ticket).await.unwrap();
    assert_eq!(found.path().unwrap().kind, PathKind::Relayed);
    exchange(&mut stream, &[7; 300_000]).await.unwrap();
    assert_eq!(accepted.path().unwrap().kind, PathKind::Relayed);
    assert_eq!(listener.report().await.unwrap().connections, 1);
}

#[tokio::test]
async fn data_beyond_the_limit_of_early_data_is_not_lost() {
    let relay = relay().await;
    let listener = echoing(config(&relay, true)).await;
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();
    let (_connection, stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    let (mut writer, mut reader) = stream.split();
    let said: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let saying = async {
        writer.write_all(&said).await.unwrap();
        writer.close().await.unwrap();
    };
    let mut heard = Vec::new();
    let both = async { join!(saying, reader.read_to_end(&mut heard)) };
    let (_, read) = timeout(PATIENCE, both).await.expect("all of it comes back");
    read.unwrap();
    assert!(heard == said);
}

#[tokio::test]
async fn early_data_for_an_earlier_run_of_the_peer_goes_over_the_first_path() {
    let relay = relay().await;
    let identity = Identity::generate();
    let first = peer_as(identity.clone(), config(&relay, true)).await;
    let ticket = first.ticket().without_addresses();
    first.close().await;
    let listener = peer_as(identity, config(&relay, true)).await;

    let dialler = early_peer(&relay).await;
    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    let (answered, _accepted) = join!(exchange(&mut stream, b"late"), accept(&listener));
    answered.unwrap();
    assert!(connection.path().is_some());
}

#[tokio::test]
async fn after_an_offer_for_an_earlier_run_of_the_peer_the_circuit_signals() {
    let relay = relay().await;
    let identity = Identity::generate();
    let first = peer_as(identity.clone(), config(&relay, true)).await;
    let ticket = first.ticket().without_addresses();
    first.close().await;
    let listener = peer_as(identity, config(&relay, true)).await;

    let dialler = peer(config(&relay, true)).await;
    let (found, _accepted) = join!(dialler.connect(&ticket), accept(&listener));
    until_path(&found.unwrap(), PathKind::Direct).await;
}

/// The configuration of a peer that reserves at `tap` only.
fn tapped(tap: &Tap, direct: bool) -> Config {
    let mut config = Config::default();
    config.port_mapping = false;
    config.birthday = false;
    config.direct = direct;
    config.relays = vec![tap.address.clone()];
    config
}

fn id(of: &Connector) -> libp2p::PeerId {
    of.peer_id().to_string().parse().unwrap()
}

#[tokio::test]
async fn a_replayed_offer_is_refused_also_by_a_later_run_of_the_peer() {
    let mut tap = Tap::start().await;
    let identity = Identity::generate();
    let listener = peer_as(identity.clone(), tapped(&tap, true)).await;
    let ticket = listener.ticket().without_addresses();
    let to = id(&listener);

    let dialler = informed_peer(tapped(&tap, true)).await;
    let (connecting, leading) = (dialler.clone(), ticket.clone());
    tokio::spawn(async move { connecting.connect(&leading).await });
    let signalling = tap.offered().await;
    let asker = informed_peer(tapped(&tap, false)).await;
    let (_connection, mut stream) = asker.open(&ticket, "ask/1").await.unwrap();
    stream.write_all(b"order").await.unwrap();
    let order = tap.offered().await;

    for flight in [&signalling, &order] {
        assert!(tap.is_answered(to, flight).await);
        assert!(!tap.is_answered(to, flight).await);
    }
    listener.close().await;
    let listener = peer_as(identity, tapped(&tap, true)).await;
    for flight in [&signalling, &order] {
        assert!(!tap.is_answered(to, flight).await);
    }
    assert_eq!(listener.report().await.unwrap().connections, 0);
}

#[tokio::test]
async fn silent_offers_through_one_relay_do_not_block_those_through_another() {
    let (relay, mut tap) = (relay().await, Tap::start().await);
    let mut both = config(&relay, true);
    both.relays.push(tap.address.clone());
    let listener = peer(both).await;
    let held = async {
        while listener.ticket().relays().len() <= relay.addresses().len() {
            listener.report().await.unwrap();
        }
    };
    let held = timeout(PATIENCE, held).await;
    held.expect("the listener reserves at both relays");
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tap.open(id(&listener)).await);
    }

    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();
    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    let (answered, _accepted) = join!(exchange(&mut stream, b"early"), accept(&listener));
    answered.unwrap();
    assert!(connection.path().is_none());
}

#[tokio::test]
async fn the_peer_sees_which_stream_began_with_early_data() {
    let relay = relay().await;
    let listener = peer(config(&relay, true)).await;
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();
    let (connection, mut early) = dialler.open(&ticket, "ask/1").await.unwrap();
    assert!(!early.is_early());
    early.write_all(b"early").await.unwrap();
    let accepted = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let next = || timeout(PATIENCE, accepted.accept_stream());
    assert!(next().await.unwrap().unwrap().1.is_early());

    dialler.connect(&ticket).await.unwrap();
    let mut late = connection.open("ask/1").await.unwrap();
    late.write_all(b"late").await.unwrap();
    assert!(!next().await.unwrap().unwrap().1.is_early());
}

#[tokio::test]
async fn a_connection_that_no_path_follows_ends() {
    let relay = relay().await;
    let mut impatient = config(&relay, true);
    impatient.resume_timeout = Duration::from_secs(1);
    let listener = peer(impatient).await;
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();
    let (_connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    let (answered, accepted) = join!(exchange(&mut stream, b"early"), accept(&listener));
    answered.unwrap();
    dialler.close().await;
    let ended = timeout(PATIENCE, accepted.closed()).await;
    assert_eq!(ended.expect("the session ends"), ErrorKind::ConnectionLost);
    assert_eq!(listener.report().await.unwrap().connections, 0);
}

#[tokio::test]
async fn a_stream_to_an_unreachable_peer_fails_as_a_connect_does() {
    let relay = relay().await;
    let gone = peer(config(&relay, true)).await;
    let ticket = gone.ticket().without_addresses();
    gone.close().await;
    let dialler = peer(config(&relay, true)).await;
    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let read = timeout(PATIENCE, stream.read(&mut [0])).await;
    let error = throughline::Error::from(read.expect("the read ends").unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!error.attempts().is_empty());
    assert_eq!(connection.closed().await, ErrorKind::Unreachable);
}

#[tokio::test]
async fn open_refuses_wrong_arguments_at_once() {
    let relay = relay().await;
    let dialler = peer(config(&relay, true)).await;
    let own = dialler.open(&dialler.ticket(), "ask/1").await.unwrap_err();
    assert_eq!(own.kind(), ErrorKind::InvalidTicket);
    let listener = peer(config(&relay, true)).await;
    let unnamed = dialler.open(&listener.ticket(), "").await.unwrap_err();
    assert_eq!(unnamed.kind(), ErrorKind::InvalidProtocol);
}

#[tokio::test]
async fn a_circuit_that_starts_late_delays_no_offer() {
    let relay = relay().await;
    let listener = echoing(config(&relay, true)).await;
    let mut late = config(&relay, true);
    late.relays.clear();
    late.start_delays.circuit_relay = PATIENCE;
    let dialler = peer(late).await;
    let ticket = listener.ticket().without_addresses();
    let connected = dialler.connect(&ticket).await.unwrap();
    assert_eq!(connected.path().unwrap().kind, PathKind::Direct);
}

/// If sealed offers are enough, circuits wait for each other. They must not wait for ever.
#[tokio::test]
async fn each_of_many_simultaneous_connections_gets_its_circuit_in_the_end() {
    let relay = relay().await;
    let listeners = join_all((0..8).map(|_| echoing(config(&relay, true)))).await;
    let dialler = peer(config(&relay, true)).await;
    let connects = listeners.iter().map(|listener| connect(&dialler, listener));
    let connected = join_all(connects).await;
    let held = format!("throughline_relay_circuits {}", connected.len());
    let all = async {
        while !relay.metrics().lines().any(|line| line == held) {
            dialler.report().await.unwrap();
        }
    };
    let made = timeout(PATIENCE, all).await;
    assert!(made.is_ok(), "{}", relay.metrics());
    for connection in &connected {
        until_path(connection, PathKind::Direct).await;
    }
}
