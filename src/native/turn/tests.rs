//! The client against our own server, and against servers that mean no good.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use stun_types::{
    attribute::{AlternateServer, ErrorCode, Nonce, Realm},
    message::{Message, MessageWrite as _, MessageWriteExt as _, MessageWriteVec},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::{
    Relays, Roots, Server,
    allocation::{Allocation, Families},
    frame,
};
use crate::{
    Config, TurnServer,
    core::candidate::CandidateKind,
    event::{Cause, Strategy},
    native::{
        gather::{Gathered, LocalCandidate},
        socket::{Addresses, Carrier as _, Receiver, Sockets},
    },
    report::NatReport,
    server::turn::testing::Turn,
};

const SOON: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_millis(50);

/// A peer with sockets, and what it wants relayed.
struct Peer {
    sockets: Sockets,
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    relays: Relays,
}

impl Peer {
    fn new(server: Server) -> Self {
        let sockets = Sockets::bind(Addresses::default()).unwrap();
        let current = Arc::new(watch::Sender::new(Gathered::default()));
        let nat = Arc::default();
        let roots = Roots::load(None).unwrap();
        let relays = Relays::start(&sockets, vec![server], &roots, LINGER, (&current, &nat));
        Self {
            sockets,
            current,
            nat,
            relays,
        }
    }

    /// The relayed candidates once there are `count`.
    async fn relayed(&self, count: usize) -> Vec<LocalCandidate> {
        let mut current = self.current.subscribe();
        let enough = current.wait_for(|now| now.candidates.len() == count);
        let found = timeout(SOON, enough).await.unwrap().unwrap();
        found.candidates.clone()
    }
}

/// Hands on what it receives.
struct Inbox(Mutex<mpsc::Sender<(SocketAddr, SocketAddr, Vec<u8>)>>);

impl Receiver for Inbox {
    fn receive(&self, _: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        let _ = self
            .0
            .lock()
            .unwrap()
            .send((source, destination, data.to_vec()));
    }
}

/// DTLS by its first byte.
fn datagram(n: u8) -> Vec<u8> {
    vec![22, n, n, n, n]
}

async fn relays_both_ways(over_tcp: bool) {
    let turn = Turn::start().await;
    datagrams_cross(&turn, turn.server(over_tcp)).await;
}

/// A wildcard host on a machine with several interfaces.
#[tokio::test]
async fn the_relayed_address_is_of_the_interface_that_was_asked() {
    let turn = Turn::start_at(Ipv4Addr::UNSPECIFIED).await;
    for (interface, over_tcp) in [
        ([127, 0, 0, 1], false),
        ([127, 0, 0, 2], false),
        ([127, 0, 0, 3], true),
    ] {
        let interface = interface.into();
        // An answer from elsewhere is none of the server's.
        let peer = Peer::new(turn.server_at(interface, over_tcp));
        let _hold = peer.relays.hold();
        assert_eq!(peer.relayed(1).await[0].addr.ip(), interface);
    }
}

