//! Circuits besides the one in use.

use super::*;
use crate::core::plan::{RELAY_STAGGER, RIVAL_STAGGER};

/// A race to a peer at two relays, with only a circuit through the first one, which came up at `now`.
fn over_the_first(now: Duration, relays: [PeerId; 2]) -> Track {
    let mut track = Track::new(&relays, false);
    track.rules.ice.clear();
    track.connect(Duration::ZERO);
    track.tell(now, RaceEvent::Tick);
    track.known.rivals = vec![relays[1]];
    let [first, second] = relays.map(AttemptId::Circuit);
    let actions = track.up(now, first, Strategy::CircuitRelay);
    let cancelled = actions.contains(&RaceAction::Cancel(second));
    assert_eq!(
        cancelled,
        now >= RELAY_STAGGER,
        "what was sought is sought no more"
    );
    assert_eq!(started(&actions), []);
    track
}

#[test]
fn the_next_relay_becomes_a_rival_that_is_tried_once_and_later() {
    for now in [50 * MS, RELAY_STAGGER + 50 * MS] {
        let relays = [(); 2].map(|()| PeerId::random());
        let rival = AttemptId::Circuit(relays[1]);
        let mut track = over_the_first(now, relays);
        let due = now + RIVAL_STAGGER;
        assert_eq!(track.race.wake(), Some(due));
        assert!(
            !track.race.awaits_circuit(),
            "it takes no turn of a spare circuit"
        );
        assert_eq!(track.replan(now + SECOND), []);
        assert_eq!(started(&track.tell(due, RaceEvent::Tick)), [rival]);
        track.failed(due + MS, rival, Cause::Refused);
        track.replan(due + SECOND);
        track.tell(due + SECOND, RaceEvent::Anew);
        assert_eq!(track.race.wake(), None);
    }
}

#[test]
fn a_rival_is_sought_when_the_circuit_in_use_is_gone() {
    let lose = |track: &mut Track, now| {
        (track.known.circuit, track.known.best, track.known.path) = (false, None, None);
        track.replan(now)
    };
    let relays = [(); 2].map(|()| PeerId::random());
    let [first, rival] = relays.map(AttemptId::Circuit);
    let due = 50 * MS + RIVAL_STAGGER;

    // Under way, it goes on, and is repeated like any other.
    let mut track = over_the_first(50 * MS, relays);
    track.tell(due, RaceEvent::Tick);
    assert_eq!(started(&lose(&mut track, due + MS)), [first]);
    assert!(track.race.is_running(rival));
    track.failed(due + MS, rival, Cause::Refused);
    assert_eq!(track.race.wake(), Some(due + MS + SECOND / 2));

    // Spent, it is made again in its turn.
    let mut track = over_the_first(50 * MS, relays);
    track.tell(due, RaceEvent::Tick);
    track.failed(due, rival, Cause::Refused);
    assert_eq!(started(&lose(&mut track, due + MS)), [first]);
    assert_eq!(track.race.wake(), Some(due + MS + RELAY_STAGGER));
}
