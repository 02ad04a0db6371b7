//! How long a client over TCP may take for what.
//!
//! Nothing that it sends makes a deadline later, except the end of what the deadline is for: a byte
//! now and then keeps no place in the pool of connections.

use std::time::{Duration, Instant};

/// From the connection to the end of the first frame.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// From the first byte of a frame to its last.
const FRAME: Duration = Duration::from_secs(10);

/// From the connection, or the end of an allocation, to the next allocation. Two round trips
/// suffice; a client that falls back to another server may wait for it first.
const ALLOCATION: Duration = Duration::from_secs(30);

/// How long a frame may wait for a client that reads slowly. A phone may be without a network for
/// as long.
pub(super) const WRITE: Duration = Duration::from_secs(30);

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// Of the first frame, until that has come.
    first: Option<Instant>,
    /// Of the frame of which a part has come.
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

    /// The earliest.
    pub(super) fn next(&self) -> Instant {
        let frames = self.first.into_iter().chain(self.frame);
        frames.fold(self.allocation, Instant::min)
    }

    /// Bytes came that ended `frames` frames; `rest` says whether a part of another one is there.
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

    /// Whether one has passed, of a client that holds an allocation or not.
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
    fn bytes_alone_buy_no_time() {
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
    fn a_frame_has_its_time_from_its_first_byte() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        deadlines.received(start, 1, true);
        deadlines.received(start + SECOND * 9, 0, true);
        assert_eq!(deadlines.next(), start + FRAME);
        // The next frame begins when the one before ends.
        deadlines.received(start + SECOND * 9, 1, true);
        assert_eq!(deadlines.next(), start + SECOND * 9 + FRAME);
        deadlines.received(start + SECOND * 10, 1, false);
        assert_eq!(deadlines.next(), start + ALLOCATION);
    }

    #[test]
    fn requests_without_an_allocation_end_and_an_allocation_stays() {
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
