//! The race to a peer: events in, actions out.
//!
//! It starts what the [`Plan`] holds, takes back what has left the plan, repeats in the background
//! what failed, and says when those who wait for a first path are to be answered. It lives as long
//! as the session with the peer; all times count from the session's start.

use std::{collections::VecDeque, time::Duration};

use super::plan::{AttemptId, Plan, Step};
use crate::event::{Attempt, Cause, Outcome, PathKind, Strategy};

/// What the race is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// Somebody waits for a first path, until `deadline`. A plan follows.
    Connect { deadline: Duration },
    /// The one of this place among those who wait does so no longer.
    Abandoned(usize),
    /// An attempt gave a path. A plan that knows of the path follows.
    Succeeded(AttemptId, Strategy),
    /// What is known has changed.
    Plan(Plan),
    /// Nothing came of an attempt, and why.
    Failed(AttemptId, Cause, String),
    /// A strategy joins an attempt that is under way.
    Joined(AttemptId, Strategy),
    /// Nothing can come of one strategy of an attempt, which goes on without it.
    Left(AttemptId, Strategy, Cause, String),
    /// An attempt cannot go on before the plan that follows, or a later one, holds it.
    Deferred(AttemptId),
    /// A circuit need not wait any longer.
    Due,
    /// Time has passed; see [`Race::wake`].
    Tick,
    /// The session ends.
    Closed,
}

