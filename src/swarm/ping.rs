//! Probes connections by libp2p's ping protocol, `/ipfs/ping/1.0.0`.
//!
//! libp2p's own behaviour probes at a fixed pace, and says nothing before the second failure in a
//! row. Here, whoever owns a connection says when to probe it, and judges the answers with
//! [`Liveness`](crate::core::liveness).

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{NegotiationError, ReadyUpgrade},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError},
    },
};
use web_time::Instant;

use super::queue::Queue;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// The bytes of a probe and of its answer.
const SIZE: usize = 32;
type Payload = [u8; SIZE];

/// How many streams with probes a peer may have open. The specification wants two.
const MAX_INBOUND: usize = 2;

/// The answer to a probe.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    /// The round-trip time, or `None` if the peer does not speak the protocol.
    pub(crate) rtt: Option<Duration>,
}

/// The behaviour. See the module's documentation.
#[derive(Default)]
pub(crate) struct Ping {
    queue: Queue<ToSwarm<Event, Probe>>,
}

/// The request for a probe.
#[derive(Debug)]
pub(crate) struct Probe;

impl Ping {
    /// Sends a probe over `connection`. It replaces one that is under way.
    pub(crate) fn probe(&mut self, peer: PeerId, connection: ConnectionId) {
        self.queue.push(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Probe,
        });
    }
}

impl NetworkBehaviour for Ping {
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

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        rtt: THandlerOutEvent<Self>,
    ) {
        self.queue.push(ToSwarm::GenerateEvent(Event {
            peer,
            connection,
            rtt,
        }));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.queue.poll(cx)
    }
}

/// The probes of one connection.
#[derive(Default)]
pub(crate) struct Handler {
    outbound: Outbound,
    /// The probe that the one under way has replaced. Its answer counts as well.
    replaced: Option<Exchange>,
    inbound: VecDeque<Echo>,
    waker: Option<Waker>,
}

/// The stream with this side's probes.
#[derive(Default)]
enum Outbound {
    /// There is no stream.
    #[default]
    None,
    /// A probe was asked for, and the stream is to be opened.
    Wanted,
    Opening,
    /// The stream waits for the next probe.
    Idle(Stream),
    UnderWay(Exchange),
    /// The peer does not speak the protocol.
    Refused,
    /// The peer does not speak the protocol, and this was not reported yet.
    Unreported,
}

/// A probe under way.
struct Exchange {
    stream: Stream,
    payload: Payload,
    sent: Instant,
    /// How many bytes of the probe were written, and how many of the answer were read.
    written: usize,
    read: usize,
}

impl Exchange {
    fn new(stream: Stream) -> Self {
        let mut payload = Payload::default();
        // A payload that can be guessed lets the peer answer early, which deceives only itself.
        let _ = getrandom::fill(&mut payload);
        Self {
            stream,
            payload,
            sent: Instant::now(),
            written: 0,
            read: 0,
        }
    }

    /// Resolves to the round-trip time.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Duration>> {
        let stream = &mut self.stream;
        ready!(poll_write(stream, &self.payload, &mut self.written, cx))?;
        let mut answer = Payload::default();
        while self.read < SIZE {
            let rest = &mut answer[self.read..];
            let count = ready!(Pin::new(&mut *stream).poll_read(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let read = self.read..self.read + count;
            if answer[read.clone()] != self.payload[read.clone()] {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            self.read = read.end;
        }
        Poll::Ready(Ok(self.sent.elapsed()))
    }
}

/// A stream with the peer's probes, which are sent back.
struct Echo {
    stream: Stream,
    payload: Payload,
    read: usize,
    written: usize,
}

impl Echo {
    /// Resolves when the stream has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.read < SIZE {
                let rest = &mut self.payload[self.read..];
                match ready!(Pin::new(&mut self.stream).poll_read(cx, rest))? {
                    0 => return Poll::Ready(Ok(())),
                    count => self.read += count,
                }
            }
            ready!(poll_write(
                &mut self.stream,
                &self.payload,
                &mut self.written,
                cx
            ))?;
            (self.read, self.written) = (0, 0);
        }
    }
}

/// Writes what is left of `payload`, and flushes it.
fn poll_write(
    stream: &mut Stream,
    payload: &Payload,
    written: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while *written < SIZE {
        match ready!(Pin::new(&mut *stream).poll_write(cx, &payload[*written..]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => *written += count,
        }
    }
    Pin::new(stream).poll_flush(cx)
}

impl Handler {
    /// Returns the answer to a probe: the round-trip time, or `None` if the peer does not speak the
    /// protocol. A stream that fails is replaced by the next probe.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Option<Duration>> {
        if let Some(replaced) = &mut self.replaced
            && let Poll::Ready(result) = replaced.poll(cx)
        {
            self.replaced = None;
            if let Ok(rtt) = result {
                return Poll::Ready(Some(rtt));
            }
        }
        if let Outbound::Idle(stream) = &mut self.outbound
            && Pin::new(stream).poll_read(cx, &mut [0]).is_ready()
        {
            // The peer has ended the stream. On a data channel, reading this is what acknowledges it,
            // and js-libp2p waits for that before it closes a connection.
            self.outbound = Outbound::None;
        }
        let Outbound::UnderWay(exchange) = &mut self.outbound else {
            return Poll::Pending;
        };
        let result = ready!(exchange.poll(cx));
        let before = std::mem::take(&mut self.outbound);
        match (result, before) {
            (Ok(rtt), Outbound::UnderWay(exchange)) => {
                self.outbound = Outbound::Idle(exchange.stream);
                self.replaced = None;
                Poll::Ready(Some(rtt))
            }
            (result, _) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a probe failed");
                    // The negotiation is lazy, so a refusal of the protocol comes with the answer.
                    if error
                        .get_ref()
                        .is_some_and(|inner| inner.is::<NegotiationError>())
                    {
                        self.outbound = Outbound::Refused;
                        return Poll::Ready(None);
                    }
                }
                Poll::Pending
            }
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Probe;
    type ToBehaviour = Option<Duration>;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn on_behaviour_event(&mut self, Probe: Probe) {
        self.outbound = match std::mem::take(&mut self.outbound) {
            Outbound::None => Outbound::Wanted,
            Outbound::UnderWay(exchange) => {
                self.replaced = Some(exchange);
                Outbound::Wanted
            }
            Outbound::Idle(stream) => Outbound::UnderWay(Exchange::new(stream)),
            other => other,
        };
        self.wake();
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(inbound) => {
                if self.inbound.len() == MAX_INBOUND {
                    self.inbound.pop_front();
                }
                self.inbound.push_back(Echo {
                    stream: inbound.protocol,
                    payload: Payload::default(),
                    read: 0,
                    written: 0,
                });
            }
            ConnectionEvent::FullyNegotiatedOutbound(outbound) => {
                self.outbound = Outbound::UnderWay(Exchange::new(outbound.protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                tracing::debug!(%error, "a probe failed");
                self.outbound = match error {
                    StreamUpgradeError::NegotiationFailed => Outbound::Unreported,
                    _ => Outbound::None,
                };
            }
            _ => return,
        }
        self.wake();
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Option<Duration>>> {
        self.inbound.retain_mut(|echo| echo.poll(cx).is_pending());
        if let Poll::Ready(rtt) = self.poll_outbound(cx) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(rtt));
        }
        match self.outbound {
            Outbound::Wanted => {
                self.outbound = Outbound::Opening;
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            Outbound::Unreported => {
                self.outbound = Outbound::Refused;
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(None));
            }
            _ => {}
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
