//! Full meshes: the proof of a member, whom a member seeks and greets, and what nobody has read yet.
//!
//! Two members of one room may be strangers in another, and a connection carries any stream. So each
//! stream of a mesh begins with a [proof](MeshKey::proof), by which both ends show that they know the room.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use super::{
    backoff::Backoff,
    room::{HASH, hmac, root},
};

/// The most members of a mesh. Each sends everything to all others, so more would take a lot of a home's
/// upstream.
pub(crate) const MAX_MEMBERS: usize = 32;
/// The length of a proof.
pub(crate) const PROOF: usize = HASH;
/// The first and the longest pause after a failure. A link that has lasted for the longest pause was no
/// failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How many messages of one member wait for the application, and how many with the datagrams.
const UNREAD_MESSAGES: usize = 4;
const UNREAD: usize = 16;
/// How many connections of one peer are greeted, and how many of those that are no members.
const GREETED: usize = 2;
const STRANGERS: usize = 32;

/// What the members of a mesh prove themselves with. It has no `Debug`, because it is a secret.
pub(crate) struct MeshKey([u8; HASH]);

impl MeshKey {
    pub(crate) fn new(application: &str, name: &str, secret: &str) -> Self {
        Self(hmac(&root(application, name, secret), b"mesh"))
    }

    /// Returns what shows `to` that `from` knows the room. Both are ids as text, which has no spaces. Every
    /// path proves the ids, so a proof is of no use to anybody else.
    pub(crate) fn proof(&self, from: &str, to: &str) -> [u8; PROOF] {
        hmac(&self.0, format!("{from} {to}").as_bytes())
    }

    /// Whether this is the proof. How long it takes says nothing about the bytes.
    pub(crate) fn is_proof(&self, from: &str, to: &str, bytes: &[u8]) -> bool {
        let proof = self.proof(from, to);
        let differences = proof.iter().zip(bytes).fold(0, |all, (a, b)| all | (a ^ b));
        bytes.len() == PROOF && differences == 0
    }
}

/// What this peer does about one member.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Idle,
    /// The attempt with this number is under way.
    Sought(u64),
    /// There is a connection, and the member has to open the stream.
    Met,
    /// The link with this number was made at that time.
    Linked(u64, Duration),
}

struct Known {
    backoff: Backoff,
    stage: Stage,
}

/// The members that take part. At most one attempt is under way for each, and only its result counts.
pub(crate) struct Roster<P> {
    members: HashMap<P, Known>,
    numbers: u64,
}

impl<P: Copy + Eq + Hash> Roster<P> {
    pub(crate) fn new() -> Self {
        Self {
            members: HashMap::new(),
            numbers: 0,
        }
    }

    pub(crate) fn contains(&self, peer: P) -> bool {
        self.members.contains_key(&peer)
    }

    /// Takes a member in. Returns whether it is new and there was room.
    pub(crate) fn admit(&mut self, peer: P) -> bool {
        let is_new = !self.contains(peer) && self.members.len() < MAX_MEMBERS - 1;
        if is_new {
            let known = Known {
                backoff: Backoff::new(AGAIN.0, AGAIN.1),
                stage: Stage::Idle,
            };
            self.members.insert(peer, known);
        }
        is_new
    }

