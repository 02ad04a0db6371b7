//! Every number and address a user can set, the same in Rust, TOML, JSON and JavaScript.

use std::{path::PathBuf, time::Duration};

use multiaddr::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};

use crate::{
    core::{
        address,
        server_url::{ServerUrl, Service},
    },
    error::{Error, ErrorKind},
    event::Strategy,
    ticket::relay_id,
};

/// No user waits for it, because the race starts every strategy at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A strategy that needs longer than this has been overtaken by another long before.
const STRATEGY_TIMEOUT: Duration = Duration::from_secs(10);
/// The first path is as good a start as a better one, because streams move without loss.
const ACCEPTANCE_DELAY: Duration = Duration::ZERO;
/// Ordinary checks that can succeed have done so by then; many sockets are for those that cannot.
const BIRTHDAY_START: Duration = Duration::from_secs(1);
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
/// As many as a stock relay grants in all.
const MAX_CIRCUITS: usize = 16;
/// A test costs up to 100 kB and another machine's dial, so it is nothing to begin at once.
const AUTONAT_RETRY: Duration = Duration::from_secs(30);
/// With 256 ports open, 1,024 random probes find one with 98 % and need few of a NAT's entries.
const BIRTHDAY_SOCKETS: u16 = 256;
/// See `BIRTHDAY_SOCKETS`.
const BIRTHDAY_PROBES: u32 = 1024;
/// Ten seconds for all probes, at a packet rate below that of a voice call in both directions.
const BIRTHDAY_RATE: u32 = 100;
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
    pub relay_reservations: usize,
    /// STUN servers, as `stun:host[:port]` (RFC 7064), all asked at once. At most 16. Two tell what
    /// kind of NAT there is. STUN over TLS (`stuns:`) is refused: it would tell the address of a
    /// TCP connection, which no peer can send to. Defaults to none; a relay started by
    /// `throughline serve` is two.
    pub stun: Vec<String>,
    /// TURN servers (RFC 8656), asked for a relayed address when a connection is tried and no
    /// sooner. At most 16. Defaults to none; `throughline serve` can be one.
    pub turn: Vec<TurnServer>,
    /// A PEM file of certificate authorities to trust for `turns:`, besides the public ones of the
    /// web. Native only; ignored in a browser, which has its own. Defaults to none.
    pub turn_ca: Option<PathBuf>,
    /// Addresses to listen on, native only; ignored in a browser. Defaults to an ephemeral port of
    /// every interface over QUIC and TCP.
    pub listen: Vec<String>,
    /// Protocol names that stock libp2p peers may open streams with (peers of this library may use
    /// any name). At most 256. Defaults to none.
    pub protocols: Vec<String>,
    /// Whether to try for paths other than the relay. `false` keeps every address of this peer
    /// from the other side. Defaults to `true`.
    pub direct: bool,
    /// Whether addresses that others name (in tickets, as relays, as candidates) are dialled in
    /// private networks and on this machine. Defaults to `true`: peers on one network meet there.
    /// Set it to `false` in a server that dials its users' tickets, because each ticket could point
    /// it at a service of its own network. Whatever it says, nobody is dialled at link-local,
    /// multicast, reserved and metadata addresses, [`relays`](Self::relays) that are IP addresses
    /// are dialled, and this machine gets no first bytes that somebody else has chosen: QUIC, TCP,
    /// and WebSocket at `/` of an IP address or of `localhost` are all that is dialled there. In a
    /// browser it counts for relays; who may be checked as a candidate the browser decides.
    #[serde(alias = "dialPrivate")]
    pub dial_private: bool,
    /// The longest that [`Connector::connect`](crate::Connector::connect) may take. 100 ms to
    /// 10 min. Defaults to 10 s; it returns on the first path, which is much sooner.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// The longest that one attempt by one strategy may take. 100 ms to 10 min. Defaults to 10 s:
    /// nobody waits for it, because all strategies run at the same time.
    #[serde(rename = "strategy_timeout_ms", with = "millis")]
    pub strategy_timeout: Duration,
    /// How long each strategy waits for its start, by name. 0 to 1 min each. Defaults to 0, all at
    /// once, but for `birthday`, which is for what everything else fails at, with 1 s.
    #[serde(rename = "start_delays_ms")]
    pub start_delays: StartDelays,
    /// How long connect holds a path that is not direct back while a direct one may still come.
    /// 0 to 1 min. Defaults to 0: it returns on the first path, and streams move to a better one.
    #[serde(rename = "acceptance_delay_ms", with = "millis")]
    pub acceptance_delay: Duration,
    /// How long to wait for a relay, to be reached and to grant a reservation. 100 ms to 10 min.
    /// Defaults to 10 s.
    #[serde(rename = "relay_timeout_ms", with = "millis")]
    pub relay_timeout: Duration,
    /// How long a STUN server may take to answer (RFC 8489 section 6.2.1). 100 ms to 1 min.
    /// Defaults to 5 s; an offer never waits for it.
    #[serde(rename = "stun_timeout_ms", with = "millis")]
    pub stun_timeout: Duration,
    /// Whether to ask the router to forward a UDP port to this machine, by PCP, NAT-PMP or
    /// UPnP-IGD; native only. The mapping is renewed while the connector lives and removed when it
    /// is closed. Defaults to `true`: behind a NAT that nothing else opens, it is what connects.
    pub port_mapping: bool,
    /// How long the router may take to answer that. 100 ms to 1 min. Defaults to 5 s; nothing
    /// waits for it.
    #[serde(rename = "port_mapping_timeout_ms", with = "millis")]
    pub port_mapping_timeout: Duration,
    /// How often each strategy for a direct path is repeated in the background after a failure.
    /// 0 to 100; 0 tries once. Defaults to 3. A lost circuit is sought for as long as the
    /// connection lasts.
    pub upgrade_tries: u32,
    /// The pause before the first repetition; it doubles each time and is jittered by a quarter.
    /// 10 ms to 10 min. Defaults to 2 s, hence 2, 4 and 8 s.
    #[serde(rename = "upgrade_backoff_ms", with = "millis")]
    pub upgrade_backoff: Duration,
    /// How long streams wait for a path after the last one is lost, before they fail with
    /// [`ErrorKind::ConnectionLost`]. 0 to 1 h. Defaults to 30 s.
    #[serde(rename = "resume_timeout_ms", with = "millis")]
    pub resume_timeout: Duration,
    /// A connection with no streams and no handle left is closed after this. 0 to 1 h. Defaults to
    /// 30 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// Bytes in flight per stream and direction, which bound both its throughput (window divided
    /// by round-trip time) and its memory. 64 KiB to 64 MiB. Defaults to 4 MiB.
    pub stream_window: u32,
    /// Circuits that this peer has open through relays at a time, all relays together; a connect
    /// beyond takes that of a connection which does not use it. 1 to 1,024. Defaults to 16.
    pub max_circuits: usize,
    /// How long an address of ours that others may be able to dial waits for its first test, by an
    /// AutoNAT server (relays, mostly), and for the next one after a test that failed, which
    /// doubles up to 120 times this. One that was reached is tested again after 20 times this, and
    /// taken back when that fails, or when nobody has reached it for 40 times this. 1 s to 1 h.
    /// Defaults to 30 s, hence 10 and 20 min: a test costs up to 100 kB. Nothing waits for it.
    /// Native only; ignored in a browser. Peers do not test each other: one in the network of the
    /// other reaches what nobody else does.
    #[serde(rename = "autonat_retry_ms", with = "millis")]
    pub autonat_retry: Duration,
    /// Whether to ask the local network, by multicast DNS (RFC 6762), for the addresses that pages
    /// hide behind `<uuid>.local` names; no other name is asked for. Defaults to `true`: it finds
    /// a page on the same network that cannot reach us first. Native only; ignored in a browser.
    pub mdns: bool,
    /// Whether to probe many ports against symmetric NATs when nothing else works. It costs a NAT
    /// entry for each socket and probe. Defaults to `true`. Native only; ignored in a browser.
    pub birthday: bool,
    /// Sockets opened for it on the side of the symmetric NAT. 1 to 1,024. Defaults to 256.
    pub birthday_sockets: u16,
    /// Probes sent for it from the other side, at most. 1 to 65,536. Defaults to 1,024.
    pub birthday_probes: u32,
    /// Probes per second. 1 to 10,000. Defaults to 100.
    pub birthday_rate: u32,
    /// Connections open at a time, in and out; more are refused. 1 to 65,536. Defaults to 1,024.
    pub max_connections: usize,
    /// Streams open at a time on one connection; more are refused. 1 to 65,536. Defaults to 1,024.
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
            turn_ca: None,
            listen: Vec::new(),
            protocols: Vec::new(),
            direct: true,
            dial_private: true,
            connect_timeout: CONNECT_TIMEOUT,
            strategy_timeout: STRATEGY_TIMEOUT,
            start_delays: StartDelays::default(),
            acceptance_delay: ACCEPTANCE_DELAY,
            relay_timeout: RELAY_TIMEOUT,
            stun_timeout: STUN_TIMEOUT,
            port_mapping: true,
            port_mapping_timeout: PORT_MAPPING_TIMEOUT,
            upgrade_tries: UPGRADE_TRIES,
            upgrade_backoff: UPGRADE_BACKOFF,
            resume_timeout: RESUME_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            stream_window: STREAM_WINDOW,
            max_circuits: MAX_CIRCUITS,
            autonat_retry: AUTONAT_RETRY,
            mdns: true,
            birthday: true,
            birthday_sockets: BIRTHDAY_SOCKETS,
            birthday_probes: BIRTHDAY_PROBES,
            birthday_rate: BIRTHDAY_RATE,
            max_connections: MAX_CONNECTIONS,
            max_streams: MAX_STREAMS,
        }
    }
}

