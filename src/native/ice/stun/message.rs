//! Binding requests and their answers (RFC 8489), with the attributes of RFC 5780.

use std::net::SocketAddr;

use stun_types::{
    attribute::{
        AttributeType, ErrorCode, MappedSocketAddr, RawAttribute, Username, XorMappedAddress,
    },
    message::{
        BINDING, IntegrityAlgorithm, Message, MessageClass, MessageType, MessageWrite as _,
        MessageWriteExt as _, MessageWriteVec, ShortTermCredentials, TransactionId,
    },
};

use crate::core::scope::{Scope, scope};

/// The type of CHANGE-REQUEST (RFC 5780 section 7.2).
pub(crate) const CHANGE_REQUEST: AttributeType = AttributeType::new(0x0003);
/// The type of RESPONSE-ORIGIN (RFC 5780 section 7.3).
pub(crate) const RESPONSE_ORIGIN: AttributeType = AttributeType::new(0x802b);
/// The type of OTHER-ADDRESS (RFC 5780 section 7.4).
pub(crate) const OTHER_ADDRESS: AttributeType = AttributeType::new(0x802c);

/// The types of PRIORITY and ICE-CONTROLLED (RFC 8445 section 16.1).
const PRIORITY: AttributeType = AttributeType::new(0x0024);
const ICE_CONTROLLED: AttributeType = AttributeType::new(0x8029);

const CHANGE_IP: u8 = 4;
const CHANGE_PORT: u8 = 2;

/// The source from which a server is asked to answer (RFC 5780 section 7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// From the other IP address of the server.
    pub(crate) ip: bool,
    /// From the other port of the server.
    pub(crate) port: bool,
}

impl Change {
    /// Writes the value of the attribute.
    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let ip = if self.ip { CHANGE_IP } else { 0 };
        let port = if self.port { CHANGE_PORT } else { 0 };
        [0, 0, 0, ip | port]
    }

    /// Reads the value of the attribute. Returns `None` if it has another length.
    #[cfg(any(feature = "server", test))]
    pub(crate) fn from_bytes(value: &[u8]) -> Option<Self> {
        let [.., flags]: [u8; 4] = value.try_into().ok()?;
        Some(Self {
            ip: flags & CHANGE_IP != 0,
            port: flags & CHANGE_PORT != 0,
        })
    }
}

/// Makes a Binding request with a new transaction.
pub(crate) fn request(change: Change) -> (TransactionId, Vec<u8>) {
    let id = TransactionId::generate();
    let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
    let mut request = Message::builder(kind, id, MessageWriteVec::new());
    if change != Change::default() {
        // This fails only when the attribute is there already.
        let _ = request.add_attribute(&RawAttribute::new(CHANGE_REQUEST, &change.to_bytes()));
    }
    (id, request.finish())
}

/// Makes a connectivity check of a controlled agent (RFC 8445 section 7.2.2). Returns `None` if
/// `username` is longer than a user name may be.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
pub(crate) fn check(username: &str, password: &str) -> Option<Vec<u8>> {
    let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
    let id = TransactionId::generate();
    let mut check = Message::builder(kind, id, MessageWriteVec::new());
    let password = ShortTermCredentials::new(password.to_owned());
    check.add_attribute(&Username::new(username).ok()?).ok()?;
    for (kind, value) in [(PRIORITY, &[1; 4][..]), (ICE_CONTROLLED, &[0; 8])] {
        check.add_attribute(&RawAttribute::new(kind, value)).ok()?;
    }
    check
        .add_message_integrity(&password.into(), IntegrityAlgorithm::Sha1)
        .ok()?;
    check.add_fingerprint().ok()?;
    Some(check.finish())
}

/// Makes a Binding indication. It asks for nothing, and the receiver ignores it (RFC 8489 section
/// 6.3.2).
pub(crate) fn indication() -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Indication, BINDING);
    Message::builder(kind, TransactionId::generate(), MessageWriteVec::new()).finish()
}

