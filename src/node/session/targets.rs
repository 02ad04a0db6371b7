//! Where a peer can be dialled, according to its tickets.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::Session;
use crate::{
    backend::transports,
    core::{
        address::{self, Route},
        offer::Incarnation,
        pace::Pace,
        record::MAX_ADDRESSES,
    },
    node::{
        relays::{RelayLink, Relays},
        round::Round,
    },
    offer::is_sealable,
    ticket::{Ticket, relay_id},
};

/// How many addresses of one peer its tickets may make us dial at once. This is enough for a full
/// ticket with three retries, and once more for the addresses of its relays.
const DIALS_AT_ONCE: u32 = 5 * MAX_ADDRESSES as u32;
/// How many more addresses the tickets may make us dial in each later second.
const DIALS_PER_SECOND: u32 = 1;

/// The places to dial that a session has learnt from the peer's tickets.
pub(super) struct Targets {
    /// The peer's relays, at most as many as a ticket holds.
    relays: Vec<PeerId>,
    /// The peer's own addresses, at most as many as a ticket holds.
    direct: Vec<Multiaddr>,
    /// The incarnation that sealed offers are for.
    incarnation: Option<Incarnation>,
    /// The links over which the peer was looked up for the last connect.
    asked: Vec<(PeerId, ConnectionId)>,
    /// How many places are being asked where the peer is: sites, directories, and the local network.
    asking: usize,
    pace: Pace,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            relays: Vec::new(),
            direct: Vec::new(),
            incarnation: None,
            asked: Vec::new(),
            asking: 0,
            pace: Pace::new(DIALS_PER_SECOND, DIALS_AT_ONCE),
        }
    }
}

impl Targets {
    /// Whether it is being asked where the peer is.
    pub(super) fn seeks(&self) -> bool {
        self.asking > 0
    }

    pub(super) fn relays(&self) -> &[PeerId] {
        &self.relays
    }

    pub(super) fn direct(&self) -> &[Multiaddr] {
        &self.direct
    }

    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.direct.is_empty()
    }

    /// Whether `count` more addresses may be dialled now, when the session has lasted for `passed`.
    fn may_dial(&mut self, passed: Duration, count: usize) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.pace.take(passed, count, Duration::ZERO).is_some()
    }
}

/// A relay that passes sealed offers on to the peer, with the connection and address of its link.
pub(super) struct OfferRelay {
    pub(super) relay: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) address: Multiaddr,
}

impl Session {
    /// Learns from a ticket. The addresses of its relays are learnt by
    /// [`Relays::learn`](crate::node::relays::Relays::learn).
    pub(in crate::node) fn learn(&mut self, ticket: &Ticket, local: PeerId, direct: bool) {
        if ticket.is_resumable() {
            self.streams.is_resumable(true);
        }
        let targets = self.targets.get_or_insert_with(Targets::default);
        targets.incarnation = ticket.incarnation().or(targets.incarnation);
        for relay in ticket.relay_addrs().iter().filter_map(relay_id) {
            if relay != local {
                keep_newest(&mut targets.relays, relay, MAX_ADDRESSES);
            }
        }
        for addr in ticket.direct_addrs() {
            // Addresses of other targets are not this one's to try, so they are left out in silence.
            if direct && address::route(addr) == Route::Direct && transports::dials(addr) {
                keep_newest(&mut targets.direct, addr.clone(), MAX_ADDRESSES);
            }
        }
    }

    /// This many places are asked where the peer is: sites that its ticket has named, directories, or the local
    /// network.
    pub(in crate::node) fn await_places(&mut self, places: usize) {
        self.targets.get_or_insert_with(Targets::default).asking += places;
    }

    /// A place was asked, and may have told which relay leads to the peer.
    pub(in crate::node) fn found(&mut self, relay: Option<PeerId>, round: &mut Round<'_>) {
        let targets = self.targets.get_or_insert_with(Targets::default);
        targets.asking = targets.asking.saturating_sub(1);
        if let Some(relay) = relay {
            keep_newest(&mut targets.relays, relay, MAX_ADDRESSES);
        }
        round.effects.replan(self.id);
    }

    /// The local network was asked, and has told where the peer may be. Whoever answers there has to prove
    /// that it is the peer.
    pub(in crate::node) fn on_nearby(&mut self, addresses: Vec<Multiaddr>, round: &mut Round<'_>) {
        let targets = self.targets.get_or_insert_with(Targets::default);
        for address in addresses.into_iter().filter(transports::dials) {
            keep_newest(&mut targets.direct, address, MAX_ADDRESSES);
        }
        self.found(None, round);
    }

    /// Seeks the peer over these relays as well, and has it looked up again.
    pub(in crate::node) fn seek_anew(&mut self, relays: Vec<PeerId>) {
        let targets = self.targets.get_or_insert_with(Targets::default);
        targets.asked.clear();
        for relay in relays {
            keep_newest(&mut targets.relays, relay, MAX_ADDRESSES);
        }
    }

