//! `/webrtc-direct` version 1 as a libp2p transport. A page uses it to reach a server, usually a
//! relay, that has neither a domain name nor a certificate that browsers trust. The transport only
//! dials.
//!
//! There is no signalling. The address has the hash of the server's certificate. The server learns
//! the page's ICE credentials from the first connectivity check, because they are the same on both
//! sides. For that, the page has to change its own offer, which browsers are about to forbid. Then
//! a dial fails with an error that says so.

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

use super::rtc::{PeerConnection, Rtc};
use crate::{
    core::webrtc_direct::{self, CREDENTIALS_LEN, DirectServer},
    stream::BoxedStream,
    webrtc::{
        Muxer, Stream,
        backend::{BackendError, PeerConnection as _, PeerEvent},
    },
};

type Output = (PeerId, DirectConnection);

/// Dials `/webrtc-direct` servers.
pub(crate) struct DirectTransport {
    keypair: Keypair,
}

impl DirectTransport {
    pub(crate) fn new(keypair: Keypair) -> Self {
        Self { keypair }
    }
}

impl Libp2pTransport for DirectTransport {
    type Output = Output;
    type Error = DirectError;
    type ListenerUpgrade = futures::future::Pending<Result<Output, DirectError>>;
    type Dial = BoxFuture<'static, Result<Output, DirectError>>;

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
        match DirectServer::from_multiaddr(&address) {
            Some(server) if options.role.is_dialer() => {
                let dial = connect(self.keypair.clone(), server);
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

/// The reasons why a server could not be reached.
#[derive(Debug)]
pub(crate) enum DirectError {
    /// No credentials could be made.
    Randomness(getrandom::Error),
    /// The connection failed below the handshake.
    Connection(BackendError),
    /// The browser does not tell the fingerprint of its own certificate.
    Fingerprint,
    /// The server did not prove its identity.
    Noise(noise::Error),
}

impl fmt::Display for DirectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Randomness(error) => write!(f, "no randomness: {error}"),
            Self::Connection(error) => error.fmt(f),
            Self::Fingerprint => f.write_str("the browser hides its certificate's fingerprint"),
            Self::Noise(error) => write!(f, "the handshake failed: {error}"),
        }
    }
}

impl std::error::Error for DirectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Noise(error) => Some(error),
            Self::Randomness(_) | Self::Fingerprint => None,
        }
    }
}

async fn connect(keypair: Keypair, server: DirectServer) -> Result<Output, DirectError> {
    let mut random = [0; CREDENTIALS_LEN];
    getrandom::fill(&mut random).map_err(DirectError::Randomness)?;
    let credentials = webrtc_direct::credentials(random);
    let answer = server.answer(&credentials);
    let munge = move |offer: &str| webrtc_direct::with_credentials(offer, &credentials);
    // The server's address is known, so no STUN server is asked for the page's own address.
    let mut connection = Rtc::default().open().map_err(DirectError::Connection)?;
    let channel = connection
        .connect_to(&answer, munge)
        .map_err(DirectError::Connection)?;

    let mut early = VecDeque::new();
    loop {
        match poll_fn(|cx| connection.poll_event(cx)).await {
            PeerEvent::Connected => break,
            PeerEvent::Failed(error) => return Err(DirectError::Connection(error)),
            event => early.push_back(event),
        }
    }
    let client = connection
        .fingerprint()
        .and_then(|fingerprint| webrtc_direct::multihash(&fingerprint))
        .ok_or(DirectError::Fingerprint)?;
    let noise = noise::Config::new(&keypair)
        .map_err(DirectError::Noise)?
        .with_prologue(webrtc_direct::prologue(&client, server.certificate()));
    // The stream needs no orderly close, because it lives as long as the connection.
    // The server sends first, so the page is the responder although it dialled.
    let stream: BoxedStream = Box::pin(Stream::new(channel, false, mpsc::unbounded().0));
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
        Either::Left((done, _)) => done.map_err(DirectError::Noise)?,
        Either::Right((error, _)) => return Err(DirectError::Connection(error)),
    };
    // The swarm checks whether this is the expected peer, as with every transport.
    let muxer = Muxer::direct(peer, connection, early);
    Ok((
        peer,
        DirectConnection {
            muxer,
            _handshake: handshake,
        },
    ))
}

/// A connection to a server.
///
/// The channel of the handshake stays open, because servers on rust-libp2p open no more channels
/// once it is closed.
pub(crate) struct DirectConnection {
    muxer: Muxer<PeerConnection>,
    _handshake: noise::Output<BoxedStream>,
}

impl StreamMuxer for DirectConnection {
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
