//! The protocols of stock libp2p that only native peers speak, and their limits.
//!
//! - `limits` counts connections and handshakes in the `pool`s.
//! - `autonat` has servers test the addresses of this peer.
//! - `dcutr` punches holes with stock peers.
//! - `heap` keeps connection handlers small.

mod autonat;
mod dcutr;
pub(crate) mod exchange;
pub(crate) mod forwarded;
mod heap;
pub(crate) mod limits;
pub(crate) mod pool;

use std::net::SocketAddr;

use libp2p::{
    PeerId, StreamProtocol,
    swarm::{ConnectionId, NetworkBehaviour, behaviour::toggle::Toggle},
};

pub(crate) use self::heap::{OnHeap, on_heap};
use self::limits::Limits;
use crate::{
    Config,
    core::{autonat::DIAL_REQUEST, quota::Quota},
    swarm::ping::{self, Ping},
};

/// The most handshakes of one kind that others have begun and that are under way. Further ones are
/// refused. Each takes some tens of kilobytes for as long as this peer waits for a silent one.
const MAX_HANDSHAKES: usize = 256;
/// The most connections with one peer. Two circuits, a direct path and the attempts that are under
/// way are far fewer.
const MAX_CONNECTIONS_PER_PEER: usize = 16;
/// The share of these handshakes, and of [`Config::max_connections`], that one address may have, in
/// percent. One /48 may have twice as much. The rest stays free for others.
const SHARE_PER_ADDRESS: u8 = 40;

/// The behaviours of these protocols.
#[derive(NetworkBehaviour)]
pub(crate) struct TargetBehaviour {
    limits: limits::LimitsBehaviour,
    ping: Ping,
    dcutr: Toggle<dcutr::DcutrBehaviour>,
    /// Has relays and other servers dial this peer's addresses from elsewhere (AutoNAT v2).
    autonat: Toggle<autonat::AutonatClient>,
}

/// Whether DCUtR dials peers on its own. Here it does.
pub(crate) const PUNCHES: bool = true;

pub(crate) fn new(local: PeerId, config: &Config) -> TargetBehaviour {
    // A peer that stays on the relay gives its addresses to nobody.
    let direct = config.direct;
    let limits = Limits::new(
        connections(config),
        handshakes(),
        Quota::shared(usize::MAX, 100),
        &pool::Debug,
    );
    TargetBehaviour {
        limits: limits::LimitsBehaviour::new(limits),
        ping: Ping::default(),
        dcutr: direct.then(|| dcutr::DcutrBehaviour::new(local)).into(),
        autonat: direct
            .then(|| autonat::AutonatClient::new(config.autonat_retry))
            .into(),
    }
}

/// How many handshakes may be under way, in all and for each holder.
pub(in crate::native) fn handshakes() -> Quota {
    Quota::shared(MAX_HANDSHAKES, SHARE_PER_ADDRESS)
}

/// How many connections each holder may have. The total is not limited here, because the node
/// counts connections by the peers that they lead to, and must not refuse a peer that has several
/// at a time.
fn connections(config: &Config) -> Quota {
    let shared = Quota::shared(config.max_connections, SHARE_PER_ADDRESS);
    Quota {
        all: usize::MAX,
        per_address: shared.per_address.max(MAX_CONNECTIONS_PER_PEER),
        per_site: shared.per_site.max(MAX_CONNECTIONS_PER_PEER),
        per_peer: MAX_CONNECTIONS_PER_PEER,
    }
}

/// Takes note of the address that the router forwards to this peer now.
pub(crate) fn set_mapped(behaviour: &mut TargetBehaviour, mapped: Option<SocketAddr>) {
    if let Some(autonat) = behaviour.autonat.as_mut() {
        autonat.set_mapped(mapped);
    }
}

/// Takes note of the protocols that a peer serves.
pub(crate) fn identified(
    behaviour: &mut TargetBehaviour,
    peer: PeerId,
    protocols: &[StreamProtocol],
) {
    if let Some(autonat) = behaviour.autonat.as_mut() {
        let serves = protocols.iter().any(|p| p.as_ref() == DIAL_REQUEST);
        autonat.identified(peer, serves);
    }
}

/// Sends a probe over a connection.
pub(crate) fn probe(behaviour: &mut TargetBehaviour, peer: PeerId, connection: ConnectionId) {
    behaviour.ping.probe(peer, connection);
}

/// The answers to probes among the behaviour's events.
pub(crate) fn answer(event: TargetBehaviourEvent) -> Option<ping::Event> {
    match event {
        TargetBehaviourEvent::Ping(event) => Some(event),
        TargetBehaviourEvent::Limits(never) => match never {},
        TargetBehaviourEvent::Autonat(never) => match never {},
        TargetBehaviourEvent::Dcutr(_) => None,
    }
}
