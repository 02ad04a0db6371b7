//! Counts how many places of a pool each holder has.
//!
//! Every resource that strangers can hold (connections, handshakes, streams, reservations,
//! circuits, allocations) is a pool. Each place is counted for the whole pool, for the IPv4 address
//! or IPv6 /64 that holds it, for the IPv6 /48, and for the peer. One household has one IPv4
//! address or a /64, and one site has a /48 (RFC 6177 section 2).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use multiaddr::PeerId;

/// The limits of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) all: usize,
    pub(crate) per_address: usize,
    pub(crate) per_site: usize,
    pub(crate) per_peer: usize,
}

/// An address may have at least this many places in a pool that is larger than twice that. They are
/// enough for some machines of one household.
const LEAST_SHARE: usize = 8;

impl Quota {
    /// Makes a pool of `all` places. One address may hold `percent` of them, and one site twice
    /// that.
    ///
    /// Unless `percent` is 100, no address can hold the last quarter of a small pool.
    pub(crate) fn shared(all: usize, percent: u8) -> Self {
        let share = |percent: usize| all.saturating_mul(percent.min(100)) / 100;
        let small = LEAST_SHARE.min(all - all.div_ceil(4)).max(1);
        let per_address = share(percent.into()).max(small);
        Self {
            all,
            per_address,
            per_site: share(usize::from(percent) * 2).max(per_address),
            per_peer: usize::MAX,
        }
    }

    /// Returns the same pool with at most `per_peer` places for one peer.
    pub(crate) fn per_peer(self, per_peer: usize) -> Self {
        Self { per_peer, ..self }
    }
}

/// The holder of a place, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) peer: Option<PeerId>,
}

impl From<IpAddr> for Holder {
    fn from(ip: IpAddr) -> Self {
        Self {
            ip: Some(ip),
            peer: None,
        }
    }
}

/// The limit that refuses a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The pool is full.
    Full,
    /// The IPv4 address or IPv6 /64 holds its share.
    Address,
    /// The IPv6 /48 holds its share.
    Site,
    /// The peer holds its share.
    Peer,
}

impl Refusal {
    /// Returns the word for the limit in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
            Self::Site => "site",
            Self::Peer => "peer",
        }
    }
}

/// The keys by which places are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Site(Ipv6Addr),
    Peer(PeerId),
}

/// The places that are taken. Its size depends on these places only.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    taken: usize,
    by_key: HashMap<Key, usize>,
}

impl Ledger {
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    pub(crate) fn is_held_by(&self, peer: PeerId) -> bool {
        self.by_key.contains_key(&Key::Peer(peer))
    }

    /// Says whether there is a place for `holder`.
    ///
    /// # Errors
    /// Returns the limit of `quota` that refuses the place. A holder's own limit is named before the
    /// limit of the whole pool.
    pub(crate) fn look(&self, quota: &Quota, holder: Holder) -> Result<(), Refusal> {
        for key in keys(holder) {
            let (most, refusal) = match key {
                Key::Peer(_) => (quota.per_peer, Refusal::Peer),
                Key::Address(_) => (quota.per_address, Refusal::Address),
                Key::Site(_) => (quota.per_site, Refusal::Site),
            };
            if self.by_key.get(&key).is_some_and(|held| *held >= most) || most == 0 {
                return Err(refusal);
            }
        }
        match self.taken >= quota.all {
            true => Err(Refusal::Full),
            false => Ok(()),
        }
    }

    /// Takes a place for `holder`.
    ///
    /// # Errors
    /// Fails as [`look`](Self::look) does, and then takes nothing.
    pub(crate) fn take(&mut self, quota: &Quota, holder: Holder) -> Result<(), Refusal> {
        self.look(quota, holder)?;
        self.taken += 1;
        for key in keys(holder) {
            *self.by_key.entry(key).or_default() += 1;
        }
        Ok(())
    }

    /// Gives back a place that `holder` took.
    pub(crate) fn give_back(&mut self, holder: Holder) {
        self.taken = self.taken.saturating_sub(1);
        for key in keys(holder) {
            match self.by_key.get_mut(&key) {
                Some(held) if *held > 1 => *held -= 1,
                _ => _ = self.by_key.remove(&key),
            }
        }
    }
}

fn keys(holder: Holder) -> impl Iterator<Item = Key> {
    let site = holder.ip.and_then(site).map(Key::Site);
    let address = holder.ip.map(|ip| Key::Address(network(ip)));
    let peer = holder.peer.map(Key::Peer);
    peer.into_iter().chain(address).chain(site)
}

/// Returns the IPv4 address, or the /64 of an IPv6 address.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(ip) => prefix(ip, 64).into(),
    }
}

