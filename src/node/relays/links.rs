//! Links: the connections to relays.

use std::{collections::HashSet, sync::Arc, time::Duration};

use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use web_time::Instant;

use super::{EAGER, Relay, RelayLink, Relays, Reservation};
use crate::{
    core::{
        access, address,
        circuit::{EARLY_PROTOCOL, HOP_PROTOCOL},
        directory,
        liveness::{Hint, Liveness, Probe, Probing},
        loss::Loss,
        offer::OFFER_PROTOCOL,
        plan::AttemptId,
        profile,
    },
    datagrams::Lane,
    event::Cause,
    node::{
        effect::{Effect, Effects},
        network::DialFor,
        timers::Timer,
    },
    stream::SessionId,
};

/// The pause between two tries to replace a suspect link.
const REPLACE_AGAIN: Duration = Duration::from_millis(500);

/// How long a relay that was there before may take to answer a dial, at least, and in round trips. What
/// is sent to a relay while it is restarted is lost, and QUIC repeats it after 1 s, 3 s and 7 s. A new
/// dial comes sooner.
const ANSWER: (Duration, u32) = (Duration::from_millis(1500), 8);

impl Relays {
    /// Dials a relay, for its link or for another one in the place of a suspect link.
    pub(in crate::node) fn dial(&mut self, peer: PeerId, effects: &mut Effects) {
        let random = (self.random)();
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        let opts = DialOpts::peer_id(peer)
            .addresses(relay.addresses.clone())
            .condition(PeerCondition::Always)
            .build();
        let purpose = match relay.link {
            RelayLink::Up(..) => {
                relay.replacing = true;
                DialFor::Replacement(peer)
            }
            _ => {
                let dial = opts.connection_id();
                relay.link = RelayLink::Dialling(dial);
                if let Some(patience) = relay.patience(random) {
                    effects.push(Effect::After(patience, Timer::Unanswered(peer, dial)));
                }
                DialFor::Relay(peer)
            }
        };
        effects.push(Effect::Dial(purpose, Box::new(opts)));
    }

    /// Notes that a session waits for the link to `relay`, to dial its circuit.
    pub(in crate::node) fn wait_for(&mut self, relay: &PeerId, session: SessionId) {
        if let Some(relay) = self.get_mut(relay) {
            relay.waiting.push(session);
        }
    }

    /// Notes that a session no longer waits for the link to `relay`.
    pub(in crate::node) fn stop_waiting(&mut self, relay: &PeerId, session: SessionId) {
        if let Some(relay) = self.get_mut(relay) {
            relay.waiting.retain(|waiting| *waiting != session);
        }
    }

    pub(in crate::node) fn on_link_up(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        remote: &Multiaddr,
        purpose: Option<DialFor>,
        probing: Probing,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        let Some(addr) = address::with_peer(remote, peer) else {
            return;
        };
        if let Some(DialFor::Replacement(_)) = purpose {
            relay.replacing = false;
        }
        let replaced = match relay.link {
            RelayLink::Up(old, _) => Some(old),
            _ => None,
        };
        if let Some(old) = replaced {
            if purpose.is_none() || !relay.liveness.as_ref().is_some_and(Liveness::is_suspect) {
                // The link has answered meanwhile. What the relay has dialled is not ours to close.
                if purpose.is_some() {
                    effects.push(Effect::CloseConnection(conn));
                }
                return;
            }
            relay.forget_reservation(effects);
            effects.push(Effect::CloseConnection(old));
        }
        relay.link = RelayLink::Up(conn, addr);
        relay.forget_drain();
        relay.last_error = None;
        let now = Instant::now();
        relay.up_since = Some(now);
        relay.loss = Loss::default();
        relay.lane = None;
        relay.liveness = Some(Liveness::new(now, probing));
        relay.watch(peer, effects);
        relay.access.asked = false;
        relay.access.answered = false;
        relay.access.admitted = false;
        relay.directory.forget();
        if self.wants(&peer) {
            self.reserve(peer, effects);
        }
        self.seek_access(peer, effects);
        effects.push(Effect::RelayChanged(peer));
        self.call_waiting(peer, effects);
    }

