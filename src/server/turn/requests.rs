//! What clients ask, and what they are answered (RFC 8656).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use stun_types::{
    AddressFamily,
    attribute::{
        Attribute as _, AttributeStaticType as _, AttributeType, ErrorCode, MessageIntegrity,
        Nonce, Realm, UnknownAttributes, Username, XorMappedAddress,
    },
    message::{
        BINDING, IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass,
        MessageIntegrityCredentials, MessageWrite as _, MessageWriteExt as _, MessageWriteVec,
    },
    prelude::AttributeFromRaw as _,
};
use turn_client_proto::types::{
    attribute::{
        AdditionalAddressFamily, AddressErrorCode, ChannelNumber, Data, DontFragment, EvenPort,
        Lifetime, RequestedAddressFamily, RequestedTransport, ReservationToken, XorPeerAddress,
        XorRelayedAddress,
    },
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH, SEND},
};

use super::{
    allocation::{Allocation, Peers, Relay, Reply},
    credentials::Authority,
    is_forbidden,
};
use crate::server::{
    config::TurnConfig,
    metrics::Metrics,
    rate::RateLimiter,
    stun::{self, Layout, Outcome},
};

/// RFC 8656 section 7.2: the lifetime of an allocation, at the least and unless more is asked
/// for, and at most.
const LIFETIME: u32 = 600;
const MAX_LIFETIME: u32 = 3600;

/// Requests per second to all clients together, at most.
const TOTAL_REQUESTS: u32 = 20_000;

/// Most attributes that an error answer names as unknown.
const MAX_UNKNOWN: usize = 8;

/// The comprehension-required attributes that a request may carry.
const UNDERSTOOD: [AttributeType; 13] = [
    Username::TYPE,
    MessageIntegrity::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    ChannelNumber::TYPE,
    Lifetime::TYPE,
    XorPeerAddress::TYPE,
    Data::TYPE,
    RequestedAddressFamily::TYPE,
    EvenPort::TYPE,
    RequestedTransport::TYPE,
    // The kernel sets the bit anyway.
    DontFragment::TYPE,
    ReservationToken::TYPE,
];

/// A client is known by where it came in and from where (the 5-tuple of RFC 8656 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) listener: usize,
    pub(super) address: SocketAddr,
}

/// Addresses to relay on, and what clients are told of them; one of each family at most.
pub(crate) type RelayIps = Vec<(IpAddr, IpAddr)>;

/// The state of the server.
pub(super) struct Requests {
    realm: String,
    authority: Arc<Authority>,
    ips: RelayIps,
    ports: RangeInclusive<u16>,
    most: usize,
    most_per_user: usize,
    allow_private: bool,
    allocations: Mutex<HashMap<Client, Arc<Allocation>>>,
    limiter: Mutex<RateLimiter>,
    metrics: Metrics,
}

/// What a successful answer carries.
#[derive(Default)]
struct Success {
    lifetime: Option<u32>,
    relayed: Vec<SocketAddr>,
    mapped: Option<SocketAddr>,
    /// The additional family that there is no address of.
    missing: Option<AddressFamily>,
}

enum Refusal {
    Code(u16),
    Unknown(Vec<AttributeType>),
}

impl From<u16> for Refusal {
    fn from(code: u16) -> Self {
        Self::Code(code)
    }
}

impl Requests {
    pub(super) fn new(
        config: &TurnConfig,
        authority: Arc<Authority>,
        ips: RelayIps,
        metrics: Metrics,
    ) -> Self {
        let rate = config.requests_per_source.get();
        Self {
            realm: config.realm.clone(),
            authority,
            ips,
            ports: config.first_port..=config.last_port,
            most: config.allocations.get(),
            most_per_user: config.allocations_per_user.get(),
            allow_private: config.allow_private_peers,
            allocations: Mutex::default(),
            limiter: Mutex::new(RateLimiter::new(rate, TOTAL_REQUESTS, Instant::now())),
            metrics,
        }
    }

