//! What a connector knows about its own network position.

use serde::Serialize;

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
    /// Those of our addresses that a relay, or another AutoNAT server, has dialled from an address
    /// that we had not sent anything to: peers reach us there, and the ticket says so first. Empty
    /// behind most NATs, with `direct` off and in browsers. Personal data.
    pub confirmed: Vec<String>,
    /// Connections to peers, the relays' own not counted.
    pub connections: usize,
    /// Strategies that this target and configuration can use.
    pub strategies: Vec<crate::Strategy>,
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
    /// Why the last try failed, if it did.
    pub last_error: Option<String>,
    /// The round-trip time to it, once measured.
    #[serde(rename = "rtt_ms", serialize_with = "crate::event::opt_millis")]
    pub rtt: Option<std::time::Duration>,
}
