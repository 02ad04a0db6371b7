//! The common part of both ends of `/webrtc-direct`. Once DTLS is up, they prove their identities
//! to each other, and then use data channels as `/webrtc` does.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{
    channel::mpsc,
    future::{BoxFuture, Either, select},
};
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerEvent},
    identity::Keypair,
    noise,
};
use multiaddr::multihash::Multihash;

use super::{
    backend::{BackendError, PeerConnection, PeerEvent},
    muxer::Muxer,
    stream::{FinAck, Stream},
};
use crate::{core::webrtc_direct, stream::BoxedStream};

/// A connection whose DTLS is up.
pub(crate) struct Secured<P: PeerConnection> {
    pub(crate) connection: P,
    /// The channel with id 0, which exists on both sides without being announced.
    pub(crate) channel: P::Channel,
    /// The events that have come meanwhile.
    pub(crate) early: VecDeque<PeerEvent<P::Channel>>,
    pub(crate) fin_ack: FinAck,
    /// The multihashes of the certificates of the client and of the server.
    pub(crate) certificates: [Multihash<64>; 2],
}

/// The reasons why a connection was not made.
#[derive(Debug)]
pub(crate) enum DirectError {
    /// The connection failed below the handshake.
    Connection(BackendError),
    /// The fingerprint of the client's certificate is not known.
    Fingerprint,
    /// The other end did not prove its identity.
    Noise(noise::Error),
    /// The client was too slow.
    Timeout,
}

impl fmt::Display for DirectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Fingerprint => f.write_str("the fingerprint of the certificate is not known"),
            Self::Noise(error) => write!(f, "the handshake failed: {error}"),
            Self::Timeout => f.write_str("the handshake took too long"),
        }
    }
}

impl std::error::Error for DirectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Noise(error) => Some(error),
            Self::Fingerprint | Self::Timeout => None,
        }
    }
}

/// The handshake of Noise on one end.
pub(crate) type Handshake =
    BoxFuture<'static, Result<(PeerId, noise::Output<BoxedStream>), noise::Error>>;

/// Proves the identities of both ends to each other. The server sends first, so the client begins as
/// the responder of Noise although it dialled. The caller checks whether the other end is expected.
pub(crate) async fn authenticate<P: PeerConnection>(
    keypair: &Keypair,
    secured: Secured<P>,
    begin: fn(noise::Config, BoxedStream) -> Handshake,
) -> Result<(PeerId, DirectConnection<P>), DirectError> {
    let Secured {
        mut connection,
        channel,
        mut early,
        fin_ack,
        certificates: [client, server],
    } = secured;
    let noise = noise::Config::new(keypair)
        .map_err(DirectError::Noise)?
        .with_prologue(webrtc_direct::prologue(&client, &server));
    // The stream needs no orderly close, because it lives as long as the connection.
    let stream = Stream::new(channel, FinAck::default(), mpsc::unbounded().0);
    let stream: BoxedStream = Box::pin(stream);
    let handshake = begin(noise, stream);
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
    let connection = DirectConnection {
        muxer: Muxer::direct(peer, connection, early, fin_ack),
        _handshake: handshake,
    };
    Ok((peer, connection))
}

/// A connection of `/webrtc-direct`.
///
/// The channel of the handshake stays open, because servers on rust-libp2p open no more channels
/// once it is closed, and js-libp2p leaves it open, too.
pub(crate) struct DirectConnection<P: PeerConnection> {
    muxer: Muxer<P>,
    _handshake: noise::Output<BoxedStream>,
}

impl<P: PeerConnection> StreamMuxer for DirectConnection<P> {
    type Substream = <Muxer<P> as StreamMuxer>::Substream;
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