/// Returns the /48 of an IPv6 address.
pub(crate) fn site(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(prefix(ip, 48)),
    }
}

fn prefix(ip: Ipv6Addr, length: u32) -> Ipv6Addr {
    let shift = 128 - length;
    Ipv6Addr::from_bits(ip.to_bits() >> shift << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: Quota = Quota {
        all: 6,
        per_address: 2,
        per_site: 3,
        per_peer: 1,
    };

    fn from(text: &str) -> Holder {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn each_limit_holds_at_its_edge() {
        let mut ledger = Ledger::default();
        let mut take = |holder| ledger.take(&QUOTA, holder);
        assert_eq!(take(from("192.0.2.1")), Ok(()));
        assert_eq!(take(from("::ffff:192.0.2.1")), Ok(()));
        assert_eq!(take(from("192.0.2.1")), Err(Refusal::Address));
        assert_eq!(take(from("2001:db8:0:1::1")), Ok(()));
        assert_eq!(take(from("2001:db8:0:1::2")), Ok(()));
        assert_eq!(take(from("2001:db8:0:1::3")), Err(Refusal::Address));
        assert_eq!(take(from("2001:db8:0:2::1")), Ok(()));
        assert_eq!(take(from("2001:db8:0:3::1")), Err(Refusal::Site));
        let peer = Holder {
            ip: None,
            peer: Some(PeerId::random()),
        };
        assert_eq!(take(peer), Ok(()));
        assert_eq!(take(peer), Err(Refusal::Peer));
        assert_eq!(take(from("192.0.2.9")), Err(Refusal::Full));
        assert!(ledger.is_held_by(peer.peer.unwrap()));
        ledger.give_back(from("2001:db8:0:1::9"));
        assert_eq!(ledger.take(&QUOTA, from("2001:db8:0:3::1")), Ok(()));
        ledger.give_back(peer);
        assert!(!ledger.is_held_by(peer.peer.unwrap()));
    }

    #[test]
    fn a_place_that_is_given_back_leaves_the_others_counted() {
        let mut ledger = Ledger::default();
        let holder = from("192.0.2.1");
        assert_eq!(ledger.take(&QUOTA, holder), Ok(()));
        assert_eq!(ledger.take(&QUOTA, holder), Ok(()));
        ledger.give_back(holder);
        assert_eq!(ledger.take(&QUOTA, holder), Ok(()));
        assert_eq!(ledger.take(&QUOTA, holder), Err(Refusal::Address));
    }

    #[test]
    fn one_peer_has_its_own_bound() {
        let quota = Quota::shared(100, 10);
        assert_eq!(quota.per_peer, usize::MAX);
        assert_eq!(quota.per_peer(3).per_peer, 3);
        assert_eq!(quota.per_peer(3).per_address, quota.per_address);
    }

    #[test]
    fn each_refusal_has_its_word() {
        let all = [
            (Refusal::Full, "full"),
            (Refusal::Address, "address"),
            (Refusal::Site, "site"),
            (Refusal::Peer, "peer"),
        ];
        for (refusal, word) in all {
            assert_eq!(refusal.name(), word);
        }
    }

    #[test]
    fn one_holder_cannot_fill_a_pool() {
        let quota = Quota::shared(1000, 10);
        assert_eq!((quota.per_address, quota.per_site), (100, 200));
        for all in 2..100 {
            let quota = Quota::shared(all, 10);
            assert!((1..all).contains(&quota.per_address), "{all}");
            assert!(quota.per_address <= quota.per_site, "{all}");
        }
        assert_eq!(Quota::shared(1, 10).per_address, 1);
        assert_eq!(Quota::shared(50, 100).per_address, 50);
    }

    proptest! {
        /// Nothing is left after all places were given back, in whatever order.
        #[test]
        fn places_that_are_given_back_leave_nothing_behind(
            ips in prop::collection::vec(any::<(bool, u8)>(), 0..40),
            turn in 0usize..40,
        ) {
            let mut ledger = Ledger::default();
            let mut held: Vec<Holder> = ips.into_iter().map(|(v6, n)| match v6 {
                true => IpAddr::from([0x2001, 0xdb8, u16::from(n & 3), u16::from(n), 0, 0, 0, 1]).into(),
                false => IpAddr::from([192, 0, 2, n]).into(),
            }).filter(|holder| ledger.take(&QUOTA, *holder).is_ok()).collect();
            prop_assert_eq!(ledger.taken(), held.len());
            let by = turn % held.len().max(1);
            held.rotate_left(by);
            for holder in held {
                ledger.give_back(holder);
            }
            prop_assert_eq!((ledger.taken(), ledger.by_key.len()), (0, 0));
        }
    }
}
