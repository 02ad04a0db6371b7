//! The attempts to reach the peer. A session tells its race what happened, and pushes effects for
//! the actions that the race returns.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, Stream as Substream, StreamProtocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;

use super::{Session, targets::Targets};
use crate::{
    backend::behaviours::PUNCHES,
    connection::Connection,
    core::{
        address,
        offer::{Content, OFFER_PROTOCOL},
        plan::{self, AttemptId, Known, Late},
        race::{Race, RaceAction, RaceEvent},
        resume::StreamId,
    },
    error::{Error, ErrorKind},
    event::{Attempt, Cause, Outcome, PathKind, Strategy},
    node::{
        effect::{Conns, Effect},
        network::{DialFor, Purpose},
        relays::{RelayLink, Relays},
        round::Round,
        timers::{Alarm, Deadline, Timer},
    },
    offer::Sealed,
    report::Hopeless,
    swarm::substreams::OpenError,
    webrtc::backend::SpareTurn,
};

/// The reason of an attempt that fails because tickets named too many addresses.
pub(in crate::node) const TOO_MANY: &str =
    "the peer's tickets have made us dial too many addresses";

/// A caller or a stream that waits until the race brings a path.
pub(in crate::node) enum Waiting {
    Connect(oneshot::Sender<Result<Connection, Error>>),
    /// A stream that was opened before there was a path. It fails if none comes.
    Stream(StreamId),
}

impl Waiting {
    /// Whether the caller has gone. A stream never counts as gone, because its pump ends it.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Connect(reply) => reply.is_closed(),
            Self::Stream(_) => false,
        }
    }
}

/// The race of a session, and what belongs to its attempts.
pub(super) struct Attempts {
    race: Race,
    /// When the race is told the time next.
    alarm: Alarm,
    /// ICE was started with a sealed offer and not over a circuit.
    offering: bool,
    /// A sealed offer did not reach the peer, so ICE waits for a circuit.
    pub(super) unoffered: bool,
    /// ICE was tried beside the path over TURN.
    guessed: bool,
    /// The callers and streams that wait for the race's answer, oldest first.
    waiting: VecDeque<Waiting>,
    /// The dials that libp2p makes by itself to punch a hole, and when each began.
    punches: HashMap<ConnectionId, Duration>,
}

impl Attempts {
    pub(super) fn new(acceptance: Duration) -> Self {
        Self {
            race: Race::new(acceptance),
            alarm: Alarm::default(),
            offering: false,
            unoffered: false,
            guessed: false,
            waiting: VecDeque::new(),
            punches: HashMap::new(),
        }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns how many circuits are being made.
    pub(super) fn circuits(&self) -> usize {
        self.race.circuits()
    }
}

impl Session {
    /// Makes `waiting` wait for a path, and seeks one if there is none.
    pub(in crate::node) fn pursue(&mut self, waiting: Waiting, round: &mut Round<'_>) {
        self.attempts.waiting.push_back(waiting);
        let deadline = self.age(round) + round.config.connect_timeout;
        self.tell(RaceEvent::Connect { deadline }, round);
        round.effects.replan(self.id);
    }

    /// The race has asked to be told the time.
    pub(super) fn on_race_deadline(&mut self, round: &mut Round<'_>) {
        if self.attempts.alarm.rings(round.now) {
            self.tell(RaceEvent::Tick, round);
        }
    }

    /// Tells the race what happened, and does what it answers.
    pub(in crate::node) fn tell(&mut self, event: RaceEvent, round: &mut Round<'_>) {
        let now = self.age(round);
        let random = (round.random)();
        for action in self.attempts.race.handle(now, event, random) {
            self.act(action, round);
        }
        let wake = self.attempts.race.wake().map(|at| self.started + at);
        if let Some(pause) = self.attempts.alarm.set(wake, round.now) {
            self.wake_after(pause, Deadline::Race, round);
        }
        if self.attempts.circuits() == 0
            && let needed = self.paths.active().is_none()
            && let Some(rest) = round.spares.leave(self.id, round.now, needed)
        {
            round.after(rest, Timer::Spare);
        }
    }

    fn act(&mut self, action: RaceAction, round: &mut Round<'_>) {
        match action {
            RaceAction::Start(attempt, turn) => round.push(Effect::Start(self.id, attempt, turn)),
            RaceAction::Cancel(attempt) => self.cancel(attempt, round),
            RaceAction::Began(strategy) => self.began(strategy, round),
            RaceAction::Ended(attempt) => self.record(attempt, round),
            RaceAction::Accept => self.accept(round),
            RaceAction::GiveUp { connects, attempts } => self.give_up(connects, &attempts, round),
        }
    }

