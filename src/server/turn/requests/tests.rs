//! Tests of the requests, from the view of clients.

mod ports;

use proptest::prelude::*;
use stun_types::{
    attribute::AttributeType,
    message::{IntegrityAlgorithm, Method},
};
use turn_client_proto::types::{
    attribute::{
        AdditionalAddressFamily, AddressErrorCode, Lifetime, RequestedTransport, XorRelayedAddress,
    },
    message::SEND,
};

use super::*;
use crate::server::{
    ServerConfig, TurnConfig, TurnCredentials,
    pool::Pools,
    settings::Settings,
    turn::{
        Own,
        stream::{Frames, queue},
    },
};
use crate::testing::until;

/// A server on loopback and one client.
struct Net {
    requests: Requests,
    user: TurnCredentials,
    client: Client,
    reply: Reply,
    answers: Frames,
}

impl Net {
    fn new(configure: impl FnOnce(&mut TurnConfig)) -> Self {
        Self::on(&["127.0.0.1"], configure)
    }

    /// Makes a server with relayed addresses at `hosts`.
    fn on(hosts: &[&str], configure: impl FnOnce(&mut TurnConfig)) -> Self {
        let mut config = ServerConfig::default();
        configure(&mut config.turn);
        let authority = Arc::new(Authority::new("secret").unwrap());
        let hour = Duration::from_secs(3600);
        let user = authority.issue("ann", hour, SystemTime::now());
        let metrics = Metrics::new(&config);
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let pools = Pools::new(&Settings::fixed(config), &metrics);
        let setup = Setup {
            access: Access::open(&pools),
            authority,
            addresses: RelayAddresses::new(hosts, vec![], None),
            own: Arc::new(Own::new([3478], [PUBLIC])),
            pools,
            usage: crate::server::usage::Usage::default(),
            metrics,
        };
        let (queue, answers) = queue(64 * 1024);
        Self {
            requests: Requests::new(setup),
            user,
            client: client(1),
            reply: Reply::Stream(queue),
            answers,
        }
    }

    fn fresh_user(&self, id: &str) -> TurnCredentials {
        let hour = Duration::from_secs(3600);
        self.requests.authority.issue(id, hour, SystemTime::now())
    }

    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        self.requests.receive(self.client, &self.reply, frame);
        self.answers.try_next()
    }

    fn signed(&self, method: Method, fill: impl FnOnce(&mut MessageWriteVec)) -> Vec<u8> {
        let mut message = Message::builder_request(method, MessageWriteVec::new());
        fill(&mut message);
        let address = self.client.address;
        let nonce = self.requests.authority.nonce(address, SystemTime::now());
        self.identify(&mut message, &nonce);
        message.finish()
    }

    fn identify(&self, message: &mut MessageWriteVec, nonce: &str) {
        let user = self.user.username.clone();
        message
            .add_attribute(&Username::new(&user).unwrap())
            .unwrap();
        message
            .add_attribute(&Realm::new("throughline").unwrap())
            .unwrap();
        message.add_attribute(&Nonce::new(nonce).unwrap()).unwrap();
        let (password, realm) = (self.user.credential.clone(), "throughline".to_owned());
        let key = LongTermKeyCredentials::new(user, password, realm);
        message
            .add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1)
            .unwrap();
    }

    /// Sends a signed request. Returns the code of a refusal, or 0 for success.
    fn ask(&mut self, method: Method, fill: impl FnOnce(&mut MessageWriteVec)) -> u16 {
        let request = self.signed(method, fill);
        code(&self.send(&request).unwrap())
    }
}

/// The address that the server announces.
const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

fn client(port: u16) -> Client {
    Client {
        over_tcp: true,
        local: ([127, 0, 0, 1], 3478).into(),
        address: ([192, 0, 2, 1], port).into(),
    }
}

fn code(answer: &[u8]) -> u16 {
    let message = Message::from_bytes(answer).unwrap();
    match message.has_class(MessageClass::Success) {
        true => 0,
        false => message.attribute::<ErrorCode>().unwrap().code(),
    }
}

fn udp(message: &mut MessageWriteVec) {
    message.add_attribute(&RequestedTransport::new(17)).unwrap();
}

fn peer(addr: &str) -> impl FnOnce(&mut MessageWriteVec) {
    let addr = addr.parse().unwrap();
    move |message| {
        let peer = XorPeerAddress::new(addr, message.transaction_id());
        message.add_attribute(&peer).unwrap();
    }
}

