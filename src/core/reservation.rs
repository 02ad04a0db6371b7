//! The messages by which a peer reserves on a relay, and by which the relay brings it circuits
//! (libp2p specification `relay/circuit-v2.md`, "Reservation" and "Stop Protocol").
//!
//! Each message is a proto3 message after its length, which is an unsigned varint.

use std::{fmt, time::Duration};

use multiaddr::{Multiaddr, PeerId};

use super::{
    access::Denial,
    protobuf::{skip_field, take_bytes, take_varint},
};
use crate::error::ErrorKind;

/// The protocol of the stream on which a relay brings a circuit.
pub(crate) const STOP_PROTOCOL: &str = "/libp2p/circuit/relay/0.2.0/stop";

/// The longest message that is read, as in libp2p's own implementations.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// The pause before the next try if a relay did not renew a reservation.
pub(crate) const RENEW_AGAIN: Duration = Duration::from_secs(30);

/// How long a reservation lasts at least, and when it is renewed. `ours` says whether the relay is one
/// of this library.
///
/// A relay says by its own clock when a reservation ends, and the clocks of two machines may differ
/// by any amount. So nobody reads that date. Our relays reserve for three minutes at least. libp2p's
/// own relays reserve for an hour or longer, and some of them count renewals as new requests, of which
/// they allow one in two minutes.
pub(crate) const fn terms(ours: bool) -> (Duration, Duration) {
    let (term, renewal) = match ours {
        true => (180, 100),
        false => (60 * 60, 20 * 60),
    };
    (Duration::from_secs(term), Duration::from_secs(renewal))
}

/// RESERVE, as it stands on the stream.
pub(crate) const RESERVE: [u8; 3] = [2, 8, 0];

/// STATUS with `OK`, by which a peer agrees to a circuit, as it stands on the stream.
pub(crate) const ACCEPTED: [u8; 5] = [4, 8, 1, 0x20, 100];

// HopMessage { type = 1, peer = 2, reservation = 3, limit = 4, status = 5 }; STATUS is type 2.
// StopMessage { type = 1, peer = 2, limit = 3, status = 4 }; CONNECT is type 0.
// Peer { id = 1 }, Reservation { expire = 1, addrs = 2, voucher = 3 }.
const TYPE: u64 = 1 << 3;
const PEER: u64 = 2 << 3 | 2;
const RESERVATION: u64 = 3 << 3 | 2;
const STATUS: u64 = 5 << 3;
const PEER_ID: u64 = 1 << 3 | 2;
const ADDRESSES: u64 = 2 << 3 | 2;
const STOP_CONNECT: u64 = 0;
const HOP_STATUS: u64 = 2;

/// Why a relay grants no reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReservationError {
    /// RESERVATION_REFUSED or RESOURCE_LIMIT_EXCEEDED: the relay has no room.
    Limit,
    /// PERMISSION_DENIED.
    Denied,
    /// Our quota is used up, and begins anew after this time if the relay has said so.
    Quota(Option<Duration>),
    /// Any other status.
    Refused(u64),
    /// The relay's answer is not the expected protobuf message.
    Malformed,
    /// The peer does not serve as a relay.
    NoRelay,
    /// The relay could not be asked, or did not answer.
    NoAnswer(String),
}

impl ReservationError {
    /// Whether another request may be granted soon.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Limit | Self::NoAnswer(_))
    }

    /// Returns what the user hears if the relay does not serve this peer although it works.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let (kind, ends) = match self {
            Self::Limit => (ErrorKind::LimitExceeded, None),
            Self::Denied => (ErrorKind::AccessDenied, None),
            Self::Quota(ends) => (ErrorKind::QuotaExceeded, *ends),
            _ => return None,
        };
        Some(Refusal { kind, ends })
    }
}

/// The error for the user, and after which time it ends, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    pub(crate) ends: Option<Duration>,
}

impl From<Denial> for ReservationError {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Access => Self::Denied,
            Denial::Quota(ends) => Self::Quota(Some(ends)),
            Denial::Limit => Self::Limit,
        }
    }
}

impl fmt::Display for ReservationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "the relay has no room for another reservation",
            Self::Denied => "the relay does not admit us",
            Self::Quota(_) => "our quota is used up",
            Self::Refused(status) => return write!(f, "the relay answered with status {status}"),
            Self::Malformed => "the relay's answer is malformed",
            Self::NoRelay => "it does not serve as a relay",
            Self::NoAnswer(why) => return write!(f, "the relay did not answer: {why}"),
        })
    }
}

/// Reads a relay's answer to [`RESERVE`]. Returns the addresses that the relay announces for itself.
/// Addresses that cannot be read are left out.
///
/// # Errors
/// Returns why the relay grants no reservation.
pub(crate) fn granted(answer: &[u8]) -> Result<Vec<Multiaddr>, ReservationError> {
    let (status, addresses) = answered(answer).ok_or(ReservationError::Malformed)?;
    match status {
        100 => Ok(addresses),
        200 | 201 => Err(ReservationError::Limit),
        202 => Err(ReservationError::Denied),
        429 => Err(ReservationError::Quota(None)),
        other => Err(ReservationError::Refused(other)),
    }
}

