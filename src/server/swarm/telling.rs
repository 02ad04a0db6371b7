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
        let farewell = self.farewell();
        for (peer, connection) in self.clients.all_reserved(Instant::now()) {
            self.tell(peer, connection, drain::PROTOCOL, farewell.clone());
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

    /// What the clients are told.
    fn farewell(&self) -> Vec<u8> {
        let config = self.settings.now();
        let drain = drain::Drain {
            time: Duration::from_secs(config.drain.seconds),
            // Validation of the configuration has already refused texts that are no addresses.
            relays: self
                .pools
                .reputation
                .order(config.successors().unwrap_or_default(), relay_id),
        };
        drain.encode()
    }
}
