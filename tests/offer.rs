//! Offers and early data, which need no circuit, on loopback, through the public API alone.
#![cfg(feature = "server")]

use std::{net::Ipv4Addr, num::NonZeroUsize, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use throughline::{
    Config, Connection, Connector, ErrorKind, Identity, PathKind, Stream,
    server::{Server, ServerConfig},
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay with room for so many circuits.
async fn relay(circuits: usize) -> Server {
    let mut config = ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config.relay.circuits = NonZeroUsize::new(circuits).unwrap();
    Server::start(config).await.unwrap()
}

/// A peer that has its link to the relay.
async fn peer(relay: &Server, direct: bool) -> Connector {
    peer_as(Identity::generate(), relay, direct).await
}

async fn peer_as(identity: Identity, relay: &Server, direct: bool) -> Connector {
    let builder = Connector::builder().identity(identity);
    builder.config(config(relay, direct)).bind().await.unwrap()
}

fn config(relay: &Server, direct: bool) -> Config {
    let mut config = Config::default();
    config.port_mapping = false;
    config.birthday = false;
    config.direct = direct;
    config.connect_timeout = Duration::from_secs(5);
    config.relays = relay.addresses().to_vec();
    config
}

/// Says a line on a stream and reads one back.
async fn ask(stream: &mut Stream, question: &[u8]) -> Vec<u8> {
    stream.write_all(question).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; question.len()];
    timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .expect("an answer comes")
        .unwrap();
    answer
}

/// Answers every stream of every connection with what it says; gives the connections as they come.
fn answering(me: &Connector) -> tokio::sync::mpsc::UnboundedReceiver<Connection> {
    let (told, connections) = tokio::sync::mpsc::unbounded_channel();
    let me = me.clone();
    tokio::spawn(async move {
        while let Some(connection) = me.accept().await {
            let _ = told.send(connection.clone());
            tokio::spawn(async move {
                while let Some((_, stream)) = connection.accept_stream().await {
                    let (mut writer, mut reader) = stream.split();
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 64 * 1024];
                        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                            writer.write_all(&buffer[..length]).await.unwrap();
                            writer.flush().await.unwrap();
                        }
                        let _ = writer.close().await;
                    });
                }
            });
        }
    });
    connections
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

/// Connects through the peer's relays alone. What the relay can do shows some time after the link
/// to it is up, so a refusal may be of that time.
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

#[tokio::test]
async fn a_path_is_found_although_the_relay_has_no_circuit_left() {
    let relay = relay(1).await;
    let (other, listener) = (peer(&relay, false).await, peer(&relay, true).await);
    accepting(&listener);
    let only = connect(&other, &listener).await;
    assert_eq!(only.path().unwrap().kind, PathKind::Relayed);

    let dialler = peer(&relay, true).await;
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.peer_id(), listener.peer_id());
    assert_eq!(connected.path().unwrap().kind, PathKind::Direct);
}

#[tokio::test]
async fn a_peer_that_allows_no_direct_path_is_reached_by_the_circuit() {
    let relay = relay(16).await;
    let (listener, dialler) = (peer(&relay, false).await, peer(&relay, true).await);
    accepting(&listener);
    let connected = connect(&dialler, &listener).await;
    assert_eq!(connected.path().unwrap().kind, PathKind::Relayed);
}

