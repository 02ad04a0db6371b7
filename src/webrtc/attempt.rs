//! One dial. It makes its own offer, unless answering the peer's offer is the better way to the
//! same connection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    StreamExt,
    channel::{mpsc, oneshot},
};
use futures_timer::Delay;
use libp2p::PeerId;
use web_time::Instant;

use super::{
    backend::Backend,
    error::{Error, Phase},
    handler::Signal,
    negotiation::{Established, Negotiating, Signalling},
};
use crate::{
    core::signalling::{MAX_MESSAGES, Message},
    stream::BoxedStream,
};

/// A signalling stream of the peer that nobody answers yet, and the messages that came over it.
pub(crate) struct Offered {
    pub(crate) signalling: Signalling<BoxedStream>,
    pub(crate) messages: Vec<Message>,
}

impl Offered {
    pub(crate) fn new(stream: BoxedStream) -> Self {
        Self {
            signalling: Signalling::new(stream),
            messages: Vec::new(),
        }
    }

    /// Reads messages of the peer. It is ready when the peer has given up or breaks the protocol.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.messages.len() < MAX_MESSAGES {
            match ready!(self.signalling.poll_receive(cx)) {
                Ok(Some(message)) => self.messages.push(message),
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    fn has_offer(&self) -> bool {
        matches!(self.messages.first(), Some(Message::Offer(_)))
    }
}

/// How long a sealed offer may stay unanswered before another way to signal is requested. It is a
/// part of the dial's remaining time. A peer that drops an offer shows this by ending the stream. A
/// peer that is only slow, with a thousand others to answer, must not get the same request twice,
/// because each repetition makes it slower still. The rest of the time is enough for another way,
/// if there is one.
fn patience(left: Duration) -> Duration {
    left * 3 / 4
}

/// A signalling stream that was requested.
pub(crate) type Requested = oneshot::Receiver<Result<Signal, Error>>;

enum Own<B: Backend> {
    Requesting(Requested),
    Offering(Negotiating<BoxedStream, B::Connection>),
    /// The peer's offer has replaced our own. There is no way back.
    Answering(Negotiating<BoxedStream, B::Connection>),
    Failed(Error),
}

/// One dial to one peer.
///
/// When two peers dial each other at the same time, the peer with the lower id goes on offering.
/// The other peer drops its own offer and answers. The peer with the lower id neither answers nor
/// refuses the other's offer until its own has come to an end. A peer that follows this rule takes
/// its offer back. A peer that does not (js-libp2p) is answered after that, so that its dial
/// succeeds as well.
pub(crate) struct Attempt<B: Backend> {
    backend: B,
    local: PeerId,
    remote: PeerId,
    deadline: Instant,
    timeout: Delay,
    own: Own<B>,
    /// How long to wait for the answer to a sealed offer before another way is requested. If this
    /// and `other` are `None`, no sealed offer is under way.
    patience: Option<Delay>,
    /// The request for another way, when the sealed offer may have failed. There may be no other
    /// way.
    other: Option<Requested>,
    /// Requests another signalling stream.
    request: Box<dyn FnMut() -> Requested + Send>,
    offers: mpsc::Receiver<BoxedStream>,
    offered: Option<Offered>,
}

/// A successful dial, and the stream of the peer's own offer if it is still open.
pub(crate) struct Won<B: Backend> {
    pub(crate) established: Established<BoxedStream, B::Connection>,
    pub(crate) offered: Option<Offered>,
}

impl<B: Backend> Attempt<B> {
    pub(crate) fn new(
        backend: B,
        (local, remote): (PeerId, PeerId),
        deadline: Instant,
        mut request: impl FnMut() -> Requested + Send + 'static,
        offers: mpsc::Receiver<BoxedStream>,
    ) -> Self {
        Self {
            backend,
            local,
            remote,
            deadline,
            timeout: until(deadline),
            own: Own::Requesting(request()),
            patience: None,
            other: None,
            request: Box::new(request),
            offers,
            offered: None,
        }
    }

    /// Whether the peer's offer, which has arrived, has to be answered now.
    fn yields(&self) -> bool {
        match self.own {
            // Our own offer was not sent yet, or has failed.
            Own::Requesting(_) | Own::Failed(_) => true,
            Own::Offering(_) => self.remote < self.local,
            Own::Answering(_) => false,
        }
    }

    fn answer(&mut self, offered: Offered) -> Own<B> {
        (self.patience, self.other) = (None, None);
        let answer = self
            .backend
            .connect(self.remote)
            .map_err(Error::from)
            .and_then(|c| {
                Negotiating::answer(
                    c,
                    offered.signalling,
                    offered.messages,
                    until(self.deadline),
                )
            });
        answer.map_or_else(Own::Failed, Own::Answering)
    }

    /// Returns another signalling stream, if the sealed offer has had its time and there is one.
    fn poll_other(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        if let Some(patience) = &mut self.patience {
            ready!(Pin::new(patience).poll(cx));
            self.other = Some((self.request)());
            self.patience = None;
        }
        let Some(other) = &mut self.other else {
            return Poll::Pending;
        };
        match ready!(Pin::new(other).poll(cx)) {
            Ok(Ok(signal)) => Poll::Ready(signal),
            // There is no other way, so the sealed offer goes on.
            Ok(Err(_)) | Err(oneshot::Canceled) => {
                self.other = None;
                Poll::Pending
            }
        }
    }

