//! A relay's directory: where peers are, by their own signed records, and who is in a room.
//!
//! A peer opens a stream of [`PROTOCOL`] for each request, on its link to the relay. Each message is a
//! proto3 message after its length, which is an unsigned varint. A request to leave a record, to find a
//! peer or to be forgotten gets one answer. A request to join a room keeps the stream: the relay tells
//! who is there and what changes, and asks now and then for a new record, which the member sends as
//! another request.

use multiaddr::PeerId;

use super::{
    protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint},
    record::MAX_RECORD,
};

/// The protocol of the stream. A relay with a directory names it in identify.
pub(crate) const PROTOCOL: &str = "/throughline/directory/1";

/// The longest message in either direction: a record and what stands around it.
pub(crate) const MAX_MESSAGE: usize = MAX_RECORD + 128;

/// The name of a room, as relays know it. See [`room`](super::room).
pub(crate) type Topic = [u8; 32];

// Request { record = 1, find = 2, forget = 3, topic = 4 }
const RECORD: u64 = 1 << 3 | 2;
const FIND: u64 = 2 << 3 | 2;
const FORGET: u64 = 3 << 3;
const TOPIC: u64 = 4 << 3 | 2;

// Answer { status = 1, record = 2, left = 3, known = 4 }
const STATUS: u64 = 1 << 3;
const FOUND: u64 = 2 << 3 | 2;
const LEFT: u64 = 3 << 3 | 2;
const KNOWN: u64 = 4 << 3;

/// What a peer asks of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Keep this record, in its envelope.
    Put(Vec<u8>),
    /// Show the record of this peer.
    Find(PeerId),
    /// Forget the records of the peer that asks, in rooms as well. In a room, it leaves that room.
    Forget,
    /// Be in a room with this record, in its envelope, and hear of the others.
    Join(Topic, Vec<u8>),
}

impl Request {
    /// Returns the request as it stands on the stream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        behind_length(&match self {
            Self::Put(record) => field(RECORD, record),
            Self::Find(peer) => field(FIND, &peer.to_bytes()),
            Self::Forget => vec![FORGET as u8, 1],
            Self::Join(topic, record) => [field(TOPIC, topic), field(RECORD, record)].concat(),
        })
    }

    /// Reads a request without its length. Returns `None` if it is malformed.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let (mut record, mut find, mut forget, mut topic) = (None, None, false, None);
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                RECORD => record = Some(take_bytes(&mut rest)?.to_vec()),
                FIND => find = Some(PeerId::from_bytes(take_bytes(&mut rest)?).ok()?),
                FORGET => forget = take_varint(&mut rest)? != 0,
                TOPIC => topic = Some(Topic::try_from(take_bytes(&mut rest)?).ok()?),
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(match (record, find, forget, topic) {
            (Some(record), None, false, None) => Self::Put(record),
            (None, Some(peer), false, None) => Self::Find(peer),
            (None, None, true, None) => Self::Forget,
            (Some(record), None, false, Some(topic)) => Self::Join(topic, record),
            _ => return None,
        })
    }
}

/// What a directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done. In a room: the peers that were there have been shown, and a new record is due.
    Done,
    /// The record of the peer that was asked for, or of a member of the room, in its envelope.
    Record(Vec<u8>),
    /// This member has left the room, or its record is over.
    Left(PeerId),
    /// The directory does not serve the peer.
    Refused(Refusal),
}

/// Why a directory does not serve a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The peer holds no reservation, or is not admitted.
    Denied,
    /// There is no room at the moment, or requests come too fast.
    Limit,
    /// The record is not newer than the one with this number.
    Stale(u64),
    /// The record is not the peer's own, is malformed, or is from another time than the relay's.
    Unsound,
}

