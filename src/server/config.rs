//! What a server is told at its start.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::{
    core::scope::{Scope, scope},
    error::{Error, ErrorKind},
};

/// Settings of a [`Server`](crate::server::Server).
///
/// Every field has a default, so an empty TOML file is a valid configuration. Unknown names
/// are refused, so a mistyped one is not silently without effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The addresses that every listener binds, 1 to 16 of them. Default `["0.0.0.0"]`: all
    /// IPv4 interfaces. Add `"::"` for IPv6.
    ///
    /// A specific address is announced as it is. For `0.0.0.0` and `::` the addresses of the
    /// interfaces are, loopback and link-local ones only where there are no others.
    pub hosts: Vec<IpAddr>,
    /// First of the ports, default 4001, the port libp2p nodes are used to.
    ///
    /// With base N: QUIC on UDP N, TCP on TCP N, WebSocket on TCP N+1, `/webrtc-direct` on
    /// UDP N+1, HTTP on TCP N+2, STUN on UDP N+2 and, so that a client can tell how its NAT
    /// maps and whom it lets in (RFC 5780, in full where there are two hosts of a family), once
    /// more on UDP N+3, TURN on UDP and TCP N+4. Range 1 to 65531; 0 lets the system choose each.
    pub port: u16,
    /// Where the identity and the `/webrtc-direct` certificate live. Default none: both are
    /// made afresh at each start, so tickets and certificate hashes change.
    pub data: Option<PathBuf>,
    /// Multiaddresses to announce besides those that were bound, for example
    /// `/dns4/relay.example.org/tcp/443/wss` of a reverse proxy. At most 16. Default none.
    pub announce: Vec<String>,
    /// What the relay grants.
    pub relay: RelayLimits,
    /// What one source may ask of the STUN responder.
    pub stun: StunLimits,
    /// The TURN server.
    pub turn: TurnConfig,
    /// The AutoNAT server.
    pub autonat: AutonatConfig,
    /// How many connections are held.
    pub connections: ConnectionLimits,
    /// What HTTP serves.
    pub http: HttpConfig,
    /// Whether the line that is logged for each refusal names the address that was refused, for a
    /// program that watches the log and bans addresses. Default `false`: addresses are personal
    /// data.
    pub log_addresses: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            hosts: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            port: DEFAULT_PORT,
            data: None,
            announce: Vec::new(),
            relay: RelayLimits::default(),
            stun: StunLimits::default(),
            turn: TurnConfig::default(),
            autonat: AutonatConfig::default(),
            connections: ConnectionLimits::default(),
            http: HttpConfig::default(),
            log_addresses: false,
        }
    }
}

/// First port of a server that is told none.
pub const DEFAULT_PORT: u16 = 4001;
/// Highest first port: five ports are used from there on.
pub const MAX_PORT: u16 = u16::MAX - 4;

impl ServerConfig {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] naming the first field that is out of its range.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |holds: bool, field: &str, range: &str| {
            if holds {
                return Ok(());
            }
            let message = format!("{field}: must be {range}");
            Err(Error::new(ErrorKind::InvalidConfig, message))
        };
        check(
            (1..=16).contains(&self.hosts.len()),
            "hosts",
            "1 to 16 addresses",
        )?;
        check(self.port <= MAX_PORT, "port", "0 to 65531")?;
        let turn = &self.turn;
        check(
            turn.secret.as_ref().is_none_or(|secret| !secret.is_empty()),
            "turn.secret",
            "some text, or left out",
        )?;
        check(
            (1..=128).contains(&turn.realm.len()) && !turn.realm.contains(char::is_control),
            "turn.realm",
            "1 to 128 bytes without control characters",
        )?;
        check(
            (1..=turn.last_port).contains(&turn.first_port),
            "turn.first_port",
            "1 to turn.last_port",
        )?;
        check(
            turn.external_ip
                .is_none_or(|ip| scope(ip) != Scope::Forbidden),
            "turn.external_ip",
            "an address that clients can send to",
        )?;
        check(
            (60..=MAX_CREDENTIAL_SECONDS).contains(&turn.credential_seconds),
            "turn.credential_seconds",
            "60 to 31536000",
        )?;
        for (field, bytes) in [
            ("turn.bytes_per_source", turn.bytes_per_source),
            ("turn.bytes_total", turn.bytes_total),
        ] {
            // The longest datagram passes.
            let holds = bytes == 0 || (16_384..=MAX_BYTES).contains(&bytes);
            check(holds, field, "0, or 16384 to 1000000000000")?;
        }
        let connections = &self.connections;
        for (count, field) in [
            (connections.established, "connections.established"),
            (connections.per_peer, "connections.per_peer"),
            (connections.pending, "connections.pending"),
        ] {
            check(count >= 1, field, "1 to 4294967295")?;
        }
        check(
            (1..=MAX_IDLE_SECONDS).contains(&connections.idle_seconds),
            "connections.idle_seconds",
            "1 to 86400",
        )?;
        check(
            (1..=100).contains(&connections.share_per_address),
            "connections.share_per_address",
            "1 to 100",
        )?;
        check(
            self.announce.len() <= 16,
            "announce",
            "at most 16 addresses",
        )?;
        self.announced()?;
        check(
            self.relay.circuit_seconds <= MAX_CIRCUIT_SECONDS,
            "relay.circuit_seconds",
            "0 to 4294967295",
        )?;
        check(
            (60..=MAX_RESERVATION_SECONDS).contains(&self.relay.reservation_seconds),
            "relay.reservation_seconds",
            "60 to 86400",
        )
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

