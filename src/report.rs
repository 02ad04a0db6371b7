//! What a connector knows about its own network position.

use serde::Serialize;

use crate::event::{Cause, Strategy};

pub use crate::core::nat::{NatFiltering, NatMapping, NatPorts};

/// What [`Connector::report`](crate::Connector::report) gives: the state of now, no new probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// This connector's peer id.
    pub peer_id: String,
    /// The configured relays and what became of them.
    pub relays: Vec<RelayReport>,
    /// Addresses this connector listens on. Personal data.
    pub listening: Vec<String>,
    /// Our addresses as others see them (STUN, relays, peers). Personal data.
    pub observed: Vec<String>,
    /// The NAT before us, as far as it is known.
    pub nat: NatReport,
    /// Those of our addresses that a relay, or another AutoNAT server, has dialled from an address
    /// that we had not sent anything to: peers reach us there, and the ticket says so first. They
    /// are tested again and again, and gone when that fails or the network changes. Empty
    /// behind most NATs, with `direct` off and in browsers. Personal data.
    pub confirmed: Vec<String>,
    /// Connections to peers, the relays' own not counted.
    pub connections: usize,
    /// Strategies that this target and configuration can use.
    pub strategies: Vec<Strategy>,
}

/// One relay in a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelayReport {
    /// The relay's peer id.
    pub peer_id: String,
    /// Whether a connection to it is up.
    pub connected: bool,
    /// Whether it holds a reservation for us.
    pub reserved: bool,
    /// Whether it forwards what is sent before the peer has agreed: the first bytes of a circuit,
    /// offers of ICE, and the early data of [`Connector::open`](crate::Connector::open). Relays of
    /// this library do; it is known from them soon after the link is up.
    pub forwards: bool,
    /// Why the last try failed, if it did.
    pub last_error: Option<String>,
    /// The round-trip time to it, once measured.
    #[serde(rename = "rtt_ms", serialize_with = "crate::event::opt_millis")]
    pub rtt: Option<std::time::Duration>,
}

/// The NAT before a connector, in a [`Report`]: what STUN servers saw and what the router said. In
/// a browser, which does not tell, all of it is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NatReport {
    /// When it reuses a mapping; decides whether holes can be punched.
    pub mapping: NatMapping,
    /// Whom it lets in.
    pub filtering: NatFiltering,
    /// How it picks ports.
    pub ports: NatPorts,
    /// From one port of a sequence to the next, with [`NatPorts::Contiguous`].
    pub port_step: Option<i32>,
    /// Our IP addresses as STUN servers see them. Personal data.
    pub external: Vec<String>,
    /// The configured STUN servers and what became of them.
    pub stun: Vec<StunReport>,
    /// What became of asking the router to forward a port to us.
    pub port_mapping: PortMappingState,
    /// The address and port that the router says it forwards to us, with
    /// [`PortMappingState::Mapped`]. Personal data.
    pub mapped: Option<String>,
    /// What the router speaks, with a port mapping or without; all `false` until it was asked.
    pub protocols: MappingProtocols,
    #[serde(skip)]
    pub(crate) stun_pending: bool,
    /// Strategies that cannot work from this end of a connection as things are now.
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
    /// Says why `strategy` cannot work, or that it may. Returns whether that is new.
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

    /// Whether everything that was asked has been answered or given up, so that what is still
    /// unknown will stay so until the network changes.
    pub fn is_settled(&self) -> bool {
        !self.stun_pending && self.port_mapping != PortMappingState::Searching
    }
}

/// One STUN server in a [`NatReport`]. With neither an address nor an error it has not answered
/// yet, or has no IP address of a kind that this machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StunReport {
    /// `host:port`.
    pub server: String,
    /// Our address and port as it sees them. Personal data.
    pub mapped: Option<String>,
    /// The time that its last answer took, retransmissions included.
    #[serde(rename = "rtt_ms", serialize_with = "crate::event::opt_millis")]
    pub rtt: Option<std::time::Duration>,
    /// Why it gave no answer.
    pub error: Option<String>,
}

/// One TURN server, asked by [`Config::check_turn`](crate::Config).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TurnReport {
    /// Its URL.
    pub server: String,
    /// The addresses that it gave, one of each family that it has.
    pub relayed: Vec<String>,
    /// The time to the first of them, with its name, connection and handshakes.
    #[serde(rename = "ms", serialize_with = "crate::event::opt_millis")]
    pub took: Option<std::time::Duration>,
    /// Why it gave none.
    pub error: Option<String>,
}

/// How far a port mapping is, in a [`NatReport`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PortMappingState {
    /// Not asked for: switched off, not possible on this target, or no NAT stands between this
    /// machine and the internet.
    #[default]
    Off,
    /// The router has not answered yet.
    Searching,
    /// No router maps ports.
    Unavailable,
    /// The router maps ports, but its own external address is not one of the internet: another NAT
    /// stands before it. Nothing is offered to peers.
    Useless,
    /// The router says that it forwards a port to us. Whether it does is seen when a connection
    /// uses it.
    Mapped,
}

/// The protocols by which a router was found to map ports.
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