impl Answer {
    /// Returns the answer as it stands on the stream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let status = |status: u8| vec![STATUS as u8, status];
        behind_length(&match self {
            Self::Done => Vec::new(),
            Self::Record(record) => field(FOUND, record),
            Self::Left(peer) => field(LEFT, &peer.to_bytes()),
            Self::Refused(Refusal::Denied) => status(1),
            Self::Refused(Refusal::Limit) => status(2),
            Self::Refused(Refusal::Stale(known)) => {
                [status(3), vec![KNOWN as u8], varint(*known)].concat()
            }
            Self::Refused(Refusal::Unsound) => status(4),
        })
    }

    /// Reads an answer without its length. Returns `None` if it is malformed.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let (mut status, mut record, mut left, mut known) = (0, None, None, 0);
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                STATUS => status = take_varint(&mut rest)?,
                FOUND => record = Some(take_bytes(&mut rest)?.to_vec()),
                LEFT => left = Some(PeerId::from_bytes(take_bytes(&mut rest)?).ok()?),
                KNOWN => known = take_varint(&mut rest)?,
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(match (status, record, left) {
            (0, None, None) => Self::Done,
            (0, Some(record), _) => Self::Record(record),
            (0, None, Some(peer)) => Self::Left(peer),
            (1, ..) => Self::Refused(Refusal::Denied),
            (3, ..) => Self::Refused(Refusal::Stale(known)),
            (4, ..) => Self::Refused(Refusal::Unsound),
            // A later version may have other reasons.
            _ => Self::Refused(Refusal::Limit),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message without the length in front of it.
    fn message(framed: &[u8]) -> &[u8] {
        let mut rest = framed;
        take_bytes(&mut rest).filter(|_| rest.is_empty()).unwrap()
    }

    #[test]
    fn messages_have_the_documented_bytes() {
        assert_eq!(Request::Put(vec![7]).encode(), [3, 10, 1, 7]);
        assert_eq!(Request::Forget.encode(), [2, 24, 1]);
        let peer = PeerId::random();
        let find = Request::Find(peer).encode();
        assert_eq!(find[..3], [find.len() as u8 - 1, 18, find.len() as u8 - 3]);
        assert_eq!(find[3..], peer.to_bytes());
        let join = [&[38, 0x22, 32][..], &[1; 32], &[10, 2, 7, 7]].concat();
        assert_eq!(Request::Join([1; 32], vec![7, 7]).encode(), join);
        let left = Answer::Left(peer).encode();
        assert_eq!(left[1..3], [26, left.len() as u8 - 3]);
        assert_eq!(Answer::Done.encode(), [0]);
        assert_eq!(Answer::Record(vec![7]).encode(), [3, 18, 1, 7]);
        let stale = Answer::Refused(Refusal::Stale(300));
        assert_eq!(stale.encode(), [5, 8, 3, 32, 0xac, 2]);
        let longest = Request::Join([1; 32], vec![0; MAX_RECORD]);
        assert!(message(&longest.encode()).len() <= MAX_MESSAGE);
        assert_eq!(MAX_MESSAGE, MAX_RECORD + 0x80);
    }

    #[test]
    fn a_request_asks_for_one_thing() {
        for malformed in [
            &[][..],
            &[10, 1, 7, 24, 1],
            &[0x22, 1, 7],
            &[0x12, 1, 7],
            &[0x12],
        ] {
            assert_eq!(Request::decode(malformed), None, "{malformed:?}");
        }
        let later = Answer::decode(&[8, 99]);
        assert_eq!(later, Some(Answer::Refused(Refusal::Limit)));
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(
            record in prop::collection::vec(any::<u8>(), 0..200), topic: [u8; 32], known: u64,
        ) {
            let peer = PeerId::random();
            for request in [
                Request::Put(record.clone()),
                Request::Find(peer),
                Request::Forget,
                Request::Join(topic, record.clone()),
            ] {
                prop_assert_eq!(Request::decode(message(&request.encode())), Some(request));
            }
            let refusals = [
                Refusal::Denied, Refusal::Limit, Refusal::Stale(known), Refusal::Unsound,
            ];
            let answers = [Answer::Done, Answer::Record(record), Answer::Left(peer)];
            for answer in answers.into_iter().chain(refusals.map(Answer::Refused)) {
                prop_assert_eq!(Answer::decode(message(&answer.encode())), Some(answer));
            }
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}
