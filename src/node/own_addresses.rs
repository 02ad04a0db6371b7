//! Our own addresses: what is known about them, and the ticket that is made from them.

use std::{collections::HashMap, net::SocketAddr};

use libp2p::{Multiaddr, core::transport::ListenerId};

use super::engine::Node;
use crate::{
    backend,
    core::{
        address::{self, Route},
        liveness::Hint,
        scope::Scope,
    },
    offer::Sealer,
    report::NatMapping,
    ticket::{Ticket, check_address},
};

/// The most direct addresses in a ticket.
const TICKET_DIRECT: usize = 8;
/// The most addresses of relays in a ticket.
const TICKET_RELAYED: usize = 24;
/// How many of the addresses that others see us at are kept.
const OBSERVED: usize = 16;

/// The facts about our own addresses.
#[derive(Default)]
pub(super) struct OwnAddresses {
    listening: HashMap<ListenerId, Vec<Multiaddr>>,
    /// The addresses that others see us at, newest first.
    observed: Vec<Multiaddr>,
    /// Our addresses that AutoNAT servers could dial.
    confirmed: Vec<Multiaddr>,
}

impl OwnAddresses {
    pub(super) fn listening(&self) -> impl Iterator<Item = &Multiaddr> {
        self.listening.values().flatten()
    }

    pub(super) fn observed(&self) -> &[Multiaddr] {
        &self.observed
    }

    pub(super) fn confirmed(&self) -> &[Multiaddr] {
        &self.confirmed
    }

    pub(super) fn listen(&mut self, listener: ListenerId, address: Multiaddr) {
        self.listening.entry(listener).or_default().push(address);
    }

    pub(super) fn expire(&mut self, listener: ListenerId, address: &Multiaddr) {
        if let Some(known) = self.listening.get_mut(&listener) {
            known.retain(|known| known != address);
        }
    }

    pub(super) fn close(&mut self, listener: ListenerId) {
        self.listening.remove(&listener);
    }

    pub(super) fn observe(&mut self, address: Multiaddr) {
        if !self.observed.contains(&address) {
            tracing::debug!(%address, "others see us at another address");
            self.observed.truncate(OBSERVED - 1);
            self.observed.insert(0, address);
        }
    }

    /// libp2p has confirmed an address of ours: an AutoNAT server has dialled it, or it is that of
    /// a circuit. Keeps it if it is direct, and returns whether it is new.
    pub(super) fn confirm(&mut self, address: Multiaddr) -> bool {
        let direct = address::route(&address) == Route::Direct;
        let usable = direct && check_address(&address).is_ok();
        let is_new =
            usable && !self.confirmed.contains(&address) && self.confirmed.len() < TICKET_DIRECT;
        if is_new {
            self.confirmed.push(address);
        }
        is_new
    }

    pub(super) fn refute(&mut self, address: &Multiaddr) {
        self.confirmed.retain(|known| known != address);
    }

    /// An interface is gone, so the confirmed addresses may no longer be true. Takes them all out.
    pub(super) fn doubt(&mut self) -> Vec<Multiaddr> {
        std::mem::take(&mut self.confirmed)
    }

    /// Returns the addresses that others may be able to dial. Confirmed addresses come first. Those
    /// of interfaces follow, for peers on the same network. Loopback addresses are included only if
    /// no interface has another address, because they serve the same machine only.
    pub(super) fn direct(&self) -> Vec<Multiaddr> {
        let is_own = |address: &&Multiaddr| {
            let scope = address::scope_of(address);
            address::route(address) == Route::Direct && scope != Some(Scope::Forbidden)
        };
        let all = || self.listening().filter(is_own);
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
}

impl Node {
    pub(super) fn confirmed_changed(&mut self) {
        let count = i64::try_from(self.own.confirmed.len()).unwrap_or(i64::MAX);
        self.shared.metrics.confirmed.set(count);
        self.refresh_ticket();
    }

    /// Lets AutoNAT test the address that the router forwards to us, like our other addresses.
    pub(super) fn take_mapping(&mut self) {
        let Some(nat) = self.net.rtc.nat() else {
            return;
        };
        let mapped = nat.borrow().mapped.as_ref().and_then(|a| a.parse().ok());
        let target = &mut self.network.swarm.behaviour_mut().target;
        backend::behaviours::set_mapped(target, mapped);
    }

    /// An address of this machine is gone.
    pub(super) fn on_network_changed(&mut self) {
        for address in self.own.doubt() {
            self.network.swarm.remove_external_address(&address);
        }
        self.confirmed_changed();
        self.relays.on_address_gone(&mut self.effects);
        self.probe_all(Hint::Network);
    }

    /// Each path and link shows whether it is still there. If the network may be another one, what has
    /// failed is tried again.
    pub(super) fn probe_all(&mut self, hint: Hint) {
        if hint == Hint::Network {
            self.net.network_changed();
        }
        self.relays.on_hint(hint, &mut self.effects);
        for id in self.sessions.ids() {
            if let Some((session, mut round)) = self.session(id) {
                session.on_hint(hint, &mut round);
            }
        }
    }

    /// Returns the external addresses of our sockets, unless the NAT's mapping depends on the
    /// destination.
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

    pub(super) fn refresh_ticket(&mut self) {
        self.status.is_old = true;
        let direct = if self.config.direct {
            self.own.direct()
        } else {
            Vec::new()
        };
        self.net.lan.show(&direct);
        let (mut relays, forwarded) = self.relays.for_ticket();
        relays.truncate(TICKET_RELAYED);
        match Ticket::checked(self.shared.peer_id, true, relays, direct) {
            Ok(ticket) => {
                let sealer = self.sealer.as_ref();
                let incarnation = sealer.map(Sealer::incarnation);
                let ticket = ticket
                    .with_mapped(self.mapped_addresses())
                    .with_early(forwarded, incarnation);
                if self.shared.set_ticket(ticket) {
                    self.ticket_changed();
                }
            }
            Err(error) => tracing::warn!(%error, "the ticket is not refreshed"),
        }
    }
}
