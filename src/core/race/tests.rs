mod again;
mod failures;
mod rivals;

use multiaddr::PeerId;
use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::core::plan::{
    self, Known, SPARE_WAIT,
    tests::{SECOND, rules},
};

const MS: Duration = Duration::from_millis(1);
const NO_JITTER: f64 = 0.5;

/// A race and the facts it is told.
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

    fn tell(&mut self, now: Duration, event: RaceEvent) -> Vec<RaceAction> {
        self.race.handle(now, event, NO_JITTER)
    }

    fn replan(&mut self, now: Duration) -> Vec<RaceAction> {
        let plan = plan::plan(&self.known, &self.rules);
        self.tell(now, RaceEvent::Plan(plan))
    }

    fn connect(&mut self, now: Duration) -> Vec<RaceAction> {
        let deadline = now + 10 * SECOND;
        assert_eq!(self.tell(now, RaceEvent::Connect { deadline }), []);
        self.replan(now)
    }

    /// Brings up a path by `attempt`.
    fn up(&mut self, now: Duration, attempt: AttemptId, strategy: Strategy) -> Vec<RaceAction> {
        let mut actions = self.tell(now, RaceEvent::Succeeded(attempt, strategy));
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

    fn failed(&mut self, now: Duration, attempt: AttemptId, cause: Cause) -> Vec<RaceAction> {
        self.tell(now, RaceEvent::Failed(attempt, cause, "so".into()))
    }
}

fn started(actions: &[RaceAction]) -> Vec<AttemptId> {
    let started = |action: &RaceAction| match action {
        RaceAction::Start(attempt, _) => Some(*attempt),
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
fn the_first_path_is_accepted_and_worse_attempts_are_cancelled() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], true);
    assert_eq!(
        track.connect(Duration::ZERO),
        [
            RaceAction::Began(Strategy::CircuitRelay),
            RaceAction::Start(AttemptId::Circuit(relay), false),
            RaceAction::Began(Strategy::Direct),
            RaceAction::Start(AttemptId::Direct, false),
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
            RaceAction::Ended(won),
            RaceAction::Began(Strategy::Direct),
            RaceAction::Began(Strategy::Stun),
            RaceAction::Start(AttemptId::Ice, false),
            RaceAction::Accept,
        ]
    );
    let direct = track.up(9 * MS, AttemptId::Direct, Strategy::Direct);
    let beaten = |strategy| {
        let times = (5 * MS, 9 * MS);
        let reason = Some("a better path came up first");
        let cause = Some(Cause::Cancelled);
        RaceAction::Ended(ended(strategy, times, Outcome::Cancelled, cause, reason))
    };
    assert_eq!(
        direct[1..],
        [
            RaceAction::Cancel(AttemptId::Ice),
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
        assert!(!up.contains(&RaceAction::Accept));
        assert_eq!(track.race.wake(), Some(107 * MS));
        let accepted = track
            .tell(until, RaceEvent::Tick)
            .contains(&RaceAction::Accept);
        (track, accepted)
    };
    assert!(!hold(106 * MS).1);
    assert!(hold(107 * MS).1);
    // It is held back for no longer than a call waits.
    let mut track = Track::new(&[relay], true);
    track.race = Race::new(20 * SECOND);
    track.connect(Duration::ZERO);
    track.up(7 * MS, AttemptId::Circuit(relay), Strategy::CircuitRelay);
    assert_eq!(track.tell(10 * SECOND - MS, RaceEvent::Tick), []);
    let actions = track.tell(10 * SECOND, RaceEvent::Tick);
    assert!(actions.contains(&RaceAction::Accept));
    // A second connect waits with the first. A direct path answers both at once.
    let (mut track, _) = hold(50 * MS);
    assert_eq!(track.connect(51 * MS), []);
    let direct = track.up(52 * MS, AttemptId::Direct, Strategy::Direct);
    assert_eq!(direct.last(), Some(&RaceAction::Accept));
    // Both are also answered when no better path can come any more.
    let (mut track, _) = hold(50 * MS);
    assert!(
        !track
            .failed(60 * MS, AttemptId::Direct, Cause::Refused)
            .contains(&RaceAction::Accept)
    );
    assert!(
        track
            .failed(61 * MS, AttemptId::Ice, Cause::NoPair)
            .contains(&RaceAction::Accept)
    );
}

