//! Circuits dialled in one flight.
//!
//! libp2p's own relay client waits for the relay's answer before it hands a circuit on. Here the
//! circuit is handed on at once: what is written to it goes right behind the CONNECT, and a relay
//! forwards what already waits behind one. The answer is taken off before the first byte is read.
//!
//! A transport cannot open streams, so each dial asks the node for one to its relay.

use std::{
    fmt,
    future::Pending,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt as _, SinkExt as _,
    channel::{mpsc, oneshot},
    future::{BoxFuture, Either},
};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::transport::{self, Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    relay,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::{
    address,
    circuit::{self, Answer, CircuitError},
};

/// Circuits whose relay has not answered yet; a dial beyond waits for one that has.
const MAX_PENDING: usize = 64;

/// A dial's request for a stream of [`HOP_PROTOCOL`](circuit::HOP_PROTOCOL) to `relay`.
pub(crate) struct Request<S> {
    pub(crate) relay: PeerId,
    pub(crate) reply: oneshot::Sender<Result<S, CircuitError>>,
}

/// Dials `<relay>/p2p/R/p2p-circuit/p2p/B` over the connection to the relay that is there.
///
/// Stands before libp2p's relay client, which keeps reservations and takes circuits in. Dropping a
/// dial, or the circuit it gave, resets its stream to the relay.
pub(crate) struct Transport<S> {
    requests: mpsc::Sender<Request<S>>,
    /// One permit for each circuit without an answer.
    pending: Arc<Semaphore>,
}

/// An error that has `error` among its sources. What stands in an [`io::Error`] itself is none:
/// its source is the source of that.
fn refused(error: CircuitError) -> io::Error {
    io::Error::other(Refused(error))
}

#[derive(Debug)]
struct Refused(CircuitError);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no circuit")
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Any stream. One type for all, because each type has its own copy of noise, yamux and
/// multistream-select, 30 KB of wasm once compressed.
pub(crate) type Duplex = Pin<Box<dyn AsyncReadWrite>>;

pub(crate) trait AsyncReadWrite: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> AsyncReadWrite for S {}

/// Circuits of both kinds: those that we dial, and those that come in.
pub(crate) fn join(
    dialled: Transport<libp2p::Stream>,
    taken_in: relay::client::Transport,
) -> Boxed<Duplex> {
    dialled
        .or_transport(taken_in)
        .map(|circuit, _| match circuit {
            Either::Left(circuit) => Box::pin(circuit) as Duplex,
            Either::Right(circuit) => Box::pin(circuit) as Duplex,
        })
        .map_err(|error| error.either(refused, io::Error::other))
        .boxed()
}

/// The transport, and the requests that its dials make.
pub(crate) fn new<S>() -> (Transport<S>, mpsc::Receiver<Request<S>>) {
    let (requests, receiver) = mpsc::channel(0);
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    (Transport { requests, pending }, receiver)
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> transport::Transport for Transport<S> {
    type Output = Circuit<S>;
    type Error = CircuitError;
    type ListenerUpgrade = Pending<Result<Self::Output, Self::Error>>;
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
            let request = Request { relay, reply };
            let sent = requests.send(request).await;
            sent.map_err(|_| CircuitError::NoLink)?;
            let stream = stream.await.unwrap_or(Err(CircuitError::NoLink))?;
            Ok(Circuit::new(stream, &peer, permit))
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Poll::Pending
    }
}

/// Writes all of `bytes`; what is written leaves them.
pub(crate) fn poll_drain(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.drain(..written);
    }
    Poll::Ready(Ok(()))
}

/// A circuit that may not have been granted yet: a refusal is the error of the first read, an
/// [`io::Error`] whose source is a [`CircuitError`].
pub(crate) struct Circuit<S> {
    stream: S,
    /// What is left of the CONNECT.
    request: Vec<u8>,
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
                // libp2p's relay says no more when the connection to the peer breaks meanwhile.
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

    use futures::{
        AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, executor::block_on, future::join,
    };
    use libp2p::core::{Endpoint, transport::PortUse};

    use super::*;

    /// A stream to a relay that has answered already. What is written to it is kept.
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
            // In small pieces, as a stream with little room takes them.
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
        transport: &mut Transport<S>,
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

    /// A circuit to `peer` over a relay that says `answer`.
    fn circuit(peer: PeerId, answer: &[u8]) -> (Circuit<Wire>, Arc<Mutex<Vec<u8>>>) {
        let (mut transport, mut requests) = new();
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

    /// STATUS with `OK`, then a byte of the peer's.
    const GRANTED: [u8; 6] = [4, 8, 2, 40, 100, 42];

    #[test]
    fn what_is_written_first_goes_with_the_request() {
        let peer = PeerId::random();
        let (mut circuit, sent) = circuit(peer, &[]);
        block_on(circuit.write_all(b"noise")).unwrap();
        let expected = [&circuit::connect(&peer)[..], b"noise"].concat();
        assert_eq!(*sent.lock().unwrap(), expected);
    }

    #[test]
    fn the_answer_is_taken_off_and_nothing_else() {
        let peer = PeerId::random();
        let (mut circuit, sent) = circuit(peer, &GRANTED);
        let mut read = Vec::new();
        block_on(circuit.read_to_end(&mut read)).unwrap();
        assert_eq!(read, [42]);
        assert_eq!(*sent.lock().unwrap(), circuit::connect(&peer));
    }

    #[test]
    fn a_refusal_is_the_error_of_the_first_read_and_so_is_no_answer() {
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
        let (mut transport, mut requests) = new::<Wire>();
        let address = address(PeerId::random());
        let mut asked = || std::iter::from_fn(|| requests.next().now_or_never().flatten()).count();
        let mut pending: Vec<_> = (0..=MAX_PENDING)
            .map(|_| dial(&mut transport, &address).unwrap())
            .collect();
        let poll = |dial: &mut BoxFuture<'static, _>| assert!(dial.now_or_never().is_none());
        pending.iter_mut().for_each(poll);
        assert_eq!(asked(), MAX_PENDING);
        // One that is given up makes room for the one that waits.
        drop(pending.swap_remove(0));
        poll(&mut pending[0]);
        assert_eq!(asked(), 1);

        // An answer frees its place, though the circuit stands.
        let (mut circuit, _) = circuit(PeerId::random(), &GRANTED);
        assert!(circuit.answer.is_some());
        block_on(circuit.read(&mut [0])).unwrap();
        assert!(circuit.answer.is_none());
    }

    #[test]
    fn addresses_of_others_are_left_to_them() {
        let (mut transport, _requests) = new::<Wire>();
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
    fn without_the_node_a_dial_fails() {
        let (mut transport, requests) = new::<Wire>();
        let dialled = dial(&mut transport, &address(PeerId::random())).unwrap();
        drop(requests);
        assert!(matches!(block_on(dialled), Err(CircuitError::NoLink)));
    }
}
