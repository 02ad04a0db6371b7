//! Tests announced lengths whose bytes are not sent. The receiver holds the bytes that have
//! arrived, and no more.
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, program::Program};
use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _, future::join_all,
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, core::upgrade::OutboundConnectionUpgrade as _,
    identity::Keypair, multiaddr::Protocol, noise, tcp,
};
use sha1::{Digest as _, Sha1};
use throughline::Ticket;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

mod common;
#[path = "common/stock.rs"]
mod stock;

/// How many connections there are. An allocation for each would show, and no limit of a server is
/// reached.
const STRANGERS: usize = 32;

/// How much more a server may hold for each connection that is not authenticated yet.
const PER_CONNECTION: usize = 64 * 1024;
/// How much more a server may hold for each peer. A peer costs some 70 KiB with its tasks, handlers
/// and four streams.
const PER_PEER: usize = 128 * 1024;

/// How much a program may grow by itself while it runs, by a thread or a piece of the heap.
const NOISE: usize = 4 * 1024 * 1024;

/// The head of a masked WebSocket frame of 250 MiB, as an attacker sends it.
const HUGE: &[u8] = b"\x82\xff\x00\x00\x00\x00\x0f\xa0\x00\x00\x01\x02\x03\x04";
/// The head of the longest masked WebSocket frame that is allowed.
const LONGEST: &[u8] = b"\x82\xff\x00\x00\x00\x00\x00\x04\x00\x00\x01\x02\x03\x04";
const PING: &[u8] = b"\x89\x80\x00\x00\x00\x00";

struct Server {
    program: Program,
    ready: serde_json::Value,
}

impl Server {
    fn start() -> Self {
        let program = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"]);
        let ready = program.event("ready");
        Self { program, ready }
    }

    fn libp2p(&self, kind: &str) -> Multiaddr {
        let addresses = self.ready["addresses"].as_array().unwrap().iter();
        let mut texts = addresses.filter_map(|address| address.as_str());
        texts
            .find(|text| text.contains(kind))
            .unwrap()
            .parse()
            .unwrap()
    }

    fn tcp(&self, kind: &str) -> SocketAddr {
        let address = self.libp2p(kind);
        let mut parts = address.iter();
        match (parts.next(), parts.next()) {
            (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => (ip, port).into(),
            other => panic!("{other:?}"),
        }
    }

    fn http(&self) -> SocketAddr {
        let url = self.ready["http"].as_str().unwrap();
        url.trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .unwrap()
    }

    fn turn(&self) -> SocketAddr {
        let mut urls = self.ready["turn"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|url| url.as_str());
        let url = urls.find_map(|url| url.strip_suffix("?transport=tcp"));
        url.unwrap().trim_start_matches("turn:").parse().unwrap()
    }

    fn memory(&self) -> usize {
        memory(&self.program)
    }

    /// Opens connections with `open` from many addresses, and checks how much the server's memory
    /// grows.
    async fn withstands<F, T>(&self, what: &str, most: usize, open: impl Fn(IpAddr) -> F)
    where
        F: Future<Output = T>,
    {
        let strangers = |count: usize| {
            let each = (0..count).map(|n| open(IpAddr::from([127, 0, 1, (n % 24) as u8 + 1])));
            timeout(PATIENCE, join_all(each))
        };
        // The first round makes the server allocate what it allocates once.
        drop(strangers(8).await.expect("a first round"));
        let before = self.memory();
        let mut held = strangers(STRANGERS).await.expect("a round of everyone");
        let grown = self.memory().saturating_sub(before);
        eprintln!("{what}: {} bytes for each", grown / STRANGERS);
        assert!(grown <= STRANGERS * most + NOISE, "{what}: {grown} bytes");
        // New connections reuse the memory of old ones. For a moment there are both.
        for _ in 0..3 {
            drop(held);
            held = strangers(STRANGERS).await.expect("another round");
        }
        let grown = self.memory().saturating_sub(before);
        assert!(
            grown <= 2 * STRANGERS * most + NOISE,
            "{what}: {grown} bytes are kept"
        );
    }
}

/// Returns how much memory a program has asked the system for. The resident memory would not show
/// an allocation whose pages nobody has touched yet.
fn memory(program: &Program) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<usize>().unwrap() * 1024
}

async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends `bytes` and waits for the first bytes of the answer.
async fn say(from: IpAddr, to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(from, to).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = [0; 256];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    stream
}

