//! Rooms: peers that find each other by a name.
//!
//! Relays know a room by its [`Topic`], an HMAC of the application, the name and the secret. Whoever
//! knows the topic can ask a relay who is in the room, so the topic is what a stranger lacks. A relay
//! learns it from its members. So what a member says is sealed, with a key that comes from the same
//! three texts and that the relay does not have. A record whose seal opens is from somebody who knows
//! the secret: the relay can neither read it nor put itself into the room.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use multiaddr::PeerId;
use snow::{
    params::{CipherChoice, HashChoice},
    resolvers::{CryptoResolver as _, DefaultResolver},
};

use super::{
    directory::Topic,
    protobuf::{skip_field, take_bytes, take_varint},
    record::{Number, field, is_fresh, number},
};

/// What the signature of a member's record is for, and the kind of its payload.
pub(crate) const DOMAIN: &str = "throughline-room";
pub(crate) const PAYLOAD_TYPE: &[u8] = b"/throughline/room/1";

/// The most bytes that a member shows the others. It is enough for a name, a picture's address and a
/// session description.
pub(crate) const MAX_DATA: usize = 1024;
/// The longest envelope with a member's record.
pub(crate) const MAX_MEMBER: usize = 1536;
/// How long a member counts that says nothing.
pub(crate) const LIFETIME: Duration = Duration::from_secs(30);
/// The most members of a room, and so the most that one relay can show.
pub(crate) const MAX_MEMBERS: usize = 1024;
/// The most rooms that one peer may be in on one relay.
pub(crate) const MAX_ROOMS: usize = 64;

pub(super) const HASH: usize = 32;
const TAG: usize = 16;
/// The random bytes that give each seal a key of its own.
pub(crate) const SALT: usize = 16;

// Member { topic = 1, seq = 2, expires = 3, sealed = 4 }
const TOPIC: u64 = 1 << 3 | 2;
const SEQ: u64 = 2 << 3;
const EXPIRES: u64 = 3 << 3;
const SEALED: u64 = 4 << 3 | 2;

/// What a member tells a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) topic: Topic,
    /// The newer one of two records has the greater number.
    pub(crate) seq: u64,
    /// Until when the record counts, since the Unix epoch, by the member's clock.
    pub(crate) expires: Duration,
    /// The salt, and the member's data under the key of the room. A renewal keeps it, so a relay sees
    /// what is a change.
    pub(crate) sealed: Vec<u8>,
}

impl Member {
    /// Encodes the record, as the payload of an envelope.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = field(TOPIC, &self.topic);
        number(SEQ, self.seq, &mut bytes);
        number(EXPIRES, self.expires.as_secs(), &mut bytes);
        bytes.extend(field(SEALED, &self.sealed));
        bytes
    }

    /// Reads the payload of an envelope. Returns `None` if it is malformed.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let (mut topic, mut seq, mut expires, mut sealed) = (None, 0, 0, None);
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                TOPIC => topic = Some(Topic::try_from(take_bytes(&mut rest)?).ok()?),
                SEQ => seq = take_varint(&mut rest)?,
                EXPIRES => expires = take_varint(&mut rest)?,
                SEALED => sealed = Some(take_bytes(&mut rest)?.to_vec()),
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(Self {
            topic: topic?,
            seq,
            expires: Duration::from_secs(expires),
            sealed: sealed.filter(|sealed| sealed.len() <= SALT + MAX_DATA + TAG)?,
        })
    }
}

/// What follows from the application, the name and the secret of a room. It has no `Debug`, because
/// both are secrets.
#[derive(Clone)]
pub(crate) struct RoomKeys {
    pub(crate) topic: Topic,
    seal: [u8; HASH],
}

impl RoomKeys {
    pub(crate) fn new(application: &str, name: &str, secret: &str) -> Self {
        let root = root(application, name, secret);
        Self {
            topic: hmac(&root, b"topic"),
            seal: hmac(&root, b"seal"),
        }
    }

