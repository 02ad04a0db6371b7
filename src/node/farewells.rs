//! Closing on purpose, and the shutdown. The peer is told, so that it does not connect again.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::select};
use futures_timer::Delay;
use libp2p::{PeerId, Stream as Substream, StreamProtocol, swarm::ConnectionId};
use tokio::sync::oneshot;

use super::{
    effect::{Conns, Effect},
    engine::{Internal, Node},
    network::Purpose,
    timers::Timer,
};
use crate::{
    error::ErrorKind,
    stream::{BoxedStream, PumpHandle, SessionId},
    swarm::substreams::OpenError,
};

/// A substream of this protocol says that its opener closes the connection on purpose, so that the
/// other end does not wait for the connection to come back.
pub(super) const CLOSE_PROTOCOL: &str = "/throughline/close/1";

/// How long streams that end may take before their connection closes. It is enough for two round
/// trips and a retransmission on a slow path.
const LAST_STREAMS: Duration = Duration::from_secs(2);
/// How long telling a peer of a close may take.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// Sends the message that the protocol of a new substream stands for. Waits until the peer has got
/// it, but not longer than [`FAREWELL`].
pub(super) async fn say(mut substream: Substream) {
    // Lazy negotiation sends the protocol's name with the close. The peer's end of stream says that
    // the name has arrived.
    let told = async {
        let _ = substream.close().await;
        let _ = substream.read(&mut [0]).await;
    };
    select(told.boxed(), Delay::new(FAREWELL)).await;
}

/// The peers that are being told of a close, and the callers that wait for that.
#[derive(Default)]
pub(super) struct Farewells {
    peers: HashMap<PeerId, Vec<oneshot::Sender<()>>>,
    /// The relays whose directories are to forget us.
    relays: HashSet<PeerId>,
}

impl Farewells {
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.relays.is_empty()
    }

    /// The directory of a relay is to forget us.
    pub(super) fn leave(&mut self, relay: PeerId) {
        self.relays.insert(relay);
    }
}

/// The state of the shutdown.
#[derive(Default)]
pub(super) struct Shutdown {
    /// The callers that wait for the end of the loop. It is `None` until somebody asks for a
    /// shutdown or all handles are gone.
    waiting: Option<Vec<oneshot::Sender<()>>>,
    over: bool,
}

impl Shutdown {
    pub(super) fn has_begun(&self) -> bool {
        self.waiting.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Ends the loop. Every peer knows of the shutdown, or its time to hear of it is over.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    /// Answers the callers that wait.
    pub(super) fn answer(self) {
        for reply in self.waiting.into_iter().flatten() {
            let _ = reply.send(());
        }
    }
}

impl Node {
    /// Closes a session and tells the peer. `reply` is answered when the peer knows or its time is
    /// over.
    pub(super) fn close_session(&mut self, id: SessionId, reply: Option<oneshot::Sender<()>>) {
        let Some((session, round)) = self.session(id) else {
            if let Some(reply) = reply {
                let _ = reply.send(());
            }
            return;
        };
        let peer = session.peer();
        let farewell = session.farewell(&round);
        let waiting = self.farewells.peers.entry(peer).or_default();
        waiting.extend(reply);
        let kind = ErrorKind::ConnectionClosed;
        match farewell {
            Some((connection, ending)) => {
                self.turn_away(peer, connection, ending);
                self.end_session(id, kind, Conns::Keep);
            }
            None => {
                self.end_session(id, kind, Conns::Close);
                self.effects.push(Effect::FarewellDone(peer));
            }
        }
    }

    /// Tells a peer that the connection is closed on purpose, and closes it then. Streams that are
    /// `ending` may end first. Without that, the peer would see them cut short.
    pub(super) fn turn_away(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        ending: Vec<PumpHandle<BoxedStream>>,
    ) {
        self.farewells.peers.entry(peer).or_default();
        self.effects.push(Effect::Open {
            peer,
            connection,
            protocol: StreamProtocol::new(CLOSE_PROTOCOL),
            purpose: Purpose::Farewell(peer, ending),
        });
    }

    /// The request for the substream of a farewell has been answered.
    pub(super) fn say_farewell(
        &mut self,
        peer: PeerId,
        ending: Vec<PumpHandle<BoxedStream>>,
        result: Result<Substream, OpenError>,
    ) {
        let Ok(substream) = result else {
            self.finish_farewell(peer);
            return;
        };
        let report = self.outbox.internal.clone();
        let say = async move {
            let ended = async {
                for stream in ending {
                    stream.ended().await;
                }
            };
            select(ended.boxed(), Delay::new(LAST_STREAMS)).await;
            say(substream).await;
            let _ = report.send(Internal::FarewellDone(peer)).await;
        };
        self.effects.push(Effect::Spawn(say.boxed()));
    }

    /// A peer knows that the connection is closed, or its time to hear of it is over.
    pub(super) fn finish_farewell(&mut self, peer: PeerId) {
        if let Some(waiting) = self.farewells.peers.remove(&peer) {
            // The connections stay if a new session with the peer has begun.
            if self.sessions.with(&peer).is_none() {
                self.network.disconnect(peer);
            }
            for reply in waiting {
                let _ = reply.send(());
            }
            self.release_relays();
            self.stop_if_done();
        }
    }

    /// The directory of a relay has forgotten us, or does not answer.
    pub(super) fn finish_leave(&mut self, relay: PeerId) {
        if self.farewells.relays.remove(&relay) {
            self.release_relays();
            self.stop_if_done();
        }
    }

    pub(super) fn begin_shutdown(&mut self, reply: Option<oneshot::Sender<()>>) {
        self.shutdown.waiting.get_or_insert_default().extend(reply);
        self.inputs.close();
        self.leave_directories();
        for session in self.sessions.ids() {
            self.effects.push(Effect::CloseSession(session));
        }
        let patience = LAST_STREAMS + FAREWELL * 2;
        self.effects
            .push(Effect::After(patience, Timer::ShutdownDeadline));
        self.effects.push(Effect::StopIfDone);
    }

    /// Ends the loop if a shutdown has begun and no peer is left to be told.
    pub(super) fn stop_if_done(&mut self) {
        if self.shutdown.has_begun() && self.farewells.is_empty() {
            self.shutdown.end();
        }
    }
}
