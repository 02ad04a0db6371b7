//! What servers of a fleet share, without the store in which they share it.
//!
//! Each key of the store holds what one peer says, in its own envelope, so a server can only hold it
//! back. A server that changes what it knows of a peer or of a member of a room names the revision that it knows,
//! so it takes the place of nothing that it has not seen.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use multiaddr::{Multiaddr, PeerId};

use super::{
    protobuf::{field, skip_field, take_bytes, take_varint, varint},
    record::MAX_RECORD,
};

/// The longest value of a key: an envelope, the server that holds it, and what stands around them.
pub(crate) const MAX_VALUE: usize = MAX_RECORD + 128;

// Held { relay = 1, envelope = 2 }
const RELAY: u64 = 1 << 3 | 2;
const ENVELOPE: u64 = 2 << 3 | 2;

/// The value of a key: an envelope, and which server has put it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) relay: PeerId,
    pub(crate) envelope: Vec<u8>,
}

impl Held {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let relay = field(RELAY, &self.relay.to_bytes());
        [relay, field(ENVELOPE, &self.envelope)].concat()
    }

    /// Reads a value. Returns `None` if it is malformed or too long.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        if rest.len() > MAX_VALUE {
            return None;
        }
        let (mut relay, mut envelope) = (None, None);
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                RELAY => relay = Some(PeerId::from_bytes(take_bytes(&mut rest)?).ok()?),
                ENVELOPE => envelope = Some(take_bytes(&mut rest)?.to_vec()),
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(Self {
            relay: relay?,
            envelope: envelope?,
        })
    }
}

/// What the signature of a server's status is for, and the kind of its payload.
pub(crate) const DOMAIN: &str = "throughline-fleet";
pub(crate) const PAYLOAD_TYPE: &[u8] = b"/throughline/fleet/1";

/// How often a server says how it is, and for how long that counts.
pub(crate) const BEAT: Duration = Duration::from_secs(5);
pub(crate) const STATUS_LIFETIME: Duration = Duration::from_secs(20);

/// The most addresses of a server that others pass on. Two ways are enough to begin with: the server
/// itself tells the rest.
pub(crate) const MAX_STATUS_ADDRESSES: usize = 2;

// Status { seq = 1, draining = 2, addresses = 3 }
const SEQ: u64 = 1 << 3;
const DRAINING: u64 = 2 << 3;
const ADDRESSES: u64 = 3 << 3 | 2;

/// What a server of a fleet says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The newer one of two has the greater number, which follows the clock in milliseconds.
    pub(crate) seq: u64,
    /// Whether it is about to end, and takes nothing new.
    pub(crate) draining: bool,
    /// Where it is. Each address ends in `/p2p/` and its peer id.
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Status {
    /// Encodes the status, as the payload of an envelope.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = [vec![SEQ as u8], varint(self.seq)].concat();
        bytes.extend([DRAINING as u8, u8::from(self.draining)]);
        for address in self.addresses.iter().take(MAX_STATUS_ADDRESSES) {
            bytes.extend(field(ADDRESSES, address.as_ref()));
        }
        bytes
    }

    /// Reads the payload of an envelope of `signer`. Addresses of others, and those beyond the bound, are
    /// left out.
    pub(crate) fn decode(mut rest: &[u8], signer: PeerId) -> Option<Self> {
        let (mut seq, mut draining, mut addresses) = (None, false, Vec::new());
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                SEQ => seq = Some(take_varint(&mut rest)?),
                DRAINING => draining = take_varint(&mut rest)? != 0,
                ADDRESSES => {
                    let address = Multiaddr::try_from(take_bytes(&mut rest)?.to_vec());
                    let address = address.ok().filter(|address| {
                        let last = address.iter().last();
                        last == Some(multiaddr::Protocol::P2p(signer))
                    });
                    if addresses.len() < MAX_STATUS_ADDRESSES {
                        addresses.extend(address);
                    }
                }
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(Self {
            seq: seq?,
            draining,
            addresses,
        })
    }
}

/// Which keys are to be written. A key that changes again before it is written is written once, and one
/// that changes while it is being written is written again. So there are never more than there are keys.
#[derive(Debug)]
pub(crate) struct Outbox<K> {
    queue: VecDeque<K>,
    /// What is in the queue.
    queued: HashSet<K>,
    /// What is being written, and whether it has changed since.
    sent: HashMap<K, bool>,
}

