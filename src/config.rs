//! Every number and address a user can set, the same in Rust, TOML, JSON and JavaScript.

use std::time::Duration;

use multiaddr::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    ticket::relay_id,
};

/// DESIGN: the promise to users of the system this replaces. No user waits for it: the race does
/// not stand in line.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 8489 section 6.2.1 gives up after 39.5 s; an answer later than this is of no use to ICE.
const STUN_TIMEOUT: Duration = Duration::from_secs(5);
/// Routers answer within 1 s or not at all; a mapping that comes later is taken all the same.
const PORT_MAPPING_TIMEOUT: Duration = Duration::from_secs(5);
/// A relay that takes longer than this to be reached is worse than the next one.
const RELAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Three tries: in field studies 97.6 % of hole punches that succeed do so at the first.
const UPGRADE_TRIES: u32 = 3;
/// Doubled at each try: 2 s, 4 s, 8 s.
const UPGRADE_BACKOFF: Duration = Duration::from_secs(2);
/// Longer than an ordinary switch from one network to another, shorter than a person's patience.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);
/// Without streams and handles a connection is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// 4 MiB in flight fill 400 Mbit/s at 80 ms and 1.6 Gbit/s at 20 ms. It is also the memory a stream
/// may hold each way, but only as far as the reader is behind.
const STREAM_WINDOW: u32 = 4 << 20;
/// A dead relay costs a new dial; two keep a peer reachable meanwhile.
const RELAY_RESERVATIONS: usize = 2;
/// Refused beyond: an idle peer cannot be made to hold unbounded state.
const MAX_CONNECTIONS: usize = 1024;
/// Per connection, both directions together.
const MAX_STREAMS: usize = 1024;

