//! The behaviour: signalling streams for the transport, and what the swarm must know.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    task::{Context, Poll, Waker},
};

use futures::{StreamExt, channel::mpsc};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, multiaddr::Protocol, transport::PortUse},
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, DialError, DialFailure,
        ExpiredListenAddr, FromSwarm, NetworkBehaviour, NewListenAddr, NotifyHandler, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::{AddressChange, ConnectionEstablished},
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{
    address,
    backend::CandidatePair,
    error::Error,
    handler::{Handler, OpenSignalling, Reply, Signal, SignallingOpened},
    muxer::PathUpdate,
};
use crate::{backend::offer::Sealing, circuit::Duplex};

/// Messages that wait for the transport to take them; inbound signalling streams beyond it are
/// reset.
const MAX_QUEUED: usize = 64;

/// A dial's request for a signalling stream.
pub(crate) struct Request {
    pub(crate) target: address::Target,
    pub(crate) reply: Reply,
}

/// What the transport is told.
pub(crate) enum Notice {
    /// A peer opened a signalling stream.
    Signalling(PeerId, Duplex),
    /// This node listens on another circuit.
    CircuitAdded(Multiaddr),
    /// It no longer does.
    CircuitRemoved(Multiaddr),
}

/// What happens to `/webrtc` connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The candidate pair that carries a connection: once after it is established, then at each
    /// change.
    Path {
        /// The peer at the other end.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
        /// The pair in use from now on.
        pair: CandidatePair,
    },
}

