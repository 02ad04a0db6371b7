//! Tests streams with the traits of tokio, between two peers on loopback.

use throughline::{Connection, Connector};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    time::timeout,
};

mod common;
use common::{PATIENCE, config, peer};

/// Connects two peers without a relay.
async fn pair() -> (Connector, Connection, Connector, Connection) {
    let (me, other) = (peer(config()).await, peer(config()).await);
    let ticket = other.ticket();
    let (mine, theirs) = tokio::join!(me.connect(&ticket), other.accept());
    (me, mine.unwrap(), other, theirs.unwrap())
}

#[tokio::test]
async fn halves_are_copied_until_they_are_shut_down() {
    let exchange = async {
        let (_me, mine, _other, theirs) = pair().await;
        let (mut send, mut recv) = mine.open("echo/1").await.unwrap().split();
        let echo = tokio::spawn(async move {
            let (_, stream) = theirs.accept_stream().await.unwrap();
            let (mut send, mut recv) = stream.split();
            let copied = tokio::io::copy(&mut recv, &mut send).await.unwrap();
            send.shutdown().await.unwrap();
            copied
        });
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let mut back = Vec::new();
        let write = async {
            send.write_all(&sent).await?;
            send.shutdown().await
        };
        let (written, read) = tokio::join!(write, recv.read_to_end(&mut back));
        written.unwrap();
        assert_eq!(read.unwrap(), sent.len());
        assert!(back == sent);
        assert_eq!(echo.await.unwrap(), sent.len() as u64);
    };
    timeout(PATIENCE, exchange).await.unwrap();
}

#[tokio::test]
async fn a_stream_is_buffered_and_its_end_is_read() {
    let exchange = async {
        let (_me, mine, _other, theirs) = pair().await;
        let mut here = BufStream::new(mine.open("lines/1").await.unwrap());
        here.write_all(b"one\ntwo").await.unwrap();
        here.flush().await.unwrap();
        let (_, stream) = theirs.accept_stream().await.unwrap();
        let mut there = BufStream::new(stream);
        let mut line = String::new();
        there.read_line(&mut line).await.unwrap();
        assert_eq!(line, "one\n");
        here.shutdown().await.unwrap();
        line.clear();
        there.read_line(&mut line).await.unwrap();
        assert_eq!(line, "two");
        assert_eq!(there.read(&mut [0]).await.unwrap(), 0);
    };
    timeout(PATIENCE, exchange).await.unwrap();
}
