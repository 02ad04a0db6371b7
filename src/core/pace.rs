//! Limits how often something may be done: a number of times at once, and a rate per second after
//! that. It is the generic cell rate algorithm of ITU-T I.371, whose state is one number.

use std::time::Duration;

/// A token bucket.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    every: Duration,
    burst: u32,
    /// When the bucket is full again.
    full: Duration,
}

impl Pace {
    /// Allows `burst` at once and `rate` per second.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        Self {
            every: Duration::from_secs(1) / rate.max(1),
            burst,
            full: Duration::ZERO,
        }
    }

    /// Takes `count` at `now` and returns how long to wait with them. If that is longer than
    /// `patience`, nothing is taken and the result is `None`.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        count: u32,
        patience: Duration,
    ) -> Option<Duration> {
        let full = self.full.max(now) + self.every * count;
        let wait = full.saturating_sub(now + self.every * self.burst);
        if wait > patience {
            return None;
        }
        self.full = full;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let mut pace = Pace::new(10, 5);
        let mut take = |now, count, patience| pace.take(now, count, patience);
        assert_eq!(take(SECOND, 5, Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(take(SECOND, 1, Duration::ZERO), None);
        assert_eq!(take(SECOND, 2, SECOND), Some(SECOND / 5));
        assert_eq!(take(SECOND, 9, SECOND), None);
        assert_eq!(take(SECOND * 2, 5, Duration::ZERO), Some(Duration::ZERO));
        assert_eq!(take(SECOND * 2, 4, Duration::ZERO), None);
        assert_eq!(take(SECOND * 9, 6, Duration::ZERO), None);
        assert_eq!(take(SECOND * 9, 5, Duration::ZERO), Some(Duration::ZERO));
    }

    proptest! {
        /// Nothing is done sooner than the burst and the rate allow, whatever is asked for.
        #[test]
        fn never_allows_more_than_burst_and_rate(
            asked in prop::collection::vec((0u64..500, 1u32..8), 1..60),
            (rate, burst) in (1u32..50, 8u32..40),
        ) {
            let mut pace = Pace::new(rate, burst);
            let (mut now, mut done) = (Duration::ZERO, Vec::new());
            for (pause, count) in asked {
                now += Duration::from_millis(pause);
                if let Some(wait) = pace.take(now, count, SECOND) {
                    done.push((now + wait, count));
                }
            }
            let last = done.iter().map(|(at, _)| *at).max().unwrap_or_default();
            let total: u32 = done.iter().map(|(_, count)| count).sum();
            let most = last.as_secs_f64() * f64::from(rate) + f64::from(burst);
            prop_assert!(f64::from(total) <= most + 0.001, "{total} > {most}");
        }
    }
}
