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
mod tests;
