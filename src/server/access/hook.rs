//! Asks the operator's own program whether a peer may use the server.
//!
//! [`HookConfig`] describes the question and the answer. Nothing waits for an answer but the request
//! that needs it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use hyper::{Method, StatusCode, header, header::HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{
    amount,
    answers::{Answer, Answers, Known, Question},
    meter::Limits,
};
use crate::{
    core::{access::Denial, quota::Holder},
    error::{Error, ErrorKind},
    server::{
        config::HookConfig,
        pool::{Place, Pool, Pools, Refusals},
        rate_limiter::Bucket,
        relay_rates::{Rate, Rates},
        settings::Settings,
        web::{self, Web},
    },
};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// An answer, or a task that gets it.
pub(crate) enum Asked {
    Known(Answer),
    Under(BoxFuture<'static, Answer>),
}

/// The hook of a server.
pub(crate) struct Hook {
    web: Web,
    timeout: Duration,
    /// The questions that are being asked.
    asking: Pool,
    pace: Mutex<Pace>,
    settings: Settings,
    refusals: Refusals,
    answers: Mutex<Answers>,
    warnings: Mutex<Warnings>,
}

/// How often the hook is asked, whatever a peer wants.
struct Pace {
    /// Of each peer, and of each address.
    each: Rates,
    all: Bucket,
    /// Of all together, in questions per second.
    rate: f64,
}

/// The pause between two lines in the log that say that the hook does not answer.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// When the log last said so, and how many lines are missing since then.
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
    missing: u64,
}

impl Warnings {
    /// Whether there is a line now, and how many are missing before it.
    fn line(&mut self, now: Instant) -> Option<u64> {
        let is_early = |last: Instant| now.saturating_duration_since(last) < WARN_EVERY;
        if self.last.is_some_and(is_early) {
            self.missing += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.missing))
    }
}