async fn datagrams_cross(turn: &Turn, server: Server) {
    let peer = Peer::new(server);
    let _hold = peer.relays.hold();
    let [relayed] = peer.relayed(1).await[..] else {
        panic!("one family");
    };
    assert_eq!(relayed.kind(), CandidateKind::Relayed);
    assert_eq!(turn.allocations(), 1);

    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let far_addr = far.local_addr().unwrap();
    let (sender, received) = mpsc::channel();
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox(Mutex::new(sender)));
    peer.sockets.route_source(far_addr, &inbox);

    // As of a check: it waits for its permission, and needs no channel.
    let mut buffer = [0; 64];
    peer.sockets.send(relayed.addr, far_addr, &[0; 8], 8).await;
    assert_eq!(
        timeout(SOON, far.recv(&mut buffer)).await.unwrap().unwrap(),
        8
    );

    // An address, the permission, a channel; then what the channel carries.
    let (mut left, mut n) = (20, 0);
    while left > 0 {
        left -= usize::from(turn.granted() == 3);
        n = (n + 1) % 100;
        let mut both = datagram(n);
        both.extend(&datagram(n)[..3]);
        peer.sockets.send(relayed.addr, far_addr, &both, 5).await;
        for len in [5, 3] {
            let (got, from) = timeout(SOON, far.recv_from(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            assert_eq!((&buffer[..got], from), (&datagram(n)[..len], relayed.addr));
        }
        far.send_to(&datagram(n + 100), relayed.addr).await.unwrap();
        let received = loop {
            match received.try_recv() {
                Ok(received) => break received,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(received, (far_addr, relayed.addr, datagram(n + 100)));
    }
}

#[tokio::test]
async fn datagrams_cross_over_udp() {
    timeout(SOON, relays_both_ways(false)).await.unwrap();
}

#[tokio::test]
async fn datagrams_cross_over_tcp() {
    timeout(SOON, relays_both_ways(true)).await.unwrap();
}

/// Hands on what comes over TCP, but for answers that a channel is bound.
async fn without_bound_channels(server: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let pass = async move {
        let (mut asking, mut asked) = listener.accept().await.unwrap().0.into_split();
        let server = TcpStream::connect(server).await.unwrap();
        let (mut answering, mut answered) = server.into_split();
        let answers = async {
            let mut buffer = Vec::new();
            while answering.read_buf(&mut buffer).await.unwrap() > 0 {
                while let Some(frame) = frame::first(&buffer).unwrap() {
                    if !buffer.starts_with(&[0x01, 0x09]) {
                        asked.write_all(&buffer[..frame.end]).await.unwrap();
                    }
                    buffer.drain(..frame.end);
                }
            }
        };
        let _ = tokio::join!(tokio::io::copy(&mut asking, &mut answered), answers);
    };
    (address, tokio::spawn(pass))
}

#[tokio::test]
async fn a_channel_is_used_whose_answer_is_lost() {
    let turn = Turn::start().await;
    let mut server = turn.server(true);
    let url = server.url.to_string();
    let address = url
        .trim_start_matches("turn:")
        .trim_end_matches("?transport=tcp");
    let (proxy, task) = without_bound_channels(address.parse().unwrap()).await;
    server.url = format!("turn:{proxy}?transport=tcp").parse().unwrap();
    timeout(SOON, datagrams_cross(&turn, server)).await.unwrap();
    task.abort();
}

async fn gives_back(over_tcp: bool) {
    let turn = Turn::start().await;
    let peer = Peer::new(turn.server(over_tcp));
    assert!(peer.current.borrow().candidates.is_empty(), "nobody asked");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let idle = tasks();
    for _ in 0..3 {
        let holds = [peer.relays.hold(), peer.relays.hold()];
        peer.relayed(1).await;
        drop(holds);
        peer.relayed(0).await;
        turn.wait_for_allocations(0).await;
        while tasks() > idle {
            tokio::task::yield_now().await;
        }
    }
    // Somebody needs it again before the time is up: it stays.
    let hold = peer.relays.hold();
    let first = peer.relayed(1).await;
    drop(hold);
    let _hold = peer.relays.hold();
    assert!(timeout(2 * LINGER, peer.relayed(0)).await.is_err());
    assert_eq!(peer.relayed(1).await, first);
    // A connection that lives on does not keep what the program gave up.
    drop(peer);
    turn.wait_for_allocations(0).await;
}

#[tokio::test]
async fn what_nobody_needs_is_given_back_over_udp() {
    timeout(SOON, gives_back(false)).await.unwrap();
}

#[tokio::test]
async fn what_nobody_needs_is_given_back_over_tcp() {
    timeout(SOON, gives_back(true)).await.unwrap();
}

/// Answers every datagram with what `answer` makes of it, and tells how many there were.
async fn fake(
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> (Server, watch::Receiver<u32>, JoinHandle<()>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = named(socket.local_addr().unwrap(), "");
    let (counted, count) = watch::channel(0);
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            counted.send_modify(|count| *count += 1);
            let _ = socket.send_to(&answer(&buffer[..len]), from).await;
        }
    });
    (server, count, task)
}

fn named(addr: SocketAddr, query: &str) -> Server {
    Server {
        url: format!("turn:{addr}{query}").parse().unwrap(),
        username: "u".into(),
        credential: "hunter2".into(),
    }
}

#[tokio::test]
async fn a_server_that_asks_for_credentials_again_is_left_alone() {
    let challenge = |request: &[u8]| {
        let request = Message::from_bytes(request).unwrap();
        let mut answer = Message::builder_error(&request, MessageWriteVec::new());
        let nonce = format!("{:x}", getrandom::u64().unwrap());
        let code = ErrorCode::builder(401).build().unwrap();
        answer.add_attribute(&code).unwrap();
        answer.add_attribute(&Realm::new("r").unwrap()).unwrap();
        answer.add_attribute(&Nonce::new(&nonce).unwrap()).unwrap();
        answer.finish()
    };
    let (server, count, _task) = fake(challenge).await;
    let peer = Peer::new(server);
    let _hold = peer.relays.hold();
    let mut asked = count.clone();
    timeout(SOON, asked.wait_for(|asked| *asked >= 2))
        .await
        .unwrap()
        .unwrap();
    let more = timeout(
        Duration::from_millis(500),
        asked.wait_for(|asked| *asked > 2),
    );
    assert!(more.await.is_err(), "still asking");
    assert!(peer.current.borrow().candidates.is_empty());
}

/// Answers with 300 (Try Alternate) and this server.
fn refer(request: &[u8], to: SocketAddr) -> Vec<u8> {
    let request = Message::from_bytes(request).unwrap();
    let mut answer = Message::builder_error(&request, MessageWriteVec::new());
    let code = ErrorCode::builder(300).build().unwrap();
    answer.add_attribute(&code).unwrap();
    answer.add_attribute(&AlternateServer::new(to)).unwrap();
    answer.finish()
}

#[tokio::test]
async fn another_server_is_asked_with_the_same_credentials() {
    let turn = Turn::start().await;
    let server = turn.server(false);
    let other = SocketAddr::new(server.url.host.parse().unwrap(), server.url.port);
    let (mut first, _count, _task) = fake(move |request| refer(request, other)).await;
    (first.username, first.credential) = (server.username, server.credential);
    let peer = Peer::new(first);
    let _hold = peer.relays.hold();
    peer.relayed(1).await;
    assert_eq!(turn.allocations(), 1);
}

#[tokio::test]
async fn servers_that_refer_to_each_other_are_left_alone() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    let (first, asked, _task) = fake(move |request| refer(request, addr)).await;
    let back = SocketAddr::new(first.url.host.parse().unwrap(), first.url.port);
    let second = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        let answer = refer(&buffer[..len], back);
        socket.send_to(&answer, from).await.unwrap();
    });
    let peer = Peer::new(first);
    let mut nat = peer.nat.subscribe();
    let _hold = peer.relays.hold();
    let told = timeout(SOON, nat.wait_for(|nat| !nat.hopeless.is_empty()));
    let why = told.await.unwrap().unwrap().hopeless[0].clone();
    assert_eq!(why.cause, Cause::Refused);
    assert!(why.reason.contains("another server"), "{why:?}");
    second.await.unwrap();
    assert_eq!(*asked.borrow(), 1);
}

