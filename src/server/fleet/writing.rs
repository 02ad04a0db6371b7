//! What a server writes into the buckets of peers and rooms.

use std::time::Instant;

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time;

use super::{
    FIRST_PAUSE, Fleet, LAST_PAUSE, LOST,
    keys::{Bucket, Key, Write},
    nats::{Buckets, Fault},
    shared::UNKNOWN,
};
use crate::core::{backoff::Backoff, fleet::BEAT};

/// How many keys are written at once.
const WRITES: usize = 64;
/// How many keys are asked for until there is one that nobody else has written since.
const PROBES: usize = 8;

/// When new writes begin. After a failure, there may be no leader for a moment.
struct Pace {
    pauses: Backoff,
    until: Option<time::Instant>,
}

impl Pace {
    fn new() -> Self {
        Self {
            pauses: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            until: None,
        }
    }

    /// Counts a failure. Those that come in a pause are of the same burst, and make it no longer.
    fn fail(&mut self, now: time::Instant, random: f64) {
        if self.until.is_none() {
            self.until = Some(now + self.pauses.fail(random));
        }
    }

    /// Waits for the end of the pause, if there is one.
    async fn over(until: Option<time::Instant>) {
        match until {
            Some(until) => time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

impl Fleet {
    /// Writes what has changed.
    pub(super) async fn write(&self, buckets: &Buckets) -> Fault {
        let shared = &self.0.shared;
        let mut pace = Pace::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            while pace.until.is_none()
                && under_way.len() < WRITES
                && let Some((key, write)) = shared.next(Instant::now())
            {
                under_way.push(self.write_one(buckets, key, write));
            }
            self.0.metrics.waiting(shared.waiting());
            tokio::select! {
                () = shared.due.notified() => {}
                () = Pace::over(pace.until) => pace.until = None,
                Some(result) = under_way.next() => match result {
                    Ok(()) => pace.pauses.reset(),
                    Err(fault) => {
                        tracing::debug!(reason = %fault, "not written to the fleet");
                        self.0.metrics.written("failed");
                        pace.fail(time::Instant::now(), rand::random());
                    }
                },
            }
        }
    }

    async fn write_one(&self, buckets: &Buckets, key: Key, write: Write) -> Result<(), Fault> {
        let shared = &self.0.shared;
        let done = match &write {
            Write::Put(value, revision) => buckets.put(&key, value.clone(), *revision).await,
            Write::Delete(revision) => buckets.delete(&key, *revision).await.map(|()| 0),
        };
        let failed = |_: &Fault| shared.failed(&key);
        match done {
            Ok(revision) => {
                shared.written(&key, &write, revision);
                self.0.metrics.written("written");
                Ok(())
            }
            Err(Fault::Differs) => {
                let found = buckets.newest(&key).await.inspect_err(failed)?;
                let differs = shared.differs(&key, found.as_ref(), Instant::now());
                self.0.metrics.written("compared");
                self.judge(differs);
                Ok(())
            }
            Err(fault) => {
                failed(&fault);
                Err(fault)
            }
        }
    }

    /// Writes again what the buckets lose, for as long as NATS answers.
    pub(super) async fn keep_whole(&self, buckets: &Buckets) -> Fault {
        let mut beat = time::interval_at(time::Instant::now() + BEAT, BEAT);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut failed = None::<Instant>;
        loop {
            beat.tick().await;
            match self.check(buckets).await {
                Ok(()) => failed = None,
                Err(fault) => {
                    tracing::debug!(reason = %fault, "the fleet does not say what it has");
                    if failed.get_or_insert_with(Instant::now).elapsed() >= LOST {
                        return fault;
                    }
                }
            }
        }
    }

    /// Has everything written again that a bucket may have lost.
    pub(super) async fn check(&self, buckets: &Buckets) -> Result<(), Fault> {
        for which in [Bucket::Rooms, Bucket::Peers] {
            if self.has_lost(buckets, which).await? {
                tracing::info!(bucket = which.name(), "the fleet has lost what it was told");
                self.0.shared.rewrite(which);
            }
        }
        Ok(())
    }

    /// Whether a bucket may have lost what this server has written. It keeps the order of all changes, so it
    /// has everything if it has the last one.
    async fn has_lost(&self, buckets: &Buckets, which: Bucket) -> Result<bool, Fault> {
        let shared = &self.0.shared;
        let mut below = UNKNOWN;
        for _ in 0..PROBES {
            let Some((key, revision)) = shared.last(which, below) else {
                break;
            };
            match buckets.newest(&key).await? {
                Some(found) if found.revision == revision => break,
                // Somebody else has written it since, which says nothing of the other keys.
                Some(found) if found.revision > revision => {
                    if found.value.is_some() {
                        self.judge(shared.heard(&key, &found, Instant::now()));
                    }
                    below = revision;
                }
                // It may have been written or given up while NATS was asked.
                _ => return Ok(shared.relies_on(&key, revision, Instant::now())),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_together_makes_one_pause() {
        let mut pace = Pace::new();
        let now = time::Instant::now();
        for _ in 0..WRITES {
            pace.fail(now, 0.5);
        }
        assert_eq!(pace.until, Some(now + FIRST_PAUSE));
        pace.until = None;
        pace.fail(now, 0.5);
        assert_eq!(pace.until, Some(now + 2 * FIRST_PAUSE));
    }
}
