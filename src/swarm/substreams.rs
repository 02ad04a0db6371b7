//! Opens substreams on a chosen connection and hands over substreams that peers open.
//!
//! libp2p's own stream behaviour chooses the connection itself. This library has to choose it,
//! because each connection is another path.
//!
//! The handlers can also carry datagrams. A behaviour of its own would cost kilobytes of wasm.

use std::{
    collections::HashSet,
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
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

use super::{datagrams::Framed, queue::Queue};
use crate::{
    core::datagram,
    datagrams::{Driver, Lane},
};

/// The request to which an answer belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OpenId(u64);

#[derive(Debug)]
pub(crate) enum SubstreamEvent {
    /// The answer to [`Substreams::open`]. It comes exactly once, even if the connection closes.
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
    /// A connection has a lane for datagrams, or its lane carries another length than before.
    Lane {
        peer: PeerId,
        connection: ConnectionId,
        lane: Arc<Lane>,
    },
}

/// Why a substream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// The peer does not serve the protocol.
    Unsupported,
    /// The negotiation took too long or failed.
    Failed,
    /// The connection closed first.
    Closed,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "it does not serve the protocol",
            Self::Failed => "no stream could be opened",
            Self::Closed => "the connection closed",
        })
    }
}

/// The behaviour. See the module's documentation.
pub(crate) struct Substreams {
    protocols: Arc<[StreamProtocol]>,
    keep_alive: bool,
    datagrams: bool,
    next: u64,
    waiting: HashSet<(ConnectionId, OpenId)>,
    queue: Queue<ToSwarm<SubstreamEvent, Open>>,
}

impl Substreams {
    /// `protocols` are those that peers may open. With `keep_alive`, no connection ever counts as
    /// idle, and the caller closes connections that nobody needs.
    pub(crate) fn new(
        protocols: impl IntoIterator<Item = StreamProtocol>,
        keep_alive: bool,
    ) -> Self {
        Self {
            protocols: protocols.into_iter().collect(),
            keep_alive,
            datagrams: false,
            next: 0,
            waiting: HashSet::new(),
            queue: Queue::default(),
        }
    }

    /// Makes a lane for datagrams on each connection. It comes as [`SubstreamEvent::Lane`].
    pub(crate) fn with_datagrams(mut self) -> Self {
        self.datagrams = true;
        let protocol = StreamProtocol::new(datagram::PROTOCOL);
        self.protocols = self.protocols.iter().cloned().chain([protocol]).collect();
        self
    }

    fn handler(&self) -> SubstreamHandler {
        SubstreamHandler {
            protocols: self.protocols.clone(),
            keep_alive: self.keep_alive,
            requests: Queue::default(),
            events: Queue::default(),
            datagrams: self.datagrams.then(|| Driver::new(Arc::default(), false)),
        }
    }

    /// Opens a substream on `connection`. The result comes as [`SubstreamEvent::Opened`].
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
    ) -> OpenId {
        let id = OpenId(self.next);
        self.next += 1;
        self.waiting.insert((connection, id));
        self.queue.push(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Open { id, protocol },
        });
        id
    }
}

impl NetworkBehaviour for Substreams {
    type ConnectionHandler = SubstreamHandler;
    type ToSwarm = SubstreamEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(closed) = event {
            let queue = &mut self.queue;
            self.waiting.retain(|&(connection, id)| {
                let gone = connection == closed.connection_id;
                if gone {
                    queue.push(ToSwarm::GenerateEvent(SubstreamEvent::Opened {
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
                SubstreamEvent::Opened { id, result }
            }
            FromHandler::Inbound { protocol, stream } => SubstreamEvent::Inbound {
                peer,
                connection,
                protocol,
                stream,
            },
            FromHandler::Lane(lane) => SubstreamEvent::Lane {
                peer,
                connection,
                lane,
            },
        };
        self.queue.push(ToSwarm::GenerateEvent(event));
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<SubstreamEvent, THandlerInEvent<Self>>> {
        self.queue.poll(cx)
    }
}

/// A request to a connection's handler.
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
    Lane(Arc<Lane>),
}

/// The substreams of one connection.
pub(crate) struct SubstreamHandler {
    protocols: Arc<[StreamProtocol]>,
    keep_alive: bool,
    requests: Queue<Open>,
    events: Queue<FromHandler>,
    datagrams: Option<Driver<Framed<Stream>>>,
}

impl ConnectionHandler for SubstreamHandler {
    type FromBehaviour = Open;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    /// The request that is answered. It is `None` for a lane.
    type OutboundOpenInfo = Option<OpenId>;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.protocols.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive || !self.requests.is_empty()
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.requests.push(open);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Offer, Offer, (), Option<OpenId>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => match &mut self.datagrams {
                Some(lane) if protocol.as_ref() == datagram::PROTOCOL => {
                    lane.accept(Framed::new(stream));
                }
                _ => self.events.push(FromHandler::Inbound { protocol, stream }),
            },
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (_, stream),
                info: id,
            }) => self.opened(id, Ok(stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: id, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    _ => OpenError::Failed,
                };
                self.opened(id, Err(error));
            }
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, Option<OpenId>, FromHandler>> {
        if let Some(datagrams) = &self.datagrams
            && datagrams.lane().polled(cx)
        {
            self.events
                .push(FromHandler::Lane(datagrams.lane().clone()));
        }
        if let Poll::Ready(event) = self.events.poll(cx) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        let (id, protocol) = match self.requests.poll(cx) {
            Poll::Ready(Open { id, protocol }) => (Some(id), protocol),
            Poll::Pending if self.datagrams.as_mut().is_some_and(|lane| lane.poll(cx)) => {
                (None, StreamProtocol::new(datagram::PROTOCOL))
            }
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(Offer(Arc::new([protocol])), id),
        })
    }
}

impl SubstreamHandler {
    /// A request for a substream, or for a lane, has been answered.
    fn opened(&mut self, id: Option<OpenId>, result: Result<Stream, OpenError>) {
        match (id, &mut self.datagrams) {
            (Some(id), _) => self.events.push(FromHandler::Opened { id, result }),
            (None, Some(datagrams)) => datagrams.opened(result.ok().map(Framed::new)),
            (None, None) => {}
        }
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
