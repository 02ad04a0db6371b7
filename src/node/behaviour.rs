//! The swarm's behaviour: all protocols that a peer speaks.

use libp2p::{StreamProtocol, identify, identity::Keypair, swarm::NetworkBehaviour};

use crate::{backend::behaviours::TargetBehaviour, swarm::substreams::Substreams, webrtc};

/// The protocol version that identify tells other peers.
const IDENTIFY_PROTOCOL: &str = "/throughline/1";
#[derive(NetworkBehaviour)]
pub(crate) struct NodeBehaviour {
    pub(crate) rtc: webrtc::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) streams: Substreams,
    pub(crate) target: TargetBehaviour,
}

impl NodeBehaviour {
    pub(crate) fn new(
        keypair: &Keypair,
        rtc: webrtc::Behaviour,
        target: TargetBehaviour,
        protocols: impl IntoIterator<Item = StreamProtocol>,
    ) -> Self {
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
            .with_agent_version(concat!("throughline/", env!("CARGO_PKG_VERSION")).to_owned());
        Self {
            rtc,
            identify: identify::Behaviour::new(identify),
            streams: Substreams::new(protocols, true).with_datagrams(),
            target,
        }
    }
}
