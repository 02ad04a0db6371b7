//! One dial: our own offer, unless the peer's offer is the better way to the same connection.

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
    backend::offer::Sealing,
    circuit::Duplex,
    core::signalling::{MAX_MESSAGES, Message},
};

/// A signalling stream of the peer that nobody answers yet, and what came over it.
pub(crate) struct Offered {
    pub(crate) signalling: Signalling<Duplex>,
    pub(crate) messages: Vec<Message>,
}

impl Offered {
    pub(crate) fn new(stream: Duplex) -> Self {
        Self {
            signalling: Signalling::new(stream),
            messages: Vec::new(),
        }
    }

    /// Takes in what the peer sends; ready when the peer has given up or misbehaves.
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

/// For how much of a dial's time a sealed offer may stay without an answer before the next way to
/// signal is asked for. A peer that drops an offer says so by the end of the stream; one that is only
/// slow, with a thousand others to answer, must not be asked for the same once more: everything it
/// is asked twice makes it slower still. What is left is enough for another way where there is one.
fn patience(left: Duration) -> Duration {
    left * 3 / 4
}

/// A signalling stream that was asked for.
pub(crate) type Requested = oneshot::Receiver<Result<Signal, Error>>;

enum Own<B: Backend> {
    Requesting(Requested),
    Offering(Negotiating<Duplex, B::Connection>),
    /// Taken over by the peer's offer: there is no way back.
    Answering(Negotiating<Duplex, B::Connection>),
    Failed(Error),
}

/// One dial to one peer.
///
/// When both peers dial each other at once, the peer with the lower id goes on offering, and the
/// other drops its own offer and answers. The lower one neither answers nor refuses the other's
/// offer until its own came to an end: a peer that has this rule takes its offer back, and one
/// that has no such rule (js-libp2p) is answered then, so that its dial succeeds as well.
pub(crate) struct Attempt<B: Backend> {
    backend: B,
    local: PeerId,
    remote: PeerId,
    deadline: Instant,
    timeout: Delay,
    own: Own<B>,
    /// How long a sealed offer is waited for; none is under way without.
    patience: Option<(Delay, Sealing)>,
    /// Asks for another signalling stream.
    request: Box<dyn FnMut() -> Requested + Send>,
    offers: mpsc::Receiver<Duplex>,
    offered: Option<Offered>,
}

/// A successful dial, and the peer's own offer if it still stands.
pub(crate) struct Won<B: Backend> {
    pub(crate) established: Established<Duplex, B::Connection>,
    pub(crate) offered: Option<Offered>,
}

impl<B: Backend> Attempt<B> {
    pub(crate) fn new(
        backend: B,
        (local, remote): (PeerId, PeerId),
        deadline: Instant,
        mut request: impl FnMut() -> Requested + Send + 'static,
        offers: mpsc::Receiver<Duplex>,
    ) -> Self {
        Self {
            backend,
            local,
            remote,
            deadline,
            timeout: until(deadline),
            own: Own::Requesting(request()),
            patience: None,
            request: Box::new(request),
            offers,
            offered: None,
        }
    }

    /// Whether the peer's offer, which has arrived, is to be answered now.
    fn yields(&self) -> bool {
        match self.own {
            // Nothing of ours was said yet, or nothing came of it.
            Own::Requesting(_) | Own::Failed(_) => true,
            Own::Offering(_) => self.remote < self.local,
            Own::Answering(_) => false,
        }
    }

    fn answer(&mut self, offered: Offered) -> Own<B> {
        self.patience = None;
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

    fn lost_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let patience = self.patience.as_mut();
        patience.is_some_and(|(patience, _)| Pin::new(patience).poll(cx).is_ready())
    }

    fn offer(&mut self, signal: Signal) -> Own<B> {
        self.patience = signal.sealed.map(|sealing| {
            let left = self.deadline.saturating_duration_since(Instant::now());
            (Delay::new(patience(left)), sealing)
        });
        match self.backend.connect(self.remote) {
            Ok(connection) => Own::Offering(Negotiating::offer(
                connection,
                Signalling::new(signal.stream),
                until(self.deadline),
            )),
            Err(error) => Own::Failed(error.into()),
        }
    }
}

/// A timer for what is left until `deadline`.
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
                // Assigning drops our own offer, and with it its stream and peer connection.
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
                        Error::SignallingLost("connection closed".into())
                    }
                    Poll::Pending => {
                        ready!(Pin::new(&mut this.timeout).poll(cx));
                        Error::Timeout(Phase::Signalling)
                    }
                },
                Own::Offering(negotiating) | Own::Answering(negotiating) => {
                    let polled = Pin::new(&mut *negotiating).poll(cx);
                    // Without a sign of life the sealed offer may have led nowhere.
                    let silent = this.patience.is_some() && !negotiating.is_described();
                    match polled {
                        Poll::Ready(Ok(established)) => {
                            let offered = this.offered.take().filter(Offered::has_offer);
                            return Poll::Ready(Ok(Won {
                                established,
                                offered,
                            }));
                        }
                        Poll::Ready(Err(error)) if !silent => error,
                        Poll::Pending if !silent || !this.lost_patience(cx) => {
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(_)) | Poll::Pending => {
                            this.patience = None;
                            this.own = Own::Requesting((this.request)());
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

    use futures::{AsyncRead, AsyncWrite};
    use libp2p::identity::Keypair;

    use super::*;
    use crate::{
        backend::{Rtc, offer::sealing},
        rtc::Config,
    };

    /// Takes everything and says nothing.
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
    async fn a_sealed_offer_without_an_answer_leaves_time_for_another_way() {
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
        let another = async {
            let sealed = sealing(&remote);
            let stream = Box::pin(Silent);
            let signal = Ok(Signal { stream, sealed });
            let first = asks.next().await.unwrap();
            assert!(sealed.is_some() && first.send(signal).is_ok());
            asks.next().await
        };
        // Ended by whichever comes first: the other way is asked for, or the dial is over.
        tokio::select! {
            another = another => assert!(another.is_some()),
            _ = attempt => panic!("nothing else was tried"),
        }
    }
}
