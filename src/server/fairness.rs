//! The rate of everything that the server carries, divided fairly between those it is carried for.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::usage::Account;
use crate::core::fair::Shares;

/// Divides the rate. Clones share it.
#[derive(Clone)]
pub(crate) struct Fairness(Arc<Inner>);

struct Inner {
    /// Bytes per second, or 0 for no limit.
    rate: AtomicU64,
    begun: Instant,
    shares: Mutex<Shares<Arc<str>>>,
}

impl Fairness {
    /// Makes one that divides `rate` bytes a second, or has no limit if that is 0.
    pub(crate) fn new(rate: u64) -> Self {
        Self(Arc::new(Inner {
            rate: AtomicU64::new(rate),
            begun: Instant::now(),
            shares: Mutex::default(),
        }))
    }

    /// Divides another rate from now on.
    pub(crate) fn set(&self, rate: u64) {
        self.0.rate.store(rate, Ordering::Relaxed);
    }

    /// Returns the flow of what is carried for `account`. Holders of tokens with one name have one
    /// share together, and any other peer has one of its own.
    pub(crate) fn flow(&self, account: &Account, weight: u32) -> Flow {
        let holder = match account.token.as_str() {
            "" => account.peer.clone(),
            // No peer id has a space.
            name => format!("token {name}"),
        };
        Flow {
            fairness: self.clone(),
            holder: holder.into(),
            weight,
        }
    }
}

/// What is carried for one holder. Clones share it.
#[derive(Clone)]
pub(crate) struct Flow {
    fairness: Fairness,
    holder: Arc<str>,
    weight: u32,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").finish_non_exhaustive()
    }
}

impl Flow {
    /// Returns the rate, if there is a limit. Without one, this is all that a piece of data costs.
    fn rate(&self) -> Option<u64> {
        let rate = self.fairness.0.rate.load(Ordering::Relaxed);
        (rate > 0).then_some(rate)
    }

    fn shares(&self) -> (MutexGuard<'_, Shares<Arc<str>>>, Duration) {
        let Inner { shares, begun, .. } = &*self.fairness.0;
        let shares = shares.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock is read under the lock, so that it never goes back.
        (shares, begun.elapsed())
    }

    /// Counts `bytes` that are about to be carried. Returns how long they have to wait.
    pub(crate) fn carry(&self, bytes: u64) -> Duration {
        let Some(rate) = self.rate() else {
            return Duration::ZERO;
        };
        let (mut shares, now) = self.shares();
        shares.carry(now, rate, (&self.holder, self.weight), bytes)
    }

    /// Whether a datagram may pass, which cannot wait. Counts it if so.
    pub(crate) fn passes(&self, bytes: u64) -> bool {
        let Some(rate) = self.rate() else {
            return true;
        };
        let (mut shares, now) = self.shares();
        shares.passes(now, rate, (&self.holder, self.weight), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_one_token_share_and_a_change_counts_at_once() {
        let fairness = Fairness::new(0);
        let account = |token: &str, peer: &str| Account {
            token: token.into(),
            peer: peer.into(),
        };
        let flow = |token, peer| fairness.flow(&account(token, peer), 4);
        let (one, two, other) = (flow("t", "a"), flow("t", "b"), flow("", "t"));
        assert_eq!(one.carry(1 << 40), Duration::ZERO);
        fairness.set(1_000_000);
        assert_eq!(one.carry(1_000_000), Duration::ZERO, "it owes nothing yet");
        assert!(!two.passes(1));
        assert!(other.passes(1));
        assert!(two.carry(1) > Duration::from_millis(500));
        fairness.set(0);
        assert!(two.passes(1));
    }
}
