//! Circuits that can wait, made a few at a time.
//!
//! Where an offer is sealed, a circuit is what a connection falls back to, and much of what its
//! beginning costs. A program that connects to many peers at once has them sooner without.

use std::collections::VecDeque;

/// How many are made at a time. More take nothing from what connects cost together; with one alone a
/// peer that has vanished would hold up all others.
const PLACES: usize = 2;

#[derive(Default)]
pub(super) struct Spares {
    /// Sessions whose circuit has a place, and those that wait for one.
    placed: Vec<u64>,
    waiting: VecDeque<u64>,
}

impl Spares {
    /// Gives a session's circuit a place, or a turn to wait for.
    pub(super) fn enter(&mut self, session: u64) -> bool {
        let free = self.placed.len() < PLACES;
        if free {
            self.placed.push(session);
        } else {
            self.waiting.push_back(session);
        }
        free
    }

    /// Whether somebody's turn has come, now that a session's circuit is up, or will not be.
    pub(super) fn leave(&mut self, session: u64) -> bool {
        let before = self.placed.len();
        self.placed.retain(|placed| *placed != session);
        self.placed.len() < before && !self.waiting.is_empty()
    }

    /// The session whose turn it is, among those that still are `waiting`. It has a place now.
    pub(super) fn call(&mut self, waiting: impl Fn(u64) -> bool) -> Option<u64> {
        while self.placed.len() < PLACES {
            let next = self.waiting.pop_front()?;
            if waiting(next) {
                self.placed.push(next);
                return Some(next);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_left_goes_to_the_first_that_still_waits() {
        let mut spares = Spares::default();
        let placed = (0..9).filter(|session| spares.enter(*session)).count();
        assert_eq!(placed, PLACES);
        assert_eq!(spares.call(|_| true), None);
        assert!(!spares.leave(8), "it has no place");
        assert!(spares.leave(0));
        assert_eq!(spares.call(|session| session > 4), Some(5));
        assert_eq!(spares.call(|_| true), None);
        assert!(spares.leave(5));
        assert_eq!(spares.call(|_| true), Some(6));
    }

    #[test]
    fn nobody_is_called_where_nobody_waits() {
        let mut spares = Spares::default();
        assert!(spares.enter(1));
        assert!(!spares.leave(1));
        assert!(!spares.leave(1));
        assert_eq!(spares.call(|_| true), None);
    }
}
