//! Whether others can reach a connector now, and why not, told when it changes.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    report::{NatReport, RelayReport},
    ticket::Ticket,
};

/// Whether others can reach this peer with its ticket.
///
/// ```
/// use throughline::Reachability;
///
/// assert_eq!(Reachability::Connecting.as_str(), "connecting");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reachability {
    /// A relay is being reached. It is not known yet whether others can reach this peer.
    Connecting,
    /// Others can reach this peer: a relay holds a reservation, or the peer has an address that others
    /// have dialled. Without any relay, this only says that the peer listens at its own addresses.
    Reachable,
    /// Others cannot reach this peer. The relays are tried again and again.
    Unreachable,
}

impl Reachability {
    /// Returns the stable snake-case name. It is the same in JSON and TypeScript.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
        }
    }
}

impl std::fmt::Display for Reachability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a connector is to others now, from [`Connector::status`](crate::Connector::status).
///
/// ```no_run
/// # fn show(me: &throughline::Connector) {
/// let status = me.status();
/// match status.reason {
///     Some(why) => println!("{}: {why}", status.state),
///     None => println!("{}", status.state),
/// }
/// for relay in &status.relays {
///     println!("{}: reserved {}, {:?}", relay.peer_id, relay.reserved, relay.rtt);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Whether others can reach this peer.
    pub state: Reachability,
    /// Why others cannot reach this peer, or not in every network, and what to do about it.
    pub reason: Option<String>,
    /// The ticket as it is now.
    pub ticket: Ticket,
    /// The relays: those of the configuration, and those of other peers that are in use.
    pub relays: Vec<RelayReport>,
    /// The NAT in front of this peer, as far as it is known.
    pub nat: NatReport,
    /// The addresses on which this peer listens. They change with its network. They are personal data.
    pub listening: Vec<String>,
    /// The addresses at which others have reached this peer. They are personal data.
    pub confirmed: Vec<String>,
}

impl Status {
    /// Returns a text that is another one if the status is news. A round trip that is measured anew is
    /// none.
    pub(crate) fn news(&mut self) -> String {
        let relays = self.relays.iter_mut().map(|relay| &mut relay.rtt);
        let servers = self.nat.stun.iter_mut().map(|server| &mut server.rtt);
        let mut measured = Vec::new();
        for rtt in relays.chain(servers) {
            measured.push(*rtt);
            *rtt = rtt.map(|_| Duration::ZERO);
        }
        // A status can always be written.
        let news = serde_json::to_string(self).unwrap_or_default();
        let relays = self.relays.iter_mut().map(|relay| &mut relay.rtt);
        let servers = self.nat.stun.iter_mut().map(|server| &mut server.rtt);
        for (rtt, measured) in relays.chain(servers).zip(measured) {
            *rtt = measured;
        }
        news
    }
}

/// The stream of a connector's [`Status`], from
/// [`Connector::status_changes`](crate::Connector::status_changes). It begins with the present one. A
/// reader that is slow misses what is old, and gets the newest one. It ends when the connector is closed.
///
/// # Cancel safety
/// Waiting for the next status is cancel safe: no news is lost.
///
/// # Drop
/// Dropping it unsubscribes.
///
/// ```no_run
/// use futures::StreamExt as _;
/// use throughline::{Connector, Reachability};
///
/// /// Waits until others can reach this peer.
/// async fn reachable(me: &Connector) {
///     let mut changes = me.status_changes();
///     while let Some(status) = changes.next().await {
///         if status.state == Reachability::Reachable {
///             return;
///         }
///     }
/// }
/// ```
pub struct StatusChanges(BoxStream<'static, Status>);

impl StatusChanges {
    pub(crate) fn new(mut status: watch::Receiver<Status>) -> Self {
        status.mark_changed();
        let changes = stream::unfold(status, |mut status| async {
            status.changed().await.ok()?;
            let now = status.borrow_and_update().clone();
            Some((now, status))
        });
        Self(changes.boxed())
    }
}

impl Stream for StatusChanges {
    type Item = Status;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Status>> {
        self.0.poll_next_unpin(cx)
    }
}

impl std::fmt::Debug for StatusChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusChanges").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::Identity;

    fn status() -> Status {
        let peer = Identity::generate().peer_id();
        Status {
            state: Reachability::Connecting,
            reason: None,
            ticket: Ticket::from_parts::<&str>(peer, [], []).unwrap(),
            relays: vec![RelayReport::default()],
            nat: NatReport::default(),
            listening: Vec::new(),
            confirmed: Vec::new(),
        }
    }

    #[test]
    fn a_round_trip_is_news_once() {
        let mut status = status();
        let before = status.news();
        assert_eq!(status.news(), before);
        status.relays[0].rtt = Some(Duration::from_millis(20));
        let after = status.news();
        assert_ne!(after, before);
        status.relays[0].rtt = Some(Duration::from_millis(30));
        assert_eq!(status.news(), after);
        assert_eq!(
            status.relays[0].rtt,
            Some(Duration::from_millis(30)),
            "it is told"
        );
        status.relays[0].reserved = true;
        assert_ne!(status.news(), after);
    }

    #[test]
    fn a_slow_reader_gets_the_present_one_and_then_the_newest() {
        let (sender, receiver) = watch::channel(status());
        let mut changes = StatusChanges::new(receiver);
        let next = |changes: &mut StatusChanges| changes.next().now_or_never();
        assert_eq!(next(&mut changes).flatten(), Some(sender.borrow().clone()));
        assert!(next(&mut changes).is_none(), "there is no news");
        for state in [Reachability::Unreachable, Reachability::Reachable] {
            sender.send_modify(|status| status.state = state);
        }
        let last = next(&mut changes).flatten().unwrap();
        assert_eq!(last.state, Reachability::Reachable);
        drop(sender);
        assert_eq!(next(&mut changes), Some(None));
    }
}