/// How long each strategy waits for its start, from when it could start: `direct` and
/// `circuit_relay` from the call to connect, the others from when they can be signalled, over a
/// circuit or by an offer sealed for a relay. In TOML, JSON and JavaScript an object of whole
/// milliseconds; what is left out keeps its default.
///
/// `stun`, `upnp` and `turn` share one negotiation, which begins after the shortest of their
/// delays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StartDelays {
    /// The peer's own addresses. Defaults to 0.
    #[serde(with = "millis")]
    pub direct: Duration,
    /// Hole punching. Defaults to 0.
    #[serde(with = "millis")]
    pub stun: Duration,
    /// Mapped ports. Defaults to 0.
    #[serde(with = "millis")]
    pub upnp: Duration,
    /// Relay circuits. Defaults to 0, with which those that a sealed offer may make needless are
    /// made one at a time, up to four where they are needed, with pauses that grow with the time they
    /// take; after 5 to 7.4 s where there is no path without.
    #[serde(with = "millis")]
    pub circuit_relay: Duration,
    /// TURN servers. Defaults to 0.
    #[serde(with = "millis")]
    pub turn: Duration,
    /// Many ports against symmetric NATs. Defaults to 1 s, so that ordinary hole punching comes
    /// first.
    #[serde(with = "millis")]
    pub birthday: Duration,
}

