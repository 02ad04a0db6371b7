//! Spare circuits, which start a few at a time.
//!
//! If an offer is sealed, a connection needs a circuit only as a fallback, and the circuit is much
//! of the cost of connecting. A program that connects to many peers at once is faster without most
//! of them. The time that a circuit takes shows how busy this peer, the relay or the other peer is,
//! so the next circuit waits longer when circuits are slow. Whether one circuit was needed shows
//! whether others are needed.

use std::{collections::VecDeque, time::Duration};

use web_time::Instant;

use crate::stream::SessionId;

/// The most spare circuits that are made at a time. The number is one after a circuit that was not
/// needed, and doubles after each one that was. A peer that has vanished delays others only for a
/// while, because the wait of a circuit has an end if its session has no path.
const MOST_PLACES: usize = 4;
/// How long a place rests after a circuit that was not needed, as a multiple of the time that the
/// circuit took.
const RESTS: u32 = 8;
/// How long a place rests after a circuit that was needed, as a multiple of the time that the
/// circuit took.
const NEEDED_RESTS: u32 = 1;
/// The longest rest of a place.
const LONGEST_REST: Duration = Duration::from_secs(5);

pub(in crate::node) struct Spares {
    /// How many circuits are made at a time now.
    places: usize,
    /// The sessions whose circuit has a place, and since when.
    placed: Vec<(SessionId, Instant)>,
    /// When each place that rests is free again.
    resting: Vec<Instant>,
    waiting: VecDeque<SessionId>,
}

impl Default for Spares {
    fn default() -> Self {
        Self {
            places: 1,
            placed: Vec::new(),
            resting: Vec::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Spares {
    /// Gives a session's circuit a place and returns `None`. If no place is free, the circuit
    /// waits, and the number of circuits before it is returned.
    pub(in crate::node) fn enter(&mut self, session: SessionId, now: Instant) -> Option<usize> {
        if self.has_place(now) {
            self.placed.push((session, now));
            return None;
        }
        self.waiting.push_back(session);
        Some(self.waiting.len() - 1)
    }

    /// A session's circuit is up, or will not come up. If it had a place, returns the time until
    /// the place is free. Then the next circuit is to be [called](Self::call). `needed` says
    /// whether the session has no path without the circuit.
    pub(in crate::node) fn leave(
        &mut self,
        session: SessionId,
        now: Instant,
        needed: bool,
    ) -> Option<Duration> {
        let place = self
            .placed
            .iter()
            .position(|(placed, _)| *placed == session)?;
        let (_, since) = self.placed.swap_remove(place);
        let (places, rests) = if needed {
            ((self.places * 2).min(MOST_PLACES), NEEDED_RESTS)
        } else {
            (1, RESTS)
        };
        self.places = places;
        let rest = (now.saturating_duration_since(since) * rests).min(LONGEST_REST);
        self.resting.push(now + rest);
        Some(rest)
    }

    /// Gives a free place to the first session that is still `waiting`, and returns the session.
    pub(in crate::node) fn call(
        &mut self,
        now: Instant,
        waiting: impl Fn(SessionId) -> bool,
    ) -> Option<SessionId> {
        while self.has_place(now) {
            let next = self.waiting.pop_front()?;
            if waiting(next) {
                self.placed.push((next, now));
                return Some(next);
            }
        }
        None
    }

    fn has_place(&mut self, now: Instant) -> bool {
        self.resting.retain(|free| *free > now);
        self.placed.len() + self.resting.len() < self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(session: u64) -> SessionId {
        SessionId::new(session)
    }

    const MS: Duration = Duration::from_millis(1);

    /// Nine sessions have come, 0 to 8. The first has the place.
    fn crowded(now: Instant) -> Spares {
        let mut spares = Spares::default();
        let turns = (0..9).map(|session| spares.enter(id(session), now));
        assert!(turns.eq([None].into_iter().chain((0..8).map(Some))));
        spares
    }

    #[test]
    fn a_free_place_goes_to_the_first_session_that_still_waits() {
        let now = Instant::now();
        let mut spares = crowded(now);
        assert_eq!(spares.call(now, |_| true), None);
        assert_eq!(spares.leave(id(8), now, true), None, "it has no place");
        assert_eq!(spares.leave(id(0), now, false), Some(Duration::ZERO));
        assert_eq!(spares.call(now, |session| session > id(4)), Some(id(5)));
        assert_eq!(spares.call(now, |_| true), None);
        assert_eq!(spares.leave(id(5), now, false), Some(Duration::ZERO));
        assert_eq!(spares.call(now, |_| true), Some(id(6)));
    }

    #[test]
    fn nobody_is_called_if_nobody_waits() {
        let (mut spares, now) = (Spares::default(), Instant::now());
        assert_eq!(spares.enter(id(1), now), None);
        assert_eq!(spares.leave(id(1), now, true), Some(Duration::ZERO));
        assert_eq!(spares.leave(id(1), now, true), None);
        assert_eq!(spares.call(now, |_| true), None);
    }

    #[test]
    fn the_rest_of_a_place_depends_on_the_time_and_the_need_of_its_circuit() {
        let now = Instant::now();
        let mut spares = crowded(now);
        let quick = now + 20 * MS;
        assert_eq!(spares.leave(id(0), quick, false), Some(160 * MS));
        assert_eq!(spares.enter(id(9), quick), Some(8));
        assert_eq!(spares.call(quick + 159 * MS, |_| true), None);
        assert_eq!(spares.call(quick + 160 * MS, |_| true), Some(id(1)));
        assert_eq!(
            spares.leave(id(1), quick + 180 * MS, true),
            Some(20 * MS),
            "it was needed"
        );
        let second = quick + 180 * MS;
        assert_eq!(spares.call(second, |_| true), Some(id(2)));
        let slow = second + 9 * LONGEST_REST;
        assert_eq!(spares.leave(id(2), slow, false), Some(LONGEST_REST));
        assert_eq!(spares.call(slow, |_| true), None);
        assert_eq!(spares.call(slow + LONGEST_REST, |_| true), Some(id(3)));
    }

    #[test]
    fn places_double_while_circuits_are_needed() {
        let now = Instant::now();
        let mut spares = crowded(now);
        let next = |spares: &mut Spares| {
            std::iter::from_fn(|| spares.call(now, |_| true)).collect::<Vec<_>>()
        };
        spares.leave(id(0), now, true);
        assert_eq!(next(&mut spares), [id(1), id(2)]);
        spares.leave(id(1), now, true);
        assert_eq!(next(&mut spares), [id(3), id(4), id(5)]);
        spares.leave(id(2), now, true);
        assert_eq!(next(&mut spares), [id(6)], "no more than four");
        spares.leave(id(3), now, false);
        assert!(next(&mut spares).is_empty());
        for session in [4, 5, 6] {
            spares.leave(id(session), now, false);
        }
        assert_eq!(next(&mut spares), [id(7)], "one place is left");
    }
}
