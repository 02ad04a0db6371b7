//! To which endpoint a QUIC datagram goes, read from what every version leaves in the clear
//! (RFC 8999), and when those that go out are worth joining.
//!
//! Several endpoints share a socket: one listens and dials, and others are those of ICE sessions. They
//! are told apart by a mark in the connection ids that are ours to choose, not by the address a
//! datagram comes from, because two connections may have that in common.

use std::time::Duration;

/// The mark of one endpoint.
pub(crate) type Tag = [u8; 4];

/// Length of the connection ids that our endpoints choose: the mark and 8 random bytes, which make
/// a guess as unlikely as with the ids of 8 bytes that are usual.
pub(crate) const CONNECTION_ID_LEN: usize = 12;

/// Datagrams that begin with less are of another protocol (RFC 9443 section 3): the fixed bit of
/// RFC 9000 section 17 is set in all of ours, since we do not offer to have it greased.
pub(crate) const FIRST_BYTE: u8 = 64;

/// Marks a long header, which has the length of its connection ids in it (RFC 8999 section 5.1).
const LONG_HEADER: u8 = 0x80;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The endpoint of ours, if there is one with this mark.
    pub(crate) tag: Option<Tag>,
    /// Whether a connection may begin with it: the peer may have chosen the connection id.
    pub(crate) may_begin: bool,
}

impl Destination {
    /// Reads the destination connection id of `datagram`; `None` if it has none.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let may_begin = datagram.first()? & LONG_HEADER != 0;
        let id = if may_begin {
            // After the first byte and the version.
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

/// Tells when datagrams are worth joining for the kernel (UDP GSO).
///
/// Quinn makes room for all that can be joined as soon as a connection sends one that is, and keeps it:
/// 14 KiB, for which a connection that only opens, or stays idle, has no use.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    /// Datagrams of the turn that a connection has.
    sent: usize,
    /// When the last turn was that was of many.
    last: Option<Duration>,
}

impl Bulk {
    /// More than any message of a handshake.
    const MANY: usize = 8;

    /// A round trip far away, and what schedulers add.
    const LASTS: Duration = Duration::from_secs(1);

    pub(crate) fn sent(&mut self, datagrams: usize) {
        self.sent = self.sent.saturating_add(datagrams);
    }

    /// A connection has its turn to send `now`, counted from any fixed time. Returns whether datagrams
    /// may be joined in it.
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
    fn headers_name_their_endpoint() {
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
    fn datagrams_are_joined_while_turns_are_of_many() {
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