/// Limits of the circuit relay v2.
///
/// A stock relay lets 128 KiB through in two minutes, enough for signalling only. These
/// defaults carry data: a circuit is the path that always works, so it must be usable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RelayLimits {
    /// Peers that hold a reservation at once. Default 4096; one costs a connection.
    pub reservations: NonZeroUsize,
    /// Reservations held at once by one peer. Default 4: a few networks of one machine.
    pub reservations_per_peer: NonZeroUsize,
    /// Term of a reservation in seconds, 60 to 86400; clients renew at three quarters of it.
    /// Default 3600, the value of the relay specification.
    pub reservation_seconds: u64,
    /// Circuits open at once, all peers together. Default 1024.
    pub circuits: NonZeroUsize,
    /// Circuits open at once from one dialling peer. Default 16.
    pub circuits_per_peer: NonZeroUsize,
    /// Longest life of a circuit in seconds, 0 to 4294967295. Default 86400, so that a
    /// forgotten circuit ends some day; 0 means as long as the protocol can say, 136 years.
    pub circuit_seconds: u64,
    /// Bytes that one circuit may carry, both directions together. Default 0: no limit.
    pub circuit_bytes: u64,
    /// Reservations one peer, and twice as many one IP address, may ask for in a burst;
    /// each comes back after two seconds. Default 60.
    pub reservation_burst: NonZeroU32,
    /// Circuits one peer, and four times as many one IP address, may ask for in a burst; one
    /// comes back after a second. Default 120: a page reloaded again and again stays below.
    pub circuit_burst: NonZeroU32,
}

const MAX_CIRCUIT_SECONDS: u64 = u32::MAX as u64;
const MAX_RESERVATION_SECONDS: u64 = 24 * 60 * 60;

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
            reservation_burst: nonzero_u32(60),
            circuit_burst: nonzero_u32(120),
        }
    }
}

impl RelayLimits {
    /// The longest life of a circuit.
    pub fn circuit_duration(&self) -> Duration {
        Duration::from_secs(match self.circuit_seconds {
            0 => MAX_CIRCUIT_SECONDS,
            seconds => seconds,
        })
    }
}

/// Limits of the STUN responder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StunLimits {
    /// Answers per second that one IPv4 address, or one IPv6 /64, gets on average, and twice
    /// as many in a burst. Default 50: an office behind one address gathers candidates, a
    /// forged source gets no flood.
    pub per_source: NonZeroU32,
    /// Answers per second to all sources together. Default 20000, about 10 Mbit/s.
    pub total: NonZeroU32,
}

impl Default for StunLimits {
    fn default() -> Self {
        Self {
            per_source: nonzero_u32(50),
            total: nonzero_u32(20_000),
        }
    }
}

