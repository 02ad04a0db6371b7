//! The configuration of a server.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `options` | the table of all settings, from which the documents are made |
//! | `check` | what is checked before a server starts |
//! | `relay`, `traffic`, `usage`, `drain` | circuits, what is carried for whom, and the end |
//! | `fleet` | the servers that are one for their clients |
//! | `connections` | connections and HTTP |
//! | `stun`, `turn` | STUN and AutoNAT, and TURN |
//! | `access`, `reputation` | who may use the server |
//! | `tls` | the certificate |

pub(crate) mod options;

mod access;
mod check;
mod connections;
mod drain;
mod fleet;
mod relay;
mod reputation;
mod stun;
mod tls;
mod traffic;
mod turn;
mod usage;

use std::{
    net::{IpAddr, Ipv4Addr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use self::{
    access::{AccessConfig, AccessMode, HookConfig},
    connections::{ConnectionLimits, HttpConfig},
    drain::DrainConfig,
    fleet::FleetConfig,
    relay::RelayLimits,
    reputation::ReputationConfig,
    stun::{AutonatConfig, StunConfig},
    tls::TlsConfig,
    traffic::TrafficConfig,
    turn::TurnConfig,
    usage::UsageConfig,
};
use crate::core::site;

/// Settings of a [`Server`](crate::server::Server).
///
/// Every field has a default, so an empty TOML file is a valid configuration. An unknown name is an
/// error, so a mistyped option is noticed.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.port = 443;
/// config.data = Some("/var/lib/throughline".into());
/// assert!(config.turn.secret.is_none(), "no TURN server unless it is asked for");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The addresses that every listener binds, 1 to 16 of them. Default `["0.0.0.0"]`: all IPv4
    /// interfaces. Add `"::"` for IPv6.
    ///
    /// A specific address is announced as it is. For `0.0.0.0` and `::`, the addresses of the
    /// interfaces are announced. Loopback and link-local addresses are announced only if there are
    /// no others.
    pub hosts: Vec<IpAddr>,
    /// The first of the ports, 0 to 65531. Default 4001, the usual port of libp2p nodes. With 0,
    /// the system chooses each port.
    ///
    /// TCP port N takes every protocol that runs over TCP: libp2p, WebSocket, HTTP, TURN, and all of
    /// these within [TLS](Self::tls). UDP port N takes QUIC, `/webrtc-direct`, STUN and TURN. STUN has a
    /// [second port](StunConfig::alternate_port) besides. The [layout](Self::layout) says whether
    /// protocols have ports of their own.
    pub port: u16,
    /// Whether everything is at one port. Default [`Layout::One`].
    pub layout: Layout,
    /// TLS on the first TCP port, and its certificate. Default none.
    pub tls: TlsConfig,
    /// The directory of the identity and of the `/webrtc-direct` certificate. Default none: both
    /// are generated at each start, so tickets and certificate hashes change.
    pub data: Option<PathBuf>,
    /// Multiaddresses to announce besides those that are bound, for example
    /// `/dns4/relay.example.org/tcp/443/wss` of a reverse proxy. 0 to 16. Default none.
    pub announce: Vec<String>,
    /// The address that others reach this server at, if a one-to-one NAT stands before it, as in most
    /// clouds. It is announced in the place of the bound addresses of its family, and is that of relayed
    /// addresses, too. Default none: the bound addresses are announced. Addresses of networks between
    /// this machine and its own containers are announced only if there are no others.
    pub external_ip: Option<IpAddr>,
    /// Prefixes of the addresses of proxies that begin each connection to the first TCP port with a
    /// header of PROXY protocol version 2, 0 to 64 of them, such as `10.0.0.0/8`. Default none.
    ///
    /// Limits, logs and what peers are told of their own addresses then see the client that the
    /// header names, also within TLS. A connection of such a proxy without a header is closed, so
    /// list only proxies that send one, and that nobody else can send from. The other ports of
    /// [`Layout::Five`] take no header.
    pub proxy_protocol: Vec<String>,
    /// The limits of the relay.
    pub relay: RelayLimits,
    /// The STUN server.
    pub stun: StunConfig,
    /// The TURN server.
    pub turn: TurnConfig,
    /// How much the server carries, and for whom.
    pub traffic: TrafficConfig,
    /// The record of what peers take.
    pub usage: UsageConfig,
    /// The AutoNAT server.
    pub autonat: AutonatConfig,
    /// Who may use the server.
    pub access: AccessConfig,
    /// What is thought of peers, and what that means for them.
    pub reputation: ReputationConfig,
    /// The limits of connections.
    pub connections: ConnectionLimits,
    /// The content that HTTP serves, and its limits.
    pub http: HttpConfig,
    /// What a server does before it ends.
    pub drain: DrainConfig,
    /// The servers that are one for their clients.
    pub fleet: FleetConfig,
    /// Whether the log line of each refusal names the refused address. A program that watches the
    /// log and bans addresses needs this. Default `false`, because addresses are personal data.
    pub log_addresses: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            hosts: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            port: DEFAULT_PORT,
            layout: Layout::default(),
            tls: TlsConfig::default(),
            data: None,
            announce: Vec::new(),
            external_ip: None,
            proxy_protocol: Vec::new(),
            relay: RelayLimits::default(),
            stun: StunConfig::default(),
            turn: TurnConfig::default(),
            traffic: TrafficConfig::default(),
            usage: UsageConfig::default(),
            autonat: AutonatConfig::default(),
            access: AccessConfig::default(),
            reputation: ReputationConfig::default(),
            connections: ConnectionLimits::default(),
            http: HttpConfig::default(),
            drain: DrainConfig::default(),
            fleet: FleetConfig::default(),
            log_addresses: false,
        }
    }
}

