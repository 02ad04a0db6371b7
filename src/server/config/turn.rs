//! The TURN server.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
};

use serde::{Deserialize, Serialize};

use super::{nonzero_u32, nonzero_usize};

/// The TURN server (RFC 8656), for pairs of peers between which hole punching fails.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.turn.secret = Some("a long random text".into());
/// assert!(!format!("{config:?}").contains("a long random text"));
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TurnConfig {
    /// The secret from which credentials are made, as with other TURN servers. User names are
    /// `expiry:id`, and a password is the HMAC-SHA1 of the user name in base64. `Debug` never
    /// prints the secret. Default none: there is no TURN server. The program makes a secret, see
    /// [`turn_secret`](crate::server::turn_secret). Peers that are [admitted](super::AccessConfig) get credentials
    /// over their link. If the server is open to everybody, pages also get them from
    /// `/config.json`.
    pub secret: Option<String>,
    /// The realm of the credentials, 1 to 128 bytes. Default `throughline`.
    pub realm: String,
    /// Seconds for which the [credentials](crate::server::Server::turn_credentials) made at the start are
    /// valid, 60 to 31536000. An allocation that was made with them outlives them. Default 2592000,
    /// 30 days.
    pub credential_seconds: u64,
    /// The address that clients are told instead of the bound one in relayed addresses, if it is another
    /// one than the server's own [`external_ip`](super::ServerConfig::external_ip). Default none.
    pub external_ip: Option<IpAddr>,
    /// The first UDP port for relayed addresses. A firewall must let these ports through. Default
    /// 49152, as RFC 8656 section 7.2 recommends.
    pub first_port: u16,
    /// The last UDP port for relayed addresses. Default 65535.
    pub last_port: u16,
    /// Relayed addresses at once. There are never more than there are ports from `first_port` to
    /// `last_port`. An allocation of both IP families has two. The clients of one IP address hold
    /// at most [`share_per_address`](super::ConnectionLimits::share_per_address) of them. Each costs a
    /// port, and up to 70 KiB if its client has 256 permissions and channels. Default 1024.
    pub allocations: NonZeroUsize,
    /// Relayed addresses at once of one user name. Default 256, because several peers may share one
    /// name.
    pub allocations_per_user: NonZeroUsize,
    /// TCP connections at once. Further ones are closed on arrival. One IP address holds at most
    /// [`share_per_address`](super::ConnectionLimits::share_per_address) of them. Each costs a few KiB,
    /// and up to 300 KiB if its client reads slowly. Default 1024.
    pub connections: NonZeroUsize,
    /// Requests per second that one IPv4 address, or one IPv6 /64, may make on average. In a burst,
    /// it may make twice as many. An IPv6 /48 may make twice as many as a /64. Relayed data do not
    /// count as requests. Default 100.
    pub requests_per_source: NonZeroU32,
    /// Bytes per second that are relayed on average for the clients of one IPv4 address, or one
    /// IPv6 /64, in both directions together. In a burst, twice as many are relayed. An IPv6 /48
    /// gets twice as many as a /64. Further data are dropped. 0, or 16384 to 1000000000000; 0 is no
    /// limit. Default 62500000, which is 500 Mbit/s: nobody gets more than half of a gigabit link.
    pub bytes_per_source: u64,
    /// Bytes per second that are relayed for all clients together. In a burst, twice as many are
    /// relayed. 0, or 16384 to 1000000000000; 0 is no limit. Default 0: the link is the limit, and
    /// only its owner knows what it carries.
    pub bytes_total: u64,
    /// Whether clients may reach private, loopback and link-local addresses through the server.
    /// These are addresses of the server's own networks. Default `false` (RFC 8656 section 21.1).
    pub allow_private_peers: bool,
}

impl TurnConfig {
    /// Returns the most relayed addresses that there can be.
    pub(crate) fn relayed_addresses(&self) -> usize {
        let ports = usize::from(self.last_port.saturating_sub(self.first_port)) + 1;
        self.allocations.get().min(ports)
    }
}

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            secret: None,
            realm: String::from("throughline"),
            credential_seconds: 30 * 24 * 60 * 60,
            external_ip: None,
            first_port: 49_152,
            last_port: u16::MAX,
            allocations: nonzero_usize(1024),
            allocations_per_user: nonzero_usize(256),
            connections: nonzero_usize(1024),
            requests_per_source: nonzero_u32(100),
            bytes_per_source: 62_500_000,
            bytes_total: 0,
            allow_private_peers: false,
        }
    }
}

impl std::fmt::Debug for TurnConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnConfig")
            .field("enabled", &self.secret.is_some())
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}
