//! What the holder of a token may have carried: so many bytes in a day or a month, and so many in a
//! second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::amount::Quota;
use crate::core::access::Denial;

/// The most meters that are kept. Each is smaller than 300 bytes.
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

/// Counts what is carried for one token. It is shared by all circuits of the token's holders.
#[derive(Debug)]
pub(crate) struct Meter(Mutex<State>);

#[derive(Debug)]
struct State {
    limits: Limits,
    /// The number of the period that `used` belongs to.
    period: u64,
    used: u64,
    /// When everything that was carried so far is paid for at the rate.
    paid: Option<Instant>,
}

impl Meter {
    fn new(limits: Limits) -> Self {
        Self(Mutex::new(State {
            limits,
            period: 0,
            used: 0,
            paid: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.state().spend(0, time)
    }

    fn carry_at(&self, bytes: u64, time: SystemTime, now: Instant) -> Result<Duration, Denial> {
        let mut state = self.state();
        state.spend(bytes, time)?;
        Ok(state.pay(bytes, now))
    }

    /// Whether a datagram may be carried, which cannot wait. Counts it if so.
    pub(crate) fn passes(&self, bytes: u64) -> bool {
        self.passes_at(bytes, SystemTime::now(), Instant::now())
    }

    fn passes_at(&self, bytes: u64, time: SystemTime, now: Instant) -> bool {
        let mut state = self.state();
        let owes = state.paid.is_some_and(|paid| paid > now);
        if owes || state.spend(bytes, time).is_err() {
            return false;
        }
        state.pay(bytes, now);
        true
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

    fn spend(&mut self, bytes: u64, time: SystemTime) -> Result<(), Denial> {
        let Some(quota) = self.limits.quota else {
            return Ok(());
        };
        let (period, ends) = quota.period.at(time);
        if period != self.period {
            (self.period, self.used) = (period, 0);
        }
        if self.used >= quota.bytes {
            return Err(Denial::Quota(ends));
        }
        self.used = self.used.saturating_add(bytes);
        Ok(())
    }
}

/// The meters by the names of their holders. They begin anew when the server does.
#[derive(Debug, Default)]
pub(crate) struct Meters(HashMap<String, Arc<Meter>>);

impl Meters {
    /// Returns the meter of `holder`, with these limits from now on.
    ///
    /// # Errors
    /// [`Denial::Limit`] if too many holders are connected.
    pub(super) fn of(
        &mut self,
        holder: &str,
        limits: Limits,
        time: SystemTime,
    ) -> Result<Arc<Meter>, Denial> {
        if let Some(meter) = self.0.get(holder) {
            meter.state().limits = limits;
            return Ok(meter.clone());
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, meter| is_needed(meter, time));
        }
        if self.0.len() >= MOST {
            // Strangers that are granted a little each must not keep everybody else out.
            let unused = self
                .0
                .iter()
                .filter(|(_, meter)| Arc::strong_count(meter) == 1);
            let least = unused.min_by_key(|(_, meter)| meter.state().used);
            let least = least.map(|(holder, _)| holder.clone());
            self.0.remove(&least.ok_or(Denial::Limit)?);
        }
        let meter = Arc::new(Meter::new(limits));
        self.0.insert(holder.to_owned(), meter.clone());
        Ok(meter)
    }
}

/// Whether somebody uses the meter, or has used something in the present period.
fn is_needed(meter: &Arc<Meter>, time: SystemTime) -> bool {
    let state = meter.state();
    let quota = state.limits.quota;
    let counts = quota.is_some_and(|quota| quota.period.at(time).0 == state.period);
    Arc::strong_count(meter) > 1 || counts && state.used > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::access::amount::Period;

    const DAY: u64 = 24 * 60 * 60;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn daily(bytes: u64) -> Limits {
        let period = Period::Day;
        Limits {
            quota: Some(Quota { bytes, period }),
            rate: None,
        }
    }

    #[test]
    fn a_quota_ends_and_begins_anew() {
        let meter = Meter::new(daily(10));
        let now = Instant::now();
        assert_eq!(meter.carry_at(9, at(0), now), Ok(Duration::ZERO));
        assert_eq!(meter.check(at(5)), Ok(()));
        assert_eq!(
            meter.carry_at(100, at(5), now),
            Ok(Duration::ZERO),
            "the last"
        );
        let over = Denial::Quota(Duration::from_secs(DAY - 6));
        assert_eq!(meter.check(at(6)), Err(over));
        assert_eq!(meter.carry_at(1, at(6), now), Err(over));
        assert_eq!(meter.check(at(DAY)), Ok(()));
    }

    #[test]
    fn a_rate_makes_bytes_wait() {
        let limits = Limits {
            quota: None,
            rate: Some(1000),
        };
        let (meter, now) = (Meter::new(limits), Instant::now() + Duration::from_secs(9));
        let carry = |bytes, now| meter.carry_at(bytes, at(0), now).unwrap().as_millis();
        assert_eq!(carry(250, now), 0, "the burst");
        assert_eq!(carry(500, now), 0);
        assert_eq!(carry(100, now), 500);
        assert_eq!(carry(1, now + Duration::from_millis(600)), 0);
        let later = now + Duration::from_secs(60);
        assert_eq!(carry(1000, later), 0, "no more than the burst is saved");
        assert_eq!(carry(1, later), 750);
    }

    #[test]
    fn datagrams_pass_or_do_not() {
        let limits = Limits {
            rate: Some(1000),
            ..daily(700)
        };
        let (meter, now) = (Meter::new(limits), Instant::now() + Duration::from_secs(9));
        let passes = |time, now| meter.passes_at(350, at(time), now);
        assert!(passes(0, now), "the burst and a little more");
        assert!(!passes(0, now + Duration::from_millis(99)));
        assert!(passes(0, now + Duration::from_millis(100)));
        let later = now + Duration::from_secs(60);
        assert!(!passes(0, later), "the quota");
        assert!(passes(DAY, later));
    }

    #[test]
    fn holders_have_their_own_meters_and_unused_ones_make_room() {
        let mut meters = Meters::default();
        let used = meters.of("a", daily(1), at(0)).unwrap();
        used.carry_at(1, at(0), Instant::now()).unwrap();
        drop(used);
        for number in 1..MOST {
            meters.of(&number.to_string(), daily(1), at(0)).unwrap();
        }
        let held = meters.of("one more", daily(1), at(0)).unwrap();
        assert_eq!(meters.0.len(), 2, "the used one and the new one");
        assert!(held.check(at(0)).is_ok());
        let used = meters.of("a", daily(2), at(0)).unwrap();
        assert_eq!(used.check(at(0)), Ok(()), "the quota has grown");
        assert!(
            meters
                .of("b", daily(1), at(0))
                .unwrap()
                .check(at(0))
                .is_ok()
        );
    }
}
