//! A STUN server (RFC 8489). It answers Binding requests and nothing else. If a request asks for
//! it, the answer comes from another port or another address of the server, so that a client can
//! find out what its NAT lets in (RFC 5780).
//!
//! The server needs no authentication, and its only state is the rate limit. An answer carries
//! XOR-MAPPED-ADDRESS, RESPONSE-ORIGIN and OTHER-ADDRESS. It is at most 36 bytes longer than its
//! request over IPv4, and 72 bytes over IPv6. The [rate limit](super::config::StunConfig) bounds
//! how many answers requests with forged sources can cause. There is one answer to a request. It
//! goes to the source and nowhere else (RESPONSE-PORT is refused), and it comes from one of this
//! server's STUN ports.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use stun_types::{
    attribute::{
        Attribute as _, AttributeStaticType as _, AttributeType, ErrorCode, Fingerprint,
        MappedSocketAddr, MessageIntegrity, MessageIntegritySha256, Software, UnknownAttributes,
        Username, XorMappedAddress,
    },
    message::{
        BINDING, Message, MessageClass, MessageWrite as _, MessageWriteExt as _, MessageWriteVec,
    },
};

use super::{
    metrics::Metrics,
    rate_limiter::{RateLimiter, Refill},
    settings::Settings,
};
use crate::native::{
    ice::stun::message::{CHANGE_REQUEST, Change, OTHER_ADDRESS, RESPONSE_ORIGIN},
    udp::{Sockets, any_source},
};

/// The largest request that is answered. RFC 8489 section 6.1 keeps a message below the path MTU, and
/// IPv6 allows no MTU below 1280 bytes.
const MAX_REQUEST: usize = 1280;
/// The most attributes that an error answer names as unknown.
const MAX_UNKNOWN: usize = 8;
/// The comprehension-required attributes (RFC 8489 section 14) that a request may carry. The server
/// ignores credentials, because it has no authentication, and does not refuse a request for them.
const UNDERSTOOD: [AttributeType; 6] = [
    CHANGE_REQUEST,
    Username::TYPE,
    MessageIntegrity::TYPE,
    MessageIntegritySha256::TYPE,
    Software::TYPE,
    Fingerprint::TYPE,
];

/// What the server does with a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The datagram is a Binding request. This answer goes back from the socket with this number.
    Answer(Vec<u8>, usize),
    /// The datagram is a request that cannot be served. This error response goes back.
    Refuse(Vec<u8>),
    /// The datagram is not STUN, or not a request that a server answers. Nothing goes back.
    Ignore,
}

/// The sockets of the server.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Their addresses, host by host. It is `None` for a wildcard socket that may have several
    /// addresses.
    pub(crate) addresses: Vec<Option<SocketAddr>>,
    /// How many ports each host has: one or two.
    pub(crate) ports: usize,
}

impl Layout {
    /// Returns the socket that answers a request to socket `at`. Returns `None` if no socket
    /// satisfies `change`.
    fn from(&self, at: usize, change: Change) -> Option<usize> {
        let host = if change.ip { self.other_host(at)? } else { at };
        let socket = match change.port {
            // The two ports of a host have neighbouring numbers.
            true if self.ports == 2 => host ^ 1,
            true => return None,
            false => host,
        };
        (socket < self.addresses.len()).then_some(socket)
    }

    /// The layout of a server with one socket.
    pub(crate) fn of_one() -> Self {
        Self {
            addresses: vec![None],
            ports: 1,
        }
    }

    fn are_of_one_host(&self, one: usize, other: usize) -> bool {
        one / self.ports.max(1) == other / self.ports.max(1)
    }

    /// Returns the socket with the same rank of the next host of the same family.
    fn other_host(&self, at: usize) -> Option<usize> {
        let own = self.address(at)?;
        let all = self.addresses.len();
        let hosts = (self.ports.max(1)..all).step_by(self.ports.max(1));
        hosts.map(|ahead| (at + ahead) % all).find(|i| {
            let address = self.address(*i);
            address.is_some_and(|a| a.is_ipv4() == own.is_ipv4() && a.ip() != own.ip())
        })
    }

    fn address(&self, at: usize) -> Option<SocketAddr> {
        self.addresses.get(at).copied().flatten()
    }

    /// Returns the OTHER-ADDRESS of socket `at`. RFC 5780 section 7.4 allows it only if there is a
    /// second IP address.
    fn other_address(&self, at: usize) -> Option<SocketAddr> {
        let both = Change {
            ip: true,
            port: self.ports == 2,
        };
        self.address(self.from(at, both)?)
    }
}

