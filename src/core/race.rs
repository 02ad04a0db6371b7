//! The race to a peer: events in, actions out.
//!
//! The race starts the attempts of its [`Plan`], takes back attempts that have left the plan,
//! repeats failed attempts in the background, and says when the waiting calls get an answer. It
//! lives as long as the session with the peer. All times count from the session's start.

mod slot;

use std::{collections::VecDeque, time::Duration};

use self::slot::{Slot, State, record};
use super::{
    backoff::Backoff,
    plan::{AttemptId, Plan},
};
use crate::event::{Attempt, Cause, Outcome, PathKind, Strategy};

/// How often an attempt is repeated after its first repetitions. Whatever kept a path from coming up
/// may go away at any time: a firewall, a NAT's state, another network.
const LATER: Duration = Duration::from_secs(60);

/// The longest pause before a repetition while there is no path any more. The peer may come back at any
/// moment, and streams wait for it. That takes no longer than `resume_timeout`.
const LOST: Duration = Duration::from_secs(2);
/// After so many tries, the pause is three times as long. Stock relays give a peer thirty circuits, and
/// another one every two minutes.
const SOON: u32 = 15;

/// A relay refuses a circuit when the peer's link is dead. A peer that has moved has another link soon,
/// so the circuit is asked for once more after this pause, also while a call waits.
const REFUSED: Duration = Duration::from_millis(500);

/// When the network changes, an attempt that has had no answer for this long is made again. The
/// time is longer than most round trips. So the addresses that a system reports at its start, one
/// after the other, disturb nothing.
const SWALLOWED: Duration = Duration::from_millis(300);

/// An event that the race is told of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RaceEvent {
    /// A call waits for a first path, until `deadline`. A plan follows.
    Connect { deadline: Duration },
    /// The waiting call at this index was dropped.
    Abandoned(usize),
    /// An attempt gave a path. A plan that contains the path follows.
    Succeeded(AttemptId, Strategy),
    /// The known facts have changed.
    Plan(Plan),
    /// An attempt failed, for this cause and reason.
    Failed(AttemptId, Cause, String),
    /// A strategy joins an attempt that is under way.
    Joined(AttemptId, Strategy),
    /// One strategy of an attempt has failed. The attempt goes on without it.
    Left(AttemptId, Strategy, Cause, String),
    /// An attempt cannot go on until a later plan holds it. A plan follows at once.
    Deferred(AttemptId),
    /// A spare circuit may start now.
    Due,
    /// The network has changed, so attempts that failed may succeed now, and those that are under
    /// way without a path may fail.
    Anew,
    /// Time has passed. See [`Race::wake`].
    Tick,
    /// The session ends.
    Closed,
}

/// A step that the race wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RaceAction {
    /// Make this attempt. The flag says whether it was made without TURN before, and needs it now.
    Start(AttemptId, bool),
    /// Take this attempt back.
    Cancel(AttemptId),
    /// Count this strategy as begun.
    Began(Strategy),
    /// Report how a strategy ended.
    Ended(Attempt),
    /// Give the path in use to all waiting calls.
    Accept,
    /// Give the first waiting calls an error that lists the attempts.
    GiveUp {
        connects: usize,
        attempts: Vec<Attempt>,
    },
}

/// The state of the race. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Race {
    /// How long a path that is not direct is held back, while a better one may come.
    acceptance: Duration,
    slots: Vec<Slot>,
    /// The path in use, and since when there has been one.
    path: Option<(PathKind, Duration)>,
    /// Whether there was a path, and is none now.
    lost: bool,
    /// Whether it is being asked where relays of the peer are.
    seeks: bool,
    /// The deadlines of the calls that wait for a path.
    connects: VecDeque<Duration>,
    /// The attempts that failed while these calls waited.
    tried: Vec<Attempt>,
}

impl Race {
    /// Makes a race that holds a path that is not direct back for `acceptance`, while a better one
    /// may come.
    pub(crate) fn new(acceptance: Duration) -> Self {
        Self {
            acceptance,
            slots: Vec::new(),
            path: None,
            lost: false,
            seeks: false,
            connects: VecDeque::new(),
            tried: Vec::new(),
        }
    }

