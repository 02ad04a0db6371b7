//! Circuits that can wait, made a few at a time.
//!
//! Where an offer is sealed, a circuit is what a connection falls back to, and much of what its
//! beginning costs. A program that connects to many peers at once has them sooner without. How long
//! a circuit takes says how much there is to do, here, at the relay or at the peer, so the slower
//! they are, the longer the next one waits; and whether one was needed says whether others are.

use std::{collections::VecDeque, time::Duration};

use web_time::Instant;

/// How many are made at a time at most: one where the last was not needed, twice as many with each
/// that was. A peer that has vanished holds up nobody for good, since a circuit's wait has an end
/// where there is no path.
const MOST_PLACES: usize = 4;
/// A place rests so many times as long as the circuit took that had it, where another path was
/// sooner;
const RESTS: u32 = 8;
/// only this often where circuits are what is needed.
const NEEDED_RESTS: u32 = 1;
/// But no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(5);

pub(super) struct Spares {
    /// How many are made at a time now.
    places: usize,
    /// Whose circuit has a place, and since when.
    placed: Vec<(u64, Instant)>,
    /// When the places that rest are free again.
    resting: Vec<Instant>,
    waiting: VecDeque<u64>,
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
    /// Gives a session's circuit a place, or else a turn to wait for, after so many others.
    pub(super) fn enter(&mut self, session: u64, now: Instant) -> Option<usize> {
        if self.has_place(now) {
            self.placed.push((session, now));
            return None;
        }
        self.waiting.push_back(session);
        Some(self.waiting.len() - 1)
    }

    /// A session's circuit is up, or will not be. Gives the time until its place, if it has one, is
    /// free for the next, who is to be [called](Self::call) then. `needed` says whether the session
    /// has no path without it.
    pub(super) fn leave(&mut self, session: u64, now: Instant, needed: bool) -> Option<Duration> {
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

    /// The session whose turn it is, among those that still are `waiting`. It has a place now.
    pub(super) fn call(&mut self, now: Instant, waiting: impl Fn(u64) -> bool) -> Option<u64> {
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

    const MS: Duration = Duration::from_millis(1);

    /// Sessions 0 to 8 have come; the first has the place.
    fn crowded(now: Instant) -> Spares {
        let mut spares = Spares::default();
        let turns = (0..9).map(|session| spares.enter(session, now));
        assert!(turns.eq([None].into_iter().chain((0..8).map(Some))));
        spares
    }

    #[test]
    fn a_place_that_is_left_goes_to_the_first_that_still_waits() {
        let now = Instant::now();
        let mut spares = crowded(now);
        assert_eq!(spares.call(now, |_| true), None);
        assert_eq!(spares.leave(8, now, true), None, "it has no place");
        assert_eq!(spares.leave(0, now, false), Some(Duration::ZERO));
        assert_eq!(spares.call(now, |session| session > 4), Some(5));
        assert_eq!(spares.call(now, |_| true), None);
        assert_eq!(spares.leave(5, now, false), Some(Duration::ZERO));
        assert_eq!(spares.call(now, |_| true), Some(6));
    }

    #[test]
    fn nobody_is_called_where_nobody_waits() {
        let (mut spares, now) = (Spares::default(), Instant::now());
        assert_eq!(spares.enter(1, now), None);
        assert_eq!(spares.leave(1, now, true), Some(Duration::ZERO));
        assert_eq!(spares.leave(1, now, true), None);
        assert_eq!(spares.call(now, |_| true), None);
    }

    #[test]
    fn a_place_rests_by_what_it_took_and_whether_it_was_needed() {
        let now = Instant::now();
        let mut spares = crowded(now);
        let quick = now + 20 * MS;
        assert_eq!(spares.leave(0, quick, false), Some(160 * MS));
        assert_eq!(spares.enter(9, quick), Some(8));
        assert_eq!(spares.call(quick + 159 * MS, |_| true), None);
        assert_eq!(spares.call(quick + 160 * MS, |_| true), Some(1));
        assert_eq!(
            spares.leave(1, quick + 180 * MS, true),
            Some(20 * MS),
            "it was needed"
        );
        let second = quick + 180 * MS;
        assert_eq!(spares.call(second, |_| true), Some(2));
        let slow = second + 9 * LONGEST_REST;
        assert_eq!(spares.leave(2, slow, false), Some(LONGEST_REST));
        assert_eq!(spares.call(slow, |_| true), None);
        assert_eq!(spares.call(slow + LONGEST_REST, |_| true), Some(3));
    }

    #[test]
    fn there_are_more_places_as_long_as_circuits_are_needed() {
        let now = Instant::now();
        let mut spares = crowded(now);
        let next = |spares: &mut Spares| {
            std::iter::from_fn(|| spares.call(now, |_| true)).collect::<Vec<_>>()
        };
        spares.leave(0, now, true);
        assert_eq!(next(&mut spares), [1, 2]);
        spares.leave(1, now, true);
        assert_eq!(next(&mut spares), [3, 4, 5]);
        spares.leave(2, now, true);
        assert_eq!(next(&mut spares), [6], "no more than four");
        spares.leave(3, now, false);
        assert!(next(&mut spares).is_empty());
        for session in [4, 5, 6] {
            spares.leave(session, now, false);
        }
        assert_eq!(next(&mut spares), [7], "one");
    }
}
