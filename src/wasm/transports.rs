//! The chain of transports of a page.
//!
//! The order matters: the relay client would take `…/p2p-circuit/webrtc` addresses for its own.

use std::{io, time::Duration};

use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use libp2p::{
    PeerId, Transport as _,
    core::{
        UpgradeInfo,
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::{InboundConnectionUpgrade, Negotiated, OutboundConnectionUpgrade, Version},
    },
    identity, noise,
};
use multiaddr::Multiaddr;

use super::{Net, direct, websocket};
use crate::{
    core::{webrtc_direct::DirectServer, websocket_address::WebSocketAddress},
    stream::BoxedStream,
    swarm::muxer::Yamux,
};

/// A transport whose connections are authenticated and multiplexed.
pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds the transports of a peer.
///
/// `first` is asked before all others (`/webrtc` of this library), `circuits` next, then WebSocket
/// and `/webrtc-direct`. A dial that takes longer than `timeout`, including handshakes, fails.
pub(crate) fn peer(
    keypair: &identity::Keypair,
    first: BoxedTransport,
    circuits: Boxed<BoxedStream>,
    _: &Net,
    streams: usize,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let noise = noise::Config::new(keypair).map_err(io::Error::other)?;
    let websocket = websocket::WebSocketTransport::default()
        .map(|socket, _| Box::pin(socket) as BoxedStream)
        .boxed();
    let upgraded = join(circuits, websocket)
        .upgrade(Version::V1Lazy)
        .authenticate(Noise(noise))
        .multiplex(Yamux::holding(streams))
        .boxed();
    let direct = direct::DirectTransport::new(keypair.clone())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let rest = TransportTimeout::new(join(upgraded, direct), timeout).boxed();
    Ok(join(first, rest))
}

/// Whether a peer listens at addresses of its own. A page does not. It is reached only through
/// relays and `/webrtc`.
pub(crate) const LISTENS: bool = false;

/// Whether one of the transports dials addresses of this form. A page has WebSocket and
/// `/webrtc-direct`.
pub(crate) fn dials(address: &Multiaddr) -> bool {
    WebSocketAddress::parse(address).is_some() || DirectServer::from_multiaddr(address).is_some()
}

/// The most streams of a connection, whatever the configuration says. Each must find a data channel when
/// the connection becomes direct.
pub(crate) const MOST_STREAMS: usize = crate::webrtc::MOST_CHANNELS;

pub(crate) fn default_listen_addresses() -> Vec<Multiaddr> {
    Vec::new()
}

/// Noise between streams of one type, which `/webrtc-direct` uses too. Each type of stream would
/// add its own copy of the handshake, and then of the multiplexer.
#[derive(Clone)]
struct Noise(noise::Config);

type Authenticated = BoxFuture<'static, Result<(PeerId, BoxedStream), noise::Error>>;

fn erased((peer, stream): (PeerId, noise::Output<BoxedStream>)) -> (PeerId, BoxedStream) {
    (peer, Box::pin(stream))
}

impl UpgradeInfo for Noise {
    type Info = <noise::Config as UpgradeInfo>::Info;
    type InfoIter = <noise::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl InboundConnectionUpgrade<Negotiated<BoxedStream>> for Noise {
    type Output = (PeerId, BoxedStream);
    type Error = noise::Error;
    type Future = Authenticated;

    fn upgrade_inbound(self, stream: Negotiated<BoxedStream>, info: Self::Info) -> Self::Future {
        let stream: BoxedStream = Box::pin(stream);
        self.0.upgrade_inbound(stream, info).map_ok(erased).boxed()
    }
}

impl OutboundConnectionUpgrade<Negotiated<BoxedStream>> for Noise {
    type Output = (PeerId, BoxedStream);
    type Error = noise::Error;
    type Future = Authenticated;

    fn upgrade_outbound(self, stream: Negotiated<BoxedStream>, info: Self::Info) -> Self::Future {
        let stream: BoxedStream = Box::pin(stream);
        self.0.upgrade_outbound(stream, info).map_ok(erased).boxed()
    }
}

/// Tries `left` first, and `right` for addresses that `left` does not know.
fn join<O: 'static>(left: Boxed<O>, right: Boxed<O>) -> Boxed<O> {
    left.or_transport(right)
        .map(|either, _| either.into_inner())
        // `Either` would hide the error in it from `source`.
        .map_err(|either| either.into_inner())
        .boxed()
}