    fn allocations(&self) -> MutexGuard<'_, HashMap<Client, Arc<Allocation>>> {
        self.allocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn allocation(&self, client: Client) -> Option<Arc<Allocation>> {
        self.allocations().get(&client).cloned()
    }

    pub(super) fn has_allocation(&self, client: Client) -> bool {
        self.allocations().contains_key(&client)
    }

    /// Ends what a client holds.
    pub(super) fn close(&self, client: Client) {
        self.change(|all| {
            all.remove(&client);
        });
    }

    /// Ends what has expired.
    pub(super) fn expire(&self, now: Instant) {
        self.change(|all| all.retain(|_, allocation| *allocation.expires() > now));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Client, Arc<Allocation>>)) {
        let mut all = self.allocations();
        change(&mut all);
        self.metrics.turn_allocations(all.len());
    }

    /// Handles one frame of a client.
    pub(super) fn receive(&self, client: Client, reply: &Reply, frame: &[u8]) {
        let now = Instant::now();
        match frame {
            [first @ 0x40..=0x4f, second, high, low, data @ ..] => {
                let number = u16::from_be_bytes([*first, *second]);
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                if let Some(data) = data.get(..len) {
                    self.channel_data(client, number, data, now);
                }
            }
            _ => match Message::from_bytes(frame) {
                Ok(message) if message.has_class(MessageClass::Indication) => {
                    if message.has_method(SEND) {
                        self.send_indication(client, &message, now);
                    }
                }
                Ok(message) if message.has_class(MessageClass::Request) => {
                    let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
                    let allowed = limiter.allow(client.address.ip(), now);
                    drop(limiter);
                    let (answer, outcome) = match allowed {
                        true if message.has_method(BINDING) => binding(frame, client.address),
                        true => self.request(client, reply, &message, now),
                        false => (None, "limited"),
                    };
                    self.metrics.turn(outcome);
                    if let Some(answer) = answer {
                        reply.send(&answer);
                    }
                }
                _ => self.metrics.turn("ignored"),
            },
        }
    }

    fn channel_data(&self, client: Client, number: u16, data: &[u8], now: Instant) {
        if let Some(allocation) = self.allocation(client)
            && let Some(peer) = allocation.peers.of_channel(number, now)
            && let Some(relay) = allocation.relay(peer.ip())
        {
            relay.send(data, peer);
            self.metrics.turn_relayed(data.len());
        }
    }

    /// RFC 8656 section 11.2: what has no permission is dropped.
    fn send_indication(&self, client: Client, message: &Message<'_>, now: Instant) {
        if let Some(allocation) = self.allocation(client)
            && let Ok(peer) = message.attribute::<XorPeerAddress>()
            && let Ok(data) = message.attribute::<Data<'_>>()
        {
            let peer = peer.addr(message.transaction_id());
            let permitted = allocation.peers.route(peer, now) != super::allocation::Route::Denied;
            if let Some(relay) = allocation.relay(peer.ip()).filter(|_| permitted) {
                relay.send(data.data(), peer);
                self.metrics.turn_relayed(data.data().len());
            }
        }
    }

    /// The answer, and what became of the request.
    fn request(
        &self,
        client: Client,
        reply: &Reply,
        request: &Message<'_>,
        now: Instant,
    ) -> (Option<Vec<u8>>, &'static str) {
        let known = [ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND];
        if !known.contains(&request.method()) {
            return (
                self.refuse(request, ErrorCode::BAD_REQUEST, client, false),
                "refused",
            );
        }
        let (username, key) = match self.authenticate(client, request, SystemTime::now()) {
            Ok(user) => user,
            Err(code) => {
                let challenged = matches!(code, ErrorCode::UNAUTHORIZED | ErrorCode::STALE_NONCE);
                let answer = self.refuse(request, code, client, challenged);
                return (answer, "unauthorized");
            }
        };
        let result = understood(request).and_then(|()| match request.method() {
            ALLOCATE => self.allocate(client, reply, request, &username, now),
            _ => {
                // RFC 8656 section 5: 437 without an allocation, 441 for another user's.
                let allocation = self
                    .allocation(client)
                    .ok_or(ErrorCode::ALLOCATION_MISMATCH)?;
                if allocation.username != username {
                    return Err(ErrorCode::WRONG_CREDENTIALS.into());
                }
                match request.method() {
                    REFRESH => self.refresh(client, &allocation, request, now),
                    CREATE_PERMISSION => self.permit(&allocation, request, now),
                    _ => self.bind_channel(&allocation, request, now),
                }
            }
        });
        let outcome = if result.is_ok() { "granted" } else { "refused" };
        let answer = match result {
            Ok(success) => succeed(request, &success, &key),
            Err(Refusal::Code(code)) => {
                let mut answer = Message::builder_error(request, MessageWriteVec::new());
                error_code(code)
                    .and_then(|code| answer.add_attribute(&code).ok())
                    .and_then(|()| sign(answer, &key))
            }
            Err(Refusal::Unknown(unknown)) => {
                let mut answer = Message::builder_error(request, MessageWriteVec::new());
                error_code(ErrorCode::UNKNOWN_ATTRIBUTE)
                    .and_then(|code| answer.add_attribute(&code).ok())
                    .and_then(|()| answer.add_attribute(&UnknownAttributes::new(&unknown)).ok())
                    .and_then(|()| sign(answer, &key))
            }
        };
        (answer, outcome)
    }

    /// RFC 8489 section 9.2.4, without what this server does not offer.
    fn authenticate(
        &self,
        client: Client,
        request: &Message<'_>,
        time: SystemTime,
    ) -> Result<(String, MessageIntegrityCredentials), u16> {
        if !request.has_attribute(MessageIntegrity::TYPE) {
            return Err(ErrorCode::UNAUTHORIZED);
        }
        let missing = |_| ErrorCode::BAD_REQUEST;
        let username = request.attribute::<Username>().map_err(missing)?;
        let realm = request.attribute::<Realm>().map_err(missing)?;
        let nonce = request.attribute::<Nonce>().map_err(missing)?;
        let username = username.username();
        if !self.authority.is_fresh(nonce.nonce(), client.address, time) {
            return Err(ErrorCode::STALE_NONCE);
        }
        // An allocation outlives the credentials that it was made with.
        let holds = self
            .allocation(client)
            .is_some_and(|held| held.username == username);
        let password = match holds {
            true => Some(self.authority.password(username)),
            false => self.authority.check(username, time),
        };
        let password = password.ok_or(ErrorCode::UNAUTHORIZED)?;
        if realm.realm() != self.realm {
            return Err(ErrorCode::UNAUTHORIZED);
        }
        let user = username.to_owned();
        let key = LongTermKeyCredentials::new(user.clone(), password, self.realm.clone()).into();
        match request.validate_integrity(&key) {
            Ok(_) => Ok((user, key)),
            Err(_) => Err(ErrorCode::UNAUTHORIZED),
        }
    }

    /// An answer without a signature: nobody has proved to know a key.
    fn refuse(
        &self,
        request: &Message<'_>,
        code: u16,
        client: Client,
        challenge: bool,
    ) -> Option<Vec<u8>> {
        let mut answer = Message::builder_error(request, MessageWriteVec::new());
        answer.add_attribute(&error_code(code)?).ok()?;
        if challenge {
            let nonce = self.authority.nonce(client.address, SystemTime::now());
            answer.add_attribute(&Realm::new(&self.realm).ok()?).ok()?;
            answer.add_attribute(&Nonce::new(&nonce).ok()?).ok()?;
        }
        Some(answer.finish())
    }

    /// RFC 8656 section 7.2.
    fn allocate(
        &self,
        client: Client,
        reply: &Reply,
        request: &Message<'_>,
        username: &str,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let lifetime = lifetime(request).clamp(LIFETIME, MAX_LIFETIME);
        let success = |relays: &[Relay], missing| Success {
            lifetime: Some(lifetime),
            relayed: relays.iter().map(|relay| relay.address).collect(),
            mapped: Some(client.address),
            missing,
        };
        if let Some(held) = self.allocation(client) {
            if held.transaction == request.transaction_id() && held.username == username {
                return Ok(success(&held.relays, None));
            }
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        }
        let transport = request.attribute::<RequestedTransport>();
        let transport = transport.map_err(|_| ErrorCode::BAD_REQUEST)?;
        if transport.protocol() != RequestedTransport::UDP {
            return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL.into());
        }
        if request.has_attribute(EvenPort::TYPE) || request.has_attribute(ReservationToken::TYPE) {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY.into());
        }
        let requested = request.attribute::<RequestedAddressFamily>();
        let additional = request.attribute::<AdditionalAddressFamily>();
        let (family, additional) = match (requested, additional) {
            (Ok(_), Ok(_)) => return Err(ErrorCode::BAD_REQUEST.into()),
            (Ok(requested), Err(_)) => (requested.family(), None),
            (Err(_), Ok(additional)) if additional.family() == AddressFamily::IPV4 => {
                return Err(ErrorCode::BAD_REQUEST.into());
            }
            (Err(_), Ok(additional)) => (AddressFamily::IPV4, Some(additional.family())),
            (Err(_), Err(_)) => (AddressFamily::IPV4, None),
        };
        {
            let all = self.allocations();
            let of_user = all.values().filter(|held| held.username == username);
            if of_user.count() >= self.most_per_user {
                return Err(ErrorCode::ALLOCATION_QUOTA_REACHED.into());
            }
            if all.len() >= self.most {
                return Err(ErrorCode::INSUFFICIENT_CAPACITY.into());
            }
        }
        let peers = Arc::<Peers>::default();
        let open = |family: AddressFamily| {
            let of_family =
                |(_, told): &&(IpAddr, IpAddr)| told.is_ipv4() == (family == AddressFamily::IPV4);
            let ips = self.ips.iter().find(of_family).copied();
            let ips = ips.ok_or(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)?;
            Relay::open(ips, &self.ports, &peers, reply, &self.metrics).map_err(|error| {
                tracing::debug!(%error, "no relayed address");
                ErrorCode::INSUFFICIENT_CAPACITY
            })
        };
        let mut relays = Vec::new();
        let mut missing = None;
        match (
            open(family),
            additional.map(|family| (family, open(family))),
        ) {
            (Ok(relay), None) => relays.push(relay),
            (Ok(relay), Some((_, Ok(other)))) => relays.extend([relay, other]),
            (Ok(relay), Some((family, Err(_)))) => {
                relays.push(relay);
                missing = Some(family);
            }
            (Err(_), Some((_, Ok(other)))) => {
                relays.push(other);
                missing = Some(family);
            }
            (Err(code), _) => return Err(code.into()),
        }
        let success = success(&relays, missing);
        let expires = now + Duration::from_secs(lifetime.into());
        let transaction = request.transaction_id();
        let held = Allocation::new(username.to_owned(), transaction, relays, peers, expires);
        self.change(|all| {
            all.insert(client, Arc::new(held));
        });
        Ok(success)
    }

    /// RFC 8656 section 8.2.
    fn refresh(
        &self,
        client: Client,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        if let Ok(family) = request.attribute::<RequestedAddressFamily>() {
            let v4 = family.family() == AddressFamily::IPV4;
            if !allocation
                .relays
                .iter()
                .any(|relay| relay.address.is_ipv4() == v4)
            {
                return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
            }
        }
        let lifetime = match lifetime(request) {
            0 => {
                self.close(client);
                0
            }
            lifetime => lifetime.clamp(LIFETIME, MAX_LIFETIME),
        };
        *allocation.expires() = now + Duration::from_secs(lifetime.into());
        Ok(Success {
            lifetime: Some(lifetime),
            ..Success::default()
        })
    }

    /// RFC 8656 section 10.2.
    fn permit(
        &self,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let mut ips = Vec::new();
        for (_, attribute) in request.iter_attributes() {
            if attribute.get_type() == XorPeerAddress::TYPE {
                let peer = XorPeerAddress::from_raw(attribute);
                let peer = peer.map_err(|_| ErrorCode::BAD_REQUEST)?;
                let peer = peer.addr(request.transaction_id()).ip();
                self.check_peer(allocation, peer)?;
                ips.push(peer);
            }
        }
        if ips.is_empty() {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        allocation.peers.permit(&ips, now)?;
        Ok(Success::default())
    }

    /// RFC 8656 section 12.2.
    fn bind_channel(
        &self,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let missing = |_| ErrorCode::BAD_REQUEST;
        let number = request
            .attribute::<ChannelNumber>()
            .map_err(missing)?
            .channel();
        let peer = request.attribute::<XorPeerAddress>().map_err(missing)?;
        let peer = peer.addr(request.transaction_id());
        if !(0x4000..=0x4fff).contains(&number) {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        self.check_peer(allocation, peer.ip())?;
        allocation.peers.bind(number, peer, now)?;
        Ok(Success::default())
    }

    fn check_peer(&self, allocation: &Allocation, peer: IpAddr) -> Result<(), u16> {
        if allocation.relay(peer).is_none() {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        if is_forbidden(peer, self.allow_private) {
            return Err(ErrorCode::FORBIDDEN);
        }
        Ok(())
    }
}

/// Many servers are both; so is this one.
fn binding(frame: &[u8], client: SocketAddr) -> (Option<Vec<u8>>, &'static str) {
    // From this socket and no other.
    match stun::answer(frame, client, 0, &Layout(vec![None])) {
        Outcome::Answer(answer, _) => (Some(answer), "binding"),
        Outcome::Refuse(answer) => (Some(answer), "refused"),
        Outcome::Ignore => (None, "ignored"),
    }
}

fn understood(request: &Message<'_>) -> Result<(), Refusal> {
    let unknown: Vec<_> = request
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && !UNDERSTOOD.contains(kind))
        .take(MAX_UNKNOWN)
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(Refusal::Unknown(unknown)),
    }
}