    pub(crate) fn is_running(&self, attempt: AttemptId) -> bool {
        let found = self.slots.iter().find(|s| s.step.attempt == attempt);
        found.is_some_and(Slot::is_running)
    }

    /// Returns how many circuits are being made.
    pub(crate) fn circuits(&self) -> usize {
        let circuit = |s: &&Slot| matches!(s.step.attempt, AttemptId::Circuit(_));
        let running = self.slots.iter().filter(|slot| slot.is_running());
        running.filter(circuit).count()
    }

    /// Whether a circuit is being made, or will be.
    pub(crate) fn seeks_circuit(&self) -> bool {
        let circuit = |s: &Slot| matches!(s.step.attempt, AttemptId::Circuit(_));
        self.slots.iter().any(circuit)
    }

    /// Whether a circuit waits for its start. [`RaceEvent::Due`] starts it.
    pub(crate) fn awaits_circuit(&self) -> bool {
        self.circuits() == 0 && self.slots.iter().any(Slot::is_standby)
    }

    /// Returns when the next [`RaceEvent::Tick`] is due.
    pub(crate) fn wake(&self) -> Option<Duration> {
        let steps = self.slots.iter().filter_map(|slot| match slot.state {
            State::At(at) => Some(at),
            State::Running(since) => Some(since + slot.patience()),
            State::Spared | State::Deferred | State::Failed | State::Spent => None,
        });
        let connects = self.connects.front().map(|deadline| match self.path {
            None => *deadline,
            Some((_, since)) => (since + self.acceptance).min(*deadline),
        });
        steps.chain(connects).min()
    }

    /// Handles an event that happened `now`. `random` is uniform in `0.0..1.0`.
    pub(crate) fn handle(
        &mut self,
        now: Duration,
        event: RaceEvent,
        random: f64,
    ) -> Vec<RaceAction> {
        let mut actions = Vec::new();
        match event {
            RaceEvent::Connect { deadline } => {
                self.connects.push_back(deadline);
                self.hurry(now);
                return actions;
            }
            RaceEvent::Abandoned(place) => {
                self.connects.remove(place);
                return actions;
            }
            RaceEvent::Succeeded(attempt, strategy) => {
                self.succeed(now, attempt, strategy, &mut actions);
                return actions;
            }
            RaceEvent::Closed => {
                for slot in std::mem::take(&mut self.slots) {
                    slot.cancel(now, "the connection is closed", &mut actions);
                }
                return actions;
            }
            RaceEvent::Plan(plan) => self.adopt(now, plan, &mut actions),
            RaceEvent::Failed(attempt, cause, reason) => {
                if let Some(at) = self.slots.iter().position(|s| s.step.attempt == attempt) {
                    self.fail(now, at, cause, &reason, &mut actions);
                }
            }
            RaceEvent::Deferred(attempt) => {
                let running = |s: &&mut Slot| s.step.attempt == attempt && s.is_running();
                if let Some(slot) = self.slots.iter_mut().find(running) {
                    slot.state = State::Deferred;
                }
                self.hasten_circuit(now, attempt);
            }
            RaceEvent::Due => self.start_next_circuit(now),
            RaceEvent::Anew => {
                self.restart(now, &mut actions);
                self.begin_anew(now);
            }
            RaceEvent::Joined(attempt, strategy) => {
                self.join(now, attempt, strategy, &mut actions);
            }
            RaceEvent::Left(attempt, strategy, cause, reason) => {
                self.leave(now, attempt, strategy, (cause, &reason), &mut actions);
            }
            RaceEvent::Tick => {}
        }
        self.expire(now, &mut actions);
        self.start(now, &mut actions);
        self.answer(now, &mut actions);
        self.repeat(now, random);
        actions
    }

    /// Whether a call waits for the first path.
    fn is_awaited(&self) -> bool {
        self.path.is_none() && !self.connects.is_empty()
    }

    /// A caller is waiting now, so attempts that pause before a repetition start at once.
    fn hurry(&mut self, now: Duration) {
        if self.path.is_none() {
            self.begin_anew(now);
        }
    }