fn answered(mut rest: &[u8]) -> Option<(u64, Vec<Multiaddr>)> {
    let (mut kind, mut status, mut addresses) = (None, None, Vec::new());
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            TYPE => kind = Some(take_varint(&mut rest)?),
            STATUS => status = Some(take_varint(&mut rest)?),
            RESERVATION => {
                let mut reservation = take_bytes(&mut rest)?;
                while !reservation.is_empty() {
                    match take_varint(&mut reservation)? {
                        ADDRESSES => {
                            let address = take_bytes(&mut reservation)?.to_vec();
                            addresses.extend(Multiaddr::try_from(address));
                        }
                        tag => skip_field(tag, &mut reservation)?,
                    }
                }
            }
            tag => skip_field(tag, &mut rest)?,
        }
    }
    (kind == Some(HOP_STATUS)).then_some((status?, addresses))
}

/// Reads the message by which a relay brings a circuit. Returns who dials.
pub(crate) fn source(mut rest: &[u8]) -> Option<PeerId> {
    let (mut kind, mut source) = (None, None);
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            TYPE => kind = Some(take_varint(&mut rest)?),
            PEER => {
                let mut peer = take_bytes(&mut rest)?;
                while !peer.is_empty() {
                    match take_varint(&mut peer)? {
                        PEER_ID => source = PeerId::from_bytes(take_bytes(&mut peer)?).ok(),
                        tag => skip_field(tag, &mut peer)?,
                    }
                }
            }
            tag => skip_field(tag, &mut rest)?,
        }
    }
    source.filter(|_| kind == Some(STOP_CONNECT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::protobuf::{behind_length, field};

    /// type = STATUS, reservation { expire = 1, addrs }, limit { duration = 60 }, status
    fn answer(status: &[u8], addresses: &[&[u8]]) -> Vec<u8> {
        let mut reservation = vec![8, 1];
        for address in addresses {
            reservation.extend(field(0x12, address));
        }
        let reservation = field(0x1a, &reservation);
        [&[8, 2][..], &reservation, &[0x22, 2, 8, 60, 0x28], status].concat()
    }

    #[test]
    fn messages_have_the_specified_bytes() {
        assert_eq!(RESERVE[..], behind_length(&[8, 0]));
        assert_eq!(ACCEPTED[..], behind_length(&[8, 1, 0x20, 100]));
        let peer = PeerId::random();
        let connect = [&[8, 0][..], &field(0x12, &field(0x0a, &peer.to_bytes()))].concat();
        assert_eq!(source(&connect), Some(peer));
        for other in [
            &[][..],
            &connect[..2],
            &connect[2..],
            &[8, 1],
            &[8, 0, 0x12, 5, 1],
        ] {
            assert_eq!(source(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_grant_has_the_addresses_that_can_be_read() {
        let address: Multiaddr = "/ip4/1.2.3.4/tcp/1".parse().unwrap();
        let grant = answer(&[100], &[&address.to_vec(), &[0xff], &[4, 1]]);
        assert_eq!(granted(&grant), Ok(vec![address]));
        assert_eq!(granted(&answer(&[100], &[])), Ok(vec![]));
    }

    #[test]
    fn reservations_last_as_long_as_each_kind_of_relay_grants() {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        assert_eq!(terms(true), (minutes(3), Duration::from_secs(100)));
        assert_eq!(terms(false), (minutes(60), minutes(20)));
    }

    #[test]
    fn only_some_refusals_pass_or_concern_the_user() {
        let ends = Some(Duration::from_secs(9));
        for (error, passes, refusal) in [
            (
                ReservationError::Limit,
                true,
                Some((ErrorKind::LimitExceeded, None)),
            ),
            (
                ReservationError::Denied,
                false,
                Some((ErrorKind::AccessDenied, None)),
            ),
            (
                ReservationError::Quota(ends),
                false,
                Some((ErrorKind::QuotaExceeded, ends)),
            ),
            (ReservationError::Refused(7), false, None),
            (ReservationError::Malformed, false, None),
            (ReservationError::NoRelay, false, None),
            (ReservationError::NoAnswer(String::new()), true, None),
        ] {
            let found = error.refusal().map(|r| (r.kind, r.ends));
            assert_eq!((error.may_pass(), found), (passes, refusal), "{error:?}");
        }
    }

    #[test]
    fn every_refusal_has_its_own_error() {
        for (status, error) in [
            (&[0xc8, 1][..], ReservationError::Limit),
            (&[0xc9, 1], ReservationError::Limit),
            (&[0xca, 1], ReservationError::Denied),
            (&[0xad, 3], ReservationError::Quota(None)),
            (&[7], ReservationError::Refused(7)),
            (&[0x80], ReservationError::Malformed),
        ] {
            assert_eq!(granted(&answer(status, &[])), Err(error));
        }
        for other in [&[][..], &[8, 2], &[8, 1, 0x28, 100], &[0x28, 100]] {
            assert_eq!(granted(other), Err(ReservationError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = granted(&bytes);
            let _ = source(&bytes);
        }
    }
}
