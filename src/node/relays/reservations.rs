//! Reservations on relays. A reservation is renewed while the link is up. When one ends, we
//! reserve on the next free relay at once. The relay that failed rests, and is free again after a
//! pause.

use std::{sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId, StreamProtocol};
use web_time::Instant;

use super::{
    BARRED, EAGER, EAGER_MOST, MOST_BARRED, RETRY_MOST, Relay, RelayLink, Relays, Reservation,
    ReservationId, SETTLED, Wishes,
};
use crate::{
    core::{
        access::PROTOCOL,
        address,
        circuit::HOP_PROTOCOL,
        reservation::{RENEW_AGAIN, ReservationError, terms},
    },
    node::{
        effect::{Effect, Effects},
        network::Purpose,
        timers::{Alarm, Timer},
    },
    ticket::check_address,
};

/// The most addresses of one relay that are announced. One for each transport and address family makes
/// 8, and identify has room for them.
const MAX_ANNOUNCED: usize = 8;

/// The most circuits of one relay that are announced or wait for the transport. Those that come
/// meanwhile are reset, and their diallers hear that they were refused.
const MAX_ARRIVING: usize = 64;

impl Relays {
    /// Starts as many reservations as are missing.
    pub(in crate::node) fn pursue(&mut self, effects: &mut Effects) {
        for peer in self.to_pursue() {
            match self.get(&peer).map(|relay| &relay.link) {
                Some(RelayLink::Up(..)) => self.reserve(peer, effects),
                Some(RelayLink::Down) => self.dial(peer, effects),
                _ => {}
            }
        }
    }

    /// Whether another reservation is wanted and this relay is free for it.
    pub(super) fn wants(&self, peer: &PeerId) -> bool {
        let relay = self.get(peer);
        let is_free = relay.is_some_and(|r| r.configured && r.reservation == Reservation::None);
        is_free && self.wants_more()
    }

    /// Asks a relay for a reservation over its link.
    pub(super) fn reserve(&mut self, peer: PeerId, effects: &mut Effects) {
        let (id, wishes) = (ReservationId(self.requests + 1), self.wishes);
        let Some(relay) = self.known.get_mut(&peer) else {
            return;
        };
        if relay.ask(peer, id, wishes, effects) {
            self.requests += 1;
            relay.reservation = Reservation::Requested(id);
            let deadline = Timer::ReservationDeadline(peer, id);
            effects.push(Effect::After(self.patience, deadline));
        }
    }

    /// It is time to renew a reservation. If the link is down, the reservation ends.
    pub(in crate::node) fn renew(
        &mut self,
        peer: PeerId,
        id: ReservationId,
        effects: &mut Effects,
    ) {
        let wishes = self.wishes;
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        let due = relay.reservation == Reservation::Held(id) && relay.renewal.rings(Instant::now());
        if due && !relay.ask(peer, id, wishes, effects) {
            self.on_reservation_ended(peer, "the link is down", effects);
        }
    }

    /// The time for a relay to grant a reservation is over.
    pub(in crate::node) fn on_reservation_deadline(
        &mut self,
        peer: PeerId,
        id: ReservationId,
        effects: &mut Effects,
    ) {
        let asked = Reservation::Requested(id);
        let relay = self.get_mut(&peer);
        if let Some(relay) = relay.filter(|relay| relay.reservation == asked) {
            relay.refused = None;
            let reason = "the relay granted no reservation in time";
            self.on_reservation_ended(peer, reason, effects);
        }
    }

    /// A relay has answered the request for a reservation or for its renewal.
    pub(in crate::node) fn on_reserved(
        &mut self,
        peer: PeerId,
        id: ReservationId,
        answer: Result<Vec<Multiaddr>, ReservationError>,
        effects: &mut Effects,
    ) {
        let random = self.random;
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        // An answer that comes after the end of a reservation does not count.
        if relay.reservation.id() != Some(id) {
            return;
        }
        match answer {
            Ok(announced) => {
                relay.take_announced(peer, announced, effects);
                relay.reservation = Reservation::Held(id);
                relay.refused = None;
                relay.backoff.reset();
                relay.granted = Some(Instant::now());
                relay.plan_renewal(peer, random(), effects);
                effects.push(Effect::Reserved);
                self.offer_directory(peer, effects);
            }
            // The link says by itself when it is dead. What the relay refuses now, because it has no
            // room for another request, does not end what it has granted.
            Err(error) if relay.lasts() && error.may_pass() => {
                tracing::debug!(relay = %peer, %error, "a reservation is not renewed");
                relay.renew_at(Instant::now() + RENEW_AGAIN, peer, effects);
            }
            Err(error) => {
                let reason = error.to_string();
                relay.refused = error.refusal();
                self.on_reservation_ended(peer, &reason, effects);
            }
        }
    }

