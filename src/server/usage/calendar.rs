//! The time by which quotas and the record of usage count. It never goes back to another day.
//!
//! A quota that begins anew each day would be given twice if the clock of the machine went back over
//! midnight. So the latest day that was seen is a floor: while the clock is behind it, everything counts
//! for that day. The record holds the latest day over a restart. A clock that is ahead begins the days
//! early, and gives no day twice when it is set back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::core::allowance::DAY;

/// How far behind the clock may be before the log says so. A clock that is kept by NTP is set back by
/// less.
const TOLD_FROM: Duration = Duration::from_secs(60 * 60);

/// The latest day that was seen. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calendar(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The number of the day since 1970.
    latest: AtomicU64,
    is_told: AtomicBool,
}

/// A time that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The time since 1970.
    pub(crate) now: Duration,
    /// How far the clock of the machine is behind it.
    pub(crate) behind: Duration,
}

impl Calendar {
    /// Returns the time that counts when the clock says `time`.
    pub(crate) fn at(&self, time: SystemTime) -> Moment {
        let clock = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = self.see(clock.as_secs() / DAY);
        let now = clock.max(Duration::from_secs(latest.saturating_mul(DAY)));
        let behind = now - clock;
        self.tell(behind);
        Moment { now, behind }
    }

    /// Notes that a day was there, which is counted since 1970. Returns the latest one.
    pub(crate) fn see(&self, day: u64) -> u64 {
        let latest = &self.0.latest;
        // Nearly always, this is all, and costs no write to memory that threads share.
        let before = latest.load(Ordering::Relaxed);
        if before >= day {
            return before;
        }
        latest.fetch_max(day, Ordering::Relaxed).max(day)
    }

    /// The log says once that the clock is behind.
    fn tell(&self, behind: Duration) {
        let is_told = &self.0.is_told;
        if behind.is_zero() {
            if is_told.load(Ordering::Relaxed) {
                is_told.store(false, Ordering::Relaxed);
            }
        } else if behind >= TOLD_FROM && !is_told.swap(true, Ordering::Relaxed) {
            let hours = behind.as_secs() / (60 * 60);
            tracing::warn!(
                hours,
                "the clock is behind the latest day of quotas and usage, so everything counts for that \
                 day until the clock has reached it; if the clock is right, move usage.redb away and \
                 restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_stays_on_the_latest_day() {
        let calendar = Calendar::default();
        let secs = Duration::from_secs;
        let at = |seconds| {
            let Moment { now, behind } = calendar.at(UNIX_EPOCH + secs(seconds));
            (now.as_secs(), behind.as_secs())
        };
        assert_eq!(at(DAY + 5), (DAY + 5, 0));
        assert_eq!(at(DAY - 5), (DAY, 5));
        assert_eq!(at(DAY + 1), (DAY + 1, 0), "within a day, it may");
        assert_eq!(calendar.see(3), 3);
        assert_eq!(calendar.see(2), 3);
        assert_eq!(at(DAY), (3 * DAY, 2 * DAY));
        assert_eq!(at(4 * DAY), (4 * DAY, 0));
        assert_eq!(calendar.at(UNIX_EPOCH - secs(9)).behind, secs(4 * DAY));
    }
}
