//! What is thought of peers: scores that are synced in the background, and what the server sees.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `source` | where scores come from: a trait, and a URL |

mod source;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::time::{sleep, timeout};

use self::source::HttpSource;
pub use self::source::{ScoreSource, Scores};
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
    scores: RwLock<Known>,
    seen: Mutex<Seen>,
}

/// The last scores.
#[derive(Default)]
struct Known {
    peers: HashMap<PeerId, i32>,
    relays: HashMap<PeerId, i32>,
    /// When the source has confirmed them, or when the server started to ask.
    at: Option<Instant>,
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
            scores: RwLock::default(),
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
        let scores = self.0.scores.read();
        let scores = scores.unwrap_or_else(PoisonError::into_inner);
        if !config.observe && scores.at.is_none() {
            return Treatment::Usual;
        }
        let score = scores.peers.get(peer).copied();
        drop(scores);
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
        let scores = self.0.scores.read();
        let scores = scores.unwrap_or_else(PoisonError::into_inner);
        let score = |relay: &T| id(relay).and_then(|id| scores.relays.get(&id).copied());
        let mut scored: Vec<_> = relays.into_iter().map(|one| (score(&one), one)).collect();
        scored.sort_by_key(|(score, _)| std::cmp::Reverse(score.unwrap_or(0)));
        let thresholds = self.0.settings.now().reputation.thresholds();
        let good = |score: &Option<i32>| thresholds.treat(*score, 0.0) != Treatment::Refused;
        if scored.iter().any(|(score, _)| good(score)) {
            scored.retain(|(score, _)| good(score));
        }
        scored.into_iter().map(|(_, relay)| relay).collect()
    }

    /// Shows how old the scores are, if there is a source.
    pub(crate) fn show_age(&self) {
        let scores = self.0.scores.read();
        if let Some(at) = scores.unwrap_or_else(PoisonError::into_inner).at {
            self.0.metrics.reputation_age(at.elapsed());
        }
    }

    /// Keeps the scores up to date. It never returns.
    pub(crate) async fn keep(self, source: Arc<dyn ScoreSource>) {
        let mut version = None::<String>;
        let mut failures = 0;
        self.known().at = Some(Instant::now());
        loop {
            let asked = timeout(PATIENCE, source.scores(version.as_deref())).await;
            match asked.map_err(|_| "it took longer than 30 s".to_owned()) {
                Ok(Ok(scores)) => {
                    if failures > 0 {
                        tracing::warn!("the source of reputations answers again");
                    }
                    failures = 0;
                    self.0.metrics.reputation_sync(match scores {
                        Some(_) => "new",
                        None => "same",
                    });
                    let mut known = self.known();
                    known.at = Some(Instant::now());
                    if let Some(scores) = scores {
                        version = scores.version;
                        (known.peers, known.relays) = (scores.peers, scores.relays);
                    }
                }
                Ok(Err(error)) => self.failed(&mut failures, error.message()),
                Err(error) => self.failed(&mut failures, &error),
            }
            let seconds = self.0.settings.now().reputation.interval_seconds;
            let interval = Duration::from_secs(seconds);
            sleep(next_sync(interval, failures, rand::random())).await;
        }
    }

    fn known(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        let scores = self.0.scores.write();
        scores.unwrap_or_else(PoisonError::into_inner)
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
    use super::*;

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

    #[test]
    fn relays_have_the_order_of_their_scores() {
        let reputation = reputation(|_| {});
        let ids: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        let order = |reputation: &Reputation| {
            let ordered = reputation.order((0..4).collect(), |at: &usize| Some(ids[*at]));
            ordered.iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(order(&reputation), "0123");
        reputation.known().relays = [(ids[0], -60), (ids[1], -1), (ids[3], 9)].into();
        assert_eq!(order(&reputation), "321");
        reputation.known().relays = ids.iter().map(|id| (*id, -60)).collect();
        assert_eq!(order(&reputation), "0123", "better than none");
    }
}
