//! Dials circuits without waiting for the relay's answer, and accepts circuits that relays bring.
//!
//! libp2p's own relay client waits for the relay's answer before it hands a circuit on. Here the
//! circuit is handed on at once. Bytes that are written to it go right behind the CONNECT, and a
//! relay forwards bytes that already wait behind a CONNECT. The answer is removed before the first
//! byte is read.
//!
//! A transport cannot open streams, so each dial asks the node for a stream to its relay.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt as _, SinkExt as _, StreamExt as _,
    channel::{mpsc, oneshot},
    future::{BoxFuture, Ready, ready as done},
};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::transport::{self, Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    core::{
        address,
        circuit::{self, Answer, CircuitError},
        reservation,
    },
    stream::{BoxedStream, poll_drain},
};

/// The most circuits whose relay has not answered yet. A further dial waits for one of the answers.
const MAX_PENDING: usize = 64;

/// A dial's request for a stream of [`HOP_PROTOCOL`](circuit::HOP_PROTOCOL) to `relay`.
pub(crate) struct CircuitRequest<S> {
    pub(crate) relay: PeerId,
    pub(crate) reply: oneshot::Sender<Result<S, CircuitError>>,
}

/// A circuit that a relay has brought.
pub(crate) struct Arrival<S> {
    circuit: Circuit<S>,
    source: PeerId,
    /// `<relay>/p2p/R/p2p-circuit`
    local: Multiaddr,
}

impl<S> Arrival<S> {
    /// `stream` is the rest of a stream on which `relay` has announced a circuit from `source`. The
    /// relay hears that we agree with our first bytes, or when we first read.
    pub(crate) fn new(stream: S, source: PeerId, relay: &Multiaddr) -> Self {
        Self {
            circuit: Circuit {
                stream,
                request: reservation::ACCEPTED.to_vec(),
                answer: None,
            },
            source,
            local: address::reservation(relay),
        }
    }
}

/// The queue by which circuits are handed to the transport. Senders wait while the swarm is behind.
pub(crate) type Arrivals<S> = mpsc::Sender<Arrival<S>>;

/// Dials `<relay>/p2p/R/p2p-circuit/p2p/B` over the existing connection to the relay, and accepts
/// the circuits that the node takes in. Dropping a dial, or a circuit, resets its stream to the
/// relay.
pub(crate) struct CircuitTransport<S> {
    requests: mpsc::Sender<CircuitRequest<S>>,
    arrivals: mpsc::Receiver<Arrival<S>>,
    /// One permit for each circuit without an answer.
    pending: Arc<Semaphore>,
    listener: ListenerId,
}

/// Wraps `error` so that it is among the sources of the [`io::Error`]. An error that stands in an
/// [`io::Error`] directly is not, because the source of the [`io::Error`] is that error's own
/// source.
fn refused(error: CircuitError) -> io::Error {
    io::Error::other(Refused(error))
}

#[derive(Debug)]
struct Refused(CircuitError);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the relay gave no circuit")
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// The node's ends of the transport: the requests that its dials make, and the queue for circuits
/// that relays bring.
pub(crate) type Ends<S> = (mpsc::Receiver<CircuitRequest<S>>, Arrivals<S>);

