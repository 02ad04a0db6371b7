//! Three servers and a store that is a map: what each knows after any history.

use std::collections::{HashMap, VecDeque};

use libp2p::identity::Keypair;
use proptest::prelude::*;

use super::*;
use crate::{
    core::{
        quota::Quota,
        record::Record,
        room::{self, MAX_MEMBERS, Member},
    },
    envelope,
    native::behaviours::pool::Debug,
};

const TOPIC: Topic = [7; 32];
const PEERS: usize = 3;
const SERVERS: usize = 3;

fn record_of(key: &Keypair, seq: u64) -> Vec<u8> {
    let record = Record {
        peer: key.public().to_peer_id(),
        seq,
        expires: envelope::now() + record::LIFETIME,
        relays: Vec::new(),
        addresses: Vec::new(),
        resumable: true,
        forwarded: true,
        incarnation: None,
        mapped: Vec::new(),
    };
    envelope::sign(key, &record).unwrap()
}

fn member_of(key: &Keypair, seq: u64) -> Vec<u8> {
    let member = Member {
        topic: TOPIC,
        seq,
        expires: envelope::now() + room::LIFETIME,
        sealed: vec![seq as u8; 40],
    };
    envelope::sign_member(key, &member).unwrap()
}

/// A server, and what it has yet to hear.
struct Node {
    shared: Shared,
    is_cut: bool,
    pushed: VecDeque<(Key, Found)>,
    /// What is being written.
    under_way: Option<(Key, Write)>,
    _watch: watch::Receiver<u64>,
}

impl Node {
    fn new() -> Self {
        let places = || Pool::new("seat", Quota::shared(MAX_MEMBERS, 100), &Debug);
        let elsewhere = Elsewhere {
            all: places(),
            room: Box::new(places),
        };
        let shared = Shared::new(PeerId::random(), Memory::new(places), elsewhere);
        let watch = shared.watch(&TOPIC);
        Self {
            shared,
            is_cut: false,
            pushed: VecDeque::new(),
            under_way: None,
            _watch: watch,
        }
    }

    /// Whether this server has to tell the others of `key`.
    fn holds(&self, key: &Key, now: Instant) -> Option<u64> {
        let own = self.shared.lock().own.get(key).copied();
        own.filter(|own| own.gone.is_none())?;
        self.shared.entry(key, now).map(|entry| entry.seq)
    }

    fn shows(&self, peer: &PeerId) -> Option<u64> {
        let member = self.shared.memory.member(&TOPIC, peer);
        member.map(|entry| entry.seq)
    }
}

struct World {
    keys: Vec<Keypair>,
    seq: u64,
    now: Instant,
    store: HashMap<Key, (u64, Option<Vec<u8>>, Instant)>,
    revision: u64,
    nodes: Vec<Node>,
    /// Which record a peer had when it left the room at a server.
    left: HashMap<(usize, PeerId), u64>,
    /// Which record a peer had when it said goodbye to a server last.
    goodbyes: HashMap<PeerId, u64>,
    place: Pool,
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Join(usize, usize),
    Leave(usize, usize),
    Forget(usize, usize),
    Send(usize),
    Arrive(usize),
    /// What is sent arrives, but the answer does not come back.
    Drop(usize),
    Hear(usize),
    Cut(usize),
    Heal(usize),
    /// It comes back, and takes the store for one that may have lost something.
    Doubt(usize),
    Pass(u64),
    Lie(usize, usize, bool),
    Lose,
}

impl World {
    fn new() -> Self {
        Self {
            keys: (0..PEERS).map(|_| Keypair::generate_ed25519()).collect(),
            seq: 0,
            now: Instant::now(),
            store: HashMap::new(),
            revision: 0,
            nodes: (0..SERVERS).map(|_| Node::new()).collect(),
            left: HashMap::new(),
            goodbyes: HashMap::new(),
            place: Pool::new("test", Quota::shared(10_000, 100), &Debug),
        }
    }

    fn peer(&self, peer: usize) -> PeerId {
        self.keys[peer].public().to_peer_id()
    }

