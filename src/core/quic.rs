//! Finds the endpoint to which a QUIC datagram belongs, by the bytes that every version leaves in
//! the clear (RFC 8999), and decides when outgoing datagrams are worth joining.
//!
//! Several endpoints share a socket: one listens and dials, and each ICE session may have one. They
//! are told apart by a tag in the connection ids that we choose. The source address would not do,
//! because two connections may have it in common.

use std::{ops::RangeInclusive, time::Duration};

/// The tag of one endpoint.
pub(crate) type Tag = [u8; 4];

/// The length of the connection ids that our endpoints choose: the tag and 8 random bytes. A guess
/// is as unlikely as with the usual ids of 8 bytes.
pub(crate) const CONNECTION_ID_LEN: usize = 12;

/// Datagrams whose first byte is lower belong to another protocol (RFC 9443 section 3). All of ours
/// have the fixed bit of RFC 9000 section 17, because we do not offer to have it greased.
pub(crate) const FIRST_BYTE: u8 = 64;

/// The first bytes of data of TURN channels, which short headers may have too. RFC 8656 section 12 ends
/// them at 0x4f, for the sake of those who tell protocols apart by the first byte alone. Clients of RFC
/// 5766, such as coturn's, take numbers up to 0x7fff, and short headers are known by their tag here.
pub(crate) const CHANNEL_DATA: RangeInclusive<u8> = 0x40..=0x7f;

/// This bit marks a long header, which contains the length of its connection ids (RFC 8999 section
/// 5.1).
const LONG_HEADER: u8 = 0x80;

/// The destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The tag in the connection id, if the id has the length of ours.
    pub(crate) tag: Option<Tag>,
    /// Whether a connection may begin with the datagram. The peer may then have chosen the
    /// connection id.
    pub(crate) may_begin: bool,
}

impl Destination {
    /// Reads the destination connection id of `datagram`. Returns `None` if there is none.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let may_begin = datagram.first()? & LONG_HEADER != 0;
        let id = if may_begin {
            // The length of the id stands after the first byte and the version.
            let len = usize::from(*datagram.get(5)?);
            datagram.get(6..6 + len)?
        } else {
            datagram.get(1..=CONNECTION_ID_LEN)?
        };
        let ours = id.len() == CONNECTION_ID_LEN;
        Some(Self {
            tag: id.first_chunk().copied().filter(|_| ours),
            may_begin,
        })
    }
}

/// Decides when datagrams are worth joining for the kernel (UDP GSO).
///
/// As soon as a connection sends a joined datagram, Quinn allocates room for the largest one and
/// keeps it. That is 14 KiB, which a connection that only opens, or stays idle, does not need.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    /// How many datagrams the connection has sent in its current turn.
    sent: usize,
    /// When the last turn with many datagrams was.
    last: Option<Duration>,
}

impl Bulk {
    /// More datagrams than any message of a handshake has.
    const MANY: usize = 8;

    /// A long round trip, and the delays that schedulers add.
    const LASTS: Duration = Duration::from_secs(1);

    pub(crate) fn sent(&mut self, datagrams: usize) {
        self.sent = self.sent.saturating_add(datagrams);
    }

    /// Notes that a connection begins a turn to send at `now`, counted from any fixed time. Returns
    /// whether datagrams may be joined in this turn.
    pub(crate) fn turn(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.sent) >= Self::MANY {
            self.last = Some(now);
        }
        self.last.is_some_and(|last| now < last + Self::LASTS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn long(id: &[u8]) -> Vec<u8> {
        [&[0xc0, 0, 0, 0, 1, id.len() as u8], id, &[0, 0]].concat()
    }

    #[test]
    fn the_tag_is_read_from_both_kinds_of_header() {
        let id = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let to = |tag, may_begin| Some(Destination { tag, may_begin });
        let tag = Some([1, 2, 3, 4]);
        assert_eq!(Destination::of(&long(&id)), to(tag, true));
        let short = [&[0x40], &id[..], &[0]].concat();
        assert_eq!(Destination::of(&short), to(tag, false));
        assert_eq!(Destination::of(&long(&id[..8])), to(None, true));
        assert_eq!(Destination::of(&long(&[])), to(None, true));
        assert_eq!(Destination::of(&short[..12]), None);
        assert_eq!(Destination::of(&[0xc0, 0, 0, 0, 1, 20, 1]), None);
        assert_eq!(Destination::of(&[]), None);
    }

    #[test]
    fn datagrams_are_joined_after_turns_with_many() {
        let (mut bulk, start) = (Bulk::default(), Duration::from_secs(7));
        assert!(!bulk.turn(start));
        for _ in 1..Bulk::MANY {
            bulk.sent(1);
        }
        assert!(!bulk.turn(start));
        bulk.sent(3);
        bulk.sent(Bulk::MANY - 3);
        assert!(bulk.turn(start));
        bulk.sent(1);
        assert!(bulk.turn(start + Bulk::LASTS / 2));
        assert!(!bulk.turn(start + Bulk::LASTS));
    }

    proptest! {
        #[test]
        fn never_panics(datagram in proptest::collection::vec(any::<u8>(), 0..64)) {
            Destination::of(&datagram);
        }
    }
}
