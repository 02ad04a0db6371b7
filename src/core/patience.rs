//! How slow whoever takes what we send may be.
//!
//! A timer that every byte resets is no bound: a byte now and then holds a connection for ever.
//! Here a receiver has some patience of ours, which waiting for it uses up and bytes that it takes
//! earn back, so that it may pause but has to take a least rate on average.

use std::time::{Duration, Instant};

/// The patience that is left with one receiver.
#[derive(Debug)]
pub(crate) struct Patience {
    /// The most patience that there can be, which is also what there is at first.
    grace: Duration,
    /// Bytes that earn a second.
    rate: u32,
    left: Duration,
    /// Since when it is waited for.
    waiting: Option<Instant>,
}

impl Patience {
    /// A receiver that may pause for `grace` and takes `rate` bytes a second at least.
    pub(crate) fn new(grace: Duration, rate: u32) -> Self {
        Self {
            grace,
            rate: rate.max(1),
            left: grace,
            waiting: None,
        }
    }

    /// Nothing more can be sent at `now`: until when the receiver is waited for.
    pub(crate) fn wait(&mut self, now: Instant) -> Instant {
        *self.waiting.get_or_insert(now) + self.left
    }

    /// `bytes` could be sent at `now`.
    pub(crate) fn sent(&mut self, now: Instant, bytes: usize) {
        if let Some(since) = self.waiting.take() {
            let waited = now.saturating_duration_since(since);
            self.left = self.left.saturating_sub(waited);
        }
        // Exact to a nanosecond, and far from any overflow: 2^64 bytes earn 2^94 nanoseconds.
        let earned = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        let earned = Duration::from_nanos(u64::try_from(earned).unwrap_or(u64::MAX));
        self.left = self.left.saturating_add(earned).min(self.grace);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const RATE: u32 = 1000;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn a_byte_now_and_then_does_not_help() {
        let start = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        assert_eq!(pace.wait(start), start + GRACE);
        assert_eq!(
            pace.wait(start + seconds(3.0)),
            start + GRACE,
            "one wait goes on"
        );
        pace.sent(start + seconds(9.0), 1);
        let deadline = pace.wait(start + seconds(9.0));
        assert_eq!(deadline, start + seconds(10.001));
    }

    #[test]
    fn the_least_rate_is_enough_for_ever() {
        let mut now = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        for _ in 0..1000 {
            assert!(pace.wait(now) >= now + seconds(1.0));
            now += seconds(1.0);
            pace.sent(now, RATE as usize);
        }
    }

    #[test]
    fn time_in_which_nothing_is_sent_costs_nothing() {
        let start = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        pace.sent(start, 1);
        let later = start + seconds(1000.0);
        assert_eq!(pace.wait(later), later + GRACE);
    }

    proptest! {
        /// Whatever it does, a receiver is not waited for longer than its bytes and the grace allow.
        #[test]
        fn waits_are_bounded(steps in prop::collection::vec((0u64..20_000, 0usize..5000), 0..50)) {
            let start = Instant::now();
            let (mut now, mut bytes, mut waited) = (start, 0, Duration::ZERO);
            let mut pace = Patience::new(GRACE, RATE);
            for (millis, taken) in steps {
                let deadline = pace.wait(now);
                let next = now + Duration::from_millis(millis);
                if next > deadline {
                    waited += deadline - now;
                    break;
                }
                waited += next - now;
                now = next;
                pace.sent(now, taken);
                bytes += taken;
            }
            let earned = Duration::from_secs_f64(bytes as f64 / f64::from(RATE));
            prop_assert!(waited <= GRACE + earned + Duration::from_millis(1));
        }
    }
}
