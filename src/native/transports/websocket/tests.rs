//! Tests with stock peers.

use std::future::Future;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, future};
use libp2p::{
    Transport as _,
    core::{
        Endpoint,
        transport::{Boxed, PortUse},
    },
    tcp,
};
use tokio::{io::AsyncReadExt as _, net::TcpListener, time::timeout};

use super::{frame::MAX_SENT_LEN, *};
use crate::testing::PATIENCE;

const OPTIONS: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::New,
};

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Bytes for S {}

type AnyTransport = Boxed<Box<dyn Bytes>>;

fn tcp() -> tcp::tokio::Transport {
    tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
}

fn ours() -> AnyTransport {
    let transport =
        WebSocketTransport::new(tcp(), Roots::load(None).unwrap(), Forwarded::default());
    transport
        .map(|stream, _| Box::new(stream) as Box<dyn Bytes>)
        .boxed()
}

fn stock() -> AnyTransport {
    let transport = libp2p_websocket::Config::new(tcp());
    transport
        .map(|stream, _| Box::new(stream) as Box<dyn Bytes>)
        .boxed()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("out of time")
}

/// Makes a connection from `dialler` to `listener`, and returns the addresses that the listener
/// reported.
async fn connect(
    mut dialler: AnyTransport,
    mut listener: AnyTransport,
) -> ([Box<dyn Bytes>; 2], [Multiaddr; 2]) {
    let any = "/ip4/127.0.0.1/tcp/0/ws".parse().unwrap();
    listener.listen_on(ListenerId::next(), any).unwrap();
    let address = listener.next().await.unwrap().into_new_address().unwrap();
    let dial = dialler.dial(address.clone(), OPTIONS).unwrap();
    let accept = async {
        let (upgrade, from) = listener.next().await.unwrap().into_incoming().unwrap();
        (upgrade.await, from)
    };
    let (dialled, (accepted, from)) = within(future::join(dial, accept)).await;
    ([dialled.unwrap(), accepted.unwrap()], [address, from])
}

/// Moves `len` bytes in pieces of `piece` bytes from one end to the other, and back at the same
/// time.
async fn exchange(ends: [Box<dyn Bytes>; 2], len: usize, piece: usize) {
    let bytes: Vec<u8> = (0..len).map(|n| (n >> 4) as u8).collect();
    let talk = async |stream: Box<dyn Bytes>| {
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; len];
        let send = async {
            for piece in bytes.chunks(piece) {
                write.write_all(piece).await.unwrap();
                write.flush().await.unwrap();
            }
        };
        future::join(send, async { read.read_exact(&mut back).await.unwrap() }).await;
        assert!(back == bytes);
        (read, write)
    };
    let [one, other] = ends;
    let ((mut read, _writer), (_reader, mut write)) =
        within(future::join(talk(one), talk(other))).await;
    within(async { write.close().await.unwrap() }).await;
    let mut rest = Vec::new();
    within(async { read.read_to_end(&mut rest).await.unwrap() }).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn stock_peers_connect_in_both_directions() {
    // The longest message of a stock peer, see `MAX_MESSAGE_LEN`.
    const NOISE_BUFFER: usize = 192 * 1024;
    for (dialler, listener) in [(ours(), stock()), (stock(), ours()), (ours(), ours())] {
        let (ends, [address, from]) = connect(dialler, listener).await;
        for address in [address, from] {
            assert_eq!(address.iter().nth(2), Some(Protocol::Ws("/".into())));
        }
        exchange(ends, 4_000_000, NOISE_BUFFER).await;
    }
    for piece in [1, 125, 126, 65_535, MAX_SENT_LEN] {
        let (ends, _) = connect(stock(), ours()).await;
        exchange(ends, piece * 3, piece).await;
    }
}

#[tokio::test]
async fn a_server_that_redirects_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!(
        "/ip4/127.0.0.1/tcp/{}/ws",
        server.local_addr().unwrap().port()
    );
    let dial = ours().dial(address.parse().unwrap(), OPTIONS).unwrap();
    let redirect = async {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        let location = elsewhere.local_addr().unwrap();
        let response = format!("HTTP/1.1 302 Found\r\nLocation: ws://{location}/\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, response.as_bytes())
            .await
            .unwrap();
        stream
    };
    let (dialled, _stream) = within(future::join(dial, redirect)).await;
    let error = dialled.err().unwrap().to_string();
    assert!(error.contains("status 302"), "{error}");
    let visited = futures::FutureExt::now_or_never(elsewhere.accept());
    assert!(visited.is_none());
}
