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
        block_on(self.memory.find(peer, true, self.now))
    }

    fn join(&self, peer: PeerId, seq: u64, shown: &[u8]) -> Result<(), Refusal> {
        self.join_from("192.0.2.1", entry(peer, seq), shown)
    }

    fn join_from(&self, ip: &str, entry: Entry, shown: &[u8]) -> Result<(), Refusal> {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let seat = |room: &Pool| -> Result<_, quota::Refusal> {
            Ok(vec![room.take(ip)?, self.pool.take(ip)?])
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
    let (watch, is_first) = scene.memory.begin_watch(&TOPIC);
    let (second, is_second_first) = scene.memory.begin_watch(&TOPIC);
    assert!(is_first && !is_second_first);
    drop(second);
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
fn who_was_taken_out_elsewhere_comes_back_with_any_record_and_who_has_left_with_no_older_one() {
    let scene = Scene::new(9);
    let peer = PeerId::random();
    let _watch = scene.memory.watch(&TOPIC);
    scene.join(peer, 5, b"").unwrap();
    scene.memory.take_out(&TOPIC, &peer, scene.now);
    scene.memory.take_out(&TOPIC, &peer, scene.now);
    assert_eq!(scene.changes(1), [(2, Change::Left(peer))]);
    scene.join(peer, 4, b"").unwrap();
    scene.memory.leave(&TOPIC, &peer, scene.now);
    assert_eq!(scene.join(peer, 4, b""), Err(Refusal::Stale(4)));
    scene.join(peer, 5, b"").unwrap();
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
    assert_eq!(state.joined.0.len(), 1);
}

#[test]
fn a_peer_that_is_gone_has_left_all_its_rooms_and_nobody_else_has() {
    let scene = Scene::new(9);
    let [a, b] = [(); 2].map(|()| PeerId::random());
    let topics = [[1; 32], [2; 32], [3; 32]];
    let seat = |_: &Pool| Ok(Vec::new());
    for topic in &topics {
        for peer in [a, b] {
            let joined = scene
                .memory
                .join(topic, entry(peer, 1), Vec::new(), scene.now, &seat);
            joined.unwrap();
        }
    }
    scene.memory.leave(&topics[0], &a, scene.now);
    scene.memory.forget(&a, scene.now);
    scene.memory.forget(&a, scene.now);
    assert_eq!(topics.map(|topic| scene.memory.size(&topic)), [1; 3]);
    scene.memory.forget(&b, scene.now);
    assert_eq!(topics.map(|topic| scene.memory.size(&topic)), [0; 3]);
    assert!(scene.memory.lock().joined.0.is_empty());
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
