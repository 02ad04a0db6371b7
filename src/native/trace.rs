//! Spans with which a reader of the log can follow one connection, and the log lines about it.
//!
//! A task carries the spans in which it was spawned: `peer` is the connector, `connection` names
//! the peer at the other end, and `attempt` is one way to that peer. Lines at the level `info` have
//! no addresses. `wasm/trace.rs` has the same signatures.

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::PeerId;
use tracing::{Instrument as _, debug, info, info_span};
pub(crate) use tracing::{Span, span::EnteredSpan as Entered};

use crate::{
    core::plan::AttemptId,
    event::{Attempt, Cause, Outcome, PathEvent},
};

/// The target of all lines about a connection, for filters.
const TARGET: &str = "throughline::connection";

/// Returns the span of one connector.
pub(crate) fn peer(id: &PeerId) -> Span {
    info_span!("peer", %id)
}

/// Returns the span of the connection to one peer.
pub(crate) fn connection(peer: &PeerId) -> Span {
    info_span!("connection", %peer)
}

/// Returns the span of one attempt. Its parent is the current span.
pub(crate) fn attempt(attempt: AttemptId) -> Span {
    let by = match attempt {
        AttemptId::Circuit(_) => "circuit_relay",
        AttemptId::Direct => "direct",
        AttemptId::Ice => "ice",
    };
    info_span!("attempt", %by)
}

/// Returns the span of ICE with a peer. If this peer dials, the task is already in that span. If it
/// answers the other peer's offer, the task is not.
pub(super) fn ice(peer: &PeerId) -> Span {
    let current = Span::current();
    match current.metadata() {
        Some(entered) if entered.name() == "attempt" => current,
        _ => connection(peer).in_scope(|| attempt(AttemptId::Ice)),
    }
}

/// Enters `span` until the guard is dropped.
pub(crate) fn enter(span: &Span) -> Entered {
    span.clone().entered()
}

/// Makes a task carry `span`.
pub(crate) fn within(
    span: &Span,
    task: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, ()> {
    task.instrument(span.clone()).boxed()
}

/// Logs what happened to a connection.
pub(crate) fn tell(event: &PathEvent) {
    match event {
        PathEvent::Attempt(attempt) => {
            let span = info_span!("attempt", by = %attempt.strategy);
            span.in_scope(|| tell_end(attempt));
        }
        PathEvent::Changed { path, at, reason } => {
            let (kind, by, ms) = (path.kind, path.strategy, at.as_millis());
            info!(target: TARGET, path = %kind, %by, %reason, ms, "the path changed");
            let (local, remote) = (path.local.as_deref(), path.remote.as_deref());
            debug!(target: TARGET, local, remote, rtt = ?path.rtt, "the ends of the path");
        }
        PathEvent::Lost { at } => {
            info!(target: TARGET, ms = at.as_millis(), "every path is lost");
        }
        PathEvent::Closed { kind } => info!(target: TARGET, code = kind.code(), "closed"),
        PathEvent::DatagramSize { .. } | PathEvent::Lagged { .. } => {}
    }
}

fn tell_end(attempt: &Attempt) {
    let ms = attempt.ended.saturating_sub(attempt.started).as_millis();
    let cause = attempt.cause.map(Cause::as_str);
    match attempt.outcome {
        Outcome::Succeeded => info!(target: TARGET, ms, "succeeded"),
        Outcome::Failed => info!(target: TARGET, cause, ms, "failed"),
        Outcome::Cancelled => info!(target: TARGET, cause, ms, "cancelled"),
    }
    // The reason may name an address, so it is logged at `debug` only.
    if let Some(reason) = &attempt.reason {
        debug!(target: TARGET, %reason, "why there is no path by it");
    }
}
