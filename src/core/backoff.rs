//! Exponential backoff with jitter. Randomness is an argument.

use std::time::Duration;

/// How far the pause may deviate from its nominal length. The deviation keeps peers that failed at
/// the same time from coming back at the same time.
const JITTER: f64 = 0.25;

/// Pauses that double from `first` up to `most`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            failures: 0,
        }
    }

    /// Returns the number of failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and returns the pause before the next try. `random` is uniform in
    /// `0.0..1.0`.
    pub(crate) fn fail(&mut self, random: f64) -> Duration {
        let doublings = self.failures.min(31);
        self.failures = self.failures.saturating_add(1);
        let nominal = self.first.saturating_mul(1 << doublings).min(self.most);
        nominal.mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0))
    }

    /// Starts again at the first pause, after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_to_the_cap_and_starts_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(2 * second, 10 * second);
        let pauses: Vec<_> = (0..4).map(|_| backoff.fail(0.5)).collect();
        assert_eq!(pauses, [2 * second, 4 * second, 8 * second, 10 * second]);
        assert_eq!(backoff.failures(), 4);
        backoff.reset();
        assert_eq!(backoff.fail(0.0), 2 * second * 3 / 4);
        backoff.reset();
        assert_eq!(backoff.fail(1.0), 2 * second * 5 / 4);
    }

    proptest! {
        #[test]
        fn stays_within_the_jittered_cap(fails in 0u32..100, random in -1.0f64..2.0) {
            let most = Duration::from_secs(60);
            let mut backoff = Backoff::new(Duration::from_secs(2), most);
            for _ in 0..fails {
                backoff.fail(0.5);
            }
            prop_assert!(backoff.fail(random) <= most.mul_f64(1.0 + JITTER));
        }
    }
}
