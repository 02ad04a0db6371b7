//! How often peers may ask a relay for something.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, relay};

use super::config::RelayLimits;
use crate::core::quota::network;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    Reservations,
    Circuits,
    Offers,
    Lookups,
    Records,
    /// Questions to the operator's program.
    Questions,
}

impl Rate {
    /// The word that metrics and logs have for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reservations => "reservation",
            Self::Circuits => "circuit",
            Self::Offers => "offer",
            Self::Lookups => "lookup",
            Self::Records => "record",
            Self::Questions => "question",
        }
    }
}

/// The bucket that has nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    OfPeer,
    OfAddress,
}

/// libp2p's token buckets, of each peer and of each IPv4 address or IPv6 /64.
pub(crate) struct Rates {
    /// The bursts that the buckets were made for.
    bursts: (NonZeroU32, NonZeroU32),
    reservations: Vec<Box<dyn relay::RateLimiter>>,
    circuits: Vec<Box<dyn relay::RateLimiter>>,
    offers: Vec<Box<dyn relay::RateLimiter>>,
    lookups: Vec<Box<dyn relay::RateLimiter>>,
    records: Vec<Box<dyn relay::RateLimiter>>,
    questions: Vec<Box<dyn relay::RateLimiter>>,
}

impl Rates {
    pub(crate) fn new(limits: &RelayLimits) -> Self {
        let (reservation, circuit) = (limits.reservation_burst, limits.circuit_burst);
        let circuits = || buckets((circuit, 1000), (times(circuit, 4), 250));
        Self {
            bursts: (reservation, circuit),
            reservations: buckets((reservation, 2000), (times(reservation, 2), 1000)),
            circuits: circuits(),
            offers: circuits(),
            lookups: circuits(),
            records: circuits(),
            questions: circuits(),
        }
    }

    /// Follows a change of `limits`. Buckets of another size begin full.
    pub(crate) fn set(&mut self, limits: &RelayLimits) {
        if self.bursts != (limits.reservation_burst, limits.circuit_burst) {
            *self = Self::new(limits);
        }
    }

    /// Whether `peer`, which comes from `ip`, may ask for another one at `now`.
    ///
    /// # Errors
    /// Says what was used up.
    pub(crate) fn allow(
        &mut self,
        rate: Rate,
        peer: PeerId,
        ip: IpAddr,
        now: Instant,
    ) -> Result<(), Spent> {
        let buckets = match rate {
            Rate::Reservations => &mut self.reservations,
            Rate::Circuits => &mut self.circuits,
            Rate::Offers => &mut self.offers,
            Rate::Lookups => &mut self.lookups,
            Rate::Records => &mut self.records,
            Rate::Questions => &mut self.questions,
        };
        let from = Multiaddr::from(network(ip));
        let refused = buckets
            .iter_mut()
            .position(|bucket| !bucket.try_next(peer, &from, now));
        match refused {
            None => Ok(()),
            Some(0) => Err(Spent::OfPeer),
            Some(_) => Err(Spent::OfAddress),
        }
    }
}

fn times(burst: NonZeroU32, factor: u32) -> NonZeroU32 {
    burst.saturating_mul(NonZeroU32::MIN.saturating_add(factor - 1))
}

/// Buckets of a peer and of an address: how much fits in, and the milliseconds until one comes back.
fn buckets(
    (of_peer, peer_pause): (NonZeroU32, u64),
    (of_address, address_pause): (NonZeroU32, u64),
) -> Vec<Box<dyn relay::RateLimiter>> {
    let empty = relay::Config {
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    empty
        .circuit_src_per_peer(of_peer, Duration::from_millis(peer_pause))
        .circuit_src_per_ip(of_address, Duration::from_millis(address_pause))
        .circuit_src_rate_limiters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_peer_of_an_address_and_of_a_64() {
        let limits = RelayLimits {
            reservation_burst: NonZeroU32::new(2).unwrap(),
            ..RelayLimits::default()
        };
        let mut rates = Rates::new(&limits);
        let now = Instant::now();
        let [a, b, c, d] = [(); 4].map(|()| PeerId::random());
        let mut allowed = |peer, ip: &str, now| {
            rates
                .allow(Rate::Reservations, peer, ip.parse().unwrap(), now)
                .is_ok()
        };
        assert!(allowed(a, "2001:db8::1", now) && allowed(a, "2001:db8::2", now));
        assert!(!allowed(a, "2001:db8::3", now), "the peer");
        assert!(allowed(b, "2001:db8::4", now) && allowed(b, "2001:db8::4", now));
        assert!(!allowed(c, "2001:db8::5", now), "the /64");
        assert!(allowed(c, "2001:db8:0:1::1", now), "another one");
        assert!(allowed(d, "2001:db8::5", now + Duration::from_secs(1)));
        rates.set(&limits);
        let again = |rates: &mut Rates, ip: &str| {
            rates
                .allow(Rate::Reservations, a, ip.parse().unwrap(), now)
                .is_ok()
        };
        assert!(!again(&mut rates, "2001:db8:0:2::1"), "nothing has changed");
        rates.set(&RelayLimits::default());
        assert!(again(&mut rates, "2001:db8:0:2::1"));
    }
}
