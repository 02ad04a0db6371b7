//! What this server knows of the fleet: the peers that are here, and what others have said of theirs. It
//! says what has to be written into the store, and takes what is read there. It does neither itself.

mod state;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::{Notify, watch};

use super::keys::{Bucket, Found, Key, Write};
use crate::{
    core::{
        directory::{Refusal, Topic},
        fleet::{Held, Newest, Outbox},
        quota::{self, Holder},
        record,
    },
    server::{
        directory::{Change, Directory as _, Entry, Envelope, Memory, Seat, Take},
        pool::Pool,
    },
};

/// How many records of peers that are elsewhere are known, of those that were looked up. They take 64 MiB
/// at most.
const KNOWN: usize = 16_384;
/// How long what was looked up is answered without asking again. A peer that moves is found where it was
/// for no longer than this.
const FRESH: Duration = Duration::from_secs(1);

/// A revision that no key ever has. Whatever is to be done with such a key, the store is asked first.
pub(super) const UNKNOWN: u64 = 1 << 62;

/// How often it is looked at all keys, which may be many.
const SWEEP: Duration = Duration::from_secs(10);

/// What is known of a peer.
pub(super) enum Known {
    /// It is the newest, so nobody needs to be asked.
    Newest(Option<Envelope>),
    /// Others may know more.
    AtLeast(Option<Envelope>),
}

/// A value that no server of the fleet would have written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unsound;

/// The places of members that are elsewhere.
pub(in crate::server) struct Elsewhere {
    pub(in crate::server) all: Pool,
    /// Makes the places of one room. They are held by the servers that name the members.
    pub(in crate::server) room: Box<dyn Fn() -> Pool + Send + Sync>,
}

pub(in crate::server) struct Shared {
    /// The peers that are here, and in rooms that are watched here, the members that are elsewhere.
    memory: Memory,
    elsewhere: Elsewhere,
    own: PeerId,
    state: Mutex<State>,
    /// Told when there is something to write.
    pub(super) due: Notify,
    /// Told when a room is watched that was not.
    pub(super) rooms: Notify,
}

struct State {
    /// The keys that this server has written, or is to write.
    own: BTreeMap<Key, Own>,
    outbox: Outbox<Key>,
    /// The records of peers that are elsewhere.
    known: Newest<Looked>,
    /// The places of members that are elsewhere, by room.
    rooms: HashMap<Topic, Pool>,
    /// How many of the keys are to be deleted.
    gone: usize,
    /// When it was last looked at all keys.
    swept: Option<Instant>,
}

/// A key of this server.
#[derive(Clone, Copy)]
struct Own {
    /// When its peer has gone. Then the key is to be deleted.
    gone: Option<Instant>,
    /// The revision that this server has written, or is to overwrite, or 0.
    revision: u64,
    /// Whether this server has written that revision.
    is_ours: bool,
}

struct Looked {
    entry: Entry,
    at: Instant,
    until: Instant,
}