    /// A relay holds no reservation of ours any more, or grants none.
    pub(super) fn on_reservation_ended(
        &mut self,
        peer: PeerId,
        reason: &str,
        effects: &mut Effects,
    ) {
        if let Some(relay) = self.get_mut(&peer) {
            relay.forget_reservation(effects);
            self.rest(peer, reason, effects);
        }
    }

    /// A relay failed. It rests if it is configured, and another one takes its place.
    pub(in crate::node) fn rest(&mut self, peer: PeerId, reason: &str, effects: &mut Effects) {
        let random = self.random;
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        relay.last_error = Some(reason.to_owned());
        if relay.configured && !relay.resting {
            relay.resting = true;
            let lasted = relay.up_since.take().map(|since| since.elapsed());
            let random = random();
            let pause = relay.backoff.fail(random);
            // What is shown next may be another token.
            relay.access.asked = false;
            let pause = match relay.backoff.failures() {
                _ if relay.is_barred() => relay.barred().mul_f64(1.0 + random / 4.0),
                1 if lasted.is_some_and(|time| time >= SETTLED) => Duration::ZERO,
                ..=EAGER => pause.min(EAGER_MOST.mul_f64(0.75 + random / 4.0)),
                _ => pause,
            };
            effects.push(Effect::After(pause, Timer::RelayRested(peer)));
        }
        self.pursue(effects);
        if self.all_failed() {
            effects.push(Effect::NoRelay);
        }
    }

    /// The pause after a relay's failure is over.
    pub(in crate::node) fn on_rested(&mut self, peer: &PeerId, effects: &mut Effects) {
        if let Some(relay) = self.get_mut(peer) {
            relay.resting = false;
        }
        self.pursue(effects);
    }
}

impl Relay {
    /// Asks for the reservation `id` over the link, and for access with it if there is a token to
    /// show. Returns whether the link is up. If there is a token, the relay is asked when it has said
    /// what it serves.
    pub(super) fn ask(
        &mut self,
        peer: PeerId,
        id: ReservationId,
        wishes: Wishes,
        effects: &mut Effects,
    ) -> bool {
        let is_up = matches!(self.link, RelayLink::Up(..));
        let shows = wishes.tokens && self.is_users();
        if is_up && (!shows || self.identified) {
            let access = shows && self.access.named && !self.access.admitted;
            self.open(peer, Some(id), access, effects);
        }
        is_up
    }

    /// Opens the stream on which the relay is asked for the reservation `id`, for access, or for both.
    pub(super) fn open(
        &mut self,
        peer: PeerId,
        id: Option<ReservationId>,
        access: bool,
        effects: &mut Effects,
    ) {
        if let RelayLink::Up(connection, _) = self.link {
            self.access.asked |= access;
            let protocol = if access { PROTOCOL } else { HOP_PROTOCOL };
            effects.push(Effect::Open {
                peer,
                connection,
                protocol: StreamProtocol::new(protocol),
                purpose: Purpose::Ask {
                    relay: peer,
                    id,
                    access,
                },
            });
        }
    }

    /// Notes the addresses that the relay announces for itself. Without any, the address counts at
    /// which it was reached.
    fn take_announced(&mut self, peer: PeerId, announced: Vec<Multiaddr>, effects: &mut Effects) {
        // An address that no ticket may hold would leave us without any ticket.
        let sound = |address: &Multiaddr| check_address(address).is_ok();
        let named = announced.iter().filter_map(|a| address::with_peer(a, peer));
        let mut addresses: Vec<_> = named.filter(sound).take(MAX_ANNOUNCED).collect();
        if let RelayLink::Up(_, address) = &self.link
            && addresses.is_empty()
            && sound(address)
        {
            addresses.push(address.clone());
        }
        if self.announced != addresses {
            effects.push(Effect::Withdraw(std::mem::take(&mut self.announced)));
            effects.push(Effect::Announce(addresses.clone()));
            self.announced = addresses;
        }
    }

