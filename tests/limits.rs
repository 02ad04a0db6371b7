//! The limit of a connection's streams, on every kind of path.

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _,
    future::{join, join_all},
};
use throughline::{Config, Connection, ErrorKind, PathKind, Stream};
use tokio::time::timeout;

use common::{PATIENCE, config, echoing, exchange, peer, relay, until, until_path};

mod common;

/// Opens a stream and waits for an echo.
async fn held(connection: &Connection) -> Stream {
    common::echo(connection).await.expect("an echo")
}

/// Opens as many streams at once as are allowed, and holds them. One more is refused at once. When
/// one has ended, another may be opened.
async fn fill(connection: &Connection) {
    let most = Config::default().max_streams;
    let opens = join_all((0..most).map(|_| held(connection)));
    let mut streams = timeout(PATIENCE, opens).await.expect("every stream");
    let refused = connection.open("echo/1").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
    for stream in &mut streams {
        exchange(stream, b"all of them").await.unwrap();
    }
    let mut last = streams.pop().unwrap();
    last.close().await.unwrap();
    last.read_to_end(&mut Vec::new()).await.unwrap();
    until_room(connection).await;
}

/// Opens a stream as soon as another one has ended at both ends.
async fn until_room(connection: &Connection) {
    let opened = async {
        loop {
            match connection.open("echo/1").await {
                Ok(mut stream) => return exchange(&mut stream, b"again").await.unwrap(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::LimitExceeded),
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, opened).await.expect("a place is free");
}

#[tokio::test]
async fn a_circuit_carries_as_many_streams_as_are_allowed() {
    let relay = relay().await;
    let mut relayed = config();
    relayed.relays = relay.addresses().to_vec();
    relayed.direct = false;
    let bob = echoing(relayed.clone()).await;
    let alice = peer(relayed).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    assert_eq!(connection.path().unwrap().kind, PathKind::Relayed);
    fill(&connection).await;
}

#[tokio::test]
async fn a_direct_path_carries_as_many_streams_as_are_allowed() {
    for transport in ["udp/0/quic-v1", "tcp/0", "tcp/0/ws"] {
        let mut direct = config();
        direct.listen = vec![format!("/ip4/127.0.0.1/{transport}")];
        let bob = echoing(direct.clone()).await;
        let alice = peer(direct).await;
        until(|| !bob.ticket().addresses().is_empty()).await;
        let connection = alice.connect(&bob.ticket()).await.unwrap();
        assert_eq!(connection.path().unwrap().kind, PathKind::Direct);
        fill(&connection).await;
    }
}

/// Every stream moves, and takes two places only for a moment.
#[tokio::test]
async fn all_streams_move_from_a_circuit_to_a_direct_path() {
    let relay = relay().await;
    let mut moving = config();
    moving.relays = relay.addresses().to_vec();
    let bob = echoing(moving.clone()).await;
    moving.reserve = false;
    let alice = peer(moving).await;
    let ticket = bob.ticket().without_addresses();
    let connection = alice.connect(&ticket).await.unwrap();
    join(fill(&connection), until_path(&connection, PathKind::Direct)).await;
    until_room(&connection).await;
}

/// The peer has the lower limit.
#[tokio::test]
async fn a_stream_beyond_the_limit_of_the_peer_is_refused_at_once() {
    let mut few = config();
    few.max_streams = 4;
    let bob = echoing(few).await;
    let alice = peer(config()).await;
    until(|| !bob.ticket().addresses().is_empty()).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let _held = join_all((0..4).map(|_| held(&connection))).await;
    let mut refused = connection.open("echo/1").await.unwrap();
    let _ = refused.write_all(b"one more").await;
    let error = timeout(PATIENCE, refused.read(&mut [0])).await.unwrap();
    let error = throughline::Error::from(error.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
}