    /// Attempts that pause before a repetition start at once, and their repetitions are counted
    /// anew.
    fn begin_anew(&mut self, now: Duration) {
        for slot in &mut self.slots {
            let waits = matches!(slot.state, State::At(_) | State::Spent);
            if waits && slot.step.backoff.failures() > 0 {
                slot.state = State::At(now);
                slot.step.backoff.reset();
            }
        }
    }

    /// Without a path, attempts that the old network has swallowed are made again.
    fn restart(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        if self.path.is_some() {
            return;
        }
        for slot in &mut self.slots {
            if matches!(slot.state, State::Running(since) if now >= since + SWALLOWED) {
                slot.cancel(now, "the network has changed", actions);
                slot.state = State::At(now);
            }
        }
    }

    fn adopt(&mut self, now: Duration, plan: Plan, actions: &mut Vec<RaceAction>) {
        let lost = self.path.is_some() && plan.path.is_none();
        let found = self.path.is_none() && plan.path.is_some();
        self.lost = plan.path.is_none() && (lost || self.lost);
        let idle = self.circuits() == 0;
        self.seeks = plan.seeks;
        self.path = plan.path.map(|kind| {
            let since = self.path.map_or(now, |(_, since)| since);
            (kind, since)
        });
        self.slots.retain(|slot| {
            // A path would have let a deferred attempt go on, or would have made it unnecessary.
            let kept = plan.steps.iter().any(|step| slot.goes_on_as(step))
                || slot.state == State::Deferred && plan.path.is_none();
            if !kept {
                let reason = match slot.step.attempt {
                    AttemptId::Circuit(_) => "another circuit came up first",
                    AttemptId::Direct | AttemptId::Ice => "a better path came up first",
                };
                slot.cancel(now, reason, actions);
            }
            kept
        });
        for step in plan.steps {
            let known = |s: &&mut Slot| s.step.attempt == step.attempt;
            match self.slots.iter_mut().find(known) {
                None => self.slots.push(Slot {
                    state: match self.path {
                        Some(_) if step.spared => State::Spared,
                        _ => State::At(now + step.after),
                    },
                    step,
                    turn: false,
                    strategies: Vec::new(),
                    again: false,
                }),
                Some(slot) if slot.state == State::Deferred => {
                    slot.state = State::Running(now);
                    actions.push(RaceAction::Start(step.attempt, slot.with_turn()));
                }
                // An attempt that failed while there was a path may succeed now.
                Some(slot) if lost && !slot.is_running() => {
                    slot.state = State::At(now + step.after);
                    slot.step = step;
                }
                Some(slot) if found && idle && slot.step.spared && slot.is_standby() => {
                    slot.state = State::Spared;
                }
                // There may be a TURN server now, or no circuit any more.
                Some(slot) if slot.is_running() => {
                    (slot.step.anew, slot.step.retries) = (step.anew, step.retries);
                }
                // Another path may leave an attempt fewer strategies that are better.
                Some(slot) => {
                    (slot.step.strategies, slot.step.anew) = (step.strategies, step.anew);
                }
            }
        }
    }

    fn succeed(
        &mut self,
        now: Duration,
        attempt: AttemptId,
        strategy: Strategy,
        actions: &mut Vec<RaceAction>,
    ) {
        let Some(at) = self.slots.iter().position(|s| s.step.attempt == attempt) else {
            return;
        };
        let slot = self.slots.remove(at);
        let State::Running(since) = slot.state else {
            return;
        };
        let known = slot.strategies.iter().find(|(known, _)| *known == strategy);
        // The peer's side may have brought in a strategy that is not one of ours.
        if known.is_none() {
            actions.push(RaceAction::Began(strategy));
        }
        let won = known.copied().unwrap_or((strategy, since));
        let won = record(won, now, Outcome::Succeeded, None);
        actions.push(RaceAction::Ended(won));
        let reason = format!("{strategy} was better");
        let beaten = slot.records(now, Outcome::Cancelled, Cause::Cancelled, &reason);
        let beaten = beaten.into_iter().filter(|a| a.strategy != strategy);
        actions.extend(beaten.map(RaceAction::Ended));
    }