#[tokio::test]
async fn requests_without_credentials_are_challenged() {
    let mut net = Net::new(|_| {});
    let mut request = Message::builder_request(ALLOCATE, MessageWriteVec::new());
    udp(&mut request);
    let answer = net.send(&request.finish()).unwrap();
    assert_eq!(code(&answer), 401);
    let answer = Message::from_bytes(&answer).unwrap();
    assert_eq!(answer.attribute::<Realm>().unwrap().realm(), "throughline");
    assert!(answer.has_attribute(Nonce::TYPE));

    net.user.credential.push('x');
    assert_eq!(net.ask(ALLOCATE, udp), 401);
    net.user.username = "1:ann".into();
    net.user.credential = net.requests.authority.password("1:ann");
    assert_eq!(net.ask(ALLOCATE, udp), 401, "ended");
    assert!(!net.requests.has_allocation(net.client));
}

#[tokio::test]
async fn a_nonce_of_another_client_is_stale() {
    let mut net = Net::new(|_| {});
    let request = net.signed(ALLOCATE, udp);
    net.client = client(2);
    let answer = net.send(&request).unwrap();
    assert_eq!(code(&answer), 438);
    assert!(
        Message::from_bytes(&answer)
            .unwrap()
            .has_attribute(Nonce::TYPE)
    );
}

#[tokio::test]
async fn an_allocation_is_made_refreshed_and_ended() {
    let mut net = Net::new(|_| {});
    let request = net.signed(ALLOCATE, udp);
    let answer = net.send(&request).unwrap();
    assert_eq!(
        net.send(&request).as_ref(),
        Some(&answer),
        "a repeated request"
    );
    let answer = Message::from_bytes(&answer).unwrap();
    let relayed = answer.attribute::<XorRelayedAddress>().unwrap();
    let relayed = relayed.addr(answer.transaction_id());
    assert!(relayed.ip().is_loopback() && relayed.port() >= 49_152);
    assert_eq!(answer.attribute::<Lifetime>().unwrap().seconds(), LIFETIME);
    assert_eq!(net.ask(ALLOCATE, udp), 437, "another request");

    let ann = net.user.clone();
    let now = SystemTime::now();
    net.user = net
        .requests
        .authority
        .issue("eve", Duration::from_secs(60), now);
    assert_eq!(net.ask(REFRESH, |_| {}), 441, "another user");
    net.user = ann;
    assert_eq!(net.ask(REFRESH, |_| {}), 0);
    net.requests
        .expire(Instant::now() + Duration::from_secs(599));
    assert!(net.requests.has_allocation(net.client));
    let ends = |m: &mut MessageWriteVec| m.add_attribute(&Lifetime::new(0)).unwrap();
    assert_eq!(net.ask(REFRESH, ends), 0);
    assert!(!net.requests.has_allocation(net.client));
    assert_eq!(net.ask(REFRESH, |_| {}), 437);
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    net.requests
        .expire(Instant::now() + Duration::from_secs(601));
    assert!(!net.requests.has_allocation(net.client));
}

/// A jump makes nonces stale, because they carry a date. It does not end an allocation, which lasts
/// for a time, and its user can go on with a new nonce.
#[tokio::test]
async fn a_jump_of_the_wall_clock_ends_no_allocation() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    let (client, now) = (net.client, SystemTime::now());
    let year = Duration::from_secs(365 * 24 * 3600);
    for jumped in [now - year, now + year] {
        let request = net.signed(REFRESH, |_| {});
        let request = Message::from_bytes(&request).unwrap();
        let stale = net.requests.authenticate(client, &request, jumped);
        assert_eq!(stale.map(drop), Err(ErrorCode::STALE_NONCE));
        let mut again = Message::builder_request(REFRESH, MessageWriteVec::new());
        let nonce = net.requests.authority.nonce(client.address, jumped);
        net.identify(&mut again, &nonce);
        let again = again.finish();
        let again = Message::from_bytes(&again).unwrap();
        let user = net.requests.authenticate(client, &again, jumped);
        assert_eq!(user.unwrap().0, net.user.username);
    }
    net.requests
        .expire(Instant::now() + Duration::from_secs(599));
    assert!(net.requests.has_allocation(client));
}

#[tokio::test]
async fn quotas_hold() {
    let mut net = Net::new(|config| {
        config.allocations = 6.try_into().unwrap();
        config.allocations_per_user = 3.try_into().unwrap();
    });
    for (port, expected) in [(1, 0), (2, 0), (3, 0), (4, 486)] {
        net.client = client(port);
        assert_eq!(net.ask(ALLOCATE, udp), expected);
    }
    // One address gets no more than three quarters of so few places, even with another user.
    for (port, expected) in [(5, 0), (6, 486), (7, 486)] {
        net.user = net.fresh_user(&format!("fresh-{port}"));
        net.client = client(port);
        assert_eq!(net.ask(ALLOCATE, udp), expected);
    }
    for (last, expected) in [(2, 0), (3, 0), (4, 508)] {
        net.user = net.fresh_user("bob");
        net.client = Client {
            address: ([192, 0, 2, last], 1).into(),
            ..client(1)
        };
        assert_eq!(net.ask(ALLOCATE, udp), expected);
    }
    for port in 1..=5 {
        net.requests.close(client(port));
    }
    net.client = client(9);
    assert_eq!(net.ask(ALLOCATE, udp), 0, "the places are back");
}

