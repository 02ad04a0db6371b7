//! Where we can be reached: what is known of our own addresses, and the ticket that tells it.

use std::net::SocketAddr;

use libp2p::Multiaddr;

use super::Node;
use crate::{
    backend,
    core::{address, scope::Scope},
    report::NatMapping,
    ticket::{Ticket, check_address},
};

/// Direct addresses in a ticket.
const TICKET_DIRECT: usize = 8;

impl Node {
    /// Some server has dialled this address of ours, or it is one of a circuit.
    pub(super) fn on_confirmed(&mut self, address: Multiaddr) {
        let direct = address::route(&address) == address::Route::Direct;
        let usable = direct && check_address(&address).is_ok();
        if usable && !self.confirmed.contains(&address) && self.confirmed.len() < TICKET_DIRECT {
            self.confirmed.push(address);
            self.confirmed_changed();
        }
    }

    pub(super) fn confirmed_changed(&self) {
        let count = i64::try_from(self.confirmed.len()).unwrap_or(i64::MAX);
        self.shared.metrics.confirmed.set(count);
        self.refresh_ticket();
    }

    /// What the router forwards to us is tested like other addresses of ours.
    pub(super) fn take_mapping(&mut self) {
        let Some(nat) = self.net.rtc.nat() else {
            return;
        };
        let mapped = nat.borrow().mapped.as_ref().and_then(|a| a.parse().ok());
        backend::stock::set_mapped(&mut self.swarm.behaviour_mut().stock, mapped);
    }

    /// An interface is gone: what was found out through it need not be true any longer.
    pub(super) fn on_network_changed(&mut self) {
        for address in std::mem::take(&mut self.confirmed) {
            self.swarm.remove_external_address(&address);
        }
        self.confirmed_changed();
    }

    /// Our own addresses that somebody else could dial: first those of which it is known, then
    /// those of interfaces, for peers on the same network. Loopback is of use on the same machine
    /// only, and then only when there is nothing else.
    pub(in crate::node) fn direct_addresses(&self) -> Vec<Multiaddr> {
        let is_own = |address: &&Multiaddr| {
            let scope = address::scope_of(address);
            address::route(address) == address::Route::Direct && scope != Some(Scope::Forbidden)
        };
        let all = || self.listening.values().flatten().filter(is_own);
        let usable: Vec<_> = all()
            .filter(|a| address::scope_of(a) != Some(Scope::Loopback))
            .cloned()
            .collect();
        let usable = if usable.is_empty() {
            all().cloned().collect()
        } else {
            usable
        };
        let mut addresses = self.confirmed.clone();
        addresses.extend(usable.into_iter().filter(|a| !self.confirmed.contains(a)));
        addresses.truncate(TICKET_DIRECT);
        addresses
    }

    /// What NATs give our socket, where that is the same for everybody.
    fn mapped_addresses(&self) -> Vec<SocketAddr> {
        let Some(nat) = self.net.rtc.nat().filter(|_| self.config.direct) else {
            return Vec::new();
        };
        let nat = nat.borrow();
        match nat.mapping {
            NatMapping::AddressDependent | NatMapping::AddressAndPortDependent => Vec::new(),
            _ => {
                let seen = nat.stun.iter().filter_map(|server| server.mapped.as_ref());
                let mut seen: Vec<_> = seen.filter_map(|mapped| mapped.parse().ok()).collect();
                seen.dedup();
                seen
            }
        }
    }

    pub(in crate::node) fn refresh_ticket(&self) {
        let direct = if self.config.direct {
            self.direct_addresses()
        } else {
            Vec::new()
        };
        let (mut relays, forwarded) = self.relays.for_ticket();
        relays.truncate(24);
        match Ticket::checked(self.shared.peer_id, true, relays, direct) {
            Ok(ticket) => {
                let mapped = self.mapped_addresses();
                let incarnation = self
                    .sealer
                    .as_ref()
                    .map(backend::offer::Sealer::incarnation);
                let ticket = ticket.with_mapped(mapped);
                self.shared
                    .set_ticket(ticket.with_early(forwarded, incarnation));
            }
            Err(error) => tracing::warn!(%error, "the ticket is not refreshed"),
        }
    }

    pub(super) fn observe(&mut self, address: Multiaddr) {
        const OBSERVED: usize = 16;
        if !self.observed.contains(&address) {
            self.observed.truncate(OBSERVED - 1);
            self.observed.insert(0, address);
        }
    }
}