    /// Seals the data of `peer` for the other members. `salt` has to be random.
    pub(crate) fn seal(&self, peer: &PeerId, data: &[u8], salt: [u8; SALT]) -> Vec<u8> {
        let mut sealed = vec![0; SALT + data.len() + TAG];
        sealed[..SALT].copy_from_slice(&salt);
        let cipher = self.cipher(peer, &salt);
        cipher.encrypt(0, &self.topic, data, &mut sealed[SALT..]);
        sealed
    }

    /// Returns the data of `peer`, if a member of the room has sealed it.
    pub(crate) fn open(&self, peer: &PeerId, sealed: &[u8]) -> Option<Vec<u8>> {
        let (salt, sealed) = sealed.split_at_checked(SALT)?;
        if sealed.len() < TAG {
            return None;
        }
        let mut data = vec![0; sealed.len()];
        let cipher = self.cipher(peer, salt);
        let length = cipher.decrypt(0, &self.topic, sealed, &mut data).ok()?;
        data.truncate(length);
        Some(data)
    }

    /// Each peer and each salt has a key of its own, so that the number in front of a message never
    /// comes twice under one key.
    fn cipher(&self, peer: &PeerId, salt: &[u8]) -> Box<dyn snow::types::Cipher> {
        let mut cipher = DefaultResolver
            .resolve_cipher(&CipherChoice::ChaChaPoly)
            .expect("a feature of the crate has it");
        cipher.set(&hmac(&self.seal, &[salt, &peer.to_bytes()].concat()));
        cipher
    }
}

/// Returns the key from which all others of a room are made.
pub(super) fn root(application: &str, name: &str, secret: &str) -> [u8; HASH] {
    let mut hash = hash();
    let mut key = [0; HASH];
    hash.reset();
    hash.input(secret.as_bytes());
    hash.result(&mut key);
    // The length keeps the two texts apart.
    let length = (application.len() as u64).to_be_bytes();
    let texts = [&length, application.as_bytes(), name.as_bytes()].concat();
    hmac(&key, &texts)
}

fn hash() -> Box<dyn snow::types::Hash> {
    let hash = DefaultResolver.resolve_hash(&HashChoice::SHA256);
    hash.expect("a feature of the crate has it")
}

pub(super) fn hmac(key: &[u8; HASH], data: &[u8]) -> [u8; HASH] {
    let mut out = [0; HASH];
    hash().hmac(key, data, &mut out);
    out
}

/// What has changed in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Joined(PeerId, Vec<u8>),
    Changed(PeerId, Vec<u8>),
    Left(PeerId),
}

/// One stream to one relay, over which members are seen. Later streams to a relay have greater numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) relay: PeerId,
    pub(crate) number: u64,
}

/// What is known of one member.
#[derive(Default)]
struct Known {
    number: Number,
    data: Vec<u8>,
    /// How often the data has changed.
    version: u64,
    /// The version that was told, unless the member is not known to be there.
    told: Option<u64>,
    /// The newest streams that have shown the member, one for each relay. Without any, it has gone.
    seen: Vec<Source>,
}

impl Known {
    fn is_shown_by(&self, relay: &PeerId) -> bool {
        self.seen.iter().any(|seen| seen.relay == *relay)
    }

    /// Whether it has gone, and is only remembered so that an older record does not bring it back.
    fn is_memory(&self) -> bool {
        self.seen.is_empty() && self.told.is_none()
    }
}

/// The members of a room, as one of them sees them through its relays. What nobody has asked for yet
/// is kept as the difference to what was told last, so it cannot grow beyond the members.
#[derive(Default)]
pub(crate) struct Members {
    known: HashMap<PeerId, Known>,
    /// The members of whom there may be something to tell.
    news: VecDeque<PeerId>,
}

