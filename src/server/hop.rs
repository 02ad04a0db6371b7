//! The messages of a relay (libp2p specification `relay/circuit-v2.md`). On `hop` streams, peers
//! ask for reservations and diallers ask for circuits. On `stop` streams, the relay tells a peer of
//! a circuit that it is to accept.

use std::time::{Duration, SystemTime};

use libp2p::{Multiaddr, PeerId};

use super::config::RelayLimits;
use crate::core::protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint};

/// The longest message that is accepted, as in libp2p.
pub(crate) const MAX_MESSAGE: usize = 4096;

// HopMessage { type = 1, peer = 2, reservation = 3, limit = 4, status = 5 }; types RESERVE, CONNECT,
// STATUS. StopMessage { type = 1, peer = 2, limit = 3, status = 4 }; types CONNECT, STATUS.
// Peer { id = 1 }, Reservation { expire = 1, addrs = 2 }, Limit { duration = 1, data = 2 }.
const HOP_RESERVE: u64 = 0;
const HOP_CONNECT: u64 = 1;
const HOP_STATUS: u8 = 2;
const STOP_STATUS: u64 = 1;

/// The answer of a relay ("Status codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = 100,
    Limit = 201,
    Denied = 202,
    Failed = 203,
    NoReservation = 204,
    Malformed = 400,
    /// Our own: the quota of one of both peers is used up.
    Quota = 429,
}

/// A request to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Reserve,
    /// A circuit to this peer, or a sealed offer for it.
    Connect(PeerId),
}

impl Request {
    /// Reads the message on a `hop` stream.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let message = decode(bytes)?;
        match message.kind? {
            HOP_RESERVE => Some(Self::Reserve),
            HOP_CONNECT => message.peer.map(Self::Connect),
            _ => None,
        }
    }
}

/// Returns the status that a peer answers on a `stop` stream.
pub(crate) fn stop_status(bytes: &[u8]) -> Option<u64> {
    let message = decode(bytes)?;
    message.status.filter(|_| message.kind == Some(STOP_STATUS))
}

/// The fields that matter here, of either kind of message.
#[derive(Default)]
struct Message {
    kind: Option<u64>,
    peer: Option<PeerId>,
    status: Option<u64>,
}

fn decode(mut rest: &[u8]) -> Option<Message> {
    let mut message = Message::default();
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            8 => message.kind = Some(take_varint(&mut rest)?),
            0x12 => {
                let mut peer = take_bytes(&mut rest)?;
                while !peer.is_empty() {
                    match take_varint(&mut peer)? {
                        0x0a => message.peer = PeerId::from_bytes(take_bytes(&mut peer)?).ok(),
                        tag => skip_field(tag, &mut peer)?,
                    }
                }
            }
            0x20 => message.status = Some(take_varint(&mut rest)?),
            tag => skip_field(tag, &mut rest)?,
        }
    }
    Some(message)
}

/// Encodes an answer with `status` on a `hop` stream.
pub(crate) fn hop_status(status: u64) -> Vec<u8> {
    behind_length(&[vec![8, HOP_STATUS, 0x28], varint(status)].concat())
}

/// Encodes the grant of a reservation that begins now, without its length. Each of `addresses` ends in
/// our peer id.
pub(crate) fn granted(addresses: &[Multiaddr], limits: &RelayLimits) -> Vec<u8> {
    // The peer reads the end as a date. The relay itself uses a clock that does not jump.
    hop_reservation(SystemTime::now(), addresses, limits)
}

fn hop_reservation(now: SystemTime, addresses: &[Multiaddr], limits: &RelayLimits) -> Vec<u8> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let term = Duration::from_secs(limits.reservation_seconds);
    let expire = now.unwrap_or_default().saturating_add(term).as_secs();
    let mut reservation = [vec![8], varint(expire)].concat();
    for address in addresses {
        reservation.extend(field(0x12, &address.to_vec()));
    }
    let status = [vec![0x28], varint(Status::Ok as u64)].concat();
    let (reservation, limit) = (field(0x1a, &reservation), field(0x22, &limit(limits)));
    [vec![8, HOP_STATUS], reservation, limit, status].concat()
}

/// Encodes the message on a `stop` stream that tells a peer of a circuit from `source`.
pub(crate) fn stop_connect(source: &PeerId, limits: &RelayLimits) -> Vec<u8> {
    let peer = field(0x12, &field(0x0a, &source.to_bytes()));
    behind_length(&[vec![8, 0], peer, field(0x1a, &limit(limits))].concat())
}

fn limit(limits: &RelayLimits) -> Vec<u8> {
    let seconds = varint(limits.circuit_duration().as_secs());
    [vec![8], seconds, vec![0x10], varint(limits.circuit_bytes)].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_answers_follow_the_specification() {
        let peer = PeerId::random();
        let request = crate::core::circuit::connect(&peer);
        assert_eq!(Request::decode(&request[1..]), Some(Request::Connect(peer)));
        assert_eq!(Request::decode(&[8, 0]), Some(Request::Reserve));
        for other in [&[][..], &[8, 1], &[8, 2], &[8], &[8, 0, 0x12, 5, 1]] {
            assert_eq!(Request::decode(other), None, "{other:?}");
        }
        assert_eq!(stop_status(&[8, 1, 0x20, 100]), Some(100));
        assert_eq!(stop_status(&[8, 0, 0x20, 100]), None);
        assert_eq!(hop_status(100), [4, 8, 2, 0x28, 100]);
        assert_eq!(hop_status(204), [5, 8, 2, 0x28, 0xcc, 1]);
    }

    #[test]
    fn a_reservation_holds_its_end_and_addresses() {
        let limits = RelayLimits {
            reservation_seconds: 60,
            circuit_seconds: 3,
            circuit_bytes: 200,
            ..RelayLimits::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(40);
        let address: Multiaddr = "/ip4/1.2.3.4".parse().unwrap();
        let reservation = [&[8, 100, 0x12, 5][..], &address.to_vec()].concat();
        let expected = [
            &[22, 8, 2, 0x1a, 9][..],
            &reservation,
            &[0x22, 5, 8, 3, 0x10, 0xc8, 1],
            &[0x28, 100],
        ]
        .concat();
        let reservation = hop_reservation(now, &[address], &limits);
        assert_eq!(behind_length(&reservation), expected);
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::decode(&bytes);
            let _ = stop_status(&bytes);
        }
    }
}