/// Sends `bytes`, which get no answer, and then asks for an answer on another connection, so that
/// the server has had time to read `bytes`.
async fn announce(from: IpAddr, to: SocketAddr, bytes: &[u8], http: SocketAddr) -> TcpStream {
    let mut stream = connect(from, to).await;
    stream.write_all(bytes).await.unwrap();
    drop(
        say(
            from,
            http,
            b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await,
    );
    stream
}

async fn websocket(from: IpAddr, to: SocketAddr) -> TcpStream {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    say(from, to, request.as_bytes()).await
}

/// Agrees on `protocol` by multistream-select.
async fn negotiate(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), protocol: &str) {
    let mut words = b"\x13/multistream/1.0.0\n".to_vec();
    words.push(protocol.len() as u8 + 1);
    words.extend(format!("{protocol}\n").as_bytes());
    stream.write_all(&words).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, words);
}

/// Opens a connection, secures it with noise, and agrees on yamux.
async fn secured(from: IpAddr, to: SocketAddr) -> noise::Output<tcp::tokio::TcpStream> {
    let keys = Keypair::generate_ed25519();
    let mut stream = tcp::tokio::TcpStream(connect(from, to).await);
    negotiate(&mut stream, "/noise").await;
    let noise = noise::Config::new(&keys).unwrap();
    let (_, mut stream) = noise.upgrade_outbound(stream, "/noise").await.unwrap();
    negotiate(&mut stream, "/yamux/1.0.0").await;
    stream
}

/// Connects a stock peer to `address`. It can open any stream, and runs until the last part of the
/// result is dropped.
async fn peer(address: Multiaddr) -> (libp2p_stream::Control, PeerId, JoinSet<()>) {
    let mut swarm = stock::node(|_| libp2p_stream::Behaviour::new());
    let Some(Protocol::P2p(id)) = address.iter().last() else {
        panic!("{address} has no peer");
    };
    let control = swarm.behaviour().new_control();
    swarm.dial(address).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while swarm.next().await.is_some() {} });
    (control, id, tasks)
}

#[tokio::test]
async fn a_websocket_frame_of_250_mib_is_not_allocated() {
    let server = Server::start();
    let to = server.tcp("/ws/");
    server
        .withstands(
            "WebSocket, above the limit",
            PER_CONNECTION,
            |from| async move {
                let mut stream = websocket(from, to).await;
                stream.write_all(HUGE).await.unwrap();
                // The server sends a close frame with the status "too long", and ends the
                // connection.
                let mut end = Vec::new();
                stream.read_to_end(&mut end).await.unwrap();
                assert!(end.starts_with(b"\x88\x02\x03\xf1"), "{end:x?}");
                stream
            },
        )
        .await;
    server
        .withstands(
            "WebSocket, the longest message",
            PER_CONNECTION,
            |from| async move {
                let mut stream = websocket(from, to).await;
                stream.write_all(&[PING, LONGEST].concat()).await.unwrap();
                let mut pong = [0; 2];
                stream.read_exact(&mut pong).await.unwrap();
                assert_eq!(&pong, b"\x8a\x00");
                stream
            },
        )
        .await;
}

#[tokio::test]
async fn lengths_in_the_negotiation_are_not_allocated() {
    let server = Server::start();
    let to = server.tcp("/tcp/");
    let hello = b"\x13/multistream/1.0.0\n";
    let noise = b"\x07/noise\n";
    server
        .withstands("multistream-select", PER_CONNECTION, |from| async move {
            say(from, to, &[&hello[..], b"\xff\x7f"].concat()).await
        })
        .await;
    server
        .withstands("noise", PER_CONNECTION, |from| async move {
            say(from, to, &[&hello[..], noise, b"\xff\xff"].concat()).await
        })
        .await;
}

/// The announcements are a frame of yamux with 1 MiB, and a window update by 4 GiB.
#[tokio::test]
async fn lengths_in_yamux_are_not_allocated() {
    let server = Server::start();
    let to = server.tcp("/tcp/");
    for announced in [
        &b"\0\0\0\x01\0\0\0\x01\0\x10\0\0"[..],
        b"\0\x01\0\x01\0\0\0\x01\xff\xff\xff\xff",
    ] {
        server
            .withstands("yamux", PER_CONNECTION, |from| async move {
                let mut stream = secured(from, to).await;
                // The server answers the ping when it has also read what follows.
                let ping = b"\0\x02\0\x01\0\0\0\0\0\0\0\x07";
                stream
                    .write_all(&[&ping[..], announced].concat())
                    .await
                    .unwrap();
                stream.flush().await.unwrap();
                let mut pong = [0; 12];
                while pong[1] != 2 {
                    stream.read_exact(&mut pong).await.unwrap();
                }
                stream
            })
            .await;
    }
}

