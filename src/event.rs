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
    /// Why it failed or was cancelled.
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
    fn kinds_rank_from_best_to_worst() {
        assert!(PathKind::Direct < PathKind::Turn && PathKind::Turn < PathKind::Relayed);
    }
}
