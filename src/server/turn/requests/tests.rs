//! The server as one client after another sees it.

use proptest::prelude::*;
use stun_types::message::Method;
use tokio::sync::mpsc;

use super::*;
use crate::server::{ServerConfig, TurnCredentials};

/// A server on loopback and one client of it.
struct Net {
    requests: Requests,
    user: TurnCredentials,
    client: Client,
    reply: Reply,
    answers: mpsc::Receiver<Vec<u8>>,
}

impl Net {
    fn new(configure: impl FnOnce(&mut TurnConfig)) -> Self {
        let mut config = TurnConfig::default();
        configure(&mut config);
        let authority = Arc::new(Authority::new("secret").unwrap());
        let hour = Duration::from_secs(3600);
        let user = authority.issue("ann", hour, SystemTime::now());
        let metrics = Metrics::new(&ServerConfig::default());
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let ips = vec![(loopback, loopback)];
        let (sender, answers) = mpsc::channel(8);
        Self {
            requests: Requests::new(&config, authority, ips, metrics),
            user,
            client: client(1),
            reply: Reply::Stream(sender),
            answers,
        }
    }

    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        self.requests.receive(self.client, &self.reply, frame);
        self.answers.try_recv().ok()
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

    /// The code of a refusal; 0 for success.
    fn ask(&mut self, method: Method, fill: impl FnOnce(&mut MessageWriteVec)) -> u16 {
        let request = self.signed(method, fill);
        code(&self.send(&request).unwrap())
    }
}

fn client(port: u16) -> Client {
    Client {
        listener: 0,
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
async fn strangers_are_challenged_and_get_nothing() {
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
async fn an_allocation_comes_and_goes() {
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

/// What carries a date asks for a new one; what lasts for a time lasts.
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
        config.allocations = 3.try_into().unwrap();
        config.allocations_per_user = 2.try_into().unwrap();
    });
    for (port, expected) in [(1, 0), (2, 0), (3, 486)] {
        net.client = client(port);
        assert_eq!(net.ask(ALLOCATE, udp), expected);
    }
    let now = SystemTime::now();
    net.user = net
        .requests
        .authority
        .issue("bob", Duration::from_secs(60), now);
    for (port, expected) in [(4, 0), (5, 508)] {
        net.client = client(port);
        assert_eq!(net.ask(ALLOCATE, udp), expected);
    }
}

#[tokio::test]
async fn what_is_not_offered_is_refused_with_its_code() {
    let mut net = Net::new(|_| {});
    assert_eq!(net.ask(ALLOCATE, |_| {}), 400);
    let tcp = |m: &mut MessageWriteVec| {
        m.add_attribute(&RequestedTransport::new(6)).unwrap();
    };
    assert_eq!(net.ask(ALLOCATE, tcp), 442);
    let even = |m: &mut MessageWriteVec| {
        udp(m);
        m.add_attribute(&EvenPort::new(true)).unwrap();
    };
    assert_eq!(net.ask(ALLOCATE, even), 508);
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
        (0x5000, "192.0.2.3:9", 400),
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
        // What looks like STUN gets further.
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