/// Gets signalling streams for the [`Transport`](super::Transport) it was made with, and
/// advertises `<circuit>/webrtc` for each circuit this node listens on while the transport has a
/// `/webrtc` listener.
///
/// Without it in the swarm, the transport's dials fail.
pub struct Behaviour {
    requests: mpsc::Receiver<Request>,
    paths: mpsc::Receiver<PathUpdate>,
    to_transport: mpsc::Sender<Notice>,
    notices: VecDeque<Notice>,
    /// Established connections by peer; the flag tells `/webrtc` ones.
    connections: HashMap<PeerId, Vec<(ConnectionId, bool)>>,
    /// Streams to signal over with peers that there is no connection to yet.
    sealed: HashMap<PeerId, (Duplex, Sealing)>,
    /// Circuits being dialled for signalling.
    dialling: HashMap<ConnectionId, Vec<Reply>>,
    /// Path updates whose address change the swarm has not told yet.
    moved: VecDeque<PathUpdate>,
    actions: VecDeque<ToSwarm<Event, OpenSignalling>>,
    waker: Option<Waker>,
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour")
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Behaviour {
    pub(crate) fn new(
        requests: mpsc::Receiver<Request>,
        paths: mpsc::Receiver<PathUpdate>,
        to_transport: mpsc::Sender<Notice>,
    ) -> Self {
        Self {
            requests,
            paths,
            to_transport,
            notices: VecDeque::new(),
            connections: HashMap::new(),
            sealed: HashMap::new(),
            dialling: HashMap::new(),
            moved: VecDeque::new(),
            actions: VecDeque::new(),
            waker: None,
        }
    }

    /// Lets the next dial to `peer` signal over `stream`, until [`retract`](Self::retract).
    pub(crate) fn signal_over(&mut self, peer: PeerId, stream: Duplex, sealing: Sealing) {
        self.sealed.insert(peer, (stream, sealing));
    }

    /// No dial to `peer` is to signal over what was given for it.
    pub(crate) fn retract(&mut self, peer: &PeerId) {
        self.sealed.remove(peer);
    }

    /// `peer` signals over `stream`.
    pub(crate) fn signalled(&mut self, peer: PeerId, stream: Duplex) {
        self.notify_transport(Notice::Signalling(peer, stream));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn request(&mut self, Request { target, reply }: Request) {
        if reply.is_canceled() {
            return;
        }
        if let Some((stream, sealing)) = self.sealed.remove(&target.peer) {
            let _ = reply.send(Ok(Signal {
                stream,
                sealed: Some(sealing),
            }));
            return;
        }
        // A relayed connection before a direct one: it is the one that was made for this.
        let existing = self
            .connections
            .get(&target.peer)
            .and_then(|all| all.iter().min_by_key(|(_, webrtc)| *webrtc));
        if let Some((connection, _)) = existing {
            self.open(target.peer, *connection, reply);
            return;
        }
        let Some(circuit) = target.circuit else {
            let _ = reply.send(Err(Error::Unreachable("not connected".into())));
            return;
        };
        let opts = DialOpts::peer_id(target.peer)
            .addresses(vec![circuit])
            // The dial that we are serving counts as one to this peer already.
            .condition(PeerCondition::Always)
            .build();
        self.dialling.insert(opts.connection_id(), vec![reply]);
        self.actions.push_back(ToSwarm::Dial { opts });
    }

    fn open(&mut self, peer: PeerId, connection: ConnectionId, reply: Reply) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: OpenSignalling(reply),
        });
    }

    fn notify_transport(&mut self, notice: Notice) {
        if self.notices.len() < MAX_QUEUED || !matches!(notice, Notice::Signalling(..)) {
            self.notices.push_back(notice);
        }
    }

    /// The swarm's view of a path change: it knows which connection it is about.
    fn moved(&mut self, peer: PeerId, connection: ConnectionId, address: &Multiaddr) {
        while let Ok(update) = self.paths.try_recv() {
            self.moved.push_back(update);
        }
        let found = self
            .moved
            .iter()
            .position(|update| update.peer == peer && update.address == *address);
        if let Some(update) = found.and_then(|i| self.moved.remove(i)) {
            self.actions.push_back(ToSwarm::GenerateEvent(Event::Path {
                peer,
                connection,
                pair: update.pair,
            }));
        }
        // What is left over belongs to connections that closed before the swarm told.
        while self.moved.len() > MAX_QUEUED {
            self.moved.pop_front();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let address = endpoint.get_remote_address();
                let webrtc = address.iter().any(|p| p == Protocol::WebRTC);
                self.connections
                    .entry(peer_id)
                    .or_default()
                    .push((connection_id, webrtc));
                for reply in self.dialling.remove(&connection_id).unwrap_or_default() {
                    self.open(peer_id, connection_id, reply);
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                if let Some(all) = self.connections.get_mut(&peer_id) {
                    all.retain(|(id, _)| *id != connection_id);
                    if all.is_empty() {
                        self.connections.remove(&peer_id);
                    }
                }
            }
            FromSwarm::DialFailure(DialFailure {
                connection_id,
                error,
                ..
            }) => {
                for reply in self.dialling.remove(&connection_id).unwrap_or_default() {
                    let _ = reply.send(Err(Error::Unreachable(describe(error))));
                }
            }
            FromSwarm::AddressChange(AddressChange {
                peer_id,
                connection_id,
                new,
                ..
            }) => self.moved(peer_id, connection_id, new.get_remote_address()),
            FromSwarm::NewListenAddr(NewListenAddr { addr, .. }) => {
                if let Some(circuit) = address::advertised(addr) {
                    self.notify_transport(Notice::CircuitAdded(circuit));
                } else if address::parse_listener(addr).is_some() {
                    // The transport's own address: reachable, since the circuit is.
                    self.actions
                        .push_back(ToSwarm::ExternalAddrConfirmed(addr.clone()));
                }
            }
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { addr, .. }) => {
                if let Some(circuit) = address::advertised(addr) {
                    self.notify_transport(Notice::CircuitRemoved(circuit));
                } else if address::parse_listener(addr).is_some() {
                    self.actions
                        .push_back(ToSwarm::ExternalAddrExpired(addr.clone()));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        SignallingOpened(stream): THandlerOutEvent<Self>,
    ) {
        self.notify_transport(Notice::Signalling(peer, Box::pin(stream)));
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while !self.notices.is_empty() && self.to_transport.poll_ready(cx).is_ready() {
            if let Some(notice) = self.notices.pop_front()
                && self.to_transport.start_send(notice).is_err()
            {
                // The transport is gone; so is everybody who would listen.
                self.notices.clear();
            }
        }
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            match self.requests.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => self.request(request),
                Poll::Ready(None) | Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// A dial error in one line, with the cause that matters.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(attempts) => attempts
            .iter()
            .map(|(_, error)| {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    text = cause.to_string();
                    source = cause.source();
                }
                text
            })
            .collect::<Vec<_>>()
            .join("; "),
        error => error.to_string(),
    }
}