/// The TURN server (RFC 8656), for peers that no hole can be punched between.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TurnConfig {
    /// What credentials are made from: user names are `expiry:id`, passwords the HMAC-SHA1 of them
    /// in base64, as other TURN servers have it. Never printed by `Debug`. Default none: there is
    /// no TURN server. The program makes one, see [`turn_secret`](super::turn_secret). Pages get
    /// credentials from `/config.json`: whoever reaches that may use the server.
    pub secret: Option<String>,
    /// The realm of the credentials, 1 to 128 bytes. Default `throughline`.
    pub realm: String,
    /// Seconds that the [credentials](super::Server::turn_credentials) made at the start last, 60
    /// to 31536000; an allocation made with them outlives them. Default 2592000, 30 days.
    pub credential_seconds: u64,
    /// The address that clients are told for the relayed ones, where a one-to-one NAT stands
    /// before the server. Default none: the bound one.
    pub external_ip: Option<IpAddr>,
    /// UDP ports to relay on, to be let through a firewall: from this one. Default 49152, as RFC
    /// 8656 section 7.2 recommends.
    pub first_port: u16,
    /// To this one. Default 65535.
    pub last_port: u16,
    /// Relayed addresses at once, and never more than there are ports from `first_port` to
    /// `last_port`; an allocation of both IP families has two. The clients of one IP address hold
    /// [`share_per_address`](ConnectionLimits::share_per_address) of them at most. Each costs a port
    /// and up to 70 KiB, where its client has 256 permissions and channels. Default 1024.
    pub allocations: NonZeroUsize,
    /// Relayed addresses at once of one user name. Default 256: peers may share one.
    pub allocations_per_user: NonZeroUsize,
    /// TCP connections at once; more are closed as they come. One IP address holds
    /// [`share_per_address`](ConnectionLimits::share_per_address) of them at most. Each costs a few
    /// KiB, and up to 300 KiB where its client reads slowly. Default 1024.
    pub connections: NonZeroUsize,
    /// Requests per second that one IPv4 address, or one IPv6 /64, may make on average, and twice
    /// as many in a burst; an IPv6 /48 twice that. Relayed data are none. Default 100.
    pub requests_per_source: NonZeroU32,
    /// Bytes per second, both directions together, that are relayed for the clients of one IPv4
    /// address, or one IPv6 /64, on average, and twice as many in a burst; for an IPv6 /48 twice
    /// that. More are lost. 0, or 16384 to 1000000000000; 0 is no limit. Default 62500000, which is
    /// 500 Mbit/s: nobody has more than half of a gigabit link.
    pub bytes_per_source: u64,
    /// Bytes per second that are relayed for all clients together; as `bytes_per_source`.
    /// Default 0: the link is the limit, and only its owner knows what it carries.
    pub bytes_total: u64,
    /// Whether clients may reach private, loopback and link-local addresses through the server:
    /// those of its own networks. Default `false` (RFC 8656 section 21.1).
    pub allow_private_peers: bool,
}

impl TurnConfig {
    /// How many relayed addresses there are at most.
    pub(crate) fn relayed_addresses(&self) -> usize {
        let ports = usize::from(self.last_port.saturating_sub(self.first_port)) + 1;
        self.allocations.get().min(ports)
    }
}

const MAX_BYTES: u64 = 1_000_000_000_000;
const MAX_CREDENTIAL_SECONDS: u64 = 365 * 24 * 60 * 60;

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

/// The AutoNAT v2 server, which dials peers that ask for it, so that they know whether others reach
/// them.
///
/// A peer is dialled at the IP address that it is seen at and nowhere else, by QUIC or TCP, at a
/// port from 1024 on or at the one that it is seen at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AutonatConfig {
    /// Whether peers at private and loopback addresses, and at the server's own, are dialled.
    /// Default `false`: where a reverse proxy or a port forwarding stands before the server,
    /// everybody seems to come from there, and could have its ports tried. A server for one
    /// network or one machine needs it.
    pub allow_private: bool,
    /// Dials per second for one IPv4 address, or one IPv6 /64, on average, and twice as many in a
    /// burst. Default 4: the peers of an office behind one address, which ask for a few when they
    /// start and each ten minutes.
    pub per_source: NonZeroU32,
    /// Dials per second for all together, and twice as many in a burst. Default 100; 64 are under
    /// way at once, and each costs a socket and a handshake.
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
/// Where the system grants fewer descriptors than all pools together may need, after the limit has
/// been raised as far as it may, every pool of connections and of allocations shrinks in proportion,
/// and a warning names both numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Peers' connections held at once, 1 to 4294967295. Default 8192.
    pub established: u32,
    /// Connections of one peer, 1 to 4294967295. Default 8.
    pub per_peer: u32,
    /// Connections whose handshake is under way, of each kind: over TCP and WebSocket, over QUIC,
    /// over WebRTC, and those that the server makes. 1 to 4294967295. Default 512. Beyond a sixteenth
    /// of it, senders over QUIC are asked to show that they are at their address, for which they
    /// take a round trip.
    pub pending: u32,
    /// Seconds after which a connection is closed whose peer holds no reservation and takes part in
    /// no circuit and no offer, whatever streams it keeps open. 1 to 86400. Default 30.
    pub idle_seconds: u64,
    /// HTTP connections held at once; more are closed at once. Default 256.
    pub http: NonZeroUsize,
    /// The share of every pool (connections, handshakes, reservations, circuits, allocations, and
    /// so on) that one IPv4 address or one IPv6 /64 may hold, in percent, 1 to 100; an IPv6 /48 may
    /// hold twice that. Default 10: nine addresses together leave room for a tenth, and an office
    /// behind one address has 400 reservations. A small pool gives 8 places, or three quarters of
    /// its own, to anybody. 100 lets one address have everything.
    pub share_per_address: u8,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            established: 8192,
            per_peer: 8,
            pending: 512,
            idle_seconds: 30,
            http: nonzero_usize(256),
            share_per_address: 10,
        }
    }
}

const MAX_IDLE_SECONDS: u64 = 24 * 60 * 60;

