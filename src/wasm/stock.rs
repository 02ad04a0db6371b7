//! What a page speaks of stock libp2p's protocols besides those of all peers: ping, which stands here
//! because each behaviour makes the wasm larger by its own copy of what combines two.

use std::net::SocketAddr;

use libp2p::{PeerId, StreamProtocol, ping};

use crate::{Config, node};

/// The behaviours of those protocols.
pub(crate) type Behaviour = ping::Behaviour;

pub(crate) fn behaviour(_: PeerId, _: &Config) -> Behaviour {
    node::ping()
}

/// A page punches holes by ICE alone, not by DCUtR.
pub(crate) const PUNCHES: bool = false;

/// A page maps no ports.
pub(crate) fn set_mapped(_: &mut Behaviour, _: Option<SocketAddr>) {}

/// Nobody can dial a page.
pub(crate) fn identified(_: &mut Behaviour, _: PeerId, _: &[StreamProtocol]) {}

/// What of it is about a path that answers or does not.
pub(crate) fn ping(event: ping::Event) -> Option<ping::Event> {
    Some(event)
}