impl Members {
    /// A relay shows a member with this data, `now`. A record that is older than one that is known says
    /// only that the member is there, and if that has gone, it says nothing until the newer one would be
    /// over. What one relay shows never takes the place of what another shows.
    pub(crate) fn show(
        &mut self,
        source: Source,
        peer: PeerId,
        number: Number,
        data: Vec<u8>,
        now: Duration,
    ) {
        let shown = self.known.get(&peer);
        if !shown.is_some_and(|known| known.is_shown_by(&source.relay)) {
            let all = self.known.values();
            let by_relay = all.filter(|known| known.is_shown_by(&source.relay));
            if by_relay.count() >= MAX_MEMBERS {
                return;
            }
        }
        if shown.is_none() {
            self.forget_one();
        }
        let known = self.known.entry(peer).or_default();
        let comes = known.seen.is_empty();
        let newest = known.number.max(number);
        if comes && number < newest && is_fresh(newest.1, Duration::MAX, now) {
            return;
        }
        known.seen.retain(|seen| seen.relay != source.relay);
        known.seen.push(source);
        if comes || number > known.number {
            known.number = number;
            if comes || known.data != data {
                known.data = data;
                known.version += 1;
            }
        }
        self.note(peer);
    }

    /// Makes room in the memory of those that have gone.
    fn forget_one(&mut self) {
        let gone = || self.known.iter().filter(|(_, known)| known.is_memory());
        if gone().count() >= MAX_MEMBERS {
            // The one whose record is over first is of the least use.
            let first = gone().min_by_key(|(_, known)| known.number.1);
            if let Some(first) = first.map(|(peer, _)| *peer) {
                self.known.remove(&first);
            }
        }
    }

    /// A relay says that a member has left.
    pub(crate) fn hide(&mut self, relay: &PeerId, peer: &PeerId) {
        self.drop_seen(peer, |seen| seen.relay == *relay);
    }

    /// Forgets what streams to a relay before the one with this number have shown: a newer stream has
    /// shown everybody, or none has come for too long.
    pub(crate) fn settle(&mut self, relay: &PeerId, number: u64) {
        let peers: Vec<_> = self.known.keys().copied().collect();
        for peer in peers {
            let is_old = |seen: &Source| seen.relay == *relay && seen.number < number;
            self.drop_seen(&peer, is_old);
        }
    }

    fn drop_seen(&mut self, peer: &PeerId, is_dropped: impl Fn(&Source) -> bool) {
        let Some(known) = self.known.get_mut(peer) else {
            return;
        };
        let before = known.seen.len();
        known.seen.retain(|seen| !is_dropped(seen));
        // What is only remembered, and what stays, is no news.
        if known.seen.is_empty() && before > 0 {
            known.data = Vec::new();
            match known.told {
                Some(_) => self.note(*peer),
                // Nobody has seen it come.
                None => self.news.retain(|news| news != peer),
            }
        }
    }

    fn note(&mut self, peer: PeerId) {
        if !self.news.contains(&peer) {
            self.news.push_back(peer);
        }
    }

    /// Returns the next change that was not told yet.
    pub(crate) fn next(&mut self) -> Option<Change> {
        while let Some(peer) = self.news.pop_front() {
            let Some(known) = self.known.get_mut(&peer) else {
                continue;
            };
            let now = (!known.seen.is_empty()).then_some(known.version);
            let before = std::mem::replace(&mut known.told, now);
            if now != before {
                return Some(match (before, now) {
                    (_, None) => Change::Left(peer),
                    (None, _) => Change::Joined(peer, known.data.clone()),
                    _ => Change::Changed(peer, known.data.clone()),
                });
            }
        }
        None
    }