#[test]
fn a_second_relay_is_asked_after_its_delay_or_the_first_ones_failure() {
    let relays = [PeerId::random(), PeerId::random()];
    let [first, second] = relays.map(AttemptId::Circuit);
    let mut track = Track::new(&relays, false);
    assert_eq!(started(&track.connect(Duration::ZERO)), [first]);
    assert_eq!(track.race.wake(), Some(500 * MS));
    assert_eq!(track.tell(499 * MS, RaceEvent::Tick), []);
    assert_eq!(started(&track.tell(500 * MS, RaceEvent::Tick)), [second]);
    let mut track = Track::new(&relays, false);
    track.connect(Duration::ZERO);
    let failed = track.failed(3 * MS, first, Cause::RelayUnreachable);
    assert_eq!(started(&failed), [second]);
    let up = track.up(9 * MS, second, Strategy::CircuitRelay);
    assert!(up.contains(&RaceAction::Accept));
}

#[test]
fn each_connect_has_its_own_deadline() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], false);
    track.rules.timeout = 60 * SECOND;
    track.connect(Duration::ZERO);
    assert_eq!(track.connect(4 * SECOND), []);
    assert_eq!(track.tell(10 * SECOND - MS, RaceEvent::Tick), []);
    let first = track.tell(10 * SECOND, RaceEvent::Tick);
    let [
        RaceAction::GiveUp {
            connects: 1,
            attempts,
        },
    ] = &first[..]
    else {
        panic!("{first:?}");
    };
    assert_eq!(attempts[0].cause, Some(Cause::Timeout));
    let second = track.tell(14 * SECOND, RaceEvent::Tick);
    assert!(matches!(
        second[..],
        [
            RaceAction::Cancel(_),
            RaceAction::Ended(_),
            RaceAction::GiveUp { connects: 1, .. }
        ]
    ));
}

#[test]
fn ice_is_made_anew_with_turn_when_it_gives_no_path_in_time() {
    let relay = PeerId::random();
    let begun = || {
        let mut track = Track::new(&[relay], false);
        (track.rules.turn, track.rules.anew) = (true, Some(3 * SECOND));
        track.connect(Duration::ZERO);
        let circuit = AttemptId::Circuit(relay);
        track.up(Duration::ZERO, circuit, Strategy::CircuitRelay);
        assert_eq!(track.race.wake(), Some(3 * SECOND));
        track
    };
    let count = |actions: &[RaceAction], is: fn(&RaceAction) -> bool| {
        actions.iter().filter(|action| is(action)).count()
    };
    let began =
        |actions: &[RaceAction]| count(actions, |action| matches!(action, RaceAction::Began(_)));
    let ended =
        |actions: &[RaceAction]| count(actions, |action| matches!(action, RaceAction::Ended(_)));
    let start = Some(&RaceAction::Start(AttemptId::Ice, true));
    let mut track = begun();
    let late = track.tell(3 * SECOND, RaceEvent::Tick);
    assert_eq!(late[0], RaceAction::Cancel(AttemptId::Ice));
    assert_eq!((ended(&late), began(&late), late.last()), (2, 3, start));
    let all = Some(13 * SECOND);
    assert_eq!(track.race.wake(), all, "it has its whole time again");
    let failed = track.failed(4 * SECOND, AttemptId::Ice, Cause::NoPair);
    assert_eq!((ended(&failed), failed.len()), (3, 3));
    assert_eq!(track.tell(6 * SECOND, RaceEvent::Tick).last(), start);
    // It need not wait once it has failed.
    let failed = begun().failed(SECOND, AttemptId::Ice, Cause::NoPair);
    assert_eq!((ended(&failed), failed.last()), (2, start));
    // A peer that does not speak the protocol does not speak it with TURN either.
    let mut track = begun();
    track.failed(SECOND, AttemptId::Ice, Cause::Unsupported);
    assert_eq!(track.race.wake(), None);
}