impl Default for StartDelays {
    fn default() -> Self {
        Self {
            direct: Duration::ZERO,
            stun: Duration::ZERO,
            upnp: Duration::ZERO,
            circuit_relay: Duration::ZERO,
            turn: Duration::ZERO,
            birthday: BIRTHDAY_START,
        }
    }
}

impl StartDelays {
    /// The delay of one strategy.
    pub fn of(&self, strategy: Strategy) -> Duration {
        match strategy {
            Strategy::Direct => self.direct,
            Strategy::Stun => self.stun,
            Strategy::Upnp => self.upnp,
            Strategy::CircuitRelay => self.circuit_relay,
            Strategy::Turn => self.turn,
            Strategy::Birthday => self.birthday,
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
        for url in &self.stun {
            server_url("stun", url, |service| service == Service::Stun)?;
        }
        for server in &self.turn {
            server_url("turn", &server.url, |service| {
                matches!(service, Service::Turn(_))
            })?;
        }
        let millis = |name: &str, d: Duration, least, most| {
            in_range(
                name,
                u64::try_from(d.as_millis()).unwrap_or(u64::MAX),
                least,
                most,
            )
        };
        millis("connect_timeout_ms", self.connect_timeout, 100, 600_000)?;
        millis("strategy_timeout_ms", self.strategy_timeout, 100, 600_000)?;
        millis("acceptance_delay_ms", self.acceptance_delay, 0, 60_000)?;
        for strategy in Strategy::ALL {
            let name = format!("start_delays_ms.{strategy}");
            millis(&name, self.start_delays.of(*strategy), 0, 60_000)?;
        }
        millis("autonat_retry_ms", self.autonat_retry, 1_000, 3_600_000)?;
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
        in_range("max_circuits", self.max_circuits as u64, 1, 1_024)?;
        in_range("birthday_sockets", self.birthday_sockets.into(), 1, 1_024)?;
        in_range("birthday_probes", self.birthday_probes.into(), 1, 65_536)?;
        in_range("birthday_rate", self.birthday_rate.into(), 1, 10_000)?;
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

/// The URL of a server that offers what `is_fit` asks for.
pub(crate) fn server_url(
    field: &str,
    url: &str,
    is_fit: impl Fn(Service) -> bool,
) -> Result<ServerUrl, Error> {
    let refuse = |why: &dyn std::fmt::Display| {
        let message = format!("{field}: `{url}` {why}");
        Err(Error::new(ErrorKind::InvalidConfig, message))
    };
    match url.parse::<ServerUrl>() {
        Ok(parsed) if is_fit(parsed.service) => Ok(parsed),
        Ok(_) => refuse(&format_args!(
            "is not the URL of a server that can be used for {field}"
        )),
        Err(error) => refuse(&error),
    }
}

fn parse_all(field: &str, texts: &[String]) -> Result<Vec<Multiaddr>, Error> {
    texts
        .iter()
        .map(|text| {
            let refuse = |why: &dyn std::fmt::Display| {
                let message = format!("{field}: `{}` {why}", text.escape_debug());
                Error::new(ErrorKind::InvalidAddress, message)
            };
            let address = text
                .parse()
                .map_err(|e| refuse(&format_args!("is not a multiaddress: {e}")))?;
            match address::fault(&address) {
                Some(why) => Err(refuse(&format_args!("cannot be used: {why}"))),
                None => Ok(address),
            }
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
mod tests;