impl Shared {
    /// `own` is this server.
    pub(in crate::server) fn new(own: PeerId, memory: Memory, elsewhere: Elsewhere) -> Self {
        Self {
            memory,
            elsewhere,
            own,
            state: Mutex::new(State {
                own: BTreeMap::new(),
                outbox: Outbox::default(),
                known: Newest::new(KNOWN),
                rooms: HashMap::new(),
                gone: 0,
                swept: None,
            }),
            due: Notify::new(),
            rooms: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are consistent after every call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What peers of this server say.

    pub(super) fn put(&self, entry: Entry, now: Instant, place: Take<'_>) -> Result<(), Refusal> {
        let peer = entry.peer;
        let mut state = self.lock();
        self.memory.put(entry, now, place)?;
        state.known.remove(&peer);
        state.is_here(Key::Peer(peer));
        self.due.notify_one();
        Ok(())
    }

    pub(super) fn join(
        &self,
        topic: &Topic,
        entry: Entry,
        shown: Vec<u8>,
        now: Instant,
        seat: Seat<'_>,
    ) -> Result<(), Refusal> {
        let key = Key::Member(entry.peer, *topic);
        let mut state = self.lock();
        self.memory.join(topic, entry, shown, now, seat)?;
        state.is_here(key);
        self.due.notify_one();
        Ok(())
    }

    pub(super) fn leave(&self, topic: &Topic, peer: &PeerId, now: Instant) {
        // One that has come again elsewhere has not left.
        if self.lock().has_gone(&Key::Member(*peer, *topic), now) {
            self.memory.leave(topic, peer, now);
            self.due.notify_one();
        }
    }

    pub(super) fn forget(&self, peer: &PeerId, now: Instant) {
        let mut state = self.lock();
        let rooms = Key::Member(*peer, [0; 32])..=Key::Member(*peer, [0xff; 32]);
        let rooms = state.own.range(rooms).map(|(key, _)| *key);
        let keys: Vec<_> = rooms.chain([Key::Peer(*peer)]).collect();
        for key in keys {
            state.has_gone(&key, now);
        }
        state.known.remove(peer);
        self.memory.forget(peer, now);
        self.due.notify_one();
    }

    // What is asked here.

    /// Returns what is known of a peer. Whoever has a reservation at this server has told it first.
    pub(super) fn known(&self, peer: &PeerId, is_here: bool, now: Instant) -> Known {
        let own = self.memory.record(peer, now);
        if is_here && let Some(own) = own {
            return Known::Newest(Some(own.envelope));
        }
        let state = self.lock();
        let looked = state.known.get(peer).filter(|looked| now < looked.until);
        let is_fresh = looked.is_some_and(|looked| now < looked.at + FRESH);
        let looked = looked.map(|looked| looked.entry.clone());
        let best = newer(own, looked).map(|entry| entry.envelope);
        match is_fresh {
            true => Known::Newest(best),
            false => Known::AtLeast(best),
        }
    }

    pub(super) fn watch(&self, topic: &Topic) -> watch::Receiver<u64> {
        let (watch, is_first) = self.memory.begin_watch(topic);
        if is_first {
            self.rooms.notify_one();
        }
        watch
    }

    pub(super) fn size(&self, topic: &Topic) -> usize {
        self.memory.size(topic)
    }

    pub(super) fn changes(
        &self,
        topic: &Topic,
        after: u64,
        most: usize,
    ) -> Option<Vec<(u64, Change)>> {
        self.memory.changes(topic, after, most)
    }

    /// The rooms of which this server has to hear.
    pub(super) fn watched(&self) -> HashSet<Topic> {
        self.memory.watched()
    }

    /// Forgets what is over at `now`. What is over in the store goes there by its age.
    pub(super) fn sweep(&self, now: Instant) {
        self.memory.sweep(now);
        let mut state = self.lock();
        if state.swept.is_some_and(|swept| now < swept + SWEEP) {
            return;
        }
        state.swept = Some(now);
        let State {
            own, gone, outbox, ..
        } = &mut *state;
        own.retain(|key, own| match own.gone {
            None => self.envelope(key, now).is_some(),
            Some(since) => {
                let is_kept = now < since + key.lifetime();
                *gone -= usize::from(!is_kept);
                is_kept
            }
        });
        // While the store cannot be written, they would become more and more.
        outbox.retain(|key| own.contains_key(key));
        state.known.retain(|looked| now < looked.until);
        state.rooms.retain(|_, places| places.taken() > 0);
    }

    // What goes to the store and comes from there.

    /// Returns a key that has to be written. It is being written until
    /// [`written`](Self::written), [`failed`](Self::failed), [`differs`](Self::differs) or
    /// [`begin`](Self::begin) is called.
    pub(super) fn next(&self, now: Instant) -> Option<(Key, Write)> {
        let mut state = self.lock();
        loop {
            let key = state.outbox.next()?;
            let write = state.own.get(&key).copied().and_then(|own| match own.gone {
                None => {
                    let envelope = self.envelope(&key, now)?.to_vec();
                    let relay = self.own;
                    Some(Write::Put(Held { relay, envelope }.encode(), own.revision))
                }
                Some(_) => (own.revision > 0).then_some(Write::Delete(own.revision)),
            });
            match write {
                Some(write) => return Some((key, write)),
                None => {
                    state.disown(&key);
                    state.outbox.done(&key, false);
                }
            }
        }
    }

    /// How many keys have to be written.
    pub(super) fn waiting(&self) -> usize {
        self.lock().outbox.len()
    }

    /// `key` was written, with this revision.
    pub(super) fn written(&self, key: &Key, write: &Write, revision: u64) {
        let mut state = self.lock();
        if let Some(own) = state.own.get_mut(key) {
            (own.revision, own.is_ours) = (revision, true);
            if own.gone.is_some() && matches!(write, Write::Delete(_)) {
                state.disown(key);
            }
        }
        state.outbox.done(key, false);
    }

    /// It is not known whether `key` was written.
    pub(super) fn failed(&self, key: &Key) {
        let mut state = self.lock();
        state.doubt(key);
        state.outbox.done(key, true);
    }

    /// `key` was not written, because the store has something else, or nothing.
    ///
    /// # Errors
    /// [`Unsound`] if that is no envelope of the peer. It is overwritten.
    pub(super) fn differs(
        &self,
        key: &Key,
        found: Option<&Found>,
        now: Instant,
    ) -> Result<(), Unsound> {
        let theirs = found.map(|found| self.read(key, found)).transpose();
        let read = theirs
            .as_ref()
            .ok()
            .and_then(|theirs| theirs.as_ref()?.clone());
        let mut state = self.lock();
        let mut again = false;
        if let Some(own) = state.own.get(key).copied() {
            let ours = self.entry(key, now);
            let is_newest = match (&ours, &read) {
                (Some(ours), Some(theirs)) => {
                    let is_own = theirs.relay == self.own && theirs.entry.seq == ours.seq;
                    ours.seq > theirs.entry.seq || is_own
                }
                (Some(_), None) => true,
                // Its time is over, so there is nothing to write.
                (None, _) => false,
            };
            // What another server has written is not this server's to delete.
            let is_ours = |read: &Read| read.relay == self.own;
            again = match own.gone {
                None => is_newest,
                Some(_) => read.as_ref().is_some_and(is_ours),
            };
            match again {
                true => {
                    let own = Own {
                        revision: found.map_or(0, |found| found.revision),
                        is_ours: read.as_ref().is_some_and(is_ours),
                        ..own
                    };
                    state.own.insert(*key, own);
                }
                false => state.disown(key),
            }
        }
        state.outbox.done(key, again);
        if !again && let Some(read) = read {
            self.take(&mut state, key, read, now);
        }
        theirs.map(|_| ())
    }

    /// The store has this for `key`, now or since some time.
    ///
    /// # Errors
    /// [`Unsound`] if that is no envelope of the peer. It does not count.
    pub(super) fn heard(&self, key: &Key, found: &Found, now: Instant) -> Result<(), Unsound> {
        let theirs = self.read(key, found);
        let mut state = self.lock();
        let own = state.own.get(key).copied().filter(|own| own.gone.is_none());
        let knows = |own: Own| own.revision != UNKNOWN && found.revision <= own.revision;
        if own.is_some_and(knows) {
            // This server has written since.
            return theirs.map(drop);
        }
        let ours = own
            .and_then(|_| self.entry(key, now))
            .map(|entry| entry.seq);
        match (theirs, own, ours) {
            // It is our own, or that of a server where the peer is, too.
            (Ok(Some(theirs)), Some(_), Some(seq)) if theirs.entry.seq == seq => {}
            // Somebody has put something else in the place of what is newer.
            (Ok(Some(Read { entry, .. })), Some(own), Some(seq)) if entry.seq < seq => {
                self.repair(&mut state, key, own, found);
            }
            (Ok(Some(theirs)), ..) => {
                self.take(&mut state, key, theirs, now);
            }
            (Ok(None), own, ours) => match (key, own) {
                // It has come here, which the store does not know yet.
                (Key::Peer(_), Some(_)) if state.outbox.has(key) => {}
                // Only those are looked up that are not here. This one has said goodbye elsewhere.
                (Key::Peer(peer), _) => {
                    self.memory.drop_record(peer);
                    state.known.remove(peer);
                    state.disown(key);
                }
                (Key::Member(..), Some(own)) if ours.is_some() => {
                    self.repair(&mut state, key, own, found);
                }
                (Key::Member(peer, topic), _) => self.memory.take_out(topic, peer, now),
            },
            (Err(unsound), own, _) => {
                if let Some(own) = own {
                    self.repair(&mut state, key, own, found);
                }
                return Err(unsound);
            }
        }
        Ok(())
    }

    /// Returns the rest of what [`heard`](Self::heard) of a look-up means: the newest record of the peer.
    pub(super) fn newest(&self, peer: &PeerId, now: Instant) -> Option<Envelope> {
        match self.known(peer, false, now) {
            Known::Newest(found) | Known::AtLeast(found) => found,
        }
    }

    /// The store can be written again. Whether what was under way has been written is not known.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        for key in state.outbox.interrupt() {
            state.doubt(&key);
        }
        state.sort();
        self.due.notify_one();
    }

