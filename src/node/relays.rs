//! Links to relays, and which of them are to hold a reservation for us.

use std::{collections::HashMap, time::Duration};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, swarm::ConnectionId};

use super::session::keep_newest;
use crate::{
    core::{address, backoff::Backoff, offer, pace::Pace},
    report::RelayReport,
    ticket::relay_id,
};

/// The first pause after a relay failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// A relay that is being restarted is found again within this.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Addresses kept of one relay; one for each transport and address family is 8.
const MAX_ADDRESSES: usize = 16;

/// What we have with one relay.
pub(crate) struct Relay {
    /// The user named it, so it may hold our reservation.
    pub(crate) configured: bool,
    /// Each ends in `/p2p/<relay>`.
    pub(crate) addresses: Vec<Multiaddr>,
    /// Announced by the relay with the reservation, for the ticket.
    pub(crate) announced: Vec<Multiaddr>,
    pub(crate) link: Link,
    pub(crate) reservation: Reservation,
    pub(crate) last_error: Option<String>,
    pub(crate) rtt: Option<Duration>,
    /// Whether it forwards what is sent before the peer has agreed, on circuits and sealed: it has
    /// said so, or a ticket has of a relay that has not said anything yet.
    pub(crate) forwards: bool,
    /// How fast it brings offers.
    pub(crate) offers: Pace,
    /// Sessions that wait for the link, to dial a circuit.
    pub(crate) waiting: Vec<u64>,
    pub(crate) backoff: Backoff,
    /// The pause after a failure has not passed yet.
    pub(crate) resting: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Link {
    Down,
    Dialling(ConnectionId),
    /// The address it was reached at, ending in `/p2p/<relay>`.
    Up(ConnectionId, Multiaddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reservation {
    None,
    Requested(ListenerId),
    Held(ListenerId),
}

impl Relay {
    fn new(configured: bool) -> Self {
        Self {
            configured,
            addresses: Vec::new(),
            announced: Vec::new(),
            link: Link::Down,
            reservation: Reservation::None,
            last_error: None,
            rtt: None,
            forwards: false,
            offers: Pace::new(offer::PER_SECOND, offer::AT_ONCE),
            waiting: Vec::new(),
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
            resting: false,
        }
    }

    pub(crate) fn listener(&self) -> Option<ListenerId> {
        match self.reservation {
            Reservation::None => None,
            Reservation::Requested(id) | Reservation::Held(id) => Some(id),
        }
    }

    fn is_pursued(&self) -> bool {
        self.reservation != Reservation::None || matches!(self.link, Link::Dialling(_))
    }
}

/// All relays that are known, in the user's order.
pub(crate) struct Relays {
    order: Vec<PeerId>,
    known: HashMap<PeerId, Relay>,
    wanted: usize,
}

impl Relays {
    /// `configured` addresses each end in `/p2p/<relay>`; up to `wanted` relays are to hold a
    /// reservation at a time.
    pub(crate) fn new(configured: &[Multiaddr], wanted: usize) -> Self {
        let mut relays = Self {
            order: Vec::new(),
            known: HashMap::new(),
            wanted,
        };
        for address in configured {
            if let Some(peer) = relay_id(address) {
                relays.learn(peer, address, true);
            }
        }
        relays
    }

    /// A ticket says that `peer` forwards; what it says itself on a link that is up counts more.
    pub(crate) fn trust(&mut self, peer: &PeerId) {
        if let Some(relay) = self.known.get_mut(peer)
            && !matches!(relay.link, Link::Up(..))
        {
            relay.forwards = true;
        }
    }

    /// Notes an address of a relay. Only the user names those of a configured one, which is dialled
    /// for as long as we live. Of another the newest count: an older ticket must not hide them.
    pub(crate) fn learn(&mut self, peer: PeerId, address: &Multiaddr, configured: bool) {
        let relay = self.known.entry(peer).or_insert_with(|| {
            self.order.push(peer);
            Relay::new(configured)
        });
        if relay.configured == configured {
            keep_newest(&mut relay.addresses, address.clone(), MAX_ADDRESSES);
        }
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Relay> {
        self.known.get_mut(peer)
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Relay> {
        self.known.get(peer)
    }

    /// Relays that only tickets named.
    pub(crate) fn foreign(&self) -> Vec<PeerId> {
        let foreign = |(peer, relay): (&PeerId, &Relay)| (!relay.configured).then_some(*peer);
        self.known.iter().filter_map(foreign).collect()
    }

    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.known.remove(peer);
        self.order.retain(|p| p != peer);
    }

    pub(crate) fn by_listener(&mut self, listener: ListenerId) -> Option<(PeerId, &mut Relay)> {
        self.known
            .iter_mut()
            .find(|(_, relay)| relay.listener() == Some(listener))
            .map(|(peer, relay)| (*peer, relay))
    }

    /// Relays to reserve on next: the first configured ones that are neither pursued nor resting,
    /// as many as are wanted beyond those that are pursued.
    pub(crate) fn to_pursue(&self) -> Vec<PeerId> {
        let configured = || self.order.iter().filter(|p| self.known[*p].configured);
        let pursued = configured().filter(|p| self.known[*p].is_pursued()).count();
        configured()
            .filter(|p| !self.known[*p].is_pursued() && !self.known[*p].resting)
            .take(self.wanted.saturating_sub(pursued))
            .copied()
            .collect()
    }

    /// Whether fewer relays hold or are asked for a reservation than are wanted.
    pub(crate) fn wants_more(&self) -> bool {
        let reserved = |r: &&Relay| r.reservation != Reservation::None;
        self.known.values().filter(reserved).count() < self.wanted
    }

    /// Whether nothing can come of waiting for a first reservation: every configured relay has
    /// failed and rests.
    pub(crate) fn all_failed(&self) -> bool {
        let mut configured = self.known.values().filter(|r| r.configured);
        configured.all(|r| r.resting && !r.is_pursued())
    }

    pub(crate) fn held(&self) -> usize {
        let held = |r: &&Relay| matches!(r.reservation, Reservation::Held(_));
        self.known.values().filter(held).count()
    }

    /// Where others reach us: addresses of the relays that hold a reservation, and whether all of
    /// these forward what comes early.
    pub(crate) fn for_ticket(&self) -> (Vec<Multiaddr>, bool) {
        let known = self.order.iter().map(|peer| &self.known[peer]);
        let held = |relay: &&Relay| matches!(relay.reservation, Reservation::Held(_));
        let held: Vec<_> = known.filter(held).collect();
        let forwarding = held.iter().all(|relay| relay.forwards);
        let addresses = held.into_iter().flat_map(|relay| &relay.announced);
        (addresses.cloned().collect(), forwarding)
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.order
            .iter()
            .filter_map(|peer| {
                let error = self.known[peer].last_error.as_ref()?;
                Some(format!("relay {peer}: {error}"))
            })
            .collect()
    }

    pub(crate) fn report(&self) -> Vec<RelayReport> {
        self.order
            .iter()
            .map(|peer| {
                let relay = &self.known[peer];
                RelayReport {
                    peer_id: peer.to_string(),
                    connected: matches!(relay.link, Link::Up(..)),
                    reserved: matches!(relay.reservation, Reservation::Held(_)),
                    forwards: relay.forwards,
                    last_error: relay.last_error.clone(),
                    rtt: relay.rtt,
                }
            })
            .collect()
    }

    /// The address of a relay that a circuit listen address goes through.
    pub(crate) fn announced(listen: &Multiaddr) -> Option<Multiaddr> {
        (address::route(listen) != address::Route::WebRtc)
            .then(|| address::relay_part(listen))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(n: usize) -> Vec<PeerId> {
        (0..n).map(|_| PeerId::random()).collect()
    }

    fn configured(peers: &[PeerId], wanted: usize) -> Relays {
        let addresses: Vec<_> = peers
            .iter()
            .map(|p| format!("/ip4/192.0.2.1/tcp/1/p2p/{p}").parse().unwrap())
            .collect();
        Relays::new(&addresses, wanted)
    }

    #[test]
    fn pursues_the_first_and_moves_on_to_a_standby() {
        let peers = peers(3);
        let mut relays = configured(&peers, 2);
        assert_eq!(relays.to_pursue(), peers[..2]);
        relays.get_mut(&peers[0]).unwrap().reservation = Reservation::Held(ListenerId::next());
        relays.get_mut(&peers[1]).unwrap().resting = true;
        assert_eq!(relays.to_pursue(), peers[2..]);
        relays.get_mut(&peers[2]).unwrap().link = Link::Dialling(ConnectionId::new_unchecked(1));
        assert!(relays.to_pursue().is_empty());
        assert!(!relays.all_failed());
    }

    #[test]
    fn gives_up_waiting_only_when_all_have_failed() {
        let peers = peers(2);
        let mut relays = configured(&peers, 1);
        for peer in &peers {
            assert!(!relays.all_failed());
            relays.get_mut(peer).unwrap().resting = true;
        }
        assert!(relays.all_failed());
    }

    #[test]
    fn a_ticket_adds_no_address_to_a_configured_relay() {
        let peers = peers(1);
        let mut relays = configured(&peers, 1);
        let aimed = |port: usize| format!("/ip4/192.0.2.9/tcp/{port}/p2p/{}", peers[0]);
        relays.learn(peers[0], &aimed(1).parse().unwrap(), false);
        assert_eq!(relays.get(&peers[0]).unwrap().addresses.len(), 1);
        let mut foreign = configured(&[], 1);
        for port in 1..=MAX_ADDRESSES + 1 {
            foreign.learn(peers[0], &aimed(port).parse().unwrap(), false);
        }
        let known = &foreign.get(&peers[0]).unwrap().addresses;
        assert_eq!(known.len(), MAX_ADDRESSES);
        assert_eq!(known.last().unwrap().to_string(), aimed(MAX_ADDRESSES + 1));
    }

    #[test]
    fn relays_of_tickets_are_not_reserved_on() {
        let mut relays = configured(&[], 2);
        let foreign = PeerId::random();
        relays.learn(foreign, &"/ip4/192.0.2.1/tcp/1".parse().unwrap(), false);
        assert!(relays.to_pursue().is_empty());
    }
}
