//! The chain of transports of a page.
//!
//! The order matters: the relay client would take `…/p2p-circuit/webrtc` for its own.

use std::{io, time::Duration};

use libp2p::{
    PeerId, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    identity, noise,
};
use multiaddr::Multiaddr;

use super::{Net, direct, websocket};
use crate::{circuit::Duplex, muxer::Yamux};

/// A transport whose connections are authenticated and multiplexed.
pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds the transports of a peer.
///
/// `first` is asked before all others (our `/webrtc`), `circuits` next, then WebSocket and
/// `/webrtc-direct`. A dial that takes longer than `timeout`, handshakes included, fails.
pub(crate) fn peer(
    keypair: &identity::Keypair,
    first: BoxedTransport,
    circuits: Boxed<Duplex>,
    _: &Net,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let noise = noise::Config::new(keypair).map_err(io::Error::other)?;
    let websocket = websocket::Transport::default()
        .map(|socket, _| Box::pin(socket) as Duplex)
        .boxed();
    let upgraded = join(circuits, websocket)
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(Yamux::default())
        .boxed();
    let direct = direct::Transport::new(keypair.clone())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let rest = TransportTimeout::new(join(upgraded, direct), timeout).boxed();
    Ok(join(first, rest))
}

/// None: a page is reached through relays and `/webrtc` alone.
/// A page has no address of its own.
pub(crate) const LISTENS: bool = false;

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
