//! Attempts that are made again.

use super::*;

#[test]
fn failed_attempts_are_repeated_after_2_4_and_8_seconds_and_then_once_a_minute() {
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
        assert!(failed.iter().all(|a| matches!(a, RaceAction::Ended(_))));
        now += pause * SECOND;
        assert_eq!(track.race.wake(), Some(now));
        assert_eq!(track.tell(now - MS, RaceEvent::Tick), []);
        assert_eq!(started(&track.tell(now, RaceEvent::Tick)), [AttemptId::Ice]);
    }
    // From then on, it is repeated once a minute.
    for _ in 0..3 {
        track.failed(now, AttemptId::Ice, Cause::NoPair);
        now += 60 * SECOND;
        assert_eq!(track.race.wake(), Some(now));
        assert_eq!(started(&track.tell(now, RaceEvent::Tick)), [AttemptId::Ice]);
    }
    // A change of the network starts it at once, and the pauses are short again.
    track.failed(now, AttemptId::Ice, Cause::NoPair);
    now += SECOND;
    assert_eq!(started(&track.tell(now, RaceEvent::Anew)), [AttemptId::Ice]);
    track.failed(now, AttemptId::Ice, Cause::NoPair);
    assert_eq!(track.race.wake(), Some(now + 2 * SECOND));
    // After another circuit has come up, the attempt is made again.
    track.known.circuit = false;
    track.replan(now);
    track.known.circuit = true;
    assert_eq!(started(&track.replan(now)), [AttemptId::Ice]);
}

#[test]
fn a_lost_path_is_sought_every_two_seconds() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let mut track = Track::new(&[relay], false);
    track.connect(Duration::ZERO);
    track.up(Duration::ZERO, circuit, Strategy::CircuitRelay);
    (track.known.circuit, track.known.best, track.known.path) = (false, None, None);
    let mut now = SECOND;
    assert_eq!(started(&track.replan(now)), [circuit]);
    for pause in [500, 1_000, 2_000, 2_000, 2_000, 2_000, 2_000].map(Duration::from_millis) {
        track.failed(now, circuit, Cause::NoReservation);
        now += pause;
        assert_eq!(track.tell(now - MS, RaceEvent::Tick), []);
        assert_eq!(started(&track.tell(now, RaceEvent::Tick)), [circuit]);
    }
}

#[test]
fn what_failed_beside_a_lost_path_is_made_again_after_its_start_delay() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let mut track = Track::new(&[relay], true);
    track.rules.start.direct = 100 * MS;
    track.rules.ice.clear();
    track.connect(Duration::ZERO);
    track.up(5 * MS, circuit, Strategy::CircuitRelay);
    track.tell(100 * MS, RaceEvent::Tick);
    track.failed(SECOND, AttemptId::Direct, Cause::Refused);
    (track.known.circuit, track.known.best, track.known.path) = (false, None, None);
    assert_eq!(started(&track.replan(SECOND)), [circuit]);
    assert_eq!(track.race.wake(), Some(SECOND + 100 * MS));
}

#[test]
fn what_the_old_network_has_swallowed_is_made_again_while_there_is_no_path() {
    let relay = PeerId::random();
    let circuit = AttemptId::Circuit(relay);
    let mut track = Track::new(&[relay], false);
    track.connect(Duration::ZERO);
    assert!(track.race.is_running(circuit));
    let soon = SWALLOWED - MS;
    assert_eq!(track.tell(soon, RaceEvent::Anew), [], "it has just begun");
    let again = track.tell(SWALLOWED, RaceEvent::Anew);
    assert_eq!(again[0], RaceAction::Cancel(circuit));
    assert_eq!(started(&again), [circuit]);
    track.up(SECOND, circuit, Strategy::CircuitRelay);
    assert!(track.race.is_running(AttemptId::Ice));
    let anew = track.tell(4 * SECOND, RaceEvent::Anew);
    assert_eq!(anew, [], "candidates follow by themselves");
}

#[test]
fn a_connect_starts_pausing_attempts_at_once() {
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
