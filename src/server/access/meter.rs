//! What may be carried for the holders of a token, or for a peer: so many bytes in a day or a month,
//! and so many in a second.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::{
    core::{
        access::Denial,
        allowance::{Left, Quota, Spent},
    },
    server::usage::Calendar,
};

/// The most meters that are kept. Each is smaller than 400 bytes.
const MOST: usize = 65_536;
/// How many of them are found at a time that may be forgotten.
const SPARE: usize = MOST / 8;
/// The pause between two looks at all meters. While nothing may be forgotten, newcomers have no room.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much of its rate a meter saves up while nothing is carried.
const BURST: Duration = Duration::from_millis(250);

/// The limits of one meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) quota: Option<Quota>,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
}

/// Whom a meter is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    /// The holders of the tokens with this name, or those to whom the hook gave it.
    Name(String),
    /// A peer to which the hook gave no name.
    Admitted(String),
    /// A peer, for what the settings grant to each.
    Peer(String),
}

impl Payer {
    /// Whether it has a name, and the name or the peer id, as the record of usage knows it.
    fn recorded(&self) -> (bool, &str) {
        match self {
            Self::Name(name) => (true, name),
            Self::Admitted(peer) | Self::Peer(peer) => (false, peer),
        }
    }
}

/// Counts what is carried for one payer. All circuits and allocations of the payer share it.
#[derive(Debug)]
pub(crate) struct Meter {
    state: Mutex<State>,
    common: Arc<Common>,
}

/// What all meters have in common.
#[derive(Debug, Default)]
struct Common {
    calendar: Calendar,
    /// Is set if somebody has to be told what is left.
    due: AtomicBool,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    spent: Spent,
    /// When everything that was carried so far is paid for at the rate.
    paid: Option<Instant>,
}

impl Meter {
    fn new(limits: Limits, common: Arc<Common>) -> Self {
        let state = State {
            limits,
            spent: Spent::default(),
            paid: None,
        };
        Self {
            state: Mutex::new(state),
            common,
        }
    }

    /// A meter of one circuit or one allocation, which knows a rate only.
    pub(crate) fn of_rate(rate: u64) -> Option<Arc<Self>> {
        let limits = Limits {
            quota: None,
            rate: Some(rate),
        };
        (rate > 0).then(|| Arc::new(Self::new(limits, Arc::default())))
    }