/// What the race wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// To make this attempt by the way of this number, counted from 0.
    Start(AttemptId, usize),
    /// To take it back.
    Cancel(AttemptId),
    /// To count a strategy as begun.
    Began(Strategy),
    /// To tell how it ended.
    Ended(Attempt),
    /// To give everybody who waits the path in use.
    Accept,
    /// To give the first so many who wait an error that lists the attempts.
    GiveUp {
        connects: usize,
        attempts: Vec<Attempt>,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Race {
    /// How long a path that is not direct is held back.
    acceptance: Duration,
    slots: Vec<Slot>,
    /// The path in use, and since when there has been one.
    path: Option<(PathKind, Duration)>,
    /// The deadlines of those who wait for a path.
    connects: VecDeque<Duration>,
    /// What failed while they waited.
    tried: Vec<Attempt>,
}

/// One step of the plan and how far it has come.
#[derive(Debug)]
struct Slot {
    step: Step,
    way: usize,
    state: State,
    /// Its strategies, and since when, while it is under way.
    strategies: Vec<(Strategy, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Starts then.
    At(Duration),
    /// Starts when it is its turn, with [`Event::Due`].
    Spared,
    /// Under way since then.
    Running(Duration),
    /// Under way, and goes on when the plan holds it again.
    Deferred,
    /// While connects wait for a first path, one round is all that is made.
    Failed,
    /// Not to be repeated.
    Spent,
}

impl Slot {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// A circuit that waits for its start and has not failed yet.
    fn is_standby(&self) -> bool {
        matches!(self.step.attempt, AttemptId::Circuit(_))
            && matches!(self.state, State::At(_) | State::Spared)
            && self.step.backoff.failures() == 0
    }

    /// Whether this may still give a path better than `kind` at its first try.
    fn may_beat(&self, kind: PathKind) -> bool {
        self.step.backoff.failures() == 0
            && matches!(self.state, State::At(_) | State::Running(_))
            && self.step.strategies.iter().any(|s| s.kind() < kind)
    }

    /// One record for each of its strategies, which ended `now`.
    fn records(&self, now: Duration, outcome: Outcome, cause: Cause, reason: &str) -> Vec<Attempt> {
        let record = |strategy: &_| record(*strategy, now, outcome, Some((cause, reason)));
        match self.state {
            State::Running(_) | State::Deferred => self.strategies.iter().map(record).collect(),
            _ => Vec::new(),
        }
    }

    fn timed_out(&self, now: Duration) -> Vec<Attempt> {
        let State::Running(since) = self.state else {
            return Vec::new();
        };
        let reason = format!("no answer within {} ms", (now - since).as_millis());
        self.records(now, Outcome::Failed, Cause::Timeout, &reason)
    }
}

fn record(
    (strategy, started): (Strategy, Duration),
    ended: Duration,
    outcome: Outcome,
    why: Option<(Cause, &str)>,
) -> Attempt {
    let reason = why.map(|(cause, reason)| match cause.advice() {
        "" => reason.to_owned(),
        advice => format!("{reason}; {advice}"),
    });
    Attempt {
        strategy,
        outcome,
        started,
        ended,
        cause: why.map(|(cause, _)| cause),
        reason,
    }
}

impl Race {
    /// A path that is not direct is held back for `acceptance` while a better one may come.
    pub(crate) fn new(acceptance: Duration) -> Self {
        Self {
            acceptance,
            slots: Vec::new(),
            path: None,
            connects: VecDeque::new(),
            tried: Vec::new(),
        }
    }

    pub(crate) fn is_running(&self, attempt: AttemptId) -> bool {
        let found = self.slots.iter().find(|s| s.step.attempt == attempt);
        found.is_some_and(Slot::is_running)
    }

    /// How many circuits are being made.
    pub(crate) fn circuits(&self) -> usize {
        let circuit = |s: &&Slot| matches!(s.step.attempt, AttemptId::Circuit(_));
        let running = self.slots.iter().filter(|slot| slot.is_running());
        running.filter(circuit).count()
    }

    /// Whether a circuit is sought, now or some time.
    pub(crate) fn seeks_circuit(&self) -> bool {
        let circuit = |s: &Slot| matches!(s.step.attempt, AttemptId::Circuit(_));
        self.slots.iter().any(circuit)
    }

    /// Whether a circuit waits for its start, which [`Event::Due`] brings about.
    pub(crate) fn awaits_circuit(&self) -> bool {
        self.circuits() == 0 && self.slots.iter().any(Slot::is_standby)
    }

    /// When the next [`Event::Tick`] is due.
    pub(crate) fn wake(&self) -> Option<Duration> {
        let steps = self.slots.iter().filter_map(|slot| match slot.state {
            State::At(at) => Some(at),
            State::Running(since) => Some(since + slot.step.timeout),
            State::Spared | State::Deferred | State::Failed | State::Spent => None,
        });
        let connects = self.connects.front().map(|deadline| match self.path {
            None => *deadline,
            Some((_, since)) => (since + self.acceptance).min(*deadline),
        });
        steps.chain(connects).min()
    }

    /// Takes in what happened `now`. `random` is uniform in `0.0..1.0`.
    pub(crate) fn handle(&mut self, now: Duration, event: Event, random: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Connect { deadline } => {
                self.connects.push_back(deadline);
                self.hurry(now);
                return actions;
            }
            Event::Abandoned(place) => {
                self.connects.remove(place);
                return actions;
            }
            Event::Succeeded(attempt, strategy) => {
                self.succeed(now, attempt, strategy, &mut actions);
                return actions;
            }
            Event::Closed => {
                for slot in std::mem::take(&mut self.slots) {
                    cancel(now, &slot, "the connection is closed", &mut actions);
                }
                return actions;
            }
            Event::Plan(plan) => self.adopt(now, plan, &mut actions),
            Event::Failed(attempt, cause, reason) => {
                if let Some(at) = self.slots.iter().position(|s| s.step.attempt == attempt) {
                    self.fail(now, at, cause, &reason, &mut actions);
                }
            }
            Event::Deferred(attempt) => {
                let running = |s: &&mut Slot| s.step.attempt == attempt && s.is_running();
                if let Some(slot) = self.slots.iter_mut().find(running) {
                    slot.state = State::Deferred;
                }
                self.hasten_circuit(now, attempt);
            }
            Event::Due => self.start_next_circuit(now),
            Event::Joined(attempt, strategy) => {
                self.join(now, attempt, strategy, &mut actions);
            }
            Event::Left(attempt, strategy, cause, reason) => {
                self.leave(now, attempt, strategy, (cause, &reason), &mut actions);
            }
            Event::Tick => {}
        }
        self.expire(now, &mut actions);
        self.start(now, &mut actions);
        self.answer(now, &mut actions);
        self.repeat(now, random);
        actions
    }

    /// Whether the first path is still to come, and somebody waits for it.
    fn is_awaited(&self) -> bool {
        self.path.is_none() && !self.connects.is_empty()
    }

    /// Somebody waits now for what was to be repeated some time.
    fn hurry(&mut self, now: Duration) {
        if self.path.is_none() {
            for slot in &mut self.slots {
                let waits = matches!(slot.state, State::At(_) | State::Spent);
                if waits && slot.step.backoff.failures() > 0 {
                    slot.state = State::At(now);
                    slot.step.backoff.reset();
                }
            }
        }
    }

    fn adopt(&mut self, now: Duration, plan: Plan, actions: &mut Vec<Action>) {
        let lost = self.path.is_some() && plan.path.is_none();
        let found = self.path.is_none() && plan.path.is_some();
        let idle = self.circuits() == 0;
        self.path = plan.path.map(|kind| {
            let since = self.path.map_or(now, |(_, since)| since);
            (kind, since)
        });
        self.slots.retain(|slot| {
            // A path would have brought along what is deferred, or made it needless.
            let kept = plan.steps.iter().any(|s| s.attempt == slot.step.attempt)
                || slot.state == State::Deferred && plan.path.is_none();
            if !kept {
                let reason = match slot.step.attempt {
                    AttemptId::Circuit(_) => "another circuit was sooner",
                    AttemptId::Direct | AttemptId::Ice => "a better path was sooner",
                };
                cancel(now, slot, reason, actions);
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
                    way: 0,
                    strategies: Vec::new(),
                }),
                Some(slot) if slot.state == State::Deferred => {
                    slot.state = State::Running(now);
                    actions.push(Action::Start(step.attempt, slot.way));
                }
                // What failed in another situation may do in this one.
                Some(slot) if lost && !slot.is_running() => {
                    slot.state = State::At(now + step.after);
                    slot.step = step;
                }
                Some(slot) if found && idle && slot.step.spared && slot.is_standby() => {
                    slot.state = State::Spared;
                }
                Some(_) => {}
            }
        }
    }

    fn succeed(
        &mut self,
        now: Duration,
        attempt: AttemptId,
        strategy: Strategy,
        actions: &mut Vec<Action>,
    ) {
        let Some(at) = self.slots.iter().position(|s| s.step.attempt == attempt) else {
            return;
        };
        let slot = self.slots.remove(at);
        let State::Running(since) = slot.state else {
            return;
        };
        let known = slot.strategies.iter().find(|(known, _)| *known == strategy);
        // The peer's side may have brought a strategy in that is not one of ours.
        if known.is_none() {
            actions.push(Action::Began(strategy));
        }
        let won = known.copied().unwrap_or((strategy, since));
        let won = record(won, now, Outcome::Succeeded, None);
        actions.push(Action::Ended(won));
        let reason = format!("{strategy} was better");
        let beaten = slot.records(now, Outcome::Cancelled, Cause::Cancelled, &reason);
        let beaten = beaten.into_iter().filter(|a| a.strategy != strategy);
        actions.extend(beaten.map(Action::Ended));
    }

    fn fail(
        &mut self,
        now: Duration,
        at: usize,
        cause: Cause,
        reason: &str,
        actions: &mut Vec<Action>,
    ) {
        let awaited = self.is_awaited();
        let slot = &mut self.slots[at];
        if !slot.is_running() {
            return;
        }
        if cause == Cause::Unsupported && slot.way + 1 < slot.step.ways {
            slot.way += 1;
            actions.push(Action::Start(slot.step.attempt, slot.way));
            return;
        }
        let outcome = match cause {
            Cause::Cancelled => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        let records = slot.records(now, outcome, cause, reason);
        slot.state = match cause {
            Cause::Unsupported | Cause::WrongPeer => State::Spent,
            _ => State::Failed,
        };
        if awaited {
            self.tried.extend(records.iter().cloned());
        }
        actions.extend(records.into_iter().map(Action::Ended));
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
        actions: &mut Vec<Action>,
    ) {
        if let Some(slot) = self.running(attempt)
            && slot.strategies.iter().all(|(s, _)| *s != strategy)
        {
            slot.strategies.push((strategy, now));
            actions.push(Action::Began(strategy));
        }
    }

    fn leave(
        &mut self,
        now: Duration,
        attempt: AttemptId,
        strategy: Strategy,
        why: (Cause, &str),
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.running(attempt) else {
            return;
        };
        let Some(at) = slot.strategies.iter().position(|(s, _)| *s == strategy) else {
            return;
        };
        let left = slot.strategies.remove(at);
        let left = record(left, now, Outcome::Failed, Some(why));
        if self.is_awaited() {
            self.tried.push(left.clone());
        }
        actions.push(Action::Ended(left));
    }

    /// A second relay need not wait for the time that the first one no longer uses, and no circuit
    /// for ICE to make do without it.
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

    /// Ends what has taken too long.
    fn expire(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if matches!(slot.state, State::Running(since) if now >= since + slot.step.timeout) {
                self.time_out(now, at, actions);
            }
        }
    }

    fn time_out(&mut self, now: Duration, at: usize, actions: &mut Vec<Action>) {
        let records = self.slots[at].timed_out(now);
        if records.is_empty() {
            return;
        }
        self.slots[at].state = State::Failed;
        if self.is_awaited() {
            self.tried.extend(records.iter().cloned());
        }
        let attempt = self.slots[at].step.attempt;
        actions.push(Action::Cancel(attempt));
        actions.extend(records.into_iter().map(Action::Ended));
        self.hasten_circuit(now, attempt);
    }

    /// Starts what is due.
    fn start(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for slot in &mut self.slots {
            if matches!(slot.state, State::At(at) if at <= now) {
                slot.state = State::Running(now);
                slot.strategies = slot.step.strategies.iter().map(|s| (*s, now)).collect();
                actions.extend(slot.step.strategies.iter().map(|s| Action::Began(*s)));
                actions.push(Action::Start(slot.step.attempt, slot.way));
            }
        }
    }

    /// Answers those who wait, if it is time.
    fn answer(&mut self, now: Duration, actions: &mut Vec<Action>) {
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
            actions.push(Action::Accept);
        }
    }

    /// Gives up for those whose time is over, or for all if nothing is left to hope for.
    fn give_up(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let over = self.connects.iter().take_while(|d| **d <= now).count();
        if over == self.connects.len() {
            for at in 0..self.slots.len() {
                self.time_out(now, at, actions);
            }
        }
        let hopes = |slot: &Slot| matches!(slot.state, State::At(_) | State::Running(_));
        let connects = if self.slots.iter().any(hopes) {
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
        actions.push(Action::GiveUp { connects, attempts });
    }

    /// Ends what no plan will hold again.
    fn fail_deferred(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let deferred = |slot: &&mut Slot| slot.state == State::Deferred;
        for slot in self.slots.iter_mut().filter(deferred) {
            let reason = "no circuit came up to signal over";
            let records = slot.records(now, Outcome::Failed, Cause::Signalling, reason);
            slot.state = State::Failed;
            self.tried.extend(records.iter().cloned());
            actions.extend(records.into_iter().map(Action::Ended));
        }
    }

    /// In the background, what failed is repeated after a pause.
    fn repeat(&mut self, now: Duration, random: f64) {
        if self.is_awaited() {
            return;
        }
        for slot in &mut self.slots {
            if slot.state == State::Failed {
                slot.state = if slot.step.backoff.failures() < slot.step.retries {
                    State::At(now + slot.step.backoff.fail(random))
                } else {
                    State::Spent
                };
            }
        }
    }
}

fn cancel(now: Duration, slot: &Slot, reason: &str, actions: &mut Vec<Action>) {
    if slot.is_running() || slot.state == State::Deferred {
        actions.push(Action::Cancel(slot.step.attempt));
        let records = slot.records(now, Outcome::Cancelled, Cause::Cancelled, reason);
        actions.extend(records.into_iter().map(Action::Ended));
    }
}

#[cfg(test)]
mod tests;
