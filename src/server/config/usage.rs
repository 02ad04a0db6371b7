//! The record of what peers take.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::nonzero_u32;

/// The record of what peers take: bytes, circuits, reservations and allocations, by day, token and
/// peer. [`usage`](crate::server::usage) reads it.
///
/// ```
/// use std::num::NonZeroU32;
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.usage.days = NonZeroU32::new(31).unwrap();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct UsageConfig {
    /// Whether the record is kept. It holds peer ids and no addresses. It is in the file `usage.redb`
    /// of the [data directory](super::ServerConfig::data), and there is none without such a directory.
    /// Default `true`.
    pub record: bool,
    /// Days that are kept, today included, 1 to 3660. Default 92, which is a quarter of a year.
    pub days: NonZeroU32,
    /// Peers of a day that have a row of their own, 1 to 10000000. Further peers with the same token
    /// share one. A row takes about 180 bytes of the file. Default 100000.
    pub peers_per_day: NonZeroU32,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self {
            record: true,
            days: nonzero_u32(92),
            peers_per_day: nonzero_u32(100_000),
        }
    }
}