    fn offer(&mut self, signal: Signal) -> Own<B> {
        self.other = None;
        self.patience = signal.sealed.then(|| {
            let left = self.deadline.saturating_duration_since(Instant::now());
            Delay::new(patience(left))
        });
        match self.backend.connect(self.remote) {
            Ok(connection) => Own::Offering(Negotiating::offer(
                connection,
                Signalling::new(signal.stream),
                signal.sealed,
                until(self.deadline),
            )),
            Err(error) => Own::Failed(error.into()),
        }
    }
}

/// Makes a timer for the time that is left until `deadline`.
pub(crate) fn until(deadline: Instant) -> Delay {
    Delay::new(deadline.saturating_duration_since(Instant::now()))
}

impl<B: Backend> Future for Attempt<B> {
    type Output = Result<Won<B>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if this.offered.is_none()
                && let Poll::Ready(Some(stream)) = this.offers.poll_next_unpin(cx)
            {
                this.offered = Some(Offered::new(stream));
            }
            if let Some(offered) = &mut this.offered
                && offered.poll_ended(cx).is_ready()
            {
                this.offered = None;
                continue;
            }
            if this.yields()
                && let Some(offered) = this.offered.take_if(|offered| offered.has_offer())
            {
                // The assignment drops our own offer, together with its stream and peer connection.
                this.own = this.answer(offered);
            }
            let error = match &mut this.own {
                Own::Requesting(request) => match Pin::new(request).poll(cx) {
                    Poll::Ready(Ok(Ok(signal))) => {
                        this.own = this.offer(signal);
                        continue;
                    }
                    Poll::Ready(Ok(Err(error))) => error,
                    Poll::Ready(Err(oneshot::Canceled)) => {
                        Error::SignallingLost("the connection was closed".into())
                    }
                    Poll::Pending => {
                        ready!(Pin::new(&mut this.timeout).poll(cx));
                        Error::Timeout(Phase::Signalling)
                    }
                },
                Own::Offering(negotiating) | Own::Answering(negotiating) => {
                    let polled = Pin::new(&mut *negotiating).poll(cx);
                    // If the peer has shown no sign of life, the sealed offer may not have reached
                    // it.
                    let sealed = this.patience.is_some() || this.other.is_some();
                    let silent = sealed && !negotiating.is_described();
                    match polled {
                        Poll::Ready(Ok(established)) => {
                            // The peer's offer may still be on its way over its stream.
                            let offered = this.offered.take().or_else(|| {
                                let waiting = this.offers.poll_next_unpin(cx);
                                match waiting {
                                    Poll::Ready(stream) => stream.map(Offered::new),
                                    Poll::Pending => None,
                                }
                            });
                            return Poll::Ready(Ok(Won {
                                established,
                                offered,
                            }));
                        }
                        Poll::Ready(Err(error)) if !silent || error.is_refusal() => error,
                        Poll::Ready(Err(_)) => {
                            this.patience = None;
                            let other = this.other.take();
                            let other = other.unwrap_or_else(|| (this.request)());
                            this.own = Own::Requesting(other);
                            continue;
                        }
                        Poll::Pending if !silent => return Poll::Pending,
                        Poll::Pending => {
                            let signal = ready!(this.poll_other(cx));
                            this.own = this.offer(signal);
                            continue;
                        }
                    }
                }
                Own::Failed(error) => return Poll::Ready(Err(error.clone())),
            };
            this.own = Own::Failed(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::{AsyncRead, AsyncWrite, future};
    use libp2p::identity::Keypair;

    use super::*;
    use crate::{backend::Rtc, webrtc::Config};

    /// A stream that takes all bytes and never sends any.
    struct Silent;

    impl AsyncRead for Silent {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Silent {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_unanswered_sealed_offer_requests_another_stream() {
        let [local, remote] = [(); 2].map(|()| Keypair::generate_ed25519().public().to_peer_id());
        let (asked, mut asks) = mpsc::unbounded();
        let request = move || {
            let (reply, requested) = oneshot::channel();
            asked.unbounded_send(reply).unwrap();
            requested
        };
        let (_offers, offers) = mpsc::channel(1);
        let deadline = Instant::now() + Duration::from_secs(1);
        let backend = Rtc::new(&Config::default()).unwrap();
        let attempt = Attempt::new(backend, (local, remote), deadline, request, offers);
        let asked_twice = async {
            let stream = Box::pin(Silent);
            let signal = Ok(Signal {
                stream,
                sealed: true,
            });
            let first = asks.next().await.unwrap();
            assert!(first.send(signal).is_ok());
            let second = asks.next().await.unwrap();
            assert!(Instant::now() < deadline);
            let none = Error::SignallingLost("no circuit".to_owned());
            assert!(second.send(Err(none)).is_ok());
        };
        let (ended, ()) = future::join(attempt, asked_twice).await;
        // The error is that of the sealed offer, not that of the other way.
        assert!(matches!(ended, Err(Error::Timeout(_))));
        assert!(Instant::now() >= deadline);
    }
}