    pub(crate) fn remove(&mut self, peer: P) {
        self.members.remove(&peer);
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn is(&self, peer: P, is: impl Fn(Stage) -> bool) -> bool {
        self.members.get(&peer).is_some_and(|known| is(known.stage))
    }

    fn set(&mut self, peer: P, stage: Stage) {
        if let Some(known) = self.members.get_mut(&peer) {
            known.stage = stage;
        }
    }

    /// Begins an attempt to reach a member about which nothing is done. Returns its number.
    pub(crate) fn seek(&mut self, peer: P) -> Option<u64> {
        self.is(peer, |stage| stage == Stage::Idle).then(|| {
            let number = self.number();
            self.set(peer, Stage::Sought(number));
            number
        })
    }

    pub(crate) fn is_sought(&self, peer: P, attempt: u64) -> bool {
        self.is(peer, |stage| stage == Stage::Sought(attempt))
    }

    /// The attempt has led to a connection on which the member opens the stream.
    pub(crate) fn meet(&mut self, peer: P) {
        self.set(peer, Stage::Met);
    }

    /// The attempt has failed. Returns the number of the next one, and the pause before it.
    pub(crate) fn fail(&mut self, peer: P, attempt: u64, random: f64) -> Option<(u64, Duration)> {
        let is_sought = self.is_sought(peer, attempt);
        is_sought.then(|| self.again(peer, random)).flatten()
    }

    /// A member that was met has opened no stream, and will not.
    pub(crate) fn miss(&mut self, peer: P, random: f64) -> Option<(u64, Duration)> {
        let is_met = self.is(peer, |stage| stage == Stage::Met);
        is_met.then(|| self.again(peer, random)).flatten()
    }

    fn again(&mut self, peer: P, random: f64) -> Option<(u64, Duration)> {
        let number = self.number();
        let known = self.members.get_mut(&peer)?;
        known.stage = Stage::Sought(number);
        Some((number, known.backoff.fail(random)))
    }

    /// There is a stream with a member, `now`. Returns the number of the link, unless there is one already.
    pub(crate) fn link(&mut self, peer: P, now: Duration) -> Option<u64> {
        let is_free = self.is(peer, |stage| !matches!(stage, Stage::Linked(..)));
        is_free.then(|| {
            let number = self.number();
            self.set(peer, Stage::Linked(number, now));
            number
        })
    }

    /// Returns the number of the link with a member.
    pub(crate) fn linked(&self, peer: P) -> Option<u64> {
        match self.members.get(&peer)?.stage {
            Stage::Linked(number, _) => Some(number),
            _ => None,
        }
    }

    /// The link with this number has ended, `now`. Returns the next attempt. A member whose links end soon
    /// is sought ever less often, so that it does not come and go all the time.
    pub(crate) fn unlink(
        &mut self,
        peer: P,
        number: u64,
        now: Duration,
        random: f64,
    ) -> Option<(u64, Duration)> {
        let known = self.members.get_mut(&peer)?;
        match known.stage {
            Stage::Linked(linked, since) if linked == number => {
                if now.saturating_sub(since) >= AGAIN.1 {
                    known.backoff.reset();
                }
                self.again(peer, random)
            }
            _ => None,
        }
    }
}

/// The connections whose first stream is awaited.
pub(crate) struct Greets<P> {
    begun: HashMap<u64, P>,
    numbers: u64,
}

impl<P: Copy + Eq + Hash> Greets<P> {
    pub(crate) fn new() -> Self {
        Self {
            begun: HashMap::new(),
            numbers: 0,
        }
    }

    /// Begins to wait, unless that is too much. Returns its number. Strangers take no room from members.
    pub(crate) fn begin(&mut self, peer: P, is_member: impl Fn(P) -> bool) -> Option<u64> {
        let strangers = self.begun.values().filter(|other| !is_member(**other));
        let has_room = is_member(peer) || strangers.count() < STRANGERS;
        (has_room && self.of(peer).len() < GREETED).then(|| {
            self.numbers += 1;
            self.begun.insert(self.numbers, peer);
            self.numbers
        })
    }

    /// Returns what was begun for a peer.
    pub(crate) fn of(&self, peer: P) -> Vec<u64> {
        let all = self.begun.iter();
        let own = all.filter(|(_, other)| **other == peer);
        own.map(|(number, _)| *number).collect()
    }

    pub(crate) fn end(&mut self, number: u64) {
        self.begun.remove(&number);
    }
}

/// What is to be told of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News<P> {
    Joined(P, Vec<u8>),
    Changed(P, Vec<u8>),
    Message(P, Vec<u8>),
    Datagram(P, Vec<u8>),
    Left(P),
}

/// What is to be told of one member, from when it is linked until it is told that it has left.
struct Mailbox {
    link: u64,
    shown: Vec<u8>,
    is_told: bool,
    is_changed: bool,
    is_over: bool,
    /// Whether each is a datagram, and its bytes.
    unread: VecDeque<(bool, Vec<u8>)>,
}