    fn found(&self, key: &Key) -> Option<Found> {
        let (revision, value, since) = self.store.get(key)?;
        Some(Found {
            revision: *revision,
            value: value.clone(),
            age: self.now - *since,
        })
    }

    fn store(&mut self, key: Key, value: Option<Vec<u8>>) {
        self.revision += 1;
        self.store.insert(key, (self.revision, value, self.now));
        let found = self.found(&key).unwrap();
        if let Key::Member(..) = key {
            for node in self.nodes.iter_mut().filter(|node| !node.is_cut) {
                node.pushed.push_back((key, found.clone()));
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now;
        let ip = std::net::IpAddr::from([192, 0, 2, 1]);
        match *step {
            Step::Put(peer, node) => {
                self.seq += 1;
                let bytes = record_of(&self.keys[peer], self.seq);
                let entry = Entry::record(self.peer(peer), bytes).unwrap();
                let take = || self.place.take(ip);
                self.nodes[node].shared.put(entry, now, &take).unwrap();
            }
            Step::Join(peer, node) => {
                self.seq += 1;
                let bytes = member_of(&self.keys[peer], self.seq);
                let (entry, shown) = Entry::member(self.peer(peer), &TOPIC, bytes).unwrap();
                let seat = |room: &Pool| -> Result<_, quota::Refusal> {
                    Ok(vec![room.take(ip)?, self.place.take(ip)?])
                };
                let joined = self.nodes[node]
                    .shared
                    .join(&TOPIC, entry, shown, now, &seat);
                joined.unwrap();
            }
            Step::Leave(peer, node) | Step::Forget(peer, node) => {
                let peer = self.peer(peer);
                self.left.insert((node, peer), self.seq);
                if let Step::Forget(..) = step {
                    self.goodbyes.insert(peer, self.seq);
                }
                let shared = &self.nodes[node].shared;
                match step {
                    Step::Leave(..) => shared.leave(&TOPIC, &peer, now),
                    _ => shared.forget(&peer, now),
                }
            }
            Step::Send(node) => {
                let node = &mut self.nodes[node];
                if node.under_way.is_none() && !node.is_cut {
                    node.under_way = node.shared.next(now);
                }
            }
            Step::Arrive(node) => self.arrive(node, true),
            Step::Drop(node) => {
                self.arrive(node, false);
                self.step(&Step::Cut(node));
            }
            Step::Hear(node) => {
                let node = &mut self.nodes[node];
                if let Some((key, found)) = node.pushed.pop_front() {
                    // A lie is found out, and does no harm.
                    let _ = node.shared.heard(&key, &found, now);
                }
            }
            Step::Cut(node) => {
                let node = &mut self.nodes[node];
                node.is_cut = true;
                node.pushed.clear();
                node.under_way = None;
            }
            Step::Heal(node) => self.heal(node, false),
            Step::Doubt(node) => {
                self.step(&Step::Cut(node));
                self.heal(node, true);
            }
            Step::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                let now = self.now;
                let is_kept = |key: &Key, since: Instant| now < since + key.lifetime();
                self.store.retain(|key, (_, _, since)| is_kept(key, *since));
                for node in &self.nodes {
                    node.shared.sweep(now);
                }
            }
            Step::Lie(peer, other, is_old) => {
                let (key, other) = (&self.keys[peer], &self.keys[other]);
                let envelope = match is_old {
                    true => member_of(key, 0),
                    false => member_of(other, self.seq + 1000),
                };
                let relay = self.nodes[0].shared.own;
                let lie = Held { relay, envelope }.encode();
                let lie = (is_old || key.public() != other.public()).then_some(lie);
                self.store(Key::Member(self.peer(peer), TOPIC), lie);
            }
            Step::Lose => {
                self.store.clear();
                for node in 0..SERVERS {
                    self.step(&Step::Cut(node));
                }
                for node in 0..SERVERS {
                    self.heal(node, true);
                }
            }
        }
    }

    fn arrive(&mut self, node: usize, is_answered: bool) {
        let Some((key, write)) = self.nodes[node].under_way.take() else {
            return;
        };
        let present = self.store.get(&key).map_or(0, |(revision, ..)| *revision);
        let (value, revision) = match &write {
            Write::Put(value, revision) => (Some(value.clone()), *revision),
            Write::Delete(revision) => (None, *revision),
        };
        let now = self.now;
        let is_accepted = revision == present;
        if is_accepted {
            self.store(key, value);
        }
        if !is_answered {
            return;
        }
        if is_accepted {
            let revision = self.revision;
            self.nodes[node].shared.written(&key, &write, revision);
        } else {
            let found = self.found(&key);
            let _ = self.nodes[node].shared.differs(&key, found.as_ref(), now);
        }
    }

    fn heal(&mut self, node: usize, has_forgotten: bool) {
        if !std::mem::take(&mut self.nodes[node].is_cut) {
            return;
        }
        self.nodes[node].shared.begin();
        if has_forgotten {
            for which in [Bucket::Rooms, Bucket::Peers] {
                self.nodes[node].shared.rewrite(which);
            }
        }
        let members = self
            .store
            .keys()
            .filter(|key| matches!(key, Key::Member(..)));
        let members = members.map(|key| (*key, self.found(key).unwrap()));
        let members: Vec<_> = members.collect();
        self.nodes[node].pushed.extend(members);
    }

    /// Lets everything happen that is due.
    fn settle(&mut self) {
        for node in 0..SERVERS {
            self.step(&Step::Heal(node));
        }
        for _ in 0..1000 {
            for node in 0..SERVERS {
                self.step(&Step::Send(node));
                self.step(&Step::Arrive(node));
                self.step(&Step::Hear(node));
            }
            let is_idle = |node: &Node| node.pushed.is_empty() && node.shared.waiting() == 0;
            if self.nodes.iter().all(is_idle) {
                return;
            }
        }
        panic!("the servers do not come to rest");
    }

    /// Looks a peer up at a server that it is not connected to.
    fn look_up(&self, node: usize, peer: &PeerId) -> Option<u64> {
        let (key, shared) = (Key::Peer(*peer), &self.nodes[node].shared);
        if let Some(found) = self.found(&key) {
            shared.heard(&key, &found, self.now).unwrap();
        }
        let envelope = shared.newest(peer, self.now)?;
        let record = envelope::open(&envelope, envelope::now()).unwrap();
        assert_eq!(record.peer, *peer);
        Some(record.seq)
    }

    fn check(&self) {
        for peer in (0..PEERS).map(|peer| self.peer(peer)) {
            let newest = |key: Key| {
                let nodes = self.nodes.iter();
                nodes.filter_map(|node| node.holds(&key, self.now)).max()
            };
            // Whoever has said goodbye with a newer record is gone, until a server writes the next one.
            let goodbye = self.goodbyes.get(&peer);
            let found = newest(Key::Peer(peer)).filter(|newest| goodbye < Some(newest));
            if let Some(newest) = found {
                for node in 0..SERVERS {
                    assert!(
                        self.look_up(node, &peer) >= Some(newest),
                        "{peer} at {node}"
                    );
                }
            }
            if let Some(newest) = newest(Key::Member(peer, TOPIC)) {
                for (node, server) in self.nodes.iter().enumerate() {
                    let left = self.left.get(&(node, peer)).copied();
                    let shows = server.shows(&peer);
                    assert!(
                        shows >= Some(newest) || left >= Some(newest),
                        "{peer} at {node}"
                    );
                }
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let pair = || (0..PEERS, 0..SERVERS);
    prop_oneof![
        3 => pair().prop_map(|(peer, node)| Step::Put(peer, node)),
        4 => pair().prop_map(|(peer, node)| Step::Join(peer, node)),
        2 => pair().prop_map(|(peer, node)| Step::Leave(peer, node)),
        1 => pair().prop_map(|(peer, node)| Step::Forget(peer, node)),
        8 => (0..SERVERS).prop_map(Step::Send),
        8 => (0..SERVERS).prop_map(Step::Arrive),
        8 => (0..SERVERS).prop_map(Step::Hear),
        2 => (0..SERVERS).prop_map(Step::Cut),
        1 => (0..SERVERS).prop_map(Step::Drop),
        2 => (0..SERVERS).prop_map(Step::Heal),
        1 => (0..SERVERS).prop_map(Step::Doubt),
    ]
}

fn trouble() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => step(),
        1 => (1u64..40).prop_map(Step::Pass),
        1 => (0..PEERS, 0..PEERS, any::<bool>()).prop_map(|(a, b, old)| Step::Lie(a, b, old)),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happened, and whoever was cut off, all servers know the newest afterwards, and nobody is in
    /// a room of whom no server says so.
    #[test]
    fn servers_agree_after_any_history(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
        world.check();
        for peer in (0..PEERS).map(|peer| world.peer(peer)) {
            let key = Key::Member(peer, TOPIC);
            if !world.nodes.iter().any(|node| node.holds(&key, world.now).is_some()) {
                let shown = world.nodes.iter().filter_map(|node| node.shows(&peer));
                prop_assert_eq!(shown.count(), 0, "{} is in no room", peer);
            }
        }
    }

    /// The same while time passes, the store loses everything, and somebody writes lies into it. Whoever is
    /// here is known everywhere, and all are forgotten in time.
    #[test]
    fn servers_agree_in_spite_of_losses_and_lies(steps in prop::collection::vec(trouble(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
        world.check();
        world.step(&Step::Pass(2 * record::LIFETIME.as_secs()));
        for node in &world.nodes {
            prop_assert_eq!(node.shared.lock().own.len(), 0);
            for peer in (0..PEERS).map(|peer| world.peer(peer)) {
                prop_assert_eq!(node.shows(&peer), None);
                prop_assert!(node.shared.newest(&peer, world.now).is_none());
            }
        }
    }
}

#[test]
fn a_lie_is_found_out_and_overwritten() {
    let mut world = World::new();
    world.step(&Step::Join(0, 0));
    world.settle();
    let (peer, key) = (world.peer(0), Key::Member(world.peer(0), TOPIC));
    assert!(world.nodes.iter().all(|node| node.shows(&peer) == Some(1)));
    for lie in [
        Step::Lie(0, 1, false),
        Step::Lie(0, 0, true),
        Step::Lie(0, 0, false),
    ] {
        world.step(&lie);
        let found = world.found(&key).unwrap();
        let heard = world.nodes[1].shared.heard(&key, &found, world.now);
        assert_eq!(heard.is_err(), matches!(lie, Step::Lie(0, 1, _)), "{lie:?}");
        world.settle();
        assert!(
            world.nodes.iter().all(|node| node.shows(&peer) == Some(1)),
            "{lie:?}"
        );
    }
}

#[test]
fn a_peer_that_moves_is_found_where_it_is_and_not_where_it_was() {
    let mut world = World::new();
    let peer = world.peer(0);
    world.step(&Step::Put(0, 0));
    world.settle();
    world.step(&Step::Put(0, 1));
    world.settle();
    let shared = &world.nodes[0].shared;
    assert!(matches!(
        shared.known(&peer, false, world.now),
        Known::AtLeast(Some(_))
    ));
    assert_eq!(world.look_up(0, &peer), Some(2));
    assert!(matches!(
        shared.known(&peer, false, world.now),
        Known::Newest(Some(_))
    ));
    let later = world.now + FRESH;
    assert!(matches!(
        shared.known(&peer, false, later),
        Known::AtLeast(Some(_))
    ));
    let shared = &world.nodes[1].shared;
    assert!(matches!(
        shared.known(&peer, true, later),
        Known::Newest(Some(_))
    ));
    world.step(&Step::Forget(0, 1));
    world.settle();
    for node in 0..SERVERS {
        assert_eq!(world.look_up(node, &peer), None, "at {node}");
    }
}

#[test]
fn what_waits_to_be_deleted_is_bounded_and_goes_by_its_age() {
    let mut world = World::new();
    world.step(&Step::Join(0, 0));
    world.settle();
    world.step(&Step::Cut(0));
    world.step(&Step::Leave(0, 0));
    assert_eq!(world.nodes[0].shared.lock().gone, 1);
    world.step(&Step::Pass(room::LIFETIME.as_secs()));
    let state = world.nodes[0].shared.lock();
    assert_eq!((state.gone, state.own.len()), (0, 0));
    assert_eq!(state.outbox.len(), 0, "nothing is left of it");
}

#[test]
fn whoever_goes_while_the_store_is_away_is_gone_afterwards() {
    for step in [Step::Heal(0), Step::Doubt(0)] {
        let mut world = World::new();
        let peer = world.peer(0);
        world.step(&Step::Put(0, 0));
        world.step(&Step::Join(0, 0));
        world.settle();
        world.step(&Step::Cut(0));
        world.step(&Step::Forget(0, 0));
        world.step(&step);
        world.settle();
        for node in 0..SERVERS {
            assert_eq!(world.look_up(node, &peer), None, "at {node}, {step:?}");
            assert_eq!(world.nodes[node].shows(&peer), None, "at {node}, {step:?}");
        }
    }
}

#[test]
fn what_was_written_last_shows_whether_a_bucket_has_lost_something() {
    let mut world = World::new();
    let (first, second) = (Key::Peer(world.peer(0)), Key::Peer(world.peer(1)));
    world.step(&Step::Put(0, 0));
    world.settle();
    world.step(&Step::Put(1, 0));
    world.settle();
    world.step(&Step::Join(2, 0));
    world.settle();
    let (now, shared) = (world.now, &world.nodes[0].shared);
    assert_eq!(shared.last(Bucket::Peers, UNKNOWN), Some((second, 2)));
    assert_eq!(shared.last(Bucket::Peers, 2), Some((first, 1)));
    let member = Key::Member(world.peer(2), TOPIC);
    assert_eq!(shared.last(Bucket::Rooms, UNKNOWN), Some((member, 3)));
    assert!(shared.relies_on(&second, 2, now) && !shared.relies_on(&second, 1, now));
    // What is written anew says nothing of the old, and what has gone is not missed.
    world.step(&Step::Put(1, 0));
    let shared = &world.nodes[0].shared;
    assert!(!shared.relies_on(&second, 2, now));
    assert_eq!(shared.last(Bucket::Peers, UNKNOWN), Some((first, 1)));
    world.settle();
    world.step(&Step::Forget(1, 0));
    world.settle();
    let shared = &world.nodes[0].shared;
    assert_eq!(shared.last(Bucket::Peers, UNKNOWN), Some((first, 1)));
    // One bucket is written again, and the other is left alone. Rooms go first.
    shared.rewrite(Bucket::Peers);
    assert_eq!(shared.waiting(), 1);
    shared.rewrite(Bucket::Rooms);
    assert_eq!(shared.next(now).unwrap().0, member);
    assert_eq!(shared.next(now).unwrap().0, first);
}

#[test]
fn members_that_are_elsewhere_leave_seats_and_no_server_names_all_of_them() {
    let places = |all| Pool::new("seat", Quota::shared(all, 100), &Debug);
    let elsewhere = Elsewhere {
        all: places(100),
        room: Box::new(|| Pool::new("room", Quota::shared(3, 100).per_peer(2), &Debug)),
    };
    let memory = Memory::new(move || places(4));
    let shared = Shared::new(PeerId::random(), memory, elsewhere);
    let _watch = shared.watch(&TOPIC);
    let now = Instant::now();
    let relays = [(); 2].map(|()| PeerId::random());
    let named = |relay, revision| {
        let key = Keypair::generate_ed25519();
        let envelope = member_of(&key, 1);
        let found = Found {
            revision,
            value: Some(Held { relay, envelope }.encode()),
            age: Duration::ZERO,
        };
        let key = Key::Member(key.public().to_peer_id(), TOPIC);
        shared.heard(&key, &found, now).unwrap();
        (key, shared.size(&TOPIC))
    };
    let (first, _) = named(relays[0], 1);
    assert_eq!((named(relays[0], 2).1, named(relays[0], 3).1), (2, 2));
    assert_eq!((named(relays[1], 4).1, named(relays[1], 5).1), (3, 3));
    let gone = Found {
        revision: 6,
        value: None,
        age: Duration::ZERO,
    };
    shared.heard(&first, &gone, now).unwrap();
    assert_eq!(named(relays[1], 7).1, 3);
    shared.sweep(now + room::LIFETIME);
    assert_eq!(shared.lock().rooms.len(), 0);
}
