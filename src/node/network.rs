//! The swarm and its open requests: dials and substreams, each with its purpose.

use std::{collections::HashMap, sync::Arc};

use libp2p::{
    Multiaddr, PeerId, Stream as Substream, StreamProtocol, Swarm,
    swarm::{ConnectionId, DialError, dial_opts::DialOpts},
};
use tokio::sync::oneshot;

use super::{behaviour::NodeBehaviour, directory::Inquiry, relays::ReservationId, rooms::RoomId};
use crate::{
    backend::behaviours::{self, OnHeap},
    core::{address, circuit::CircuitError, plan::AttemptId, resume::StreamId, room::Source},
    error::Error,
    stream::{BoxedStream, PumpHandle, SessionId, Stream},
    swarm::{
        circuit::Arrivals,
        dials::{Dialling, Recorder},
        substreams::OpenId,
    },
    webrtc,
};

/// The purpose of a dial of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialFor {
    Relay(PeerId),
    /// Another link to a relay, in the place of a suspect one.
    Replacement(PeerId),
    Attempt(SessionId, AttemptId),
}

pub(super) type OpenReply = oneshot::Sender<Result<Stream, Error>>;
type CircuitReply = futures::channel::oneshot::Sender<Result<Substream, CircuitError>>;

/// The purpose of a substream that we open.
pub(super) enum Purpose {
    /// The substream carries a resumable stream.
    Carry {
        session: SessionId,
        stream: StreamId,
        connection: ConnectionId,
    },
    /// The substream is a stream to a stock peer. It has a place among the streams of its session.
    Raw {
        protocol: String,
        reply: OpenReply,
        place: Arc<()>,
    },
    /// The substream asks a relay for a circuit.
    Circuit(CircuitReply),
    /// The substream asks a relay for a reservation, or renews one. With `access`, it also shows the
    /// relay our token if there is one, and asks for what admitted peers get.
    Ask {
        relay: PeerId,
        id: Option<ReservationId>,
        access: bool,
    },
    /// The substream asks a relay what it says of itself.
    Profile(PeerId),
    /// The substream asks the directory of a relay.
    Inquire(PeerId, Inquiry),
    /// The substream to a relay attends a room.
    Attend(RoomId, Source),
    /// The substream to a relay carries a resumable stream, sealed, before there is a path.
    Early {
        session: SessionId,
        stream: StreamId,
    },
    /// The substream to a relay signals ICE with a sealed offer. The dial that follows names this
    /// address of the relay.
    Offer {
        session: SessionId,
        relay: Multiaddr,
    },
    /// The substream says that we doubt all other paths.
    Doubt,
    /// The substream tells the peer of a close, after these streams have ended.
    Farewell(PeerId, Vec<PumpHandle<BoxedStream>>),
}

/// The swarm and its open requests.
pub(super) struct Network {
    pub(super) swarm: Swarm<OnHeap<NodeBehaviour>>,
    recorder: Recorder,
    dials: HashMap<ConnectionId, (DialFor, Dialling)>,
    opening: HashMap<OpenId, Purpose>,
    arrivals: Arrivals<Substream>,
    /// The user's names of the protocols that stock peers may open.
    raw: HashMap<StreamProtocol, String>,
}

impl Network {
    pub(super) fn new(
        swarm: Swarm<OnHeap<NodeBehaviour>>,
        recorder: Recorder,
        arrivals: Arrivals<Substream>,
        raw: HashMap<StreamProtocol, String>,
    ) -> Self {
        Self {
            swarm,
            recorder,
            dials: HashMap::new(),
            opening: HashMap::new(),
            arrivals,
            raw,
        }
    }

    /// Returns the user's name of a protocol that stock peers may open.
    pub(super) fn name_of(&self, protocol: &StreamProtocol) -> Option<&str> {
        self.raw.get(protocol).map(String::as_str)
    }

    pub(super) fn local(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    pub(super) fn rtc(&mut self) -> &mut webrtc::Behaviour {
        &mut self.swarm.behaviour_mut().rtc
    }

    /// Dials. The answer comes as an event of the swarm.
    ///
    /// # Errors
    /// [`DialError`] if no address can be dialled. Then no event follows.
    pub(super) fn dial(&mut self, purpose: DialFor, opts: DialOpts) -> Result<(), DialError> {
        let conn = opts.connection_id();
        let swarm = &mut self.swarm;
        let (result, dialling) = self.recorder.record(|| swarm.dial(opts));
        if result.is_ok() {
            self.dials.insert(conn, (purpose, dialling));
        }
        result
    }

    /// A dial has ended. Returns its purpose if it is one of ours that was not taken back.
    pub(super) fn dialled(&mut self, conn: ConnectionId) -> Option<DialFor> {
        self.dials.remove(&conn).map(|(purpose, _)| purpose)
    }

    /// Takes back the dials for `purpose`.
    pub(super) fn take_back(&mut self, purpose: DialFor) {
        self.dials.retain(|_, (known, _)| *known != purpose);
    }

    pub(super) fn close(&mut self, conn: ConnectionId) {
        self.swarm.close_connection(conn);
    }

    /// Probes a connection. The answer comes as an event of the swarm.
    pub(super) fn probe(&mut self, peer: PeerId, conn: ConnectionId) {
        let target = &mut self.swarm.behaviour_mut().target;
        behaviours::probe(target, peer, conn);
    }

    /// Opens a substream. The answer comes as an event of the swarm, with the id of the request.
    pub(super) fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        purpose: Purpose,
    ) {
        let substreams = &mut self.swarm.behaviour_mut().streams;
        let id = substreams.open(peer, connection, protocol);
        self.opening.insert(id, purpose);
    }

    /// A request for a substream has been answered. Returns its purpose.
    pub(super) fn opened(&mut self, id: OpenId) -> Option<Purpose> {
        self.opening.remove(&id)
    }

    /// Returns where circuits go that relays bring.
    pub(super) fn arrivals(&self) -> Arrivals<Substream> {
        self.arrivals.clone()
    }

    /// Tells other peers, by identify, that `relay` leads to us. Its address ends in `/p2p/<relay>`.
    pub(super) fn announce(&mut self, relay: &Multiaddr) {
        let circuit = address::circuit(relay, self.local());
        self.swarm.add_external_address(circuit);
    }

    /// Takes back what [`announce`](Self::announce) has told.
    pub(super) fn withdraw(&mut self, relay: &Multiaddr) {
        let circuit = address::circuit(relay, self.local());
        self.swarm.remove_external_address(&circuit);
    }

    /// Closes every connection to `peer`. It is no error if there is none.
    pub(super) fn disconnect(&mut self, peer: PeerId) {
        let _ = self.swarm.disconnect_peer_id(peer);
    }
}
