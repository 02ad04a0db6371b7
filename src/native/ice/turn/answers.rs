//! Reads the messages of a client's server, and the client's own requests.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use stun_types::{
    attribute::ErrorCode,
    message::{Message, MessageClass, TransactionId},
};
use turn_client_proto::types::{
    attribute::{ChannelNumber, XorPeerAddress},
    message::{CHANNEL_BIND, CREATE_PERMISSION, REFRESH},
};

/// The most requests that are remembered. A client has a few under way at a time.
const MAX_ASKED: usize = 64;

/// The requests that were sent last. Only their answers are believed: whoever cannot see the requests
/// must guess 96 bits.
#[derive(Default)]
pub(super) struct Asked(VecDeque<TransactionId>);

impl Asked {
    /// Takes note of a request. The same request may be sent again.
    pub(super) fn note(&mut self, request: &Message<'_>) {
        let id = request.transaction_id();
        if !self.0.contains(&id) {
            self.0.truncate(MAX_ASKED - 1);
            self.0.push_front(id);
        }
    }

    /// Whether a response answers one of the requests.
    pub(super) fn answers(&self, response: &Message<'_>) -> bool {
        self.0.contains(&response.transaction_id())
    }
}

/// The meaning of an error for an allocation that the server has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The server does not have it.
    Gone,
    /// The server may not have it.
    Doubtful,
    /// The error is about one peer alone.
    Peer,
}

/// Returns what an error of the server means (RFC 8656 sections 5, 8.3, 10.3 and 12.3). The client
/// repeats refused requests until the allocation expires, and takes 437 for an answer that is still
/// to come.
pub(super) fn meaning(answer: &Message<'_>, code: u16) -> Meaning {
    let is = |method| answer.has_method(method);
    match code {
        ErrorCode::ALLOCATION_MISMATCH => Meaning::Gone,
        _ if is(REFRESH) => Meaning::Gone,
        ErrorCode::BAD_REQUEST if is(CREATE_PERMISSION) => Meaning::Gone,
        ErrorCode::BAD_REQUEST => Meaning::Doubtful,
        _ => Meaning::Peer,
    }
}

/// The error code of a response. A stale nonce is left out, because it is a step of authentication.
pub(super) fn error_code(message: &Message<'_>) -> Option<u16> {
    if !message.has_class(MessageClass::Error) {
        return None;
    }
    let code = message.attribute::<ErrorCode>().ok()?.code();
    (code != ErrorCode::STALE_NONCE).then_some(code)
}

/// The channel that a request binds, and its peer.
pub(super) fn asked_channel(message: &Message<'_>) -> Option<(u16, SocketAddr)> {
    let bind = message.has_method(CHANNEL_BIND) && message.has_class(MessageClass::Request);
    let number = message.attribute::<ChannelNumber>().ok().filter(|_| bind)?;
    let peer = message.attribute::<XorPeerAddress>().ok()?;
    Some((number.channel(), peer.addr(message.transaction_id())))
}

/// The datagram in a ChannelData message (RFC 8656 section 12.4), and its peer.
pub(super) fn channel_data<'a>(
    numbers: &HashMap<u16, SocketAddr>,
    frame: &'a [u8],
) -> Option<(SocketAddr, &'a [u8])> {
    let [first, second, high, low, data @ ..] = frame else {
        return None;
    };
    let peer = numbers.get(&u16::from_be_bytes([*first, *second]))?;
    let len = u16::from_be_bytes([*high, *low]);
    Some((*peer, data.get(..usize::from(len))?))
}
