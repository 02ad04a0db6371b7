//! The report of what a connector knows about its own network position.

use serde::Serialize;

use crate::event::{Cause, Strategy};

pub use crate::core::nat::{NatFiltering, NatMapping, NatPorts};

/// The present state of a connector, from [`Connector::report`](crate::Connector::report). A report
/// sends no probes.
///
/// ```no_run
/// # async fn show(me: &throughline::Connector) -> Result<(), throughline::Error> {
/// let report = me.report().await?;
/// println!("{} connections, reachable at {:?}", report.connections, report.confirmed);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// This connector's peer id.
    pub peer_id: String,
    /// The configured relays and their states.
    pub relays: Vec<RelayReport>,
    /// The addresses on which this connector listens. They are personal data.
    pub listening: Vec<String>,
    /// The addresses of this connector as STUN servers, relays and peers see them. They are
    /// personal data.
    pub observed: Vec<String>,
    /// The NAT in front of this connector, as far as it is known.
    pub nat: NatReport,
    /// The addresses of this connector that an AutoNAT server, such as a relay, has dialled from an
    /// address to which this connector had not sent anything. Peers reach it there, so these
    /// addresses come first in the ticket. They are tested again and again, and removed when a test
    /// fails or the network changes. The list is empty behind most NATs, with `direct` off, and in
    /// browsers. They are personal data.
    pub confirmed: Vec<String>,
    /// The number of connections to peers. Connections to relays do not count.
    pub connections: usize,
    /// The strategies that are possible with this target and configuration.
    pub strategies: Vec<Strategy>,
}

/// One relay in a [`Report`].
///
/// ```no_run
/// /// Whether peers can reach this peer through a relay now.
/// async fn is_reachable(me: &throughline::Connector) -> Result<bool, throughline::Error> {
///     Ok(me.report().await?.relays.iter().any(|relay| relay.reserved))
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelayReport {
    /// The relay's peer id. It is empty for a relay that is configured by a name or a URL, as long as
    /// the relay has not said who it is.
    pub peer_id: String,
    /// The name or URL by which the relay is configured, or `None` if it is by a multiaddress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the connection to the relay is up.
    pub connected: bool,
    /// Whether the relay holds a reservation for this peer.
    pub reserved: bool,
    /// Whether the relay forwards bytes before the other peer has agreed: the first bytes of a
    /// circuit, ICE offers, and the early data of [`Connector::open`](crate::Connector::open).
    /// Relays of this library do so, and tell it soon after the link is up.
    pub forwards: bool,
    /// Why the last attempt failed. It is `None` if that attempt did not fail.
    pub last_error: Option<String>,
    /// The round-trip time to the relay, or `None` before the first measurement.
    #[serde(
        rename = "rtt_ms",
        serialize_with = "crate::event::opt_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt: Option<std::time::Duration>,
}

/// The NAT in front of a connector, in a [`Report`]. It comes from the answers of STUN servers and
/// of the router. A browser does not tell, so everything is unknown there.
///
/// ```
/// use throughline::{NatMapping, Report};
///
/// // No server was asked yet.
/// let nat = Report::default().nat;
/// assert_eq!(nat.mapping, NatMapping::Unknown);
/// assert!(nat.is_settled());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NatReport {
    /// For which destinations the NAT reuses a mapping. This decides whether hole punching works.
    pub mapping: NatMapping,
    /// Whose datagrams the NAT lets in.
    pub filtering: NatFiltering,
    /// How the NAT picks ports.
    pub ports: NatPorts,
    /// The difference between a port and the next port, with [`NatPorts::Contiguous`].
    pub port_step: Option<i32>,
    /// The IP addresses of this connector as STUN servers see them. They are personal data.
    pub external: Vec<String>,
    /// The configured STUN servers and their answers.
    pub stun: Vec<StunReport>,
    /// The state of the request to the router to forward a port.
    pub port_mapping: PortMappingState,
    /// The address and port that the router says it forwards, with [`PortMappingState::Mapped`].
    /// They are personal data.
    pub mapped: Option<String>,
    /// The protocols that the router speaks, whether it maps a port or not. All are `false` before
    /// the router was asked.
    pub protocols: MappingProtocols,
    #[serde(skip)]
    pub(crate) stun_pending: bool,
    /// Whether all STUN servers that have answered have one IP address.
    #[serde(skip)]
    pub(crate) one_server: bool,
    /// The strategies that cannot work from this end of a connection at present.
    #[serde(skip)]
    pub(crate) hopeless: Vec<Hopeless>,
}

