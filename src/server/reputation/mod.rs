//! What is thought of peers: scores that are synced in the background, and what the server sees.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `source` | where scores come from: a trait, and a URL |
//! | `known` | the last scores, and how old they are |
//! | `kept` | the last scores in the data directory |

mod kept;
mod known;
mod source;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant, SystemTime},
};

use libp2p::PeerId;
use tokio::{
    task,
    time::{sleep, timeout},
};

pub use self::source::{ScoreSource, Scores};
use self::{kept::Kept, known::Known, source::HttpSource};
use super::{config::ServerConfig, metrics::Metrics, settings::Settings};
use crate::{
    core::{
        quota::network,
        reputation::{Offence, Points, Treatment, next_sync},
    },
    error::Error,
};

/// How long a source may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reputations that a server knows. Clones share them.
#[derive(Clone)]
pub(crate) struct Reputation(Arc<Inner>);

struct Inner {
    settings: Settings,
    metrics: Metrics,
    begun: Instant,
    known: RwLock<Known>,
    seen: Mutex<Seen>,
}

/// What the server has seen.
#[derive(Default)]
struct Seen {
    peers: Points<PeerId>,
    networks: Points<IpAddr>,
}

impl Reputation {
    pub(crate) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            settings: settings.clone(),
            metrics: metrics.clone(),
            begun: Instant::now(),
            known: RwLock::default(),
            seen: Mutex::default(),
        }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what somebody has done, as far as it is known who it was.
    pub(crate) fn note(&self, peer: Option<PeerId>, from: Option<IpAddr>, offence: Offence) {
        if !self.0.settings.now().reputation.observe {
            return;
        }
        let mut seen = self.seen();
        let now = self.0.begun.elapsed();
        if let Some(peer) = peer {
            seen.peers.note(&peer, offence, now);
        }
        if let Some(from) = from {
            seen.networks.note(&network(from), offence, now);
        }
    }

    /// Decides how `peer` is treated, which comes from `from` if that is known.
    pub(crate) fn treat(&self, peer: &PeerId, from: Option<IpAddr>) -> Treatment {
        let config = &self.0.settings.now().reputation;
        let known = self.known();
        if !config.observe && known.since.is_none() {
            return Treatment::Usual;
        }
        let score = known.peer(peer, Instant::now(), config.max_age());
        drop(known);
        let points = if config.observe {
            let seen = self.seen();
            let now = self.0.begun.elapsed();
            let of_network = from.map_or(0.0, |from| seen.networks.of(&network(from), now));
            seen.peers.of(peer, now).max(of_network)
        } else {
            0.0
        };
        let treatment = config.thresholds().treat(score, points);
        if treatment != Treatment::Usual {
            self.0.metrics.reputation(treatment.name());
        }
        treatment
    }

    /// Puts relays in the order of their scores, the best first. Relays that a peer would be refused
    /// for are left out, unless all are.
    pub(crate) fn order<T>(&self, relays: Vec<T>, id: impl Fn(&T) -> Option<PeerId>) -> Vec<T> {
        let config = &self.0.settings.now().reputation;
        let (known, now) = (self.known(), Instant::now());
        let score = |relay: &T| known.relay(&id(relay)?, now, config.max_age());
        let mut scored: Vec<_> = relays.into_iter().map(|one| (score(&one), one)).collect();
        scored.sort_by_key(|(score, _)| std::cmp::Reverse(score.unwrap_or(0)));
        let thresholds = config.thresholds();
        let good = |score: &Option<i32>| thresholds.treat(*score, 0.0) != Treatment::Refused;
        if scored.iter().any(|(score, _)| good(score)) {
            scored.retain(|(score, _)| good(score));
        }
        scored.into_iter().map(|(_, relay)| relay).collect()
    }

    /// Shows how old the scores are, or how long the source has given none.
    pub(crate) fn show_age(&self) {
        let (now, max_age) = (Instant::now(), self.0.settings.now().reputation.max_age());
        let known = self.known();
        let (age, told) = (known.age(now), known.is_told_old);
        let (counts, since) = (known.counts(now, max_age), known.since);
        drop(known);
        if let Some(shown) = age.or(since.map(|since| since.elapsed())) {
            self.0.metrics.reputation_age(shown);
            if age.is_some() && counts == told {
                self.known_mut().is_told_old = !counts;
                match counts {
                    true => tracing::warn!("the reputations are recent again"),
                    false => tracing::warn!("the reputations are too old, so they do not count"),
                }
            }
        }
    }

    /// Keeps the scores up to date, and in the data directory if there is one. It never returns.
    pub(crate) async fn keep(self, source: Arc<dyn ScoreSource>) {
        self.known_mut().since = Some(Instant::now());
        let kept = {
            let config = self.0.settings.now();
            let data = config.data.as_deref();
            data.map(|data| Kept::new(data, &config.reputation))
        };
        if let Some(kept) = kept.clone()
            && let Ok(Some(dated)) = task::spawn_blocking(move || kept.read()).await
        {
            let now = (Instant::now(), SystemTime::now());
            self.known_mut().restore(dated, now);
        }
        let mut failures = 0;
        loop {
            let max_age = self.0.settings.now().reputation.max_age();
            let version = self.known().version(Instant::now(), max_age);
            let asked = timeout(PATIENCE, source.scores(version.as_deref())).await;
            let asked = match asked {
                Ok(asked) => asked.map_err(|error| error.message().to_owned()),
                Err(_) => Err("it took longer than 30 s".to_owned()),
            };
            let (now, time) = (Instant::now(), SystemTime::now());
            let taken = asked.and_then(|scores| {
                let outcome = if scores.is_some() { "new" } else { "same" };
                let replaced = self.known_mut().take(scores, (now, time), max_age)?;
                // Nobody waits for the lock meanwhile.
                drop(replaced);
                Ok(outcome)
            });
            match taken {
                Ok(outcome) => {
                    if failures > 0 {
                        tracing::warn!("the source of reputations answers again");
                    }
                    failures = 0;
                    self.0.metrics.reputation_sync(outcome);
                    self.store(kept.as_ref(), time).await;
                }
                Err(error) => self.failed(&mut failures, &error),
            }
            let seconds = self.0.settings.now().reputation.interval_seconds;
            let interval = Duration::from_secs(seconds);
            sleep(next_sync(interval, failures, rand::random())).await;
        }
    }

    /// Writes the scores to the data directory, if what is there is another one or older by much.
    async fn store(&self, kept: Option<&Kept>, time: SystemTime) {
        let Some(kept) = kept.cloned() else {
            return;
        };
        let Some(dated) = self.known_mut().due_to_store(time) else {
            return;
        };
        let written = task::spawn_blocking(move || kept.write(&dated)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the reputations are not kept for the next start");
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        let known = self.0.known.read();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        let known = self.0.known.write();
        known.unwrap_or_else(PoisonError::into_inner)
    }

    /// The log says so once until the source answers again.
    fn failed(&self, failures: &mut u32, error: &str) {
        self.0.metrics.reputation_sync("failed");
        if *failures == 0 {
            tracing::warn!(error, "the last reputations count: their source gives none");
        }
        *failures = failures.saturating_add(1);
    }
}

