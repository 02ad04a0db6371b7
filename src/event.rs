//! What happens to a connection: one vocabulary for Rust, JSON, JavaScript and the demo page.

use std::{fmt, time::Duration};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use serde::Serialize;

/// How bytes reach the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathKind {
    /// From host to host, through NATs at most.
    Direct,
    /// Through a TURN server (RFC 8656).
    Turn,
    /// Through a libp2p relay circuit.
    Relayed,
}

impl PathKind {
    /// The stable snake-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Turn => "turn",
            Self::Relayed => "relayed",
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The way by which a path was, or was not, brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// An address of the peer answered by itself: same network, public host, forwarded port.
    Direct,
    /// Hole punching with server- or peer-reflexive candidates (RFC 8445).
    Stun,
    /// A port mapped by UPnP-IGD, NAT-PMP (RFC 6886) or PCP (RFC 6887).
    Upnp,
    /// A libp2p relay v2 circuit.
    CircuitRelay,
    /// A relayed candidate of a TURN server (RFC 8656).
    Turn,
    /// Many ports probed at once against a symmetric NAT.
    Birthday,
}

impl Strategy {
    /// The stable snake-case name, also the metrics label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Stun => "stun",
            Self::Upnp => "upnp",
            Self::CircuitRelay => "circuit_relay",
            Self::Turn => "turn",
            Self::Birthday => "birthday",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The path a connection uses now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Path {
    /// How bytes reach the peer.
    #[serde(rename = "path")]
    pub kind: PathKind,
    /// What brought this path about.
    pub strategy: Strategy,
    /// Our end, where it is known. Personal data: keep it out of public logs.
    pub local: Option<String>,
    /// The peer's end or the relay's address. Personal data: keep it out of public logs.
    pub remote: Option<String>,
    /// The last measured round-trip time, once there is one.
    #[serde(rename = "rtt_ms", serialize_with = "opt_millis")]
    pub rtt: Option<Duration>,
}

impl Path {
    pub(crate) fn new(kind: PathKind, strategy: Strategy) -> Self {
        Self {
            kind,
            strategy,
            local: None,
            remote: None,
            rtt: None,
        }
    }
}

impl Strategy {
    /// Every strategy, in the order of the documentation.
    pub const ALL: &'static [Strategy] = &[
        Self::Direct,
        Self::Stun,
        Self::Upnp,
        Self::CircuitRelay,
        Self::Turn,
        Self::Birthday,
    ];

    /// The best kind of path that it can give.
    pub(crate) fn kind(self) -> PathKind {
        match self {
            Self::CircuitRelay => PathKind::Relayed,
            Self::Turn => PathKind::Turn,
            _ => PathKind::Direct,
        }
    }
}

macro_rules! causes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $advice:literal;)*) => {
        /// Why an [`Attempt`] gave no path: a closed set of names, also the metrics label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Cause {
            $($(#[doc = $doc])* $name,)*
        }

        impl Cause {
            /// Every cause, in the order of the documentation.
            pub const ALL: &'static [Cause] = &[$(Cause::$name,)*];

            /// The stable snake-case name, also the metrics label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Cause::$name => $code,)*
                }
            }

            /// What a person can do about it; empty where nothing is wrong.
            pub fn advice(self) -> &'static str {
                match self {
                    $(Cause::$name => $advice,)*
                }
            }
        }
    };
}