    fn fail(
        &mut self,
        now: Duration,
        at: usize,
        cause: Cause,
        reason: &str,
        actions: &mut Vec<RaceAction>,
    ) {
        let awaited = self.is_awaited();
        let slot = &mut self.slots[at];
        if !slot.is_running() {
            return;
        }
        let outcome = match cause {
            Cause::Cancelled => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        let records = slot.records(now, outcome, cause, reason);
        let is_circuit = matches!(slot.step.attempt, AttemptId::Circuit(_));
        let again = awaited && is_circuit && cause == Cause::Refused && !slot.again;
        slot.again |= again;
        slot.state = match cause {
            Cause::Unsupported | Cause::WrongPeer => State::Spent,
            Cause::Refused if slot.step.attempt == AttemptId::Ice => State::Spent,
            _ if again => State::At(now + REFUSED),
            Cause::NoPair if slot.anew().is_some() => slot.make_anew(now),
            _ => State::Failed,
        };
        if awaited {
            self.tried.extend(records.iter().cloned());
        }
        actions.extend(records.into_iter().map(RaceAction::Ended));
        self.hasten_circuit(now, self.slots[at].step.attempt);
    }

    fn running(&mut self, attempt: AttemptId) -> Option<&mut Slot> {
        let running = |slot: &&mut Slot| slot.step.attempt == attempt && slot.is_running();
        self.slots.iter_mut().find(running)
    }

    fn join(
        &mut self,
        now: Duration,
        attempt: AttemptId,
        strategy: Strategy,
        actions: &mut Vec<RaceAction>,
    ) {
        if let Some(slot) = self.running(attempt)
            && slot.strategies.iter().all(|(s, _)| *s != strategy)
        {
            slot.strategies.push((strategy, now));
            actions.push(RaceAction::Began(strategy));
        }
    }

    fn leave(
        &mut self,
        now: Duration,
        attempt: AttemptId,
        strategy: Strategy,
        why: (Cause, &str),
        actions: &mut Vec<RaceAction>,
    ) {
        let Some(slot) = self.running(attempt) else {
            return;
        };
        let Some(at) = slot.strategies.iter().position(|(s, _)| *s == strategy) else {
            return;
        };
        let left = slot.strategies.remove(at);
        let reason = why.0.explain(why.1);
        let left = record(left, now, Outcome::Failed, Some((why.0, &reason)));
        if self.is_awaited() {
            self.tried.push(left.clone());
        }
        actions.push(RaceAction::Ended(left));
    }

    /// Starts the next circuit early. A second relay need not wait until the first one's time is
    /// over when that one has failed. A spare circuit need not wait for ICE when ICE needs it or
    /// has failed.
    fn hasten_circuit(&mut self, now: Duration, failed: AttemptId) {
        let next = match failed {
            AttemptId::Circuit(_) => true,
            AttemptId::Ice => self.circuits() == 0,
            AttemptId::Direct => false,
        };
        if next {
            self.start_next_circuit(now);
        }
    }

    fn start_next_circuit(&mut self, now: Duration) {
        let start = |slot: &&mut Slot| match slot.state {
            State::At(at) => at,
            _ => Duration::MAX,
        };
        let standby = self.slots.iter_mut().filter(|slot| slot.is_standby());
        if let Some(slot) = standby.min_by_key(start) {
            slot.state = State::At(start(&slot).min(now));
        }
    }

    /// Ends attempts that have taken too long.
    fn expire(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let is_over =
                matches!(slot.state, State::Running(since) if now >= since + slot.patience());
            if is_over && slot.anew().is_some() {
                slot.cancel(now, "ICE begins anew, with TURN", actions);
                slot.state = slot.make_anew(now);
            } else if is_over {
                self.time_out(now, at, actions);
            }
        }
    }