/// The answer of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// A success response, with XOR-MAPPED-ADDRESS and the attributes of RFC 5780.
    Success {
        mapped: SocketAddr,
        /// Whether RESPONSE-ORIGIN is there, which means that the server supports RFC 5780.
        discovers: bool,
        /// The value of OTHER-ADDRESS, if the server has a second IP address.
        other: Option<SocketAddr>,
    },
    /// An error response with this code.
    Error(u16),
}

/// Reads an answer to a Binding request. Returns `None` for everything else.
pub(crate) fn response(datagram: &[u8]) -> Option<(TransactionId, Response)> {
    let message = Message::from_bytes(datagram).ok()?;
    let id = message.transaction_id();
    if message.method() != BINDING {
        return None;
    }
    let response = match message.class() {
        MessageClass::Success => Response::Success {
            mapped: mapped(&message)?,
            discovers: message.raw_attribute(RESPONSE_ORIGIN).is_some(),
            other: message
                .raw_attribute(OTHER_ADDRESS)
                .and_then(|raw| MappedSocketAddr::from_raw(&raw).ok())
                .map(|other| other.addr()),
        },
        MessageClass::Error => Response::Error(message.attribute::<ErrorCode>().ok()?.code()),
        MessageClass::Request | MessageClass::Indication => return None,
    };
    Some((id, response))
}

/// Reads XOR-MAPPED-ADDRESS. Peers are told this address and send to it, so it must not be a
/// forbidden one.
fn mapped(message: &Message<'_>) -> Option<SocketAddr> {
    let mapped = message.attribute::<XorMappedAddress>().ok()?;
    let mapped = mapped.addr(message.transaction_id());
    (scope(mapped.ip()) != Scope::Forbidden).then_some(mapped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_change_request_is_read_back() {
        for (ip, port) in [(false, true), (true, false), (true, true)] {
            let change = Change { ip, port };
            let (_, request) = request(change);
            let message = Message::from_bytes(&request).unwrap();
            let raw = message.raw_attribute(CHANGE_REQUEST).unwrap();
            assert_eq!(Change::from_bytes(&raw.value), Some(change));
        }
        assert_eq!(Change::from_bytes(&[0; 3]), None);
        assert_eq!(request(Change::default()).1.len(), 20);
    }

    #[test]
    fn only_answers_to_binding_requests_are_read() {
        let (id, request) = request(Change::default());
        assert_eq!(response(&request), None);
        let request = Message::from_bytes(&request).unwrap();
        let mapped = "192.0.2.1:7".parse().unwrap();
        let mut success = Message::builder_success(&request, MessageWriteVec::new());
        success
            .add_attribute(&XorMappedAddress::new(mapped, id))
            .unwrap();
        let other = "192.0.2.9:9".parse().unwrap();
        success
            .add_attribute(&MappedSocketAddr::new(other).to_raw(OTHER_ADDRESS))
            .unwrap();
        let expected = Response::Success {
            mapped,
            discovers: false,
            other: Some(other),
        };
        assert_eq!(response(&success.finish()), Some((id, expected)));
        let mut error = Message::builder_error(&request, MessageWriteVec::new());
        let code = ErrorCode::builder(420).build().unwrap();
        error.add_attribute(&code).unwrap();
        assert_eq!(response(&error.finish()), Some((id, Response::Error(420))));
        let mut aimed = Message::builder_success(&request, MessageWriteVec::new());
        let metadata = "169.254.169.254:80".parse().unwrap();
        aimed
            .add_attribute(&XorMappedAddress::new(metadata, id))
            .unwrap();
        assert_eq!(response(&aimed.finish()), None);
        let empty = Message::builder_success(&request, MessageWriteVec::new());
        assert_eq!(response(&empty.finish()), None);
    }

    proptest! {
        #[test]
        fn any_datagram_is_handled(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = response(&datagram);
        }

        #[test]
        fn any_answer_is_handled(body in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut datagram = vec![1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
            datagram.extend_from_slice(&[7; 12]);
            for chunk in body.chunks(4) {
                datagram.extend_from_slice(&[0, 0x20, 0, 4]);
                datagram.extend(chunk.iter().chain(&[0; 3]).take(4));
            }
            let length = (datagram.len() - 20) as u16;
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
            let _ = response(&datagram);
        }
    }
}
