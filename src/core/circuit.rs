//! Messages between a dialler and the relay that it asks for a circuit (libp2p specification
//! `relay/circuit-v2.md`, "Hop Protocol").
//!
//! Each message is a proto3 message after its length, which is an unsigned varint.

use std::fmt;

use multiaddr::PeerId;

use super::protobuf::{behind_length, field, skip_field, take_varint};

/// The protocol of the stream on which a relay is asked.
pub(crate) const HOP_PROTOCOL: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// The protocol by which a relay of this library is asked instead. Such a relay forwards the
/// following bytes before the peer has agreed.
pub(crate) const EARLY_PROTOCOL: &str = "/throughline/circuit/1";

/// The longest answer that is read, as in libp2p's own implementations.
const MAX_ANSWER: usize = 4096;

// HopMessage { type = 1, peer = 2, reservation = 3, limit = 4, status = 5 }, Peer { id = 1 }
const TYPE: u64 = 1 << 3;
const PEER: u64 = 2 << 3 | 2;
const STATUS: u64 = 5 << 3;
const PEER_ID: u64 = 1 << 3 | 2;
const TYPE_CONNECT: u8 = 1;
const TYPE_STATUS: u64 = 2;

/// Encodes the request for a circuit to `peer`.
pub(crate) fn connect(peer: &PeerId) -> Vec<u8> {
    let id = field(PEER_ID, &peer.to_bytes());
    let mut message = vec![TYPE as u8, TYPE_CONNECT];
    message.extend(field(PEER, &id));
    behind_length(&message)
}

/// Why there is no circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CircuitError {
    /// RESOURCE_LIMIT_EXCEEDED or RESERVATION_REFUSED: the relay has no room.
    Limit,
    /// PERMISSION_DENIED.
    Denied,
    /// Our own: our quota or the peer's is used up.
    Quota,
    /// CONNECTION_FAILED: the relay cannot reach the peer, or the peer refuses.
    Unreachable,
    /// NO_RESERVATION: the peer is not connected to the relay, or has not reserved there.
    NoReservation,
    /// The relay rejects our request as wrong, or answers with an unknown status.
    Refused(u64),
    /// The relay's answer is not the expected protobuf message. The value names the field.
    Malformed(&'static str),
    /// There is no connection to the relay.
    NoLink,
}

impl CircuitError {
    fn from_status(status: u64) -> Result<(), Self> {
        Err(match status {
            100 => return Ok(()),
            200 | 201 => Self::Limit,
            202 => Self::Denied,
            429 => Self::Quota,
            203 => Self::Unreachable,
            204 => Self::NoReservation,
            other => Self::Refused(other),
        })
    }
}

impl fmt::Display for CircuitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "the relay has no room for another circuit",
            Self::Denied => "the relay does not let us connect to this peer",
            Self::Quota => "a quota is used up",
            Self::Unreachable => "the relay could not connect to the peer",
            Self::NoReservation => "the peer holds no reservation on the relay",
            Self::Refused(status) => return write!(f, "the relay answered with status {status}"),
            Self::Malformed(what) => return write!(f, "the relay's answer is malformed: {what}"),
            Self::NoLink => "there is no connection to the relay",
        })
    }
}

impl std::error::Error for CircuitError {}

/// Reads a relay's answer from the front of a stream, and no byte after it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// The length of the message, once the prefix has arrived.
    length: Option<usize>,
}

impl Answer {
    /// Returns how many bytes to read next. It is never 0 before the answer is complete.
    pub(crate) fn wanted(&self) -> usize {
        match self.length {
            // The length is read byte by byte, because the bytes after a short message are the
            // peer's.
            None => 1,
            Some(length) => length.saturating_sub(self.bytes.len()),
        }
    }