    fn time_out(&mut self, now: Duration, at: usize, actions: &mut Vec<RaceAction>) {
        let records = self.slots[at].timed_out(now);
        if records.is_empty() {
            return;
        }
        self.slots[at].state = State::Failed;
        if self.is_awaited() {
            self.tried.extend(records.iter().cloned());
        }
        let attempt = self.slots[at].step.attempt;
        actions.push(RaceAction::Cancel(attempt));
        actions.extend(records.into_iter().map(RaceAction::Ended));
        self.hasten_circuit(now, attempt);
    }

    /// Starts the attempts that are due.
    fn start(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        for slot in &mut self.slots {
            if matches!(slot.state, State::At(at) if at <= now) {
                slot.state = State::Running(now);
                let turn = slot.with_turn();
                let all = slot.step.strategies.iter().copied();
                let all = all.chain(turn.then_some(Strategy::Turn));
                slot.strategies = all.map(|s| (s, now)).collect();
                actions.extend(slot.strategies.iter().map(|(s, _)| RaceAction::Began(*s)));
                actions.push(RaceAction::Start(slot.step.attempt, turn));
            }
        }
    }

    /// Answers the waiting calls, if it is time.
    fn answer(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        if self.connects.is_empty() {
            return;
        }
        let Some((kind, since)) = self.path else {
            return self.give_up(now, actions);
        };
        let in_time = self.connects.iter().all(|deadline| now < *deadline);
        let held = in_time
            && now < since + self.acceptance
            && self.slots.iter().any(|slot| slot.may_beat(kind));
        if !held {
            self.connects.clear();
            self.tried.clear();
            actions.push(RaceAction::Accept);
        }
    }

    /// Gives up for calls whose time is over, or for all calls if no attempt can succeed any more.
    fn give_up(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        let over = self.connects.iter().take_while(|d| **d <= now).count();
        if over == self.connects.len() {
            for at in 0..self.slots.len() {
                self.time_out(now, at, actions);
            }
        }
        let hopes = |slot: &Slot| matches!(slot.state, State::At(_) | State::Running(_));
        let connects = if self.seeks || self.slots.iter().any(hopes) {
            over
        } else {
            self.fail_deferred(now, actions);
            self.connects.len()
        };
        if connects == 0 {
            return;
        }
        self.connects.drain(..connects);
        let mut attempts: Vec<Attempt> = Vec::new();
        let late = self.slots.iter().flat_map(|slot| slot.timed_out(now));
        for attempt in self.tried.iter().cloned().chain(late) {
            let place = attempts.partition_point(|other| other.started <= attempt.started);
            attempts.insert(place, attempt);
        }
        if self.connects.is_empty() {
            self.tried.clear();
        }
        actions.push(RaceAction::GiveUp { connects, attempts });
    }

    /// Ends deferred attempts that no plan will hold again.
    fn fail_deferred(&mut self, now: Duration, actions: &mut Vec<RaceAction>) {
        let deferred = |slot: &&mut Slot| slot.state == State::Deferred;
        for slot in self.slots.iter_mut().filter(deferred) {
            let reason = "no circuit came up for the signalling";
            let records = slot.records(now, Outcome::Failed, Cause::Signalling, reason);
            slot.state = State::Failed;
            self.tried.extend(records.iter().cloned());
            actions.extend(records.into_iter().map(RaceAction::Ended));
        }
    }

    /// Schedules the repetition of failed attempts in the background, after a pause.
    fn repeat(&mut self, now: Duration, random: f64) {
        if self.is_awaited() {
            return;
        }
        for slot in &mut self.slots {
            if slot.state == State::Failed {
                let step = &mut slot.step;
                slot.state = match step.retries {
                    0 => State::Spent,
                    tries => {
                        let often = step.backoff.failures() < tries;
                        let pause = step.backoff.fail(random);
                        State::At(
                            now + match often {
                                _ if self.lost => {
                                    let slow = step.backoff.failures() > SOON;
                                    pause.min(jittered(if slow { LOST * 3 } else { LOST }, random))
                                }
                                true => pause,
                                false => jittered(LATER, random),
                            },
                        )
                    }
                };
            }
        }
    }
}

fn jittered(pause: Duration, random: f64) -> Duration {
    Backoff::new(pause, pause).fail(random)
}

#[cfg(test)]
mod tests;
