//! How much the server carries.

use serde::{Deserialize, Serialize};

use crate::server::access::{Limits, quota};

/// How much the server carries by circuits and the TURN server together, and for whom.
///
/// Both directions count for the peer with the reservation, as in the record of usage: for the peer
/// that is dialled, and for the client of the TURN server. The peer that is dialled pays once it has
/// agreed to the circuit or the offer, and then also for what came before. Until then, 64 KiB pass at
/// most, and they wait for the share of the dialler. A dialler's token counts from the first byte.
/// What a peer asks of the directory, and what it says and hears in rooms, counts for that peer.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.traffic.total = 12_500_000; // 100 Mbit/s
/// config.traffic.peer_quota = Some("10GB/day, 100GB/month".into());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrafficConfig {
    /// Bytes per second that are carried for all together. They are divided fairly between the names
    /// of tokens, and between the peers without a token: whoever takes less than a fair share waits
    /// for nobody, and the others share the rest equally. Circuits wait, and datagrams of TURN are
    /// dropped. 0, or 16384 to 1000000000000; 0 is no limit. Default 0: the link is the limit, and
    /// only its owner knows what it carries.
    pub total: u64,
    /// Bytes per second that are carried for one peer. A change counts for new circuits and
    /// allocations. 0, or 16384 to 1000000000000; 0 is no limit. Default 0. A token has a rate of its
    /// own, which its holders share.
    pub per_peer: u64,
    /// Bytes per second of one circuit, in both directions together. A change counts for new
    /// circuits. 0, or 16384 to 1000000000000; 0 is no limit. Default 0.
    pub per_circuit: u64,
    /// Bytes per second of one allocation on the TURN server, in both directions together. A change
    /// counts for new allocations. 0, or 16384 to 1000000000000; 0 is no limit. Default 0.
    pub per_allocation: u64,
    /// How much may be carried for one peer, such as `10GB/day`, `100GB/month`, or
    /// `10GB/day, 100GB/month`. Days and months are those of UTC. Default none: no quota. Peers are
    /// told at 80 and at 95 percent. A clock that is set back gives no quota twice. What counts is the
    /// [record of usage](super::UsageConfig), so it outlasts a restart only where there is one, and a
    /// month needs its 31 days. Tokens have quotas of their own.
    pub peer_quota: Option<String>,
}

impl TrafficConfig {
    /// Returns the limits of each peer.
    pub(crate) fn limits_of_a_peer(&self) -> Limits {
        Limits {
            // Validation of the configuration has already refused texts that are no quotas.
            quota: self.peer_quota.as_deref().and_then(quota),
            rate: (self.per_peer > 0).then_some(self.per_peer),
        }
    }

    /// Whether the quota can be read.
    pub(super) fn is_sound(&self) -> bool {
        let text = self.peer_quota.as_deref();
        text.is_none_or(|text| quota(text).is_some())
    }
}
