//! Tests strangers at a TURN server. Each has an address of its own on loopback.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use stun_types::{
    AddressFamily,
    attribute::{ErrorCode, Nonce, Realm, Username},
    message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageWrite as _,
        MessageWriteExt as _, MessageWriteVec, Method,
    },
};
use throughline::server::{Server, ServerConfig};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use turn_client_proto::types::{
    attribute::{
        ChannelNumber, Data, Lifetime, RequestedAddressFamily, RequestedTransport, XorPeerAddress,
        XorRelayedAddress,
    },
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND},
};

use super::{
    measure::{Times, is_long, returns, unharmed},
    *,
};

/// The pause between rounds of five requests. An address may make 100 requests a second.
const PAUSE: Duration = Duration::from_millis(60);

/// The attacker, and the client that has to be served meanwhile.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// The deadline of the first frame, as in src/server/turn/deadlines.rs.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// A server with threads of its own, so that it does not share them with the attackers.
struct Served {
    server: Option<Server>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl std::ops::Deref for Served {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.server.take());
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn server(configure: impl FnOnce(&mut ServerConfig)) -> Served {
    let mut config = common::server_config();
    config.turn.secret = Some("secret".into());
    config.turn.allow_private_peers = true;
    configure(&mut config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let server = runtime.spawn(Server::start(config)).await.unwrap().unwrap();
    Served {
        server: Some(server),
        runtime: Some(runtime),
    }
}

/// Times rounds of allocations over TCP and UDP.
async fn allocated(server: &Server) -> Times {
    let round = async || {
        Client::tcp(server, HONEST).await.allocate().await.unwrap();
        let mut over_udp = Client::udp(server, HONEST).await;
        over_udp.allocate().await.unwrap();
        over_udp.release().await;
    };
    Times::of(PAUSE, round).await
}

fn turn(server: &Server, tcp: bool) -> SocketAddr {
    let mut urls = server.turn_urls().iter();
    let url = urls.find(|url| url.contains("tcp") == tcp).unwrap();
    let url = url.strip_prefix("turn:").unwrap();
    url.split('?').next().unwrap().parse().unwrap()
}

/// Returns how often `what` was refused for `reason`.
fn refused(server: &Server, what: &str, reason: &str) -> usize {
    let name = format!("throughline_refused_total{{what=\"{what}\",reason=\"{reason}\"}} ");
    let metrics = server.metrics();
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count.map_or(0, |count| count.parse().unwrap())
}

async fn dial(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// A client that does as it likes.
struct Client {
    wire: Wire,
    username: String,
    credential: String,
    /// The realm and the nonce, once the server has told them.
    challenge: Option<(String, String)>,
}

impl Client {
    async fn udp(server: &Server, from: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(turn(server, false)).await.unwrap();
        Self::over(server, Wire::Udp(socket))
    }

    async fn tcp(server: &Server, from: Ipv4Addr) -> Self {
        let stream = dial(from, turn(server, true)).await.unwrap();
        Self::over(server, Wire::Tcp(stream))
    }

    fn over(server: &Server, wire: Wire) -> Self {
        let user = server.turn_credentials().unwrap();
        Self {
            wire,
            username: user.username.clone(),
            credential: user.credential.clone(),
            challenge: None,
        }
    }

    async fn send(&mut self, frame: &[u8]) {
        match &mut self.wire {
            Wire::Udp(socket) => _ = socket.send(frame).await.unwrap(),
            Wire::Tcp(stream) => stream.write_all(frame).await.unwrap(),
        }
    }

    async fn receive(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 2048];
        let received = async {
            match &mut self.wire {
                Wire::Udp(socket) => {
                    let len = socket.recv(&mut frame).await.unwrap();
                    frame.truncate(len);
                }
                Wire::Tcp(stream) => {
                    stream.read_exact(&mut frame[..20]).await.unwrap();
                    let len = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
                    frame.truncate(20 + len);
                    stream.read_exact(&mut frame[20..]).await.unwrap();
                }
            }
        };
        timeout(SOON, received).await.expect("an answer");
        frame
    }

    /// Returns the answer to a request, which is signed once there is a challenge.
    async fn ask(
        &mut self,
        method: Method,
        fill: &(dyn Fn(&mut MessageWriteVec) + Sync),
    ) -> Vec<u8> {
        loop {
            let mut request = Message::builder_request(method, MessageWriteVec::new());
            fill(&mut request);
            let challenged = self.challenge.clone();
            if let Some((realm, nonce)) = &challenged {
                let user = self.username.clone();
                request
                    .add_attribute(&Username::new(&user).unwrap())
                    .unwrap();
                request.add_attribute(&Realm::new(realm).unwrap()).unwrap();
                request.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
                let key = LongTermKeyCredentials::new(user, self.credential.clone(), realm.clone());
                request
                    .add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1)
                    .unwrap();
            }
            self.send(&request.finish()).await;
            let answer = self.receive().await;
            if challenged.is_some() {
                return answer;
            }
            let told = Message::from_bytes(&answer).unwrap();
            let realm = told.attribute::<Realm>().unwrap().realm().to_owned();
            let nonce = told.attribute::<Nonce>().unwrap().nonce().to_owned();
            self.challenge = Some((realm, nonce));
        }
    }

    /// Returns the relayed address, or the code of the refusal.
    async fn allocate(&mut self) -> Result<SocketAddr, u16> {
        let answer = self
            .ask(ALLOCATE, &|request| {
                let family = RequestedAddressFamily::new(AddressFamily::IPV4);
                request.add_attribute(&RequestedTransport::new(17)).unwrap();
                request.add_attribute(&family).unwrap();
            })
            .await;
        let told = Message::from_bytes(&answer).unwrap();
        match code(&answer) {
            0 => {
                let relayed = told.attribute::<XorRelayedAddress>().unwrap();
                Ok(relayed.addr(told.transaction_id()))
            }
            code => Err(code),
        }
    }

    /// Ends the allocation (RFC 8656 section 7.2).
    async fn release(&mut self) {
        let end = |request: &mut MessageWriteVec| {
            request.add_attribute(&Lifetime::new(0)).unwrap();
        };
        assert_eq!(code(&self.ask(REFRESH, &end).await), 0);
    }

    async fn permit(&mut self, peer: SocketAddr) -> u16 {
        code(
            &self
                .ask(CREATE_PERMISSION, &|request| name(request, peer))
                .await,
        )
    }

    async fn bind(&mut self, number: u16, peer: SocketAddr) -> u16 {
        let bind = |request: &mut MessageWriteVec| {
            request.add_attribute(&ChannelNumber::new(number)).unwrap();
            name(request, peer);
        };
        code(&self.ask(CHANNEL_BIND, &bind).await)
    }

    async fn send_to(&mut self, peer: SocketAddr, data: &[u8]) {
        let mut send = Message::builder_indication(SEND, MessageWriteVec::new());
        name(&mut send, peer);
        send.add_attribute(&Data::new(data)).unwrap();
        self.send(&send.finish()).await;
    }

    /// Returns the next datagram of a peer, and the peer.
    async fn hear(&mut self) -> (SocketAddr, Vec<u8>) {
        let frame = self.receive().await;
        let told = Message::from_bytes(&frame).unwrap();
        assert!(told.has_method(DATA));
        let peer = told.attribute::<XorPeerAddress>().unwrap();
        let data = told.attribute::<Data<'_>>().unwrap();
        (peer.addr(told.transaction_id()), data.data().to_vec())
    }
}

fn name(message: &mut MessageWriteVec, peer: SocketAddr) {
    let peer = XorPeerAddress::new(peer, message.transaction_id());
    message.add_attribute(&peer).unwrap();
}

/// Returns the code of a refusal, or 0 for a success.
fn code(answer: &[u8]) -> u16 {
    let told = Message::from_bytes(answer).unwrap();
    match told.has_class(MessageClass::Success) {
        true => 0,
        false => told.attribute::<ErrorCode>().unwrap().code(),
    }
}

/// Connects, and sends a byte now and then until the server closes. Returns how long that took. The
/// pause between the bytes is the attack.
async fn drips(to: SocketAddr) -> Duration {
    let connected = Instant::now();
    let Ok(mut stream) = dial(STRANGER, to).await else {
        return Duration::ZERO;
    };
    let end = connected + PATIENCE;
    // This is the head of a long frame, which never ends.
    let head = [0, 3, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42];
    if stream.write_all(&head).await.is_err() {
        return connected.elapsed();
    }
    for byte in std::iter::repeat(7) {
        let mut closed = [0];
        let pause = Instant::now() + Duration::from_millis(250);
        if stream.write_all(&[byte]).await.is_err()
            || timeout_at(pause, stream.read(&mut closed)).await.is_ok()
        {
            break;
        }
        assert!(Instant::now() < end, "a dripping connection lasts");
    }
    connected.elapsed()
}

/// How many connections there are at once. Every machine has descriptors for so many. Each comes
/// back a tenth of a second after it is sent away, which makes 3,000 a second.
const STRANGERS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn dripping_connections_of_one_address_keep_nobody_out() {
    let server = server(|_| {}).await;
    let tcp = turn(&server, true);
    let quiet = allocated(&server).await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut strangers = JoinSet::new();
    for _ in 0..STRANGERS {
        let enough = enough.clone();
        strangers.spawn(async move {
            let mut longest = Duration::ZERO;
            for _ in 0..returns() {
                let again = Instant::now() + Duration::from_millis(100);
                longest = longest.max(drips(tcp).await);
                if enough.load(Ordering::Relaxed) || (!is_long() && longest > SOON) {
                    break;
                }
                sleep_until(again).await;
            }
            longest
        });
    }
    until_polled(|| refused(&server, "turn_connection", "address") > 1000).await;
    let attacked = allocated(&server).await;
    unharmed("row 9, dripping TURN connections", &quiet, &attacked);
    enough.store(true, Ordering::Relaxed);
    let lasted = strangers.join_all().await;
    // Connections that had a place lost it at the deadline, and the others ended at once.
    let share = 102;
    let longest = lasted.iter().max().unwrap();
    assert!(*longest < FIRST_FRAME + SOON, "{longest:?}");
    let held = lasted.iter().filter(|lasted| **lasted >= FIRST_FRAME);
    // In the long form, one connection after the other has had a place.
    assert!(is_long() || (1..=share).contains(&held.count()));
    assert!(refused(&server, "turn_connection", "deadline") > 0);
    // The places are free again.
    Client::tcp(&server, STRANGER)
        .await
        .allocate()
        .await
        .unwrap();
}

/// Returns the user name and the password in `/config.json`.
async fn page_credentials(server: &Server, from: Ipv4Addr) -> (String, String) {
    let host = server.http_url().strip_prefix("http://").unwrap();
    let mut stream = dial(from, host.parse().unwrap()).await.unwrap();
    let request = format!("GET /config.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let value = |name: &str| {
        let (_, after) = answer.split_once(&format!("\"{name}\":\"")).unwrap();
        after.split('"').next().unwrap().to_owned()
    };
    (value("username"), value("credential"))
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_credentials_give_one_address_its_share_and_no_more() {
    let server = server(|config| config.turn.allocations = 64.try_into().unwrap()).await;
    let quiet = allocated(&server).await;
    let mut held = Vec::new();
    let mut refusals = 0;
    for _ in 0..20 {
        let (username, credential) = page_credentials(&server, STRANGER).await;
        for _ in 0..2 {
            let mut client = Client::udp(&server, STRANGER).await;
            client.username.clone_from(&username);
            client.credential.clone_from(&credential);
            match client.allocate().await {
                Ok(_) => held.push(client),
                Err(code) => {
                    assert_eq!(code, 486);
                    refusals += 1;
                }
            }
        }
    }
    assert_eq!((held.len(), refusals), (8, 32));
    assert_eq!(refused(&server, "allocation", "address"), 32);
    // Clients that hold nothing go on asking.
    let mut asking = JoinSet::new();
    let (username, credential) = page_credentials(&server, STRANGER).await;
    for _ in 0..10 {
        let mut client = Client::udp(&server, STRANGER).await;
        client.username.clone_from(&username);
        client.credential.clone_from(&credential);
        asking.spawn(async move {
            for _ in 0..returns() {
                let again = Instant::now() + Duration::from_millis(250);
                assert!(client.allocate().await.is_err());
                sleep_until(again).await;
            }
        });
    }
    let attacked = allocated(&server).await;
    unharmed("row 10, fresh credentials", &quiet, &attacked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_relays_to_its_clients_and_not_to_itself() {
    let server = server(|_| {}).await;
    let quiet = allocated(&server).await;
    let (mut one, mut other) = (
        Client::udp(&server, STRANGER).await,
        Client::tcp(&server, HONEST).await,
    );
    let (of_one, of_other) = (
        one.allocate().await.unwrap(),
        other.allocate().await.unwrap(),
    );
    let stun = server
        .stun_urls()
        .iter()
        .map(|url| url.strip_prefix("stun:"));
    let mut own: Vec<SocketAddr> = stun.map(|url| url.unwrap().parse().unwrap()).collect();
    own.push(turn(&server, false));
    let quic = server.addresses().iter().filter_map(|address| {
        let (_, port) = address.split_once("/udp/")?;
        port.split('/').next()?.parse().ok()
    });
    own.extend(quic.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    assert_eq!(own.len(), 5, "{own:?}");
    assert_eq!(one.permit(of_other).await, 0);
    assert_eq!(other.permit(of_one).await, 0);
    let mut nested = Message::builder_request(ALLOCATE, MessageWriteVec::new());
    nested.add_attribute(&RequestedTransport::new(17)).unwrap();
    let nested = nested.finish();
    for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9)].map(IpAddr::from) {
        one.permit((ip, 9).into()).await;
        for own in &own {
            let own = SocketAddr::new(ip, own.port());
            assert_eq!(one.bind(0x4000, own).await, 403, "{own}");
            one.send_to(own, &nested).await;
        }
    }
    // If one of these datagrams had been relayed, it would come first, because sockets keep the
    // order.
    one.send_to(of_other, b"to a client").await;
    assert_eq!(other.hear().await, (of_one, b"to a client".to_vec()));
    other.send_to(of_one, b"and back").await;
    assert_eq!(one.hear().await, (of_other, b"and back".to_vec()));
    assert_eq!(refused(&server, "turn_datagram", "own"), 10);
    assert_eq!(refused(&server, "turn_peer", "own"), 10);
    // The attacker sends 10,000 of them a second.
    let own = own[own.len() - 1];
    let nesting = tokio::spawn(async move {
        for _ in 0..returns() {
            let again = Instant::now() + Duration::from_millis(10);
            for _ in 0..100 {
                one.send_to(own, &nested).await;
            }
            sleep_until(again).await;
        }
    });
    let attacked = allocated(&server).await;
    unharmed("row 11, nested TURN", &quiet, &attacked);
    nesting.abort();
}