impl Mailbox {
    fn next<P>(&mut self, peer: P) -> News<P> {
        if !std::mem::replace(&mut self.is_told, true) {
            self.is_changed = false;
            News::Joined(peer, self.shown.clone())
        } else if std::mem::take(&mut self.is_changed) {
            News::Changed(peer, self.shown.clone())
        } else {
            match self.unread.pop_front() {
                Some((false, bytes)) => News::Message(peer, bytes),
                Some((true, bytes)) => News::Datagram(peer, bytes),
                None => News::Left(peer),
            }
        }
    }

    fn has_news(&self) -> bool {
        !self.is_told || self.is_changed || !self.unread.is_empty() || self.is_over
    }
}

/// What nobody has read yet. For each member it comes in one order: that it has joined, then its messages,
/// and at last that it has left. A member whose end is unread is not linked again, so while nobody reads,
/// this cannot grow.
pub(crate) struct Inbox<P> {
    boxes: BTreeMap<P, Mailbox>,
    /// The members of whom there is something to tell, each once.
    turns: VecDeque<P>,
}

impl<P> Default for Inbox<P> {
    fn default() -> Self {
        Self {
            boxes: BTreeMap::new(),
            turns: VecDeque::new(),
        }
    }
}

impl<P: Copy + Ord> Inbox<P> {
    /// Whether a link with this member can be told.
    pub(crate) fn can_open(&self, peer: P) -> bool {
        !self.boxes.contains_key(&peer) && self.boxes.len() < 2 * MAX_MEMBERS
    }

    /// A member is linked.
    pub(crate) fn open(&mut self, peer: P, link: u64, shown: Vec<u8>) {
        let opened = Mailbox {
            link,
            shown,
            is_told: false,
            is_changed: false,
            is_over: false,
            unread: VecDeque::new(),
        };
        self.boxes.insert(peer, opened);
        self.note(peer);
    }

    /// A member shows something else.
    pub(crate) fn show(&mut self, peer: P, shown: Vec<u8>) {
        let known = self.boxes.get_mut(&peer);
        let changed = known.filter(|known| !known.is_over && known.shown != shown);
        if let Some(known) = changed {
            known.shown = shown;
            known.is_changed = true;
            self.note(peer);
        }
    }

    /// Whether there is room for a message that has come over this link. Returns `None` if the link is over.
    pub(crate) fn has_room(&self, peer: P, link: u64) -> Option<bool> {
        let known = self.boxes.get(&peer)?;
        let messages = known.unread.iter().filter(|(is_datagram, _)| !is_datagram);
        (known.link == link && !known.is_over).then(|| messages.count() < UNREAD_MESSAGES)
    }

    /// A message has come for which there is room.
    pub(crate) fn put(&mut self, peer: P, message: Vec<u8>) {
        if let Some(known) = self.boxes.get_mut(&peer) {
            known.unread.push_back((false, message));
            self.note(peer);
        }
    }

    /// A datagram has come. It is lost if there is no room for it.
    pub(crate) fn put_datagram(&mut self, peer: P, link: u64, datagram: Vec<u8>) {
        if let Some(known) = self.boxes.get_mut(&peer)
            && known.link == link
            && !known.is_over
            && known.unread.len() < UNREAD
        {
            known.unread.push_back((true, datagram));
            self.note(peer);
        }
    }

    /// A link is over. If nothing was told of it and nothing came over it, nothing is told.
    pub(crate) fn close(&mut self, peer: P) {
        let Some(known) = self.boxes.get_mut(&peer) else {
            return;
        };
        if known.is_told || !known.unread.is_empty() {
            known.is_over = true;
            self.note(peer);
        } else {
            self.boxes.remove(&peer);
            self.turns.retain(|turn| *turn != peer);
        }
    }

    fn note(&mut self, peer: P) {
        if !self.turns.contains(&peer) {
            self.turns.push_back(peer);
        }
    }