impl Hook {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if the URL or the file of authorities cannot be used.
    pub(crate) fn new(config: &HookConfig, pools: &Pools) -> Result<Self, Error> {
        let invalid = |what: &str, why: String| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("access.hook.{what}: {why}"),
            )
        };
        let web = Web::new(config.url.as_deref(), config.ca.as_deref());
        let web = web.map_err(|(field, why)| invalid(field, why))?;
        let seconds = Duration::from_secs;
        Ok(Self {
            web,
            timeout: Duration::from_millis(config.timeout_ms),
            asking: pools.hook.clone(),
            pace: Mutex::new(Pace::new(config, &pools.settings, Instant::now())),
            settings: pools.settings.clone(),
            refusals: pools.refusals.clone(),
            answers: Mutex::new(Answers::new(
                pools.hook_answers.clone(),
                seconds(config.fresh_seconds),
                seconds(config.max_age_seconds),
            )),
            warnings: Mutex::default(),
        })
    }

    /// Whether the hook may be asked now.
    fn may_ask(&self, question: &Question, now: Instant) -> bool {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.each.set(&self.settings.now().relay);
        let allowed = pace.allows(question, now);
        if !allowed {
            let what = Rate::Questions.name();
            self.refusals.tell(what, "rate", question.address);
        }
        allowed
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sweep(&self, now: Instant) {
        self.answers().sweep(now);
    }

    /// Gets the answer to a question. If the hook cannot be asked, the last answer counts, and
    /// without one there is no room for the peer.
    pub(crate) fn ask(self: &Arc<Self>, question: Question) -> Asked {
        let now = Instant::now();
        let known = self.answers().known(&question, now);
        let otherwise = match known {
            Some(Known::Fresh(answer)) => return Asked::Known(answer),
            other => other.map_or(Answer::Deny(Denial::Limit), Known::answer),
        };
        if !self.may_ask(&question, now) {
            return Asked::Known(otherwise);
        }
        let holder = Holder {
            ip: question.address,
            peer: Some(question.peer),
        };
        let Ok(place) = self.asking.take(holder) else {
            return Asked::Known(otherwise);
        };
        Asked::Under(self.clone().answer(question, otherwise, place).boxed())
    }

    async fn answer(self: Arc<Self>, question: Question, otherwise: Answer, _: Place) -> Answer {
        let asked = match timeout(self.timeout, self.post(&question)).await {
            Ok(Ok(reply)) => reply.read().ok_or_else(malformed),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match asked {
            Ok((answer, lasts)) => {
                let now = Instant::now();
                self.answers().learn(&question, answer.clone(), lasts, now);
                answer
            }
            Err(error) => {
                let warnings = self.warnings.lock();
                let mut warnings = warnings.unwrap_or_else(PoisonError::into_inner);
                // Neither the question nor the URL belongs in the log: both may hold secrets.
                if let Some(missing) = warnings.line(Instant::now()) {
                    tracing::warn!(%error, missing, "access.hook does not answer, so the last answers count");
                }
                otherwise
            }
        }
    }

    async fn post(&self, question: &Question) -> io::Result<Reply> {
        let body = json!({
            "peer": question.peer.to_string(),
            "address": question.address.map(|address| address.to_string()),
            "token": question.token.as_deref(),
            "what": question.what.name(),
            "turn": question.turn,
        });
        let json = HeaderValue::from_static("application/json");
        let question = web::Question {
            method: Method::POST,
            headers: vec![(header::CONTENT_TYPE, json)],
            body: body.to_string(),
        };
        let answer = self.web.ask(question, MAX_ANSWER).await?;
        if answer.status != StatusCode::OK {
            let status = answer.status.as_u16();
            return Err(io::Error::other(format!("its status is {status}")));
        }
        serde_json::from_slice(&answer.body).map_err(|_| malformed())
    }
}

impl Pace {
    fn new(config: &HookConfig, settings: &Settings, now: Instant) -> Self {
        let rate = config.questions_per_second.get().into();
        Self {
            each: Rates::new(&settings.now().relay),
            all: Bucket::new(rate, now),
            rate,
        }
    }

    fn allows(&mut self, question: &Question, now: Instant) -> bool {
        // Peers whose address is not known share one.
        let address = question.address;
        let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let each = self
            .each
            .allow(Rate::Questions, question.peer, address, now);
        each.is_ok() && self.all.take(self.rate, 1.0, now)
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is malformed")
}

/// The answer as it stands in JSON.
#[derive(Deserialize)]
struct Reply {
    allow: bool,
    name: Option<String>,
    quota: Option<String>,
    rate: Option<String>,
    reason: Option<String>,
    seconds: Option<u64>,
    turn: Option<bool>,
}

impl Reply {
    /// Returns the answer, and how long it counts if the hook says so. Returns `None` if an amount
    /// cannot be read, because that must not mean that there is no limit.
    fn read(self) -> Option<(Answer, Option<Duration>)> {
        let lasts = self.seconds.map(Duration::from_secs);
        let quota = self.quota.map(|text| amount::quota(&text));
        let rate = self.rate.map(|text| amount::rate(&text));
        let answer = match self.allow {
            true => Answer::Allow {
                turn: self.turn.unwrap_or(true),
                name: self.name,
                limits: Limits {
                    quota: quota.map_or(Some(None), |quota| quota.map(Some))?,
                    rate: rate.map_or(Some(None), |rate| rate.map(Some))?,
                },
            },
            false => Answer::Deny(match self.reason.as_deref() {
                Some("quota") => Denial::Quota(lasts.unwrap_or_default()),
                Some("limit") => Denial::Limit,
                _ => Denial::Access,
            }),
        };
        Some((answer, lasts))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;
    use crate::server::{ServerConfig, access::What, config::RelayLimits, metrics::Metrics};

    fn read(json: &str) -> Option<(Answer, Option<Duration>)> {
        serde_json::from_str::<Reply>(json).ok()?.read()
    }

    #[test]
    fn answers_allow_with_limits_or_deny_with_a_reason() {
        let free = Answer::Allow {
            name: None,
            limits: Limits::default(),
            turn: true,
        };
        assert_eq!(read(r#"{"allow":true}"#), Some((free, None)));
        let without = read(r#"{"allow":true,"turn":false}"#);
        assert!(matches!(
            without,
            Some((Answer::Allow { turn: false, .. }, None))
        ));
        let (answer, lasts) =
            read(r#"{"allow":true,"name":"a","quota":"1B/day","rate":"8bit","seconds":5}"#)
                .unwrap();
        let Answer::Allow { name, limits, .. } = answer else {
            panic!("it is allowed");
        };
        assert_eq!((name.as_deref(), limits.rate), (Some("a"), Some(1)));
        assert_eq!(limits.quota.and_then(|quota| quota.day), Some(1));
        let five = Duration::from_secs(5);
        assert_eq!(lasts, Some(five));
        for (reason, denial) in [
            ("quota", Denial::Quota(five)),
            ("limit", Denial::Limit),
            ("whatever", Denial::Access),
        ] {
            let json = format!(r#"{{"allow":false,"reason":"{reason}","seconds":5}}"#);
            assert_eq!(read(&json), Some((Answer::Deny(denial), Some(five))));
        }
        for malformed in [
            "{}",
            "[]",
            r#"{"allow":1}"#,
            r#"{"allow":true,"quota":"much"}"#,
            r#"{"allow":true,"rate":"fast"}"#,
        ] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    /// Whether the hook is asked each time, for peers whose answers are not kept.
    fn asks(config: &HookConfig, questions: impl IntoIterator<Item = Question>) -> Vec<bool> {
        let mut server = ServerConfig::default();
        server.access.hook = config.clone();
        let metrics = Metrics::new(&server);
        let pools = Pools::new(&Settings::fixed(server), &metrics);
        let hook = Arc::new(Hook::new(config, &pools).unwrap());
        let is_asked = |question| matches!(hook.ask(question), Asked::Under(_));
        questions.into_iter().map(is_asked).collect()
    }

    fn config() -> HookConfig {
        HookConfig {
            url: Some("http://127.0.0.1:1/".into()),
            ..HookConfig::default()
        }
    }

    fn question(peer: PeerId, address: [u8; 4], what: What) -> Question {
        Question {
            peer,
            address: Some(address.into()),
            token: None,
            what,
            turn: false,
        }
    }

    #[test]
    fn whatever_a_peer_wants_it_is_asked_about_at_a_rate() {
        let burst = RelayLimits::default().circuit_burst.get() as usize;
        for what in [What::Reservation, What::Circuit, What::Offer, What::Turn] {
            let peer = PeerId::random();
            let same = (0..burst + 9).map(|_| question(peer, [192, 0, 2, 1], what));
            let asked = asks(&config(), same);
            assert!(asked[..burst].iter().all(|asked| *asked), "{what:?}");
            assert!(!asked[burst + 8], "{what:?}");
            // Neither other tokens nor other peers of that address make it more.
            let crowd = (0..9 * burst).map(|at| Question {
                token: Some(at.to_string().into()),
                ..question(PeerId::random(), [192, 0, 2, 1], what)
            });
            let asked = asks(&config(), crowd);
            assert!(!asked[9 * burst - 1], "{what:?}");
        }
    }

    #[test]
    fn all_peers_together_are_asked_about_at_a_rate() {
        let mut config = config();
        config.questions_per_second = 8.try_into().unwrap();
        let crowd = (0..40).map(|at| question(PeerId::random(), [192, 0, 2, at], What::Circuit));
        let asked = asks(&config, crowd);
        let count = asked.iter().filter(|asked| **asked).count();
        // What comes back during the test is on top.
        assert!((16..25).contains(&count), "{count}");
    }

    #[test]
    fn a_hook_that_is_away_does_not_fill_the_log() {
        let (mut warnings, now) = (Warnings::default(), Instant::now());
        assert_eq!(warnings.line(now), Some(0));
        assert_eq!(warnings.line(now + WARN_EVERY / 2), None);
        assert_eq!(warnings.line(now + WARN_EVERY), Some(1));
    }
}