#[tokio::test]
async fn both_families_of_an_allocation_count() {
    let mut net = Net::on(&["127.0.0.1", "::1"], |config| {
        config.allocations_per_user = 3.try_into().unwrap();
    });
    let both = |m: &mut MessageWriteVec| {
        udp(m);
        m.add_attribute(&AdditionalAddressFamily::new(AddressFamily::IPV6))
            .unwrap();
    };
    let request = net.signed(ALLOCATE, both);
    let answer = net.send(&request).unwrap();
    let answer = Message::from_bytes(&answer).unwrap();
    assert!(!answer.has_attribute(AddressErrorCode::TYPE));
    assert_eq!(net.requests.places.taken(), 2);
    net.client = client(2);
    let request = net.signed(ALLOCATE, both);
    let answer = net.send(&request).unwrap();
    let answer = Message::from_bytes(&answer).unwrap();
    let missing = answer.attribute::<AddressErrorCode>().unwrap();
    assert_eq!(
        (missing.family(), missing.error().code()),
        (AddressFamily::IPV6, 508)
    );
    assert_eq!(net.requests.places.taken(), 3);
}

/// Tries every way to write an address in every request that names a peer.
#[tokio::test]
async fn no_request_may_name_a_forbidden_address() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    for ip in [
        "0.0.0.0",
        "10.0.0.1",
        "127.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.169.254",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::1]",
        "[2001:0:808:808:0:0:80ff:fffe]",
        "[2002:a00:1::1]",
        "[2002:a9fe:a9fe::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
    ] {
        let addr = format!("{ip}:9");
        assert_eq!(net.ask(CREATE_PERMISSION, peer(&addr)), 403, "{addr}");
        let bind = |m: &mut MessageWriteVec| {
            m.add_attribute(&ChannelNumber::new(0x4000)).unwrap();
            peer(&addr)(m);
        };
        assert_eq!(net.ask(CHANNEL_BIND, bind), 403, "{addr}");
        // Each source may ask a hundred times in a second.
        net.requests.tcp = Mutex::new(RateLimiter::new(100, 100, Instant::now()));
    }
}

/// A permission that exists by a fault or a change of the rules does not help.
#[tokio::test]
async fn data_of_a_barred_peer_passes_in_neither_direction() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let there = stranger.local_addr().unwrap();
    let allocation = net.requests.allocation(net.client).unwrap();
    allocation
        .peers
        .bind(0x4000, there, Instant::now())
        .unwrap();
    assert_eq!(net.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]), None);
    let mut send = Message::builder_indication(SEND, MessageWriteVec::new());
    peer(&there.to_string())(&mut send);
    send.add_attribute(&Data::new(b"data")).unwrap();
    assert_eq!(net.send(&send.finish()), None);
    let relayed = allocation.relays[0].address;
    stranger.send_to(b"data", relayed).unwrap();
    let refused = |reason: &str| {
        let name =
            format!("throughline_refused_total{{what=\"turn_datagram\",reason=\"{reason}\"}} ");
        let text = net.requests.metrics.encode().unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix(&name));
        count.map_or(0, |count| count.parse().unwrap())
    };
    until(|| refused("scope") >= 3).await;
    assert!(stranger.recv(&mut [0; 16]).is_err(), "nothing came");
    assert!(net.answers.try_next().is_none(), "nothing went");
}

#[tokio::test]
async fn a_client_reaches_other_clients_but_not_the_server_itself() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    let mut ask = |number, ip: &str, port: u16| {
        let bind = |m: &mut MessageWriteVec| {
            m.add_attribute(&ChannelNumber::new(number)).unwrap();
            peer(&format!("{ip}:{port}"))(m);
        };
        net.ask(CHANNEL_BIND, bind)
    };
    let public = PUBLIC.to_string();
    assert_eq!(ask(0x4000, &public, 3478), 403);
    assert_eq!(ask(0x4000, "[64:ff9b::198.51.100.1]", 3478), 403);
    assert_eq!(ask(0x4000, &public, 49_152), 0);
    assert_eq!(ask(0x4001, "198.51.100.2", 3478), 0);
    assert_eq!(net.ask(CREATE_PERMISSION, peer("198.51.100.1:3478")), 0);
}

