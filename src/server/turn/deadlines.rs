//! The deadlines of a client over TCP.
//!
//! Bytes do not move a deadline. Only what the deadline is for does, such as the end of a frame. So
//! a client cannot keep a place in the pool of connections with a byte now and then.

use std::time::{Duration, Instant};

/// The time from the connection to the end of the first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// The time from the first byte of a frame to its last.
const FRAME: Duration = Duration::from_secs(10);

/// The time from the connection, or from the end of an allocation, to the next allocation. Two
/// round trips suffice, but a client that falls back from another server may wait for that one
/// first.
const ALLOCATION: Duration = Duration::from_secs(30);

/// How long a frame may wait for a client that reads slowly. A phone may have no network for that
/// long.
pub(super) const WRITE: Duration = Duration::from_secs(30);

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// The deadline of the first frame, until that has arrived.
    first: Option<Instant>,
    /// The deadline of a frame that has arrived in part.
    frame: Option<Instant>,
    allocation: Instant,
}

impl Deadlines {
    pub(super) fn new(connected: Instant) -> Self {
        Self {
            first: Some(connected + FIRST_FRAME),
            frame: None,
            allocation: connected + ALLOCATION,
        }
    }

    /// Returns the earliest deadline.
    pub(super) fn next(&self) -> Instant {
        let frames = self.first.into_iter().chain(self.frame);
        frames.fold(self.allocation, Instant::min)
    }

    /// Bytes have arrived that ended `frames` frames. `rest` says whether a part of another frame
    /// has arrived.
    pub(super) fn received(&mut self, now: Instant, frames: usize, rest: bool) {
        if frames > 0 {
            self.first = None;
            self.frame = None;
        }
        self.frame = match rest {
            true => self.frame.or(Some(now + FRAME)),
            false => None,
        };
    }

    /// Whether a deadline has passed. `holds` says whether the client holds an allocation. If it
    /// does, the deadline for an allocation begins again.
    pub(super) fn have_passed(&mut self, now: Instant, holds: impl FnOnce() -> bool) -> bool {
        if now < self.next() {
            return false;
        }
        if holds() {
            self.allocation = now + ALLOCATION;
        }
        self.next() <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn passed(deadlines: &mut Deadlines, at: Instant, holds: bool) -> bool {
        deadlines.have_passed(at, || holds)
    }

    #[test]
    fn bytes_without_a_whole_frame_move_no_deadline() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        for second in 1..10 {
            deadlines.received(start + SECOND * second, 0, true);
        }
        assert!(!passed(&mut deadlines, start + SECOND * 9, false));
        assert_eq!(deadlines.next(), start + FIRST_FRAME);
        assert!(passed(&mut deadlines, start + FIRST_FRAME, true));
    }

    #[test]
    fn the_deadline_of_a_frame_begins_with_its_first_byte() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        deadlines.received(start, 1, true);
        deadlines.received(start + SECOND * 9, 0, true);
        assert_eq!(deadlines.next(), start + FRAME);
        // The next frame begins when the previous frame ends.
        deadlines.received(start + SECOND * 9, 1, true);
        assert_eq!(deadlines.next(), start + SECOND * 9 + FRAME);
        deadlines.received(start + SECOND * 10, 1, false);
        assert_eq!(deadlines.next(), start + ALLOCATION);
    }

    #[test]
    fn a_client_needs_an_allocation_to_stay() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        for second in 0..30 {
            deadlines.received(start + SECOND * second, 1, false);
            assert!(!passed(&mut deadlines, start + SECOND * second, false));
        }
        let later = start + ALLOCATION;
        assert!(!passed(&mut deadlines, later, true));
        assert!(!passed(&mut deadlines, later + SECOND, false));
        assert!(passed(&mut deadlines, later + ALLOCATION, false));
    }
}