    /// How long the relay does not serve us at least.
    fn barred(&self) -> Duration {
        let ends = self.refused.and_then(|refused| refused.ends);
        ends.map_or(BARRED, |ends| ends.clamp(RETRY_MOST, MOST_BARRED))
    }

    /// Whether a reservation is held whose term is not over yet.
    fn lasts(&self) -> bool {
        let held = matches!(self.reservation, Reservation::Held(_));
        let granted = self.granted.filter(|_| held);
        granted.is_some_and(|granted| granted.elapsed() < terms(self.forwards).0)
    }

    /// Has the reservation renewed in time, if there is one. `random` spreads the renewals of peers
    /// that have come together.
    pub(super) fn plan_renewal(&mut self, peer: PeerId, random: f64, effects: &mut Effects) {
        if let Some(granted) = self.granted {
            let pause = terms(self.forwards).1.mul_f64(0.8 + random / 5.0);
            self.renew_at(granted + pause, peer, effects);
        }
    }

    fn renew_at(&mut self, at: Instant, peer: PeerId, effects: &mut Effects) {
        if let Reservation::Held(id) = self.reservation
            && let Some(pause) = self.renewal.set(Some(at), Instant::now())
        {
            effects.push(Effect::After(pause, Timer::Renew(peer, id)));
        }
    }

    /// Forgets the reservation, if there is one.
    pub(super) fn forget_reservation(&mut self, effects: &mut Effects) {
        if self.reservation != Reservation::None {
            self.reservation = Reservation::None;
            self.granted = None;
            self.renewal = Alarm::default();
            effects.push(Effect::Withdraw(std::mem::take(&mut self.announced)));
            effects.push(Effect::Reserved);
        }
    }