    /// Gives the race a new plan, made from what is known now.
    pub(in crate::node) fn replan(&mut self, round: &mut Round<'_>) {
        let mut known = self.known(round.relays);
        let can_wait = round.rules.spares_circuits()
            && !self.rest.hurries()
            && self.expects_offer(round.relays);
        if can_wait && !known.circuit && !self.attempts.race.seeks_circuit() {
            known.spared = round.spares.enter(self.id, round.now);
        }
        let plan = plan::plan(&known, round.rules);
        self.tell(RaceEvent::Plan(plan), round);
    }

    /// Collects what the plan is made from.
    pub(super) fn known(&self, relays: &Relays) -> Known {
        let mut known = Known {
            circuit: self.circuit().is_some(),
            ice: self.attempts.race.is_running(AttemptId::Ice),
            rests: self.rest.is_resting() && self.paths.promised() == Some(PathKind::Direct),
            best: self.paths.promised(),
            path: self.paths.sound_path().map(|path| path.kind),
            ..Known::default()
        };
        if let Some(targets) = &self.targets {
            known.ours = true;
            known.offer = self.offer_relay(relays).is_some();
            known.addresses = !targets.direct().is_empty();
            known.seeks = targets.seeks();
            let is_up = |relay: &PeerId| {
                let link = relays.get(relay).map(|r| &r.link);
                matches!(link, Some(RelayLink::Up(..)))
            };
            let (up, others): (Vec<_>, Vec<_>) = targets.relays().iter().partition(|r| is_up(r));
            known.relays = [up, others].concat();
            // The streams of a stock peer cannot move.
            if self.streams.are_resumable() {
                let relays = known.relays.iter().copied();
                known.rivals = relays.filter(|relay| self.paths.is_rival(relay)).collect();
            }
        }
        known
    }

    /// Whether a circuit of the session waits for its turn.
    pub(in crate::node) fn awaits_circuit(&self) -> bool {
        self.attempts.race.awaits_circuit()
    }

    pub(in crate::node) fn attempt_failed(
        &mut self,
        attempt: AttemptId,
        cause: Cause,
        reason: String,
        round: &mut Round<'_>,
    ) {
        let signalling = attempt == AttemptId::Ice && cause == Cause::Signalling;
        if signalling && self.attempts.offering && !self.attempts.unoffered {
            // ICE may still succeed over a circuit, although the offer did not arrive.
            self.attempts.unoffered = true;
            self.tell(RaceEvent::Deferred(attempt), round);
            round.effects.replan(self.id);
        } else {
            self.tell(RaceEvent::Failed(attempt, cause, reason), round);
        }
    }

    /// A strategy that joins ICE by itself has reported something.
    pub(in crate::node) fn on_late(&mut self, late: Late, round: &mut Round<'_>) {
        let attempt = AttemptId::Ice;
        let event = match late {
            Late::Began(strategy) => RaceEvent::Joined(attempt, strategy),
            Late::Failed(strategy, cause, why) => RaceEvent::Left(attempt, strategy, cause, why),
        };
        self.tell(event, round);
    }

    /// Ends the strategies of ICE that cannot work from this end of the connection.
    pub(in crate::node) fn end_hopeless(&mut self, hopeless: &[Hopeless], round: &mut Round<'_>) {
        for why in hopeless {
            let (cause, reason) = (why.cause, why.reason.clone());
            let left = RaceEvent::Left(AttemptId::Ice, why.strategy, cause, reason);
            self.tell(left, round);
        }
    }

    /// Dials the peer for `attempt`.
    pub(in crate::node) fn dial(
        &self,
        attempt: AttemptId,
        addresses: Vec<Multiaddr>,
        round: &mut Round<'_>,
    ) {
        let opts = DialOpts::peer_id(self.peer)
            .addresses(addresses)
            .condition(PeerCondition::Always)
            .build();
        let purpose = DialFor::Attempt(self.id, attempt);
        round.push(Effect::Dial(purpose, Box::new(opts)));
    }

    pub(in crate::node) fn start_direct(&mut self, round: &mut Round<'_>) {
        let Some(addresses) = self.targets.as_ref().map(|t| t.direct().to_vec()) else {
            return;
        };
        if self.may_dial(addresses.len(), round) {
            self.dial(AttemptId::Direct, addresses, round);
        } else {
            let reason = TOO_MANY.to_owned();
            self.attempt_failed(AttemptId::Direct, Cause::Limit, reason, round);
        }
    }

