//! Whether a path loses so much that another one is better.
//!
//! A path is judged by how many of the packets that want an acknowledgement had none. Congestion
//! loses packets, too, but few of them, and many only for a moment. So a path counts as lossy after a
//! streak of windows in which it has lost much. It counts as clean after a streak in which it has lost
//! little. What lies between changes nothing, so that traffic does not flap between two paths.

use std::time::Duration;

use web_time::Instant;

/// The shortest window. It is longer than the burst of losses at the end of a slow start.
const WINDOW: Duration = Duration::from_secs(1);
/// The fewest packets in a window. A path with few packets has long windows.
const PACKETS: u64 = 24;
/// How many windows in a row decide.
const STREAK: u8 = 3;
/// Much is one packet in ten: then loss-based congestion control is slower by an order of magnitude.
const MUCH: u64 = 10;
/// Little is one packet in forty, which congestion loses as well.
const LITTLE: u64 = 40;

/// How many packets that want an acknowledgement a path has sent so far, and how many of them were
/// lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
}

/// The state of one path. See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loss {
    /// When the window began, and the counts at that time.
    began: Option<(Instant, Counts)>,
    /// How many windows in a row were against the present verdict.
    streak: u8,
    lossy: bool,
}

impl Loss {
    /// Whether the path counts as lossy.
    pub(crate) fn is_high(&self) -> bool {
        self.lossy
    }

    /// Takes the counts of the path at `now`.
    pub(crate) fn count(&mut self, now: Instant, counts: Counts) {
        let (began, before) = *self.began.get_or_insert((now, counts));
        let sent = counts.sent.saturating_sub(before.sent);
        let lost = counts.lost.saturating_sub(before.lost);
        if sent < PACKETS || now < began + WINDOW {
            return;
        }
        self.began = Some((now, counts));
        let against = match self.lossy {
            true => lost * LITTLE <= sent,
            false => lost * MUCH >= sent,
        };
        self.streak = if against { self.streak + 1 } else { 0 };
        if self.streak == STREAK {
            self.lossy = !self.lossy;
            self.streak = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path, and what it has sent and lost so far.
    struct Path(Loss, Instant, Counts);

    impl Path {
        fn new() -> Self {
            let mut path = Self(Loss::default(), Instant::now(), Counts::default());
            path.window(0, 0);
            path
        }

        /// Sends so many packets within a second, and loses some. Returns whether the path is lossy.
        fn window(&mut self, sent: u64, lost: u64) -> bool {
            self.1 += WINDOW;
            self.2.sent += sent;
            self.2.lost += lost;
            self.0.count(self.1, self.2);
            self.0.is_high()
        }
    }

    #[test]
    fn much_loss_in_three_windows_in_a_row_makes_a_path_lossy() {
        let mut path = Path::new();
        let windows = [100, 10, 9, 10, 10].map(|lost| path.window(100, lost));
        assert_eq!(windows, [false; 5], "two in a row");
        assert!(path.window(100, 10));
    }

    #[test]
    fn a_lossy_path_is_clean_after_three_windows_with_little_loss() {
        let mut path = Path::new();
        for _ in 0..STREAK {
            path.window(1_000, 300);
        }
        let windows = [0, 25, 26, 25, 25].map(|lost| path.window(1_000, lost));
        assert_eq!(windows, [true; 5]);
        assert!(!path.window(1_000, 25));
    }

    #[test]
    fn what_lies_between_changes_nothing() {
        let mut path = Path::new();
        assert!(!(0..100).any(|_| path.window(1_000, 99)));
        for _ in 0..STREAK {
            path.window(1_000, 100);
        }
        assert!((0..100).all(|_| path.window(1_000, 26)));
    }

    #[test]
    fn few_packets_or_a_moment_do_not_decide() {
        let mut path = Path::new();
        for _ in 0..PACKETS {
            // Each window ends with its last packet, so this is one window.
            assert!(!path.window(1, 1));
        }
        let (mut loss, now) = (Loss::default(), Instant::now());
        for step in 0..1_000 {
            let counts = Counts {
                sent: step * 100,
                lost: step * 100,
            };
            loss.count(now + WINDOW / 2, counts);
        }
        assert!(!loss.is_high());
    }

    proptest! {
        /// Counters that run backwards or over are no reason to panic.
        #[test]
        fn counts_of_any_kind_are_taken(counts in prop::collection::vec((any::<u32>(), any::<u32>()), 0..50)) {
            let mut path = Path::new();
            for (sent, lost) in counts {
                path.2 = Counts { sent: sent.into(), lost: lost.into() };
                path.window(0, 0);
            }
        }
    }
}
