//! What only a native peer speaks of stock libp2p's protocols.

use libp2p::{
    PeerId,
    autonat::v2::client as autonat,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::dcutr;
use crate::Config;

/// The behaviours of those protocols.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    dcutr: Toggle<dcutr::Behaviour>,
    /// Has relays and other servers dial our addresses from elsewhere (AutoNAT v2).
    autonat: Toggle<autonat::Behaviour>,
}

pub(crate) fn behaviour(local: PeerId, config: &Config) -> Behaviour {
    // A peer that stays on the relay gives its addresses to nobody.
    let direct = config.direct;
    Behaviour {
        dcutr: direct.then(|| dcutr::Behaviour::new(local)).into(),
        autonat: direct.then(autonat::Behaviour::default).into(),
    }
}