    /// Lets the sessions dial that wait for the link to a relay, if it is ready for them.
    pub(super) fn call_waiting(&mut self, peer: PeerId, effects: &mut Effects) {
        if self.awaits_access(&peer) {
            return;
        }
        let relay = self.get_mut(&peer);
        if let Some(relay) = relay.filter(|relay| matches!(relay.link, RelayLink::Up(..))) {
            for session in std::mem::take(&mut relay.waiting) {
                effects.push(Effect::DialOver(session, peer));
            }
        }
    }

    /// The circuits that wait for the link to a relay fail.
    fn fail_waiting(&mut self, peer: PeerId, reason: &str, effects: &mut Effects) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        for session in std::mem::take(&mut relay.waiting) {
            let attempt = AttemptId::Circuit(peer);
            let reason = format!("the relay was not reached: {reason}");
            effects.push(Effect::Failed(
                session,
                attempt,
                Cause::RelayUnreachable,
                reason,
            ));
        }
    }

    pub(in crate::node) fn on_link_failed(
        &mut self,
        peer: PeerId,
        reason: &str,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        // Another connection may have become the link meanwhile.
        if !matches!(relay.link, RelayLink::Dialling(_)) {
            return;
        }
        relay.link = RelayLink::Down;
        relay.refused = None;
        self.fail_waiting(peer, reason, effects);
        effects.push(Effect::RelayGone(peer));
        // It may be elsewhere by now.
        self.doubt_sites(Some(peer), effects);
        self.rest(peer, reason, effects);
    }

    /// A dial of a relay that was there before has had long enough.
    pub(in crate::node) fn on_unanswered(
        &mut self,
        peer: PeerId,
        dial: ConnectionId,
        effects: &mut Effects,
    ) {
        let is_under_way = |relay: &Relay| relay.link == RelayLink::Dialling(dial);
        if self.get(&peer).is_some_and(is_under_way) {
            effects.push(Effect::GiveUp(DialFor::Relay(peer)));
            self.on_link_failed(peer, "the relay does not answer", effects);
        }
    }

    pub(in crate::node) fn on_link_closed(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        cause: Option<&str>,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        if !relay.is_linked_by(conn) {
            return;
        }
        relay.liveness = None;
        relay.lane = None;
        relay.link = RelayLink::Down;
        relay.forget_drain();
        relay.directory.forget();
        let reason = cause.unwrap_or("the relay closed the link");
        let is_reserved = relay.reservation != Reservation::None;
        self.fail_waiting(peer, reason, effects);
        if is_reserved {
            self.on_reservation_ended(peer, reason, effects);
        }
    }

    /// A connection to a relay has a lane. It carries no datagrams, and counts the link's packets.
    pub(in crate::node) fn on_lane(&mut self, peer: &PeerId, conn: ConnectionId, lane: Arc<Lane>) {
        lane.belong_to(None);
        if let Some(relay) = self.get_mut(peer).filter(|relay| relay.is_linked_by(conn)) {
            relay.lane = Some(lane);
        }
    }

    /// Whether the link to a relay loses much of what is sent.
    pub(in crate::node) fn is_lossy(&self, peer: &PeerId) -> bool {
        self.get(peer).is_some_and(|relay| relay.loss.is_high())
    }

    /// A link has answered a probe. There is no round-trip time if the relay does not speak the
    /// protocol.
    pub(in crate::node) fn on_answer(
        &mut self,
        peer: &PeerId,
        conn: ConnectionId,
        rtt: Option<Duration>,
        effects: &mut Effects,
    ) {
        let relay = self.get_mut(peer);
        let Some(relay) = relay.filter(|relay| relay.is_linked_by(conn)) else {
            return;
        };
        let Some(liveness) = &mut relay.liveness else {
            return;
        };
        match rtt {
            Some(rtt) => {
                let now = Instant::now();
                let _ = liveness.answered(now, rtt);
                relay.rtt = Some(rtt);
                effects.push(Effect::StatusChanged);
                if let Some(counts) = relay.lane.as_ref().and_then(|lane| lane.counts()) {
                    relay.loss.count(now, counts);
                }
                relay.watch(*peer, effects);
                self.keep_access(*peer, effects);
            }
            None => liveness.mute(),
        }
    }

    /// A deadline of the liveness of a link has come. `heard` counts what has come over the link's
    /// circuits.
    pub(in crate::node) fn on_link_deadline(
        &mut self,
        peer: PeerId,
        heard: u32,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        if !relay.alarm.rings(Instant::now()) {
            return;
        }
        let (RelayLink::Up(conn, _), Some(liveness)) = (&relay.link, &mut relay.liveness) else {
            return;
        };
        let conn = *conn;
        let verdict = liveness.tick(Instant::now(), heard);
        let suspect = liveness.is_suspect();
        if verdict.changed && suspect {
            effects.push(Effect::DoubtMapping);
        }
        if verdict.probe {
            effects.push(Effect::Probe(peer, conn));
        }
        if verdict.dead {
            // A connection over a dead path may take long to close.
            effects.push(Effect::CloseConnection(conn));
            self.on_link_closed(peer, conn, Some("the relay does not answer"), effects);
            return;
        }
        relay.watch(peer, effects);
        self.replace(peer, effects);
    }

    /// If a link is suspect, dials another one. The link stays as long as it may answer again, because
    /// QUIC follows a change of addresses.
    fn replace(&mut self, peer: PeerId, effects: &mut Effects) {
        let relay = self.get(&peer).filter(|relay| !relay.replacing);
        let suspect = |relay: &Relay| relay.liveness.as_ref().is_some_and(Liveness::is_suspect);
        if relay.is_some_and(suspect) {
            tracing::debug!(relay = %peer, "a link does not answer, and another one is dialled");
            self.dial(peer, effects);
        }
    }

    /// An address of this machine is gone. Links that cannot follow are suspect at once. Most of them
    /// had that address.
    pub(in crate::node) fn on_address_gone(&mut self, effects: &mut Effects) {
        for peer in self.order.clone() {
            let Some(relay) = self.get_mut(&peer) else {
                continue;
            };
            if let RelayLink::Up(conn, address) = &relay.link
                && !address.iter().any(|part| matches!(part, Protocol::Udp(_)))
                && let Some(liveness) = &mut relay.liveness
            {
                if liveness.doubt(Instant::now()).probe {
                    effects.push(Effect::Probe(peer, *conn));
                }
                relay.watch(peer, effects);
                self.replace(peer, effects);
            }
        }
    }

    /// Has the link to a relay probed as `how` says, if the link is up.
    pub(in crate::node) fn probe(&mut self, peer: PeerId, how: Probe, effects: &mut Effects) {
        if let Some(relay) = self.get_mut(&peer)
            && let Some(liveness) = &mut relay.liveness
        {
            how(liveness, Instant::now());
            relay.watch(peer, effects);
        }
    }

    /// The dial that was to replace a suspect link has failed.
    pub(in crate::node) fn on_replacement_failed(
        &mut self,
        peer: PeerId,
        reason: &str,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        tracing::debug!(relay = %peer, reason, "a suspect link is not replaced");
        relay.replacing = false;
        if let RelayLink::Up(..) = relay.link {
            relay.wake_at(Some(Instant::now() + REPLACE_AGAIN), peer, effects);
        }
    }

    /// This machine's network may have changed. Each link shows whether it is still there. If it may be
    /// another network, relays that have failed are tried again at once.
    pub(in crate::node) fn on_hint(&mut self, hint: Hint, effects: &mut Effects) {
        for peer in self.order.clone() {
            self.probe(peer, hint.probes(), effects);
            if let Some(relay) = self.get_mut(&peer).filter(|_| hint == Hint::Network) {
                relay.backoff.reset();
                // Another network does not change who is admitted.
                relay.resting &= relay.is_barred();
            }
        }
        if hint == Hint::Network {
            self.doubt_sites(None, effects);
        }
        self.pursue(effects);
    }

    /// A relay has said what it serves.
    pub(in crate::node) fn on_identified(
        &mut self,
        peer: PeerId,
        protocols: &HashSet<String>,
        effects: &mut Effects,
    ) {
        let (random, wishes) = (self.random, self.wishes);
        if let Some(relay) = self.get_mut(&peer) {
            let forwards = [EARLY_PROTOCOL, OFFER_PROTOCOL];
            relay.forwards = forwards.iter().all(|name| protocols.contains(*name));
            relay.access.named = protocols.contains(access::PROTOCOL);
            relay.directory.named = protocols.contains(directory::PROTOCOL);
            // The first reservation has waited for this, to know where the token goes.
            let is_new = !std::mem::replace(&mut relay.identified, true);
            let waits = is_new && wishes.tokens && relay.is_users();
            if let Reservation::Requested(id) = relay.reservation
                && waits
            {
                relay.ask(peer, id, wishes, effects);
            }
            relay.plan_renewal(peer, random(), effects);
            effects.push(Effect::RelayChanged(peer));
            effects.push(Effect::Settle);
            self.offer_directory(peer, effects);
            self.seek_access(peer, effects);
            self.call_waiting(peer, effects);
            if is_new {
                let names = protocols.contains(profile::PROTOCOL);
                self.ask_profile(peer, names, effects);
            }
        }
    }

    /// Returns the connection and the protocol by which `relay` is asked for a circuit, if its link
    /// is up.
    pub(in crate::node) fn circuit_link(
        &self,
        relay: &PeerId,
    ) -> Option<(ConnectionId, &'static str)> {
        let relay = self.get(relay)?;
        let RelayLink::Up(conn, _) = relay.link else {
            return None;
        };
        let forwards = relay.forwards;
        Some((
            conn,
            if forwards {
                EARLY_PROTOCOL
            } else {
                HOP_PROTOCOL
            },
        ))
    }

    /// Forgets the relays that are not `used` and that only tickets named, or relays that were about to
    /// end and whose place another one has taken. Returns their peer ids.
    pub(in crate::node) fn release(&mut self, used: &HashSet<PeerId>) -> Vec<PeerId> {
        let lasting = self.has_lasting();
        let foreign = |(peer, relay): (&PeerId, &Relay)| {
            let needless = relay.is_successor && lasting && !relay.is_pursued();
            ((!relay.configured || needless) && !used.contains(peer)).then_some(*peer)
        };
        let unused: Vec<_> = self.known.iter().filter_map(foreign).collect();
        for peer in &unused {
            self.known.remove(peer);
            self.order.retain(|known| known != peer);
        }
        unused
    }
}

impl Relay {
    /// How long the relay may take to answer a dial, if it was there a short time ago. `random` spreads
    /// the dials of peers that have lost it together.
    fn patience(&self, random: f64) -> Option<Duration> {
        let (least, round_trips) = ANSWER;
        // Only the pauses of configured relays count failures, so the others get all the time they need.
        let is_known = self.configured && self.backoff.failures() <= EAGER;
        let rtt = self.rtt.filter(|_| is_known)?;
        Some(least.max(rtt * round_trips).mul_f64(1.0 + random / 2.0))
    }

    /// Makes sure that the relays are told the time when the link's liveness wants it.
    fn watch(&mut self, peer: PeerId, effects: &mut Effects) {
        let wake = self.liveness.as_ref().and_then(Liveness::wake);
        self.wake_at(wake, peer, effects);
    }

    fn wake_at(&mut self, at: Option<Instant>, peer: PeerId, effects: &mut Effects) {
        if let Some(pause) = self.alarm.set(at, Instant::now()) {
            effects.push(Effect::After(pause, Timer::Link(peer)));
        }
    }
}

#[cfg(test)]
mod tests;
