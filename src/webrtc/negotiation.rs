//! One negotiation: a signalling stream, a peer connection, and the order of their steps.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use asynchronous_codec::Framed;
use futures::{
    AsyncRead, AsyncWrite, Sink, Stream,
    future::{poll_fn, select},
};
use futures_timer::Delay;
use libp2p::core::upgrade::NegotiationError;
use unsigned_varint::codec::UviBytes;

use super::{
    backend::{PeerConnection, PeerEvent},
    error::{Error, Phase},
};
use crate::core::signalling::{Action, MAX_MESSAGE_LEN, Message, Negotiation, Role};

/// How long a peer may take to read that its offer is refused.
const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// A signalling stream, read and written in messages.
pub(crate) struct Signalling<S> {
    framed: Framed<S, UviBytes>,
    outbox: VecDeque<Message>,
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Signalling<S> {
    pub(crate) fn new(stream: S) -> Self {
        let mut codec = UviBytes::default();
        codec.set_max_len(MAX_MESSAGE_LEN);
        Self {
            framed: Framed::new(stream, codec),
            outbox: VecDeque::new(),
            closing: false,
        }
    }

    /// Returns the next message, or `None` at the end of the stream.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Message>, Error>> {
        match ready!(Pin::new(&mut self.framed).poll_next(cx)) {
            None => Poll::Ready(Ok(None)),
            Some(Err(error)) => Poll::Ready(Err(lost(&error))),
            Some(Ok(bytes)) => Poll::Ready(Ok(Some(Message::decode(&bytes)?))),
        }
    }

    /// Sends the messages in the outbox.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.outbox.is_empty() {
            ready!(Pin::new(&mut self.framed).poll_ready(cx)).map_err(|e| lost(&e))?;
            if let Some(message) = self.outbox.pop_front() {
                let bytes = message.encode().into();
                Pin::new(&mut self.framed)
                    .start_send(bytes)
                    .map_err(|e| lost(&e))?;
            }
        }
        Pin::new(&mut self.framed)
            .poll_flush(cx)
            .map_err(|e| lost(&e))
    }

    /// Ends the writing half.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.closing = true;
        // A close that fails has the same effect as one that succeeds.
        Pin::new(&mut self.framed).poll_close(cx).map(drop)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Signalling<S> {
    /// Tells the peer that its offer is refused. Then reads until the peer ends the stream, because
    /// what is unread would reset the stream before the peer has read the refusal.
    pub(crate) async fn refuse(mut self) {
        self.outbox.push_back(Message::Refusal);
        let told = pin!(async {
            if poll_fn(|cx| self.poll_send(cx)).await.is_ok() {
                poll_fn(|cx| self.poll_close(cx)).await;
                while let Ok(Some(_)) = poll_fn(|cx| self.poll_receive(cx)).await {}
            }
        });
        select(told, Delay::new(REFUSAL_TIME)).await;
    }
}

/// Converts an error of the stream. A stream of one protocol is used before the peer has said
/// whether it speaks the protocol, so the refusal comes as an error of the stream.
fn lost(error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(NegotiationError::Failed) => Error::Unsupported,
        _ => Error::SignallingLost(error.to_string()),
    }
}

/// A peer connection on its way up, and the signalling that brings it up.
///
/// As a future, it resolves when ICE and DTLS are up. Dropping it resets the signalling stream and
/// closes the peer connection.
pub(crate) struct Negotiating<S, P: PeerConnection> {
    inner: Option<Established<S, P>>,
    timeout: Delay,
    phase: Phase,
}

/// The result of a finished negotiation, for the muxer.
pub(crate) struct Established<S, P: PeerConnection> {
    pub(crate) connection: P,
    /// The events that came before the muxer existed.
    pub(crate) events: VecDeque<PeerEvent<P::Channel>>,
    pub(crate) conversation: Conversation<S>,
}

/// The signalling of one connection, with its order.
pub(crate) struct Conversation<S> {
    signalling: Signalling<S>,
    order: Negotiation,
    role: Role,
}

impl<S, P> Negotiating<S, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: PeerConnection,
{
    /// Makes an offer over a new signalling stream, which is `sealed` or not. The negotiation fails when
    /// `timeout` fires first.
    pub(crate) fn offer(
        mut connection: P,
        signalling: Signalling<S>,
        sealed: bool,
        timeout: Delay,
    ) -> Self {
        connection.create_offer(sealed);
        Self::new(Role::Offerer, connection, signalling, timeout)
    }

