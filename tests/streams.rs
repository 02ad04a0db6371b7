//! Streams that one end cuts short, over every kind of path. The other end sees the code.
#![cfg(feature = "server")]

use std::io;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::join};
use throughline::{
    Config, Connection, Connector, Error, ErrorKind, PathKind, RecvStream, ResetCode, SendStream,
    server::Server,
};
use tokio::time::timeout;

use common::{PATIENCE, peer, relay, until, until_path};

mod common;

/// More bytes than every window holds, so that a writer has to wait for the peer.
const MUCH: usize = 16 << 20;

type Halves = (SendStream, RecvStream);

/// Opens a stream and accepts it. Returns the halves of its opener and of the other end.
async fn stream(opener: &Connection, other: &Connection) -> (Halves, Halves) {
    let open = async {
        let mut stream = opener.open("cut/1").await.unwrap();
        stream.write_all(b"first").await.unwrap();
        stream
    };
    let (opened, accepted) = join(open, other.accept_stream()).await;
    let (protocol, mut accepted) = accepted.unwrap();
    assert_eq!(protocol, "cut/1");
    accepted.read_exact(&mut [0; 5]).await.unwrap();
    (opened.split(), accepted.split())
}

/// Writes until writing fails. Returns the error.
async fn written(send: &mut SendStream) -> io::Error {
    let block = vec![0; 1 << 16];
    for _ in 0..MUCH / block.len() {
        if let Err(error) = timeout(PATIENCE, send.write_all(&block)).await.unwrap() {
            return error;
        }
    }
    panic!("{MUCH} bytes were written without an error");
}

#[track_caller]
fn assert_reset(error: io::Error, code: u32) {
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ResetCode::of(&error), Some(ResetCode(code)));
    let error = Error::from(error);
    assert_eq!(error.kind(), ErrorKind::StreamReset);
    assert_eq!(error.reset_code(), Some(ResetCode(code)));
    assert!(
        error.message().ends_with(&format!("code {code}")),
        "{error}"
    );
}

/// Cuts streams short at `near` in every way, and checks what both ends see.
async fn cut(near: &Connection, far: &Connection) {
    let ((mut send, mut recv), (mut far_send, mut far_recv)) = stream(near, far).await;
    send.reset(7);
    let read = timeout(PATIENCE, far_recv.read(&mut [0])).await.unwrap();
    assert_reset(read.unwrap_err(), 7);
    assert_reset(written(&mut far_send).await, 7);
    assert_reset(recv.read(&mut [0]).await.unwrap_err(), 7);

    let ((mut send, recv), (mut far_send, mut far_recv)) = stream(near, far).await;
    recv.stop(ResetCode(u32::MAX));
    assert_reset(written(&mut far_send).await, u32::MAX);
    // The other direction still works.
    send.write_all(b"on").await.unwrap();
    let mut on = [0; 2];
    let read = timeout(PATIENCE, far_recv.read_exact(&mut on)).await;
    read.unwrap().unwrap();
    assert_eq!(&on, b"on");

    let ((_send, recv), (mut far_send, _far_recv)) = stream(near, far).await;
    drop(recv);
    assert_reset(written(&mut far_send).await, 0);
}

/// Opens a stream that the other end does not serve.
async fn refused(near: &Connection, far: &Connection) {
    let mut stream = near.open("nobody/1").await.unwrap();
    let (protocol, unwanted) = far.accept_stream().await.unwrap();
    assert_eq!(protocol, "nobody/1");
    unwanted.refuse();
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    for error in [read.unwrap_err(), stream.write(b"x").await.unwrap_err()] {
        let error = Error::from(error);
        assert_eq!(error.kind(), ErrorKind::ProtocolRefused);
        assert_eq!(error.reset_code(), None);
    }
}

async fn connected(dialler: &Connector, listener: &Connector) -> (Connection, Connection) {
    let ticket = listener.ticket();
    let (near, far) = join(dialler.connect(&ticket), listener.accept()).await;
    (near.unwrap(), far.unwrap())
}

fn config(relay: &Server) -> Config {
    let mut config = common::config();
    config.relays = relay.addresses().to_vec();
    config
}

#[tokio::test]
async fn codes_cross_a_circuit_in_both_directions() {
    let relay = relay().await;
    let mut relayed = config(&relay);
    relayed.direct = false;
    let bob = peer(relayed.clone()).await;
    let alice = peer(relayed).await;
    let (near, far) = connected(&alice, &bob).await;
    assert_eq!(near.path().unwrap().kind, PathKind::Relayed);
    cut(&near, &far).await;
    cut(&far, &near).await;
    refused(&near, &far).await;
}

#[tokio::test]
async fn codes_cross_a_direct_path_in_both_directions() {
    let bob = peer(common::config()).await;
    let alice = peer(common::config()).await;
    until(|| !bob.ticket().addresses().is_empty()).await;
    let (near, far) = connected(&alice, &bob).await;
    assert_eq!(near.path().unwrap().kind, PathKind::Direct);
    cut(&near, &far).await;
    cut(&far, &near).await;
    refused(&far, &near).await;
}

#[tokio::test]
async fn a_code_arrives_after_the_stream_has_moved() {
    let relay = relay().await;
    let bob = peer(config(&relay)).await;
    let mut dialler = config(&relay);
    dialler.reserve = false;
    let alice = peer(dialler).await;
    let ticket = bob.ticket().without_addresses();
    let (near, far) = join(alice.connect(&ticket), bob.accept()).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let ((mut send, _recv), (_far_send, mut far_recv)) = stream(&near, &far).await;
    until_path(&near, PathKind::Direct).await;
    send.reset(9);
    let read = timeout(PATIENCE, far_recv.read(&mut [0])).await.unwrap();
    assert_reset(read.unwrap_err(), 9);
}
