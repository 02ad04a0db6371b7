//! A token bucket a source, in bounded memory.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::core::quota::{Refusal, network, site};

/// Sources remembered at once: 1 MiB at most.
const MAX_SOURCES: usize = 16_384;

/// Tokens per second. They are finite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refill {
    /// Of one source. A site has twice as many.
    pub(crate) each: f64,
    /// Of all sources together.
    pub(crate) all: f64,
}

impl Refill {
    pub(crate) fn new(each: u32, all: u32) -> Self {
        Self {
            each: each.into(),
            all: all.into(),
        }
    }
}

/// Lets each source, each site and all sources together spend tokens at their rates; a burst is what
/// comes in two seconds.
pub(crate) struct RateLimiter {
    /// They may change at any time.
    rates: Box<dyn Fn() -> Refill + Send + Sync>,
    sources: HashMap<Source, Bucket>,
    total: Bucket,
    swept: Instant,
}

/// An IPv4 address or IPv6 /64, or an IPv6 /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Address(IpAddr),
    Site(Ipv6Addr),
}

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: f64, now: Instant) -> Self {
        Self {
            tokens: 2.0 * rate,
            filled: now,
        }
    }

    /// Takes `cost` tokens at `now`, if the bucket, which holds `2 * rate`, has them.
    pub(crate) fn take(&mut self, rate: f64, cost: f64, now: Instant) -> bool {
        let has = self.has(rate, cost, now);
        if has {
            self.tokens -= cost;
        }
        has
    }

    fn has(&mut self, rate: f64, cost: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = passed.mul_add(rate, self.tokens).min(2.0 * rate);
        self.filled = now;
        self.tokens >= cost
    }
}

impl RateLimiter {
    /// A limiter whose buckets are full at `now`, and whose rates stay.
    pub(crate) fn new(rate: u32, total: u32, now: Instant) -> Self {
        Self::following(move || Refill::new(rate, total), now)
    }

    /// A limiter whose buckets are full at `now`. `rates` says how fast they are filled.
    pub(crate) fn following(
        rates: impl Fn() -> Refill + Send + Sync + 'static,
        now: Instant,
    ) -> Self {
        Self {
            sources: HashMap::new(),
            total: Bucket::new(rates().all, now),
            rates: Box::new(rates),
            swept: now,
        }
    }

