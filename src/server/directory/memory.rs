//! The directory of a server that is alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::ready,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::PeerId;
use tokio::sync::watch;

use super::{Change, Directory, Entry, Envelope, Place, Pool, Seat, Take};
use crate::core::{
    directory::{Refusal, Topic},
    record,
    room::{self, MAX_MEMBERS},
};

/// How long it is kept that somebody has left a room, for members to whom it could not be sent yet.
const PARTED: Duration = Duration::from_secs(60);
/// How many of those are kept for a room.
const MOST_PARTED: usize = MAX_MEMBERS;

/// The directory. All that it holds has a place in a pool.
pub(in crate::server) struct Memory {
    state: Mutex<State>,
    /// Makes the places of one room.
    seats: Box<dyn Fn() -> Pool + Send + Sync>,
}

#[derive(Default)]
struct State {
    records: HashMap<PeerId, Kept>,
    rooms: HashMap<Topic, Room>,
    joined: Joined,
}

/// The rooms of each member, so that a peer leaves all of its rooms without a look at the others.
#[derive(Default)]
struct Joined(HashMap<PeerId, HashSet<Topic>>);

impl Joined {
    fn add(&mut self, peer: PeerId, topic: Topic) {
        self.0.entry(peer).or_default().insert(topic);
    }

    fn remove(&mut self, peer: &PeerId, topic: &Topic) {
        if let Some(topics) = self.0.get_mut(peer) {
            topics.remove(topic);
            if topics.is_empty() {
                self.0.remove(peer);
            }
        }
    }
}

impl State {
    /// Takes a member out of a room.
    fn part(&mut self, topic: &Topic, peer: &PeerId, now: Instant) {
        if let Some(room) = self.rooms.get_mut(topic) {
            room.part(peer, now);
            self.joined.remove(peer, topic);
        }
    }
}

struct Kept<P = Place> {
    entry: Entry,
    until: Instant,
    #[expect(dead_code, reason = "it is held by being there")]
    place: P,
}

struct Room {
    /// No address has more than its share of them, so that others can always join.
    seats: Pool,
    members: HashMap<PeerId, Member>,
    /// Those that are no longer members.
    parted: HashMap<PeerId, Parted>,
    /// The number of the newest change of each peer, and the peers by that.
    numbers: HashMap<PeerId, u64>,
    changes: BTreeMap<u64, PeerId>,
    last: watch::Sender<u64>,
    /// The number of the last change of those of which it is forgotten that they have left.
    forgotten: u64,
}

/// Who has left, when, and with which record. An older one does not bring it back, because others may
/// know the newer one.
struct Parted {
    at: Instant,
    seq: u64,
}

struct Member {
    kept: Kept<Vec<Place>>,
    shown: Vec<u8>,
}

impl Room {
    fn new(seats: Pool) -> Self {
        Self {
            seats,
            members: HashMap::new(),
            parted: HashMap::new(),
            numbers: HashMap::new(),
            changes: BTreeMap::new(),
            last: watch::Sender::default(),
            forgotten: 0,
        }
    }

    /// Notes that something has changed about `peer`.
    fn note(&mut self, peer: PeerId) {
        let number = *self.last.borrow() + 1;
        if let Some(before) = self.numbers.insert(peer, number) {
            self.changes.remove(&before);
        }
        self.changes.insert(number, peer);
        self.last.send_replace(number);
    }

    fn part(&mut self, peer: &PeerId, now: Instant) {
        let Some(member) = self.members.remove(peer) else {
            return;
        };
        if self.parted.len() >= MOST_PARTED {
            let parted = &self.parted;
            let oldest = self.changes.values().find(|peer| parted.contains_key(peer));
            if let Some(oldest) = oldest.copied() {
                self.forget(&oldest);
            }
        }
        let seq = member.kept.entry.seq;
        self.parted.insert(*peer, Parted { at: now, seq });
        self.note(*peer);
    }

    /// Forgets that `peer` has left.
    fn forget(&mut self, peer: &PeerId) {
        self.parted.remove(peer);
        if let Some(number) = self.numbers.remove(peer) {
            self.changes.remove(&number);
            self.forgotten = self.forgotten.max(number);
        }
    }

    /// Takes out the members whose time is over, and calls `gone` for each.
    fn sweep(&mut self, now: Instant, mut gone: impl FnMut(&PeerId)) {
        let over = |member: &Member| member.kept.until <= now;
        let late = self.members.iter().filter(|(_, member)| over(member));
        for peer in late.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.part(&peer, now);
            gone(&peer);
        }
        let is_old = |parted: &Parted| now >= parted.at + PARTED;
        let old = self.parted.iter().filter(|(_, parted)| is_old(parted));
        for peer in old.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.forget(&peer);
        }
    }

    /// Whether nobody is there who would miss it.
    fn is_over(&self) -> bool {
        self.members.is_empty() && self.last.receiver_count() == 0
    }
}