    /// Starts ICE, in a page with `turn` or without it. It is signalled over the circuit or with a sealed
    /// offer.
    pub(in crate::node) fn start_ice(&mut self, turn: bool, round: &mut Round<'_>) {
        self.attempts.offering = false;
        let has_turn = self.paths.promised() == Some(PathKind::Turn);
        let may_guess = !std::mem::replace(&mut self.attempts.guessed, has_turn);
        let late = !turn && round.rules.turn && round.rules.anew.is_some();
        let spare = match has_turn {
            true => Some(SpareTurn::Never { may_guess }),
            false => late.then_some(SpareTurn::Late),
        };
        round.push(Effect::SpareTurn(self.peer, spare));
        if let Some(relay) = self.circuit().cloned() {
            self.dial_ice(&relay, round);
        } else if let Some(via) = self.offer_relay(round.relays) {
            self.attempts.offering = true;
            let purpose = Purpose::Offer {
                session: self.id,
                relay: via.address,
            };
            round.push(Effect::Open {
                peer: via.relay,
                connection: via.connection,
                protocol: StreamProtocol::new(OFFER_PROTOCOL),
                purpose,
            });
        } else {
            let reason = "no circuit to signal over".to_owned();
            self.attempt_failed(AttemptId::Ice, Cause::Signalling, reason, round);
        }
    }

    fn dial_ice(&self, relay: &Multiaddr, round: &mut Round<'_>) {
        let address = address::webrtc(relay, self.peer);
        self.dial(AttemptId::Ice, vec![address], round);
    }

    /// The request for the substream to the relay, which is to signal ICE, has been answered.
    pub(in crate::node) fn on_offer_stream(
        &mut self,
        relay: &Multiaddr,
        result: Result<Substream, OpenError>,
        round: &mut Round<'_>,
    ) {
        if !self.attempts.race.is_running(AttemptId::Ice) {
            return;
        }
        match self.seal(Content::Signalling, result, round) {
            Some(sealed) => {
                round.push(Effect::SignalOver(self.peer, Box::pin(sealed)));
                self.dial_ice(relay, round);
            }
            None => {
                let reason = "the relay did not take the offer".to_owned();
                self.attempt_failed(AttemptId::Ice, Cause::Signalling, reason, round);
            }
        }
    }

    /// Returns a stream to the peer through its relay. What is written to it is sealed.
    pub(super) fn seal(
        &self,
        content: Content,
        stream: Result<Substream, OpenError>,
        round: &Round<'_>,
    ) -> Option<Sealed<Substream>> {
        let (sealer, incarnation) = (round.sealer?, self.incarnation()?);
        sealer
            .offer(&self.peer, incarnation, content, stream.ok()?)
            .ok()
    }

    fn cancel(&self, attempt: AttemptId, round: &mut Round<'_>) {
        round.push(Effect::Cancel(self.id, self.peer, attempt));
        // These are connections of ICE that are up but have not reported their pair.
        for conn in self.paths.unknown_of(attempt) {
            round.push(Effect::CloseConnection(conn));
        }
    }

    /// Gives the connection to every caller that waits.
    fn accept(&mut self, round: &Round<'_>) {
        for waiting in std::mem::take(&mut self.attempts.waiting) {
            if let Waiting::Connect(reply) = waiting {
                let _ = reply.send(self.handle(round));
            }
        }
    }

    /// Gives an error to the first `connects` of those that wait.
    fn give_up(&mut self, connects: usize, attempts: &[Attempt], round: &mut Round<'_>) {
        let wrong = |attempt: &Attempt| attempt.cause == Some(Cause::WrongPeer);
        // Without a circuit, ICE may have nothing to be signalled over.
        let follows = |attempt: &Attempt| attempt.cause == Some(Cause::Signalling);
        let kind = if attempts.iter().any(wrong) {
            ErrorKind::WrongPeer
        } else {
            let refused = attempts.iter().find_map(refusal);
            let only = |attempt| refusal(attempt).is_some() || follows(attempt);
            let refused = refused.filter(|_| attempts.iter().all(only));
            refused.unwrap_or(ErrorKind::Unreachable)
        };
        let message = if self.targets.as_ref().is_some_and(Targets::is_empty) {
            "the ticket holds no relay, and no address that may and can be dialled from here"
        } else {
            "no path to the peer came up"
        };
        let connects = connects.min(self.attempts.waiting.len());
        for waiting in self.attempts.waiting.drain(..connects) {
            let error = Error::new(kind, message).with_attempts(attempts.to_vec());
            match waiting {
                Waiting::Connect(reply) => _ = reply.send(Err(error)),
                Waiting::Stream(stream) => self.streams.fail(stream, error),
            }
        }
        self.end_if_useless(kind, round);
    }

