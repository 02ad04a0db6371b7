//! The events of a connection. Rust, JSON, JavaScript and the demo page use the same names.

mod connector;

use std::{fmt, time::Duration};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use serde::Serialize;

pub use self::connector::{ConnectorEvent, ConnectorEvents, QuotaPeriod};
use crate::error::ErrorKind;

/// How bytes reach the peer.
///
/// ```
/// use throughline::PathKind;
///
/// // From best to worst.
/// assert!(PathKind::Direct < PathKind::Turn && PathKind::Turn < PathKind::Relayed);
/// assert_eq!(PathKind::Relayed.to_string(), "relayed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathKind {
    /// The bytes go from host to host. There may be NATs between them, but no relay or TURN server.
    Direct,
    /// The bytes go through a TURN server (RFC 8656).
    Turn,
    /// The bytes go through a libp2p relay circuit.
    Relayed,
}

impl PathKind {
    /// Returns the stable snake-case name.
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

/// The way in which a path was, or was not, found.
///
/// ```
/// use throughline::Strategy;
///
/// let names: Vec<_> = Strategy::ALL.iter().map(|strategy| strategy.as_str()).collect();
/// assert_eq!(names, ["direct", "stun", "upnp", "circuit_relay", "turn", "birthday"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// An address of the peer answered by itself: in the same network, on a public host, or through
    /// a forwarded port.
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
    /// Returns the stable snake-case name, which is also the metrics label.
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

/// The path that a connection uses now.
///
/// ```no_run
/// # fn show(connection: &throughline::Connection) {
/// match connection.path() {
///     Some(path) => println!("{} by {}, round trip {:?}", path.kind, path.strategy, path.rtt),
///     None => println!("no path at the moment"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Path {
    /// How bytes reach the peer.
    #[serde(rename = "path")]
    pub kind: PathKind,
    /// The way in which this path was found.
    pub strategy: Strategy,
    /// The address of this end, if it is known. It is personal data: keep it out of public logs.
    pub local: Option<String>,
    /// The address of the peer's end or of the relay. It is personal data: keep it out of public
    /// logs.
    pub remote: Option<String>,
    /// The last measured round-trip time, or `None` before the first measurement.
    #[serde(
        rename = "rtt_ms",
        serialize_with = "opt_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub rtt: Option<Duration>,
    /// The most bytes of a datagram that the path carries, at least 1,120, or `None` if the peer
    /// takes no datagrams. QUIC carries more once it has found what the network carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_datagram_size: Option<usize>,
}

impl Path {
    pub(crate) fn new(kind: PathKind, strategy: Strategy) -> Self {
        Self {
            kind,
            strategy,
            local: None,
            remote: None,
            rtt: None,
            max_datagram_size: None,
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

    /// Returns the best kind of path that the strategy can give.
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
        /// Why an [`Attempt`] gave no path. The names are a fixed set, and metrics use them as
        /// labels.
        ///
        /// ```
        /// use throughline::Cause;
        ///
        /// assert_eq!(Cause::NoReservation.as_str(), "no_reservation");
        /// for cause in Cause::ALL {
        ///     println!("{}: {}", cause.as_str(), cause.advice());
        /// }
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Cause {
            $($(#[doc = $doc])* $name,)*
        }

        impl Cause {
            /// Every cause, in the order of the documentation.
            pub const ALL: &'static [Cause] = &[$(Cause::$name,)*];

            /// Returns the stable snake-case name, which is also the metrics label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Cause::$name => $code,)*
                }
            }

            /// Returns what a person can do about it. It is empty if nothing is wrong.
            pub fn advice(self) -> &'static str {
                match self {
                    $(Cause::$name => $advice,)*
                }
            }

            /// Returns `reason`, and what a person can do about it.
            pub(crate) fn explain(self, reason: &str) -> String {
                match self.advice() {
                    "" => reason.to_owned(),
                    advice => format!("{reason}; {advice}"),
                }
            }
        }
    };
}