/// A peer that knows what its relay passes on, and asks it for no circuit within a second.
async fn early_peer(relay: &Server) -> Connector {
    let mut config = config(relay, false);
    config.start_delays.circuit_relay = Duration::from_secs(1);
    let me = Connector::builder().config(config).bind().await.unwrap();
    let knows = async {
        while !me.report().await.unwrap().relays[0].forwards {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, knows)
        .await
        .expect("the relay says what it can do");
    me
}

#[tokio::test]
async fn a_stream_is_answered_before_there_is_a_path_and_goes_on_over_the_first() {
    let relay = relay(16).await;
    let listener = peer(&relay, true).await;
    let mut connections = answering(&listener);
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();

    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    assert_eq!(connection.peer_id(), listener.peer_id());
    assert_eq!(ask(&mut stream, b"early").await, b"early");
    assert!(connection.path().is_none());
    let accepted = connections.recv().await.unwrap();
    assert_eq!(accepted.peer_id(), dialler.peer_id());
    assert!(accepted.path().is_none());

    let found = dialler.connect(&ticket).await.unwrap();
    assert_eq!(found.path().unwrap().kind, PathKind::Relayed);
    let bulk = vec![7; 300_000];
    assert_eq!(ask(&mut stream, &bulk).await, bulk);
    assert_eq!(accepted.path().unwrap().kind, PathKind::Relayed);
    assert!(
        connections.try_recv().is_err(),
        "the peer has one connection"
    );
}

#[tokio::test]
async fn more_than_a_relay_passes_on_early_is_not_lost() {
    let relay = relay(16).await;
    let listener = peer(&relay, true).await;
    let _connections = answering(&listener);
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
    let (_, read) = timeout(PATIENCE, async {
        futures::join!(saying, reader.read_to_end(&mut heard))
    })
    .await
    .expect("all of it comes back");
    read.unwrap();
    assert_eq!(heard, said);
}

#[tokio::test]
async fn without_early_data_the_stream_takes_the_first_path() {
    let relay = relay(16).await;
    let identity = Identity::generate();
    let first = peer_as(identity.clone(), &relay, true).await;
    // The ticket of a run that is over: what is sealed for that run is not taken.
    let ticket = first.ticket().without_addresses();
    first.close().await;
    let listener = peer_as(identity, &relay, true).await;
    let _connections = answering(&listener);

    let dialler = early_peer(&relay).await;
    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    assert_eq!(ask(&mut stream, b"late").await, b"late");
    assert!(connection.path().is_some());
}

#[tokio::test]
async fn a_stream_to_nobody_fails_as_a_connect_does() {
    let relay = relay(16).await;
    let gone = peer(&relay, true).await;
    let ticket = gone.ticket().without_addresses();
    gone.close().await;
    let dialler = peer(&relay, true).await;
    let (connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let error = timeout(PATIENCE, stream.read(&mut [0]))
        .await
        .expect("it ends");
    let error = throughline::Error::from(error.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!error.attempts().is_empty());
    assert_eq!(connection.closed().await, ErrorKind::Unreachable);
}

#[tokio::test]
async fn what_is_wrong_at_once_is_said_at_once() {
    let relay = relay(16).await;
    let dialler = peer(&relay, true).await;
    let own = dialler.open(&dialler.ticket(), "ask/1").await.unwrap_err();
    assert_eq!(own.kind(), ErrorKind::InvalidTicket);
    let listener = peer(&relay, true).await;
    let named = dialler.open(&listener.ticket(), "").await.unwrap_err();
    assert_eq!(named.kind(), ErrorKind::InvalidProtocol);
}

#[tokio::test]
async fn a_connection_that_no_path_follows_ends() {
    let relay = relay(16).await;
    let mut patient = config(&relay, true);
    patient.resume_timeout = Duration::from_secs(1);
    let listener = Connector::builder().config(patient).bind().await.unwrap();
    let mut connections = answering(&listener);
    let dialler = early_peer(&relay).await;
    let ticket = listener.ticket().without_addresses();
    let (_connection, mut stream) = dialler.open(&ticket, "ask/1").await.unwrap();
    assert_eq!(ask(&mut stream, b"early").await, b"early");
    let accepted = connections.recv().await.unwrap();
    dialler.close().await;
    let ended = timeout(PATIENCE, accepted.closed()).await;
    assert_eq!(ended.expect("it ends"), ErrorKind::ConnectionLost);
    assert_eq!(listener.report().await.unwrap().connections, 0);
}
