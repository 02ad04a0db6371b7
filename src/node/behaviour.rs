//! The protocols that a peer speaks, put together.

use std::time::Duration;

use libp2p::{StreamProtocol, identify, identity::Keypair, ping, relay, swarm::NetworkBehaviour};

use super::streams;
use crate::{backend, rtc};

/// What identify tells other peers.
const IDENTIFY_PROTOCOL: &str = "/throughline/1";
/// A path that is dead without a close is noticed within two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Beyond any usable round trip.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells which paths still answer.
pub(crate) fn ping() -> ping::Behaviour {
    let config = ping::Config::new().with_interval(PING_INTERVAL);
    ping::Behaviour::new(config.with_timeout(PING_TIMEOUT))
}

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) rtc: rtc::Behaviour,
    pub(crate) relay: relay::client::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) streams: streams::Behaviour,
    pub(crate) stock: backend::stock::Behaviour,
}

impl Behaviour {
    pub(crate) fn new(
        keypair: &Keypair,
        rtc: rtc::Behaviour,
        relay: relay::client::Behaviour,
        stock: backend::stock::Behaviour,
        protocols: impl IntoIterator<Item = StreamProtocol>,
    ) -> Self {
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
            .with_agent_version(concat!("throughline/", env!("CARGO_PKG_VERSION")).to_owned());
        Self {
            rtc,
            relay,
            identify: identify::Behaviour::new(identify),
            streams: streams::Behaviour::new(protocols, true),
            stock,
        }
    }
}
