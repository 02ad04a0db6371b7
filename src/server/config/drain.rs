//! What a server does before it ends.

use serde::{Deserialize, Serialize};

/// What a server does before it ends. [`Server::drain`](crate::server::Server::drain) does it.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.drain.seconds = 0; // the only relay of its clients ends at once
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DrainConfig {
    /// Seconds for which circuits and allocations may go on at most, 0 to 86400. Default 30. With 0,
    /// the server ends at once and tells nobody to move.
    pub seconds: u64,
    /// Relays that clients may move to if they know no other one, as multiaddresses that end in
    /// `/p2p/` and the relay's peer id. 0 to 4. Default none.
    pub to: Vec<String>,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            seconds: 30,
            to: Vec::new(),
        }
    }
}
