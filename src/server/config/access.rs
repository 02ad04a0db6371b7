//! Who may use the server.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{nonzero_u32, nonzero_usize};
use crate::server::web::shown;

/// Who may use the server.
///
/// Whoever reserves, and whoever gets TURN credentials, has to be admitted. STUN, AutoNAT and the
/// page serve everybody, because they cost little and tell nothing.
///
/// ```
/// use throughline::server::{AccessMode, ServerConfig};
///
/// let mut config = ServerConfig::default();
/// config.access.mode = Some(AccessMode::List);
/// config.access.list = Some("/etc/throughline/peers".into());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AccessConfig {
    /// The rule. Default none: everybody may use the server, and a server at a public address warns
    /// of that when it starts. With [`AccessMode::Open`] it does not warn.
    pub mode: Option<AccessMode>,
    /// Whether a dialler has to be admitted, too, for each circuit and each sealed offer. Default
    /// `false`: whoever knows the ticket of an admitted peer can reach it, as a visitor of a web
    /// page reaches the owner of the page. A dialler shows its token only to relays of its own
    /// configuration.
    pub dialers: bool,
    /// The file of the peer ids that [`AccessMode::List`] admits, one a line. Lines that begin with
    /// `#` are comments. A change of the file counts within two seconds, and peers that are no
    /// longer listed are disconnected. Write another file and rename it, so that nobody reads half of
    /// it. A file that becomes empty, or whose last line has no end and is no name, changes nothing.
    /// A file that lists nobody on purpose has a comment.
    pub list: Option<PathBuf>,
    /// The public keys for [`AccessMode::Token`], 0 to 16 of them. A token counts if one of them
    /// has signed it, so that keys can be replaced without a break.
    /// [`TokenKey::public`](crate::server::TokenKey::public) returns such a key, and so does
    /// `throughline token key`.
    pub keys: Vec<String>,
    /// The file of the ids of tokens that no longer count, one a line, like [`list`](Self::list).
    /// Default none: a token counts until it expires.
    pub revoked: Option<PathBuf>,
    /// The operator's program that [`AccessMode::Hook`] asks.
    pub hook: HookConfig,
}

impl AccessConfig {
    /// Returns the rule that applies.
    pub(crate) fn mode(&self) -> AccessMode {
        self.mode.unwrap_or_default()
    }
}

/// The rule by which peers are admitted.
///
/// ```
/// use throughline::server::AccessMode;
///
/// let mode: AccessMode = serde_json::from_str("\"token\"")?;
/// assert_eq!(mode, AccessMode::Token);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AccessMode {
    /// Everybody.
    #[default]
    Open,
    /// The peers whose ids stand in a file.
    List,
    /// The peers that show a token of the operator.
    Token,
    /// The peers that the operator's own program admits.
    Hook,
}

/// A program of the operator that decides who may use the server. It is asked by HTTP.
///
/// Each question is a POST of a JSON object: `peer` is the peer id, `address` is its IP address,
/// `token` is what the peer shows or `null`, and `what` is `reservation`, `circuit`, `offer` or
/// `turn`. A peer may want a reservation and TURN credentials at once. Then `what` is `reservation` and
/// `turn` is `true`. The answer has the status 200 and a JSON object. `{"allow": true}` admits, and may
/// have `name` (whose quota it is), `quota` and `rate` as in tokens, and `"turn": false` for no TURN
/// credentials. `{"allow": false}` does not, and may
/// have the `reason` `quota` or `limit`. Both may have `seconds`, for which the answer counts.
///
/// Any other answer counts as none. While there is none, the last one counts, for
/// [`max_age_seconds`](Self::max_age_seconds) at most. A peer of which nothing is known is then
/// refused for now.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.access.hook.url = Some("http://127.0.0.1:9000/may-use".into());
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HookConfig {
    /// The URL, `http` or `https`. Default none.
    pub url: Option<String>,
    /// A PEM file of certificate authorities to trust for the URL, in addition to the public ones
    /// of the web. Default none.
    pub ca: Option<PathBuf>,
    /// Milliseconds that an answer may take, 100 to 60000. Default 2000. Only the request that
    /// needs the answer waits.
    pub timeout_ms: u64,
    /// Seconds for which an answer counts without asking again, 0 to 86400. Default 60. The answer
    /// may name less.
    pub fresh_seconds: u64,
    /// Seconds for which an answer counts if the hook cannot be asked, 0 to 2592000. Default 3600.
    pub max_age_seconds: u64,
    /// Questions per second about all peers together, 1 to 1000000. Default 200. In a burst, the program
    /// is asked twice as many. One peer, and one IPv4 address or IPv6 /64, is asked about as often as
    /// [`circuit_burst`](super::RelayLimits::circuit_burst) lets it dial. When the program cannot be
    /// asked because of that, the last answer counts.
    pub questions_per_second: NonZeroU32,
    /// Answers that are kept. If one more comes, the oldest goes. One address holds at most its
    /// [share](super::ConnectionLimits::share_per_address). Default 16384, about 8 MiB.
    pub answers: NonZeroUsize,
}

/// The URL may hold a secret.
impl fmt::Debug for HookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookConfig")
            .field("url", &self.url.as_deref().map(shown))
            .field("ca", &self.ca)
            .field("timeout_ms", &self.timeout_ms)
            .field("fresh_seconds", &self.fresh_seconds)
            .field("max_age_seconds", &self.max_age_seconds)
            .field("questions_per_second", &self.questions_per_second)
            .field("answers", &self.answers)
            .finish()
    }
}

impl Default for HookConfig {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            timeout_ms: 2000,
            fresh_seconds: 60,
            max_age_seconds: 60 * 60,
            questions_per_second: nonzero_u32(200),
            answers: nonzero_usize(16_384),
        }
    }
}
