//! What a native peer speaks of stock libp2p's protocols besides those of all peers.

use std::net::SocketAddr;

use libp2p::{
    PeerId, StreamProtocol, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{
    autonat, dcutr,
    limits::{self, Limits},
    pool,
};
use crate::{
    Config,
    core::{autonat::DIAL_REQUEST, quota::Quota},
    node,
};

/// Handshakes of one kind under way that others have begun; further ones are refused. Each takes
/// some tens of kilobytes for as long as a silent peer is waited for.
const MAX_HANDSHAKES: usize = 256;
/// Connections with one peer. Two circuits, a direct path and what is tried meanwhile are far fewer.
const MAX_CONNECTIONS_PER_PEER: usize = 16;
/// What of that, and of [`Config::max_connections`], one address may have, in percent, and a /48
/// twice as much: others always find room.
const SHARE_PER_ADDRESS: u8 = 40;

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
    let limits = Limits::new(connections(config), handshakes(), usize::MAX, &pool::Debug);
    Behaviour {
        limits: limits::Behaviour::new(limits),
        ping: node::ping(),
        dcutr: direct.then(|| dcutr::Behaviour::new(local)).into(),
        autonat: direct
            .then(|| autonat::Behaviour::new(config.autonat_retry))
            .into(),
    }
}

/// Who may have how many handshakes under way.
pub(super) fn handshakes() -> Quota {
    Quota::shared(MAX_HANDSHAKES, SHARE_PER_ADDRESS)
}

/// Who may have how many connections. The node counts them all by the peers that they lead to; a
/// peer that has several at a time must not be refused for that.
fn connections(config: &Config) -> Quota {
    let shared = Quota::shared(config.max_connections, SHARE_PER_ADDRESS);
    Quota {
        all: usize::MAX,
        per_address: shared.per_address.max(MAX_CONNECTIONS_PER_PEER),
        per_site: shared.per_site.max(MAX_CONNECTIONS_PER_PEER),
        per_peer: MAX_CONNECTIONS_PER_PEER,
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
