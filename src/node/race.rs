//! Does what the race to each peer says: dials, takes dials back, answers those who wait.

use std::collections::HashMap;

use libp2p::{
    Multiaddr, PeerId, Stream as Substream, StreamProtocol,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use web_time::Instant;

use super::{
    causes,
    connect::Conns,
    engine::{DialFor, Node, Timer, random},
    opening::Purpose,
    relays::Link,
    session::{Conn, Session, Targets, Waiting},
    streams::OpenError,
};
use crate::{
    backend::{offer::Sealing, stock::PUNCHES},
    core::{
        address,
        birthday::Guessing,
        offer::{Content, OFFER_PROTOCOL},
        plan::{self, AttemptId, UPGRADES},
        race::{Action, Event},
    },
    error::{Error, ErrorKind},
    event::{Attempt, Cause, Outcome, PathEvent, Strategy},
};

/// Why an address that a ticket names is not dialled.
pub(super) const TOO_MANY: &str = "the peer's tickets have made us dial too many addresses";

impl Node {
    /// Tells a session's race what happened, and does what it says.
    pub(super) fn race(&mut self, id: u64, event: Event) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if event == Event::Tick {
            session.wake = None;
        }
        let now = session.started.elapsed();
        for action in session.race.handle(now, event, random()) {
            self.act(id, action);
        }
        // What was done may have told the race something, or ended the session.
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let wake = session.race.wake();
        if let Some(at) = wake
            && wake != session.wake
        {
            self.timers.after(at.saturating_sub(now), Timer::Race(id));
        }
        session.wake = wake;
        if session.race.circuits() == 0
            && let needed = session.active.is_none()
            && let Some(rest) = self.spares.leave(id, Instant::now(), needed)
        {
            self.timers.after(rest, Timer::Spare);
        }
    }

    /// Tells a session's race what is known now.
    pub(super) fn replan(&mut self, id: u64) {
        if let Some(session) = self.sessions.get(&id) {
            let mut known = session.known(&self.relays);
            let can_wait = self.rules.spares_circuits() && session.expects_offer(&self.relays);
            if can_wait && !known.circuit && !session.race.seeks_circuit() {
                known.spared = self.spares.enter(id, Instant::now());
            }
            let plan = plan::plan(&known, &self.rules);
            self.race(id, Event::Plan(plan));
        }
    }

    /// Makes circuits that had to wait.
    pub(super) fn start_spares(&mut self) {
        let waits = |sessions: &HashMap<u64, Session>, id| {
            let session = sessions.get(&id);
            session.is_some_and(|session| session.race.awaits_circuit())
        };
        let now = Instant::now();
        while let Some(id) = self.spares.call(now, |id| waits(&self.sessions, id)) {
            self.race(id, Event::Due);
        }
    }

    pub(super) fn attempt_failed(
        &mut self,
        id: u64,
        attempt: AttemptId,
        cause: Cause,
        reason: String,
    ) {
        let offered = self.sessions.get_mut(&id).filter(|s| {
            attempt == AttemptId::Ice && cause == Cause::Signalling && s.offering && !s.unoffered
        });
        if let Some(session) = offered {
            // An offer that did not arrive says nothing of what a circuit can do.
            session.unoffered = true;
            self.race(id, Event::Deferred(attempt));
            self.replan(id);
        } else {
            self.race(id, Event::Failed(attempt, cause, reason));
        }
    }

    /// What the guessing of ports has told so far.
    pub(super) fn take_guesses(&mut self) {
        while let Ok((peer, guessing)) = self.guesses.try_recv() {
            self.on_guessing(peer, guessing);
        }
    }

    pub(super) fn on_guessing(&mut self, peer: PeerId, guessing: Guessing) {
        // A page guesses none.
        let known = self.by_peer.get(&peer).copied();
        let Some(id) = known.filter(|_| self.net.rtc.nat().is_some()) else {
            return;
        };
        let (attempt, strategy) = (AttemptId::Ice, Strategy::Birthday);
        self.race(
            id,
            match guessing {
                Guessing::Began => Event::Joined(attempt, strategy),
                Guessing::Failed(cause, reason) => Event::Left(attempt, strategy, cause, reason),
            },
        );
    }

    /// Ends those strategies of ICE that cannot work from this end of the connection.
    pub(super) fn end_hopeless(&mut self, id: u64) {
        let Some(nat) = self.net.rtc.nat() else {
            return;
        };
        let hopeless = nat.borrow().hopeless.clone();
        for why in hopeless {
            let left = Event::Left(AttemptId::Ice, why.strategy, why.cause, why.reason);
            self.race(id, left);
        }
    }

    fn act(&mut self, id: u64, action: Action) {
        match action {
            Action::Start(AttemptId::Circuit(relay), _) => self.start_circuit(id, relay),
            Action::Start(AttemptId::Direct, _) => self.start_direct(id),
            Action::Start(AttemptId::Ice, way) => {
                self.start_ice(id, way);
                self.end_hopeless(id);
            }
            Action::Cancel(attempt) => self.cancel(id, attempt),
            Action::Began(strategy) => self.shared.metrics.attempt_started(strategy),
            Action::Ended(attempt) => self.ended(id, attempt),
            Action::Accept => self.accept(id),
            Action::GiveUp { connects, attempts } => self.give_up(id, connects, &attempts),
        }
    }

    /// Gets a circuit, over a link to the relay that may have to come up first.
    fn start_circuit(&mut self, id: u64, relay: PeerId) {
        if self.has_room(id) {
            self.link_for(id, relay);
        } else {
            let most = self.config.max_circuits;
            let reason = format!("max_circuits: {most} are open");
            self.attempt_failed(id, AttemptId::Circuit(relay), Cause::Limit, reason);
        }
    }

    /// The relay is there: asks it for the circuit.
    pub(super) fn dial_over(&mut self, id: u64, relay: PeerId) {
        let Some(Link::Up(_, addr)) = self.relays.get(&relay).map(|r| r.link.clone()) else {
            return;
        };
        let attempt = AttemptId::Circuit(relay);
        self.dial_peer(id, attempt, |peer| vec![address::circuit(&addr, peer)]);
    }

    fn start_direct(&mut self, id: u64) {
        let targets = self.sessions.get(&id).and_then(|s| s.targets.as_ref());
        let Some(addresses) = targets.map(|targets| targets.direct.clone()) else {
            return;
        };
        if self.may_dial(id, addresses.len()) {
            self.dial_peer(id, AttemptId::Direct, |_| addresses);
        } else {
            self.attempt_failed(id, AttemptId::Direct, Cause::Limit, TOO_MANY.to_owned());
        }
    }

    /// Whether a session's tickets may make us dial `count` addresses now.
    pub(super) fn may_dial(&mut self, id: u64, count: usize) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let passed = session.started.elapsed();
        let mut targets = session.targets.as_mut();
        targets
            .as_mut()
            .is_none_or(|targets| targets.may_dial(passed, count))
    }

    fn start_ice(&mut self, id: u64, way: usize) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.offering = false;
        if let Some(relay) = session.circuit().cloned() {
            self.dial_ice(id, way, &relay);
        } else if let Some((relay, link, sealing)) = session.offer_relay(&self.relays)
            && let Link::Up(conn, addr) = link.link.clone()
        {
            session.offering = true;
            let protocol = StreamProtocol::new(OFFER_PROTOCOL);
            let streams = &mut self.swarm.behaviour_mut().streams;
            let open = streams.open(relay, conn, protocol);
            let purpose = Purpose::Offer {
                session: id,
                way,
                relay: addr,
                sealing,
            };
            self.opening.insert(open, purpose);
        } else {
            let reason = "no circuit to signal over".to_owned();
            self.attempt_failed(id, AttemptId::Ice, Cause::Signalling, reason);
        }
    }

    fn dial_ice(&mut self, id: u64, way: usize, relay: &Multiaddr) {
        if let Some(upgrade) = UPGRADES.get(way) {
            self.dial_peer(id, AttemptId::Ice, |peer| {
                vec![upgrade.address(relay, peer)]
            });
        }
    }

    /// The stream to the relay is there, over which ICE is to be signalled.
    pub(super) fn on_offer_stream(
        &mut self,
        id: u64,
        way: usize,
        relay: &Multiaddr,
        sealing: Sealing,
        result: Result<Substream, OpenError>,
    ) {
        let session = self.sessions.get(&id);
        let Some(session) = session.filter(|s| s.race.is_running(AttemptId::Ice)) else {
            return;
        };
        let (peer, incarnation) = (session.peer, session.incarnation());
        match self.seal(&peer, incarnation, Content::Signalling, result) {
            Some(sealed) => {
                let rtc = &mut self.swarm.behaviour_mut().rtc;
                rtc.signal_over(peer, Box::pin(sealed), sealing);
                self.dial_ice(id, way, relay);
            }
            None => {
                let reason = "the relay passes no offer on".to_owned();
                self.attempt_failed(id, AttemptId::Ice, Cause::Signalling, reason);
            }
        }
    }

    /// Whether another circuit may be made: within the limit, or because one that does not carry
    /// its session's traffic makes room for a session without any path.
    fn has_room(&mut self, id: u64) -> bool {
        let ours = |session: &Session| {
            let up = session.conns.values().filter(|conn| conn.is_our_circuit());
            up.count() + session.race.circuits()
        };
        // The one that is about to be made counts already.
        if self.sessions.values().map(ours).sum::<usize>() <= self.config.max_circuits {
            return true;
        }
        if self.sessions.get(&id).is_none_or(|s| s.active.is_some()) {
            return false;
        }
        let spare = self.sessions.iter().find_map(|(owner, session)| {
            let spare = |(conn, entry): &(&ConnectionId, &Conn)| {
                entry.is_our_circuit() && session.active.is_some_and(|active| active != **conn)
            };
            let (conn, _) = session.conns.iter().find(spare)?;
            Some((*owner, *conn))
        });
        let Some((owner, conn)) = spare else {
            return false;
        };
        self.swarm.close_connection(conn);
        if let Some(session) = self.sessions.get_mut(&owner) {
            session.conns.remove(&conn);
        }
        self.replan(owner);
        true
    }

    fn dial_peer(
        &mut self,
        id: u64,
        attempt: AttemptId,
        addresses: impl FnOnce(PeerId) -> Vec<Multiaddr>,
    ) {
        if let Some(session) = self.sessions.get(&id) {
            let opts = DialOpts::peer_id(session.peer)
                .addresses(addresses(session.peer))
                .condition(PeerCondition::Always)
                .build();
            self.dial(DialFor::Attempt(id, attempt), opts);
        }
    }

    pub(super) fn dial(&mut self, purpose: DialFor, opts: DialOpts) {
        let conn = opts.connection_id();
        let recorder = self.recorder.clone();
        let (result, dialling) = recorder.record(|| self.swarm.dial(opts));
        self.dials.insert(conn, (purpose, dialling));
        if let Err(error) = result {
            self.on_dial_error(conn, &error);
        }
    }

    /// libp2p dials by itself: where there is a circuit already, to punch a hole (DCUtR).
    pub(super) fn on_dialling(&mut self, peer: PeerId, conn: ConnectionId) {
        let Some(&id) = self.by_peer.get(&peer).filter(|_| PUNCHES) else {
            return;
        };
        let wanted = |s: &&Session| s.circuit().is_some() && !s.is_direct();
        if let Some(session) = self.sessions.get(&id).filter(wanted) {
            self.punches.insert(conn, (id, session.started.elapsed()));
            self.shared.metrics.attempt_started(Strategy::Stun);
        }
    }

    /// Whether a hole was punched for this direct connection, which is an attempt that succeeded.
    /// Both peers dial at the same time, so it may be the other's dial that comes through, even
    /// before ours has begun.
    pub(super) fn punched(&mut self, id: u64, conn: ConnectionId, dialled: bool) -> bool {
        let Some(session) = self.sessions.get(&id).filter(|_| PUNCHES) else {
            return false;
        };
        let stock = session.circuit().is_some() && session.resumable != Some(true);
        let ours = self.punches.iter().find(|(_, (owner, _))| *owner == id);
        let ours = ours.map(|(conn, _)| *conn);
        let punch = match ours {
            _ if self.punches.contains_key(&conn) => conn,
            Some(ours) if !dialled => ours,
            None if !dialled && stock => {
                self.punches.insert(conn, (id, session.started.elapsed()));
                self.shared.metrics.attempt_started(Strategy::Stun);
                conn
            }
            _ => return false,
        };
        self.punch_ended(punch, None);
        true
    }

    fn punch_ended(&mut self, conn: ConnectionId, failure: Option<(Cause, String)>) {
        let Some((id, started)) = self.punches.remove(&conn).filter(|_| PUNCHES) else {
            return;
        };
        let ended = self.sessions.get(&id).map(|s| s.started.elapsed());
        let (cause, reason) = failure.unzip();
        let attempt = Attempt {
            strategy: Strategy::Stun,
            outcome: match cause {
                None => Outcome::Succeeded,
                Some(_) => Outcome::Failed,
            },
            started,
            ended: ended.unwrap_or(started),
            cause,
            reason,
        };
        self.ended(id, attempt);
    }

    pub(super) fn on_dial_error(&mut self, conn: ConnectionId, error: &DialError) {
        self.punch_ended(conn, Some(causes::explain(error)));
        let Some((purpose, _)) = self.dials.remove(&conn) else {
            return;
        };
        let (cause, reason) = causes::explain(error);
        match purpose {
            DialFor::Relay(relay) => self.on_link_failed(relay, &reason),
            DialFor::Attempt(id, attempt) => self.attempt_failed(id, attempt, cause, reason),
        }
    }

    fn cancel(&mut self, id: u64, attempt: AttemptId) {
        self.dials
            .retain(|_, (purpose, _)| *purpose != DialFor::Attempt(id, attempt));
        if let AttemptId::Circuit(relay) = attempt
            && let Some(relay) = self.relays.get_mut(&relay)
        {
            relay.waiting.retain(|session| *session != id);
        }
        // ICE that is up, but has not told its pair.
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        if attempt == AttemptId::Ice {
            self.swarm.behaviour_mut().rtc.retract(&session.peer);
        }
        for (conn, entry) in &session.conns {
            if entry.attempt == Some(attempt) && entry.path.is_none() {
                self.swarm.close_connection(*conn);
            }
        }
    }

    fn ended(&mut self, id: u64, attempt: Attempt) {
        let metrics = &self.shared.metrics;
        match (attempt.outcome, attempt.cause) {
            (Outcome::Succeeded, _) => {
                let took = attempt.ended.saturating_sub(attempt.started);
                metrics.attempt_succeeded(attempt.strategy, took);
            }
            (_, cause) => {
                metrics.attempt_failed(attempt.strategy, cause.unwrap_or(Cause::Transport));
            }
        }
        if let Some(session) = self.sessions.get(&id) {
            session.state.emit(PathEvent::Attempt(attempt));
        }
    }

    /// Everybody who waits gets the path in use.
    fn accept(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for waiting in std::mem::take(&mut session.waiting) {
            if let Waiting::Connect(reply) = waiting {
                let _ = reply.send(self.handle(id));
            }
        }
    }

    fn give_up(&mut self, id: u64, connects: usize, attempts: &[Attempt]) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let wrong = |attempt: &Attempt| attempt.cause == Some(Cause::WrongPeer);
        let full = |attempt: &Attempt| attempt.cause == Some(Cause::Limit);
        let kind = if attempts.iter().any(wrong) {
            ErrorKind::WrongPeer
        } else if !attempts.is_empty() && attempts.iter().all(full) {
            ErrorKind::LimitExceeded
        } else {
            ErrorKind::Unreachable
        };
        let nowhere = |t: &Targets| t.relays.is_empty() && t.direct.is_empty();
        let message = if session.targets.as_ref().is_some_and(nowhere) {
            "the ticket holds no relay and no address that the configuration lets us dial"
        } else {
            "no path to the peer came up"
        };
        let connects = connects.min(session.waiting.len());
        for waiting in session.waiting.drain(..connects) {
            let error = Error::new(kind, message).with_attempts(attempts.to_vec());
            match waiting {
                Waiting::Connect(reply) => _ = reply.send(Err(error)),
                Waiting::Stream(stream) => {
                    if let Some(pump) = session.pumps.get(&stream) {
                        pump.handle.fail(error);
                    }
                }
            }
        }
        self.end_if_useless(id, kind);
    }

    /// Somebody who waited for a path to `peer` does so no longer.
    pub(super) fn abandon(&mut self, peer: PeerId) {
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        while let Some(session) = self.sessions.get_mut(&id)
            && let Some(place) = session.waiting.iter().position(Waiting::is_abandoned)
        {
            session.waiting.remove(place);
            self.race(id, Event::Abandoned(place));
        }
        // Early data keeps a session that has no path.
        if self.sessions.get(&id).is_some_and(|s| s.pumps.is_empty()) {
            self.end_if_useless(id, ErrorKind::Aborted);
        }
    }

    /// Ends a session that has never had a path and that nobody waits for.
    fn end_if_useless(&mut self, id: u64, kind: ErrorKind) {
        let useless = self.sessions.get(&id).is_some_and(|session| {
            session.waiting.is_empty() && session.conns.is_empty() && session.lost_since.is_none()
        });
        if useless {
            self.end_session(id, kind, Conns::Close);
        }
    }
}
