//! How much may be carried for somebody in a day and in a month, and when they are told what is left.

use std::time::Duration;

use super::lease::{Ask, Lease, slack};

/// How soon a lease may be there that is missing now.
const LEASE_SOON: Duration = Duration::from_secs(30);

/// The seconds of a day.
pub(crate) const DAY: u64 = 24 * 60 * 60;

/// The percents of a quota at which its holders are told. The first leaves time to do something.
const TOLD_AT: [u8; 3] = [80, 95, 100];

/// When a quota begins anew, in universal time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Period {
    Day,
    /// A month of the calendar.
    Month,
}

impl Period {
    const ALL: [Self; 2] = [Self::Day, Self::Month];

    /// Returns the number of the period in which `now` lies, and how long it goes on. Times count
    /// from 1970.
    pub(crate) fn at(self, now: Duration) -> (u64, Duration) {
        let day = now.as_secs() / DAY;
        let (number, ends) = match self {
            Self::Day => (day, day + 1),
            Self::Month => {
                let (number, first) = month(day);
                // No month is longer than 31 days, and none shorter than 28.
                let next = (first + 28..=first + 31).find(|day| month(*day).0 != number);
                (number, next.unwrap_or(first + 31))
            }
        };
        (number, Duration::from_secs(ends * DAY).saturating_sub(now))
    }

    /// Returns when the period began in which `now` lies.
    pub(crate) fn begun(self, now: Duration) -> Duration {
        let day = now.as_secs() / DAY;
        let first = match self {
            Self::Day => day,
            Self::Month => month(day).1,
        };
        Duration::from_secs(first * DAY)
    }
}

/// Returns the number of the month in which a day since 1970 lies, and the first day of the month.
fn month(day: u64) -> (u64, u64) {
    // Years that begin in March have their leap day at the end.
    const MARCH_0000: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let day = day + MARCH_0000;
    let (era, of_era) = (day / DAYS_OF_400_YEARS, day % DAYS_OF_400_YEARS);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5;
    ((era * 400 + year) * 12 + month, day - of_month - MARCH_0000)
}

/// How many bytes may be carried in a day, and how many in a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) day: Option<u64>,
    pub(crate) month: Option<u64>,
}

impl Quota {
    fn of(&self, period: Period) -> Option<u64> {
        match period {
            Period::Day => self.day,
            Period::Month => self.month,
        }
    }

    fn limits(self) -> impl Iterator<Item = (usize, Period, u64)> {
        let all = Period::ALL.into_iter().enumerate();
        all.filter_map(move |(at, period)| Some((at, period, self.of(period)?)))
    }
}

/// What is left of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// The bytes that may still be carried.
    pub(crate) left: u64,
    /// The bytes of the quota.
    pub(crate) all: u64,
    /// When it begins anew.
    pub(crate) ends: Duration,
    pub(crate) period: Period,
}

/// What was carried in one period.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    /// The number of the period.
    period: u64,
    bytes: u64,
    /// How many of [`TOLD_AT`] the holders know of.
    told: usize,
    /// What a server of a fleet may carry.
    lease: Lease,
    /// What this server had forgotten, and has heard again with a lease.
    recovered: u64,
}

/// What was carried for somebody in the present day and month.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// In the order of [`Period::ALL`].
    carried: [Carried; 2],
    /// Whether each server of a fleet has a part of the quota.
    is_shared: bool,
}

impl Spent {
    /// Nothing of a quota of which each server of a fleet has a part.
    pub(crate) fn shared() -> Self {
        Self {
            is_shared: true,
            ..Self::default()
        }
    }

    /// Whether the server should ask for another lease.
    pub(crate) fn wants_lease(&self, quota: Quota) -> bool {
        let wants = |(at, _, all): (usize, Period, u64)| {
            let Carried { bytes, lease, .. } = self.carried[at];
            bytes >= lease.ask_at.max(slack(all) / 2)
        };
        self.is_shared && quota.limits().any(wants)
    }

