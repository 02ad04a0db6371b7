//! Attempts that fail, and what a call is told about them.

use super::*;

#[test]
fn when_every_attempt_has_failed_the_error_lists_them_all() {
    let relay = PeerId::random();
    let mut track = Track::new(&[relay], true);
    track.connect(Duration::ZERO);
    let direct = track.failed(2 * MS, AttemptId::Direct, Cause::WrongPeer);
    assert!(matches!(direct[..], [RaceAction::Ended(_)]));
    let circuit = AttemptId::Circuit(relay);
    let all = track.failed(3 * MS, circuit, Cause::NoReservation);
    let Some(RaceAction::GiveUp {
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
fn an_attempt_that_was_cancelled_has_not_failed() {
    for (cause, outcome) in [
        (Cause::Cancelled, Outcome::Cancelled),
        (Cause::Refused, Outcome::Failed),
    ] {
        let mut track = Track::new(&[PeerId::random()], true);
        track.connect(Duration::ZERO);
        let actions = track.failed(MS, AttemptId::Direct, cause);
        let found = actions.iter().find_map(|action| match action {
            RaceAction::Ended(attempt) => Some(attempt.outcome),
            _ => None,
        });
        assert_eq!(found, Some(outcome));
    }
}

#[test]
fn one_attempt_ends_at_its_own_timeout() {
    let mut track = Track::new(&[], true);
    track.rules.timeout = 3 * SECOND;
    track.connect(Duration::ZERO);
    assert_eq!(track.tell(3 * SECOND - MS, RaceEvent::Tick), []);
    let actions = track.tell(3 * SECOND, RaceEvent::Tick);
    assert_eq!(actions[0], RaceAction::Cancel(AttemptId::Direct));
    let RaceAction::Ended(attempt) = &actions[1] else {
        panic!("{actions:?}");
    };
    assert_eq!(attempt.cause, Some(Cause::Timeout));
    assert!(attempt.reason.as_ref().unwrap().contains("3000 ms"));
    assert!(matches!(actions[2], RaceAction::GiveUp { connects: 1, .. }));
}