/// Returns the source that `config` names, if it names one.
///
/// # Errors
/// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) if it cannot be used.
pub(super) fn source(config: &ServerConfig) -> Result<Option<Arc<dyn ScoreSource>>, Error> {
    let config = &config.reputation;
    match &config.url {
        Some(_) => Ok(Some(Arc::new(HttpSource::new(config)?))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::server::config::ReputationConfig;

    fn reputation(edit: impl FnOnce(&mut ServerConfig)) -> Reputation {
        let mut config = ServerConfig::default();
        edit(&mut config);
        let metrics = Metrics::new(&config);
        Reputation::new(&Settings::fixed(config), &metrics)
    }

    #[test]
    fn what_is_seen_counts_only_if_the_operator_wants_that() {
        let (peer, neighbour) = (PeerId::random(), PeerId::random());
        let from = Some([192, 0, 2, 1].into());
        for observe in [false, true] {
            let reputation = reputation(|config| config.reputation.observe = observe);
            for _ in 0..12 {
                reputation.note(Some(peer), None, Offence::Flood);
            }
            let slow = if observe {
                Treatment::Slow
            } else {
                Treatment::Usual
            };
            assert_eq!(reputation.treat(&peer, None), slow);
            assert_eq!(reputation.treat(&neighbour, from), Treatment::Usual);
            for _ in 0..240 {
                reputation.note(None, from, Offence::FailedHandshake);
            }
            let refused = if observe {
                Treatment::Refused
            } else {
                Treatment::Usual
            };
            assert_eq!(reputation.treat(&neighbour, from), refused);
            assert_eq!(reputation.treat(&neighbour, None), Treatment::Usual);
        }
    }

    fn know(reputation: &Reputation, relays: HashMap<PeerId, i32>) {
        let scores = Scores {
            relays,
            ..Scores::default()
        };
        let now = (Instant::now(), SystemTime::now());
        let max_age = ReputationConfig::default().max_age();
        let taken = reputation.known_mut().take(Some(scores), now, max_age);
        taken.unwrap();
    }

    #[test]
    fn relays_have_the_order_of_their_scores() {
        let reputation = reputation(|_| {});
        let ids: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        let order = |reputation: &Reputation| {
            let ordered = reputation.order((0..4).collect(), |at: &usize| Some(ids[*at]));
            ordered.iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(order(&reputation), "0123");
        let relays = [(ids[0], -60), (ids[1], -1), (ids[3], 9)];
        know(&reputation, relays.into());
        assert_eq!(order(&reputation), "321");
        know(&reputation, ids.iter().map(|id| (*id, -60)).collect());
        assert_eq!(order(&reputation), "0123", "better than none");
    }
}