    /// Whether more was leased than was carried, so that some of it can be given back.
    pub(crate) fn has_rest(&self) -> bool {
        let rest = |carried: &Carried| carried.lease.bytes > carried.bytes;
        self.carried.iter().any(rest)
    }

    /// Returns what to ask for at `now`. What is given back cannot be used from now on, because nobody may say
    /// when others get it.
    pub(crate) fn ask(&mut self, quota: Quota, now: Duration, rests: bool) -> Ask {
        self.turn(now);
        if rests {
            for carried in &mut self.carried {
                carried.lease.bytes = carried.lease.bytes.min(carried.bytes);
            }
        }
        Ask {
            quota,
            periods: self.carried.map(|carried| carried.period),
            spent: self.carried.map(|carried| carried.bytes),
            rests,
        }
    }

    /// Notes what was given for `ask`. Returns whether a lease has grown.
    pub(crate) fn lease(&mut self, ask: &Ask, leases: [Lease; 2]) -> bool {
        let mut has_grown = false;
        for (at, lease) in leases.into_iter().enumerate() {
            let carried = &mut self.carried[at];
            if carried.period == ask.periods[at] {
                let forgotten = lease.spent.saturating_sub(ask.spent[at]);
                carried.bytes = carried.bytes.saturating_add(forgotten);
                carried.recovered = carried.recovered.saturating_add(forgotten);
                has_grown |= lease.bytes > carried.lease.bytes;
                carried.lease = lease;
            }
        }
        has_grown
    }

    /// Counts `bytes` that are about to be carried. The last bytes of a quota may be more than what
    /// is left of it. Returns whether the holders should be [told](Self::tell).
    ///
    /// # Errors
    /// The time until the quota begins anew, if nothing is left of it, or of what a server of a fleet has of
    /// it. Nothing is counted then.
    pub(crate) fn spend(
        &mut self,
        quota: Quota,
        bytes: u64,
        now: Duration,
    ) -> Result<bool, Duration> {
        self.turn(now);
        let ends = |(at, period, all): (usize, Period, u64)| {
            let carried = &self.carried[at];
            match carried.is_over(all, self.is_shared) {
                true if carried.is_spent(all) => Some(period.at(now).1),
                true => Some(period.at(now).1.min(LEASE_SOON)),
                false => None,
            }
        };
        if let Some(ends) = quota.limits().filter_map(ends).max() {
            return Err(ends);
        }
        self.count(bytes);
        Ok(self.is_due(quota))
    }

    /// Counts what was carried before, in the day and in the month in which `then` lies. What is over
    /// does not count.
    pub(crate) fn seed(&mut self, [day, month]: [u64; 2], then: Duration) {
        self.turn(then);
        let seeds = self.carried.iter_mut().zip(Period::ALL).zip([day, month]);
        for ((carried, period), bytes) in seeds {
            if carried.period == period.at(then).0 {
                let unknown = bytes.saturating_sub(carried.recovered);
                carried.bytes = carried.bytes.saturating_add(unknown);
            }
        }
    }

    /// Returns what is left of the quota that has to be told, if one has. It is told once.
    pub(crate) fn tell(&mut self, quota: Quota, now: Duration) -> Option<Left> {
        self.turn(now);
        let mut told = None::<Left>;
        for (at, period, all) in quota.limits() {
            let carried = &mut self.carried[at];
            let level = level(carried.used(), all);
            if level > carried.told {
                carried.told = level;
                let left = carried.left(period, all, now);
                told = Some(told.filter(|other| other.left <= left.left).unwrap_or(left));
            }
        }
        told
    }

    /// Returns what is left of the quota of which the holders were told, for one that comes later.
    pub(crate) fn known(&self, quota: Quota, now: Duration) -> Option<Left> {
        let known = quota.limits().filter(|(at, period, _)| {
            let carried = &self.carried[*at];
            carried.told > 0 && carried.period == period.at(now).0
        });
        let left = known.map(|(at, period, all)| self.carried[at].left(period, all, now));
        left.min_by_key(|left| left.left)
    }

