//! What may be carried for the holders of a token, or for a peer: so many bytes in a day or a month,
//! and so many in a second.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::core::{
    access::Denial,
    allowance::{Left, Quota, Spent},
};

/// The most meters that are kept. Each is smaller than 400 bytes.
const MOST: usize = 65_536;
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
    /// Is set if somebody has to be told what is left.
    due: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    spent: Spent,
    /// When everything that was carried so far is paid for at the rate.
    paid: Option<Instant>,
}

impl Meter {
    fn new(limits: Limits, due: Arc<AtomicBool>) -> Self {
        let state = State {
            limits,
            spent: Spent::default(),
            paid: None,
        };
        Self {
            state: Mutex::new(state),
            due,
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
        let spent = state.spent.spend(quota, bytes, since_1970(time));
        if spent.map_err(Denial::Quota)? {
            self.due.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
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

/// What was carried before the server started, in the present day and month, by what
/// [`Payer::recorded`] returns.
pub(crate) type Before = HashMap<(bool, String), [u64; 2]>;

/// The meters by their payers.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    all: HashMap<Payer, Arc<Meter>>,
    /// What was carried before, for payers that have not come yet, and when that was read.
    before: Option<(Before, Duration)>,
    due: Arc<AtomicBool>,
}

impl Meters {
    /// Returns the meter of `payer`, with these limits from now on.
    ///
    /// # Errors
    /// [`Denial::Limit`] if too many payers are connected.
    pub(super) fn of(
        &mut self,
        payer: Payer,
        limits: Limits,
        time: SystemTime,
    ) -> Result<Arc<Meter>, Denial> {
        if let Some(meter) = self.all.get(&payer) {
            meter.state().limits = limits;
            return Ok(meter.clone());
        }
        if self.all.len() >= MOST {
            self.all.retain(|_, meter| is_needed(meter, time));
        }
        if self.all.len() >= MOST {
            // Strangers that are granted a little each must not keep everybody else out.
            let unused = self.all.iter();
            let unused = unused.filter(|(_, meter)| Arc::strong_count(meter) == 1);
            let now = since_1970(time);
            let least = unused.min_by_key(|(_, meter)| meter.state().spent.bytes(now));
            let least = least.map(|(payer, _)| payer.clone());
            self.all.remove(&least.ok_or(Denial::Limit)?);
        }
        let meter = Arc::new(Meter::new(limits, self.due.clone()));
        self.seed(&payer, &meter);
        self.all.insert(payer, meter.clone());
        Ok(meter)
    }

    /// Takes over what was carried before the server started.
    pub(super) fn follow(&mut self, before: Before, time: SystemTime) {
        self.before = Some((before, since_1970(time)));
        for (payer, meter) in &self.all {
            self.seed(payer, meter);
        }
    }

    fn seed(&self, payer: &Payer, meter: &Meter) {
        let Some((before, read)) = &self.before else {
            return;
        };
        let (has_name, id) = payer.recorded();
        if let Some(carried) = before.get(&(has_name, id.to_owned())) {
            let mut state = meter.state();
            state.spent.seed(*carried, *read);
            if state.limits.quota.is_some() {
                self.due.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Returns each payer that is to be told what is left of its quota, and what that is.
    pub(super) fn due(&self, time: SystemTime) -> Vec<(Payer, Left)> {
        if !self.due.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let told = |(payer, meter): (&Payer, &Arc<Meter>)| {
            let mut state = meter.state();
            let quota = state.limits.quota?;
            Some((payer.clone(), state.spent.tell(quota, since_1970(time))?))
        };
        self.all.iter().filter_map(told).collect()
    }

    /// Returns what is left, if the holders that were there have been told.
    pub(super) fn known(&self, payers: &HashSet<Payer>, time: SystemTime) -> Option<Left> {
        let known = payers.iter().filter_map(|payer| {
            let state = self.all.get(payer)?.state();
            state.spent.known(state.limits.quota?, since_1970(time))
        });
        known.min_by_key(|left| left.left)
    }
}

/// Whether somebody uses the meter, or has used something in the present period.
fn is_needed(meter: &Arc<Meter>, time: SystemTime) -> bool {
    let state = meter.state();
    let counts = state.limits.quota.is_some() && state.spent.bytes(since_1970(time)) > 0;
    Arc::strong_count(meter) > 1 || counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;

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
        let used = meters.of(name("a"), daily(1), at(0)).unwrap();
        used.carry_at(1, at(0), Instant::now()).unwrap();
        drop(used);
        for number in 1..MOST {
            meters.of(name(number), daily(1), at(0)).unwrap();
        }
        let held = meters.of(name("one more"), daily(1), at(0)).unwrap();
        assert_eq!(meters.all.len(), 2, "the used one and the new one");
        assert!(held.check(at(0)).is_ok());
        let used = meters.of(name("a"), daily(2), at(0)).unwrap();
        assert_eq!(used.check(at(0)), Ok(()), "the quota has grown");
        let other = meters.of(Payer::Peer("a".into()), daily(1), at(0)).unwrap();
        assert!(other.check(at(0)).is_ok(), "a peer is no name");
    }

    #[test]
    fn what_was_carried_before_a_restart_counts() {
        let mut meters = Meters::default();
        let early = meters.of(name("a"), daily(100), at(0)).unwrap();
        early.carry_at(10, at(0), Instant::now()).unwrap();
        let before = [
            ((true, "a".into()), [85, 85]),
            ((false, "b".into()), [100, 100]),
        ];
        meters.follow(before.into(), at(0));
        let told = meters.due(at(0));
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0].0, told[0].1.left), (&name("a"), 5));
        assert!(meters.due(at(0)).is_empty(), "it was told");
        let of = HashSet::from([name("a")]);
        let known = meters.known(&of, at(0));
        assert_eq!(known.map(|left| left.left), Some(5));
        let late = meters.of(Payer::Peer("b".into()), daily(100), at(1));
        assert!(late.unwrap().check(at(1)).is_err());
        let other = meters.of(name("b"), daily(100), at(1)).unwrap();
        assert!(other.check(at(1)).is_ok(), "a name is no peer");
        let admitted = Payer::Admitted("b".into());
        let next_day = meters.of(admitted, daily(100), at(DAY)).unwrap();
        assert!(next_day.check(at(DAY)).is_ok(), "that was yesterday");
    }
}
