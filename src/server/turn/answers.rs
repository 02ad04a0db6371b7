//! The answers to clients, and the parts of a request that the server understands.

use std::net::SocketAddr;

use stun_types::{
    AddressFamily,
    attribute::{
        Attribute as _, AttributeStaticType as _, AttributeType, ErrorCode, MessageIntegrity,
        Nonce, Realm, Username, XorMappedAddress,
    },
    message::{
        IntegrityAlgorithm, Message, MessageIntegrityCredentials, MessageWrite as _,
        MessageWriteExt as _, MessageWriteVec,
    },
};
use turn_client_proto::types::attribute::{
    AddressErrorCode, ChannelNumber, Data, DontFragment, EvenPort, Lifetime,
    RequestedAddressFamily, RequestedTransport, ReservationToken, XorPeerAddress,
    XorRelayedAddress,
};

use crate::server::stun::{self, Layout, Outcome};

/// The lifetime of an allocation in seconds (RFC 8656 section 7.2). It is the minimum, and the
/// default for a request that names none.
pub(super) const LIFETIME: u32 = 600;
/// The longest lifetime of an allocation in seconds (RFC 8656 section 7.2).
pub(super) const MAX_LIFETIME: u32 = 3600;

/// The most unknown attributes that an error answer names.
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
    // The kernel sets the bit in any case.
    DontFragment::TYPE,
    ReservationToken::TYPE,
];

/// The content of a successful answer.
#[derive(Default)]
pub(super) struct Success {
    pub(super) lifetime: Option<u32>,
    pub(super) relayed: Vec<SocketAddr>,
    pub(super) mapped: Option<SocketAddr>,
    /// The address family for which there is no relayed address, and the error code that says why.
    pub(super) missing: Option<(AddressFamily, u16)>,
    /// The token of the port that is kept for a second allocation.
    pub(super) token: Option<u64>,
}

pub(super) enum Refusal {
    Code(u16),
    Unknown(Vec<AttributeType>),
}

impl From<u16> for Refusal {
    fn from(code: u16) -> Self {
        Self::Code(code)
    }
}

/// Answers a binding request of STUN. Like many TURN servers, this one is also a STUN server.
pub(super) fn binding(frame: &[u8], client: SocketAddr) -> (Option<Vec<u8>>, &'static str) {
    // The answer comes from this socket only.
    match stun::answer(frame, client, 0, &Layout::of_one()) {
        Outcome::Answer(answer, _) => (Some(answer), "binding"),
        Outcome::Refuse(answer) => (Some(answer), "refused"),
        Outcome::Ignore => (None, "ignored"),
    }
}

pub(super) fn understood(request: &Message<'_>) -> Result<(), Refusal> {
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

pub(super) fn lifetime(request: &Message<'_>) -> u32 {
    request
        .attribute::<Lifetime>()
        .map_or(LIFETIME, |lifetime| lifetime.seconds())
}

pub(super) fn error_code(code: u16) -> Option<ErrorCode> {
    ErrorCode::builder(code).reason("").build().ok()
}

pub(super) fn succeed(
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
    if let Some(token) = success.token {
        answer.add_attribute(&ReservationToken::new(token)).ok()?;
    }
    if let Some((missing, code)) = success.missing {
        // RFC 8656 section 7.3 allows these two codes.
        let code = error_code(match code {
            ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED => code,
            _ => ErrorCode::INSUFFICIENT_CAPACITY,
        })?;
        answer
            .add_attribute(&AddressErrorCode::new(missing, code))
            .ok()?;
    }
    sign(answer, key)
}

pub(super) fn sign(
    mut answer: MessageWriteVec,
    key: &MessageIntegrityCredentials,
) -> Option<Vec<u8>> {
    answer
        .add_message_integrity(key, IntegrityAlgorithm::Sha1)
        .ok()?;
    Some(answer.finish())
}
