//! The tokens that do not count any more: what a server's file names, all servers are told.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use data_encoding::HEXLOWER;
use tokio::{
    sync::Semaphore,
    time::{self, MissedTickBehavior},
};

use super::{
    keys::{Bucket, Found},
    metrics::FleetMetrics,
    nats::{self, Buckets, Changes, Fault},
};
use crate::{core::fleet::BEAT, server::access::Revoked};

/// How many tokens the others are told of at once. What comes back must not be too much to wait in a
/// subscription.
const TOLD: usize = 1024;
/// How often it is asked whether a change was missed. It is pushed once at most.
const CHECK: Duration = Duration::from_secs(60);

/// What the bucket has.
#[derive(Default)]
struct There {
    ids: HashSet<String>,
    /// Those of them that do not count here, because there are too many.
    refused: HashSet<String>,
    is_told: bool,
}

impl There {
    /// The bucket has this key, or has it no more.
    fn hear(&mut self, revoked: &Revoked, key: &str, is_there: bool) {
        let id = HEXLOWER.decode(key.as_bytes()).ok();
        let Some(id) = id.and_then(|id| String::from_utf8(id).ok()) else {
            return;
        };
        if !is_there {
            self.ids.remove(&id);
            self.refused.remove(&id);
            return;
        }
        if self.ids.len() as u64 >= Bucket::Revoked.most() {
            return;
        }
        if !revoked.name(&id) {
            self.refused.insert(id.clone());
            if !std::mem::replace(&mut self.is_told, true) {
                tracing::error!(
                    "the fleet has revoked more tokens than a server knows; the last ones count on here"
                );
            }
        }
        self.ids.insert(id);
    }

    /// Returns tokens of the file of which the others have to be told. If the bucket is full, it is not
    /// known which those are.
    fn missing(&self, revoked: &Revoked) -> Vec<String> {
        match self.ids.len() as u64 >= Bucket::Revoked.most() {
            true => Vec::new(),
            false => revoked.missing(&self.ids, TOLD),
        }
    }

    /// Forgets what it has, because it is read again.
    fn clear(&mut self) {
        self.ids.clear();
        self.refused.clear();
    }
}

/// Hears which tokens do not count any more, and tells the others of those in this server's file.
pub(super) async fn share(
    buckets: &Buckets,
    revoked: Option<Revoked>,
    metrics: &FleetMetrics,
) -> Fault {
    let Some(revoked) = revoked else {
        return std::future::pending().await;
    };
    let there = Mutex::new(There::default());
    let there = || there.lock().unwrap_or_else(PoisonError::into_inner);
    let hear = |key: &str, found: Found| {
        let mut there = there();
        there.hear(&revoked, key, found.value.is_some());
        metrics.refused(there.refused.len());
    };
    loop {
        there().clear();
        let mut changes = match begin(buckets, &hear).await {
            Ok(changes) => changes,
            Err(fault) => return fault,
        };
        let mut beat = time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = time::interval_at(time::Instant::now() + CHECK, CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !changes.has_missed() {
            tokio::select! {
                is_on = changes.next(&hear) => if !is_on {
                    return nats::lost();
                },
                _ = beat.tick() => {
                    let missing = there().missing(&revoked);
                    tell(buckets, missing).await;
                }
                _ = check.tick() => match buckets.last_of(Bucket::Revoked).await {
                    Ok(last) if last != changes.last() => break,
                    Ok(_) => {}
                    Err(fault) => tracing::debug!(reason = %fault, "it is not known what was revoked"),
                },
            }
        }
        tracing::debug!("the fleet is asked again which tokens are revoked");
    }
}

async fn begin(buckets: &Buckets, hear: &impl Fn(&str, Found)) -> Result<Changes, Fault> {
    let last = buckets.last_of(Bucket::Revoked).await?;
    let reads = Semaphore::new(1);
    let mut changes = buckets.begin(Bucket::Revoked, "*", &reads, hear).await?;
    changes.catch_up(last);
    Ok(changes)
}

async fn tell(buckets: &Buckets, missing: Vec<String>) {
    for id in missing {
        if let Err(fault) = buckets.revoke(&id).await {
            tracing::debug!(reason = %fault, "the fleet is not told that a token is revoked");
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_not_told_again_unless_somebody_deletes_it() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("revoked");
        std::fs::write(&file, "a\nlast\n").unwrap();
        let revoked = Revoked::new(Some(&file)).unwrap();
        let key = |id: &str| HEXLOWER.encode(id.as_bytes());
        let mut there = There::default();
        there.hear(&revoked, &key("a"), true);
        assert_eq!(there.missing(&revoked), ["last"]);
        there.hear(&revoked, &key("a"), false);
        assert_eq!(there.missing(&revoked).len(), 2);
        there.hear(&revoked, "noise", true);
        let mut n = 0_u32;
        while there.refused.is_empty() {
            there.hear(&revoked, &key(&n.to_string()), true);
            n += 1;
        }
        there.hear(&revoked, &key("a"), true);
        there.hear(&revoked, &key("last"), true);
        assert!(
            there.missing(&revoked).is_empty(),
            "although it is one too many"
        );
        assert!(there.refused.contains("last") && there.is_told);
        there.hear(&revoked, &key("last"), false);
        assert!(!there.refused.contains("last"));
        there.clear();
        assert_eq!(there.missing(&revoked).len(), 2);
    }
}