/// Requests with a forged address use up the limit of strangers at that address, and not that of a
/// client with an allocation.
#[tokio::test]
async fn a_client_can_renew_while_its_address_is_forged() {
    let mut net = Net::new(|config| config.requests_per_source = 1.try_into().unwrap());
    let holder = net.client;
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    net.client = client(2);
    let stranger = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
    let answered = (0..100).filter(|_| net.send(&stranger).is_some()).count();
    assert_eq!(answered, 1);
    net.client = holder;
    for _ in 0..10 {
        assert_eq!(net.ask(REFRESH, |_| {}), 0);
    }
    net.client = Client {
        over_tcp: false,
        ..client(3)
    };
    assert!(net.send(&stranger).is_some(), "TCP and UDP are apart");
}

#[tokio::test]
async fn data_without_an_allocation_is_ignored() {
    let mut net = Net::new(|config| config.requests_per_source = 1.try_into().unwrap());
    let mut send = Message::builder_indication(SEND, MessageWriteVec::new());
    peer("192.0.2.9:9")(&mut send);
    send.add_attribute(&Data::new(b"data")).unwrap();
    let send = send.finish();
    for _ in 0..50 {
        assert_eq!(net.send(&[0x40, 0, 0, 4, 1, 2, 3, 4]), None);
        assert_eq!(net.send(&send), None);
    }
    let text = net.requests.metrics.encode().unwrap();
    let ignored = "throughline_turn_requests_total{outcome=\"ignored\"} 100";
    assert!(text.lines().any(|line| line == ignored), "{text}");
}

#[tokio::test]
async fn unsupported_requests_are_refused_with_their_code() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, |_| {}), 400);
    let tcp = |m: &mut MessageWriteVec| {
        m.add_attribute(&RequestedTransport::new(6)).unwrap();
    };
    assert_eq!(net.ask(ALLOCATE, tcp), 442);
    let v6 = |m: &mut MessageWriteVec| {
        udp(m);
        m.add_attribute(&RequestedAddressFamily::new(AddressFamily::IPV6))
            .unwrap();
    };
    assert_eq!(net.ask(ALLOCATE, v6), 440);
    let both = |m: &mut MessageWriteVec| {
        udp(m);
        m.add_attribute(&AdditionalAddressFamily::new(AddressFamily::IPV6))
            .unwrap();
    };
    let request = net.signed(ALLOCATE, both);
    let answer = net.send(&request).unwrap();
    let answer = Message::from_bytes(&answer).unwrap();
    let missing = answer.attribute::<AddressErrorCode>().unwrap();
    assert_eq!(
        (missing.family(), missing.error().code()),
        (AddressFamily::IPV6, 440)
    );

    assert_eq!(net.ask(CREATE_PERMISSION, |_| {}), 400);
    assert_eq!(net.ask(CREATE_PERMISSION, peer("192.0.2.2:9")), 0);
    assert_eq!(net.ask(CREATE_PERMISSION, peer("127.0.0.1:9")), 403);
    assert_eq!(net.ask(CREATE_PERMISSION, peer("[2001:db8::1]:9")), 443);
    for (number, addr, expected) in [
        (0x4000, "192.0.2.2:9", 0),
        (0x4001, "192.0.2.2:9", 400),
        (0x8000, "192.0.2.3:9", 400),
        (0x4001, "10.0.0.1:9", 403),
    ] {
        let bind = |m: &mut MessageWriteVec| {
            m.add_attribute(&ChannelNumber::new(number)).unwrap();
            peer(addr)(m);
        };
        assert_eq!(net.ask(CHANNEL_BIND, bind), expected, "{number:#x} {addr}");
    }
    let unknown = |m: &mut MessageWriteVec| {
        let kind = AttributeType::new(0x7f00);
        m.add_attribute(&stun_types::attribute::RawAttribute::new(kind, &[]))
            .unwrap();
    };
    assert_eq!(net.ask(REFRESH, unknown), 420);
    assert_eq!(net.ask(Method::new(0x00a), |_| {}), 400, "RFC 6062");
}

#[tokio::test]
async fn a_flood_is_not_answered() {
    let mut net = Net::new(|config| config.requests_per_source = 1.try_into().unwrap());
    let request = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
    let answered = (0..100).filter(|_| net.send(&request).is_some()).count();
    assert_eq!(answered, 2);
}

proptest! {
    #[test]
    fn no_frame_panics_or_amplifies(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0usize..4,
    ) {
        // A frame that looks like STUN gets further.
        if frame.len() >= 20 && kind > 0 {
            let (method, len) = ([0, 3, 6, 9][kind], frame.len() / 4 * 4);
            frame.truncate(len);
            frame[..2].copy_from_slice(&[0, method]);
            frame[2..4].copy_from_slice(&((len - 20) as u16).to_be_bytes());
            frame[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        }
        let mut net = Net::new(|_| {});
        if let Some(answer) = net.send(&frame) {
            prop_assert!(answer.len() <= frame.len() + 100, "{}", answer.len());
        }
    }
}
