//! `/webrtc-direct` version 1 as a libp2p transport: a page reaches a server, usually a relay,
//! that has neither a domain name nor a certificate that browsers trust. It only dials.
//!
//! There is no signalling: the address has the server's certificate hash, and the server learns
//! the page's ICE credentials from its first connectivity check because they are the same on both
//! sides. The page has to change its own offer for that, which browsers are about to forbid;
//! then a dial fails with an error that says so.

mod target;

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{
    FutureExt,
    channel::mpsc,
    future::{BoxFuture, Either, select},
};
use libp2p::{
    PeerId,
    core::{
        muxing::{StreamMuxer, StreamMuxerEvent},
        transport::{
            DialOpts, ListenerId, Transport as Libp2pTransport, TransportError, TransportEvent,
        },
        upgrade::InboundConnectionUpgrade,
    },
    identity::Keypair,
    noise,
};
use multiaddr::Multiaddr;
use send_wrapper::SendWrapper;

use self::target::Target;
use super::rtc::{PeerConnection, Rtc};
use crate::{
    circuit::Duplex,
    rtc::{
        Muxer, Stream,
        backend::{BackendError, PeerConnection as _, PeerEvent},
    },
};

type Output = (PeerId, Connection);

/// Dials `/webrtc-direct` servers.
pub(crate) struct Transport {
    keypair: Keypair,
}

impl Transport {
    pub(crate) fn new(keypair: Keypair) -> Self {
        Self { keypair }
    }
}

impl Libp2pTransport for Transport {
    type Output = Output;
    type Error = Error;
    type ListenerUpgrade = futures::future::Pending<Result<Output, Error>>;
    type Dial = BoxFuture<'static, Result<Output, Error>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        match Target::from_multiaddr(&address) {
            Some(target) if options.role.is_dialer() => {
                let dial = connect(self.keypair.clone(), target);
                Ok(SendWrapper::new(dial).boxed())
            }
            _ => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Poll::Pending
    }
}

/// Why a server could not be reached.
#[derive(Debug)]
pub(crate) enum Error {
    /// No credentials could be made.
    Randomness(getrandom::Error),
    /// The connection failed under the handshake.
    Connection(BackendError),
    /// The browser does not tell the fingerprint of its own certificate.
    Fingerprint,
    /// The server did not prove who it is.
    Noise(noise::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Randomness(error) => write!(f, "no randomness: {error}"),
            Self::Connection(error) => error.fmt(f),
            Self::Fingerprint => f.write_str("the browser hides its certificate's fingerprint"),
            Self::Noise(error) => write!(f, "handshake failed: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Noise(error) => Some(error),
            Self::Randomness(_) | Self::Fingerprint => None,
        }
    }
}

async fn connect(keypair: Keypair, target: Target) -> Result<Output, Error> {
    let credentials = target::credentials().map_err(Error::Randomness)?;
    let answer = target.answer(&credentials);
    let munge = move |offer: &str| target::with_credentials(offer, &credentials);
    // The server's address is known, so no other server has to be asked for ours.
    let mut connection = Rtc::default().open().map_err(Error::Connection)?;
    let channel = connection
        .connect_to(&answer, munge)
        .map_err(Error::Connection)?;

    let mut early = VecDeque::new();
    loop {
        match poll_fn(|cx| connection.poll_event(cx)).await {
            PeerEvent::Connected => break,
            PeerEvent::Failed(error) => return Err(Error::Connection(error)),
            event => early.push_back(event),
        }
    }
    let client = connection
        .fingerprint()
        .and_then(|fingerprint| target::multihash(&fingerprint))
        .ok_or(Error::Fingerprint)?;
    let noise = noise::Config::new(&keypair)
        .map_err(Error::Noise)?
        .with_prologue(target::prologue(&client, target.certificate()));
    // Nobody winds this stream up: it lives as long as the connection.
    let stream: Duplex = Box::pin(Stream::new(channel, false, mpsc::unbounded().0));
    // The server speaks first, so the page is the responder although it dialled.
    let handshake = noise.upgrade_inbound(stream, "/noise");
    let failure = poll_fn(|cx| {
        loop {
            match ready!(connection.poll_event(cx)) {
                PeerEvent::Failed(error) => return Poll::Ready(error),
                event => early.push_back(event),
            }
        }
    });
    let (peer, handshake) = match select(handshake, failure).await {
        Either::Left((done, _)) => done.map_err(Error::Noise)?,
        Either::Right((error, _)) => return Err(Error::Connection(error)),
    };
    // Whether it is the right peer is for the swarm to say, as with every transport.
    let muxer = Muxer::direct(peer, connection, early);
    Ok((
        peer,
        Connection {
            muxer,
            _handshake: handshake,
        },
    ))
}

/// A connection to a server.
///
/// The channel of the handshake stays open: servers of rust-libp2p stop opening channels once it
/// is closed.
pub(crate) struct Connection {
    muxer: Muxer<PeerConnection>,
    _handshake: noise::Output<Duplex>,
}

impl StreamMuxer for Connection {
    type Substream = <Muxer<PeerConnection> as StreamMuxer>::Substream;
    type Error = BackendError;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll_inbound(cx)
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll_outbound(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll_close(cx)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.get_mut().muxer).poll(cx)
    }
}