/// The configuration of a [`Connector`](crate::Connector).
///
/// `Default` is fit for use as it is, but for [`relays`](Self::relays), which has no default
/// because this project runs no servers. In TOML and JSON the names are as here, in JavaScript in
/// camel case; durations are whole milliseconds and their names end in `_ms` (`Ms`). Unknown names
/// are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Relays to be reached through, as multiaddresses ending in `/p2p/<id>`. Several addresses of
    /// one relay count as one relay; the first relays are preferred. At most 16. Empty: this peer
    /// can only be reached at its own addresses. Defaults to none.
    pub relays: Vec<String>,
    /// Whether to hold reservations, that is, to be reachable through the relays. A peer that only
    /// dials can save the round trip. Defaults to `true`.
    pub reserve: bool,
    /// How many relays to hold reservations on at a time. 1 to 16; the others stand by. Defaults
    /// to 2: one relay may die unnoticed.
    #[serde(alias = "relayReservations")]
    pub relay_reservations: usize,
    /// STUN servers, as `stun:host[:port]` (RFC 7064), all asked at once. At most 16. Two tell what
    /// kind of NAT there is. STUN over TLS (`stuns:`) is refused: it would tell the address of a
    /// TCP connection, which no peer can send to. Defaults to none; a relay started by
    /// `throughline serve` is two.
    pub stun: Vec<String>,
    /// TURN servers (RFC 8656). At most 16. Used by browsers; defaults to none.
    pub turn: Vec<TurnServer>,
    /// Addresses to listen on, native only; ignored in a browser. Defaults to an ephemeral port of
    /// every interface over QUIC and TCP.
    pub listen: Vec<String>,
    /// Protocol names that stock libp2p peers may open streams with (peers of this library may use
    /// any name). At most 256. Defaults to none.
    pub protocols: Vec<String>,
    /// Whether to try for paths other than the relay. `false` keeps every address of this peer
    /// from the other side. Defaults to `true`.
    pub direct: bool,
    /// The longest that [`Connector::connect`](crate::Connector::connect) and any single attempt
    /// may take. 100 ms to 10 min. Defaults to 10 s.
    #[serde(
        rename = "connect_timeout_ms",
        alias = "connectTimeoutMs",
        with = "millis"
    )]
    pub connect_timeout: Duration,
    /// How long to wait for a relay, to be reached and to grant a reservation. 100 ms to 10 min.
    /// Defaults to 10 s.
    #[serde(rename = "relay_timeout_ms", alias = "relayTimeoutMs", with = "millis")]
    pub relay_timeout: Duration,
    /// How long a STUN server may take to answer (RFC 8489 section 6.2.1). 100 ms to 1 min.
    /// Defaults to 5 s; an offer never waits for it.
    #[serde(rename = "stun_timeout_ms", alias = "stunTimeoutMs", with = "millis")]
    pub stun_timeout: Duration,
    /// Whether to ask the router to forward a UDP port to this machine, by PCP, NAT-PMP or
    /// UPnP-IGD; native only. The mapping is renewed while the connector lives and removed when it
    /// is closed. Defaults to `true`: behind a NAT that nothing else opens, it is what connects.
    #[serde(alias = "portMapping")]
    pub port_mapping: bool,
    /// How long the router may take to answer that. 100 ms to 1 min. Defaults to 5 s; nothing
    /// waits for it.
    #[serde(
        rename = "port_mapping_timeout_ms",
        alias = "portMappingTimeoutMs",
        with = "millis"
    )]
    pub port_mapping_timeout: Duration,
    /// How often a direct path is tried for in the background after a failure. 0 to 100; 0 tries
    /// once. Defaults to 3.
    #[serde(alias = "upgradeTries")]
    pub upgrade_tries: u32,
    /// The pause before the first of those tries; it doubles each time and is jittered by a
    /// quarter. 10 ms to 10 min. Defaults to 2 s.
    #[serde(
        rename = "upgrade_backoff_ms",
        alias = "upgradeBackoffMs",
        with = "millis"
    )]
    pub upgrade_backoff: Duration,
    /// How long streams wait for a path after the last one is lost, before they fail with
    /// [`ErrorKind::ConnectionLost`]. 0 to 1 h. Defaults to 30 s.
    #[serde(
        rename = "resume_timeout_ms",
        alias = "resumeTimeoutMs",
        with = "millis"
    )]
    pub resume_timeout: Duration,
    /// A connection with no streams and no handle left is closed after this. 0 to 1 h. Defaults to
    /// 30 s.
    #[serde(rename = "idle_timeout_ms", alias = "idleTimeoutMs", with = "millis")]
    pub idle_timeout: Duration,
    /// Bytes in flight per stream and direction, which bound both its throughput (window divided
    /// by round-trip time) and its memory. 64 KiB to 64 MiB. Defaults to 4 MiB.
    #[serde(alias = "streamWindow")]
    pub stream_window: u32,
    /// Connections open at a time, in and out; more are refused. 1 to 65,536. Defaults to 1,024.
    #[serde(alias = "maxConnections")]
    pub max_connections: usize,
    /// Streams open at a time on one connection; more are refused. 1 to 65,536. Defaults to 1,024.
    #[serde(alias = "maxStreams")]
    pub max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            relays: Vec::new(),
            reserve: true,
            relay_reservations: RELAY_RESERVATIONS,
            stun: Vec::new(),
            turn: Vec::new(),
            listen: Vec::new(),
            protocols: Vec::new(),
            direct: true,
            connect_timeout: CONNECT_TIMEOUT,
            relay_timeout: RELAY_TIMEOUT,
            stun_timeout: STUN_TIMEOUT,
            port_mapping: true,
            port_mapping_timeout: PORT_MAPPING_TIMEOUT,
            upgrade_tries: UPGRADE_TRIES,
            upgrade_backoff: UPGRADE_BACKOFF,
            resume_timeout: RESUME_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            stream_window: STREAM_WINDOW,
            max_connections: MAX_CONNECTIONS,
            max_streams: MAX_STREAMS,
        }
    }
}

/// A TURN server and the credentials for it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnServer {
    /// `turn:host[:port][?transport=udp|tcp]` or `turns:…` (RFC 7065).
    pub url: String,
    /// The user name; for time-limited credentials `expiry:id`.
    pub username: String,
    /// The password. Never printed by `Debug`.
    pub credential: String,
}