    /// Returns the bytes of the period in which most were carried, if it is not over.
    pub(crate) fn bytes(&self, now: Duration) -> u64 {
        let present = Period::ALL.iter().zip(self.carried);
        let present = present.filter(|(period, carried)| carried.period == period.at(now).0);
        present.map(|(_, carried)| carried.bytes).max().unwrap_or(0)
    }

    /// Returns the bytes of the present month, as of the last call that named the time.
    pub(crate) fn carried(&self) -> u64 {
        self.carried[1].bytes
    }

    /// Begins the periods in which `now` lies. A period that is over never begins again.
    fn turn(&mut self, now: Duration) {
        for (carried, period) in self.carried.iter_mut().zip(Period::ALL) {
            let number = period.at(now).0;
            if carried.period < number {
                *carried = Carried {
                    period: number,
                    ..Carried::default()
                };
            }
        }
    }

    fn count(&mut self, bytes: u64) {
        for carried in &mut self.carried {
            carried.bytes = carried.bytes.saturating_add(bytes);
        }
    }

    /// Whether the holders should be told what is left.
    pub(crate) fn is_due(&self, quota: Quota) -> bool {
        let due = |(at, _, all)| {
            let carried: Carried = self.carried[at];
            level(carried.used(), all) > carried.told
        };
        quota.limits().any(due)
    }
}

impl Carried {
    /// The bytes that were carried here, and at other servers as far as they have said.
    fn used(&self) -> u64 {
        self.bytes.saturating_add(self.lease.spent_elsewhere)
    }

    /// Whether nothing may be carried here at present.
    fn is_over(&self, all: u64, is_shared: bool) -> bool {
        let most = self.lease.bytes.saturating_add(slack(all));
        let taken = self.bytes.saturating_add(self.lease.elsewhere);
        taken >= all || is_shared && self.bytes >= most
    }

    /// Whether the quota is used up, but for a little that others may have.
    fn is_spent(&self, all: u64) -> bool {
        self.bytes >= all || self.used() >= all.saturating_sub(slack(all) / 2)
    }

    fn left(&self, period: Period, all: u64, now: Duration) -> Left {
        Left {
            left: all.saturating_sub(self.used()),
            all,
            ends: period.at(now).1,
            period,
        }
    }
}

