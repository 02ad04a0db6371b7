//! The servers by which peers learn of their own addresses: STUN and AutoNAT.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::nonzero_u32;

/// The STUN server.
///
/// ```
/// use std::num::NonZeroU32;
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.stun.per_source = NonZeroU32::new(10).unwrap();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StunConfig {
    /// Answers per second that one IPv4 address, or one IPv6 /64, gets on average. In a burst, it
    /// gets twice as many. Default 50: an office behind one address can gather candidates, and a
    /// forged source cannot be flooded.
    pub per_source: NonZeroU32,
    /// Answers per second to all sources together. Default 20000, about 10 Mbit/s.
    pub total: NonZeroU32,
    /// The second UDP port of STUN (RFC 5780), which shows a client how its NAT maps and filters. With 0
    /// there is none. Default none: the port after the first one, or after the first STUN port in a
    /// [layout](super::ServerConfig::layout) of five ports. Where a firewall closes it, clients know less of
    /// their NAT, and guess no ports.
    pub alternate_port: Option<u16>,
}

impl Default for StunConfig {
    fn default() -> Self {
        Self {
            per_source: nonzero_u32(50),
            total: nonzero_u32(20_000),
            alternate_port: None,
        }
    }
}

/// The AutoNAT v2 server. It dials peers that ask for it, so that they learn whether others can
/// reach them.
///
/// The server dials a peer only at the IP address from which the peer is connected, by QUIC or TCP.
/// The port must be 1024 or higher, or the port from which the peer is connected.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.autonat.allow_private = true; // a server for one network
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AutonatConfig {
    /// Whether the server dials peers at private and loopback addresses, and at its own addresses.
    /// Default `false`: behind a reverse proxy or a port forwarding, all peers seem to come from
    /// the address of that machine, and could let the server try its ports. A server for one
    /// network or one machine needs this option.
    pub allow_private: bool,
    /// Dials per second for one IPv4 address, or one IPv6 /64, on average. In a burst, twice as
    /// many are made. Default 4, which is enough for the peers of an office behind one address.
    /// Each of them asks for a few dials at its start and then every ten minutes.
    pub per_source: NonZeroU32,
    /// Dials per second for all peers together. In a burst, twice as many are made. Default 100. At
    /// most 64 dials are under way at once, and each costs a socket and a handshake.
    pub total: NonZeroU32,
}

impl Default for AutonatConfig {
    fn default() -> Self {
        Self {
            allow_private: false,
            per_source: nonzero_u32(4),
            total: nonzero_u32(100),
        }
    }
}