    /// Returns the key of a bucket that this server has written last with a revision below this one, and
    /// its revision. What is to be written anyway does not count.
    pub(super) fn last(&self, which: Bucket, below: u64) -> Option<(Key, u64)> {
        let state = self.lock();
        let all = state
            .own
            .iter()
            .filter(|(key, own)| Bucket::from(*key) == which && (1..below).contains(&own.revision));
        let at_rest = all.filter(|(key, own)| own.gone.is_none() && !state.outbox.has(key));
        let last = at_rest.max_by_key(|(_, own)| own.revision);
        last.map(|(key, own)| (*key, own.revision))
    }

    /// Whether the store must still have `key` as this server has written it with this revision.
    pub(super) fn relies_on(&self, key: &Key, revision: u64, now: Instant) -> bool {
        let state = self.lock();
        let own = state.own.get(key).filter(|own| own.gone.is_none());
        own.is_some_and(|own| own.revision == revision)
            && !state.outbox.has(key)
            && self.envelope(key, now).is_some()
    }

    /// A bucket may have lost what was written before. All of it is written again.
    pub(super) fn rewrite(&self, which: Bucket) {
        let mut state = self.lock();
        let all = state.own.iter();
        let known = all.filter(|(key, own)| Bucket::from(*key) == which && own.revision > 0);
        for key in known.map(|(key, _)| *key).collect::<Vec<_>>() {
            state.doubt(&key);
            state.outbox.note(key);
        }
        state.sort();
        self.due.notify_one();
    }

