//! One attempt of a race.

use std::time::Duration;

use super::RaceAction;
use crate::{
    core::plan::{AttemptId, Step},
    event::{Attempt, Cause, Outcome, PathKind, Strategy},
};

/// One step of the plan and its progress.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) step: Step,
    /// Whether the attempt gave no path without TURN.
    pub(super) turn: bool,
    pub(super) state: State,
    /// The strategies of the attempt and their starts, while it is under way.
    pub(super) strategies: Vec<(Strategy, Duration)>,
    /// Whether the attempt was refused once, and is made again although a call waits.
    pub(super) again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// The attempt starts at this time.
    At(Duration),
    /// The attempt starts when [`RaceEvent::Due`] gives it its turn.
    Spared,
    /// The attempt has been under way since this time.
    Running(Duration),
    /// The attempt is under way, and goes on when a plan holds it again.
    Deferred,
    /// The attempt has failed. While calls wait for a first path, each attempt is made only once,
    /// except for a circuit that was refused.
    Failed,
    /// The attempt is not repeated.
    Spent,
}

impl Slot {
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Whether this is the attempt of `step`. A circuit that is sought is not a rival of the circuit that has come
    /// up, which is tried later, and once. A rival that is under way may become the one that is sought.
    pub(super) fn goes_on_as(&self, step: &Step) -> bool {
        let is_sought = step.retries > 0 && self.is_running();
        step.attempt == self.step.attempt && (step.retries == self.step.retries || is_sought)
    }

    /// Whether this is a circuit that is sought, waits for its start, and has not failed yet.
    pub(super) fn is_standby(&self) -> bool {
        matches!(self.step.attempt, AttemptId::Circuit(_))
            && self.step.retries > 0
            && matches!(self.state, State::At(_) | State::Spared)
            && self.step.backoff.failures() == 0
            && !self.again
    }

    /// Returns how long the attempt may go on as it is made.
    pub(super) fn patience(&self) -> Duration {
        self.anew().unwrap_or(self.step.timeout)
    }

    /// Returns after how long the attempt is made anew, with TURN, if it will be.
    pub(super) fn anew(&self) -> Option<Duration> {
        self.step.anew.filter(|_| !self.turn)
    }

    /// Says that the attempt is made with TURN from now on. Returns its state.
    pub(super) fn make_anew(&mut self, now: Duration) -> State {
        self.turn = true;
        State::At(now)
    }

    /// Whether the attempt is made with TURN, after it was made without.
    pub(super) fn with_turn(&self) -> bool {
        self.turn && self.step.anew.is_some()
    }

    /// Whether this attempt may still give a path better than `kind` at its first try.
    pub(super) fn may_beat(&self, kind: PathKind) -> bool {
        self.step.backoff.failures() == 0
            && matches!(self.state, State::At(_) | State::Running(_))
            && self.step.strategies.iter().any(|s| s.kind() < kind)
    }

    /// Returns one record for each strategy of the attempt, all of which ended `now`.
    pub(super) fn records(
        &self,
        now: Duration,
        outcome: Outcome,
        cause: Cause,
        reason: &str,
    ) -> Vec<Attempt> {
        let reason = match (self.step.attempt, cause) {
            // Whoever refuses ICE does so on purpose, so there is nothing to check.
            (AttemptId::Ice, Cause::Refused) => reason.to_owned(),
            _ => cause.explain(reason),
        };
        let why = (cause, reason.as_str());
        let record = |strategy: &_| record(*strategy, now, outcome, Some(why));
        match self.state {
            State::Running(_) | State::Deferred => self.strategies.iter().map(record).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn timed_out(&self, now: Duration) -> Vec<Attempt> {
        let State::Running(since) = self.state else {
            return Vec::new();
        };
        let reason = format!("no answer within {} ms", (now - since).as_millis());
        self.records(now, Outcome::Failed, Cause::Timeout, &reason)
    }

    /// Reports that the attempt is taken back, if it is under way.
    pub(super) fn cancel(&self, now: Duration, reason: &str, actions: &mut Vec<RaceAction>) {
        if self.is_running() || self.state == State::Deferred {
            actions.push(RaceAction::Cancel(self.step.attempt));
            let records = self.records(now, Outcome::Cancelled, Cause::Cancelled, reason);
            actions.extend(records.into_iter().map(RaceAction::Ended));
        }
    }
}

pub(super) fn record(
    (strategy, started): (Strategy, Duration),
    ended: Duration,
    outcome: Outcome,
    why: Option<(Cause, &str)>,
) -> Attempt {
    Attempt {
        strategy,
        outcome,
        started,
        ended,
        cause: why.map(|(cause, _)| cause),
        reason: why.map(|(_, reason)| reason.to_owned()),
    }
}