/// Returns how many of [`TOLD_AT`] are reached.
fn level(bytes: u64, all: u64) -> usize {
    let reached =
        |percent: &&u8| u128::from(bytes) * 100 >= u128::from(all) * u128::from(**percent);
    TOLD_AT.iter().take_while(reached).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const BOTH: Quota = Quota {
        day: Some(100),
        month: Some(150),
    };

    #[test]
    fn periods_end_at_midnight_and_with_the_month() {
        assert_eq!(Period::Day.at(at(0)), (0, at(DAY)));
        assert_eq!(Period::Day.at(at(DAY - 1)), (0, at(1)));
        let days = |period: Period, day: u64| period.at(at(day * DAY)).1.as_secs() / DAY;
        // 1970-01-01, 1970-02-01, 2000-02-10 and 2100-02-10.
        for (day, left) in [(0, 31), (31, 28), (10_997, 20), (47_522, 19)] {
            assert_eq!(days(Period::Month, day), left, "{day}");
        }
        let number = |day: u64| Period::Month.at(at(day * DAY)).0;
        assert_eq!(number(31), number(0) + 1);
        assert_eq!(number(365), number(0) + 12);
        assert_eq!(Period::Month.begun(at(10_997 * DAY + 5)), at(10_988 * DAY));
        assert_eq!(Period::Day.begun(at(DAY + 5)), at(DAY));
    }

    #[test]
    fn a_quota_ends_and_begins_anew_by_day_and_by_month() {
        let mut spent = Spent::default();
        assert_eq!(spent.spend(BOTH, 9, at(0)), Ok(false));
        assert_eq!(spent.spend(BOTH, 0, at(5)), Ok(false));
        assert_eq!(spent.spend(BOTH, 101, at(5)), Ok(true), "the last");
        assert_eq!(spent.spend(BOTH, 0, at(6)), Err(at(DAY - 6)));
        assert_eq!(spent.spend(BOTH, 40, at(DAY)), Ok(true), "another day");
        let month = Err(at(30 * DAY));
        assert_eq!(spent.spend(BOTH, 1, at(DAY)), month, "the month");
        assert_eq!(spent.spend(BOTH, 1, at(31 * DAY)), Ok(false));
        assert_eq!(spent.bytes(at(31 * DAY)), 1);
        assert_eq!(spent.bytes(at(62 * DAY)), 0);
        let early = spent.spend(BOTH, 0, at(30 * DAY));
        assert_eq!(
            (early, spent.bytes(at(31 * DAY))),
            (Ok(false), 1),
            "it does not go back"
        );
        spent.seed([900, 900], at(30 * DAY));
        assert_eq!(spent.bytes(at(31 * DAY)), 1, "that is over");
        let both = spent.spend(BOTH, 200, at(31 * DAY));
        assert_eq!(both, Ok(true));
        let longest = spent.spend(BOTH, 1, at(31 * DAY));
        assert_eq!(longest, Err(at(28 * DAY)), "both are used up");
        assert_eq!(spent.spend(Quota::default(), u64::MAX, at(0)), Ok(false));
    }

    #[test]
    fn what_is_left_is_told_once_at_each_step() {
        let quota = Quota {
            day: Some(1000),
            month: None,
        };
        let mut spent = Spent::default();
        let mut told = Vec::new();
        for _ in 0..110 {
            let spend = spent.spend(quota, 10, at(60));
            if spend == Ok(true) {
                told.push(spent.tell(quota, at(60)).unwrap());
            }
            assert_eq!(spent.tell(quota, at(60)), None);
        }
        let left: Vec<_> = told.iter().map(|left| left.left).collect();
        assert_eq!(left, [200, 50, 0]);
        let first = Left {
            left: 200,
            all: 1000,
            ends: at(DAY - 60),
            period: Period::Day,
        };
        assert_eq!(told[0], first);
        assert_eq!(spent.known(quota, at(70)).map(|left| left.left), Some(0));
        assert_eq!(spent.known(quota, at(DAY)), None);
        spent.seed([900, 0], at(DAY));
        assert_eq!(spent.tell(quota, at(DAY)).map(|left| left.left), Some(100));
    }

    #[test]
    fn a_shared_quota_is_spent_within_its_lease_and_asked_for_in_time() {
        const KIB: u64 = 1 << 10;
        let quota = Quota {
            day: Some(1000 * KIB),
            month: None,
        };
        let lease = |bytes, elsewhere, spent_elsewhere| {
            let day = Lease {
                bytes,
                ask_at: bytes / 2,
                spent: 0,
                elsewhere,
                spent_elsewhere,
            };
            [day, Lease::default()]
        };
        let mut whole = Spent::default();
        assert_eq!(whole.spend(quota, 999 * KIB, at(0)), Ok(true));
        assert!(!whole.wants_lease(quota), "it has all");
        let mut spent = Spent::shared();
        assert_eq!(spent.spend(quota, 31 * KIB, at(0)), Ok(false));
        assert!(!spent.wants_lease(quota), "that is next to nothing");
        assert_eq!(spent.spend(quota, 33 * KIB, at(0)), Ok(false), "the slack");
        assert!(spent.wants_lease(quota));
        let soon = Err(LEASE_SOON);
        assert_eq!(spent.spend(quota, 1, at(0)), soon);
        let ask = spent.ask(quota, at(0), false);
        assert_eq!((ask.spent, ask.rests), ([64 * KIB; 2], false));
        assert!(spent.lease(&ask, lease(400 * KIB, 500 * KIB, 450 * KIB)));
        assert!(spent.has_rest() && !spent.wants_lease(quota));
        assert_eq!(spent.spend(quota, 200 * KIB, at(0)), Ok(false));
        assert!(spent.wants_lease(quota));
        assert_eq!(spent.spend(quota, 136 * KIB, at(0)), Ok(true));
        let left = spent.tell(quota, at(0)).unwrap().left;
        assert_eq!(left, 150 * KIB, "85 % are spent");
        assert_eq!(spent.spend(quota, 64 * KIB, at(0)), Ok(false), "the slack");
        assert_eq!(spent.spend(quota, 1, at(0)), soon);
        assert!(!spent.has_rest());
        let ask = spent.ask(quota, at(0), false);
        assert!(spent.lease(&ask, lease(464 * KIB, 536 * KIB, 536 * KIB)));
        let ends = Err(at(DAY));
        assert_eq!(spent.spend(quota, 1, at(0)), ends, "all is spent");
        // The lease of yesterday is none.
        assert_eq!(spent.spend(quota, 64 * KIB, at(DAY)), Ok(false));
        assert!(!spent.lease(&ask, lease(999 * KIB, 0, 0)));
        assert_eq!(spent.spend(quota, 1, at(DAY)), soon);
    }

    #[test]
    fn what_is_given_back_is_not_used_and_what_was_forgotten_counts_once() {
        let quota = Quota {
            day: Some(1 << 30),
            month: None,
        };
        let mut spent = Spent::shared();
        spent.spend(quota, 10 << 20, at(0)).unwrap();
        let ask = spent.ask(quota, at(0), false);
        let had = Lease {
            bytes: 100 << 20,
            spent: 40 << 20,
            ..Lease::default()
        };
        assert!(spent.lease(&ask, [had; 2]));
        assert_eq!(spent.bytes(at(0)), 40 << 20);
        spent.seed([45 << 20, 45 << 20], at(0));
        assert_eq!(spent.bytes(at(0)), 55 << 20, "the 10 of this run, and 45");
        assert!(spent.has_rest());
        spent.ask(quota, at(0), true);
        assert!(!spent.has_rest(), "nobody has answered");
        assert_eq!(spent.spend(quota, 16 << 20, at(0)), Ok(false), "the slack");
        assert_eq!(spent.spend(quota, 1, at(0)), Err(LEASE_SOON));
    }

    #[test]
    fn what_is_nearest_to_its_end_is_told_first() {
        let mut spent = Spent::default();
        spent.seed([96, 149], at(0));
        let left = spent.tell(BOTH, at(0)).unwrap();
        assert_eq!((left.left, left.period), (1, Period::Month));
        assert_eq!(spent.known(BOTH, at(0)), Some(left));
        assert_eq!(spent.tell(BOTH, at(0)), None);
    }

    proptest! {
        /// However it is spent, no more than a quota and its last piece passes in a period.
        #[test]
        fn a_period_never_carries_more(
            spends in prop::collection::vec((0..2 * DAY, 1u64..60), 1..100),
        ) {
            let (mut spent, mut now) = (Spent::default(), 0);
            let mut passed = std::collections::HashMap::<_, u64>::new();
            for (pause, bytes) in spends {
                now += pause;
                let before = spent.bytes(at(now));
                if spent.spend(BOTH, bytes, at(now)).is_ok() {
                    prop_assert!(before < 150);
                    for period in Period::ALL {
                        let key = (period == Period::Day, period.at(at(now)).0);
                        *passed.entry(key).or_default() += bytes;
                    }
                }
            }
            for ((is_day, _), bytes) in passed {
                let all = if is_day { 100 } else { 150 };
                prop_assert!(bytes < 60 + all);
            }
        }
    }
}