    /// Returns the relays that are to be asked for the peer now: those of its tickets, and our `own`. A
    /// session with a path asks nobody.
    pub(in crate::node) fn relays_to_ask(
        &mut self,
        own: Vec<PeerId>,
        round: &Round<'_>,
    ) -> Vec<PeerId> {
        if self.has_path() {
            return Vec::new();
        }
        let Some(targets) = &mut self.targets else {
            return Vec::new();
        };
        let mut relays = targets.relays.clone();
        relays.extend(own);
        let asked = &mut targets.asked;
        relays.retain(|relay| {
            let link = round.relays.look_up_over(relay);
            let link = link.map(|link| (*relay, link));
            let link = link.filter(|link| !asked.contains(link));
            asked.extend(link);
            link.is_some()
        });
        relays
    }

    /// The peer was found, in this run. What was sealed for another run did not arrive.
    pub(in crate::node) fn expect_run(&mut self, incarnation: Option<Incarnation>) {
        self.attempts.unoffered &= self.incarnation() == incarnation;
    }

    /// The peer was found, and its record was learnt from. Its relays are tried before those of older
    /// tickets, and streams that wait may be sent.
    pub(in crate::node) fn on_found(&mut self, ticket: &Ticket, round: &mut Round<'_>) {
        let found: Vec<_> = ticket.relay_addrs().iter().filter_map(relay_id).collect();
        if let Some(targets) = &mut self.targets {
            targets.relays.sort_by_key(|relay| !found.contains(relay));
        }
        self.send_all_early(round);
    }

    /// Whether `relay` leads to the peer.
    pub(super) fn leads_over(&self, relay: &PeerId) -> bool {
        let targets = self.targets.as_ref();
        targets.is_some_and(|targets| targets.relays.contains(relay))
    }

    /// Returns the relays that lead to the peer.
    pub(in crate::node) fn relays(&self) -> &[PeerId] {
        self.targets.as_ref().map_or(&[], Targets::relays)
    }

    /// Whether the session's tickets may make us dial `count` addresses now.
    pub(super) fn may_dial(&mut self, count: usize, round: &Round<'_>) -> bool {
        let passed = self.age(round);
        let mut targets = self.targets.as_mut();
        targets
            .as_mut()
            .is_none_or(|targets| targets.may_dial(passed, count))
    }

    /// Whether the session may make us dial `relay`. A relay that the user configured may always be
    /// dialled.
    pub(in crate::node) fn may_dial_relay(&mut self, relay: &PeerId, round: &Round<'_>) -> bool {
        let foreign = round.relays.get(relay).filter(|relay| !relay.configured);
        let count = foreign.map_or(0, |relay| relay.addresses.len());
        self.may_dial(count, round)
    }

    /// Returns the incarnation that offers are sealed for, if a ticket named one.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        self.targets.as_ref()?.incarnation
    }

    /// Returns a relay whose link is up and which passes sealed offers on to the peer.
    pub(super) fn offer_relay(&self, relays: &Relays) -> Option<OfferRelay> {
        let targets = self.targets.as_ref()?;
        if !is_sealable(&self.peer) || targets.incarnation.is_none() || self.attempts.unoffered {
            return None;
        }
        targets.relays.iter().find_map(|peer| {
            let relay = relays.get(peer).filter(|relay| relay.forwards)?;
            let RelayLink::Up(connection, address) = &relay.link else {
                return None;
            };
            Some(OfferRelay {
                relay: *peer,
                connection: *connection,
                address: address.clone(),
            })
        })
    }

    /// Whether an offer can be sealed for the peer now, or as soon as a link that is being dialled
    /// is up.
    pub(super) fn expects_offer(&self, relays: &Relays) -> bool {
        let forwards = |relay: &PeerId| {
            let relay = relays.get(relay);
            relay.is_some_and(|relay| relay.forwards && relay.link != RelayLink::Down)
        };
        let sealable = is_sealable(&self.peer) && self.incarnation().is_some();
        sealable && !self.attempts.unoffered && self.relays().iter().any(forwards)
    }

    /// Returns the relay to dial so that sealed offers can go over it. Returns `None` if the link
    /// to one of the peer's relays is up or being dialled.
    pub(in crate::node) fn link_for_offers(&mut self, round: &Round<'_>) -> Option<PeerId> {
        if !is_sealable(&self.peer) {
            return None;
        }
        let mut links = self.relays().iter().filter_map(|r| round.relays.get(r));
        let first = self.relays().first().copied()?;
        let all_down = links.all(|relay| relay.link == RelayLink::Down);
        (all_down && self.may_dial_relay(&first, round)).then_some(first)
    }
}

/// Adds `new` unless it is known already. Removes the oldest if there are `most`.
pub(in crate::node) fn keep_newest<T: PartialEq>(known: &mut Vec<T>, new: T, most: usize) {
    if !known.contains(&new) {
        if known.len() >= most {
            known.remove(0);
        }
        known.push(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_for_one_peer_make_us_dial_a_limited_number_of_addresses() {
        let (mut targets, at) = (Targets::default(), Duration::from_secs(7));
        for _ in 0..5 {
            assert!(targets.may_dial(at, MAX_ADDRESSES));
        }
        assert!(!targets.may_dial(at, 1));
        assert!(targets.may_dial(at + Duration::from_secs(1), 1));
        assert!(!targets.may_dial(at + Duration::from_secs(1), 1));
        let mut known = vec![1, 2];
        for new in [2, 3] {
            keep_newest(&mut known, new, 2);
        }
        assert_eq!(known, [2, 3]);
    }
}
