//! Shows whether the relay's loop still runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A loop that has not come round for this long hangs. It comes round every second, and no load
/// delays it for as long.
const STILL: Duration = Duration::from_secs(10);

/// The heart of a relay. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Heart(Arc<Mutex<Instant>>);

impl Heart {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// The loop has come round.
    pub(crate) fn beat(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether the loop still runs.
    pub(crate) fn beats(&self, now: Instant) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(last) < STILL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_noticed() {
        let begun = Instant::now();
        let heart = Heart::new(begun);
        assert!(heart.beats(begun + STILL / 2));
        assert!(!heart.clone().beats(begun + STILL));
        heart.beat(begun + STILL);
        assert!(heart.beats(begun + STILL));
    }
}
