//! The behaviour. It gets signalling streams for the transport, and tells the swarm about listen
//! addresses and paths.

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
use crate::{error::innermost, stream::BoxedStream};

/// How many notices may wait for the transport. Incoming signalling streams beyond this are reset.
const MAX_QUEUED: usize = 64;

/// A dial's request for a signalling stream.
pub(crate) struct Request {
    pub(crate) target: address::Target,
    pub(crate) reply: Reply,
}

/// A message to the transport.
pub(crate) enum Notice {
    /// A peer opened a signalling stream.
    Signalling(PeerId, BoxedStream),
    /// This node listens on another circuit.
    CircuitAdded(Multiaddr),
    /// This node no longer listens on a circuit.
    CircuitRemoved(Multiaddr),
}

/// An event of a `/webrtc` connection.
///
/// ```no_run
/// use throughline::rtc::Event;
///
/// fn on_event(event: Event) {
///     if let Event::Path { peer, pair, .. } = event {
///         println!("{peer} at {:?}, round trip {:?}", pair.remote.addr, pair.rtt);
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The candidate pair that carries a connection. It comes once after the connection is
    /// established, and then at each change.
    Path {
        /// The peer at the other end.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
        /// The pair in use from now on.
        pair: CandidatePair,
    },
}

/// Gets signalling streams for the [`Transport`](crate::rtc::Transport) to which it belongs. While
/// the transport has a `/webrtc` listener, it also advertises `<circuit>/webrtc` for each circuit that
/// is an external address of this node.
///
/// The transport's dials fail if this behaviour is not in the swarm.
///
/// ```no_run
/// use libp2p::{identity, relay, swarm::NetworkBehaviour};
/// use throughline::rtc;
///
/// #[derive(NetworkBehaviour)]
/// struct Behaviour {
///     circuits: relay::client::Behaviour,
///     webrtc: rtc::Behaviour,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let me = identity::Keypair::generate_ed25519().public().to_peer_id();
/// let (_transport, webrtc) = rtc::new(me, rtc::Config::default())?;
/// let (_circuits, circuits) = relay::client::new(me);
/// let behaviour = Behaviour { circuits, webrtc };
/// # drop(behaviour);
/// # Ok(()) }
/// ```
pub struct Behaviour {
    requests: mpsc::Receiver<Request>,
    paths: mpsc::Receiver<PathUpdate>,
    to_transport: mpsc::Sender<Notice>,
    notices: VecDeque<Notice>,
    /// The established connections by peer. The flag is true for `/webrtc` connections.
    connections: HashMap<PeerId, Vec<(ConnectionId, bool)>>,
    /// Streams for the signalling with peers to which there is no connection yet.
    sealed: HashMap<PeerId, BoxedStream>,
    /// The circuits that are being dialled for signalling.
    dialling: HashMap<ConnectionId, Vec<Reply>>,
    /// Path updates for which the swarm has not reported the address change yet.
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

    /// Lets the next dial to `peer` signal over `stream`, until [`retract`](Self::retract) is
    /// called.
    pub(crate) fn signal_over(&mut self, peer: PeerId, stream: BoxedStream) {
        self.sealed.insert(peer, stream);
    }

    /// Removes the stream that was given for dials to `peer`.
    pub(crate) fn retract(&mut self, peer: &PeerId) {
        self.sealed.remove(peer);
    }

    /// Reports to the transport that `peer` signals over `stream`.
    pub(crate) fn signalled(&mut self, peer: PeerId, stream: BoxedStream) {
        self.notify_transport(Notice::Signalling(peer, stream));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn request(&mut self, Request { target, reply }: Request) {
        if reply.is_canceled() {
            return;
        }
        if let Some(stream) = self.sealed.remove(&target.peer) {
            let _ = reply.send(Ok(Signal {
                stream,
                sealed: true,
            }));
            return;
        }
        // A relayed connection is preferred to a direct one, because it was made for this purpose. Of two,
        // the older one may be about to close, because it is dead.
        let existing = self
            .connections
            .get(&target.peer)
            .and_then(|all| all.iter().rev().min_by_key(|(_, webrtc)| *webrtc));
        if let Some((connection, _)) = existing {
            self.open(target.peer, *connection, reply);
            return;
        }
        let Some(circuit) = target.circuit else {
            let _ = reply.send(Err(Error::Unreachable("there is no connection".into())));
            return;
        };
        let opts = DialOpts::peer_id(target.peer)
            .addresses(vec![circuit])
            // The dial that waits for this stream already counts as a dial to this peer.
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

    /// Reports a path change. The swarm knows to which connection the address belongs.
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
        // Updates that are left over belong to connections that closed before the swarm reported
        // the change.
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
                    let _ = reply.send(Err(Error::Unreachable(reason(error))));
                }
            }
            FromSwarm::AddressChange(AddressChange {
                peer_id,
                connection_id,
                new,
                ..
            }) => self.moved(peer_id, connection_id, new.get_remote_address()),
            FromSwarm::ExternalAddrConfirmed(confirmed) => {
                if let Some(circuit) = address::advertised(confirmed.addr) {
                    self.notify_transport(Notice::CircuitAdded(circuit));
                }
            }
            FromSwarm::ExternalAddrExpired(expired) => {
                if let Some(circuit) = address::advertised(expired.addr) {
                    self.notify_transport(Notice::CircuitRemoved(circuit));
                }
            }
            // The transport's own addresses are reachable because their circuits are.
            FromSwarm::NewListenAddr(NewListenAddr { addr, .. })
                if address::parse_listener(addr).is_some() =>
            {
                self.actions
                    .push_back(ToSwarm::ExternalAddrConfirmed(addr.clone()));
            }
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { addr, .. })
                if address::parse_listener(addr).is_some() =>
            {
                self.actions
                    .push_back(ToSwarm::ExternalAddrExpired(addr.clone()));
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
                // The transport is gone, so nobody would read the notices.
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

/// Says why a dial failed, without libp2p's nesting.
fn reason(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let reasons: Vec<_> = errors.iter().map(|(_, error)| innermost(error)).collect();
            reasons.join(", ")
        }
        _ => "the dial was not made or not completed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::oneshot;
    use libp2p::core::{ConnectedPoint, transport::PortUse};

    use super::*;
    use crate::webrtc::address::Target;

    /// A circuit that is dead closes after its successor is up.
    #[test]
    fn signalling_takes_the_newest_circuit() {
        let (_requests, requests) = mpsc::channel(1);
        let (_paths, paths) = mpsc::channel(1);
        let (notices, _notices) = mpsc::channel(1);
        let mut behaviour = Behaviour::new(requests, paths, notices);
        let peer = PeerId::random();
        let circuit = "/ip4/192.0.2.1/udp/1/quic-v1/p2p-circuit";
        for (id, address) in [
            (1, circuit),
            (2, circuit),
            (3, "/ip4/192.0.2.1/udp/1/webrtc"),
        ] {
            let endpoint = ConnectedPoint::Dialer {
                address: address.parse().unwrap(),
                role_override: Endpoint::Dialer,
                port_use: PortUse::Reuse,
            };
            behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id: ConnectionId::new_unchecked(id),
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: id - 1,
            }));
        }
        let (reply, _answer) = oneshot::channel();
        let circuit = None;
        behaviour.request(Request {
            target: Target { peer, circuit },
            reply,
        });
        let Some(ToSwarm::NotifyHandler { handler, .. }) = behaviour.actions.pop_front() else {
            panic!("no connection is asked");
        };
        assert!(
            matches!(handler, NotifyHandler::One(id) if id == ConnectionId::new_unchecked(2)),
            "{handler:?}"
        );
    }
}