/// Why a strategy cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hopeless {
    pub(crate) strategy: Strategy,
    pub(crate) cause: Cause,
    pub(crate) reason: String,
}

impl NatReport {
    /// Notes why `strategy` cannot work, or with `None` that it may work. Returns whether this is
    /// new.
    #[allow(dead_code, reason = "a browser does not tell")]
    pub(crate) fn set_hopeless(
        &mut self,
        strategy: Strategy,
        why: Option<(Cause, String)>,
    ) -> bool {
        let why = why.map(|(cause, reason)| Hopeless {
            strategy,
            cause,
            reason,
        });
        let known = |known: &&Hopeless| known.strategy == strategy;
        if self.hopeless.iter().find(known) == why.as_ref() {
            return false;
        }
        self.hopeless.retain(|known| known.strategy != strategy);
        self.hopeless.extend(why);
        true
    }

    /// Whether every question has been answered or given up. If so, values that are still unknown
    /// stay unknown until the network changes.
    pub fn is_settled(&self) -> bool {
        !self.stun_pending && self.port_mapping != PortMappingState::Searching
    }
}

/// One STUN server in a [`NatReport`]. If there is neither an address nor an error, the server has
/// not answered yet, or has no IP address of a family that this machine has.
///
/// ```no_run
/// # async fn show(me: &throughline::Connector) -> Result<(), throughline::Error> {
/// for stun in me.report().await?.nat.stun {
///     match (stun.mapped, stun.error) {
///         (Some(address), _) => println!("{} sees us at {address}", stun.server),
///         (None, Some(error)) => println!("{}: {error}", stun.server),
///         (None, None) => println!("{} has not answered yet", stun.server),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StunReport {
    /// The server as `host:port`.
    pub server: String,
    /// The address and port of this connector as the server sees them. They are personal data.
    pub mapped: Option<String>,
    /// How long the last answer took, including retransmissions.
    #[serde(
        rename = "rtt_ms",
        serialize_with = "crate::event::opt_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt: Option<std::time::Duration>,
    /// Why there is no answer.
    pub error: Option<String>,
}

/// The result for one TURN server of [`Config::check_turn`](crate::Config).
///
/// ```no_run
/// # async fn show(config: &throughline::Config) -> Result<(), throughline::Error> {
/// for turn in config.check_turn().await? {
///     match turn.error {
///         Some(error) => println!("{}: {error}", turn.server),
///         None => println!("{} gave {:?}", turn.server, turn.relayed),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TurnReport {
    /// The URL of the server.
    pub server: String,
    /// The relayed addresses that the server gave, one of each family that it has.
    pub relayed: Vec<String>,
    /// How long the first of them took. This includes name resolution, connection and handshakes.
    #[serde(rename = "ms", serialize_with = "crate::event::opt_millis")]
    pub took: Option<std::time::Duration>,
    /// Why the server gave no address.
    pub error: Option<String>,
}

/// The state of a port mapping, in a [`NatReport`].
///
/// ```
/// use throughline::{PortMappingState, Report};
///
/// assert_eq!(Report::default().nat.port_mapping, PortMappingState::Off);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PortMappingState {
    /// No mapping was requested. It is switched off, this target cannot request it, or there is no
    /// NAT between this machine and the internet.
    #[default]
    Off,
    /// The router has not answered yet.
    Searching,
    /// No router maps ports.
    Unavailable,
    /// The router maps ports, but its own external address is not public, because there is another
    /// NAT in front of it. No address is offered to peers.
    Useless,
    /// The router says that it forwards a port. Only a connection that uses the port shows whether
    /// this is true.
    Mapped,
}

/// The protocols that a router understands for port mapping.
///
/// ```
/// use throughline::Report;
///
/// let protocols = Report::default().nat.protocols;
/// assert!(!protocols.upnp && !protocols.nat_pmp && !protocols.pcp);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct MappingProtocols {
    /// UPnP Internet Gateway Device.
    pub upnp: bool,
    /// NAT-PMP (RFC 6886).
    pub nat_pmp: bool,
    /// PCP (RFC 6887).
    pub pcp: bool,
}
