//! The configuration of a server.

pub(crate) mod options;

mod access;
mod reputation;
mod tls;
mod traffic;
mod usage;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

pub use self::{
    access::{AccessConfig, AccessMode, HookConfig},
    reputation::ReputationConfig,
    tls::TlsConfig,
    traffic::TrafficConfig,
    usage::UsageConfig,
};
use crate::{
    config::options::Range,
    core::{
        prefix::Prefix,
        scope::{Scope, scope},
    },
    error::{Error, ErrorKind},
    ticket::relay_id,
};

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

    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] naming the first field that is out of its range.
    /// [`ErrorKind::InvalidAddress`] if an address to announce is not a multiaddress.
    pub fn validate(&self) -> Result<(), Error> {
        match self.faults().into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Returns everything that [`validate`](Self::validate) refuses.
    pub(crate) fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        self.check_ranges(&mut faults);
        let mut check = |holds: bool, field: &str, range: &str| {
            if !holds {
                let message = format!("{field}: must be {range}");
                faults.push(Error::new(ErrorKind::InvalidConfig, message));
            }
        };
        let turn = &self.turn;
        check(
            turn.secret.as_ref().is_none_or(|secret| !secret.is_empty()),
            "turn.secret",
            "some text, or left out",
        );
        check(
            !turn.realm.contains(char::is_control),
            "turn.realm",
            "text without control characters",
        );
        check(
            turn.external_ip
                .is_none_or(|ip| scope(ip) != Scope::Forbidden),
            "turn.external_ip",
            "an address that clients can send to",
        );
        check(
            self.external_ip
                .is_none_or(|ip| scope(ip) != Scope::Forbidden),
            "external_ip",
            "an address that clients can send to",
        );
        check(
            self.port == 0 || self.stun_alternate() != Some(self.port),
            "stun.alternate_port",
            "another port than `port`",
        );
        let tls = &self.tls;
        check(
            tls.cert.is_some() == tls.key.is_some(),
            if tls.cert.is_some() {
                "tls.key"
            } else {
                "tls.cert"
            },
            "given, because the other file is",
        );
        check(
            tls.cert.is_none() || tls.domains.is_empty(),
            "tls.domains",
            "left out where there is a tls.cert",
        );
        check(
            tls.domains.is_empty() || self.data.is_some(),
            "data",
            "a folder for the account and the certificate of tls.domains",
        );
        check(
            tls.directory.starts_with("https://"),
            "tls.directory",
            "an address with https",
        );
        let is_mail = |to: &String| to.contains('@') && to.chars().all(|c| c.is_ascii_graphic());
        check(
            tls.contact.as_ref().is_none_or(is_mail),
            "tls.contact",
            "a mail address",
        );
        check(
            self.reputation.is_sound(),
            "reputation",
            "thresholds from -1000 to 100",
        );
        check(
            self.traffic.is_sound(),
            "traffic.peer_quota",
            "like 10GB/day, 1TB/month, or both with a comma",
        );
        let ports = Range {
            name: "turn.first_port",
            least: 1,
            most: turn.last_port.into(),
            unit: "(turn.last_port)",
        };
        faults.extend(ports.check(turn.first_port.into()).err());
        faults.extend(self.tls.subjects().err());
        faults.extend(self.announced().err());
        faults.extend(self.successors().err());
        faults.extend(self.trusted_proxies().err());
        faults.extend(self.naming_proxies().err());
        faults
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
        shown
    }

    /// Returns the prefixes of the proxies whose `X-Forwarded-For` is trusted.
    pub(crate) fn trusted_proxies(&self) -> Result<Vec<Prefix>, Error> {
        prefixes("http.trusted_proxies", &self.http.trusted_proxies)
    }

    /// Returns the prefixes of the proxies that name their clients by PROXY protocol.
    pub(crate) fn naming_proxies(&self) -> Result<Vec<Prefix>, Error> {
        prefixes("proxy_protocol", &self.proxy_protocol)
    }

    /// Returns the relays that clients may move to.
    pub(crate) fn successors(&self) -> Result<Vec<Multiaddr>, Error> {
        let parse = |text: &String| {
            let address = text.parse().ok();
            let named = address.filter(|address| relay_id(address).is_some());
            named.ok_or_else(|| {
                let message = format!(
                    "drain.to: `{text}` is not a multiaddress that ends in /p2p/ and a peer id"
                );
                Error::new(ErrorKind::InvalidAddress, message)
            })
        };
        self.drain.to.iter().map(parse).collect()
    }

    pub(crate) fn announced(&self) -> Result<Vec<Multiaddr>, Error> {
        let parse = |text: &String| {
            text.parse().map_err(|error| {
                Error::new(
                    ErrorKind::InvalidAddress,
                    format!("announce: `{text}` is not a multiaddress: {error}"),
                )
            })
        };
        self.announce.iter().map(parse).collect()
    }
}