/// Answers `datagram`, which came from `source` to socket `at`.
pub(crate) fn answer(datagram: &[u8], source: SocketAddr, at: usize, layout: &Layout) -> Outcome {
    // A wrong FINGERPRINT, length or magic cookie fails here (RFC 8489 section 6.3).
    let Ok(request) = Message::from_bytes(datagram) else {
        return Outcome::Ignore;
    };
    // An indication gets no response (section 6.3.2), and nobody asked for a response.
    if !request.has_class(MessageClass::Request) || request.method() != BINDING {
        return Outcome::Ignore;
    }
    let change = match request.raw_attribute(CHANGE_REQUEST) {
        None => Some(Change::default()),
        Some(raw) => Change::from_bytes(&raw.value),
    };
    let Some(change) = change else {
        return Outcome::Ignore;
    };
    let from = layout.from(at, change);
    // Unknown comprehension-required attributes get a 420 (section 6.3.1). A CHANGE-REQUEST that
    // cannot be satisfied counts as one of them (RFC 5780 section 6.1).
    let unknown: Vec<AttributeType> = request
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| {
            let unmet = *kind == CHANGE_REQUEST && from.is_none();
            kind.comprehension_required() && (unmet || !UNDERSTOOD.contains(kind))
        })
        .take(MAX_UNKNOWN)
        .collect();
    match from.filter(|_| unknown.is_empty()) {
        Some(from) => success(
            &request,
            source,
            layout.address(from),
            layout.other_address(at),
        )
        .map_or(Outcome::Ignore, |response| Outcome::Answer(response, from)),
        None => unknown_attributes(&request, &unknown).map_or(Outcome::Ignore, Outcome::Refuse),
    }
}

fn success(
    request: &Message<'_>,
    source: SocketAddr,
    origin: Option<SocketAddr>,
    other: Option<SocketAddr>,
) -> Option<Vec<u8>> {
    // A dual-stack socket reports IPv4 sources as mapped IPv6 addresses.
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let mut response = Message::builder_success(request, MessageWriteVec::new());
    response
        .add_attribute(&XorMappedAddress::new(source, request.transaction_id()))
        .ok()?;
    // Both attributes are those of RFC 5780 section 6.1.
    for (kind, address) in [(RESPONSE_ORIGIN, origin), (OTHER_ADDRESS, other)] {
        if let Some(address) = address {
            let address = MappedSocketAddr::new(address);
            response.add_attribute(&address.to_raw(kind)).ok()?;
        }
    }
    finish(request, response)
}

fn unknown_attributes(request: &Message<'_>, unknown: &[AttributeType]) -> Option<Vec<u8>> {
    let mut response = Message::builder_error(request, MessageWriteVec::new());
    // There is no reason phrase, because nobody reads it and it would make the answer longer.
    response
        .add_attribute(&ErrorCode::builder(420).reason("").build().ok()?)
        .ok()?;
    response
        .add_attribute(&UnknownAttributes::new(unknown))
        .ok()?;
    finish(request, response)
}

/// Adds FINGERPRINT if the request had it (section 6.3.1).
fn finish(request: &Message<'_>, mut response: MessageWriteVec) -> Option<Vec<u8>> {
    if request.has_attribute(Fingerprint::TYPE) {
        response.add_fingerprint().ok()?;
    }
    Some(response.finish())
}

/// Answers from its sockets. It serves what others receive there.
pub(crate) struct StunServer {
    sockets: Vec<Sockets>,
    layout: Layout,
    limiters: Vec<Mutex<RateLimiter>>,
    metrics: Metrics,
}

impl StunServer {
    /// Makes a server with `sockets`, which `layout` describes.
    pub(crate) fn new(
        sockets: Vec<Sockets>,
        layout: Layout,
        settings: &Settings,
        metrics: Metrics,
    ) -> Self {
        let limiter = |_: &Sockets| {
            let settings = settings.clone();
            let rates = move || {
                let limits = &settings.now().stun;
                Refill::new(limits.per_source.get(), limits.total.get())
            };
            Mutex::new(RateLimiter::following(rates, Instant::now()))
        };
        Self {
            limiters: sockets.iter().map(limiter).collect(),
            sockets,
            layout,
            metrics,
        }
    }

