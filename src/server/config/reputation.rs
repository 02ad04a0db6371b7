//! What is thought of peers, and what that means for them.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{core::reputation::Thresholds, server::web::shown};

/// What is thought of peers, and what that means for them.
///
/// Scores come from a URL, or from a [`ScoreSource`](crate::server::ScoreSource) of the program. They
/// are from -100 to 100, and whoever has none counts as 0. With [`observe`](Self::observe), what the
/// server sees itself lowers a score for a while.
///
/// The URL is asked in the background. The answer has the status 200 and a JSON object, or the status
/// 304 if its ETag is the one that the server names. `peers` and `relays` hold scores by peer id, and
/// `issued` is when that was written, in seconds since 1970. With a [`key`](Self::key), the header
/// `x-signature` has the Ed25519 signature of the body in base64url. A signed answer that was issued
/// before the last one does not count, and its age counts from when it was issued, also if the URL says
/// later that nothing has changed. So whoever signs does it again before
/// [`max_age_seconds`](Self::max_age_seconds) are over. While there is no answer, the last one counts for
/// so long. It is kept in the [data directory](super::ServerConfig::data), and counts over a restart.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.reputation.url = Some("https://oracle.example.org/scores".into());
/// config.reputation.observe = true;
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReputationConfig {
    /// Where the scores are, by `https`, or by `http` if there is a [`key`](Self::key) or the host is
    /// this machine. Default none.
    pub url: Option<String>,
    /// A PEM file of certificate authorities to trust for the URL, in addition to the public ones of
    /// the web. Default none.
    pub ca: Option<PathBuf>,
    /// The public key that signs the scores, in base64url, as `throughline token key` prints keys.
    /// Default none: TLS proves where the scores come from.
    pub key: Option<String>,
    /// Seconds between two questions, 1 to 86400. Default 300. Servers that start together ask at
    /// different times, and after failures the time is up to eight times as long.
    pub interval_seconds: u64,
    /// Seconds for which scores count, 60 to 31536000, from when they were issued if they are signed,
    /// and else from when the source said last that they are true. Default 86400, which is a day.
    pub max_age_seconds: u64,
    /// Whether what the server sees counts: floods of requests, circuits that peers refuse, and
    /// handshakes over TCP that fail, by peer and by IPv4 address or IPv6 /64. Half of it is forgiven
    /// in ten minutes. Default `false`, because neighbours share an address.
    pub observe: bool,
    /// Peers below this score get nothing, -1000 to 100. Default -50. With -1000, nobody is refused.
    pub refuse_below: i32,
    /// Peers below this score get a small share of `traffic.total`, and no more than
    /// [`slow_rate`](Self::slow_rate), -1000 to 100. Default -10.
    pub slow_below: i32,
    /// Peers from this score on get twice the share of others, -1000 to 101. Default 50. With 101,
    /// nobody is preferred.
    pub prefer_from: i32,
    /// Bytes per second of each circuit and each allocation of a peer that is slowed down, 1024 to
    /// 1000000000000. Default 125000, which is 1 Mbit/s.
    pub slow_rate: u64,
}

/// The URL may hold a secret.
impl fmt::Debug for ReputationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReputationConfig")
            .field("url", &self.url.as_deref().map(shown))
            .field("ca", &self.ca)
            .field("key", &self.key)
            .field("interval_seconds", &self.interval_seconds)
            .field("max_age_seconds", &self.max_age_seconds)
            .field("observe", &self.observe)
            .field("refuse_below", &self.refuse_below)
            .field("slow_below", &self.slow_below)
            .field("prefer_from", &self.prefer_from)
            .field("slow_rate", &self.slow_rate)
            .finish()
    }
}

impl Default for ReputationConfig {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            key: None,
            interval_seconds: 300,
            max_age_seconds: 24 * 60 * 60,
            observe: false,
            refuse_below: -50,
            slow_below: -10,
            prefer_from: 50,
            slow_rate: 125_000,
        }
    }
}

impl ReputationConfig {
    pub(crate) fn thresholds(&self) -> Thresholds {
        Thresholds {
            refuse: self.refuse_below,
            slow: self.slow_below,
            prefer: self.prefer_from,
        }
    }

    /// Returns the age from which on scores do not count.
    pub(crate) fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_seconds)
    }

    /// Whether each threshold is in its range.
    pub(super) fn is_sound(&self) -> bool {
        let range = -1000..=100;
        range.contains(&self.refuse_below)
            && range.contains(&self.slow_below)
            && (-1000..=101).contains(&self.prefer_from)
    }
}