fn prefixes(field: &str, texts: &[String]) -> Result<Vec<Prefix>, Error> {
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            let message = format!("{field}: `{text}` is not a prefix of addresses");
            Error::new(ErrorKind::InvalidConfig, message)
        })
    };
    texts.iter().map(parse).collect()
}

/// Limits of the circuit relay v2.
///
/// A stock relay lets 128 KiB through in two minutes, which is enough for signalling only. These
/// defaults allow a circuit to carry data: a circuit is the path that always works, so it must be
/// usable.
///
/// ```
/// use std::num::NonZeroUsize;
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.relay.circuits_per_peer = NonZeroUsize::new(4).unwrap();
/// config.relay.circuit_bytes = 1 << 30; // a circuit carries a gibibyte at most
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RelayLimits {
    /// Peers that hold a reservation at once. Default 4096. Each reservation costs a connection.
    pub reservations: NonZeroUsize,
    /// Reservations that one peer holds at once. A further one ends the oldest. Default 4, which is
    /// enough for a machine in several networks.
    pub reservations_per_peer: NonZeroUsize,
    /// The term of a reservation in seconds, 180 to 86400. Clients of this library renew it after
    /// 100 seconds, whatever their clocks say, and other clients at three quarters of its term.
    /// Default 3600, the value of the relay specification.
    pub reservation_seconds: u64,
    /// Circuits that are open at once, of all peers together. Default 1024.
    pub circuits: NonZeroUsize,
    /// Circuits that are open at once from one dialling peer. Default 16.
    pub circuits_per_peer: NonZeroUsize,
    /// The longest life of a circuit in seconds, 0 to 4294967295. Default 86400, so that a
    /// forgotten circuit ends some day. 0 means the longest time that the protocol can express, 136
    /// years.
    pub circuit_seconds: u64,
    /// Bytes that one circuit may carry, in both directions together. Default 0: no limit.
    pub circuit_bytes: u64,
    /// Bytes of one circuit that may wait in the server, 262144 to 16777216. The limit applies to
    /// each direction and to each of both connections. In one round trip between the server and a
    /// peer, a circuit carries no more than this. Default 1048576: 84 Mbit/s at 100 ms and 840
    /// Mbit/s at 10 ms. With the default, each circuit whose receiver does not read takes up to 4
    /// MiB.
    pub circuit_window: u32,
    /// Reservations that one peer may ask for in a burst. One IP address may ask for twice as many.
    /// Each comes back after two seconds. Default 60.
    pub reservation_burst: NonZeroU32,
    /// Circuits that one peer may ask for in a burst. One IP address may ask for four times as
    /// many. One comes back after a second. Default 120, which is enough for a page that is
    /// reloaded again and again.
    pub circuit_burst: NonZeroU32,
}

const MAX_CIRCUIT_SECONDS: u64 = u32::MAX as u64;

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            reservations: nonzero_usize(4096),
            reservations_per_peer: nonzero_usize(4),
            reservation_seconds: 60 * 60,
            circuits: nonzero_usize(1024),
            circuits_per_peer: nonzero_usize(16),
            circuit_seconds: 24 * 60 * 60,
            circuit_bytes: 0,
            circuit_window: 1024 * 1024,
            reservation_burst: nonzero_u32(60),
            circuit_burst: nonzero_u32(120),
        }
    }
}

impl RelayLimits {
    /// Returns the longest life of a circuit.
    pub fn circuit_duration(&self) -> Duration {
        Duration::from_secs(match self.circuit_seconds {
            0 => MAX_CIRCUIT_SECONDS,
            seconds => seconds,
        })
    }
}

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
    /// [layout](ServerConfig::layout) of five ports. Where a firewall closes it, clients know less of
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
    /// [`turn_secret`](super::turn_secret). Peers that are [admitted](AccessConfig) get credentials
    /// over their link. If the server is open to everybody, pages also get them from
    /// `/config.json`.
    pub secret: Option<String>,
    /// The realm of the credentials, 1 to 128 bytes. Default `throughline`.
    pub realm: String,
    /// Seconds for which the [credentials](super::Server::turn_credentials) made at the start are
    /// valid, 60 to 31536000. An allocation that was made with them outlives them. Default 2592000,
    /// 30 days.
    pub credential_seconds: u64,
    /// The address that clients are told instead of the bound one in relayed addresses, if it is another
    /// one than the server's own [`external_ip`](ServerConfig::external_ip). Default none.
    pub external_ip: Option<IpAddr>,
    /// The first UDP port for relayed addresses. A firewall must let these ports through. Default
    /// 49152, as RFC 8656 section 7.2 recommends.
    pub first_port: u16,
    /// The last UDP port for relayed addresses. Default 65535.
    pub last_port: u16,
    /// Relayed addresses at once. There are never more than there are ports from `first_port` to
    /// `last_port`. An allocation of both IP families has two. The clients of one IP address hold
    /// at most [`share_per_address`](ConnectionLimits::share_per_address) of them. Each costs a
    /// port, and up to 70 KiB if its client has 256 permissions and channels. Default 1024.
    pub allocations: NonZeroUsize,
    /// Relayed addresses at once of one user name. Default 256, because several peers may share one
    /// name.
    pub allocations_per_user: NonZeroUsize,
    /// TCP connections at once. Further ones are closed on arrival. One IP address holds at most
    /// [`share_per_address`](ConnectionLimits::share_per_address) of them. Each costs a few KiB,
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