    /// A meter of nobody in particular.
    #[cfg(test)]
    pub(crate) fn limited(limits: Limits) -> Arc<Self> {
        Arc::new(Self::new(limits, Arc::default()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` that are about to be carried. Returns how long they have to wait.
    ///
    /// # Errors
    /// [`Denial::Quota`] if the quota is used up. The bytes that use up the last of it pass.
    pub(crate) fn carry(&self, bytes: u64) -> Result<Duration, Denial> {
        self.carry_at(bytes, SystemTime::now(), Instant::now())
    }

    /// Whether something may still be carried.
    ///
    /// # Errors
    /// [`Denial::Quota`], with the time until the quota begins anew.
    pub(crate) fn check(&self, time: SystemTime) -> Result<(), Denial> {
        self.spend(&mut self.state(), 0, time)
    }

    fn carry_at(&self, bytes: u64, time: SystemTime, now: Instant) -> Result<Duration, Denial> {
        let mut state = self.state();
        self.spend(&mut state, bytes, time)?;
        Ok(state.pay(bytes, now))
    }

    /// Whether a datagram may be carried, which cannot wait. It is not counted.
    pub(crate) fn allows(&self) -> bool {
        self.allows_at(SystemTime::now(), Instant::now())
    }

    fn allows_at(&self, time: SystemTime, now: Instant) -> bool {
        let mut state = self.state();
        let owes = state.paid.is_some_and(|paid| paid > now);
        !owes && self.spend(&mut state, 0, time).is_ok()
    }

    fn spend(&self, state: &mut State, bytes: u64, time: SystemTime) -> Result<(), Denial> {
        let Some(quota) = state.limits.quota else {
            return Ok(());
        };
        let moment = self.common.calendar.at(time);
        let spent = state.spent.spend(quota, bytes, moment.now);
        if spent.map_err(|ends| Denial::Quota(ends + moment.behind))? {
            self.common.due.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl State {
    /// Counts bytes at the rate, if there is one. Returns how long they have to wait.
    fn pay(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.limits.rate.filter(|rate| *rate > 0) else {
            return Duration::ZERO;
        };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid = self.paid.map_or(earliest, |paid| paid.max(earliest));
        self.paid = paid.checked_add(cost);
        paid.saturating_duration_since(now)
    }
}

/// What was carried before the server started.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// The sums of a day and of its month, by what [`Payer::recorded`] returns.
    pub(crate) sums: HashMap<(bool, String), [u64; 2]>,
    /// A time of that day, since 1970.
    pub(crate) then: Duration,
}

/// The meters by their payers.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    all: HashMap<Payer, Arc<Meter>>,
    /// What was carried before, for payers that have not come yet.
    before: Before,
    common: Arc<Common>,
    /// Those that were needed least when all were looked at, the least at the end.
    spare: Vec<Payer>,
    /// When all were looked at.
    looked: Option<Instant>,
}

impl Meters {
    /// The meters of a server with this calendar.
    pub(super) fn new(calendar: Calendar) -> Self {
        let common = Common {
            calendar,
            ..Common::default()
        };
        Self {
            common: Arc::new(common),
            ..Self::default()
        }
    }

    /// Returns the meter of `payer`, with these limits from now on.
    ///
    /// # Errors
    /// [`Denial::Limit`] if too many payers are connected.
    pub(super) fn of(
        &mut self,
        payer: Payer,
        limits: Limits,
        (time, now): (SystemTime, Instant),
    ) -> Result<Arc<Meter>, Denial> {
        if let Some(meter) = self.all.get(&payer) {
            meter.state().limits = limits;
            return Ok(meter.clone());
        }
        if self.all.len() >= MOST {
            self.make_room(time, now)?;
        }
        let meter = Arc::new(Meter::new(limits, self.common.clone()));
        self.seed(&payer, &meter);
        self.all.insert(payer, meter.clone());
        Ok(meter)
    }

    /// Forgets the meter of which the least was used, so that strangers that are granted a little each
    /// do not keep everybody else out. All are looked at once for many that come, and no more often than
    /// once a second.
    fn make_room(&mut self, time: SystemTime, now: Instant) -> Result<(), Denial> {
        loop {
            while let Some(payer) = self.spare.pop() {
                // It may be used by now, or be gone.
                if self.all.get(&payer).is_some_and(is_unused) {
                    self.all.remove(&payer);
                    return Ok(());
                }
            }
            let is_early = |looked| now.saturating_duration_since(looked) < LOOK_EVERY;
            if self.looked.is_some_and(is_early) {
                return Err(Denial::Limit);
            }
            self.looked = Some(now);
            self.look(time);
            if self.all.len() < MOST {
                return Ok(());
            }
            if self.spare.is_empty() {
                return Err(Denial::Limit);
            }
        }
    }

    /// Forgets the meters that nobody needs, and notes those of which the least was used.
    fn look(&mut self, time: SystemTime) {
        let now = self.common.calendar.at(time).now;
        let used = |meter: &Arc<Meter>| {
            let state = meter.state();
            match state.limits.quota {
                Some(_) => state.spent.bytes(now),
                None => 0,
            }
        };
        self.all
            .retain(|_, meter| !is_unused(meter) || used(meter) > 0);
        if self.all.len() < MOST {
            return;
        }
        let unused = self.all.iter().filter(|(_, meter)| is_unused(meter));
        let mut unused: Vec<_> = unused.map(|(payer, meter)| (used(meter), payer)).collect();
        unused.sort_unstable_by_key(|(bytes, _)| *bytes);
        unused.truncate(SPARE);
        let spare = unused.into_iter().rev().map(|(_, payer)| payer.clone());
        self.spare = spare.collect();
    }

    /// Takes over what was carried before the server started.
    pub(super) fn follow(&mut self, before: Before) {
        self.before = before;
        for (payer, meter) in &self.all {
            self.seed(payer, meter);
        }
    }

    fn seed(&self, payer: &Payer, meter: &Meter) {
        let Before { sums, then } = &self.before;
        let (has_name, id) = payer.recorded();
        if let Some(carried) = sums.get(&(has_name, id.to_owned())) {
            let mut state = meter.state();
            state.spent.seed(*carried, *then);
            if state.limits.quota.is_some() {
                self.common.due.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Returns each payer that is to be told what is left of its quota, and what that is.
    pub(super) fn due(&self, time: SystemTime) -> Vec<(Payer, Left)> {
        if !self.common.due.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let moment = self.common.calendar.at(time);
        let told = |(payer, meter): (&Payer, &Arc<Meter>)| {
            let mut state = meter.state();
            let quota = state.limits.quota?;
            let mut left = state.spent.tell(quota, moment.now)?;
            left.ends += moment.behind;
            Some((payer.clone(), left))
        };
        self.all.iter().filter_map(told).collect()
    }

    /// Returns what is left, if the holders that were there have been told.
    pub(super) fn known(&self, payers: &HashSet<Payer>, time: SystemTime) -> Option<Left> {
        let moment = self.common.calendar.at(time);
        let known = payers.iter().filter_map(|payer| {
            let state = self.all.get(payer)?.state();
            let mut left = state.spent.known(state.limits.quota?, moment.now)?;
            left.ends += moment.behind;
            Some(left)
        });
        known.min_by_key(|left| left.left)
    }
}

/// Whether nobody holds the meter at the moment.
fn is_unused(meter: &Arc<Meter>) -> bool {
    Arc::strong_count(meter) == 1
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::core::allowance::DAY;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn daily(bytes: u64) -> Limits {
        let quota = Quota {
            day: Some(bytes),
            month: None,
        };
        Limits {
            quota: Some(quota),
            rate: None,
        }
    }

    fn meter(limits: Limits) -> Meter {
        Meter::new(limits, Arc::default())
    }

    fn of(
        meters: &mut Meters,
        payer: Payer,
        limits: Limits,
        time: SystemTime,
    ) -> Result<Arc<Meter>, Denial> {
        meters.of(payer, limits, (time, Instant::now()))
    }

    fn name(name: impl ToString) -> Payer {
        Payer::Name(name.to_string())
    }

    #[test]
    fn a_quota_is_used_up_and_begins_anew() {
        let (meter, now) = (meter(daily(100)), Instant::now());
        assert_eq!(meter.carry_at(9, at(0), now), Ok(Duration::ZERO));
        assert_eq!(meter.check(at(5)), Ok(()));
        let last = meter.carry_at(100, at(5), now);
        assert_eq!(last, Ok(Duration::ZERO), "the last");
        let over = Denial::Quota(Duration::from_secs(DAY - 6));
        assert_eq!(meter.check(at(6)), Err(over));
        assert_eq!(meter.carry_at(1, at(6), now), Err(over));
        assert!(!meter.allows_at(at(6), now));
        assert_eq!(meter.check(at(DAY)), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_quota_twice() {
        let mut meters = Meters::default();
        let meter = of(&mut meters, name("a"), daily(100), at(DAY)).unwrap();
        let now = Instant::now();
        meter.carry_at(100, at(DAY + 5), now).unwrap();
        let left = |seconds| Err(Denial::Quota(Duration::from_secs(seconds)));
        assert_eq!(meter.check(at(DAY - 10)), left(DAY + 10));
        assert_eq!(meter.check(at(DAY + 6)), left(DAY - 6));
        assert_eq!(meter.check(at(2 * DAY)), Ok(()), "the next day");
        meter.carry_at(100, at(9 * DAY), now).unwrap();
        for day in 1..10 {
            assert!(meter.check(at(day * DAY)).is_err(), "{day}");
        }
        // Somebody who comes then is on the same day.
        let other = of(&mut meters, name("b"), daily(100), at(DAY)).unwrap();
        other.carry_at(100, at(DAY), now).unwrap();
        assert!(other.check(at(9 * DAY)).is_err());
        let told = meters.due(at(DAY));
        assert_eq!(told.len(), 2);
        let ends = told.iter().map(|(_, left)| left.ends.as_secs());
        assert!(ends.into_iter().all(|ends| ends == 9 * DAY));
    }

    #[test]
    fn a_rate_makes_bytes_wait_and_datagrams_pass_or_not() {
        let meter = Meter::of_rate(1000).unwrap();
        let now = Instant::now() + Duration::from_secs(9);
        let carry = |bytes, now| meter.carry_at(bytes, at(0), now).unwrap().as_millis();
        assert_eq!(carry(250, now), 0, "the burst");
        assert_eq!(carry(500, now), 0);
        assert!(!meter.allows_at(at(0), now + Duration::from_millis(499)));
        assert!(meter.allows_at(at(0), now + Duration::from_millis(500)));
        assert_eq!(carry(100, now), 500);
        assert_eq!(carry(1, now + Duration::from_millis(600)), 0);
        let later = now + Duration::from_secs(60);
        assert_eq!(carry(1000, later), 0, "no more than the burst is saved");
        assert_eq!(carry(1, later), 750);
        assert!(Meter::of_rate(0).is_none());
    }

    #[test]
    fn payers_have_their_own_meters_and_unused_ones_make_room() {
        let mut meters = Meters::default();
        let used = of(&mut meters, name("a"), daily(1), at(0)).unwrap();
        used.carry_at(1, at(0), Instant::now()).unwrap();
        drop(used);
        for number in 1..MOST {
            of(&mut meters, name(number), daily(1), at(0)).unwrap();
        }
        let held = of(&mut meters, name("one more"), daily(1), at(0)).unwrap();
        assert_eq!(meters.all.len(), 2, "the used one and the new one");
        assert!(held.check(at(0)).is_ok());
        let used = of(&mut meters, name("a"), daily(2), at(0)).unwrap();
        assert_eq!(used.check(at(0)), Ok(()), "the quota has grown");
        let other = of(&mut meters, Payer::Peer("a".into()), daily(1), at(0)).unwrap();
        assert!(other.check(at(0)).is_ok(), "a peer is no name");
    }

    /// Each has used a little, so the first look finds none that is not needed.
    #[test]
    fn many_newcomers_make_all_meters_be_looked_at_once() {
        let (mut meters, now) = (Meters::default(), Instant::now());
        let come = |meters: &mut Meters, number: usize, now| {
            let meter = meters.of(name(number), daily(1000), (at(0), now))?;
            meter.carry_at(1 + number as u64 % 900, at(0), now)?;
            Ok::<_, Denial>(meter)
        };
        for number in 0..MOST {
            come(&mut meters, number, now).unwrap();
        }
        let arrival = |number: usize| now + Duration::from_micros(number as u64);
        for number in MOST..MOST + SPARE {
            come(&mut meters, number, arrival(number)).unwrap();
            assert_eq!(meters.looked, Some(arrival(MOST)));
        }
        assert_eq!(meters.all.len(), MOST);
        assert!(!meters.all.contains_key(&name(0)), "it used the least");
        assert!(meters.all.contains_key(&name(899)), "it used the most");
        let denied = come(&mut meters, MOST + SPARE, now + LOOK_EVERY).unwrap_err();
        assert_eq!(denied, Denial::Limit);
        come(&mut meters, MOST + SPARE, now + 2 * LOOK_EVERY).unwrap();
        assert_eq!(meters.spare.len(), SPARE - 1);
    }

    #[test]
    fn what_was_carried_before_a_restart_counts() {
        let mut meters = Meters::default();
        let early = of(&mut meters, name("a"), daily(100), at(0)).unwrap();
        early.carry_at(10, at(0), Instant::now()).unwrap();
        let sums = [
            ((true, "a".into()), [85, 85]),
            ((false, "b".into()), [100, 100]),
        ];
        meters.follow(Before {
            sums: sums.into(),
            then: Duration::ZERO,
        });
        let told = meters.due(at(0));
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0].0, told[0].1.left), (&name("a"), 5));
        assert!(meters.due(at(0)).is_empty(), "it was told");
        let payers = HashSet::from([name("a")]);
        let known = meters.known(&payers, at(0));
        assert_eq!(known.map(|left| left.left), Some(5));
        let late = of(&mut meters, Payer::Peer("b".into()), daily(100), at(1));
        assert!(late.unwrap().check(at(1)).is_err());
        let other = of(&mut meters, name("b"), daily(100), at(1)).unwrap();
        assert!(other.check(at(1)).is_ok(), "a name is no peer");
        let admitted = Payer::Admitted("b".into());
        let next_day = of(&mut meters, admitted, daily(100), at(DAY)).unwrap();
        assert!(next_day.check(at(DAY)).is_ok(), "that was yesterday");
    }
}
