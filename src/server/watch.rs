//! Finds the connections of peers that vanished without a close.
//!
//! Otherwise, such a peer would keep its reservation until TCP gives up after a quarter of an hour.
//! Until then, peers that ask for a circuit to it would wait.

use std::{collections::HashMap, time::Duration};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::sync::oneshot;
use tokio::time::timeout;
use web_time::Instant;

use crate::core::liveness::{Liveness, Probing};

/// A peer that vanishes is noticed within both times together. They are longer than any usable round
/// trip.
const PROBING: Probing = Probing {
    idle: Duration::from_secs(5),
    patience: Duration::from_secs(5),
};

/// How long a suspect peer may take to answer after all.
const SUSPECT: Duration = Duration::from_secs(5);

/// How long a peer may take to show that it is still there, when a circuit is brought to it. It is
/// more if the peer's answers have taken long, and [`MOST_PROOF`] at most.
const PROOF: Duration = Duration::from_secs(2);
const MOST_PROOF: Duration = Duration::from_secs(5);

/// All connections.
#[derive(Default)]
pub(super) struct Watch(HashMap<ConnectionId, Watched>);

struct Watched {
    peer: PeerId,
    liveness: Liveness,
    /// When the last probe was sent, while its answer is missing.
    probed: Option<Instant>,
    /// Those that wait for a proof of life.
    waiting: Vec<oneshot::Sender<()>>,
}

/// Tells whether a peer is still there.
#[derive(Default)]
pub(crate) struct Proof(Option<(Duration, oneshot::Receiver<()>)>);

impl Proof {
    /// Resolves if the peer has not answered in time. Otherwise it never does.
    pub(crate) async fn missing(self) {
        let answered = match self.0 {
            Some((patience, answer)) => matches!(timeout(patience, answer).await, Ok(Ok(()))),
            None => true,
        };
        if answered {
            std::future::pending::<()>().await;
        }
    }
}

/// What is to be done about connections.
#[derive(Default)]
pub(super) struct Due {
    pub(super) probe: Vec<(PeerId, ConnectionId)>,
    pub(super) close: Vec<ConnectionId>,
}

impl Watch {
    pub(super) fn connected(&mut self, peer: PeerId, connection: ConnectionId) {
        let watched = Watched {
            peer,
            liveness: Liveness::new(Instant::now(), PROBING),
            probed: None,
            waiting: Vec::new(),
        };
        self.0.insert(connection, watched);
    }

    pub(super) fn disconnected(&mut self, connection: ConnectionId) {
        self.0.remove(&connection);
    }

    /// A connection has answered a probe. There is no round-trip time if the peer does not speak the
    /// protocol.
    pub(super) fn answered(&mut self, connection: ConnectionId, rtt: Option<Duration>) {
        if let Some(watched) = self.0.get_mut(&connection) {
            watched.probed = None;
            match rtt {
                Some(rtt) => _ = watched.liveness.answered(Instant::now(), rtt),
                None => watched.liveness.mute(),
            }
            for waiting in watched.waiting.drain(..) {
                let _ = waiting.send(());
            }
        }
    }

    /// A peer has come back on another connection. Nobody waits for a proof on its older ones any more.
    pub(super) fn superseded(&mut self, peer: &PeerId, by: ConnectionId) {
        for (connection, watched) in &mut self.0 {
            if watched.peer == *peer && *connection != by {
                watched.waiting.clear();
            }
        }
    }

    /// Asks for a proof of life. Returns also whether a probe is to be sent for it. One that is under
    /// way must not be replaced, because its answer would not count. A peer that answers no probes
    /// needs no proof.
    pub(super) fn ask(&mut self, connection: ConnectionId) -> (Proof, bool) {
        let watched = self.0.get_mut(&connection);
        let Some(watched) = watched.filter(|watched| watched.liveness.wake().is_some()) else {
            return (Proof::default(), false);
        };
        watched.waiting.retain(|waiting| !waiting.is_closed());
        let now = Instant::now();
        let probe = watched.probed.is_none_or(|at| now >= at + MOST_PROOF);
        if probe {
            watched.probed = Some(now);
        }
        let (waiting, answer) = oneshot::channel();
        watched.waiting.push(waiting);
        let patience = watched.liveness.timeouts().unwrap_or_default();
        let proof = Proof(Some((patience.clamp(PROOF, MOST_PROOF), answer)));
        (proof, probe)
    }

    /// Returns which connections are to be probed or closed now.
    pub(super) fn sweep(&mut self) -> Due {
        let now = Instant::now();
        let mut due = Due::default();
        for (connection, watched) in &mut self.0 {
            let Watched {
                peer,
                liveness,
                probed,
                ..
            } = watched;
            // An answer may wait behind all that a slow peer receives.
            if liveness
                .suspect_for(now)
                .is_some_and(|time| time >= SUSPECT)
            {
                tracing::debug!(%peer, "a peer does not answer");
                due.close.push(*connection);
                continue;
            }
            if liveness.wake().is_none_or(|wake| now < wake) {
                continue;
            }
            if liveness.tick(now, 0).probe {
                *probed = Some(now);
                due.probe.push((*peer, *connection));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_shows_no_life_is_told_from_one_that_is_slow_to_agree() {
        let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(1));
        let mut watch = Watch::default();
        watch.connected(peer, connection);
        let begun = time::Instant::now();
        let (proof, probe) = watch.ask(connection);
        assert!(probe);
        proof.missing().await;
        assert_eq!(begun.elapsed(), PROOF);

        let rtt = Duration::from_millis(500);
        let (alive, probe) = watch.ask(connection);
        assert!(!probe, "one is under way");
        watch.answered(connection, Some(rtt));
        assert!(timeout(MOST_PROOF * 2, alive.missing()).await.is_err());
        // Three timeouts are 7.5 round-trip times after the first answer.
        let begun = time::Instant::now();
        let (proof, probe) = watch.ask(connection);
        assert!(probe);
        proof.missing().await;
        assert_eq!(begun.elapsed(), rtt * 15 / 2);

        let (gone, _) = watch.ask(connection);
        watch.disconnected(connection);
        assert!(gone.missing().now_or_never().is_some());
        watch.connected(peer, connection);
        let (old, _) = watch.ask(connection);
        watch.superseded(&peer, connection);
        let mut old = Box::pin(old.missing());
        assert!(old.as_mut().now_or_never().is_none(), "its own reservation");
        watch.superseded(&PeerId::random(), ConnectionId::new_unchecked(2));
        assert!(old.as_mut().now_or_never().is_none(), "another peer's");
        watch.superseded(&peer, ConnectionId::new_unchecked(2));
        assert!(old.now_or_never().is_some());

        watch.disconnected(connection);
        let (unknown, probe) = watch.ask(connection);
        assert!(unknown.missing().now_or_never().is_none() && !probe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_probes_needs_no_proof() {
        let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(1));
        let mut watch = Watch::default();
        watch.connected(peer, connection);
        watch.answered(connection, None);
        let (asked, probe) = watch.ask(connection);
        assert!(timeout(MOST_PROOF * 2, asked.missing()).await.is_err() && !probe);
    }
}