impl<K> Default for Outbox<K> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queued: HashSet::new(),
            sent: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Outbox<K> {
    /// Notes that `key` has changed.
    pub(crate) fn note(&mut self, key: K) {
        if let Some(again) = self.sent.get_mut(&key) {
            *again = true;
        } else if self.queued.insert(key) {
            self.queue.push_back(key);
        }
    }

    /// Takes the key that has waited for the longest time. It is being written until
    /// [`done`](Self::done).
    pub(crate) fn next(&mut self) -> Option<K> {
        let key = self.queue.pop_front()?;
        self.queued.remove(&key);
        self.sent.insert(key, false);
        Some(key)
    }

    /// Notes that `key` is no longer being written. With `again`, it has to be written once more.
    pub(crate) fn done(&mut self, key: &K, again: bool) {
        if let Some(changed) = self.sent.remove(key)
            && (changed || again)
        {
            self.note(*key);
        }
    }

    /// Nothing is being written any more. Returns what was, of which it is not known whether that has
    /// happened.
    pub(crate) fn interrupt(&mut self) -> Vec<K> {
        let sent: Vec<_> = self.sent.drain().map(|(key, _)| key).collect();
        for key in &sent {
            self.note(*key);
        }
        sent
    }

    /// Has the waiting keys that `is_first` names go before the others.
    pub(crate) fn prefer(&mut self, is_first: impl Fn(&K) -> bool) {
        let queue = self.queue.make_contiguous();
        queue.sort_by_key(|key| !is_first(key));
    }

    /// Drops the waiting keys that `keep` does not want. Those that are being written stay.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.queue.retain(&keep);
        self.queued.retain(keep);
    }

    /// Whether `key` waits or is being written.
    pub(crate) fn has(&self, key: &K) -> bool {
        self.queued.contains(key) || self.sent.contains_key(key)
    }

    /// How many keys wait or are being written.
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + self.sent.len()
    }
}

/// A bounded memory of the newest values, by peer. The one that came first makes room.
#[derive(Debug)]
pub(crate) struct Newest<V> {
    most: usize,
    values: HashMap<PeerId, (u64, V)>,
    order: VecDeque<(u64, PeerId)>,
    next: u64,
}

impl<V> Newest<V> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            values: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
        }
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&V> {
        self.values.get(peer).map(|(_, value)| value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.values.values().map(|(_, value)| value)
    }

    pub(crate) fn insert(&mut self, peer: PeerId, value: V) {
        self.next += 1;
        self.values.insert(peer, (self.next, value));
        self.order.push_back((self.next, peer));
        // What was replaced or removed is still in the order.
        while self.values.len() > self.most || self.order.len() > 2 * self.most {
            let Some((number, first)) = self.order.pop_front() else {
                return;
            };
            if self
                .values
                .get(&first)
                .is_some_and(|(newest, _)| *newest == number)
            {
                self.values.remove(&first);
            }
        }
    }

    pub(crate) fn remove(&mut self, peer: &PeerId) {
        self.values.remove(peer);
    }

    /// Keeps what `keep` says.
    pub(crate) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.values.retain(|_, (_, value)| keep(value));
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }
}

