//! What only a native peer speaks of stock libp2p's protocols: nothing, on a page.

use libp2p::{PeerId, swarm::dummy};

use crate::Config;

/// Does nothing.
pub(crate) type Behaviour = dummy::Behaviour;

pub(crate) fn behaviour(_: PeerId, _: &Config) -> Behaviour {
    dummy::Behaviour
}
