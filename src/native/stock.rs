//! What only a native peer speaks of stock libp2p's protocols.

use libp2p::{
    PeerId,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::dcutr;
use crate::Config;

/// The behaviours of those protocols.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    dcutr: Toggle<dcutr::Behaviour>,
}

pub(crate) fn behaviour(local: PeerId, config: &Config) -> Behaviour {
    Behaviour {
        // A peer that stays on the relay gives its addresses to nobody.
        dcutr: config.direct.then(|| dcutr::Behaviour::new(local)).into(),
    }
}