/// How old a value is that was `created` at this time by another clock, of those that count for
/// `lifetime`. The clocks may differ, so no value is taken for one that is nearly over: whoever is there
/// renews it before it would be.
pub(crate) fn age(created: Duration, now: Duration, lifetime: Duration) -> Duration {
    now.saturating_sub(created).min(lifetime * 2 / 3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_has_the_documented_bytes_and_is_bounded() {
        let held = Held {
            relay: PeerId::random(),
            envelope: vec![7; MAX_RECORD],
        };
        let bytes = held.encode();
        assert!(bytes.len() <= MAX_VALUE, "{}", bytes.len());
        let id = held.relay.to_bytes();
        let start = [&[10, id.len() as u8], &id[..], &[18, 0x80, 0x20, 7]].concat();
        assert_eq!(bytes[..start.len()], start);
        assert_eq!(Held::decode(&bytes), Some(held));
        assert_eq!(Held::decode(&vec![0; MAX_VALUE + 1]), None);
        assert_eq!(Held::decode(&[]), None);
    }

    #[test]
    fn a_status_has_addresses_of_its_server_only() {
        let [own, other] = [(); 2].map(|()| PeerId::random());
        let at = |peer, port| -> Multiaddr {
            format!("/ip4/192.0.2.1/tcp/{port}/p2p/{peer}")
                .parse()
                .unwrap()
        };
        let status = Status {
            seq: 300,
            draining: true,
            addresses: vec![at(other, 1), at(own, 2), at(own, 3), at(own, 4)],
        };
        let mut bytes = status.encode();
        assert_eq!(bytes[..5], [8, 0xac, 2, 16, 1]);
        bytes.extend(field(ADDRESSES, at(own, 5).as_ref()));
        bytes.extend(field(ADDRESSES, at(own, 6).as_ref()));
        let read = Status::decode(&bytes, own).unwrap();
        assert_eq!(read.addresses, [at(own, 2), at(own, 5)]);
        assert!(read.draining && read.seq == 300);
        assert_eq!(Status::decode(&[16, 1], own), None, "it has no number");
    }

    #[test]
    fn a_key_is_written_once_for_all_its_changes_and_again_for_later_ones() {
        let mut outbox = Outbox::default();
        for key in [1, 2, 1] {
            outbox.note(key);
        }
        assert_eq!((outbox.len(), outbox.next()), (2, Some(1)));
        outbox.note(1);
        assert_eq!((outbox.next(), outbox.next()), (Some(2), None), "in turn");
        assert!(outbox.has(&2));
        outbox.done(&2, false);
        assert!(!outbox.has(&2));
        outbox.done(&1, false);
        assert!(outbox.has(&1));
        assert_eq!((outbox.next(), outbox.next()), (Some(1), None));
        outbox.done(&1, true);
        assert_eq!(outbox.next(), Some(1));
        assert_eq!(outbox.interrupt(), [1]);
        outbox.done(&1, true);
        assert_eq!((outbox.next(), outbox.next()), (Some(1), None));
        outbox.done(&1, false);
        assert_eq!(outbox.len(), 0);
        for key in 1..=3 {
            outbox.note(key);
        }
        assert_eq!(outbox.next(), Some(1));
        outbox.retain(|key| *key == 3);
        assert_eq!((outbox.len(), outbox.has(&2)), (2, false));
        for key in [2, 5, 4] {
            outbox.note(key);
        }
        outbox.prefer(|key| *key > 3);
        let order: Vec<_> = std::iter::from_fn(|| outbox.next()).collect();
        assert_eq!(order, [5, 4, 3, 2]);
    }

    #[test]
    fn the_newest_values_are_kept() {
        let mut newest = Newest::new(2);
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        newest.insert(a, 1);
        newest.insert(b, 2);
        newest.insert(a, 3);
        newest.insert(c, 4);
        assert_eq!(
            [a, b, c].map(|peer| newest.get(&peer).copied()),
            [Some(3), None, Some(4)]
        );
        assert_eq!(newest.len(), 2);
        newest.retain(|value| *value == 4);
        newest.remove(&c);
        assert_eq!(newest.len(), 0);
        for _ in 0..100 {
            newest.insert(a, 5);
            assert!(newest.order.len() <= 4);
        }
        assert_eq!(newest.get(&a), Some(&5));
    }

    #[test]
    fn an_age_leaves_time_for_a_renewal() {
        let at = Duration::from_secs;
        assert_eq!(age(at(100), at(107), at(30)), at(7));
        assert_eq!(age(at(100), at(90), at(30)), at(0), "our clock is behind");
        assert_eq!(age(at(100), at(9000), at(30)), at(20));
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            let _ = Held::decode(&bytes);
            let _ = Status::decode(&bytes, PeerId::random());
        }

        /// Whatever happens, each key that changed after it was last taken is taken again, and no key is
        /// taken twice at a time.
        #[test]
        fn no_change_is_forgotten(steps in prop::collection::vec((0u8..4, 0u8..4, any::<bool>()), 0..80)) {
            let mut outbox = Outbox::default();
            let (mut dirty, mut sent) = (HashSet::new(), HashSet::new());
            for (step, key, again) in steps {
                match step {
                    0 => { outbox.note(key); dirty.insert(key); }
                    1 => if let Some(key) = outbox.next() {
                        prop_assert!(dirty.remove(&key));
                        prop_assert!(sent.insert(key));
                    }
                    2 => {
                        outbox.done(&key, again);
                        if sent.remove(&key) && again { dirty.insert(key); }
                    }
                    _ => { outbox.interrupt(); dirty.extend(sent.drain()); }
                }
            }
            outbox.interrupt();
            dirty.extend(sent);
            let mut left = HashSet::new();
            while let Some(key) = outbox.next() {
                prop_assert!(left.insert(key));
            }
            prop_assert_eq!(left, dirty);
        }
    }
}
