//! The options of a connector, the same in Rust, TOML, JSON and JavaScript.

pub(crate) mod options;
mod tokens;

use std::{path::PathBuf, time::Duration};

use multiaddr::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};

pub use self::tokens::RelayTokens;
pub use crate::core::delays::StartDelays;
use crate::{
    core::{
        access::MAX_USERNAME,
        address,
        delays::millis,
        liveness::Probing,
        server_url::{ServerUrl, Service},
        site::RelayText,
    },
    error::{Error, ErrorKind},
    ticket::relay_id,
};

/// The configuration of a [`Connector`](crate::Connector).
///
/// The defaults are fit for use, except that a peer behind a NAT needs [`relays`](Self::relays) to
/// be reached. They have no default, because this project runs no servers. TOML and JSON use the
/// names that stand here, and JavaScript writes them in camel case. Outside Rust, durations are
/// whole milliseconds and their names end in `_ms` (`Ms`). Unknown names are refused.
///
/// ```
/// use std::time::Duration;
/// use throughline::{Config, Identity};
///
/// let relay = Identity::generate().peer_id(); // a relay prints its own when it starts
/// let mut config = Config::default();
/// config.relays = vec![format!("/dns4/relay.example/tcp/443/wss/p2p/{relay}")];
/// config.connect_timeout = Duration::from_secs(5);
/// config.validate()?;
///
/// config.connect_timeout = Duration::ZERO;
/// assert_eq!(config.validate().unwrap_err().code(), "invalid_config");
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The relays through which others can reach this peer. 0 to 16 relays, by 64 texts in all. The
    /// first relays are preferred. Without a relay, others can reach this peer only at its own
    /// addresses. Defaults to none.
    ///
    /// A relay is a name (`relay.example.org`), a name or an address with a port
    /// (`relay.example.org:8443`, `[2001:db8::1]:443`), or a URL (`https://relay.example.org`). The
    /// rest is learnt from `/.well-known/throughline` there: its addresses over every transport, which
    /// are raced, and its STUN and TURN servers. That happens over https. Only `localhost`, an address
    /// of this machine, and `http://` with an IP address go without it. What was learnt is kept in
    /// memory and learnt anew when it is old (after 5 min), when the relay is not reached, and when the
    /// network changes. The last answer counts as long as there is no newer one. With `/p2p/<id>` at
    /// the end, only the relay with this peer id will do.
    ///
    /// Or it is a multiaddress that ends in `/p2p/<id>`. Several of one relay count as one relay. A
    /// relay of this library adds its other addresses and its STUN servers over the link.
    pub relays: Vec<String>,
    /// Whether to hold reservations on the relays, so that others can reach this peer through them.
    /// A peer that only dials saves a round trip without them. Defaults to `true`.
    pub reserve: bool,
    /// On how many relays to hold a reservation at a time. 1 to 16. The other relays stand by.
    /// Defaults to 2, so that the peer stays reachable when one relay dies.
    pub relay_reservations: usize,
    /// The token for relays that admit only its holders, or a way to get one. It goes to the
    /// [`relays`](Self::relays) that ask for tokens, and to nobody else. Defaults to none. In
    /// JavaScript it is a string, or a function that gives a promise of one.
    pub relay_tokens: Option<RelayTokens>,
    /// The STUN servers, as `stun:host[:port]` (RFC 7064). All are asked at once. 0 to 16. Two
    /// servers show what kind of NAT there is. STUN over TLS (`stuns:`) is refused, because it
    /// would report the address of a TCP connection, to which no peer can send. Defaults to those of the
    /// [`relays`](Self::relays) of this library, of which each has two, and to none with other relays.
    pub stun: Vec<String>,
    /// The TURN servers (RFC 8656). They are asked for a relayed address when a connection is
    /// tried, and not before. 0 to 16. Defaults to those of the [`relays`](Self::relays) of this library:
    /// one that is configured by its name and open to everybody, and one that admits this peer by a
    /// token.
    pub turn: Vec<TurnServer>,
    /// A PEM file of certificate authorities to trust for `turns:`, in addition to the public ones
    /// of the web. Native only: a browser has its own and ignores this. Defaults to none.
    pub turn_ca: Option<PathBuf>,
    /// A PEM file of certificate authorities to trust for relays at `/tls/ws` and `/wss`, in addition
    /// to the public ones of the web. Native only: a browser has its own and ignores this. Defaults to
    /// none.
    pub relay_ca: Option<PathBuf>,
    /// The addresses to listen on. 0 to 16. Native only: a browser ignores this. Defaults to an
    /// ephemeral port of every interface, over QUIC and TCP.
    pub listen: Vec<String>,
    /// The protocols for which stock libp2p peers may open streams. Peers of this library may use
    /// any name. 0 to 256. Defaults to none.
    pub protocols: Vec<String>,
    /// Whether to try for paths other than the relay. `false` hides every address of this peer from
    /// the other side. Defaults to `true`.
    pub direct: bool,
    /// Whether to dial addresses in private networks and on this machine when others name them (in
    /// tickets, as relays, as candidates). Defaults to `true`, because peers on one network meet
    /// there. Set it to `false` in a server that dials its users' tickets, because each ticket
    /// could point it at a service of its own network.
    ///
    /// Some rules hold with either value. Link-local, multicast, reserved and metadata addresses
    /// are never dialled. [`relays`](Self::relays) that are IP addresses are always dialled. This
    /// machine gets no first bytes that somebody else has chosen: only QUIC, TCP, and WebSocket at
    /// `/` of an IP address or of `localhost` are dialled there. In a browser the option applies to
    /// relays, and the browser decides which candidates it checks.
    pub dial_private: bool,
    /// The longest time that [`Connector::connect`](crate::Connector::connect) may take. 100 ms to
    /// 10 min. Defaults to 10 s. It returns on the first path, which is much sooner.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// The longest time that one attempt by one strategy may take. 100 ms to 10 min. Defaults to 10
    /// s. No caller waits for it, because all strategies run at the same time.
    #[serde(rename = "strategy_timeout_ms", with = "millis")]
    pub strategy_timeout: Duration,
    /// How long each strategy waits before it starts, by the strategy's name. 0 to 1 min each.
    /// Defaults to 0, so that all start at once, except for `birthday`. This one starts after 1 s,
    /// because it is for the cases in which everything else fails.
    #[serde(rename = "start_delays_ms")]
    pub start_delays: StartDelays,
    /// How long a connect holds back a path that is not direct while a direct path may still come.
    /// 0 to 1 min. Defaults to 0: connect returns on the first path, and streams move to a better
    /// one later.
    #[serde(rename = "acceptance_delay_ms", with = "millis")]
    pub acceptance_delay: Duration,
    /// The longest time that a relay may take to be reached and to grant a reservation. 100 ms to
    /// 10 min. Defaults to 10 s.
    #[serde(rename = "relay_timeout_ms", with = "millis")]
    pub relay_timeout: Duration,
    /// The longest time that a STUN server may take to answer (RFC 8489 section 6.2.1). 100 ms to 1
    /// min. Defaults to 5 s. An offer never waits for the answer.
    #[serde(rename = "stun_timeout_ms", with = "millis")]
    pub stun_timeout: Duration,
    /// Whether to ask the router to forward a UDP port to this machine, by PCP, NAT-PMP or
    /// UPnP-IGD. The mapping is renewed while the connector lives and removed when the connector is
    /// closed. Native only. Defaults to `true`, because a mapping connects peers behind a NAT that
    /// nothing else opens.
    pub port_mapping: bool,
    /// The longest time that the router may take to answer the request for a port. 100 ms to 1 min.
    /// Defaults to 5 s. Nothing waits for the answer.
    #[serde(rename = "port_mapping_timeout_ms", with = "millis")]
    pub port_mapping_timeout: Duration,
    /// How often each strategy for a direct path is repeated in the background after a failure.
    /// After that, it is repeated once a minute for as long as the connection lasts. 0 to 100. With
    /// 0, each strategy runs once. Defaults to 3. A change of the network begins anew.
    pub upgrade_tries: u32,
    /// The pause before a failed strategy is first repeated. It doubles each time, with a jitter of
    /// a quarter. 10 ms to 10 min. Defaults to 2 s, hence 2, 4 and 8 s.
    #[serde(rename = "upgrade_backoff_ms", with = "millis")]
    pub upgrade_backoff: Duration,
    /// How long streams wait for a path after the last one is lost. Then they fail with
    /// [`ErrorKind::ConnectionLost`]. 0 to 1 h. Defaults to 2 min, so that a machine that sleeps for a
    /// minute goes on.
    #[serde(rename = "resume_timeout_ms", with = "millis")]
    pub resume_timeout: Duration,
    /// The pause between two probes of a path that carries nothing. 250 ms to 10 min. Defaults to 5
    /// s. A path that dies is noticed within this time and [`probe_timeout`](Self::probe_timeout). A
    /// path that carries data is probed four times in each `probe_timeout`. A probe and its answer
    /// cost about 250 bytes with all headers, which is 180 kB in an hour for each idle path.
    #[serde(rename = "probe_interval_ms", with = "millis")]
    pub probe_interval: Duration,
    /// The shortest time after which a path that leaves a probe unanswered is suspect. Streams then
    /// move to another path, if there is one, and come back when the path answers. 100 ms to 1 min.
    /// Defaults to 1 s. A path with a round trip of more than a third of it has more time.
    #[serde(rename = "probe_timeout_ms", with = "millis")]
    pub probe_timeout: Duration,
    /// How long a connection without streams and handles stays open. 0 to 1 h. Defaults to 30 s.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
    /// How long a direct path may carry nothing until this peer closes the circuit beside it. 1 s to 24 h.
    /// Defaults to 1 min. The circuit comes back when the path carries something again, or leaves a probe
    /// unanswered. An idle circuit costs the relay memory, and 180 kB of probes in an hour. Without one,
    /// streams move off a dead path some round trips later. A connection with a page keeps its circuit,
    /// because a page that is closed can say goodbye there only.
    #[serde(rename = "circuit_idle_timeout_ms", with = "millis")]
    pub circuit_idle_timeout: Duration,
    /// How many bytes may be in flight on one stream in one direction. It bounds the throughput of
    /// the stream (window divided by round-trip time) and its memory. 64 KiB to 64 MiB. Defaults to
    /// 4 MiB.
    pub stream_window: u32,
    /// How many circuits this peer has open at a time, through all relays together. A connect that
    /// needs one more takes the circuit of a connection that does not use it. 1 to 1,024. Defaults
    /// to 16.
    pub max_circuits: usize,
    /// How long an address of ours that others may be able to dial waits for its first test. An
    /// AutoNAT server makes the test, in most cases a relay. The pause after a failed test is as
    /// long, and doubles up to 120 times this value. An address that was reached is tested again
    /// after 20 times this value. It is taken back when that test fails, or when nobody has reached
    /// it for 40 times this value. 1 s to 1 h. Defaults to 30 s, hence 10 and 20 min, because a
    /// test costs up to 100 kB. Nothing waits for a test. Native only: a browser ignores this.
    /// Peers do not test each other, because a peer in the same network reaches addresses that
    /// others cannot reach.
    #[serde(rename = "autonat_retry_ms", with = "millis")]
    pub autonat_retry: Duration,
    /// Whether this peer leaves a signed record with its relays of `throughline serve`, so that others find
    /// it by its id alone, and after it has moved. A record says what [`Connector::ticket`] says. The
    /// relays show it to whoever may use them and knows the id, so set this to `false` if only those with
    /// a ticket may learn the addresses, or set `direct` to `false`, because then there are none. Defaults
    /// to `true`.
    ///
    /// [`Connector::ticket`]: crate::Connector::ticket
    pub directory: bool,
    /// Whether to ask the local network, by multicast DNS (RFC 6762), for the addresses that pages
    /// hide behind `<uuid>.local` names. No other name is asked for. Native only: a browser ignores
    /// this. Defaults to `true`, so that this peer finds a page on the same network that cannot
    /// reach it first.
    pub mdns: bool,
    /// Whether peers in the local network find this peer by its id, and this peer finds them, without any
    /// relay: by libp2p's discovery over multicast DNS (RFC 6762). Then everybody in the networks where
    /// this peer listens can read its id and its addresses. Native only: a browser ignores this. Defaults to
    /// `false`, because an id is a lasting name, by which somebody in a café could know a machine again.
    /// With [`direct`](Self::direct) set to `false`, nobody is asked or answered.
    pub lan_discovery: bool,
    /// Whether the birthday method may probe many ports of symmetric NATs when nothing else works.
    /// It costs a NAT entry for each socket and each probe. Native only: a browser ignores this.
    /// Defaults to `true`.
    pub birthday: bool,
    /// How many sockets the birthday method opens on the side of the symmetric NAT. 1 to 1,024.
    /// Defaults to 256.
    pub birthday_sockets: u16,
    /// How many probes the birthday method sends from the other side at most. 1 to 65,536. Defaults
    /// to 1,024.
    pub birthday_probes: u32,
    /// How many probes the birthday method sends per second. 1 to 10,000. Defaults to 100.
    pub birthday_rate: u32,
    /// How many connections are open at a time, in and out. Further connections are refused. 1 to
    /// 65,536. Defaults to 1,024.
    pub max_connections: usize,
    /// How many streams are open at a time on one connection, both directions together. Further
    /// streams are refused. A page, and a connection to a stock peer over data channels, have 480 at
    /// most, because Chromium has 512 channels for each end. 1 to 65,536. Defaults to 1,024.
    pub max_streams: usize,
}