/// Makes the transport.
pub(crate) fn new<S>() -> (CircuitTransport<S>, Ends<S>) {
    let (requests, receiver) = mpsc::channel(0);
    let (arrived, arrivals) = mpsc::channel(0);
    let transport = CircuitTransport {
        requests,
        arrivals,
        pending: Arc::new(Semaphore::new(MAX_PENDING)),
        listener: ListenerId::next(),
    };
    (transport, (receiver, arrived))
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> CircuitTransport<S> {
    /// Gives circuits as streams of one type.
    pub(crate) fn boxed(self) -> Boxed<BoxedStream> {
        let streams = self.map(|circuit, _| Box::pin(circuit) as BoxedStream);
        streams.map_err(refused).boxed()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> transport::Transport
    for CircuitTransport<S>
{
    type Output = Circuit<S>;
    type Error = CircuitError;
    type ListenerUpgrade = Ready<Result<Self::Output, Self::Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(addr))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some((relay, peer)) = address::circuit_ends(&addr).filter(|_| opts.role.is_dialer())
        else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let mut requests = self.requests.clone();
        let pending = self.pending.clone();
        Ok(async move {
            let permit = pending.acquire_owned().await;
            let permit = permit.map_err(|_| CircuitError::NoLink)?;
            let (reply, stream) = oneshot::channel();
            let request = CircuitRequest { relay, reply };
            let sent = requests.send(request).await;
            sent.map_err(|_| CircuitError::NoLink)?;
            let stream = stream.await.unwrap_or(Err(CircuitError::NoLink))?;
            Ok(Circuit::new(stream, &peer, permit))
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        match self.arrivals.poll_next_unpin(cx) {
            Poll::Ready(Some(arrival)) => Poll::Ready(TransportEvent::Incoming {
                listener_id: self.listener,
                upgrade: done(Ok(arrival.circuit)),
                local_addr: arrival.local,
                send_back_addr: Protocol::P2p(arrival.source).into(),
            }),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// A circuit that the relay may not have granted yet. A refusal is the error of the first read: an
/// [`io::Error`] whose source is a [`CircuitError`].
pub(crate) struct Circuit<S> {
    stream: S,
    /// The rest of the first message that has to be sent: CONNECT, or the STATUS for a circuit that
    /// was taken in.
    request: Vec<u8>,
    /// The relay's answer to CONNECT, until it is complete.
    answer: Option<(Answer, OwnedSemaphorePermit)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Circuit<S> {
    fn new(stream: S, peer: &PeerId, permit: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            request: circuit::connect(peer),
            answer: Some((Answer::default(), permit)),
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_drain(&mut self.stream, &mut self.request, cx)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((answer, _)) = &mut self.answer {
            let mut buffer = [0; 256];
            let wanted = answer.wanted().min(buffer.len());
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer[..wanted]);
            let read = ready!(read)?;
            if read == 0 {
                // libp2p's relay ends the stream without an answer when its connection to the peer
                // breaks meanwhile.
                return Poll::Ready(Err(refused(CircuitError::Unreachable)));
            }
            if answer.push(&buffer[..read]).map_err(refused)? {
                self.answer = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Circuit<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.request.is_empty() {
            ready!(Pin::new(&mut *this).poll_flush(cx))?;
        }
        ready!(this.poll_answer(cx))?;
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Circuit<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_request(cx))?;
        Pin::new(&mut this.stream).poll_write(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_request(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_request(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use futures::{AsyncReadExt as _, AsyncWriteExt as _, executor::block_on, future::join};
    use libp2p::core::{Endpoint, transport::PortUse};

    use super::*;

    /// A stream to a relay that has answered already. Bytes that are written to it are kept.
    #[derive(Default)]
    struct Wire {
        answer: Vec<u8>,
        sent: Arc<Mutex<Vec<u8>>>,
    }

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let length = buffer.len().min(self.answer.len());
            let taken: Vec<_> = self.answer.drain(..length).collect();
            buffer[..length].copy_from_slice(&taken);
            Poll::Ready(Ok(length))
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            // The bytes go in small pieces, as in a stream with little room.
            let length = buffer.len().min(5);
            sent.extend_from_slice(&buffer[..length]);
            Poll::Ready(Ok(length))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn dial<S>(
        transport: &mut CircuitTransport<S>,
        address: &Multiaddr,
    ) -> Result<BoxFuture<'static, Result<Circuit<S>, CircuitError>>, TransportError<CircuitError>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opts = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        transport::Transport::dial(transport, address.clone(), opts)
    }

    fn address(peer: PeerId) -> Multiaddr {
        let relay = "/ip4/192.0.2.1/udp/1/quic-v1".parse::<Multiaddr>().unwrap();
        address::circuit(&relay.with_p2p(PeerId::random()).unwrap(), peer)
    }

    /// Makes a circuit to `peer` through a relay that sends `answer`.
    fn circuit(peer: PeerId, answer: &[u8]) -> (Circuit<Wire>, Arc<Mutex<Vec<u8>>>) {
        let (mut transport, (mut requests, _)) = new();
        let dialled = dial(&mut transport, &address(peer)).unwrap();
        let wire = Wire {
            answer: answer.to_vec(),
            ..Wire::default()
        };
        let sent = wire.sent.clone();
        let relay = async { requests.next().await.unwrap().reply.send(Ok(wire)) };
        let (circuit, _) = block_on(join(dialled, relay));
        (circuit.unwrap(), sent)
    }

    /// STATUS with `OK`, and then a byte of the peer.
    const GRANTED: [u8; 6] = [4, 8, 2, 40, 100, 42];

    #[test]
    fn the_first_bytes_follow_the_request_at_once() {
        let peer = PeerId::random();
        let (mut circuit, sent) = circuit(peer, &[]);
        block_on(circuit.write_all(b"noise")).unwrap();
        let expected = [&circuit::connect(&peer)[..], b"noise"].concat();
        assert_eq!(*sent.lock().unwrap(), expected);
    }

    #[test]
    fn only_the_answer_is_removed_from_the_stream() {
        let peer = PeerId::random();
        let (mut circuit, sent) = circuit(peer, &GRANTED);
        let mut read = Vec::new();
        block_on(circuit.read_to_end(&mut read)).unwrap();
        assert_eq!(read, [42]);
        assert_eq!(*sent.lock().unwrap(), circuit::connect(&peer));
    }

    #[test]
    fn a_refusal_or_a_missing_answer_fails_the_first_read() {
        for (answer, expected) in [
            (&[5, 8, 2, 40, 204, 1][..], CircuitError::NoReservation),
            (&GRANTED[..3], CircuitError::Unreachable),
        ] {
            let (mut circuit, _) = circuit(PeerId::random(), answer);
            let error = block_on(circuit.read(&mut [0])).unwrap_err();
            let source = std::error::Error::source(&error);
            assert_eq!(source.and_then(|e| e.downcast_ref()), Some(&expected));
        }
    }

    #[test]
    fn circuits_without_an_answer_are_bounded() {
        let (mut transport, (mut requests, _arrivals)) = new::<Wire>();
        let address = address(PeerId::random());
        let mut asked = || std::iter::from_fn(|| requests.next().now_or_never().flatten()).count();
        let mut pending: Vec<_> = (0..=MAX_PENDING)
            .map(|_| dial(&mut transport, &address).unwrap())
            .collect();
        let poll = |dial: &mut BoxFuture<'static, _>| assert!(dial.now_or_never().is_none());
        pending.iter_mut().for_each(poll);
        assert_eq!(asked(), MAX_PENDING);
        // A dial that is given up makes room for the one that waits.
        drop(pending.swap_remove(0));
        poll(&mut pending[0]);
        assert_eq!(asked(), 1);

        // An answer frees its place, although the circuit stays.
        let (mut circuit, _) = circuit(PeerId::random(), &GRANTED);
        assert!(circuit.answer.is_some());
        block_on(circuit.read(&mut [0])).unwrap();
        assert!(circuit.answer.is_none());
    }

    #[test]
    fn a_circuit_that_is_brought_is_agreed_to_with_the_first_bytes() {
        let (mut transport, (_requests, mut arrivals)) = new();
        let wire = Wire {
            answer: vec![42],
            ..Wire::default()
        };
        let (sent, source) = (wire.sent.clone(), PeerId::random());
        let relay: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let relay = relay.with_p2p(PeerId::random()).unwrap();
        let send = arrivals.send(Arrival::new(wire, source, &relay));
        let event =
            futures::future::poll_fn(|cx| transport::Transport::poll(Pin::new(&mut transport), cx));
        let (event, _) = block_on(join(event, send));
        let TransportEvent::Incoming {
            upgrade,
            local_addr,
            send_back_addr,
            ..
        } = event
        else {
            panic!("{event:?}");
        };
        assert_eq!(local_addr, address::reservation(&relay));
        assert_eq!(send_back_addr, Protocol::P2p(source).into());
        let mut circuit = block_on(upgrade).unwrap();
        assert!(sent.lock().unwrap().is_empty());
        let mut read = [0];
        block_on(circuit.read_exact(&mut read)).unwrap();
        block_on(circuit.write_all(b"noise")).unwrap();
        assert_eq!(read, [42]);
        assert_eq!(
            *sent.lock().unwrap(),
            [&reservation::ACCEPTED[..], b"noise"].concat()
        );
    }

    #[test]
    fn addresses_of_other_transports_are_not_supported() {
        let (mut transport, _ends) = new::<Wire>();
        let peer = PeerId::random();
        let relay = address::relay_part(&address(peer)).unwrap();
        for foreign in [
            address::webrtc(&relay, peer),
            address::reservation(&relay),
            relay,
        ] {
            assert!(matches!(
                dial(&mut transport, &foreign),
                Err(TransportError::MultiaddrNotSupported(_))
            ));
        }
    }

    #[test]
    fn a_dial_without_the_node_fails() {
        let (mut transport, (requests, _arrivals)) = new::<Wire>();
        let dialled = dial(&mut transport, &address(PeerId::random())).unwrap();
        drop(requests);
        assert!(matches!(block_on(dialled), Err(CircuitError::NoLink)));
    }
}
