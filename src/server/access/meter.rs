//! What may be carried for the holders of a token, or for a peer: so many bytes in a day or a month,
//! and so many in a second.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Notify;

use crate::{
    core::{
        access::Denial,
        allowance::{Left, Quota, Spent},
        lease::{Ask, Lease},
    },
    server::usage::Calendar,
};

/// The most meters that are kept. Each is smaller than 600 bytes without the name.
const MOST: usize = 65_536;
/// How many of them are found at a time that may be forgotten.
const SPARE: usize = MOST / 8;
/// The pause between two looks at all meters. While nothing may be forgotten, newcomers have no room.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon a lease is asked for again while none comes.
const ASK_AGAIN: Duration = Duration::from_secs(2);
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
    /// For whom a lease is asked, if the quota is shared with other servers.
    payer: Option<Payer>,
    state: Mutex<State>,
    common: Arc<Common>,
}

/// What all meters have in common.
#[derive(Debug, Default)]
struct Common {
    calendar: Calendar,
    /// Is set if somebody has to be told what is left.
    due: AtomicBool,
    /// Those that need another lease, if quotas are shared with other servers.
    wants: OnceLock<Arc<Wants>>,
}

/// Those that need another lease.
#[derive(Debug, Default)]
pub(super) struct Wants {
    payers: Mutex<HashSet<Payer>>,
    is_wanted: Notify,
}

impl Wants {
    fn payers(&self) -> MutexGuard<'_, HashSet<Payer>> {
        self.payers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, payer: &Payer) {
        if self.payers().insert(payer.clone()) {
            self.is_wanted.notify_one();
        }
    }

    /// Waits until somebody needs a lease, and returns all who do.
    ///
    /// Dropping the future loses none.
    pub(super) async fn next(&self) -> HashSet<Payer> {
        loop {
            let payers = std::mem::take(&mut *self.payers());
            if !payers.is_empty() {
                return payers;
            }
            self.is_wanted.notified().await;
        }
    }
}

#[derive(Debug)]
struct State {
    limits: Limits,
    spent: Spent,
    /// When everything that was carried so far is paid for at the rate.
    paid: Option<Instant>,
    /// When another lease was asked for that has not come.
    asked: Option<Duration>,
    /// The bytes that were carried when it was looked whether anything is.
    looked: u64,
}

impl Meter {
    fn new(limits: Limits, payer: Option<Payer>, common: Arc<Common>) -> Self {
        let payer = payer.filter(|_| common.wants.get().is_some());
        let state = State {
            limits,
            spent: match payer {
                Some(_) => Spent::shared(),
                None => Spent::default(),
            },
            paid: None,
            asked: None,
            looked: 0,
        };
        Self {
            payer,
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
        (rate > 0).then(|| Arc::new(Self::new(limits, None, Arc::default())))
    }

    /// A meter of nobody in particular.
    #[cfg(test)]
    pub(crate) fn limited(limits: Limits) -> Arc<Self> {
        Arc::new(Self::new(limits, None, Arc::default()))
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
        if let Some(payer) = &self.payer {
            self.common.want_lease(payer, state, moment.now);
        }
        if spent.map_err(|ends| Denial::Quota(ends + moment.behind))? {
            self.common.due.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Common {
    /// Asks for another lease if it is time, and if none was asked for a moment ago.
    fn want_lease(&self, payer: &Payer, state: &mut State, now: Duration) {
        let is_wanted = state
            .limits
            .quota
            .is_some_and(|quota| state.spent.wants_lease(quota));
        let is_asked = |asked: Duration| now.abs_diff(asked) < ASK_AGAIN;
        if is_wanted
            && !state.asked.is_some_and(is_asked)
            && let Some(wants) = self.wants.get()
        {
            state.asked = Some(now);
            wants.want(payer);
        }
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
        let known = Some(payer.clone());
        let meter = Arc::new(Meter::new(limits, known, self.common.clone()));
        self.seed(&payer, &meter);
        self.all.insert(payer, meter.clone());
        Ok(meter)
    }

    /// Shares the quotas with other servers from now on. Returns those that need another lease.
    pub(super) fn share(&self) -> Arc<Wants> {
        self.common.wants.get_or_init(Arc::default).clone()
    }

    /// Returns the payers that have a rest to give back: those that have carried nothing since the last call, or
    /// `all`.
    pub(super) fn resting(&self, all: bool) -> Vec<Payer> {
        let rests = |(payer, meter): (&Payer, &Arc<Meter>)| {
            let mut state = meter.state();
            let carried = state.spent.carried();
            let rests = std::mem::replace(&mut state.looked, carried) == carried || all;
            (rests && state.spent.has_rest()).then(|| payer.clone())
        };
        self.all.iter().filter_map(rests).collect()
    }

    /// Returns what to ask for, if `payer` still has a quota.
    pub(super) fn ask(&self, payer: &Payer, rests: bool, time: SystemTime) -> Option<Ask> {
        let now = self.common.calendar.at(time).now;
        let mut state = self.all.get(payer)?.state();
        let quota = state.limits.quota?;
        Some(state.spent.ask(quota, now, rests))
    }

    /// Notes what was given for `ask`.
    pub(super) fn given(&self, payer: &Payer, ask: &Ask, given: [Lease; 2]) {
        let Some(meter) = self.all.get(payer) else {
            return;
        };
        let mut state = meter.state();
        if state.spent.lease(ask, given) {
            state.asked = None;
        }
        // What others have spent may have become so much that it has to be told.
        if state.spent.is_due(ask.quota) {
            self.common.due.store(true, Ordering::Relaxed);
        }
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
mod tests;