impl std::fmt::Debug for TurnServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnServer")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Checks every value against its documented range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] or [`ErrorKind::InvalidAddress`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        self.relay_addrs()?;
        self.listen_addrs()?;
        let at_most = |name, len: usize, most| in_range(name, len as u64, 0, most);
        at_most("relays", self.relays.len(), 64)?;
        at_most("stun", self.stun.len(), 16)?;
        at_most("turn", self.turn.len(), 16)?;
        at_most("listen", self.listen.len(), 16)?;
        at_most("protocols", self.protocols.len(), 256)?;
        for protocol in &self.protocols {
            check_protocol(protocol)?;
        }
        for (field, urls, schemes) in [
            ("stun", self.stun.iter().collect::<Vec<_>>(), &["stun:"][..]),
            (
                "turn",
                self.turn.iter().map(|t| &t.url).collect(),
                &["turn:", "turns:"][..],
            ),
        ] {
            for url in urls {
                if !schemes
                    .iter()
                    .any(|s| url.starts_with(s) && url.len() > s.len())
                {
                    return Err(Error::new(
                        ErrorKind::InvalidConfig,
                        format!(
                            "{field}: `{url}` is not of the form {}host[:port]",
                            schemes[0]
                        ),
                    ));
                }
            }
        }
        let millis = |name, d: Duration, least, most| {
            in_range(
                name,
                u64::try_from(d.as_millis()).unwrap_or(u64::MAX),
                least,
                most,
            )
        };
        millis("connect_timeout_ms", self.connect_timeout, 100, 600_000)?;
        millis("relay_timeout_ms", self.relay_timeout, 100, 600_000)?;
        millis("stun_timeout_ms", self.stun_timeout, 100, 60_000)?;
        let mapping = self.port_mapping_timeout;
        millis("port_mapping_timeout_ms", mapping, 100, 60_000)?;
        millis("upgrade_backoff_ms", self.upgrade_backoff, 10, 600_000)?;
        millis("resume_timeout_ms", self.resume_timeout, 0, 3_600_000)?;
        millis("idle_timeout_ms", self.idle_timeout, 0, 3_600_000)?;
        in_range("upgrade_tries", self.upgrade_tries.into(), 0, 100)?;
        in_range("relay_reservations", self.relay_reservations as u64, 1, 16)?;
        in_range(
            "stream_window",
            self.stream_window.into(),
            64 << 10,
            64 << 20,
        )?;
        in_range("max_connections", self.max_connections as u64, 1, 65_536)?;
        in_range("max_streams", self.max_streams as u64, 1, 65_536)
    }

    /// The relays' addresses; each ends in `/p2p/<relay>`.
    pub(crate) fn relay_addrs(&self) -> Result<Vec<Multiaddr>, Error> {
        let addrs = parse_all("relays", &self.relays)?;
        for (text, addr) in self.relays.iter().zip(&addrs) {
            if relay_id(addr).is_none() || addr.iter().any(|p| p == Protocol::P2pCircuit) {
                return Err(Error::new(
                    ErrorKind::InvalidAddress,
                    format!("relays: `{text}` does not end in /p2p/<id of the relay>"),
                ));
            }
        }
        Ok(addrs)
    }

    pub(crate) fn listen_addrs(&self) -> Result<Vec<Multiaddr>, Error> {
        parse_all("listen", &self.listen)
    }
}

/// Refuses names that the wire cannot carry: empty, over 256 bytes, control characters.
pub(crate) fn check_protocol(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidProtocol,
            "a protocol name has 1 to 256 bytes and no control characters",
        ));
    }
    Ok(())
}

fn parse_all(field: &str, texts: &[String]) -> Result<Vec<Multiaddr>, Error> {
    texts
        .iter()
        .map(|text| {
            text.parse().map_err(|e| {
                Error::new(
                    ErrorKind::InvalidAddress,
                    format!("{field}: `{text}` is not a multiaddress: {e}"),
                )
            })
        })
        .collect()
}

fn in_range(name: &str, value: u64, least: u64, most: u64) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!("{name}: {value} is not within {least} to {most}"),
    ))
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_round_trip_through_json() {
        let config = Config::default();
        config.validate().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
        assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), config);
    }

    #[test]
    fn names_from_javascript_are_known_and_unknown_ones_refused() {
        let config: Config = serde_json::from_str(r#"{"connectTimeoutMs": 250}"#).unwrap();
        assert_eq!(config.connect_timeout, Duration::from_millis(250));
        let error = serde_json::from_str::<Config>(r#"{"conectTimeoutMs": 250}"#).unwrap_err();
        assert!(error.to_string().contains("conectTimeoutMs"));
    }

    #[test]
    fn ranges_hold_at_their_edges() {
        let with = |f: fn(&mut Config)| {
            let mut config = Config::default();
            f(&mut config);
            config.validate()
        };
        with(|c| c.connect_timeout = Duration::from_millis(100)).unwrap();
        let error = with(|c| c.connect_timeout = Duration::from_millis(99)).unwrap_err();
        assert!(error.message().starts_with("connect_timeout_ms"));
        with(|c| c.stream_window = 64 << 20).unwrap();
        with(|c| c.stream_window = (64 << 20) + 1).unwrap_err();
        let error = with(|c| c.relays = vec!["/ip4/192.0.2.1/tcp/1".into()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        with(|c| c.stun = vec!["192.0.2.1".into()]).unwrap_err();
        with(|c| c.stun = vec!["stuns:192.0.2.1".into()]).unwrap_err();
        with(|c| c.port_mapping_timeout = Duration::from_secs(60)).unwrap();
        with(|c| c.port_mapping_timeout = Duration::from_secs(61)).unwrap_err();
        with(|c| c.protocols = vec![String::new()]).unwrap_err();
    }

    #[test]
    fn debug_hides_the_turn_password() {
        let server = TurnServer {
            url: "turn:192.0.2.1".into(),
            username: "u".into(),
            credential: "hunter2".into(),
        };
        assert!(!format!("{server:?}").contains("hunter2"));
    }
}