fn lifetime(request: &Message<'_>) -> u32 {
    request
        .attribute::<Lifetime>()
        .map_or(LIFETIME, |lifetime| lifetime.seconds())
}

fn error_code(code: u16) -> Option<ErrorCode> {
    ErrorCode::builder(code).reason("").build().ok()
}

fn succeed(
    request: &Message<'_>,
    success: &Success,
    key: &MessageIntegrityCredentials,
) -> Option<Vec<u8>> {
    let mut answer = Message::builder_success(request, MessageWriteVec::new());
    let transaction = request.transaction_id();
    for relayed in &success.relayed {
        answer
            .add_attribute(&XorRelayedAddress::new(*relayed, transaction))
            .ok()?;
    }
    if let Some(mapped) = success.mapped {
        answer
            .add_attribute(&XorMappedAddress::new(mapped, transaction))
            .ok()?;
    }
    if let Some(lifetime) = success.lifetime {
        answer.add_attribute(&Lifetime::new(lifetime)).ok()?;
    }
    if let Some(missing) = success.missing {
        let code = error_code(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)?;
        answer
            .add_attribute(&AddressErrorCode::new(missing, code))
            .ok()?;
    }
    sign(answer, key)
}

fn sign(mut answer: MessageWriteVec, key: &MessageIntegrityCredentials) -> Option<Vec<u8>> {
    answer
        .add_message_integrity(key, IntegrityAlgorithm::Sha1)
        .ok()?;
    Some(answer.finish())
}

#[cfg(test)]
mod tests {
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
            let user = self.user.username.clone();
            message
                .add_attribute(&Username::new(&user).unwrap())
                .unwrap();
            message
                .add_attribute(&Realm::new("throughline").unwrap())
                .unwrap();
            message.add_attribute(&Nonce::new(&nonce).unwrap()).unwrap();
            let (password, realm) = (self.user.credential.clone(), "throughline".to_owned());
            let key = LongTermKeyCredentials::new(user, password, realm);
            message
                .add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1)
                .unwrap();
            message.finish()
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
}