    /// Returns who is there, with their data.
    pub(crate) fn list(&self) -> Vec<(PeerId, Vec<u8>)> {
        let all = self.known.iter();
        let there = all.filter(|(_, known)| !known.seen.is_empty());
        there
            .map(|(peer, known)| (*peer, known.data.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(application: &str, name: &str, secret: &str) -> RoomKeys {
        RoomKeys::new(application, name, secret)
    }

    #[test]
    fn every_text_makes_another_room() {
        let texts = [
            ("app", "name", "secret"),
            ("app", "name", "secret2"),
            ("app", "name2", "secret"),
            ("app2", "name", "secret"),
            ("appn", "ame", "secret"),
            ("", "", ""),
        ];
        let topics = texts.map(|(a, n, s)| keys(a, n, s).topic);
        for (at, topic) in topics.iter().enumerate() {
            assert!(!topics[at + 1..].contains(topic), "{at}");
        }
        assert_eq!(keys("app", "name", "secret").topic, topics[0]);
    }

    /// RFC 4231, test case 2, with the key filled up to the length that is used here.
    #[test]
    fn the_hmac_is_the_one_of_the_rfc() {
        let mut key = [0; HASH];
        key[..4].copy_from_slice(b"Jefe");
        let mac = hmac(&key, b"what do ya want for nothing?");
        let hex = data_encoding::HEXLOWER.encode(&mac);
        assert_eq!(
            hex,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn only_members_open_a_seal_and_only_as_its_peers() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let room = keys("app", "name", "secret");
        let sealed = room.seal(&peer, b"hello", [7; SALT]);
        assert_eq!(room.open(&peer, &sealed).unwrap(), b"hello");
        assert_eq!(room.open(&other, &sealed), None);
        let stranger = RoomKeys {
            topic: room.topic,
            ..keys("app", "name", "guess")
        };
        assert_eq!(
            stranger.open(&peer, &sealed),
            None,
            "the relay knows the topic"
        );
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(room.open(&peer, &changed), None);
            assert_eq!(room.open(&peer, &sealed[..at]), None);
        }
        let empty = room.seal(&peer, b"", [8; SALT]);
        assert_eq!(room.open(&peer, &empty).unwrap(), b"");
    }

    #[test]
    fn a_members_record_is_read_as_it_was_written() {
        let member = Member {
            topic: [1; 32],
            seq: 9,
            expires: Duration::from_secs(77),
            sealed: vec![5; SALT + MAX_DATA + TAG],
        };
        assert_eq!(Member::decode(&member.encode()), Some(member.clone()));
        let sealed = vec![6, 5];
        let short = Member {
            sealed,
            ..member.clone()
        };
        let topic = [&[0x0a, 32][..], &[1; 32]].concat();
        let rest = [0x10, 9, 0x18, 77, 0x22, 2, 6, 5];
        assert_eq!(short.encode(), [&topic[..], &rest].concat());
        let long = Member {
            sealed: vec![5; SALT + MAX_DATA + TAG + 1],
            ..member
        };
        assert_eq!(Member::decode(&long.encode()), None);
    }

    fn source(relay: PeerId, number: u64) -> Source {
        Source { relay, number }
    }

    const NOW: Duration = Duration::from_secs(1000);

    /// Shows a member whose record has this number.
    fn show(members: &mut Members, source: Source, peer: PeerId, seq: u64, data: &[u8]) {
        let number = (seq, NOW + LIFETIME);
        members.show(source, peer, number, data.to_vec(), NOW);
    }

    fn all(members: &mut Members) -> Vec<Change> {
        std::iter::from_fn(|| members.next()).collect()
    }

    #[test]
    fn changes_are_told_once_and_together() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let mut members = Members::default();
        let at = source(relay, 1);
        show(&mut members, at, peer, 1, b"a");
        assert_eq!(all(&mut members), [Change::Joined(peer, b"a".to_vec())]);
        show(&mut members, at, peer, 2, b"a");
        assert_eq!(all(&mut members), [], "it was renewed");
        show(&mut members, at, peer, 3, b"b");
        show(&mut members, at, peer, 4, b"c");
        show(&mut members, at, peer, 3, b"old");
        show(&mut members, at, peer, 4, b"twice");
        assert_eq!(all(&mut members), [Change::Changed(peer, b"c".to_vec())]);
        members.hide(&relay, &peer);
        assert_eq!(all(&mut members), [Change::Left(peer)]);
        show(&mut members, at, peer, 5, b"");
        members.hide(&relay, &peer);
        assert_eq!(all(&mut members), [], "nobody has seen it come");
        show(&mut members, at, peer, 6, b"d");
        all(&mut members);
        members.hide(&relay, &peer);
        show(&mut members, at, peer, 7, b"e");
        assert_eq!(all(&mut members), [Change::Changed(peer, b"e".to_vec())]);
        assert_eq!(members.list(), [(peer, b"e".to_vec())]);
    }

    #[test]
    fn an_old_record_does_not_bring_back_who_has_gone() {
        let [a, b, peer] = [(); 3].map(|()| PeerId::random());
        let mut members = Members::default();
        show(&mut members, source(a, 1), peer, 7, b"new");
        members.hide(&a, &peer);
        for relay in [a, b] {
            show(&mut members, source(relay, 2), peer, 6, b"old");
        }
        assert!(members.list().is_empty() && all(&mut members).is_empty());
        let later = NOW + LIFETIME + super::super::record::MAX_SKEW * 2;
        members.show(source(b, 2), peer, (6, later), b"c".to_vec(), later);
        assert_eq!(members.list().len(), 1, "its clock has gone back");
    }

    #[test]
    fn a_member_is_there_as_long_as_one_relay_shows_it() {
        let (a, b, peer) = (PeerId::random(), PeerId::random(), PeerId::random());
        let mut members = Members::default();
        show(&mut members, source(a, 1), peer, 1, b"");
        show(&mut members, source(b, 2), peer, 1, b"");
        all(&mut members);
        members.hide(&b, &peer);
        assert_eq!(all(&mut members), []);
        show(&mut members, source(b, 2), peer, 1, b"");
        members.hide(&a, &peer);
        assert_eq!(all(&mut members), []);
        members.settle(&b, 2);
        assert_eq!(all(&mut members), [], "this stream has shown it");
        members.settle(&b, 3);
        assert_eq!(all(&mut members), [Change::Left(peer)]);
    }

    #[test]
    fn a_new_stream_brings_the_members_anew() {
        let relay = PeerId::random();
        let [stays, goes] = [PeerId::random(), PeerId::random()];
        let mut members = Members::default();
        for peer in [stays, goes] {
            show(&mut members, source(relay, 1), peer, 1, b"");
        }
        all(&mut members);
        show(&mut members, source(relay, 2), stays, 1, b"");
        members.settle(&relay, 2);
        assert_eq!(all(&mut members), [Change::Left(goes)]);
    }

    #[test]
    fn a_relay_that_floods_takes_no_room_from_another() {
        let [relay, honest] = [(); 2].map(|()| PeerId::random());
        let mut members = Members::default();
        let known = PeerId::random();
        show(&mut members, source(honest, 1), known, 1, b"");
        for _ in 0..MAX_MEMBERS + 10 {
            show(&mut members, source(relay, 2), PeerId::random(), 1, b"");
        }
        assert_eq!(members.list().len(), MAX_MEMBERS + 1);
        show(&mut members, source(relay, 2), known, 2, b"from the flood");
        let late = PeerId::random();
        show(&mut members, source(honest, 1), late, 1, b"");
        let list = members.list();
        assert!(list.contains(&(late, Vec::new())) && list.contains(&(known, Vec::new())));
        members.settle(&relay, 3);
        assert_eq!(members.list().len(), 2);
        let (mut gone, flood) = (Members::default(), PeerId::random());
        for n in 0..3 * MAX_MEMBERS {
            let peer = if n < 10 { flood } else { PeerId::random() };
            show(&mut gone, source(relay, 1), peer, 1, b"data");
            gone.hide(&relay, &peer);
        }
        assert!(members.news.len() <= MAX_MEMBERS + 2 && gone.news.is_empty());
        assert_eq!(gone.known.len(), MAX_MEMBERS, "so many are remembered");
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Member::decode(&bytes);
            let _ = keys("", "", "").open(&PeerId::random(), &bytes);
        }
    }
}