    /// Returns what is to be told next. The members take turns.
    pub(crate) fn next(&mut self) -> Option<News<P>> {
        let peer = self.turns.pop_front()?;
        let known = self.boxes.get_mut(&peer)?;
        let news = known.next(peer);
        if matches!(news, News::Left(_)) {
            self.boxes.remove(&peer);
        } else if known.has_news() {
            self.turns.push_back(peer);
        }
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_proof_is_for_one_room_and_one_direction() {
        let key = MeshKey::new("app", "name", "secret");
        let proof = key.proof("a", "b");
        assert!(key.is_proof("a", "b", &proof));
        assert!(!key.is_proof("b", "a", &proof) && !key.is_proof("a", "c", &proof));
        assert!(!key.is_proof("a", "b", &proof[1..]) && !key.is_proof("a", "b", b""));
        for at in 0..PROOF {
            let mut changed = proof;
            changed[at] ^= 1;
            assert!(!key.is_proof("a", "b", &changed));
        }
        let mut twice = proof;
        twice[..2].iter_mut().for_each(|byte| *byte ^= 1);
        assert!(
            !key.is_proof("a", "b", &twice),
            "two differences do not cancel out"
        );
        for (application, name, secret) in [
            ("app2", "name", "secret"),
            ("app", "name2", "secret"),
            ("app", "name", "guess"),
        ] {
            let other = MeshKey::new(application, name, secret);
            assert!(!other.is_proof("a", "b", &proof));
        }
        // js/test/mesh.test.mjs has the same.
        assert_eq!(
            data_encoding::HEXLOWER.encode(&proof),
            "2d77dec22dd4dea631b04f94a6ca57d61e8cb2fd3a5e3ec4aeb0c35a1fc70434"
        );
    }

    #[test]
    fn one_attempt_at_a_time_counts() {
        let mut roster = Roster::new();
        assert!(roster.admit('a') && !roster.admit('a'));
        let first = roster.seek('a').unwrap();
        assert_eq!(roster.seek('a'), None, "one is under way");
        let (second, pause) = roster.fail('a', first, 0.5).unwrap();
        assert_eq!(pause, AGAIN.0);
        assert_eq!(roster.fail('a', first, 0.5), None, "it is stale");
        assert!(roster.is_sought('a', second) && !roster.is_sought('a', first));
        let link = roster.link('a', NOW).unwrap();
        assert!(!roster.is_sought('a', second));
        assert_eq!(roster.fail('a', second, 0.5), None);
        assert_eq!(roster.link('a', NOW), None, "a late one replaces nothing");
        assert_eq!(roster.unlink('a', link + 1, NOW, 0.5), None);
        roster.unlink('a', link, NOW, 0.5).unwrap();
        roster.remove('a');
        assert!(roster.admit('a'));
        let third = roster.seek('a').unwrap();
        assert!(third > second, "what was begun before it left is stale");
        roster.meet('a');
        assert_eq!(roster.seek('a'), None);
        assert!(roster.miss('a', 0.5).is_some() && roster.miss('a', 0.5).is_none());
    }

    #[test]
    fn who_does_not_stay_is_sought_ever_less_often() {
        let mut roster = Roster::new();
        roster.admit('a');
        roster.seek('a');
        let ends = |roster: &mut Roster<char>, lasted: Duration, random| {
            let link = roster.link('a', NOW).unwrap();
            roster.unlink('a', link, NOW + lasted, random).unwrap().1
        };
        let second = Duration::from_secs(1);
        let pauses: Vec<_> = (0..6).map(|_| ends(&mut roster, second, 0.5)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30].map(|n| n * second));
        assert_eq!(ends(&mut roster, AGAIN.1, 0.5), second, "it has stayed");
        assert_eq!(ends(&mut roster, AGAIN.1, 0.0), second * 3 / 4, "jitter");
    }

    #[test]
    fn a_full_mesh_takes_nobody_in() {
        let mut roster = Roster::new();
        assert!((1..MAX_MEMBERS).all(|peer| roster.admit(peer)));
        assert!(!roster.admit(0), "this peer is a member, too");
        roster.remove(7);
        assert!(roster.admit(0));
    }

    #[test]
    fn strangers_are_bounded_and_take_no_room_from_members() {
        let mut greets = Greets::new();
        let nobody = |_| false;
        let first = greets.begin(0, nobody).unwrap();
        assert!(greets.begin(0, nobody).is_some());
        assert_eq!(greets.begin(0, nobody), None, "two of one peer");
        greets.end(first);
        assert_eq!(greets.of(0).len(), 1);
        let begun = (1..100).filter(|peer| greets.begin(*peer, nobody).is_some());
        assert_eq!(begun.count(), STRANGERS - 1);
        assert!(greets.begin(77, |peer| peer == 77).is_some());
        assert!(greets.begin(78, |peer| peer == 77).is_none());
    }

