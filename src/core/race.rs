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

    /// When the next [`Event::Tick`] is due.
    pub(crate) fn wake(&self) -> Option<Duration> {
        let steps = self.slots.iter().filter_map(|slot| match slot.state {
            State::At(at) => Some(at),
            State::Running(since) => Some(since + slot.step.timeout),
            State::Deferred | State::Failed | State::Spent => None,
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
            }
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
                    state: State::At(now + step.after),
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
        // A second relay need not wait for the time that the first one no longer uses.
        if let AttemptId::Circuit(_) = self.slots[at].step.attempt {
            self.start_next_circuit(now);
        }
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

    fn start_next_circuit(&mut self, now: Duration) {
        let standby = self.slots.iter_mut().filter_map(|slot| match slot.state {
            State::At(at)
                if matches!(slot.step.attempt, AttemptId::Circuit(_))
                    && slot.step.backoff.failures() == 0 =>
            {
                Some((at, slot))
            }
            _ => None,
        });
        if let Some((at, slot)) = standby.min_by_key(|(at, _)| *at) {
            slot.state = State::At(at.min(now));
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
        actions.push(Action::Cancel(self.slots[at].step.attempt));
        actions.extend(records.into_iter().map(Action::Ended));
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
mod tests {
    use multiaddr::PeerId;
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::core::plan::{
        self, Known,
        tests::{SECOND, rules},
    };

    const MS: Duration = Duration::from_millis(1);
    const NO_JITTER: f64 = 0.5;

    /// A race and what is known to it.
    struct Track {
        race: Race,
        known: Known,
        rules: plan::Rules,
    }

    impl Track {
        fn new(relays: &[PeerId], addresses: bool) -> Self {
            let known = Known {
                ours: true,
                relays: relays.to_vec(),
                addresses,
                ..Known::default()
            };
            let race = Race::new(Duration::ZERO);
            let rules = rules();
            Self { race, known, rules }
        }

        fn tell(&mut self, now: Duration, event: Event) -> Vec<Action> {
            self.race.handle(now, event, NO_JITTER)
        }

        fn replan(&mut self, now: Duration) -> Vec<Action> {
            let plan = plan::plan(&self.known, &self.rules);
            self.tell(now, Event::Plan(plan))
        }

        fn connect(&mut self, now: Duration) -> Vec<Action> {
            let deadline = now + 10 * SECOND;
            assert_eq!(self.tell(now, Event::Connect { deadline }), []);
            self.replan(now)
        }

        /// A path by `attempt` comes up.
        fn up(&mut self, now: Duration, attempt: AttemptId, strategy: Strategy) -> Vec<Action> {
            let mut actions = self.tell(now, Event::Succeeded(attempt, strategy));
            self.known.circuit |= matches!(attempt, AttemptId::Circuit(_));
            self.known.best = self
                .known
                .best
                .or(Some(strategy.kind()))
                .min(Some(strategy.kind()));
            self.known.path = self.known.best;
            actions.extend(self.replan(now));
            actions
        }

        fn failed(&mut self, now: Duration, attempt: AttemptId, cause: Cause) -> Vec<Action> {
            self.tell(now, Event::Failed(attempt, cause, "so".into()))
        }
    }

    fn started(actions: &[Action]) -> Vec<AttemptId> {
        let started = |action: &Action| match action {
            Action::Start(attempt, _) => Some(*attempt),
            _ => None,
        };
        actions.iter().filter_map(started).collect()
    }

    fn ended(
        strategy: Strategy,
        times: (Duration, Duration),
        outcome: Outcome,
        cause: Option<Cause>,
        reason: Option<&str>,
    ) -> Attempt {
        Attempt {
            strategy,
            outcome,
            started: times.0,
            ended: times.1,
            cause,
            reason: reason.map(String::from),
        }
    }

    #[test]
    fn the_first_path_is_accepted_and_the_loser_is_taken_back() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], true);
        assert_eq!(
            track.connect(Duration::ZERO),
            [
                Action::Began(Strategy::CircuitRelay),
                Action::Start(AttemptId::Circuit(relay), 0),
                Action::Began(Strategy::Direct),
                Action::Start(AttemptId::Direct, 0),
            ]
        );
        let circuit = track.up(5 * MS, AttemptId::Circuit(relay), Strategy::CircuitRelay);
        let won = ended(
            Strategy::CircuitRelay,
            (Duration::ZERO, 5 * MS),
            Outcome::Succeeded,
            None,
            None,
        );
        assert_eq!(
            circuit,
            [
                Action::Ended(won),
                Action::Began(Strategy::Direct),
                Action::Began(Strategy::Stun),
                Action::Start(AttemptId::Ice, 0),
                Action::Accept,
            ]
        );
        let direct = track.up(9 * MS, AttemptId::Direct, Strategy::Direct);
        let beaten = |strategy| {
            let times = (5 * MS, 9 * MS);
            let reason = Some("a better path was sooner");
            let cause = Some(Cause::Cancelled);
            Action::Ended(ended(strategy, times, Outcome::Cancelled, cause, reason))
        };
        assert_eq!(
            direct[1..],
            [
                Action::Cancel(AttemptId::Ice),
                beaten(Strategy::Direct),
                beaten(Strategy::Stun),
            ]
        );
        assert_eq!(track.race.wake(), None);
    }

    #[test]
    fn a_worse_path_is_held_back_exactly_as_long_as_configured() {
        let relay = PeerId::random();
        let hold = |until: Duration| {
            let mut track = Track::new(&[relay], true);
            track.race = Race::new(100 * MS);
            track.connect(Duration::ZERO);
            let up = track.up(7 * MS, AttemptId::Circuit(relay), Strategy::CircuitRelay);
            assert!(!up.contains(&Action::Accept));
            assert_eq!(track.race.wake(), Some(107 * MS));
            let accepted = track.tell(until, Event::Tick).contains(&Action::Accept);
            (track, accepted)
        };
        assert!(!hold(106 * MS).1);
        assert!(hold(107 * MS).1);
        // A second connect waits along, and both are answered by a direct path at once,
        let (mut track, _) = hold(50 * MS);
        assert_eq!(track.connect(51 * MS), []);
        let direct = track.up(52 * MS, AttemptId::Direct, Strategy::Direct);
        assert_eq!(direct.last(), Some(&Action::Accept));
        // or when no better one can come any more.
        let (mut track, _) = hold(50 * MS);
        assert!(
            !track
                .failed(60 * MS, AttemptId::Direct, Cause::Refused)
                .contains(&Action::Accept)
        );
        assert!(
            track
                .failed(61 * MS, AttemptId::Ice, Cause::NoPair)
                .contains(&Action::Accept)
        );
    }

    #[test]
    fn a_second_relay_is_asked_after_its_delay_or_the_first_ones_failure() {
        let relays = [PeerId::random(), PeerId::random()];
        let [first, second] = relays.map(AttemptId::Circuit);
        let mut track = Track::new(&relays, false);
        assert_eq!(started(&track.connect(Duration::ZERO)), [first]);
        assert_eq!(track.race.wake(), Some(500 * MS));
        assert_eq!(track.tell(499 * MS, Event::Tick), []);
        assert_eq!(started(&track.tell(500 * MS, Event::Tick)), [second]);
        let mut track = Track::new(&relays, false);
        track.connect(Duration::ZERO);
        let failed = track.failed(3 * MS, first, Cause::RelayUnreachable);
        assert_eq!(started(&failed), [second]);
        let up = track.up(9 * MS, second, Strategy::CircuitRelay);
        assert!(up.contains(&Action::Accept));
    }

    #[test]
    fn when_nothing_is_left_the_error_lists_everything_at_once() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], true);
        track.connect(Duration::ZERO);
        let direct = track.failed(2 * MS, AttemptId::Direct, Cause::WrongPeer);
        assert!(matches!(direct[..], [Action::Ended(_)]));
        let circuit = AttemptId::Circuit(relay);
        let all = track.failed(3 * MS, circuit, Cause::NoReservation);
        let Some(Action::GiveUp {
            connects: 1,
            attempts,
        }) = all.last()
        else {
            panic!("{all:?}");
        };
        let advice = |cause: Cause| format!("so; {}", cause.advice());
        let failed = |strategy, at, cause| {
            let times = (Duration::ZERO, at);
            let reason = advice(cause);
            ended(strategy, times, Outcome::Failed, Some(cause), Some(&reason))
        };
        assert_eq!(
            attempts[..],
            [
                failed(Strategy::Direct, 2 * MS, Cause::WrongPeer),
                failed(Strategy::CircuitRelay, 3 * MS, Cause::NoReservation),
            ]
        );
    }

    #[test]
    fn the_budget_of_each_connect_is_its_own() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], false);
        track.rules.timeout = 60 * SECOND;
        track.connect(Duration::ZERO);
        assert_eq!(track.connect(4 * SECOND), []);
        assert_eq!(track.tell(10 * SECOND - MS, Event::Tick), []);
        let first = track.tell(10 * SECOND, Event::Tick);
        let [
            Action::GiveUp {
                connects: 1,
                attempts,
            },
        ] = &first[..]
        else {
            panic!("{first:?}");
        };
        assert_eq!(attempts[0].cause, Some(Cause::Timeout));
        let second = track.tell(14 * SECOND, Event::Tick);
        assert!(matches!(
            second[..],
            [
                Action::Cancel(_),
                Action::Ended(_),
                Action::GiveUp { connects: 1, .. }
            ]
        ));
    }

    #[test]
    fn one_attempt_ends_at_its_own_timeout() {
        let mut track = Track::new(&[], true);
        track.rules.timeout = 3 * SECOND;
        track.connect(Duration::ZERO);
        assert_eq!(track.tell(3 * SECOND - MS, Event::Tick), []);
        let actions = track.tell(3 * SECOND, Event::Tick);
        assert_eq!(actions[0], Action::Cancel(AttemptId::Direct));
        let Action::Ended(attempt) = &actions[1] else {
            panic!("{actions:?}");
        };
        assert_eq!(attempt.cause, Some(Cause::Timeout));
        assert!(attempt.reason.as_ref().unwrap().contains("3000 ms"));
        assert!(matches!(actions[2], Action::GiveUp { connects: 1, .. }));
    }

    #[test]
    fn what_failed_is_repeated_in_the_background_after_2_4_and_8_seconds() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], false);
        track.connect(Duration::ZERO);
        track.up(
            Duration::ZERO,
            AttemptId::Circuit(relay),
            Strategy::CircuitRelay,
        );
        let mut now = Duration::ZERO;
        for pause in [2, 4, 8] {
            let failed = track.failed(now, AttemptId::Ice, Cause::NoPair);
            assert!(failed.iter().all(|a| matches!(a, Action::Ended(_))));
            now += pause * SECOND;
            assert_eq!(track.race.wake(), Some(now));
            assert_eq!(track.tell(now - MS, Event::Tick), []);
            assert_eq!(started(&track.tell(now, Event::Tick)), [AttemptId::Ice]);
        }
        track.failed(now, AttemptId::Ice, Cause::NoPair);
        assert_eq!(track.race.wake(), None);
        // Another circuit is another situation.
        track.known.circuit = false;
        track.replan(now);
        track.known.circuit = true;
        assert_eq!(started(&track.replan(now)), [AttemptId::Ice]);
    }

    #[test]
    fn a_connect_hurries_what_pauses() {
        let relay = PeerId::random();
        let circuit = AttemptId::Circuit(relay);
        let mut track = Track::new(&[relay], false);
        track.connect(Duration::ZERO);
        track.up(Duration::ZERO, circuit, Strategy::CircuitRelay);
        track.failed(MS, AttemptId::Ice, Cause::Unsupported);
        (track.known.circuit, track.known.best, track.known.path) = (false, None, None);
        assert_eq!(started(&track.replan(2 * MS)), [circuit]);
        track.failed(3 * MS, circuit, Cause::RelayUnreachable);
        assert_eq!(track.race.wake(), Some(503 * MS));
        assert_eq!(started(&track.connect(4 * MS)), [circuit]);
    }

    #[test]
    fn a_peer_that_does_not_speak_one_way_is_asked_for_the_next() {
        let mut track = Track::new(&[], true);
        let mut plan = plan::plan(&track.known, &track.rules);
        plan.steps[0].ways = 2;
        track.tell(Duration::ZERO, Event::Plan(plan));
        let next = track.failed(MS, AttemptId::Direct, Cause::Unsupported);
        assert_eq!(next, [Action::Start(AttemptId::Direct, 1)]);
        let last = track.failed(2 * MS, AttemptId::Direct, Cause::Unsupported);
        assert!(matches!(last[..], [Action::Ended(_)]));
        assert_eq!(track.race.wake(), None);
    }

    #[test]
    fn a_strategy_that_joins_has_an_end_of_its_own() {
        let relay = PeerId::random();
        let running = || {
            let mut track = Track::new(&[relay], false);
            track.connect(Duration::ZERO);
            let circuit = AttemptId::Circuit(relay);
            track.up(Duration::ZERO, circuit, Strategy::CircuitRelay);
            let joined = Event::Joined(AttemptId::Ice, Strategy::Birthday);
            assert_eq!(
                track.tell(SECOND, Event::Joined(circuit, Strategy::Turn)),
                []
            );
            let began = [Action::Began(Strategy::Birthday)];
            assert_eq!(track.tell(SECOND, joined.clone()), began);
            assert_eq!(track.tell(SECOND, joined), []);
            track
        };
        let birthday = |at: u32, outcome, cause, reason| {
            let times = (SECOND, SECOND * at);
            let ended = ended(Strategy::Birthday, times, outcome, cause, reason);
            Action::Ended(ended)
        };
        // It wins, from when it joined,
        let won = running().up(2 * SECOND, AttemptId::Ice, Strategy::Birthday);
        assert_eq!(won[0], birthday(2, Outcome::Succeeded, None, None));
        assert_eq!(
            won.iter().filter(|a| matches!(a, Action::Ended(_))).count(),
            3
        );
        // without what has left before,
        let mut track = running();
        let reason = "nothing there".to_owned();
        let left = Event::Left(AttemptId::Ice, Strategy::Stun, Cause::NoGateway, reason);
        assert_eq!(track.tell(SECOND, left.clone()).len(), 1);
        assert_eq!(track.tell(SECOND, left), []);
        let won = track.up(2 * SECOND, AttemptId::Ice, Strategy::Birthday);
        assert_eq!(
            won.iter().filter(|a| matches!(a, Action::Ended(_))).count(),
            2
        );
        // is beaten,
        let beaten = running().up(2 * SECOND, AttemptId::Ice, Strategy::Stun);
        let (cause, reason) = (Some(Cause::Cancelled), Some("stun was better"));
        assert!(beaten.contains(&birthday(2, Outcome::Cancelled, cause, reason)));
        // or leaves, which is no failure of the attempt; it may join again.
        let mut track = running();
        let busy = Event::Left(
            AttemptId::Ice,
            Strategy::Birthday,
            Cause::Limit,
            "busy".into(),
        );
        let left = track.tell(2 * SECOND, busy.clone());
        let reason = format!("busy; {}", Cause::Limit.advice());
        let (cause, reason) = (Some(Cause::Limit), Some(&*reason));
        assert_eq!(left, [birthday(2, Outcome::Failed, cause, reason)]);
        assert_eq!(track.tell(2 * SECOND, busy), []);
        let failed = track.failed(3 * SECOND, AttemptId::Ice, Cause::NoPair);
        assert_eq!(failed.len(), 2);
        let again = track.tell(9 * SECOND, Event::Tick);
        assert_eq!(started(&again), [AttemptId::Ice]);
    }

    #[test]
    fn the_peer_may_bring_a_strategy_in() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], false);
        track.connect(Duration::ZERO);
        track.up(
            Duration::ZERO,
            AttemptId::Circuit(relay),
            Strategy::CircuitRelay,
        );
        let up = track.up(MS, AttemptId::Ice, Strategy::Turn);
        assert_eq!(up[0], Action::Began(Strategy::Turn));
        let ends = up.iter().filter(|a| matches!(a, Action::Ended(_)));
        assert_eq!(ends.count(), 3);
    }

    #[test]
    fn what_is_deferred_goes_on_with_the_circuit_and_counts_once() {
        let relay = PeerId::random();
        let circuit = AttemptId::Circuit(relay);
        let mut track = Track::new(&[relay], false);
        track.known.offer = true;
        let actions = track.connect(MS);
        assert_eq!(started(&actions), [circuit, AttemptId::Ice]);
        track.known.offer = false;
        assert_eq!(track.tell(2 * MS, Event::Deferred(AttemptId::Ice)), []);
        assert_eq!(track.replan(2 * MS), []);
        let actions = track.up(3 * MS, circuit, Strategy::CircuitRelay);
        assert_eq!(started(&actions), [AttemptId::Ice]);
        let began = |action: &Action| matches!(action, Action::Began(_));
        assert!(!actions.iter().any(began), "{actions:?}");
    }

    #[test]
    fn what_is_deferred_is_no_hope() {
        let relay = PeerId::random();
        let mut track = Track::new(&[relay], false);
        track.known.offer = true;
        track.connect(MS);
        track.known.offer = false;
        track.tell(2 * MS, Event::Deferred(AttemptId::Ice));
        let actions = track.failed(3 * MS, AttemptId::Circuit(relay), Cause::Refused);
        let Some(Action::GiveUp { attempts, .. }) = actions.last() else {
            panic!("{actions:?}");
        };
        let causes: Vec<_> = attempts.iter().map(|a| (a.strategy, a.cause)).collect();
        let expected = [
            (Strategy::CircuitRelay, Some(Cause::Refused)),
            (Strategy::Direct, Some(Cause::Signalling)),
            (Strategy::Stun, Some(Cause::Signalling)),
        ];
        assert_eq!(causes, expected);
    }

    proptest! {
        /// Attempts are successes, failures and what still runs, per strategy; no connect is
        /// answered twice, and none is left when its time is over.
        #[test]
        fn the_books_balance(events in vec((0u64..4_000, 0u8..11, 0u8..4), 1..60)) {
            let relays = [PeerId::random(), PeerId::random()];
            let ids = [
                AttemptId::Circuit(relays[0]),
                AttemptId::Circuit(relays[1]),
                AttemptId::Direct,
                AttemptId::Ice,
            ];
            let mut track = Track::new(&relays, true);
            track.known.offer = true;
            let (mut now, mut waiting) = (Duration::ZERO, 0usize);
            let mut open = std::collections::HashMap::<Strategy, i64>::new();
            for (pause, what, which) in events {
                now += Duration::from_millis(pause);
                let id = ids[usize::from(which)];
                let actions = match what {
                    0 | 1 => {
                        waiting += 1;
                        track.connect(now)
                    }
                    2 if track.race.is_running(id) => {
                        let strategy = match id {
                            AttemptId::Circuit(_) => Strategy::CircuitRelay,
                            AttemptId::Direct => Strategy::Direct,
                            AttemptId::Ice => Strategy::Turn,
                        };
                        track.up(now, id, strategy)
                    }
                    3 | 4 => track.failed(now, id, Cause::Refused),
                    5 => {
                        track.known.circuit = false;
                        (track.known.best, track.known.path) = (None, None);
                        track.replan(now)
                    }
                    6 => track.failed(now, id, Cause::Unsupported),
                    7 => track.tell(now, Event::Joined(id, Strategy::Birthday)),
                    9 => {
                        track.known.offer = false;
                        let mut actions = track.tell(now, Event::Deferred(AttemptId::Ice));
                        actions.extend(track.replan(now));
                        actions
                    }
                    8 => {
                        let (birthday, reason) = (Strategy::Birthday, String::new());
                        track.tell(now, Event::Left(id, birthday, Cause::NoPair, reason))
                    }
                    _ => track.tell(now, Event::Tick),
                };
                for action in actions {
                    match action {
                        Action::Began(strategy) => *open.entry(strategy).or_default() += 1,
                        Action::Ended(attempt) => *open.entry(attempt.strategy).or_default() -= 1,
                        Action::Accept => waiting = 0,
                        Action::GiveUp { connects, .. } => waiting -= connects,
                        Action::Start(..) | Action::Cancel(_) => {}
                    }
                }
                prop_assert_eq!(waiting, track.race.connects.len());
                prop_assert!(track.race.connects.iter().all(|deadline| *deadline > now));
            }
            for action in track.tell(now, Event::Closed) {
                if let Action::Ended(attempt) = action {
                    *open.entry(attempt.strategy).or_default() -= 1;
                }
            }
            prop_assert!(open.values().all(|left| *left == 0), "{:?}", open);
        }
    }
}