causes! {
    /// Another attempt was better or sooner, or the connection was closed.
    Cancelled = "cancelled", "";
    /// No answer came within the timeout of the strategy or of the connect.
    Timeout = "timeout", "check that it is online, and ask it for a fresh ticket";
    /// The host or the relay refused.
    Refused = "refused", "check that it runs, and ask it for a fresh ticket";
    /// There is no route to the address.
    Unreachable = "unreachable", "check the network";
    /// Another peer answered at the peer's address.
    WrongPeer = "wrong_peer", "ask the peer for a fresh ticket";
    /// None of the addresses can be dialled here.
    NoAddress = "no_address", "let both peers use a relay that both can reach";
    /// Nobody else may make us dial this address (see `Config::dial_private`).
    Forbidden = "forbidden", "check where the ticket comes from, or set dial_private";
    /// The relay of the circuit was not reached.
    RelayUnreachable = "relay_unreachable", "check that the relay runs and that its address is right";
    /// The relay was reached, but it does not know the peer.
    NoReservation = "no_reservation", "check that the peer is online, and ask it for a fresh ticket";
    /// A limit on this side or the relay's is reached.
    Limit = "limit", "close what is not needed, or raise the limit";
    /// The relay does not admit this peer.
    Denied = "denied", "check relay_tokens";
    /// The quota of one of both peers is used up at the relay.
    Quota = "quota", "wait until it begins anew";
    /// The peer speaks none of the protocols that this needs.
    Unsupported = "unsupported", "update the peer";
    /// No router between us and the internet forwards a port.
    NoGateway = "no_gateway", "switch on UPnP, NAT-PMP or PCP in the router";
    /// ICE found no pair of addresses that can reach each other.
    NoPair = "no_pair", "configure STUN servers, and a TURN server for networks without UDP";
    /// The exchange of the ICE offer and answer failed.
    Signalling = "signalling", "check the relay";
    /// The connection broke, or its handshake failed.
    Transport = "transport", "try again";
}

/// How an [`Attempt`] ended.
///
/// ```no_run
/// use throughline::{Connection, Outcome};
///
/// fn failures(connection: &Connection) -> usize {
///     let attempts = connection.attempts();
///     attempts.iter().filter(|attempt| attempt.outcome == Outcome::Failed).count()
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The attempt gave an authenticated path.
    Succeeded,
    /// The attempt failed. The reason says why.
    Failed,
    /// Another attempt was better or sooner.
    Cancelled,
}

/// One way that was tried. Its times are counted from the call to connect.
///
/// ```no_run
/// # async fn explain(me: throughline::Connector, ticket: throughline::Ticket) {
/// if let Err(error) = me.connect(&ticket).await {
///     for attempt in error.attempts() {
///         let took = attempt.ended - attempt.started;
///         let reason = attempt.reason.as_deref().unwrap_or("no reason given");
///         println!("{} after {took:?}: {reason}", attempt.strategy);
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The strategy that was tried.
    pub strategy: Strategy,
    /// How it ended.
    pub outcome: Outcome,
    /// When it started, counted from the call to connect.
    #[serde(rename = "started_ms", serialize_with = "millis")]
    pub started: Duration,
    /// When it ended, counted from the call to connect.
    #[serde(rename = "ended_ms", serialize_with = "millis")]
    pub ended: Duration,
    /// Why it failed or was cancelled, as a name for use in a `match`.
    pub cause: Option<Cause>,
    /// Why it failed or was cancelled, and what to do about it, for people.
    pub reason: Option<String>,
}

/// Why traffic moved to another path, in [`PathEvent::Changed`].
///
/// ```
/// use throughline::ChangeReason;
///
/// let names: Vec<_> = ChangeReason::ALL.iter().map(|reason| reason.as_str()).collect();
/// assert_eq!(names, ["first", "better", "lost", "resumed"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChangeReason {
    /// The path is the connection's first.
    First,
    /// The path is better than the path before it.
    Better,
    /// The path before it was lost, and this one was already up.
    Lost,
    /// Every path was lost before, as [`PathEvent::Lost`] said. Streams go on.
    Resumed,
}

impl ChangeReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: &'static [ChangeReason] =
        &[Self::First, Self::Better, Self::Lost, Self::Resumed];

    /// Returns the stable snake-case name. It is the same in JSON and TypeScript.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Better => "better",
            Self::Lost => "lost",
            Self::Resumed => "resumed",
        }
    }
}