#[test]
fn a_strategy_that_joins_is_recorded_on_its_own() {
    let relay = PeerId::random();
    let running = || {
        let mut track = Track::new(&[relay], false);
        track.connect(Duration::ZERO);
        let circuit = AttemptId::Circuit(relay);
        track.up(Duration::ZERO, circuit, Strategy::CircuitRelay);
        let joined = RaceEvent::Joined(AttemptId::Ice, Strategy::Birthday);
        assert_eq!(
            track.tell(SECOND, RaceEvent::Joined(circuit, Strategy::Turn)),
            []
        );
        let began = [RaceAction::Began(Strategy::Birthday)];
        assert_eq!(track.tell(SECOND, joined.clone()), began);
        assert_eq!(track.tell(SECOND, joined), []);
        track
    };
    let birthday = |at: u32, outcome, cause, reason| {
        let times = (SECOND, SECOND * at);
        let ended = ended(Strategy::Birthday, times, outcome, cause, reason);
        RaceAction::Ended(ended)
    };
    // The strategy wins. Its record begins when it joined.
    let won = running().up(2 * SECOND, AttemptId::Ice, Strategy::Birthday);
    assert_eq!(won[0], birthday(2, Outcome::Succeeded, None, None));
    assert_eq!(
        won.iter()
            .filter(|a| matches!(a, RaceAction::Ended(_)))
            .count(),
        3
    );
    // A strategy that has left before has no second record.
    let mut track = running();
    let reason = "nothing there".to_owned();
    let left = RaceEvent::Left(AttemptId::Ice, Strategy::Stun, Cause::NoGateway, reason);
    assert_eq!(track.tell(SECOND, left.clone()).len(), 1);
    assert_eq!(track.tell(SECOND, left), []);
    let won = track.up(2 * SECOND, AttemptId::Ice, Strategy::Birthday);
    assert_eq!(
        won.iter()
            .filter(|a| matches!(a, RaceAction::Ended(_)))
            .count(),
        2
    );
    // The strategy is beaten.
    let beaten = running().up(2 * SECOND, AttemptId::Ice, Strategy::Stun);
    let (cause, reason) = (Some(Cause::Cancelled), Some("stun was better"));
    assert!(beaten.contains(&birthday(2, Outcome::Cancelled, cause, reason)));
    // The strategy leaves, and the attempt does not fail by this. It may join again.
    let mut track = running();
    let busy = RaceEvent::Left(
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
    let again = track.tell(9 * SECOND, RaceEvent::Tick);
    assert_eq!(started(&again), [AttemptId::Ice]);
}

#[test]
fn the_peer_may_add_a_strategy() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], false);
    track.connect(Duration::ZERO);
    track.up(
        Duration::ZERO,
        AttemptId::Circuit(relay),
        Strategy::CircuitRelay,
    );
    let up = track.up(MS, AttemptId::Ice, Strategy::Turn);
    assert_eq!(up[0], RaceAction::Began(Strategy::Turn));
    let ends = up.iter().filter(|a| matches!(a, RaceAction::Ended(_)));
    assert_eq!(ends.count(), 3);
}

#[test]
fn a_deferred_attempt_goes_on_with_the_circuit_and_counts_once() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let mut track = Track::new(&[relay], false);
    track.known.offer = true;
    let actions = track.connect(MS);
    assert_eq!(started(&actions), [circuit, AttemptId::Ice]);
    track.known.offer = false;
    assert_eq!(track.tell(2 * MS, RaceEvent::Deferred(AttemptId::Ice)), []);
    assert_eq!(track.replan(2 * MS), []);
    let actions = track.up(3 * MS, circuit, Strategy::CircuitRelay);
    assert_eq!(started(&actions), [AttemptId::Ice]);
    let began = |action: &RaceAction| matches!(action, RaceAction::Began(_));
    assert!(!actions.iter().any(began), "{actions:?}");
}

#[test]
fn a_deferred_attempt_does_not_keep_a_connect_waiting() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], false);
    track.known.offer = true;
    track.connect(MS);
    track.known.offer = false;
    track.tell(2 * MS, RaceEvent::Deferred(AttemptId::Ice));
    let actions = track.failed(3 * MS, AttemptId::Circuit(relay), Cause::RelayUnreachable);
    let Some(RaceAction::GiveUp { attempts, .. }) = actions.last() else {
        panic!("{actions:?}");
    };
    let causes: Vec<_> = attempts.iter().map(|a| (a.strategy, a.cause)).collect();
    let expected = [
        (Strategy::CircuitRelay, Some(Cause::RelayUnreachable)),
        (Strategy::Direct, Some(Cause::Signalling)),
        (Strategy::Stun, Some(Cause::Signalling)),
    ];
    assert_eq!(causes, expected);
}

#[test]
fn a_circuit_that_is_refused_is_asked_for_once_more_while_a_call_waits() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let mut track = Track::new(&[relay], false);
    track.connect(MS);
    let refused = track.failed(100 * MS, circuit, Cause::Refused);
    assert_eq!(started(&refused), []);
    assert_eq!(started(&track.tell(599 * MS, RaceEvent::Tick)), []);
    let again = track.tell(600 * MS, RaceEvent::Tick);
    assert_eq!(started(&again), [circuit]);
    let given_up = track.failed(700 * MS, circuit, Cause::Refused);
    assert!(matches!(given_up.last(), Some(RaceAction::GiveUp { .. })));
}

#[test]
fn a_peer_that_refuses_ice_is_not_asked_again() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], false);
    track.connect(MS);
    track.up(2 * MS, AttemptId::Circuit(relay), Strategy::CircuitRelay);
    let refused = track.failed(3 * MS, AttemptId::Ice, Cause::Refused);
    let reasons: Vec<_> = refused
        .iter()
        .filter_map(|action| match action {
            RaceAction::Ended(attempt) => attempt.reason.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, ["so", "so"], "there is nothing to check");
    assert_eq!(started(&track.tell(3600 * SECOND, RaceEvent::Tick)), []);
    assert_eq!(track.race.wake(), None);
}

