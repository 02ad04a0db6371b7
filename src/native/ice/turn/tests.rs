//! Tests of the client with this library's server, and with malicious servers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
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
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

mod lasting;

use super::{
    LastUse, Roots, Server, TurnRelays,
    allocation::{Allocation, Families},
    frame,
};
use crate::{
    Config, TurnServer,
    core::candidate::CandidateKind,
    event::{Cause, Strategy},
    native::{
        ice::gather::{Gathered, LocalCandidate},
        udp::{Addresses, Receiver, Sockets, TurnCarrier as _},
    },
    report::NatReport,
    server::turn::testing::Turn,
    testing::{settle, until_polled},
};

const SOON: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_millis(50);

/// A peer with sockets and a TURN client.
struct Peer {
    sockets: Sockets,
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    relays: TurnRelays,
}

impl Peer {
    fn new(server: Server) -> Self {
        Self::lingering(server, LINGER)
    }

    fn lingering(server: Server, linger: Duration) -> Self {
        let sockets = Sockets::bind(Addresses::default()).unwrap();
        let current = Arc::new(watch::Sender::new(Gathered::default()));
        let nat = Arc::default();
        let roots = Roots::load(None).unwrap();
        let relays = TurnRelays::start(&sockets, vec![server], &roots, linger, (&current, &nat));
        Self {
            sockets,
            current,
            nat,
            relays,
        }
    }

    /// Waits until there are `count` relayed candidates.
    async fn relayed(&self, count: usize) -> Vec<LocalCandidate> {
        let mut current = self.current.subscribe();
        let enough = current.wait_for(|now| now.candidates.len() == count);
        let found = timeout(SOON, enough).await.unwrap().unwrap();
        found.candidates.clone()
    }
}

/// Forwards every datagram that it receives.
struct Inbox(mpsc::UnboundedSender<(SocketAddr, SocketAddr, Vec<u8>)>);

impl Receiver for Inbox {
    fn receive(&self, _: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        let _ = self.0.send((source, destination, data.to_vec()));
    }
}

/// Makes a datagram whose first byte is that of DTLS.
fn datagram(n: u8) -> Vec<u8> {
    vec![22, n, n, n, n]
}

async fn relays_both_ways(over_tcp: bool) {
    let turn = Turn::start().await;
    datagrams_cross(&turn, turn.server(over_tcp)).await;
}

/// The server is bound to all interfaces of a machine that has several.
#[tokio::test]
async fn the_relayed_address_is_of_the_interface_that_was_asked() {
    let turn = Turn::start_at(Ipv4Addr::UNSPECIFIED).await;
    for (interface, over_tcp) in [
        ([127, 0, 0, 1], false),
        ([127, 0, 0, 2], false),
        ([127, 0, 0, 3], true),
    ] {
        let interface = interface.into();
        // An answer from another address is not taken for the server's.
        let peer = Peer::new(turn.server_at(interface, over_tcp));
        let _hold = peer.relays.hold();
        assert_eq!(peer.relayed(1).await[0].addr.ip(), interface);
    }
}

async fn datagrams_cross(turn: &Turn, server: Server) {
    let peer = Peer::new(server);
    let _hold = peer.relays.hold();
    let [relayed] = peer.relayed(1).await[..] else {
        panic!("the server gives more than one address");
    };
    assert_eq!(relayed.kind(), CandidateKind::Relayed);
    assert_eq!(turn.allocations(), 1);

    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let far_addr = far.local_addr().unwrap();
    let (sender, mut received) = mpsc::unbounded_channel();
    let inbox: Arc<dyn Receiver> = Arc::new(Inbox(sender));
    peer.sockets.route_source(far_addr, &inbox);

    // This looks like a check: it waits for its permission, and needs no channel.
    let mut buffer = [0; 64];
    peer.sockets.send(relayed.addr, far_addr, &[0; 8], 8).await;
    assert_eq!(
        timeout(SOON, far.recv(&mut buffer)).await.unwrap().unwrap(),
        8
    );

    // The server grants an address, the permission and a channel. Then the channel carries data.
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
        let received = timeout(SOON, received.recv()).await.unwrap();
        assert_eq!(received, Some((far_addr, relayed.addr, datagram(n + 100))));
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

/// A proxy over TCP that leaves out the answers that bind a channel.
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
async fn a_channel_works_although_its_answer_is_lost() {
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
    assert!(
        peer.current.borrow().candidates.is_empty(),
        "an unwanted candidate"
    );
    settle().await;
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
        until_polled(|| tasks() <= idle).await;
    }
    // The address stays when it is needed again before the time is up.
    let hold = peer.relays.hold();
    let first = peer.relayed(1).await;
    drop(hold);
    let _hold = peer.relays.hold();
    assert!(timeout(2 * LINGER, peer.relayed(0)).await.is_err());
    assert_eq!(peer.relayed(1).await, first);
    // Dropping the peer gives the allocation back, although a hold still lives.
    drop(peer);
    turn.wait_for_allocations(0).await;
}

#[tokio::test]
async fn an_unneeded_allocation_is_given_back_over_udp() {
    timeout(SOON, gives_back(false)).await.unwrap();
}

#[tokio::test]
async fn an_unneeded_allocation_is_given_back_over_tcp() {
    timeout(SOON, gives_back(true)).await.unwrap();
}

/// Starts a server that answers every datagram with the result of `answer`, and counts the
/// datagrams.
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
    assert!(more.await.is_err(), "the client asks again");
    assert!(peer.current.borrow().candidates.is_empty());
}

/// Answers with 300 (Try Alternate) and refers to the server `to`.
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
    // The connection may be closed in order or not.
    let _ = closed.expect("the connection stays open");
    let again = timeout(Duration::from_millis(200), listener.accept());
    assert!(again.await.is_err(), "the client tries again at once");
}

#[tokio::test]
async fn a_failing_server_is_reported_while_addresses_are_wanted() {
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
async fn debug_hides_the_password() {
    let server = named("192.0.2.1:1".parse().unwrap(), "");
    assert!(!format!("{server:?}").contains("hunter2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_answers_do_not_panic(frames in prop::collection::vec(
        (0usize..4, prop::collection::vec(any::<u8>(), 0..100)), 0..20,
    )) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sockets = Sockets::bind(Addresses::default()).unwrap();
            let addr = "127.0.0.1:9".parse().unwrap();
            let (server, ends, used) = (named(addr, ""), (addr, addr), Arc::<LastUse>::default());
            let allocations = [
                Allocation::over_udp(&server, ends, &sockets, Families::V6, &used),
                Allocation::over_stream(&server, ends, &sockets, Families::V6, &used),
            ];
            for (kind, mut frame) in frames {
                // Bytes that look like TURN get further.
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