    fn all(inbox: &mut Inbox<char>) -> Vec<News<char>> {
        std::iter::from_fn(|| inbox.next()).collect()
    }

    #[test]
    fn what_a_member_says_stands_between_its_coming_and_its_going() {
        let mut inbox = Inbox::default();
        inbox.open('a', 1, b"x".to_vec());
        inbox.put('a', b"one".to_vec());
        inbox.put_datagram('a', 1, b"two".to_vec());
        inbox.close('a');
        assert_eq!(inbox.has_room('a', 1), None, "nothing comes after its end");
        inbox.put_datagram('a', 1, b"late".to_vec());
        inbox.show('a', b"late".to_vec());
        let told = [
            News::Joined('a', b"x".to_vec()),
            News::Message('a', b"one".to_vec()),
            News::Datagram('a', b"two".to_vec()),
        ];
        for news in told {
            assert!(!inbox.can_open('a'), "its end is unread");
            assert_eq!(inbox.next(), Some(news));
        }
        assert_eq!(all(&mut inbox), [News::Left('a')]);
        assert!(inbox.can_open('a'));
    }

    #[test]
    fn who_comes_and_goes_unread_is_not_told() {
        let mut inbox = Inbox::default();
        for link in 0..1000 {
            inbox.open('a', link, Vec::new());
            inbox.close('a');
        }
        assert_eq!((all(&mut inbox), inbox.turns.len()), (Vec::new(), 0));
        inbox.open('a', 1000, b"x".to_vec());
        for n in 0..1000_u32 {
            inbox.show('a', n.to_be_bytes().to_vec());
        }
        let newest = 999_u32.to_be_bytes().to_vec();
        assert_eq!(all(&mut inbox), [News::Joined('a', newest.clone())]);
        inbox.show('a', newest);
        assert_eq!(all(&mut inbox), [], "it is no change");
        for n in 0..1000_u32 {
            inbox.show('a', n.to_be_bytes().to_vec());
        }
        assert_eq!(all(&mut inbox).len(), 1);
    }

    #[test]
    fn members_take_turns() {
        let mut inbox = Inbox::default();
        for (peer, link) in [('a', 1), ('b', 2)] {
            inbox.open(peer, link, Vec::new());
            for text in [b"1", b"2"] {
                inbox.put(peer, text.to_vec());
            }
        }
        let who = all(&mut inbox).into_iter().map(|news| match news {
            News::Joined(peer, _) | News::Message(peer, _) => peer,
            other => panic!("{other:?}"),
        });
        assert_eq!(who.collect::<String>(), "ababab");
    }

    proptest! {
        #[test]
        fn every_member_comes_before_it_speaks_and_goes_once(
            steps in prop::collection::vec((0_u8..7, 0_u8..80), 0..400),
        ) {
            let mut inbox = Inbox::default();
            let mut links = HashMap::new();
            let mut here = std::collections::HashSet::new();
            for (at, (step, peer)) in steps.into_iter().enumerate() {
                let link = links.get(&peer).copied().unwrap_or_default();
                match step {
                    0 if inbox.can_open(peer) => {
                        links.insert(peer, at as u64 + 1);
                        inbox.open(peer, at as u64 + 1, Vec::new());
                    }
                    1 => inbox.close(peer),
                    2 if inbox.has_room(peer, link) == Some(true) => inbox.put(peer, vec![0]),
                    3 => inbox.put_datagram(peer, link, vec![0]),
                    4 => inbox.show(peer, vec![at as u8]),
                    5 => match inbox.next() {
                        Some(News::Joined(peer, _)) => prop_assert!(here.insert(peer)),
                        Some(News::Left(peer)) => prop_assert!(here.remove(&peer)),
                        Some(
                            News::Changed(peer, _)
                            | News::Message(peer, _)
                            | News::Datagram(peer, _),
                        ) => prop_assert!(here.contains(&peer)),
                        None => {}
                    },
                    _ => {}
                }
                prop_assert!(inbox.boxes.len() <= 2 * MAX_MEMBERS);
                prop_assert!(inbox.turns.len() <= inbox.boxes.len());
                prop_assert!(inbox.boxes.values().all(|known| known.unread.len() < UNREAD + UNREAD_MESSAGES));
            }
        }
    }
}
