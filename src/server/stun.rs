//! A STUN server (RFC 8489) that answers Binding requests and nothing else.
//!
//! It needs no authentication and keeps no state but the rate limit. An answer carries
//! XOR-MAPPED-ADDRESS only: with a forged source it is at most 32 bytes longer than its
//! request, and the [rate limit](super::config::StunLimits) bounds how many there are.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use stun_types::{
    attribute::{
        Attribute as _, AttributeStaticType as _, AttributeType, ErrorCode, Fingerprint,
        MessageIntegrity, MessageIntegritySha256, Software, UnknownAttributes, Username,
        XorMappedAddress,
    },
    message::{
        BINDING, Message, MessageClass, MessageWrite as _, MessageWriteExt as _, MessageWriteVec,
    },
};
use tokio::net::UdpSocket;

use super::{config::StunLimits, metrics::Metrics, rate::RateLimiter};

/// Largest request that is read. RFC 8489 section 6.1 keeps a message below the path MTU,
/// 1280 bytes at the least that IPv6 allows; longer ones are cut and so malformed.
const MAX_REQUEST: usize = 1280;
/// Most attributes that an error answer names as unknown.
const MAX_UNKNOWN: usize = 8;
/// Comprehension-required attributes (RFC 8489 section 14) that a request may carry. Without
/// authentication the credentials among them mean nothing, but are no reason to refuse.
const UNDERSTOOD: [AttributeType; 5] = [
    Username::TYPE,
    MessageIntegrity::TYPE,
    MessageIntegritySha256::TYPE,
    Software::TYPE,
    Fingerprint::TYPE,
];

/// What becomes of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A Binding request: this goes back.
    Answer(Vec<u8>),
    /// A request that cannot be served: this error response goes back.
    Refuse(Vec<u8>),
    /// Not STUN, or not a request that a server answers. Nothing goes back.
    Ignore,
}

/// Answers `datagram`, which came from `source`.
pub(crate) fn answer(datagram: &[u8], source: SocketAddr) -> Outcome {
    // A wrong FINGERPRINT, length or magic cookie fails here (RFC 8489 section 6.3).
    let Ok(request) = Message::from_bytes(datagram) else {
        return Outcome::Ignore;
    };
    // Section 6.3.2: an indication gets no response; and a response was not asked for.
    if !request.has_class(MessageClass::Request) || request.method() != BINDING {
        return Outcome::Ignore;
    }
    // Section 6.3.1: unknown comprehension-required attributes get a 420. CHANGE-REQUEST is
    // one of them, as RFC 5780 section 6.1 has it for servers with one address.
    let unknown: Vec<AttributeType> = request
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && !UNDERSTOOD.contains(kind))
        .take(MAX_UNKNOWN)
        .collect();
    if unknown.is_empty() {
        success(&request, source).map_or(Outcome::Ignore, Outcome::Answer)
    } else {
        unknown_attributes(&request, &unknown).map_or(Outcome::Ignore, Outcome::Refuse)
    }
}

fn success(request: &Message<'_>, source: SocketAddr) -> Option<Vec<u8>> {
    // A dual-stack socket shows IPv4 sources as mapped IPv6 addresses.
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let mut response = Message::builder_success(request, MessageWriteVec::new());
    response
        .add_attribute(&XorMappedAddress::new(source, request.transaction_id()))
        .ok()?;
    finish(request, response)
}

fn unknown_attributes(request: &Message<'_>, unknown: &[AttributeType]) -> Option<Vec<u8>> {
    let mut response = Message::builder_error(request, MessageWriteVec::new());
    // Without a reason phrase: nobody reads it, and it would make the answer longer.
    response
        .add_attribute(&ErrorCode::builder(420).reason("").build().ok()?)
        .ok()?;
    response
        .add_attribute(&UnknownAttributes::new(unknown))
        .ok()?;
    finish(request, response)
}

/// Section 6.3.1: FINGERPRINT is added where the request had it.
fn finish(request: &Message<'_>, mut response: MessageWriteVec) -> Option<Vec<u8>> {
    if request.has_attribute(Fingerprint::TYPE) {
        response.add_fingerprint().ok()?;
    }
    Some(response.finish())
}

/// Serves `sockets` until the future is dropped.
pub(crate) async fn serve(sockets: Vec<UdpSocket>, limits: StunLimits, metrics: Metrics) {
    futures::future::join_all(
        sockets
            .into_iter()
            .map(|socket| serve_one(socket, &limits, &metrics)),
    )
    .await;
}

async fn serve_one(socket: UdpSocket, limits: &StunLimits, metrics: &Metrics) {
    let mut limiter = RateLimiter::new(limits.per_source.get(), limits.total.get(), Instant::now());
    let mut buffer = [0; MAX_REQUEST];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "STUN socket");
                // An ICMP error of an earlier answer is gone now; anything lasting must
                // not keep a core busy.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        // Port 0 cannot be answered, and a multicast source is forged.
        if source.port() == 0 || is_never_a_source(source.ip()) {
            metrics.stun("ignored");
            continue;
        }
        let (datagram, outcome) = match answer(&buffer[..length], source) {
            Outcome::Answer(datagram) => (datagram, "answered"),
            Outcome::Refuse(datagram) => (datagram, "refused"),
            Outcome::Ignore => {
                metrics.stun("ignored");
                continue;
            }
        };
        if !limiter.allow(source.ip(), Instant::now()) {
            metrics.stun("limited");
            continue;
        }
        metrics.stun(outcome);
        // Never waits: an answer that the full socket buffer refuses is lost as UDP may be.
        if let Err(error) = socket.try_send_to(&datagram, source)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::debug!(%error, "STUN answer");
        }
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

    fn mapped(answer: &[u8]) -> SocketAddr {
        let message = Message::from_bytes(answer).unwrap();
        assert!(message.has_class(MessageClass::Success));
        message
            .attribute::<XorMappedAddress>()
            .unwrap()
            .addr(message.transaction_id())
    }

    #[test]
    fn a_binding_request_gets_its_source() {
        for source in [SOURCE, "[2001:db8::1]:32853"] {
            let source = source.parse().unwrap();
            let request = request().finish();
            let Outcome::Answer(response) = answer(&request, source) else {
                panic!("no answer");
            };
            assert_eq!(mapped(&response), source);
            assert_eq!(response[8..20], request[8..20], "same transaction");
            assert!(response.len() <= request.len() + 24);
        }
    }

    #[test]
    fn a_mapped_ipv4_source_is_told_as_ipv4() {
        let Outcome::Answer(response) =
            answer(&request().finish(), "[::ffff:192.0.2.1]:1".parse().unwrap())
        else {
            panic!("no answer");
        };
        assert_eq!(mapped(&response).to_string(), "192.0.2.1:1");
    }

    #[test]
    fn a_fingerprint_is_answered_with_one() {
        let mut request = request();
        request.add_fingerprint().unwrap();
        let Outcome::Answer(response) = answer(&request.finish(), SOURCE.parse().unwrap()) else {
            panic!("no answer");
        };
        let response = Message::from_bytes(&response).unwrap();
        assert!(response.has_attribute(Fingerprint::TYPE));
    }

    /// RFC 5769 section 2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME,
    /// MESSAGE-INTEGRITY and FINGERPRINT. PRIORITY is comprehension-required and is ICE's.
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
    fn what_no_server_answers_is_ignored() {
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
        if let Outcome::Answer(response) | Outcome::Refuse(response) =
            answer(datagram, "[2001:db8::1]:1".parse().unwrap())
        {
            assert!(response.len() <= datagram.len() + 32);
        }
    }
}
