//! The protocols of stock libp2p that only pages speak. There is only ping. It stands here because
//! each combination of two behaviours adds code to the wasm.

use std::net::SocketAddr;

use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};

use crate::{
    Config,
    swarm::ping::{self, Ping},
};

/// The behaviour of these protocols.
pub(crate) type TargetBehaviour = Ping;

pub(crate) fn new(_: PeerId, _: &Config) -> TargetBehaviour {
    Ping::default()
}

/// Whether DCUtR dials peers on its own. A page punches holes by ICE alone.
pub(crate) const PUNCHES: bool = false;

/// Does nothing, because a page maps no ports.
pub(crate) fn set_mapped(_: &mut TargetBehaviour, _: Option<SocketAddr>) {}

/// Does nothing, because nobody can dial a page.
pub(crate) fn identified(_: &mut TargetBehaviour, _: PeerId, _: &[StreamProtocol]) {}

/// Sends a probe over a connection.
pub(crate) fn probe(behaviour: &mut TargetBehaviour, peer: PeerId, connection: ConnectionId) {
    behaviour.probe(peer, connection);
}

/// The answers to probes among the behaviour's events.
pub(crate) fn answer(event: ping::Event) -> Option<ping::Event> {
    Some(event)
}

/// Handlers stay where libp2p puts them, because a page has few connections, and each byte of code
/// counts.
pub(crate) type OnHeap<B> = B;

pub(crate) fn on_heap<B>(behaviour: B) -> OnHeap<B> {
    behaviour
}
