//! Limits how slowly a receiver may take what we send.
//!
//! A timer that every byte resets is not a limit, because one byte from time to time holds a
//! connection for ever. Here each receiver has a stock of patience. Waiting for the receiver uses
//! it up, and bytes that the receiver takes earn it back. So a receiver may pause, but has to keep
//! a minimum rate on average.

use std::time::{Duration, Instant};

/// The patience that is left for one receiver.
#[derive(Debug)]
pub(crate) struct Patience {
    /// The most patience that there can be, and the patience at the beginning.
    grace: Duration,
    /// The number of bytes that earn a second.
    rate: u32,
    left: Duration,
    /// Since when we have been waiting for the receiver.
    waiting: Option<Instant>,
}

impl Patience {
    /// Makes the patience for a receiver that may pause for `grace` and takes at least `rate` bytes
    /// per second.
    pub(crate) fn new(grace: Duration, rate: u32) -> Self {
        Self {
            grace,
            rate: rate.max(1),
            left: grace,
            waiting: None,
        }
    }

    /// Notes that nothing more can be sent at `now`. Returns until when to wait for the receiver.
    pub(crate) fn wait(&mut self, now: Instant) -> Instant {
        *self.waiting.get_or_insert(now) + self.left
    }

    /// Notes that `bytes` could be sent at `now`.
    pub(crate) fn sent(&mut self, now: Instant, bytes: usize) {
        if let Some(since) = self.waiting.take() {
            let waited = now.saturating_duration_since(since);
            self.left = self.left.saturating_sub(waited);
        }
        // This is exact to a nanosecond and cannot overflow: 2^64 bytes earn 2^94 nanoseconds.
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
    fn single_bytes_do_not_hold_a_connection() {
        let start = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        assert_eq!(pace.wait(start), start + GRACE);
        assert_eq!(
            pace.wait(start + seconds(3.0)),
            start + GRACE,
            "the same wait continues"
        );
        pace.sent(start + seconds(9.0), 1);
        let deadline = pace.wait(start + seconds(9.0));
        assert_eq!(deadline, start + seconds(10.001));
    }

    #[test]
    fn a_receiver_at_the_minimum_rate_is_never_given_up() {
        let mut now = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        for _ in 0..1000 {
            assert!(pace.wait(now) >= now + seconds(1.0));
            now += seconds(1.0);
            pace.sent(now, RATE as usize);
        }
    }

    #[test]
    fn time_without_anything_to_send_uses_no_patience() {
        let start = Instant::now();
        let mut pace = Patience::new(GRACE, RATE);
        pace.sent(start, 1);
        let later = start + seconds(1000.0);
        assert_eq!(pace.wait(later), later + GRACE);
    }

    proptest! {
        /// We never wait longer for a receiver than its bytes and the grace allow, whatever it
        /// does.
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