/// Limits of connections.
///
/// The server raises its limit of file descriptors as far as it may. If all pools together may
/// still need more descriptors, every pool of connections and of allocations shrinks in proportion,
/// and a warning names both numbers.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.connections.established = 100_000;
/// config.connections.share_per_address = 1;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Peers' connections that are held at once, 1 to 4294967295. Default 8192.
    pub established: u32,
    /// Connections of one peer, 1 to 4294967295. Default 8.
    pub per_peer: u32,
    /// Connections whose handshake is under way, 1 to 4294967295. The limit applies to each kind:
    /// TCP and WebSocket, QUIC, WebRTC, and connections that the server makes. Default 512. Over TCP,
    /// a connection also counts until its first bytes tell its protocol. When
    /// more than a sixteenth of it are under way over QUIC, senders must prove that they are at
    /// their address, which takes one round trip.
    pub pending: u32,
    /// Seconds after which an unused connection is closed, 1 to 86400. A connection is unused if
    /// its peer holds no reservation and takes part in no circuit, no offer and no AutoNAT test.
    /// Open streams do not keep it. Default 30.
    pub idle_seconds: u64,
    /// Bytes of one connection that may wait in the server to be read, 65536 to 16777216. As many
    /// may wait to be sent. Each circuit over the connection adds
    /// [`circuit_window`](RelayLimits::circuit_window). Default 131072, which is enough for
    /// requests and some offers. A connection without a circuit carries nothing else.
    pub window: u32,
    /// HTTP connections that are held at once. Further ones are closed at once. Default 256.
    pub http: NonZeroUsize,
    /// The share of every pool that one IPv4 address or one IPv6 /64 may hold, in percent, 1 to
    /// 100. The pools are those of connections, handshakes, reservations, circuits, allocations, the
    /// members of each room, and so on. An IPv6 /48 may hold twice that share. Default 10: nine
    /// addresses together leave a tenth of the places free, and an office behind one address has 400
    /// reservations. A small pool gives everybody 8 places, or three quarters of its places. 100 lets
    /// one address hold everything.
    pub share_per_address: u8,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            established: 8192,
            per_peer: 8,
            pending: 512,
            idle_seconds: 30,
            window: 128 * 1024,
            http: nonzero_usize(256),
            share_per_address: 10,
        }
    }
}

/// What HTTP serves besides `/metrics`, `/health`, `/ready` and `/config.json`, and to whom.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.http.admin = Some("127.0.0.1:9090".parse().unwrap());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpConfig {
    /// The folder of the page at `/`. A file `name.br` or `name.gz` beside the file `name` is its
    /// compressed form, and is sent unless it is older. Default none: a built-in page that names
    /// the addresses.
    pub www: Option<PathBuf>,
    /// The folder of the npm package, which is served under `/npm/`. Default none.
    pub npm: Option<PathBuf>,
    /// The operator's own address, such as `127.0.0.1:9090`, which has its own connections.
    /// `/metrics` is then served only there, and `/ready` says there which pool is full. At the
    /// public address, `/ready` then says only whether the server takes more peers. Default none: both are
    /// public.
    pub admin: Option<SocketAddr>,
    /// Prefixes of reverse proxies that stand before the server, such as `["127.0.0.1",
    /// "10.0.0.0/8"]`. 0 to 64 prefixes. Default none: every connection counts for the address that
    /// it comes from.
    ///
    /// If a connection comes from such a proxy, its client is the last address in `X-Forwarded-For`
    /// that is not such a proxy. The client counts for the share of the connections, for the rate
    /// of requests, for the TURN credentials of a page, and for what a peer takes that comes by
    /// WebSocket. AutoNAT does not test peers behind a proxy. List only proxies that set the header
    /// themselves. With other proxies, a client could claim any address.
    pub trusted_proxies: Vec<String>,
    /// Requests per second that one IPv4 address, or one IPv6 /64, may make on average. In a burst,
    /// it may make twice as many. Further requests are answered with 429. Default 50: a page asks
    /// for about twenty files, and an office behind one address reloads it.
    pub requests_per_source: NonZeroU32,
    /// Requests per second of all clients together. Default 2000, of which one address may make a
    /// fortieth.
    pub requests: NonZeroU32,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            www: None,
            npm: None,
            admin: None,
            trusted_proxies: Vec::new(),
            requests_per_source: nonzero_u32(50),
            requests: nonzero_u32(2000),
        }
    }
}

/// What a server does before it ends. [`Server::drain`](super::Server::drain) does it.
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
