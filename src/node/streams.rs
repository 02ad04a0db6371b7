//! Opens substreams on a chosen connection and hands over those that peers open.
//!
//! libp2p's own stream behaviour picks a connection itself; here the path is the point.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::future::{Ready, ready};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

/// Which request an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OpenId(u64);

#[derive(Debug)]
pub(crate) enum Event {
    /// The answer to [`Behaviour::open`]; comes exactly once, also when the connection closes.
    Opened {
        id: OpenId,
        result: Result<Stream, OpenError>,
    },
    /// The peer opened a substream.
    Inbound {
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        stream: Stream,
    },
}

/// Why a substream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// The peer does not serve the protocol.
    Unsupported,
    /// The negotiation took too long or broke.
    Failed,
    /// The connection closed first.
    Closed,
}

/// See the module's documentation.
pub(crate) struct Behaviour {
    protocols: Arc<[StreamProtocol]>,
    keep_alive: bool,
    next: u64,
    waiting: HashSet<(ConnectionId, OpenId)>,
    queue: VecDeque<ToSwarm<Event, Open>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// `protocols` are those that peers may open. With `keep_alive` no connection is ever idle:
    /// the caller closes those that nobody needs.
    pub(crate) fn new(
        protocols: impl IntoIterator<Item = StreamProtocol>,
        keep_alive: bool,
    ) -> Self {
        Self {
            protocols: protocols.into_iter().collect(),
            keep_alive,
            next: 0,
            waiting: HashSet::new(),
            queue: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a substream on `connection`.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
    ) -> OpenId {
        let id = OpenId(self.next);
        self.next += 1;
        self.waiting.insert((connection, id));
        self.queue.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Open { id, protocol },
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        id
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
        Ok(Handler::new(self.protocols.clone(), self.keep_alive))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.protocols.clone(), self.keep_alive))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(closed) = event {
            let queue = &mut self.queue;
            self.waiting.retain(|&(connection, id)| {
                let gone = connection == closed.connection_id;
                if gone {
                    queue.push_back(ToSwarm::GenerateEvent(Event::Opened {
                        id,
                        result: Err(OpenError::Closed),
                    }));
                }
                !gone
            });
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let event = match event {
            FromHandler::Opened { id, result } => {
                if !self.waiting.remove(&(connection, id)) {
                    return;
                }
                Event::Opened { id, result }
            }
            FromHandler::Inbound { protocol, stream } => Event::Inbound {
                peer,
                connection,
                protocol,
                stream,
            },
        };
        self.queue.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.queue.pop_front() {
            Some(action) => Poll::Ready(action),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// One request to a connection's handler.
#[derive(Debug)]
pub(crate) struct Open {
    id: OpenId,
    protocol: StreamProtocol,
}

#[derive(Debug)]
pub(crate) enum FromHandler {
    Opened {
        id: OpenId,
        result: Result<Stream, OpenError>,
    },
    Inbound {
        protocol: StreamProtocol,
        stream: Stream,
    },
}

/// Substreams on one connection.
pub(crate) struct Handler {
    protocols: Arc<[StreamProtocol]>,
    keep_alive: bool,
    requests: VecDeque<Open>,
    events: VecDeque<FromHandler>,
    waker: Option<Waker>,
}

impl Handler {
    fn new(protocols: Arc<[StreamProtocol]>, keep_alive: bool) -> Self {
        Self {
            protocols,
            keep_alive,
            requests: VecDeque::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    fn emit(&mut self, event: FromHandler) {
        self.events.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenId;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.protocols.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive || !self.requests.is_empty()
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.requests.push_back(open);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), OpenId>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => self.emit(FromHandler::Inbound { protocol, stream }),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (_, stream),
                info: id,
            }) => self.emit(FromHandler::Opened {
                id,
                result: Ok(stream),
            }),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: id, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    _ => OpenError::Failed,
                };
                self.emit(FromHandler::Opened {
                    id,
                    result: Err(error),
                });
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, OpenId, FromHandler>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if let Some(Open { id, protocol }) = self.requests.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offer(Arc::new([protocol])), id),
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Negotiates one of several protocols and gives the bare substream.
pub(crate) struct Offer(Arc<[StreamProtocol]>);

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = Vec<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.to_vec()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}