causes! {
    /// Another attempt was better or sooner, or the connection was closed.
    Cancelled = "cancelled", "";
    /// No answer within the strategy's timeout or the connect's.
    Timeout = "timeout", "check that it is online, and ask it for a fresh ticket";
    /// The host, or the relay, refuses.
    Refused = "refused", "check that it runs, and ask it for a fresh ticket";
    /// There is no route to the address.
    Unreachable = "unreachable", "check the network";
    /// Somebody else answered at the peer's address.
    WrongPeer = "wrong_peer", "ask the peer for a fresh ticket";
    /// No address is of a kind that can be dialled here.
    NoAddress = "no_address", "let both peers use a relay that both can reach";
    /// The address is one where nobody else may send us (see `Config::dial_private`).
    Forbidden = "forbidden", "check where the ticket comes from, or set dial_private";
    /// The relay of the circuit was not reached.
    RelayUnreachable = "relay_unreachable", "check that the relay runs and that its address is right";
    /// The relay was reached, but it does not know the peer.
    NoReservation = "no_reservation", "check that the peer is online, and ask it for a fresh ticket";
    /// A limit, ours or the relay's, is reached.
    Limit = "limit", "close what is not needed, or raise the limit";
    /// The peer speaks none of the protocols for it.
    Unsupported = "unsupported", "update the peer";
    /// No router before us forwards a port.
    NoGateway = "no_gateway", "switch on UPnP, NAT-PMP or PCP in the router";
    /// ICE found no pair of addresses that reach each other.
    NoPair = "no_pair", "configure STUN servers, and a TURN server for networks without UDP";
    /// The exchange that brings ICE about failed.
    Signalling = "signalling", "check the relay";
    /// The connection broke or its handshake failed.
    Transport = "transport", "try again";
}

/// How an [`Attempt`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It gave an authenticated path.
    Succeeded,
    /// It failed; the reason says why.
    Failed,
    /// Another attempt was better or sooner.
    Cancelled,
}

/// One way that was tried, with when it started and ended, counted from the call to connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// What was tried.
    pub strategy: Strategy,
    /// How it ended.
    pub outcome: Outcome,
    /// When it started, from the call to connect.
    #[serde(rename = "started_ms", serialize_with = "millis")]
    pub started: Duration,
    /// When it ended, from the call to connect.
    #[serde(rename = "ended_ms", serialize_with = "millis")]
    pub ended: Duration,
    /// Why it failed or was cancelled, as a name to match on.
    pub cause: Option<Cause>,
    /// Why it failed or was cancelled and what to do about it, for people.
    pub reason: Option<String>,
}

/// What [`Connection::path_events`](crate::Connection::path_events) yields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathEvent {
    /// Traffic moved to this path; open streams moved along.
    #[serde(rename = "path")]
    #[non_exhaustive]
    Changed {
        /// The path in use from now on.
        #[serde(flatten)]
        path: Path,
        /// When, counted from the call to connect (on the accepting side, from the first path).
        #[serde(rename = "ms", serialize_with = "millis")]
        at: Duration,
        /// Why: `first`, `better` or `lost`.
        reason: String,
    },
    /// Every path is gone; streams wait, at most for the resume timeout.
    #[non_exhaustive]
    Lost {
        /// When, counted as in [`PathEvent::Changed`].
        #[serde(rename = "ms", serialize_with = "millis")]
        at: Duration,
    },
    /// An attempt ended.
    Attempt(Attempt),
    /// The reader was too slow and missed this many events.
    #[non_exhaustive]
    Lagged {
        /// How many events were dropped.
        missed: u64,
    },
    /// The connection is closed; nothing follows.
    #[non_exhaustive]
    Closed {
        /// The [`code`](crate::Error::code) of the reason.
        code: String,
    },
}

/// The stream of a connection's [`PathEvent`]s. Dropping it unsubscribes.
pub struct PathEvents(BoxStream<'static, PathEvent>);

impl PathEvents {
    pub(crate) fn new(stream: impl Stream<Item = PathEvent> + Send + 'static) -> Self {
        Self(stream.boxed())
    }
}

impl Stream for PathEvents {
    type Item = PathEvent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<PathEvent>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for PathEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathEvents").finish_non_exhaustive()
    }
}

pub(crate) fn millis<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    // A tenth of a millisecond is below what a path's timing can mean.
    s.serialize_f64((d.as_secs_f64() * 10_000.0).round() / 10.0)
}

pub(crate) fn opt_millis<S: serde::Serializer>(
    d: &Option<Duration>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match d {
        Some(d) => millis(d, s),
        None => s.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_one_name_each() {
        for cause in Cause::ALL {
            let json = serde_json::to_value(cause).unwrap();
            assert_eq!(json, cause.as_str());
        }
    }

    #[test]
    fn kinds_rank_from_best_to_worst() {
        assert!(PathKind::Direct < PathKind::Turn && PathKind::Turn < PathKind::Relayed);
    }
}