    /// Whether `source` may act at `now`.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        self.take(source, 1.0, now).is_ok()
    }

    /// Spends `cost` tokens of `source` at `now`.
    ///
    /// # Errors
    /// Whose tokens are spent; nothing is taken then.
    pub(crate) fn take(&mut self, ip: IpAddr, cost: f64, now: Instant) -> Result<(), Refusal> {
        let Refill { each, all } = (self.rates)();
        let site = site(ip).map(|site| (Source::Site(site), 2.0 * each, Refusal::Site));
        let address = (Source::Address(network(ip)), each, Refusal::Address);
        // The site first: when it has nothing left, no more of its addresses are remembered.
        for (source, rate, refusal) in site.into_iter().chain([address]) {
            let bucket = self.bucket(source, rate, now).ok_or(Refusal::Full)?;
            if !bucket.has(rate, cost, now) {
                return Err(refusal);
            }
        }
        if !self.total.take(all, cost, now) {
            return Err(Refusal::Full);
        }
        for (source, ..) in site.into_iter().chain([address]) {
            if let Some(bucket) = self.sources.get_mut(&source) {
                bucket.tokens -= cost;
            }
        }
        Ok(())
    }

    /// The bucket of `source`, if there is room to remember it.
    fn bucket(&mut self, source: Source, rate: f64, now: Instant) -> Option<&mut Bucket> {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.forget_full_buckets(now);
            // Every remembered source is active: a flood of forged ones. Strangers wait.
            if self.sources.len() >= MAX_SOURCES {
                return None;
            }
        }
        let bucket = self.sources.entry(source);
        Some(bucket.or_insert_with(|| Bucket::new(rate, now)))
    }

    /// A bucket is full again after two seconds at most, and then worth nothing to remember.
    /// Looks no more often than that: a flood must not make every datagram cost a sweep.
    fn forget_full_buckets(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < Duration::from_secs(2) {
            return;
        }
        self.swept = now;
        self.sources.retain(|_, bucket| {
            now.saturating_duration_since(bucket.filled) < Duration::from_secs(2)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10, 1000, start);
        let allowed = (0..100).filter(|_| limiter.allow(v4(1), start)).count();
        assert_eq!(allowed, 20);
        assert!(!limiter.allow(v4(1), start + Duration::from_millis(99)));
        assert!(limiter.allow(v4(1), start + Duration::from_millis(200)));
        assert!(limiter.allow(v4(2), start), "other sources are unharmed");
    }

    #[test]
    fn a_64_counts_as_one_source() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1, 1000, start);
        let neighbour = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n));
        assert!(limiter.allow(neighbour(1), start));
        assert!(limiter.allow(neighbour(2), start));
        assert!(!limiter.allow(neighbour(3), start));
        assert!(limiter.allow(neighbour(1 << 64), start));
    }

    #[test]
    fn a_48_counts_as_two_sources() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1, 1000, start);
        let of_64 = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n << 64));
        let allowed = (0..100).filter(|n| limiter.allow(of_64(*n), start));
        assert_eq!(allowed.count(), 4);
        assert!(limiter.allow(of_64(1 << 16), start), "another site");
        assert!(limiter.sources.len() < 10, "{}", limiter.sources.len());
        let mut limiter = RateLimiter::new(10, 1000, start);
        let allowed = (0..100).filter(|n| limiter.allow(of_64(*n), start));
        assert_eq!(allowed.count(), 40);
    }

    #[test]
    fn a_cost_is_paid_whole_or_not_at_all() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1000, 3000, start);
        assert_eq!(limiter.take(v4(1), 1500.0, start), Ok(()));
        assert_eq!(limiter.take(v4(1), 501.0, start), Err(Refusal::Address));
        assert_eq!(limiter.take(v4(1), 500.0, start), Ok(()));
        let later = start + Duration::from_secs(1);
        assert_eq!(limiter.take(v4(1), 1001.0, later), Err(Refusal::Address));
        assert_eq!(limiter.take(v4(1), 1000.0, later), Ok(()));
        assert_eq!(limiter.take(v4(2), 2000.0, later), Ok(()));
        assert_eq!(limiter.take(v4(3), 2000.0, later), Ok(()));
        assert_eq!(limiter.take(v4(4), 1001.0, later), Err(Refusal::Full));
        assert_eq!(
            limiter.take(v4(4), 1000.0, later),
            Ok(()),
            "nothing was taken"
        );
    }

    #[test]
    fn a_rate_that_changes_counts_at_once() {
        use std::sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        };
        let start = Instant::now();
        let rate = Arc::new(AtomicU32::new(10));
        let now = rate.clone();
        let rates = move || Refill::new(now.load(Ordering::Relaxed), 1000);
        let mut limiter = RateLimiter::following(rates, start);
        assert!(limiter.allow(v4(1), start));
        rate.store(2, Ordering::Relaxed);
        let allowed =
            |limiter: &mut RateLimiter, at| (0..100).filter(|_| limiter.allow(v4(1), at)).count();
        assert_eq!(allowed(&mut limiter, start), 4, "of the old burst no more");
        rate.store(5, Ordering::Relaxed);
        assert_eq!(allowed(&mut limiter, start), 0);
        assert_eq!(allowed(&mut limiter, start + Duration::from_secs(9)), 10);
    }

    #[test]
    fn all_together_are_bounded() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10, 50, start);
        let allowed = (0..1000).filter(|n| limiter.allow(v4(*n), start)).count();
        assert_eq!(allowed, 100);
    }

    #[test]
    fn forged_sources_do_not_grow_memory() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1, 1_000_000, start);
        for n in 0..100_000 {
            limiter.allow(v4(n), start);
        }
        assert_eq!(limiter.sources.len(), MAX_SOURCES);
        let later = start + Duration::from_secs(2);
        assert!(
            limiter.allow(v4(99_999), later),
            "room is made once the flood ends"
        );
        assert_eq!(limiter.sources.len(), 1);
    }

    #[test]
    fn who_is_known_is_served_beside_a_flood_and_remembered_while_active() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1, 1_000_000, start);
        for n in 0..MAX_SOURCES as u32 {
            assert!(limiter.allow(v4(n), start));
        }
        let stranger = v4(u32::MAX);
        assert!(!limiter.allow(stranger, start));
        assert!(limiter.allow(v4(0), start + Duration::from_secs(1)));
        let later = start + Duration::from_millis(2500);
        assert!(limiter.allow(stranger, later));
        assert_eq!(limiter.sources.len(), 2);
        assert!(limiter.sources.contains_key(&Source::Address(v4(0))));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_is_no_gift() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut limiter = RateLimiter::new(1, 100, start);
        assert!(limiter.allow(v4(1), start));
        assert!(limiter.allow(v4(1), start - Duration::from_secs(5)));
        assert!(!limiter.allow(v4(1), start - Duration::from_secs(5)));
    }
}
