//! Counting and limiting the bytes that are relayed.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::server::{
    access,
    fairness::{Fairness, Flow},
    metrics::Metrics,
    pool::{Pools, Refusals},
    rate_limiter::{RateLimiter, Refill},
    usage::{Account, Amounts, Tally, Usage},
};

/// Counts and limits the bytes of all clients.
#[derive(Clone)]
pub(super) struct Meters {
    bytes: Arc<Mutex<RateLimiter>>,
    metrics: Metrics,
    refusals: Refusals,
    fairness: Fairness,
    usage: Usage,
}

impl Meters {
    pub(super) fn new(pools: &Pools, metrics: Metrics, usage: Usage) -> Self {
        let rate = |bytes: u64| match bytes {
            0 => UNLIMITED,
            bytes => bytes as f64,
        };
        let settings = pools.settings.clone();
        let rates = move || {
            let config = &settings.now().turn;
            Refill {
                each: rate(config.bytes_per_source),
                all: rate(config.bytes_total),
            }
        };
        let limiter = RateLimiter::following(rates, Instant::now());
        Self {
            bytes: Arc::new(Mutex::new(limiter)),
            metrics,
            refusals: pools.refusals.clone(),
            fairness: pools.fairness.clone(),
            usage,
        }
    }

    /// Returns the meter of an allocation at `client`, which is put down to `account`. All allocations
    /// of a client share one limit. `holders` count what is carried as well: for the holder of the
    /// client's token, for the peer, and for the allocation. `weight` is that of the client's share.
    pub(super) fn of(
        &self,
        client: IpAddr,
        account: Account,
        holders: Vec<Arc<access::Meter>>,
        weight: u32,
    ) -> Meter {
        let one = Amounts {
            allocations: 1,
            ..Amounts::default()
        };
        Meter {
            client,
            flow: self.fairness.flow(&account, weight),
            tally: self.usage.tally(account, one),
            holders: holders.into(),
            all: self.clone(),
        }
    }
}

/// The rate that stands for no limit. It is more than any machine sends, and small enough for the
/// arithmetic of buckets.
const UNLIMITED: f64 = 1e15;

/// Counts and limits the bytes of one client.
#[derive(Clone)]
pub(super) struct Meter {
    client: IpAddr,
    tally: Tally,
    holders: Arc<[Arc<access::Meter>]>,
    flow: Flow,
    all: Meters,
}

impl Meter {
    /// Whether a datagram of `length` bytes may pass, in either direction. Counts it if so.
    pub(super) fn passes(&self, length: usize) -> bool {
        let mut bytes = self
            .all
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let spent = bytes.take(self.client, length as f64, Instant::now());
        drop(bytes);
        let bytes = length as u64;
        let refusal = match spent {
            Err(refusal) => Some(refusal.name()),
            Ok(()) if !self.holders.iter().all(|holder| holder.allows()) => Some("holder"),
            Ok(()) if !self.flow.passes(bytes) => Some("share"),
            Ok(()) => None,
        };
        match refusal {
            Some(reason) => self.refuse("turn_datagram", reason),
            None => {
                for holder in &*self.holders {
                    // Another datagram may have used up what was left. This one passes, as the last.
                    let _ = holder.carry(bytes);
                }
                self.tally.carried(bytes);
                self.all.metrics.turn_relayed(length);
            }
        }
        refusal.is_none()
    }

    /// Begins to count the allocation.
    pub(super) fn begin(&self, now: Instant) {
        self.tally.begin(now);
    }

    /// Counts that `what` was refused to the client, for `reason`.
    pub(super) fn refuse(&self, what: &'static str, reason: &'static str) {
        self.all.refusals.tell(what, reason, Some(self.client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{
        config::{ServerConfig, TurnConfig},
        settings::Settings,
    };

    #[test]
    fn each_client_has_its_own_limit() {
        let mut config = ServerConfig::default();
        config.turn.bytes_per_source = 20_000;
        let metrics = Metrics::new(&config);
        let pools = Pools::new(&Settings::fixed(config), &metrics);
        let meters = Meters::new(&pools, metrics.clone(), Usage::default());
        let passed = |client: [u8; 4]| {
            let meter = meters.of(client.into(), Account::of("a"), Vec::new(), 4);
            (0..1000).filter(|_| meter.passes(1000)).count()
        };
        // The bounds are the burst, and what comes back during the test.
        assert!((40..60).contains(&passed([192, 0, 2, 1])));
        assert!((40..60).contains(&passed([192, 0, 2, 2])));
        let text = metrics.encode().unwrap();
        assert!(
            text.contains(r#"{what="turn_datagram",reason="address"}"#),
            "{text}"
        );
    }

    #[test]
    fn a_limit_of_zero_means_no_limit() {
        let config = ServerConfig {
            turn: TurnConfig {
                bytes_per_source: 0,
                bytes_total: 0,
                ..TurnConfig::default()
            },
            ..ServerConfig::default()
        };
        let metrics = Metrics::new(&config);
        let pools = Pools::new(&Settings::fixed(config), &metrics);
        let meters = Meters::new(&pools, metrics, Usage::default());
        let meter = meters.of([192, 0, 2, 1].into(), Account::of("a"), Vec::new(), 4);
        assert!((0..100_000).all(|_| meter.passes(9000)));
    }
}
