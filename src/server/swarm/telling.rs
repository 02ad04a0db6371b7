//! What clients are told without having asked: that the server is about to end, and what is left of a
//! quota.

use std::time::{Duration, Instant};

use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};

use super::Relay;
use crate::{
    core::{drain, notice},
    ticket::relay_id,
};

impl Relay {
    /// Tells a client something, by a message of `protocol`.
    pub(super) fn tell(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: &'static str,
        message: Vec<u8>,
    ) {
        let requests = &mut self.swarm.behaviour_mut().requests;
        let id = requests.open(peer, connection, StreamProtocol::new(protocol));
        self.telling.insert(id, (peer, message));
    }

    /// Tells every client to move to another relay.
    pub(super) fn tell_all(&mut self) {
        let clients = self.clients.all_reserved(Instant::now());
        for (peer, connection) in clients {
            let farewell = self.farewell();
            self.tell(peer, connection, drain::PROTOCOL, farewell);
        }
    }

    /// Tells those whose quota is nearly used up.
    pub(super) fn tell_quotas(&mut self) {
        for (peer, left) in self.access.due() {
            if let Some(connection) = self.clients.newest(&peer, Instant::now()) {
                self.tell(peer, connection, notice::PROTOCOL, notice::encode(&left));
            }
        }
    }

    /// What a client gets told: the relays of the configuration that go on, or else those of the fleet.
    fn farewell(&self) -> Vec<u8> {
        let config = self.settings.now();
        // Validation of the configuration has already refused texts that are no addresses.
        let configured = config.successors().unwrap_or_default();
        let relays = self.sisters.successors(configured, Instant::now());
        let drain = drain::Drain {
            time: Duration::from_secs(config.drain.seconds),
            relays: self.pools.reputation.order(relays, relay_id),
        };
        drain.encode()
    }
}
