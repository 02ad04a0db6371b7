//! What a native peer speaks of stock libp2p's protocols besides those of all peers.

use std::net::SocketAddr;

use libp2p::{
    PeerId, StreamProtocol, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{
    autonat, dcutr,
    limits::{self, Most},
};
use crate::{Config, core::autonat::DIAL_REQUEST, node};

/// Handshakes under way that others have begun; further ones are refused. Each takes some tens of
/// kilobytes for as long as a silent peer is waited for.
const MAX_HANDSHAKES: u32 = 256;
/// Connections with one peer. Two circuits, a direct path and what is tried meanwhile are far fewer.
const MAX_CONNECTIONS_PER_PEER: u32 = 16;

/// The behaviours of those protocols.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: limits::Behaviour,
    ping: ping::Behaviour,
    dcutr: Toggle<dcutr::Behaviour>,
    /// Has relays and other servers dial our addresses from elsewhere (AutoNAT v2).
    autonat: Toggle<autonat::Behaviour>,
}

/// DCUtR dials by itself.
pub(crate) const PUNCHES: bool = true;

pub(crate) fn behaviour(local: PeerId, config: &Config) -> Behaviour {
    // A peer that stays on the relay gives its addresses to nobody.
    let direct = config.direct;
    let most = Most {
        established: u32::MAX,
        per_peer: MAX_CONNECTIONS_PER_PEER,
        incoming: MAX_HANDSHAKES,
        outgoing: u32::MAX,
    };
    Behaviour {
        limits: limits::Behaviour::new(most),
        ping: node::ping(),
        dcutr: direct.then(|| dcutr::Behaviour::new(local)).into(),
        autonat: direct
            .then(|| autonat::Behaviour::new(config.autonat_retry))
            .into(),
    }
}

/// Takes in what the router forwards to us now.
pub(crate) fn set_mapped(behaviour: &mut Behaviour, mapped: Option<SocketAddr>) {
    if let Some(autonat) = behaviour.autonat.as_mut() {
        autonat.set_mapped(mapped);
    }
}

/// Takes in what a peer serves.
pub(crate) fn identified(behaviour: &mut Behaviour, peer: PeerId, protocols: &[StreamProtocol]) {
    if let Some(autonat) = behaviour.autonat.as_mut() {
        let serves = protocols.iter().any(|p| p.as_ref() == DIAL_REQUEST);
        autonat.identified(peer, serves);
    }
}

/// What of it is about a path that answers or does not.
pub(crate) fn ping(event: BehaviourEvent) -> Option<ping::Event> {
    match event {
        BehaviourEvent::Ping(event) => Some(event),
        BehaviourEvent::Limits(never) => match never {},
        BehaviourEvent::Autonat(never) => match never {},
        BehaviourEvent::Dcutr(_) => None,
    }
}