/// A TURN server and the credentials for it.
///
/// ```
/// use throughline::{Config, TurnServer};
///
/// let mut config = Config::default();
/// config.turn.push(TurnServer {
///     url: "turns:turn.example:443?transport=tcp".into(),
///     username: "alice".into(),
///     credential: "secret".into(),
/// });
/// config.validate()?;
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnServer {
    /// The URL: `turn:host[:port][?transport=udp|tcp]` or `turns:…` (RFC 7065).
    pub url: String,
    /// The user name, at most 509 bytes (RFC 8489 section 14.3). For time-limited credentials it is
    /// `expiry:id`.
    pub username: String,
    /// The password. `Debug` never prints it.
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
    /// How paths are probed.
    pub(crate) fn probing(&self) -> Probing {
        Probing {
            idle: self.probe_interval,
            patience: self.probe_timeout,
        }
    }

    /// How links to relays are probed. A link that is given up takes all its circuits along, and
    /// answers may come late behind the bytes of these, so a link has more time.
    pub(crate) fn link_probing(&self) -> Probing {
        Probing {
            idle: self.probe_interval,
            patience: self.probe_timeout * 3,
        }
    }

    /// Whether relays are asked for TURN credentials. Servers that the user names win.
    pub(crate) fn asks_for_turn(&self) -> bool {
        self.direct && self.turn.is_empty()
    }

    /// Checks every value against its documented range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] or [`ErrorKind::InvalidAddress`]. The message names the field.
    pub fn validate(&self) -> Result<(), Error> {
        self.check_ranges()?;
        let (mut relays, mut sites) = (Vec::new(), 0);
        for relay in self.relay_texts()? {
            match relay {
                RelayText::Address(address) => match relay_id(&address) {
                    Some(peer) if !relays.contains(&peer) => relays.push(peer),
                    _ => {}
                },
                RelayText::Site(_) => sites += 1,
            }
        }
        options::RELAYS.check((relays.len() + sites) as u64)?;
        self.listen_addrs()?;
        for protocol in &self.protocols {
            check_protocol(protocol)?;
        }
        if let Some(token) = self.relay_tokens.as_ref().and_then(RelayTokens::fixed) {
            tokens::check(token)?;
        }
        for url in &self.stun {
            server_url("stun", url, |service| service == Service::Stun)?;
        }
        for server in &self.turn {
            server_url("turn", &server.url, |service| {
                matches!(service, Service::Turn(_))
            })?;
            if server.username.len() > MAX_USERNAME {
                let message = format!("turn: a user name has at most {MAX_USERNAME} bytes");
                return Err(Error::new(ErrorKind::InvalidConfig, message));
            }
        }
        Ok(())
    }

    /// Returns the relays. Each address ends in `/p2p/<relay>`.
    pub(crate) fn relay_texts(&self) -> Result<Vec<RelayText>, Error> {
        let parse = |text: &String| {
            let refuse = |why: &dyn std::fmt::Display| {
                let message = format!("relays: `{}` {why}", text.escape_debug());
                Error::new(ErrorKind::InvalidAddress, message)
            };
            let relay = text.parse().map_err(|why: String| refuse(&why))?;
            if let RelayText::Address(address) = &relay {
                if let Some(why) = address::fault(address) {
                    return Err(refuse(&format_args!("cannot be used: {why}")));
                }
                if relay_id(address).is_none() || address.iter().any(|p| p == Protocol::P2pCircuit)
                {
                    return Err(refuse(&"does not end in /p2p/<id of the relay>"));
                }
            }
            Ok(relay)
        };
        self.relays.iter().map(parse).collect()
    }

    pub(crate) fn listen_addrs(&self) -> Result<Vec<Multiaddr>, Error> {
        parse_all("listen", &self.listen)
    }
}

/// Refuses a name that the wire cannot carry: an empty one, one of more than 256 bytes, or one with
/// control characters.
pub(crate) fn check_protocol(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidProtocol,
            "a protocol name has 1 to 256 bytes and no control characters",
        ));
    }
    Ok(())
}

/// Parses the URL of a server. `is_fit` says which services are allowed.
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
        Ok(_) => refuse(&format_args!("is not the URL of a server for {field}")),
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

#[cfg(test)]
mod documents;
#[cfg(test)]
mod tests;