/// The ports of a server.
///
/// ```
/// use throughline::server::{Layout, ServerConfig};
///
/// let mut config = ServerConfig::default();
/// config.port = 443;
/// assert_eq!(config.layout, Layout::One);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Layout {
    /// TCP N and UDP N take everything.
    #[default]
    One,
    /// The ports of earlier versions. Over TCP, WebSocket has also N+1, HTTP has also N+2, and TURN has also
    /// N+4. Over UDP, QUIC has N, `/webrtc-direct` N+1, STUN N+2 and N+3, and TURN N+4. The next release
    /// has no such layout.
    Five,
}

/// The first port of a server for which none is configured.
pub const DEFAULT_PORT: u16 = 4001;
/// The port of HTTPS, where an authority checks who is there, and where browsers look for a page.
pub const HTTPS_PORT: u16 = site::HTTPS_PORT;
/// The highest first port. A [layout](Layout) of five ports uses four more.
pub const MAX_PORT: u16 = u16::MAX - 4;

impl ServerConfig {
    /// The second UDP port of STUN, or `None` if there is none. With 0, the system chooses it.
    pub(crate) fn stun_alternate(&self) -> Option<u16> {
        let after = |n| self.port.saturating_add(n);
        match (self.stun.alternate_port, self.port) {
            (Some(0), _) => None,
            (Some(port), _) => Some(port),
            (None, 0) => Some(0),
            (None, _) if self.layout == Layout::Five => Some(after(3)),
            (None, _) => Some(after(1)),
        }
    }

    /// Returns the address that relayed addresses have for others, if a NAT changes it.
    pub(crate) fn relayed_ip(&self) -> Option<IpAddr> {
        self.turn.external_ip.or(self.external_ip)
    }

    /// Returns the same settings for people to read: each secret, and each part of a URL that may be
    /// one, is hidden. No server can be started with them.
    ///
    /// ```
    /// use throughline::server::ServerConfig;
    ///
    /// let mut config = ServerConfig::default();
    /// config.access.hook.url = Some("https://auth.example/may-use?key=s3cret".into());
    /// let shown = config.without_secrets().access.hook.url;
    /// assert_eq!(shown.as_deref(), Some("https://auth.example/may-use?(hidden)"));
    /// ```
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut shown = self.clone();
        if let Some(secret) = &mut shown.turn.secret {
            *secret = "(hidden)".into();
        }
        for url in [&mut shown.access.hook.url, &mut shown.reputation.url] {
            *url = url.as_deref().map(super::web::shown);
        }
        for url in &mut shown.fleet.servers {
            *url = super::web::shown(url);
        }
        shown
    }
}

// For literals above zero only. A zero would become a one instead of a panic.
const fn nonzero_u32(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(value) => value,
        None => NonZeroU32::MIN,
    }
}

const fn nonzero_usize(value: usize) -> NonZeroUsize {
    match NonZeroUsize::new(value) {
        Some(value) => value,
        None => NonZeroUsize::MIN,
    }
}

#[cfg(test)]
mod tests;