#[test]
fn a_spare_circuit_starts_when_it_is_due_or_ice_needs_it() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let spared = || {
        let mut track = Track::new(&[relay], false);
        (track.known.offer, track.known.spared) = (true, Some(0));
        assert_eq!(started(&track.connect(MS)), [AttemptId::Ice]);
        assert!(track.race.seeks_circuit() && track.race.awaits_circuit());
        track
    };
    let mut track = spared();
    assert_eq!(started(&track.tell(2 * MS, RaceEvent::Due)), [circuit]);
    assert!(track.race.seeks_circuit() && !track.race.awaits_circuit());
    assert_eq!(track.tell(3 * MS, RaceEvent::Due), []);

    let mut track = spared();
    let actions = track.tell(2 * MS, RaceEvent::Deferred(AttemptId::Ice));
    assert_eq!(started(&actions), [circuit]);

    let mut track = spared();
    let actions = track.failed(2 * MS, AttemptId::Ice, Cause::NoPair);
    assert_eq!(started(&actions), [circuit]);

    let mut track = spared();
    assert_eq!(track.replan(2 * MS), [], "nothing has been found");
    assert_eq!(started(&track.tell(SPARE_WAIT, RaceEvent::Tick)), []);
    let actions = track.tell(SPARE_WAIT + MS, RaceEvent::Tick);
    assert_eq!(started(&actions), [circuit]);

    let mut track = spared();
    track.up(2 * MS, AttemptId::Ice, Strategy::Stun);
    assert_eq!(track.race.wake(), None, "only its turn starts it");
    assert!(track.race.awaits_circuit());
    assert_eq!(started(&track.tell(SECOND, RaceEvent::Due)), [circuit]);
    track.up(2 * SECOND, circuit, Strategy::CircuitRelay);
    track.known.circuit = false;
    assert_eq!(track.replan(3 * SECOND), []);
    assert_eq!(track.race.wake(), None, "only its turn starts the next one");

    let mut track = spared();
    track.up(2 * MS, AttemptId::Ice, Strategy::Stun);
    (track.known.best, track.known.path, track.known.spared) = (None, None, None);
    assert_eq!(started(&track.replan(3 * MS)), [circuit, AttemptId::Ice]);

    let mut track = Track::new(&[relay], false);
    (track.known.offer, track.known.spared) = (true, Some(0));
    track.rules.timeout = 2 * SECOND;
    track.connect(MS);
    let actions = track.tell(2 * SECOND + MS, RaceEvent::Tick);
    assert_eq!(started(&actions), [circuit]);
    assert!(
        !actions
            .iter()
            .any(|a| matches!(a, RaceAction::GiveUp { .. }))
    );
}

proptest! {
    /// Each strategy that has begun has either ended or is still under way. No connect is answered
    /// twice, and none is left when its time is over.
    #[test]
    fn every_strategy_and_every_connect_ends_once(events in vec((0u64..4_000, 0u8..12, 0u8..4), 1..60)) {
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
                    track.known.spared = (what == 1).then_some(0);
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
                7 => track.tell(now, RaceEvent::Joined(id, Strategy::Birthday)),
                9 => {
                    track.known.offer = false;
                    let mut actions = track.tell(now, RaceEvent::Deferred(AttemptId::Ice));
                    actions.extend(track.replan(now));
                    actions
                }
                8 => {
                    let (birthday, reason) = (Strategy::Birthday, String::new());
                    track.tell(now, RaceEvent::Left(id, birthday, Cause::NoPair, reason))
                }
                10 => track.tell(now, RaceEvent::Due),
                _ => track.tell(now, RaceEvent::Tick),
            };
            for action in actions {
                match action {
                    RaceAction::Began(strategy) => *open.entry(strategy).or_default() += 1,
                    RaceAction::Ended(attempt) => *open.entry(attempt.strategy).or_default() -= 1,
                    RaceAction::Accept => waiting = 0,
                    RaceAction::GiveUp { connects, .. } => waiting -= connects,
                    RaceAction::Start(..) | RaceAction::Cancel(_) => {}
                }
            }
            prop_assert_eq!(waiting, track.race.connects.len());
            prop_assert!(track.race.connects.iter().all(|deadline| *deadline > now));
        }
        for action in track.tell(now, RaceEvent::Closed) {
            if let RaceAction::Ended(attempt) = action {
                *open.entry(attempt.strategy).or_default() -= 1;
            }
        }
        prop_assert!(open.values().all(|left| *left == 0), "{:?}", open);
    }
}