    /// Answers the offer that comes over a signalling stream. `early` are the messages that were
    /// already read from it.
    ///
    /// # Errors
    /// Returns an error if `early` breaks the protocol.
    pub(crate) fn answer(
        connection: P,
        signalling: Signalling<S>,
        early: Vec<Message>,
        timeout: Delay,
    ) -> Result<Self, Error> {
        let mut this = Self::new(Role::Answerer, connection, signalling, timeout);
        if let Some(inner) = &mut this.inner {
            for message in early {
                inner.conversation.order.received(message)?;
            }
        }
        Ok(this)
    }

    /// Whether the descriptions are exchanged, so that the peer has shown that it takes part.
    pub(crate) fn is_described(&self) -> bool {
        self.phase == Phase::Connectivity
    }

    fn new(role: Role, connection: P, signalling: Signalling<S>, timeout: Delay) -> Self {
        Self {
            inner: Some(Established {
                connection,
                events: VecDeque::new(),
                conversation: Conversation {
                    signalling,
                    order: Negotiation::new(role),
                    role,
                },
            }),
            timeout,
            phase: Phase::Description,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    /// Does what the negotiation wants done. Returns whether the peer's description was among it.
    fn act<P: PeerConnection>(&mut self, connection: &mut P) -> bool {
        let mut described = false;
        while let Some(action) = self.order.poll() {
            match action {
                Action::Send(message) => self.signalling.outbox.push_back(message),
                Action::AcceptOffer(sdp) => {
                    described = true;
                    connection.accept_offer(&sdp);
                }
                Action::AcceptAnswer(sdp) => {
                    described = true;
                    connection.accept_answer(&sdp);
                }
                Action::AddCandidate(candidate) => {
                    connection.add_remote_candidate(candidate.as_ref());
                }
            }
        }
        described
    }

    /// Takes late candidates of the peer, and ends the signalling stream when the peer ends it or
    /// on `timeout`. The timeout of the offerer is shorter. js-libp2p must not see the end before
    /// it is connected itself.
    pub(crate) fn poll_linger<P: PeerConnection>(
        &mut self,
        connection: &mut P,
        cx: &mut Context<'_>,
        timeout: &mut Delay,
    ) -> Poll<()> {
        if !self.signalling.closing && Pin::new(timeout).poll(cx).is_pending() {
            // Even if the peer has stopped reading, queued messages must not block the close.
            let _ = self.signalling.poll_send(cx);
            loop {
                match self.signalling.poll_receive(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Some(message @ Message::Candidate(_)))) => {
                        if self.order.received(message).is_err() {
                            break;
                        }
                        self.act(connection);
                    }
                    Poll::Ready(_) => break,
                }
            }
        }
        self.signalling.poll_close(cx)
    }

    /// Whether this side made the offer.
    pub(crate) fn is_offerer(&self) -> bool {
        self.role == Role::Offerer
    }
}

impl<S, P> Future for Negotiating<S, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: PeerConnection,
{
    type Output = Result<Established<S, P>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Pending;
        };
        let mut ended = false;
        loop {
            if inner.conversation.act(&mut inner.connection) {
                this.phase = Phase::Connectivity;
            }
            if let Poll::Ready(Err(error)) = inner.conversation.signalling.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            match inner.connection.poll_event(cx) {
                Poll::Ready(PeerEvent::Description(sdp)) => {
                    inner.conversation.order.local_description(sdp);
                    continue;
                }
                Poll::Ready(PeerEvent::Candidate(candidate)) => {
                    inner.conversation.order.local_candidate(candidate);
                    continue;
                }
                Poll::Ready(PeerEvent::MoreTime(more)) => {
                    this.timeout.reset(more);
                    continue;
                }
                Poll::Ready(PeerEvent::Connected) => {
                    return Poll::Ready(this.inner.take().ok_or(Error::Closed));
                }
                Poll::Ready(PeerEvent::Failed(error)) => {
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Ready(
                    event @ (PeerEvent::Path(_) | PeerEvent::Channel(_) | PeerEvent::Lane(_)),
                ) => {
                    inner.events.push_back(event);
                    continue;
                }
                Poll::Pending => {}
            }
            if !ended {
                match inner.conversation.signalling.poll_receive(cx) {
                    Poll::Ready(Ok(Some(message))) => {
                        if let Err(error) = inner.conversation.order.received(message) {
                            return Poll::Ready(Err(error.into()));
                        }
                        continue;
                    }
                    // The peer may end the stream as soon as it is connected itself.
                    Poll::Ready(Ok(None)) if this.phase == Phase::Connectivity => {
                        ended = true;
                        continue;
                    }
                    Poll::Ready(Ok(None)) => {
                        let error = Error::SignallingLost("the peer ended it".into());
                        return Poll::Ready(Err(error));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            if Pin::new(&mut this.timeout).poll(cx).is_ready() {
                return Poll::Ready(Err(Error::Timeout(this.phase)));
            }
            return Poll::Pending;
        }
    }
}
