use std::{future::poll_fn, net::Ipv4Addr};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, channel::mpsc};
use libp2p::tcp::tokio::TcpStream;
use tokio::{net, task::JoinHandle, time::timeout};

use super::*;
use crate::core::yamux::MAX_PIECE;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
const MOST: usize = 100_000;
const STREAMS: usize = 8;

async fn connected() -> (TcpStream, TcpStream) {
    let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, other) = tokio::join!(net::TcpStream::connect(address), listener.accept());
    (TcpStream(one.unwrap()), TcpStream(other.unwrap().0))
}

/// Serves a connection, and gives the streams that come.
fn served(mut muxer: Muxer<TcpStream>) -> (mpsc::UnboundedReceiver<Stream>, JoinHandle<()>) {
    let (sender, streams) = mpsc::unbounded();
    let serving = poll_fn(move |cx| {
        loop {
            match Pin::new(&mut muxer).poll_inbound(cx) {
                Poll::Ready(Ok(stream)) => _ = sender.unbounded_send(stream),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut muxer).poll(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    });
    (streams, tokio::spawn(serving))
}

fn total(window: &Window) -> usize {
    window.lock().unread.total()
}

async fn until(condition: impl Fn() -> bool) {
    let turned = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, turned).await.expect("the condition");
}

#[tokio::test]
async fn what_nobody_reads_stops_at_the_window_of_the_connection() {
    let (ours, theirs) = connected().await;
    let ours = Yamux::bounded(MOST, 300_000).over(ours, Mode::Server);
    let window = ours.window().unwrap();
    let mut theirs = Yamux::holding(1).over(theirs, Mode::Client);
    let (mut streams, serving) = served(ours);
    let mut writing = Vec::new();
    for _ in 0..STREAMS {
        let opened = poll_fn(|cx| Pin::new(&mut theirs).poll_outbound(cx));
        let mut stream = opened.await.unwrap();
        writing.push(tokio::spawn(async move {
            while stream.write_all(&[7; 10_000]).await.is_ok() {}
        }));
    }
    let (_none, peer) = served(theirs);
    until(|| total(&window) >= MOST).await;
    assert!(total(&window) < MOST + MAX_PIECE as usize);
    // Reading makes room for more bytes of any stream.
    let mut first = streams.next().await.unwrap();
    let read = first.read(&mut [0; 1000]).await.unwrap();
    assert!(read > 0);
    until(|| total(&window) >= MOST).await;
    // A wider window and the end of a stream make room, too.
    window.set(3 * MOST);
    until(|| total(&window) >= 3 * MOST).await;
    assert!(total(&window) < 3 * MOST + MAX_PIECE as usize);
    let mut held = vec![first];
    while let Ok(Some(stream)) = timeout(PATIENCE / 100, streams.next()).await {
        held.push(stream);
    }
    drop(held);
    drop(streams);
    until(|| total(&window) == 0).await;
    writing.iter().for_each(JoinHandle::abort);
    serving.abort();
    peer.abort();
}