    /// A caller no longer waits for a path.
    pub(in crate::node) fn abandon(&mut self, round: &mut Round<'_>) {
        while let Some(place) = self.attempts.waiting.iter().position(Waiting::is_abandoned) {
            self.attempts.waiting.remove(place);
            self.tell(RaceEvent::Abandoned(place), round);
        }
        // Early data keeps a session that has no path.
        if !self.streams.any() {
            self.end_if_useless(ErrorKind::Aborted, round);
        }
    }

    /// Ends the session if it has never had a path and nobody waits for one.
    fn end_if_useless(&self, kind: ErrorKind, round: &mut Round<'_>) {
        if self.attempts.waiting.is_empty() && self.paths.never_any() {
            round.push(Effect::End(self.id, kind, Conns::Close));
        }
    }

    /// The session ends. Takes its attempts back, and gives an error to every caller that waits.
    pub(super) fn end_attempts(&mut self, ended: impl Fn() -> Error, round: &mut Round<'_>) {
        self.tell(RaceEvent::Closed, round);
        round.push(Effect::SpareTurn(self.peer, None));
        for punch in self.attempts.punches.keys().copied().collect::<Vec<_>>() {
            let reason = "the connection is closed".to_owned();
            self.punch_ended(punch, Some((Cause::Cancelled, reason)), round);
        }
        for waiting in self.attempts.waiting.drain(..) {
            if let Waiting::Connect(reply) = waiting {
                let _ = reply.send(Err(ended()));
            }
        }
    }

    /// libp2p dials by itself, to punch a hole (DCUtR). It does so if there is a circuit.
    pub(in crate::node) fn on_punching(&mut self, conn: ConnectionId, round: &Round<'_>) {
        if PUNCHES && self.circuit().is_some() && !self.paths.is_direct() {
            self.punch_began(conn, round);
        }
    }

    fn punch_began(&mut self, conn: ConnectionId, round: &Round<'_>) {
        let since = self.age(round);
        self.attempts.punches.insert(conn, since);
        self.began(Strategy::Stun, round);
    }

    /// Whether this direct connection came through a punched hole. If so, records an attempt that
    /// succeeded. Both peers dial at the same time, so the peer's dial may come through, even
    /// before ours has begun.
    pub(super) fn punched(&mut self, conn: ConnectionId, dialled: bool, round: &Round<'_>) -> bool {
        if !PUNCHES {
            return false;
        }
        let stock = self.circuit().is_some() && !self.streams.are_resumable();
        let ours = self.attempts.punches.keys().next().copied();
        let punch = match ours {
            _ if self.attempts.punches.contains_key(&conn) => conn,
            Some(ours) if !dialled => ours,
            None if !dialled && stock => {
                self.punch_began(conn, round);
                conn
            }
            _ => return false,
        };
        self.punch_ended(punch, None, round);
        true
    }

    /// A dial that libp2p made by itself has ended.
    pub(in crate::node) fn punch_ended(
        &mut self,
        conn: ConnectionId,
        failure: Option<(Cause, String)>,
        round: &Round<'_>,
    ) {
        let Some(started) = self.attempts.punches.remove(&conn).filter(|_| PUNCHES) else {
            return;
        };
        let (cause, reason) = failure.unzip();
        let attempt = Attempt {
            strategy: Strategy::Stun,
            outcome: match cause {
                None => Outcome::Succeeded,
                Some(_) => Outcome::Failed,
            },
            started,
            ended: self.age(round),
            cause,
            reason,
        };
        self.record(attempt, round);
    }
}

/// Returns the error for an attempt that failed only because somebody refuses to serve us.
fn refusal(attempt: &Attempt) -> Option<ErrorKind> {
    match attempt.cause? {
        Cause::Limit => Some(ErrorKind::LimitExceeded),
        Cause::Denied => Some(ErrorKind::AccessDenied),
        Cause::Quota => Some(ErrorKind::QuotaExceeded),
        _ => None,
    }
}