impl Memory {
    /// Makes a directory in which each room has the places that `seats` makes.
    pub(in crate::server) fn new(seats: impl Fn() -> Pool + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::default(),
            seats: Box::new(seats),
        }
    }

    /// Returns the record of a peer.
    pub(in crate::server) fn record(&self, peer: &PeerId, now: Instant) -> Option<Entry> {
        let state = self.lock();
        let kept = state.records.get(peer).filter(|kept| now < kept.until);
        kept.map(|kept| kept.entry.clone())
    }

    /// Forgets the record of a peer that is somewhere else.
    pub(in crate::server) fn drop_record(&self, peer: &PeerId) {
        self.lock().records.remove(peer);
    }

    /// Returns the record of a member of a room.
    pub(in crate::server) fn member(&self, topic: &Topic, peer: &PeerId) -> Option<Entry> {
        let state = self.lock();
        let member = state.rooms.get(topic)?.members.get(peer);
        member.map(|member| member.kept.entry.clone())
    }

    /// Takes a member out of a room because another server has done so. Any record may bring it back: it may be
    /// at a third server as well, which need not know the newest record.
    pub(in crate::server) fn take_out(&self, topic: &Topic, peer: &PeerId, now: Instant) {
        let mut state = self.lock();
        let member = |room: &Room| room.members.contains_key(peer);
        if !state.rooms.get(topic).is_some_and(member) {
            return;
        }
        state.part(topic, peer, now);
        if let Some(room) = state.rooms.get_mut(topic)
            && let Some(parted) = room.parted.get_mut(peer)
        {
            parted.seq = 0;
        }
    }

    /// Returns the rooms that somebody watches.
    pub(in crate::server) fn watched(&self) -> HashSet<Topic> {
        let state = self.lock();
        let watched = |room: &Room| room.last.receiver_count() > 0;
        let rooms = state.rooms.iter().filter(|(_, room)| watched(room));
        rooms.map(|(topic, _)| *topic).collect()
    }

    /// Watches a room. The second value is whether nobody has watched it before.
    pub(in crate::server) fn begin_watch(&self, topic: &Topic) -> (watch::Receiver<u64>, bool) {
        let mut state = self.lock();
        let last = &self.room(&mut state, topic).last;
        let is_first = last.receiver_count() == 0;
        (last.subscribe(), is_first)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are consistent after every call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room<'a>(&self, state: &'a mut State, topic: &Topic) -> &'a mut Room {
        let room = state.rooms.entry(*topic);
        room.or_insert_with(|| Room::new((self.seats)()))
    }
}

impl Directory for Memory {
    fn put(&self, entry: Entry, now: Instant, place: Take<'_>) -> Result<(), Refusal> {
        let records = &mut self.lock().records;
        let until = now + record::LIFETIME;
        match records.get_mut(&entry.peer) {
            Some(kept) => kept.replace(entry, until)?,
            None => {
                let place = place().map_err(|_| Refusal::Limit)?;
                let peer = entry.peer;
                records.insert(
                    peer,
                    Kept {
                        entry,
                        until,
                        place,
                    },
                );
            }
        }
        Ok(())
    }

    fn find(
        &self,
        peer: &PeerId,
        _is_here: bool,
        now: Instant,
    ) -> BoxFuture<'static, Option<Envelope>> {
        let found = self.record(peer, now).map(|entry| entry.envelope);
        ready(found).boxed()
    }

    fn forget(&self, peer: &PeerId, now: Instant) {
        let mut state = self.lock();
        state.records.remove(peer);
        for topic in state.joined.0.get(peer).cloned().unwrap_or_default() {
            state.part(&topic, peer, now);
        }
    }

    fn join(
        &self,
        topic: &Topic,
        entry: Entry,
        shown: Vec<u8>,
        now: Instant,
        seat: Seat<'_>,
    ) -> Result<(), Refusal> {
        let mut state = self.lock();
        let until = now + room::LIFETIME;
        let peer = entry.peer;
        let room = self.room(&mut state, topic);
        if let Some(member) = room.members.get_mut(&peer) {
            member.kept.replace(entry, until)?;
            if std::mem::replace(&mut member.shown, shown) != member.shown {
                room.note(peer);
            }
            return Ok(());
        }
        if let Some(parted) = room.parted.get(&peer).filter(|p| entry.seq <= p.seq) {
            return Err(Refusal::Stale(parted.seq));
        }
        match seat(&room.seats) {
            Ok(place) => {
                room.parted.remove(&peer);
                let kept = Kept {
                    entry,
                    until,
                    place,
                };
                room.members.insert(peer, Member { kept, shown });
                room.note(peer);
                state.joined.add(peer, *topic);
                Ok(())
            }
            Err(_) => {
                if room.is_over() {
                    state.rooms.remove(topic);
                }
                Err(Refusal::Limit)
            }
        }
    }

    fn leave(&self, topic: &Topic, peer: &PeerId, now: Instant) {
        self.lock().part(topic, peer, now);
    }

    fn watch(&self, topic: &Topic) -> watch::Receiver<u64> {
        self.begin_watch(topic).0
    }

    fn size(&self, topic: &Topic) -> usize {
        let state = self.lock();
        state.rooms.get(topic).map_or(0, |room| room.members.len())
    }

    fn changes(&self, topic: &Topic, after: u64, most: usize) -> Option<Vec<(u64, Change)>> {
        let state = self.lock();
        let Some(room) = state.rooms.get(topic) else {
            return Some(Vec::new());
        };
        if after > 0 && after < room.forgotten {
            return None;
        }
        let changes = room.changes.range(after.saturating_add(1)..);
        let changes = changes.filter_map(|(number, peer)| match room.members.get(peer) {
            Some(member) => {
                let envelope = member.kept.entry.envelope.clone();
                Some((*number, Change::Present(envelope)))
            }
            None if after == 0 => None,
            None => Some((*number, Change::Left(*peer))),
        });
        Some(changes.take(most).collect())
    }

    fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        let State {
            records,
            rooms,
            joined,
        } = &mut *state;
        records.retain(|_, kept| now < kept.until);
        rooms.retain(|topic, room| {
            room.sweep(now, |peer| joined.remove(peer, topic));
            !room.is_over()
        });
    }
}

impl<P> Kept<P> {
    fn replace(&mut self, entry: Entry, until: Instant) -> Result<(), Refusal> {
        if entry.seq <= self.entry.seq {
            return Err(Refusal::Stale(self.entry.seq));
        }
        (self.entry, self.until) = (entry, until);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
