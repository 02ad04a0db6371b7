//! When a certificate is renewed.
//!
//! Times are since the Unix epoch, because certificates have dates. Randomness is an argument, uniform
//! in `0.0..1.0`.

use std::time::Duration;

use super::backoff::Backoff;

/// The share of its life after which a certificate is renewed. A third of it is left for failures.
const RENEW: (u32, u32) = (2, 3);
/// The share of a certificate's life by which renewals are spread, so that servers that began together
/// do not come together.
const SPREAD: u32 = 20;
/// The share of a certificate's life that passes from one order to the next, even if this machine's
/// clock says that the certificate was never valid.
const BETWEEN: u32 = 20;
/// The pause after the first failure. Let's Encrypt allows five failures an hour for one name.
const FIRST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The longest pause. A certificate for six days is tried for eight times in its last third.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

impl Validity {
    fn life(self) -> Duration {
        self.until.saturating_sub(self.from)
    }

    /// How long the certificate is still valid at `now`.
    pub(crate) fn left(self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }

    /// When the certificate is to be renewed.
    fn due(self, random: f64) -> Duration {
        let (share, of) = RENEW;
        let spread = (self.life() / SPREAD).mul_f64(random.clamp(0.0, 1.0));
        self.from + self.life() / of * share + spread
    }
}

/// When the next order is made.
#[derive(Debug)]
pub(crate) struct Renewal {
    backoff: Backoff,
    due: Duration,
}

impl Renewal {
    /// Begins at `now` with the certificate that was kept, if there is one for the right subjects.
    pub(crate) fn new(kept: Option<Validity>, now: Duration, random: f64) -> Self {
        Self {
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            due: kept.map_or(now, |kept| kept.due(random)),
        }
    }

    /// How long to wait at `now` for the next order.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// A certificate was issued at `now`.
    pub(crate) fn succeeded(&mut self, issued: Validity, now: Duration, random: f64) {
        self.backoff.reset();
        self.due = issued.due(random).max(now + issued.life() / BETWEEN);
    }

    /// An order has failed at `now`.
    pub(crate) fn failed(&mut self, now: Duration, random: f64) {
        self.due = now + self.backoff.fail(random);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const START: Duration = Duration::from_secs(1_800_000_000);

    fn valid(days: u32) -> Validity {
        Validity {
            from: START,
            until: START + DAY * days,
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let renewal = Renewal::new(Some(valid(90)), START, 0.0);
        assert_eq!(renewal.wait(START), DAY * 60);
        assert_eq!(renewal.wait(START + DAY * 59), DAY);
        assert_eq!(renewal.wait(START + DAY * 60), Duration::ZERO);
        let late = Renewal::new(Some(valid(90)), START, 1.0);
        assert_eq!(late.wait(START), DAY * 60 + DAY * 9 / 2);
        assert_eq!(Renewal::new(None, START, 1.0).wait(START), Duration::ZERO);
        assert_eq!(valid(90).left(START + DAY * 89), DAY);
        assert_eq!(valid(90).left(START + DAY * 91), Duration::ZERO);
    }

    #[test]
    fn failures_wait_longer_and_longer_and_a_success_ends_that() {
        let mut renewal = Renewal::new(None, START, 0.5);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            renewal.failed(START, 0.5);
            pauses.push(renewal.wait(START).as_secs() / 60);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 360, 360]);
        renewal.succeeded(valid(6), START, 0.0);
        assert_eq!(renewal.wait(START), DAY * 4);
        renewal.failed(START, 0.5);
        assert_eq!(renewal.wait(START), FIRST_PAUSE);
    }

    #[test]
    fn a_wrong_clock_makes_no_flood_of_orders() {
        let now = START + DAY * 400;
        let mut renewal = Renewal::new(Some(valid(90)), now, 0.5);
        assert_eq!(renewal.wait(now), Duration::ZERO);
        renewal.succeeded(valid(90), now, 0.5);
        assert_eq!(renewal.wait(now), DAY * 90 / BETWEEN);
    }

    proptest! {
        /// A quarter of the life is always left for failures.
        #[test]
        fn renewals_are_in_time(hours in 1u32..100_000, random in -1.0f64..2.0) {
            let validity = Validity { from: START, until: START + DAY / 24 * hours };
            let wait = Renewal::new(Some(validity), START, random).wait(START);
            prop_assert!(wait <= validity.life() / 4 * 3);
            prop_assert!(wait + Duration::from_secs(1) >= validity.life() / 3 * 2);
        }
    }
}