    /// Handles a datagram that came from `source` to the address `destination` of socket `at`.
    pub(crate) fn receive(
        &self,
        at: usize,
        now: Instant,
        (source, destination): (SocketAddr, SocketAddr),
        datagram: &[u8],
    ) {
        // Port 0 cannot be answered, and a multicast source is always forged.
        let forged = source.port() == 0 || is_never_a_source(source.ip());
        let outcome = match forged || datagram.len() > MAX_REQUEST {
            true => Outcome::Ignore,
            false => answer(datagram, source, at, &self.layout),
        };
        let (datagram, from, outcome) = match outcome {
            Outcome::Answer(datagram, from) => (datagram, from, "answered"),
            Outcome::Refuse(datagram) => (datagram, at, "refused"),
            Outcome::Ignore => return self.metrics.stun("ignored"),
        };
        let (Some(limiter), Some(socket)) = (self.limiters.get(at), self.sockets.get(from)) else {
            return;
        };
        let allowed = limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allow(source.ip(), now);
        if !allowed {
            return self.metrics.stun("limited");
        }
        self.metrics.stun(outcome);
        // The answer leaves from the address that was asked, unless another one was asked for.
        let ip = match self.layout.are_of_one_host(at, from) {
            true => destination.ip(),
            false => any_source(source).ip(),
        };
        socket.answer(SocketAddr::new(ip, 0), source, &datagram);
    }
}

