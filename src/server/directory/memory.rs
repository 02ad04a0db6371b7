//! The directory of a server that is alone.

use std::{
    collections::{BTreeMap, HashMap},
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
    kept: Kept<[Place; 2]>,
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

    fn sweep(&mut self, now: Instant) {
        let over = |member: &Member| member.kept.until <= now;
        let gone = self.members.iter().filter(|(_, member)| over(member));
        for peer in gone.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.part(&peer, now);
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

    fn find(&self, peer: &PeerId, now: Instant) -> BoxFuture<'static, Option<Envelope>> {
        let state = self.lock();
        let kept = state.records.get(peer).filter(|kept| now < kept.until);
        let found = kept.map(|kept| kept.entry.envelope.clone());
        async move { found }.boxed()
    }

    fn forget(&self, peer: &PeerId, now: Instant) {
        let mut state = self.lock();
        state.records.remove(peer);
        for room in state.rooms.values_mut() {
            room.part(peer, now);
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
        if let Some(room) = self.lock().rooms.get_mut(topic) {
            room.part(peer, now);
        }
    }

    fn watch(&self, topic: &Topic) -> watch::Receiver<u64> {
        self.room(&mut self.lock(), topic).last.subscribe()
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
        state.records.retain(|_, kept| now < kept.until);
        state.rooms.retain(|_, room| {
            room.sweep(now);
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
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::{
        core::quota::{self, Quota},
        native::behaviours::pool::{Debug, Pool},
    };

    const TOPIC: Topic = [7; 32];

    fn entry(peer: PeerId, seq: u64) -> Entry {
        Entry {
            peer,
            seq,
            envelope: seq.to_be_bytes().to_vec().into(),
        }
    }

    struct Scene {
        memory: Memory,
        pool: Pool,
        now: Instant,
    }

    impl Scene {
        fn new(places: usize) -> Self {
            Self::sharing(places, 100)
        }

        /// A scene in which one address has this share of a room, in percent.
        fn sharing(places: usize, percent: u8) -> Self {
            let seats = Quota::shared(MAX_MEMBERS, percent);
            Self {
                memory: Memory::new(move || Pool::new("seat", seats, &Debug)),
                pool: Pool::new("test", Quota::shared(places, 100), &Debug),
                now: Instant::now(),
            }
        }

        fn put(&self, peer: PeerId, seq: u64) -> Result<(), Refusal> {
            let take = || self.pool.take(std::net::IpAddr::from([192, 0, 2, 1]));
            self.memory.put(entry(peer, seq), self.now, &take)
        }

        fn find(&self, peer: &PeerId) -> Option<Envelope> {
            block_on(self.memory.find(peer, self.now))
        }

        fn join(&self, peer: PeerId, seq: u64, shown: &[u8]) -> Result<(), Refusal> {
            self.join_from("192.0.2.1", entry(peer, seq), shown)
        }

        fn join_from(&self, ip: &str, entry: Entry, shown: &[u8]) -> Result<(), Refusal> {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            let seat = |room: &Pool| -> Result<_, quota::Refusal> {
                Ok([room.take(ip)?, self.pool.take(ip)?])
            };
            self.memory
                .join(&TOPIC, entry, shown.to_vec(), self.now, &seat)
        }

        fn changes(&self, after: u64) -> Vec<(u64, Change)> {
            self.memory.changes(&TOPIC, after, 100).unwrap()
        }
    }

    fn present(number: u64, seq: u64) -> (u64, Change) {
        let envelope = seq.to_be_bytes().to_vec().into();
        (number, Change::Present(envelope))
    }

    #[test]
    fn the_newest_record_counts_until_it_is_over() {
        let mut scene = Scene::new(1);
        let (peer, other) = (PeerId::random(), PeerId::random());
        scene.put(peer, 5).unwrap();
        assert_eq!(scene.put(peer, 5), Err(Refusal::Stale(5)));
        assert_eq!(scene.put(peer, 4), Err(Refusal::Stale(5)));
        scene.put(peer, 6).unwrap();
        assert_eq!(scene.find(&peer).unwrap()[..], 6_u64.to_be_bytes());
        assert_eq!(scene.put(other, 1), Err(Refusal::Limit), "one place");
        scene.now += record::LIFETIME;
        assert_eq!(scene.find(&peer), None);
        scene.memory.sweep(scene.now);
        scene.put(other, 1).unwrap();
        scene.memory.forget(&other, scene.now);
        assert_eq!((scene.find(&other), scene.pool.taken()), (None, 0));
    }

    #[test]
    fn a_member_hears_what_has_changed_since_and_no_renewal() {
        let mut scene = Scene::new(9);
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let watch = scene.memory.watch(&TOPIC);
        scene.join(a, 1, b"a").unwrap();
        scene.join(b, 1, b"b").unwrap();
        assert_eq!(scene.changes(0), [present(1, 1), present(2, 1)]);
        assert_eq!(*watch.borrow(), 2);
        scene.join(a, 2, b"a").unwrap();
        assert_eq!(scene.changes(2), []);
        assert_eq!(scene.join(a, 2, b"other"), Err(Refusal::Stale(2)));
        scene.join(a, 3, b"other").unwrap();
        assert_eq!(scene.changes(2), [present(3, 3)]);
        scene.memory.leave(&TOPIC, &a, scene.now);
        scene.memory.leave(&TOPIC, &a, scene.now);
        assert_eq!(scene.changes(2), [(4, Change::Left(a))]);
        assert_eq!(
            scene.changes(0),
            [present(2, 1)],
            "who comes sees who is there"
        );
        assert_eq!(
            scene.join(a, 3, b"again"),
            Err(Refusal::Stale(3)),
            "replayed"
        );
        scene.join(a, 4, b"again").unwrap();
        assert_eq!(scene.changes(4), [present(5, 4)]);
        assert_eq!(scene.memory.changes(&TOPIC, 0, 1).unwrap().len(), 1);
        scene.now += room::LIFETIME;
        scene.memory.sweep(scene.now);
        assert_eq!(scene.changes(5).len(), 2, "both are over");
        assert_eq!(scene.pool.taken(), 0);
        drop(watch);
        scene.memory.sweep(scene.now);
        assert!(scene.memory.lock().rooms.is_empty());
    }

    #[test]
    fn a_room_is_bounded_and_so_is_what_is_known_of_those_who_left() {
        let mut scene = Scene::new(MAX_MEMBERS + 9);
        let first = PeerId::random();
        scene.join(first, 1, b"").unwrap();
        for _ in 1..MAX_MEMBERS {
            scene.join(PeerId::random(), 1, b"").unwrap();
        }
        assert_eq!(scene.join(PeerId::random(), 1, b""), Err(Refusal::Limit));
        scene.memory.forget(&first, scene.now);
        scene.join(PeerId::random(), 1, b"").unwrap();
        let _watch = scene.memory.watch(&TOPIC);
        for _ in 0..2 {
            scene.now += room::LIFETIME;
            scene.memory.sweep(scene.now);
            scene.join(PeerId::random(), 1, b"").unwrap();
        }
        let state = scene.memory.lock();
        let room = &state.rooms[&TOPIC];
        assert_eq!((room.members.len(), room.parted.len()), (1, MOST_PARTED));
        assert_eq!(room.changes.len(), MOST_PARTED + 1);
    }

    #[test]
    fn no_address_and_no_prefix_fills_a_room() {
        let scene = Scene::sharing(MAX_MEMBERS * 2, 10);
        let crowd = |ip: &dyn Fn(usize) -> String| {
            let joins = (0..MAX_MEMBERS).filter(|n| {
                let entry = entry(PeerId::random(), 1);
                scene.join_from(&ip(*n), entry, b"").is_ok()
            });
            joins.count()
        };
        let share = MAX_MEMBERS / 10;
        assert_eq!(crowd(&|_| "192.0.2.1".into()), share, "an IPv4 address");
        assert_eq!(crowd(&|n| format!("2001:db8::{n:x}")), share, "a /64");
        let of_site = MAX_MEMBERS * 20 / 100 - share;
        let of_48 = crowd(&|n| format!("2001:db8:0:{:x}::1", n + 1));
        assert_eq!(of_48, of_site, "the rest of its /48");
        let honest = scene.join_from("198.51.100.7", entry(PeerId::random(), 1), b"");
        assert_eq!(honest, Ok(()));
        assert_eq!(scene.memory.size(&TOPIC), share + share + of_site + 1);
    }

    #[test]
    fn whoever_is_too_far_behind_to_hear_who_has_left_begins_anew() {
        let mut scene = Scene::new(9);
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        let _watch = scene.memory.watch(&TOPIC);
        for peer in [a, b] {
            scene.join(peer, 1, b"").unwrap();
        }
        scene.memory.leave(&TOPIC, &a, scene.now);
        assert_eq!(scene.changes(2), [(3, Change::Left(a))]);
        scene.now += PARTED;
        scene.join(c, 1, b"").unwrap();
        scene.memory.sweep(scene.now);
        assert_eq!(scene.memory.changes(&TOPIC, 2, 100), None);
        assert!(
            scene.memory.changes(&TOPIC, 3, 100).is_some(),
            "it has heard"
        );
        assert!(scene.memory.changes(&TOPIC, 0, 100).is_some(), "it begins");
    }

    #[test]
    fn a_refused_member_leaves_no_room_behind() {
        let scene = Scene::new(0);
        assert_eq!(scene.join(PeerId::random(), 1, b""), Err(Refusal::Limit));
        assert!(scene.memory.lock().rooms.is_empty());
    }
}