#[tokio::test]
async fn lengths_in_streams_of_peers_are_not_allocated() {
    let server = Server::start();
    let address = server.libp2p("/tcp/");
    let address = &address;
    for (protocol, announced) in [
        ("/libp2p/circuit/relay/0.2.0/hop", &b"\x80\x20"[..]),
        ("/throughline/circuit/1", b"\x80\x20"),
        ("/throughline/offer/1", b"\x80\x20"),
        ("/libp2p/autonat/2/dial-request", b"\x80\x20"),
        ("/ipfs/id/push/1.0.0", b"\x80\x20"),
    ] {
        server
            .withstands(protocol, PER_PEER, |_| async move {
                let (mut control, id, tasks) = peer(address.clone()).await;
                let protocol = StreamProtocol::new(protocol);
                let mut streams = Vec::new();
                for _ in 0..4 {
                    // Not every server has every protocol.
                    let Ok(mut stream) = control.open_stream(id, protocol.clone()).await else {
                        continue;
                    };
                    let _ = stream.write_all(announced).await;
                    let _ = stream.flush().await;
                    streams.push(stream);
                }
                (streams, tasks)
            })
            .await;
    }
}

#[tokio::test]
async fn lengths_in_turn_and_http_are_not_allocated() {
    let server = Server::start();
    let http = server.http();
    let turn = server.turn();
    for announced in [
        &b"\x40\x00\xff\xff"[..],
        b"\x00\x03\xff\xfc\x21\x12\xa4\x42000000000000",
    ] {
        server
            .withstands("TURN over TCP", PER_CONNECTION, |from| {
                announce(from, turn, announced, http)
            })
            .await;
    }
    for announced in [
        &b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n"[..],
        b"POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nRange: bytes=0-99999999999\r\n",
    ] {
        server
            .withstands("HTTP", PER_CONNECTION, |from| {
                announce(from, http, announced, http)
            })
            .await;
    }
}

/// Returns the Sec-WebSocket-Accept of a key (RFC 6455 section 4.2.2).
fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    data_encoding::BASE64.encode(&Sha1::digest(text))
}

/// Starts a server that answers each WebSocket request with a frame that announces 250 MiB. The
/// frame is unmasked, as a server's are. The second result counts these frames.
async fn hostile_relay() -> (SocketAddr, Arc<AtomicUsize>) {
    let announced = Arc::new(AtomicUsize::new(0));
    let counter = announced.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await?);
                }
                let request = String::from_utf8_lossy(&request);
                let key = request
                    .lines()
                    .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
                    .unwrap_or_default();
                let response = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                    accept_key(key)
                );
                stream.write_all(response.as_bytes()).await?;
                let mut head = HUGE[..10].to_vec();
                head[1] &= 0x7f;
                stream.write_all(&head).await?;
                counter.fetch_add(1, Ordering::Relaxed);
                // The connection stays until the victim closes it.
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await
            });
        }
    });
    (address, announced)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_of_hostile_relays_costs_little_memory() {
    let (relay, announced) = hostile_relay().await;
    let addresses: Vec<String> = (0..16)
        .map(|_| {
            let id = PeerId::from(Keypair::generate_ed25519().public());
            format!("/ip4/127.0.0.1/tcp/{}/ws/p2p/{id}", relay.port())
        })
        .collect();
    let peer = PeerId::from(Keypair::generate_ed25519().public()).to_string();
    let ticket = Ticket::from_parts(peer.parse().unwrap(), addresses, []).unwrap();
    let mut most = 0;
    let victim = Program::start(&["connect", &ticket.to_string()]);
    let watched = async {
        let status = format!("/proc/{}/status", victim.id());
        while let Ok(status) = fs::read_to_string(&status)
            // A program that has ended is a name without memory until it is waited for.
            && let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            most = line
                .trim()
                .trim_end_matches(" kB")
                .parse::<usize>()
                .unwrap();
            // The high-water mark ends with the process, so it is read while the process runs.
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, watched).await.expect("the connect fails");
    eprintln!("the victim held {most} KiB at most");
    assert!(
        announced.load(Ordering::Relaxed) > 0,
        "the relays were dialled"
    );
    // This is what the program needs while it dials sixteen relays. The attack once took it to 4
    // GiB.
    assert!(most < 96 * 1024, "{most} KiB");
}