fn is_never_a_source(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_multicast() || ip.is_unspecified() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stun_types::message::Method;

    use super::*;

    const SOURCE: &str = "192.0.2.1:32853";

    fn request() -> MessageWriteVec {
        Message::builder_request(BINDING, MessageWriteVec::new())
    }

    /// Returns what a server with one address and two ports does with a datagram to the first port.
    fn answer(datagram: &[u8], source: SocketAddr) -> Outcome {
        super::answer(datagram, source, 0, &layout(&["192.0.2.9"]))
    }

    /// A layout with two ports of each host, 2 and 3.
    fn layout(hosts: &[&str]) -> Layout {
        let sockets = hosts
            .iter()
            .flat_map(|host| [2, 3].map(|port| (host, port)));
        let address = |(host, port): (&&str, u16)| {
            let host: IpAddr = host.parse().unwrap();
            (!host.is_unspecified()).then_some(SocketAddr::new(host, port))
        };
        Layout {
            addresses: sockets.map(address).collect(),
            ports: 2,
        }
    }

    fn mapped(answer: &[u8]) -> SocketAddr {
        let message = Message::from_bytes(answer).unwrap();
        assert!(message.has_class(MessageClass::Success));
        message
            .attribute::<XorMappedAddress>()
            .unwrap()
            .addr(message.transaction_id())
    }

    #[test]
    fn a_binding_request_is_answered_with_its_source() {
        for source in [SOURCE, "[2001:db8::1]:32853"] {
            let source = source.parse().unwrap();
            let request = request().finish();
            let Outcome::Answer(response, 0) = answer(&request, source) else {
                panic!("no answer");
            };
            assert_eq!(mapped(&response), source);
            assert_eq!(response[8..20], request[8..20], "same transaction");
            assert!(response.len() <= request.len() + 36);
        }
    }

    #[test]
    fn a_mapped_ipv4_source_is_answered_as_ipv4() {
        let Outcome::Answer(response, 0) =
            answer(&request().finish(), "[::ffff:192.0.2.1]:1".parse().unwrap())
        else {
            panic!("no answer");
        };
        assert_eq!(mapped(&response).to_string(), "192.0.2.1:1");
    }

    #[test]
    fn a_request_with_a_fingerprint_gets_an_answer_with_one() {
        let mut request = request();
        request.add_fingerprint().unwrap();
        let Outcome::Answer(response, 0) = answer(&request.finish(), SOURCE.parse().unwrap())
        else {
            panic!("no answer");
        };
        let response = Message::from_bytes(&response).unwrap();
        assert!(response.has_attribute(Fingerprint::TYPE));
    }

    /// Returns the socket that answers a request to socket `at`, and the OTHER-ADDRESS of the
    /// answer.
    fn changed(hosts: &[&str], at: usize, ip: bool, port: bool) -> Option<(usize, String)> {
        let (_, request) = crate::native::ice::stun::message::request(Change { ip, port });
        let layout = layout(hosts);
        match super::answer(&request, SOURCE.parse().unwrap(), at, &layout) {
            Outcome::Answer(response, from) => {
                let response = Message::from_bytes(&response).unwrap();
                let told = |kind| {
                    let raw = response.raw_attribute(kind)?;
                    Some(MappedSocketAddr::from_raw(&raw).unwrap().addr())
                };
                assert_eq!(told(RESPONSE_ORIGIN), layout.address(from));
                let other = told(OTHER_ADDRESS).map(|other| other.to_string());
                Some((from, other.unwrap_or_default()))
            }
            Outcome::Refuse(response) => {
                let response = Message::from_bytes(&response).unwrap();
                let unknown = response.attribute::<UnknownAttributes>().unwrap();
                assert!(unknown.has_attribute(CHANGE_REQUEST));
                None
            }
            Outcome::Ignore => panic!("ignored"),
        }
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked_for() {
        let one = ["192.0.2.9"];
        assert_eq!(changed(&one, 0, false, false), Some((0, String::new())));
        assert_eq!(changed(&one, 0, false, true), Some((1, String::new())));
        assert_eq!(changed(&one, 1, false, true), Some((0, String::new())));
        assert_eq!(changed(&one, 0, true, false), None);
        assert_eq!(changed(&one, 1, true, true), None);

        let two = ["192.0.2.9", "2001:db8::1", "192.0.2.10"];
        let other = |at: &str| at.to_owned();
        assert_eq!(
            changed(&two, 0, true, true),
            Some((5, other("192.0.2.10:3")))
        );
        assert_eq!(
            changed(&two, 0, true, false),
            Some((4, other("192.0.2.10:3")))
        );
        assert_eq!(
            changed(&two, 5, true, true),
            Some((0, other("192.0.2.9:2")))
        );
        assert_eq!(changed(&two, 2, true, true), None);

        assert_eq!(
            changed(&["0.0.0.0"], 0, false, true),
            Some((1, String::new()))
        );
        assert_eq!(changed(&["0.0.0.0", "192.0.2.9"], 0, true, true), None);
    }

    #[test]
    fn a_malformed_change_request_is_ignored() {
        let mut request = request();
        let short = stun_types::attribute::RawAttribute::new(CHANGE_REQUEST, &[0; 3]);
        request.add_attribute(&short).unwrap();
        let outcome = answer(&request.finish(), SOURCE.parse().unwrap());
        assert_eq!(outcome, Outcome::Ignore);
    }

    /// RFC 5769 section 2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME,
    /// MESSAGE-INTEGRITY and FINGERPRINT. PRIORITY is a comprehension-required attribute of ICE.
    #[test]
    fn the_sample_request_of_rfc_5769() {
        let request = data_encoding::HEXLOWER_PERMISSIVE
            .decode(
                b"000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
                002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020\
                000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
            )
            .unwrap();
        let Outcome::Refuse(response) = answer(&request, SOURCE.parse().unwrap()) else {
            panic!("PRIORITY must be named as unknown");
        };
        let response = Message::from_bytes(&response).unwrap();
        assert_eq!(response.attribute::<ErrorCode>().unwrap().code(), 420);
        let unknown = response.attribute::<UnknownAttributes>().unwrap();
        assert!(unknown.has_attribute(AttributeType::new(0x0024)));
        assert!(response.has_attribute(Fingerprint::TYPE));
    }

    #[test]
    fn datagrams_that_no_server_answers_are_ignored() {
        let source = SOURCE.parse().unwrap();
        let indication = Message::builder_indication(BINDING, MessageWriteVec::new()).finish();
        let allocate = Message::builder_request(Method::new(3), MessageWriteVec::new()).finish();
        let request = request().finish();
        let response = Message::builder_success(
            &Message::from_bytes(&request).unwrap(),
            MessageWriteVec::new(),
        )
        .finish();
        let mut cut = request.clone();
        cut.pop();
        let mut cookie = request.clone();
        cookie[4] ^= 1;
        for datagram in [
            &b""[..],
            b"\0",
            &indication,
            &allocate,
            &response,
            &cut,
            &cookie,
        ] {
            assert_eq!(answer(datagram, source), Outcome::Ignore, "{datagram:02x?}");
        }
    }

    proptest! {
        #[test]
        fn no_datagram_amplifies_or_panics(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            check_bounds(&datagram);
        }

        #[test]
        fn no_request_amplifies(kinds in proptest::collection::vec(any::<u16>(), 0..50)) {
            let mut datagram = request().finish();
            for kind in kinds {
                datagram.extend_from_slice(&kind.to_be_bytes());
                datagram.extend_from_slice(&[0, 0]);
            }
            let length = (datagram.len() - 20) as u16;
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
            check_bounds(&datagram);
        }
    }

    fn check_bounds(datagram: &[u8]) {
        let v4 = layout(&["192.0.2.9", "192.0.2.10"]);
        let v6 = layout(&["2001:db8::9", "2001:db8::10"]);
        for (source, layout, more) in [(SOURCE, v4, 36), ("[2001:db8::1]:1", v6, 72)] {
            if let Outcome::Answer(response, _) | Outcome::Refuse(response) =
                super::answer(datagram, source.parse().unwrap(), 0, &layout)
            {
                assert!(response.len() <= datagram.len() + more);
            }
        }
    }
}