#[tokio::test]
async fn a_server_of_another_kind_costs_one_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = named(listener.local_addr().unwrap(), "?transport=tcp");
    let peer = Peer::new(server);
    let _hold = peer.relays.hold();
    let (mut stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let garbage = b"SSH-2.0-OpenSSH_9.2\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, garbage)
        .await
        .unwrap();
    let mut sink = tokio::io::sink();
    let closed = timeout(SOON, tokio::io::copy(&mut stream, &mut sink)).await;
    // Closed in order or not: it is over.
    let _ = closed.expect("the connection stays open");
    let again = timeout(Duration::from_millis(200), listener.accept());
    assert!(again.await.is_err(), "it tries again at once");
}

#[tokio::test]
async fn a_server_that_gives_nothing_is_told_until_nobody_asks() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = closed.local_addr().unwrap();
    drop(closed);
    let peer = Peer::new(named(addr, "?transport=tcp"));
    let mut nat = peer.nat.subscribe();
    let hold = peer.relays.hold();
    let told = timeout(SOON, nat.wait_for(|nat| !nat.hopeless.is_empty()));
    let told = told.await.unwrap().unwrap().hopeless.clone();
    assert_eq!(
        (told[0].strategy, told[0].cause),
        (Strategy::Turn, Cause::Unreachable)
    );
    drop(hold);
    let cleared = timeout(SOON, nat.wait_for(|nat| nat.hopeless.is_empty()));
    cleared.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_check_tells_what_each_server_gives() {
    let turn = Turn::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("turn:{}?transport=tcp", closed.local_addr().unwrap());
    drop(closed);
    let Server {
        url,
        username,
        credential,
    } = turn.server(false);
    let server = |url: &str, credential: &str| TurnServer {
        url: url.to_owned(),
        username: username.clone(),
        credential: credential.to_owned(),
    };
    let config = Config {
        turn: vec![
            server(&url.to_string(), &credential),
            server(&turn.server(true).url.to_string(), &credential),
            server(&url.to_string(), "wrong"),
            server(&silent, &credential),
        ],
        ..Config::default()
    };
    let reports = config.check_turn().await.unwrap();
    assert_eq!(reports.len(), 4);
    for given in &reports[..2] {
        assert_eq!((given.relayed.len(), &given.error), (1, &None), "{given:?}");
        assert!(given.took.is_some());
    }
    for (refused, why) in reports[2..].iter().zip(["(401)", "cannot be connected to"]) {
        let error = refused.error.as_deref().unwrap();
        assert!(error.contains(why) && refused.relayed.is_empty(), "{error}");
    }
    assert_eq!(reports[3].server, silent);
    turn.wait_for_allocations(0).await;
}

#[tokio::test]
async fn no_password_is_printed() {
    let server = named("192.0.2.1:1".parse().unwrap(), "");
    assert!(!format!("{server:?}").contains("hunter2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_answer_panics(frames in prop::collection::vec(
        (0usize..4, prop::collection::vec(any::<u8>(), 0..100)), 0..20,
    )) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sockets = Sockets::bind(Addresses::default()).unwrap();
            let addr = "127.0.0.1:9".parse().unwrap();
            let allocations = [
                Allocation::over_udp(&named(addr, ""), (addr, addr), &sockets, Families::V6),
                Allocation::over_stream(&named(addr, ""), addr, &sockets, Families::V6),
            ];
            for (kind, mut frame) in frames {
                // What looks like TURN gets further.
                if frame.len() >= 20 && kind > 0 {
                    frame.truncate(frame.len() / 4 * 4);
                    let len = (frame.len() - 20) as u16;
                    frame[..2].copy_from_slice(&[[0x40, 0], [0x01, 0x13], [0x00, 0x17]][kind - 1]);
                    frame[2..4].copy_from_slice(&len.to_be_bytes());
                    frame[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
                }
                for allocation in &allocations {
                    allocation.take(Instant::now(), &frame);
                }
            }
        });
    }
}