/// What is served over HTTP besides `/metrics`, `/health` and `/config.json`, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Folder of the page at `/`. A file `name.br` or `name.gz` beside one is its compressed form,
    /// sent while it is not older. Default none: a built-in page that names the addresses.
    pub www: Option<PathBuf>,
    /// Folder of the npm package, served under `/npm/`. Default none.
    pub npm: Option<PathBuf>,
    /// An address of the operator's own, such as `127.0.0.1:9090`, with connections of its own.
    /// `/metrics` is served there and no longer for everybody, and `/health` says there which pool is
    /// full; for everybody it says whether the server is well and no more. Default none: both are
    /// for everybody.
    pub admin: Option<SocketAddr>,
    /// Requests per second that one IPv4 address, or one IPv6 /64, may make on average, and twice as
    /// many in a burst; more are answered with 429. Default 50: a page asks for some twenty files,
    /// and an office behind one address reloads it.
    pub requests_per_source: NonZeroU32,
    /// Requests per second of all together. Default 2000, of which one address may make a fortieth.
    pub requests: NonZeroU32,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            www: None,
            npm: None,
            admin: None,
            requests_per_source: nonzero_u32(50),
            requests: nonzero_u32(2000),
        }
    }
}

// Literals above zero only; a zero would become a one and not a panic.
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
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults() {
        let config: ServerConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, ServerConfig::default());
        assert_eq!(config.port, 4001);
        assert_eq!(config.relay.circuits_per_peer.get(), 16);
        assert_eq!(config.relay.circuit_bytes, 0);
        assert_eq!(config.connections.idle_seconds, 30);
        config.validate().unwrap();
    }

    #[test]
    fn debug_hides_the_secret() {
        let turn = TurnConfig {
            secret: Some("hunter2".into()),
            ..TurnConfig::default()
        };
        assert!(!format!("{turn:?}").contains("hunter2"));
    }

    #[test]
    fn a_mistyped_name_is_refused_by_name() {
        let error = serde_json::from_str::<ServerConfig>(r#"{"relay":{"circuit":1}}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`circuit`"), "{error}");
    }

    #[test]
    fn ranges_are_checked_at_their_edges() {
        let with = |edit: fn(&mut ServerConfig)| {
            let mut config = ServerConfig::default();
            edit(&mut config);
            config.validate()
        };
        let refused = |field: &str, edit: fn(&mut ServerConfig)| {
            let error = with(edit).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.message().starts_with(field), "{error}");
        };
        refused("hosts", |c| c.hosts.clear());
        with(|c| c.port = 65531).unwrap();
        refused("port", |c| c.port = 65532);
        with(|c| c.turn.first_port = 65535).unwrap();
        refused("turn.first_port", |c| c.turn.last_port = 49_151);
        refused("turn.external_ip", |c| {
            c.turn.external_ip = Some("0.0.0.0".parse().unwrap())
        });
        refused("turn.secret", |c| c.turn.secret = Some(String::new()));
        refused("turn.realm", |c| c.turn.realm = "a\r\n".into());
        refused("turn.credential_seconds", |c| {
            c.turn.credential_seconds = 59
        });
        with(|c| c.turn.bytes_total = 16_384).unwrap();
        refused("turn.bytes_total", |c| c.turn.bytes_total = 16_383);
        refused("turn.bytes_per_source", |c| {
            c.turn.bytes_per_source = 1_000_000_000_001
        });
        refused("connections.established", |c| c.connections.established = 0);
        refused("connections.per_peer", |c| c.connections.per_peer = 0);
        refused("connections.pending", |c| c.connections.pending = 0);
        with(|c| c.connections.idle_seconds = 86_400).unwrap();
        for seconds in [0, 86_401, u64::MAX] {
            let mut config = ServerConfig::default();
            config.connections.idle_seconds = seconds;
            let error = config.validate().unwrap_err();
            assert!(error.message().starts_with("connections.idle_seconds"));
        }
        refused("connections.share_per_address", |c| {
            c.connections.share_per_address = 0
        });
        refused("connections.share_per_address", |c| {
            c.connections.share_per_address = 101
        });
        with(|c| c.relay.reservation_seconds = 60).unwrap();
        refused("relay.reservation_seconds", |c| {
            c.relay.reservation_seconds = 59
        });
        with(|c| c.relay.circuit_seconds = 0).unwrap();
        refused("relay.circuit_seconds", |c| {
            c.relay.circuit_seconds = 1 << 32
        });
    }

    #[test]
    fn no_circuit_duration_is_the_longest() {
        let limits = RelayLimits {
            circuit_seconds: 0,
            ..RelayLimits::default()
        };
        assert_eq!(limits.circuit_duration().as_secs(), u64::from(u32::MAX));
    }
}
