//! Keeps links to relays and the reservations on them: renewed by libp2p while the link stands,
//! made anew when it breaks, moved to a standby when a relay stays away.

use std::{collections::HashSet, time::Duration};

use libp2p::{
    Multiaddr, PeerId, Stream as Substream, StreamProtocol,
    core::transport::ListenerId,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;

use super::{
    engine::{DialFor, Node, Timer, random},
    opening::Purpose,
    race::TOO_MANY,
    relays::{Link, Relays, Reservation},
    session::Session,
};
use crate::{
    backend::{offer::sealing, transports::LISTENS},
    circuit,
    core::{
        address,
        circuit::{CircuitError, EARLY_PROTOCOL, HOP_PROTOCOL},
        plan::AttemptId,
        race::Event,
    },
    error::{Error, ErrorKind},
    event::Cause,
    ticket::check_address,
};

/// How long the system may take to tell the first address that we listen at.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(1);

impl Node {
    /// Starts as many reservations as are wanted and missing.
    pub(super) fn pursue_reservations(&mut self) {
        if !self.config.reserve {
            return;
        }
        for peer in self.relays.to_pursue() {
            match self.relays.get(&peer).map(|r| r.link.clone()) {
                Some(Link::Up(..)) => self.reserve(peer),
                Some(Link::Down) => self.dial_relay(peer),
                _ => {}
            }
        }
    }

    fn dial_relay(&mut self, peer: PeerId) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let opts = DialOpts::peer_id(peer)
            .addresses(relay.addresses.clone())
            .condition(PeerCondition::Always)
            .build();
        relay.link = Link::Dialling(opts.connection_id());
        self.dial(DialFor::Relay(peer), opts);
    }

    /// Brings up the link to `relay` for the circuit of a session.
    pub(super) fn link_for(&mut self, session: u64, relay: PeerId) {
        let Some(entry) = self.relays.get(&relay) else {
            return;
        };
        let is_down = match entry.link {
            Link::Up(..) => return self.dial_over(session, relay),
            Link::Dialling(_) => false,
            Link::Down => true,
        };
        if is_down && !self.may_dial_relay(session, relay) {
            let attempt = AttemptId::Circuit(relay);
            return self.attempt_failed(session, attempt, Cause::Limit, TOO_MANY.to_owned());
        }
        if let Some(entry) = self.relays.get_mut(&relay) {
            entry.waiting.push(session);
        }
        if is_down {
            self.dial_relay(relay);
        }
    }

    /// Whether `session` may have us dial `relay`: always, where the user has named it.
    fn may_dial_relay(&mut self, session: u64, relay: PeerId) -> bool {
        let known = self.relays.get(&relay);
        let foreign = known.filter(|relay| !relay.configured);
        let count = foreign.map_or(0, |relay| relay.addresses.len());
        self.may_dial(session, count)
    }

    /// Brings up a link to offer over, whenever the circuit starts.
    pub(super) fn link_for_offers(&mut self, id: u64) {
        let session = self.sessions.get(&id);
        let session = session.filter(|session| sealing(&session.peer).is_some());
        let Some(targets) = session.and_then(|session| session.targets.as_ref()) else {
            return;
        };
        let mut links = targets.relays.iter().filter_map(|r| self.relays.get(r));
        if links.all(|relay| relay.link == Link::Down)
            && let Some(first) = targets.relays.first().copied()
            && self.may_dial_relay(id, first)
        {
            self.dial_relay(first);
        }
    }

    pub(super) fn on_link_up(&mut self, peer: PeerId, conn: ConnectionId, remote: &Multiaddr) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        if let Link::Up(..) = relay.link {
            return;
        }
        let Some(addr) = address::with_peer(remote, peer) else {
            return;
        };
        relay.link = Link::Up(conn, addr);
        relay.last_error = None;
        let waiting = std::mem::take(&mut relay.waiting);
        let reserve = self.config.reserve
            && relay.configured
            && relay.reservation == Reservation::None
            && self.relays.wants_more();
        if reserve {
            self.reserve(peer);
        }
        self.replan_over(peer);
        for session in waiting {
            self.dial_over(session, peer);
        }
    }

    pub(super) fn on_link_failed(&mut self, peer: PeerId, reason: &str) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        relay.link = Link::Down;
        let waiting = std::mem::take(&mut relay.waiting);
        for session in waiting {
            let reason = format!("relay not reached: {reason}");
            let attempt = AttemptId::Circuit(peer);
            self.attempt_failed(session, attempt, Cause::RelayUnreachable, reason);
        }
        // No offer goes over this one.
        for session in self.sessions_over(peer) {
            self.race(session, Event::Due);
        }
        self.rest(peer, reason);
    }

    /// Lets a configured relay that failed rest, and turns to a standby.
    fn rest(&mut self, peer: PeerId, reason: &str) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        relay.last_error = Some(reason.to_owned());
        if relay.configured && !relay.resting {
            relay.resting = true;
            let pause = relay.backoff.fail(random());
            self.timers.after(pause, Timer::RelayRested(peer));
        }
        self.pursue_reservations();
        if self.relays.all_failed() {
            let error = self.no_relay();
            self.answer_online(|| Err(Error::new(ErrorKind::NoRelay, error.clone())));
        }
    }

    pub(super) fn on_relay_rested(&mut self, peer: PeerId) {
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.resting = false;
        }
        self.pursue_reservations();
    }

    fn reserve(&mut self, peer: PeerId) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        let Link::Up(_, addr) = &relay.link else {
            return;
        };
        match self.swarm.listen_on(address::reservation(addr)) {
            Ok(listener) => {
                relay.reservation = Reservation::Requested(listener);
                relay.announced.clear();
                let timeout = self.config.relay_timeout;
                self.timers
                    .after(timeout, Timer::ReservationDeadline(listener));
            }
            Err(error) => self.rest(peer, &error.to_string()),
        }
    }

    pub(super) fn on_reservation_deadline(&mut self, listener: ListenerId) {
        let pending = self
            .relays
            .by_listener(listener)
            .is_some_and(|(_, relay)| relay.reservation == Reservation::Requested(listener));
        if pending {
            self.swarm.remove_listener(listener);
            self.on_reservation_ended(listener, Some("no reservation granted in time"));
        }
    }

    /// A listener has an address: of a reservation, or of our own.
    pub(super) fn on_listen_addr(&mut self, listener: ListenerId, addr: &Multiaddr) {
        let Some((_, relay)) = self.relays.by_listener(listener) else {
            self.settling |= self.is_alone();
            return;
        };
        // One that no ticket may hold would leave us without any.
        if let Some(announced) = Relays::announced(addr)
            && check_address(&announced).is_ok()
            && !relay.announced.contains(&announced)
        {
            relay.announced.push(announced);
        }
        relay.reservation = Reservation::Held(listener);
        relay.backoff.reset();
        let held = self.relays.held();
        self.shared.metrics.reservations.set(held as i64);
        self.settling = true;
    }

    /// libp2p has reported all addresses that came with a reservation.
    pub(super) fn on_settled(&mut self) {
        self.refresh_ticket();
        if self.is_online() {
            self.answer_online(|| Ok(()));
        }
    }

    pub(super) fn on_reservation_ended(&mut self, listener: ListenerId, reason: Option<&str>) {
        let Some((peer, relay)) = self.relays.by_listener(listener) else {
            return;
        };
        relay.reservation = Reservation::None;
        relay.announced.clear();
        let held = self.relays.held();
        self.shared.metrics.reservations.set(held as i64);
        self.rest(peer, reason.unwrap_or("the relay ended the reservation"));
    }

    pub(super) fn on_link_closed(&mut self, peer: PeerId, conn: ConnectionId, cause: Option<&str>) {
        let Some(relay) = self.relays.get_mut(&peer) else {
            return;
        };
        if !matches!(&relay.link, Link::Up(id, _) if *id == conn) {
            return;
        }
        relay.link = Link::Down;
        if let Some(listener) = relay.listener() {
            self.swarm.remove_listener(listener);
            self.on_reservation_ended(listener, Some(cause.unwrap_or("the relay closed the link")));
            self.refresh_ticket();
        }
    }

    /// A circuit is being dialled: opens the stream to its relay, if the link is up.
    pub(super) fn on_circuit_request(&mut self, request: circuit::Request<Substream>) {
        let circuit::Request { relay, reply } = request;
        let known = self.relays.get(&relay).map(|r| (&r.link, r.forwards));
        let Some((Link::Up(conn, _), forwards)) = known else {
            let _ = reply.send(Err(CircuitError::NoLink));
            return;
        };
        let name = if forwards {
            EARLY_PROTOCOL
        } else {
            HOP_PROTOCOL
        };
        let protocol = StreamProtocol::new(name);
        let streams = &mut self.swarm.behaviour_mut().streams;
        let open = streams.open(relay, *conn, protocol);
        self.opening.insert(open, Purpose::Circuit(reply));
    }

    /// A relay is there, or can do more than was known: tells the sessions that it leads to.
    pub(super) fn replan_over(&mut self, relay: PeerId) {
        for id in self.sessions_over(relay) {
            self.send_all_early(id);
            self.replan(id);
        }
    }

    fn sessions_over(&self, relay: PeerId) -> Vec<u64> {
        let over = |session: &Session| {
            let targets = session.targets.as_ref();
            targets.is_some_and(|targets| targets.relays.contains(&relay))
        };
        let sessions = self.sessions.iter().filter(|(_, session)| over(session));
        sessions.map(|(id, _)| *id).collect()
    }

    /// Closes links that only ended sessions needed. While a close is being told, a link may be
    /// what carries it.
    pub(super) fn release_relays(&mut self) {
        if !self.farewells.is_empty() {
            return;
        }
        let used: HashSet<PeerId> = self
            .sessions
            .values()
            .filter_map(|session| session.targets.as_ref())
            .flat_map(|targets| targets.relays.iter().copied())
            .collect();
        for peer in self.relays.foreign() {
            if !used.contains(&peer) {
                self.relays.forget(&peer);
                // Not being connected is what is wanted.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
    }

    pub(super) fn wait_online(&mut self, reply: oneshot::Sender<Result<(), Error>>) {
        if !self.settling && self.is_online() {
            let _ = reply.send(Ok(()));
            return;
        }
        self.online.push(reply);
        if self.is_alone() {
            self.timers.after(LISTEN_TIMEOUT, Timer::OnlineDeadline);
        } else if self.relays.all_failed() {
            let error = self.no_relay();
            self.answer_online(|| Err(Error::new(ErrorKind::NoRelay, error.clone())));
        } else {
            let timeout = self.config.relay_timeout;
            self.timers.after(timeout, Timer::OnlineDeadline);
        }
    }

    /// No relay is to be waited for.
    fn is_alone(&self) -> bool {
        LISTENS && self.config.relays.is_empty()
    }

    /// Whether the ticket leads to us.
    fn is_online(&self) -> bool {
        self.relays.held() > 0 || self.is_alone() && !self.direct_addresses().is_empty()
    }

    pub(super) fn on_online_deadline(&mut self) {
        if self.is_alone() {
            self.answer_online(|| Ok(()));
            return;
        }
        let error = self.no_relay();
        self.answer_online(|| Err(Error::new(ErrorKind::NoRelay, error.clone())));
    }

    fn answer_online(&mut self, answer: impl Fn() -> Result<(), Error>) {
        for reply in std::mem::take(&mut self.online) {
            let _ = reply.send(answer());
        }
    }

    fn no_relay(&self) -> String {
        let mut message = "no relay granted a reservation".to_owned();
        for error in self.relays.errors() {
            message.push_str("; ");
            message.push_str(&error);
        }
        message
    }
}