impl fmt::Display for ChangeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event of a connection, from [`Connection::path_events`](crate::Connection::path_events).
///
/// ```no_run
/// use throughline::PathEvent;
///
/// fn describe(event: &PathEvent) -> String {
///     match event {
///         PathEvent::Changed { path, reason, .. } => format!("{reason}: now {}", path.kind),
///         PathEvent::Lost { at, .. } => format!("no path after {at:?}"),
///         PathEvent::Closed { kind, .. } => format!("closed: {kind}"),
///         other => format!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathEvent {
    /// Traffic moved to this path, and open streams moved along.
    #[serde(rename = "path")]
    #[non_exhaustive]
    Changed {
        /// The path in use from now on.
        #[serde(flatten)]
        path: Path,
        /// The time, counted from the call to connect. On the accepting side it is counted from the
        /// first path.
        #[serde(rename = "ms", serialize_with = "millis")]
        at: Duration,
        /// Why traffic moved.
        reason: ChangeReason,
    },
    /// Every path is gone. Streams wait for a new path, at most for the resume timeout.
    #[non_exhaustive]
    Lost {
        /// The time, counted as in [`PathEvent::Changed`].
        #[serde(rename = "ms", serialize_with = "millis")]
        at: Duration,
    },
    /// The path in use carries datagrams of another size than before.
    #[non_exhaustive]
    DatagramSize {
        /// The most bytes of a datagram, as in [`Path`].
        #[serde(skip_serializing_if = "Option::is_none")]
        max_datagram_size: Option<usize>,
        /// The time, counted as in [`PathEvent::Changed`].
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
    /// The connection is closed. No event follows.
    #[non_exhaustive]
    Closed {
        /// The reason, as [`Connection::closed`](crate::Connection::closed) returns it. JSON and
        /// JavaScript have its [`code`](ErrorKind::code), and the field is called `code` there.
        #[serde(rename = "code")]
        kind: ErrorKind,
    },
}

/// The stream of a connection's [`PathEvent`]s.
///
/// # Cancel safety
/// Waiting for the next event is cancel safe: no event is lost.
///
/// # Drop
/// Dropping it unsubscribes.
///
/// ```no_run
/// use futures::StreamExt as _;
/// use throughline::{Connection, PathKind};
///
/// /// Waits until the connection is direct. Returns `false` if it was closed before.
/// async fn direct(connection: &Connection) -> bool {
///     let mut events = connection.path_events(); // first, so that nothing is missed
///     while connection.path().is_none_or(|path| path.kind != PathKind::Direct) {
///         if events.next().await.is_none() {
///             return false;
///         }
///     }
///     true
/// }
/// ```
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

/// The stream of a connection's datagrams, from
/// [`Connection::datagrams`](crate::Connection::datagrams).
///
/// # Cancel safety
/// Waiting for the next datagram is cancel safe: no datagram is lost.
///
/// # Drop
/// Dropping it changes nothing. Datagrams wait for the next reader.
///
/// ```no_run
/// use futures::StreamExt as _;
/// use throughline::Connection;
///
/// /// Sends every datagram back. One that the path cannot carry now is lost, as any may be.
/// async fn echo(connection: &Connection) {
///     let mut datagrams = connection.datagrams();
///     while let Some(datagram) = datagrams.next().await {
///         let _ = connection.send_datagram(&datagram);
///     }
/// }
/// ```
pub struct Datagrams(BoxStream<'static, Vec<u8>>);

impl Datagrams {
    pub(crate) fn new(stream: impl Stream<Item = Vec<u8>> + Send + 'static) -> Self {
        Self(stream.boxed())
    }
}

impl Stream for Datagrams {
    type Item = Vec<u8>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Vec<u8>>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagrams").finish_non_exhaustive()
    }
}

pub(crate) fn millis<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    // Times of a path are not more precise than a tenth of a millisecond.
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
    fn change_reasons_and_closing_kinds_have_one_name_each() {
        for reason in ChangeReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for &kind in ErrorKind::ALL {
            let closed = serde_json::to_value(PathEvent::Closed { kind }).unwrap();
            let expected = serde_json::json!({ "event": "closed", "code": kind.code() });
            assert_eq!(closed, expected);
        }
    }

    #[test]
    fn an_unknown_round_trip_is_left_out() {
        let mut path = Path::new(PathKind::Direct, Strategy::Stun);
        let told = serde_json::to_value(&path).unwrap();
        assert!(told.get("rtt_ms").is_none(), "{told}");
        path.rtt = Some(Duration::from_micros(1_260));
        assert_eq!(serde_json::to_value(&path).unwrap()["rtt_ms"], 1.3);
    }

    #[test]
    fn kinds_rank_from_best_to_worst() {
        assert!(PathKind::Direct < PathKind::Turn && PathKind::Turn < PathKind::Relayed);
    }
}