    fn read(&self, key: &Key, found: &Found) -> Result<Option<Read>, Unsound> {
        let Some(value) = &found.value else {
            return Ok(None);
        };
        let Held { relay, envelope } = Held::decode(value).ok_or(Unsound)?;
        let (entry, shown) = match key {
            Key::Peer(peer) => (
                Entry::record(*peer, envelope).map_err(|_| Unsound)?,
                Vec::new(),
            ),
            Key::Member(peer, topic) => {
                Entry::member(*peer, topic, envelope).map_err(|_| Unsound)?
            }
        };
        Ok(Some(Read {
            relay,
            entry,
            shown,
            age: found.age,
        }))
    }

    /// Takes over what another server knows, if it is newer.
    fn take(&self, state: &mut State, key: &Key, read: Read, now: Instant) {
        let Read {
            relay,
            entry,
            shown,
            age,
        } = read;
        let since = now.checked_sub(age).unwrap_or(now);
        match key {
            Key::Peer(peer) => {
                let known = state.known.get(peer).map(|looked| looked.entry.seq);
                let seq = entry.seq;
                if known.is_none_or(|known| known <= seq) {
                    let until = since + record::LIFETIME;
                    let looked = Looked {
                        entry,
                        at: now,
                        until,
                    };
                    state.known.insert(*peer, looked);
                    let own = self.memory.record(peer, now).map(|own| own.seq);
                    if own.is_none_or(|own| own < seq) {
                        self.memory.drop_record(peer);
                        state.disown(key);
                    }
                }
            }
            Key::Member(peer, topic) => {
                let held = |peer| Holder {
                    ip: None,
                    peer: Some(peer),
                };
                let rooms = &mut state.rooms;
                let theirs = rooms
                    .entry(*topic)
                    .or_insert_with(|| (self.elsewhere.room)());
                let seat = |room: &Pool| -> Result<_, quota::Refusal> {
                    let of_relay = theirs.take(held(relay))?;
                    let holder = held(*peer);
                    let places = [room.take(holder)?, self.elsewhere.all.take(holder)?];
                    Ok(places.into_iter().chain([of_relay]).collect())
                };
                // An older record, or one for which there is no place, is left out.
                if self.memory.join(topic, entry, shown, since, &seat).is_ok() {
                    state.disown(key);
                }
            }
        }
    }

    /// Writes `key` again, over what was `found`.
    fn repair(&self, state: &mut State, key: &Key, own: Own, found: &Found) {
        let own = Own {
            revision: found.revision,
            is_ours: false,
            ..own
        };
        state.own.insert(*key, own);
        state.outbox.note(*key);
        self.due.notify_one();
    }

    fn entry(&self, key: &Key, now: Instant) -> Option<Entry> {
        match key {
            Key::Peer(peer) => self.memory.record(peer, now),
            Key::Member(peer, topic) => self.memory.member(topic, peer),
        }
    }

    fn envelope(&self, key: &Key, now: Instant) -> Option<Envelope> {
        self.entry(key, now).map(|entry| entry.envelope)
    }
}

/// A value of the store that is sound.
#[derive(Clone)]
struct Read {
    relay: PeerId,
    entry: Entry,
    shown: Vec<u8>,
    age: Duration,
}

fn newer(a: Option<Entry>, b: Option<Entry>) -> Option<Entry> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.seq > a.seq { b } else { a }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
