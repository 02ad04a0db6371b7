//! A token bucket a source, in bounded memory.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::core::quota::network;

/// Sources remembered at once: 1 MiB at most.
const MAX_SOURCES: usize = 16_384;

/// Lets each source act `rate` times per second, and twice as often in a burst, and all
/// sources together `total` times per second.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: f64,
    sources: HashMap<IpAddr, Bucket>,
    total_rate: f64,
    total: Bucket,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Takes a token at `now`, if the bucket, which holds `2 * rate`, has one.
    fn take(&mut self, rate: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = passed.mul_add(rate, self.tokens).min(2.0 * rate);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl RateLimiter {
    /// A limiter whose buckets are full at `now`.
    pub(crate) fn new(rate: u32, total: u32, now: Instant) -> Self {
        let total_rate = f64::from(total);
        Self {
            rate: f64::from(rate),
            sources: HashMap::new(),
            total_rate,
            total: Bucket {
                tokens: 2.0 * total_rate,
                filled: now,
            },
            swept: now,
        }
    }

    /// Whether `source` may act at `now`.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let key = network(source);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&key) {
            self.forget_full_buckets(now);
            // Every remembered source is active: a flood of forged ones. Strangers wait.
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let rate = self.rate;
        let bucket = self.sources.entry(key).or_insert(Bucket {
            tokens: 2.0 * rate,
            filled: now,
        });
        bucket.take(rate, now) && self.total.take(self.total_rate, now)
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
    use std::net::Ipv6Addr;

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
    fn a_clock_that_stands_still_or_goes_back_is_no_gift() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut limiter = RateLimiter::new(1, 100, start);
        assert!(limiter.allow(v4(1), start));
        assert!(limiter.allow(v4(1), start - Duration::from_secs(5)));
        assert!(!limiter.allow(v4(1), start - Duration::from_secs(5)));
    }
}
