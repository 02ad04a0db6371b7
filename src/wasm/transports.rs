//! The chain of transports of a page.
//!
//! The order matters: the relay client would take `…/p2p-circuit/webrtc` for its own.

use std::{io, pin::Pin, time::Duration};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    identity, noise, relay, yamux,
};
use multiaddr::Multiaddr;

use super::{direct, websocket};

/// A transport whose connections are authenticated and multiplexed.
pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Any stream. One type for all, because each type has its own copy of noise, yamux and
/// multistream-select in the wasm, 30 KB once compressed.
pub(super) type Duplex = Pin<Box<dyn AsyncReadWrite>>;

pub(super) trait AsyncReadWrite: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> AsyncReadWrite for S {}

/// Builds the transports of a peer.
///
/// `first` is asked before all others (our `/webrtc`), `circuits` next, then WebSocket and
/// `/webrtc-direct`. A dial that takes longer than `timeout`, handshakes included, fails.
pub(crate) fn peer(
    keypair: &identity::Keypair,
    first: BoxedTransport,
    circuits: relay::client::Transport,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let noise = noise::Config::new(keypair).map_err(io::Error::other)?;
    let circuits = circuits
        .map(|circuit, _| Box::pin(circuit) as Duplex)
        .boxed();
    let websocket = websocket::Transport::default()
        .map(|socket, _| Box::pin(socket) as Duplex)
        .boxed();
    let upgraded = join(circuits, websocket)
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .boxed();
    let direct = direct::Transport::new(keypair.clone())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let rest = TransportTimeout::new(join(upgraded, direct), timeout).boxed();
    Ok(join(first, rest))
}

/// None: a page is reached through relays and `/webrtc` alone.
pub(crate) fn default_listen_addresses() -> Vec<Multiaddr> {
    Vec::new()
}

/// Tries `left` first, `right` with what `left` does not know.
fn join<O: 'static>(left: Boxed<O>, right: Boxed<O>) -> Boxed<O> {
    left.or_transport(right)
        .map(|either, _| either.into_inner())
        // Either would hide from `source` which error it holds.
        .map_err(|either| either.into_inner())
        .boxed()
}