    /// Returns the relay's address and a place for a circuit that it brings. Returns `None` without
    /// a reservation, or while too many circuits have not been accepted yet.
    pub(in crate::node) fn circuit_place(&self) -> Option<(Multiaddr, Arc<()>)> {
        let (RelayLink::Up(_, address), Some(_)) = (&self.link, self.reservation.id()) else {
            return None;
        };
        let room = Arc::strong_count(&self.arriving) <= MAX_ARRIVING;
        room.then(|| (address.clone(), self.arriving.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{effect::tests::briefs, relays::tests::*};
    use libp2p::swarm::ConnectionId;

    /// One relay whose link is up and which is asked for a reservation.
    fn asked() -> (PeerId, Relays, Effects) {
        let peers = peers(1);
        let mut relays = configured(&peers, 1);
        let mut effects = Effects::default();
        let address = format!("/ip4/192.0.2.1/tcp/1/p2p/{}", peers[0])
            .parse()
            .unwrap();
        let link = RelayLink::Up(ConnectionId::new_unchecked(1), address);
        relays.get_mut(&peers[0]).unwrap().link = link;
        relays.pursue(&mut effects);
        let expected = [
            format!("open {HOP_PROTOCOL} on 1"),
            "after 10000 ms".to_owned(),
        ];
        assert_eq!(briefs(&mut effects), expected);
        (peers[0], relays, effects)
    }

    fn id(relays: &Relays, peer: &PeerId) -> ReservationId {
        relays.get(peer).unwrap().reservation.id().unwrap()
    }

    /// Pretends that the grant is older by `time`.
    fn age(relays: &mut Relays, peer: &PeerId, time: Duration) {
        let relay = relays.get_mut(peer).unwrap();
        relay.granted = relay.granted.and_then(|at| at.checked_sub(time));
        relay.renewal = Alarm::default();
        relay.renewal.set(relay.granted, Instant::now());
    }

    #[test]
    fn a_reservation_is_renewed_by_a_clock_of_our_own_until_its_term_is_over() {
        let (peer, mut relays, mut effects) = asked();
        let id = id(&relays, &peer);
        let announced = "/ip4/192.0.2.2/udp/1/quic-v1".parse::<Multiaddr>().unwrap();
        let granted = || Ok(vec![announced.clone()]);
        relays.on_reserved(peer, id, granted(), &mut effects);
        let told = briefs(&mut effects);
        assert_eq!(told[..2], ["withdraw", "announce"]);
        assert!(
            told[2].starts_with("after") && told[3] == "reserved",
            "{told:?}"
        );
        let expected = announced.clone().with_p2p(peer).unwrap();
        assert_eq!(relays.for_ticket().0, [expected]);
        relays.on_reservation_deadline(peer, id, &mut effects);
        relays.renew(peer, id, &mut effects);
        assert!(briefs(&mut effects).is_empty(), "it is too early");

        // Neither silence nor a refusal ends what was granted, before its term is over.
        let silent = || Err(ReservationError::NoAnswer("it took too long".to_owned()));
        for refused in [silent(), Err(ReservationError::Limit)] {
            age(&mut relays, &peer, Duration::from_secs(60));
            relays.renew(peer, id, &mut effects);
            assert_eq!(briefs(&mut effects), [format!("open {HOP_PROTOCOL} on 1")]);
            relays.on_reserved(peer, id, refused, &mut effects);
            let again = briefs(&mut effects);
            assert!(
                again.len() == 1 && again[0].starts_with("after"),
                "{again:?}"
            );
        }
        age(&mut relays, &peer, terms(false).0);
        relays.on_reserved(peer, id, Err(ReservationError::Limit), &mut effects);
        assert_eq!(briefs(&mut effects)[..2], ["withdraw", "reserved"]);
        assert_eq!(relays.held(), 0);
        let refusal = relays.refusal();
        assert_eq!(
            refusal,
            ReservationError::Limit.refusal(),
            "the caller hears why"
        );
        // An answer that comes late belongs to no reservation.
        relays.on_reserved(peer, id, granted(), &mut effects);
        relays.renew(peer, id, &mut effects);
        assert!(briefs(&mut effects).is_empty());
    }

    #[test]
    fn a_relay_of_this_library_is_asked_sooner_than_a_stock_relay() {
        let (peer, mut relays, mut effects) = asked();
        let id = id(&relays, &peer);
        relays.on_reserved(peer, id, Ok(Vec::new()), &mut effects);
        briefs(&mut effects);
        let ours = [
            crate::core::circuit::EARLY_PROTOCOL,
            crate::core::offer::OFFER_PROTOCOL,
        ];
        let ours = ours.map(str::to_owned).into();
        relays.on_identified(peer, &ours, &mut effects);
        let sooner = briefs(&mut effects);
        assert!(sooner[0].starts_with("after "), "{sooner:?}");
        assert!(terms(true).1 < terms(false).1);
        // A relay that no longer serves the protocol ends the reservation at once.
        let gone = Err(ReservationError::NoRelay);
        relays.on_reserved(peer, id, gone, &mut effects);
        assert_eq!(relays.held(), 0);
    }

    #[test]
    fn a_relay_without_announced_addresses_is_known_by_the_one_it_was_reached_at() {
        let (peer, mut relays, mut effects) = asked();
        let other = "/ip4/192.0.2.2/udp/1".parse::<Multiaddr>().unwrap();
        let other = other.with_p2p(PeerId::random()).unwrap();
        relays.on_reserved(peer, id(&relays, &peer), Ok(vec![other]), &mut effects);
        let reached = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}");
        assert_eq!(relays.for_ticket().0, [reached.parse().unwrap()]);
    }

    #[test]
    fn only_a_relay_that_was_asked_brings_circuits_and_not_too_many() {
        let (peer, mut relays, mut effects) = asked();
        let place = |relays: &Relays| relays.get(&peer).unwrap().circuit_place();
        let mut places: Vec<_> = (0..MAX_ARRIVING).map(|_| place(&relays).unwrap()).collect();
        assert!(place(&relays).is_none());
        places.pop();
        assert!(place(&relays).is_some());
        let late = id(&relays, &peer);
        relays.on_reservation_deadline(peer, late, &mut effects);
        assert!(place(&relays).is_none());
        assert_eq!(relays.refusal(), None);
    }
}