    /// Takes up to [`wanted`](Self::wanted) bytes. Returns `Ok(true)` once there is a circuit.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<bool, CircuitError> {
        self.bytes.extend_from_slice(bytes);
        if self.length.is_none() {
            let Ok((length, [])) = unsigned_varint::decode::usize(&self.bytes) else {
                // Two bytes can hold every allowed length.
                return match self.bytes.len() {
                    0 | 1 => Ok(false),
                    _ => Err(CircuitError::Malformed("length")),
                };
            };
            if length == 0 || length > MAX_ANSWER {
                return Err(CircuitError::Malformed("length"));
            }
            self.length = Some(length);
            self.bytes.clear();
        }
        if self.wanted() > 0 {
            return Ok(false);
        }
        decode(&self.bytes)?;
        Ok(true)
    }
}

fn decode(mut rest: &[u8]) -> Result<(), CircuitError> {
    use CircuitError::Malformed;

    let (mut kind, mut status) = (0, None);
    while !rest.is_empty() {
        let tag = take_varint(&mut rest).ok_or(Malformed("tag"))?;
        match tag {
            TYPE => kind = take_varint(&mut rest).ok_or(Malformed("type"))?,
            STATUS => status = Some(take_varint(&mut rest).ok_or(Malformed("status"))?),
            tag => skip_field(tag, &mut rest).ok_or(Malformed("unknown field"))?,
        }
    }
    if kind != TYPE_STATUS {
        return Err(Malformed("type"));
    }
    CircuitError::from_status(status.ok_or(Malformed("no status"))?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u64) -> Vec<u8> {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        let status = unsigned_varint::encode::u64(status, &mut buffer);
        // type = STATUS, limit { duration = 60 }, status = 5, in numbers, because a wrong constant would
        // be wrong on both sides.
        let body = [&[8, 2, 34, 2, 8, 60, 40], status].concat();
        behind_length(&body)
    }

    /// Feeds `stream` in the wanted pieces. Returns the result and how many bytes were taken.
    fn read(stream: &[u8]) -> (Result<bool, CircuitError>, usize) {
        let mut answer = Answer::default();
        let mut taken = 0;
        loop {
            let next = answer.wanted().min(stream.len() - taken);
            if next == 0 {
                return (Ok(false), taken);
            }
            taken += next;
            match answer.push(&stream[taken - next..taken]) {
                Ok(false) => {}
                done => return (done, taken),
            }
        }
    }

    #[test]
    fn a_request_has_the_specified_bytes() {
        let peer: PeerId = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
            .parse()
            .unwrap();
        let mut expected = vec![44, 8, 1, 0x12, 40, 0x0a, 38];
        expected.extend(peer.to_bytes());
        assert_eq!(connect(&peer), expected);
    }

    #[test]
    fn every_refusal_has_its_own_error() {
        for (status, error) in [
            (200, CircuitError::Limit),
            (201, CircuitError::Limit),
            (202, CircuitError::Denied),
            (203, CircuitError::Unreachable),
            (204, CircuitError::NoReservation),
            (400, CircuitError::Refused(400)),
            (7, CircuitError::Refused(7)),
        ] {
            assert_eq!(read(&answer(status)).0, Err(error));
        }
    }

    #[test]
    fn malformed_answers_name_the_field() {
        let malformed = |what| Err(CircuitError::Malformed(what));
        assert_eq!(read(&[0]).0, malformed("length"));
        assert_eq!(read(&[0xff, 0xff, 1]).0, malformed("length"));
        assert_eq!(read(&[0x81, 0x20]).0, malformed("length"));
        assert_eq!(read(&[2, 8, 1]).0, malformed("type"));
        assert_eq!(read(&[2, 8, 2]).0, malformed("no status"));
        assert_eq!(read(&[2, 8, 0x80]).0, malformed("type"));
    }

    proptest! {
        #[test]
        fn bytes_after_an_answer_are_not_read(behind in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut stream = answer(100);
            let length = stream.len();
            stream.extend(behind);
            prop_assert_eq!(read(&stream), (Ok(true), length));
        }

        #[test]
        fn an_incomplete_answer_wants_more(cut in 0usize..9) {
            let stream = answer(100);
            prop_assert_eq!(read(&stream[..cut]), (Ok(false), cut));
        }

        #[test]
        fn noise_never_panics(stream in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&stream);
        }
    }
}
