//! Opens and accepts signalling streams on one connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    task::{Context, Poll, Waker},
};

use futures::channel::oneshot;
use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::ReadyUpgrade,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

use super::error::Error;
use crate::{core::signalling, stream::BoxedStream};

const PROTOCOL: StreamProtocol = StreamProtocol::new(signalling::PROTOCOL);

/// The sender of the signalling stream that a dial has requested.
pub(crate) type Reply = oneshot::Sender<Result<Signal, Error>>;

/// A signalling stream.
pub struct Signal {
    pub(crate) stream: BoxedStream,
    /// Whether the stream carries a sealed offer, which does not use a connection to the peer. Such
    /// a stream may lead nowhere, because the peer has not shown a sign of life yet.
    pub(crate) sealed: bool,
}

/// Opens and accepts signalling streams on one connection.
///
/// The streams themselves keep the connection alive as long as somebody signals. Between
/// negotiations, nothing keeps it alive.
#[derive(Default)]
pub struct Handler {
    requested: VecDeque<Reply>,
    accepted: VecDeque<Stream>,
    waker: Option<Waker>,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}

/// How many accepted signalling streams may wait for the behaviour. Further streams are reset.
const MAX_ACCEPTED: usize = 8;

/// A request for a signalling stream.
pub struct OpenSignalling(pub(crate) Reply);

impl fmt::Debug for OpenSignalling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenSignalling").finish_non_exhaustive()
    }
}

/// A signalling stream that the peer opened.
#[derive(Debug)]
pub struct SignallingOpened(pub(crate) Stream);

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenSignalling;
    type ToBehaviour = SignallingOpened;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.requested.is_empty() || !self.accepted.is_empty()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Reply, SignallingOpened>> {
        if let Some(stream) = self.accepted.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(SignallingOpened(
                stream,
            )));
        }
        // A dial that was given up has dropped its receiver.
        while let Some(reply) = self.requested.pop_front() {
            if !reply.is_canceled() {
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), reply),
                });
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, OpenSignalling(reply): OpenSignalling) {
        self.requested.push_back(reply);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Reply>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) if self.accepted.len() < MAX_ACCEPTED => self.accepted.push_back(stream),
            // If the dial was given up meanwhile, the stream is dropped, which resets it.
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: reply,
            }) => {
                let signal = Signal {
                    stream: Box::pin(stream),
                    sealed: false,
                };
                drop(reply.send(Ok(signal)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => Error::Unsupported,
                    StreamUpgradeError::Timeout => {
                        Error::SignallingLost("its negotiation took too long".into())
                    }
                    StreamUpgradeError::Io(error) => Error::SignallingLost(error.to_string()),
                    StreamUpgradeError::Apply(never) => unreachable(never),
                };
                let _ = reply.send(Err(error));
            }
            _ => {}
        }
    }
}

fn unreachable(never: Infallible) -> Error {
    match never {}
}
