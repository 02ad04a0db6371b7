//! One direction of a link as a queue. It decides which frames are lost, and when the others are
//! due.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::link::Link;

/// How many frames a link may hold in one direction. More are dropped, as in a full queue.
const HELD_FRAMES: usize = 65_536;

/// How many bytes a frame has before its packet.
const ETHERNET_HEADER: usize = 14;

/// A frame that waits: its due time, order of arrival and contents.
type Held = Reverse<(u64, u64, Vec<u8>)>;

/// The frames that are under way in one direction.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) held: BinaryHeap<Held>,
    arrived: u64,
    /// When the line is free again at the configured rate, in nanoseconds.
    free_at: u64,
    /// The due time of the last frame in order. The next frame may not overtake it.
    last_due: u64,
}

impl Queue {
    /// Decides what happens to a frame that arrived at `now`. `dice` returns numbers from 0 up to
    /// 1.
    ///
    /// Returns when the frame is due, or `None` if it is lost.
    pub(crate) fn admit(
        &mut self,
        link: &Link,
        now: u64,
        length: usize,
        dice: &mut impl FnMut() -> f64,
    ) -> Option<u64> {
        let too_long = length > ETHERNET_HEADER + usize::from(link.mtu);
        if link.cut
            || too_long
            || (link.loss > 0.0 && dice() < link.loss)
            || self.held.len() >= HELD_FRAMES
        {
            return None;
        }
        let mut due = now;
        // Bits times a million, divided by kilobits per second, give nanoseconds.
        if let Some(busy) = (length as u64 * 8_000_000).checked_div(link.rate_kbit) {
            let start = self.free_at.max(now);
            if start - now > link.queue.as_nanos() as u64 {
                return None;
            }
            self.free_at = start + busy;
            due = self.free_at;
        }
        if link.reorder > 0.0 && dice() < link.reorder {
            return Some(due);
        }
        due += link.delay.as_nanos() as u64;
        if !link.jitter.is_zero() {
            let jitter = link.jitter.as_nanos() as u64;
            due = (due + (dice() * 2.0 * jitter as f64) as u64)
                .saturating_sub(jitter)
                .max(self.last_due)
                .max(now);
        }
        self.last_due = due;
        Some(due)
    }

    pub(crate) fn hold(&mut self, due: u64, frame: Vec<u8>) {
        self.arrived += 1;
        self.held.push(Reverse((due, self.arrived, frame)));
    }
}

/// Random numbers by xorshift64. They are repeatable, and good enough to choose lost packets.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Each seed gives other numbers, also 0, which xorshift cannot leave.
    pub(crate) fn seeded(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of small seeds are alike.
        for _ in 0..8 {
            dice.roll();
        }
        dice
    }

    pub(crate) fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn delay_is_added_and_order_is_kept_under_jitter() {
        let link = Link {
            jitter: Duration::from_millis(5),
            ..Link::delay(Duration::from_millis(20))
        };
        let mut queue = Queue::default();
        let mut dice = Dice(7);
        let mut last = 0;
        for i in 0..1_000 {
            let now = i * MS / 10;
            let due = queue.admit(&link, now, 100, &mut || dice.roll()).unwrap();
            assert!(due >= last && due + 5 * MS >= now + 20 * MS);
            last = due;
        }
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_those_that_would_wait_too_long() {
        let link = Link {
            rate_kbit: 1_000,
            queue: Duration::from_millis(10),
            ..Link::default()
        };
        let mut queue = Queue::default();
        // 125 bytes take 1 ms at 1 Mbit/s.
        let dues: Vec<_> = (0..20)
            .map(|_| queue.admit(&link, 0, 125, &mut || 1.0))
            .collect();
        assert_eq!(dues[..3], [Some(MS), Some(2 * MS), Some(3 * MS)]);
        assert_eq!(dues.iter().flatten().count(), 11);
    }

    #[test]
    fn frames_are_lost_by_loss_by_a_cut_and_by_their_length() {
        let mut queue = Queue::default();
        assert_eq!(
            queue.admit(
                &Link {
                    cut: true,
                    ..Link::default()
                },
                0,
                1,
                &mut || 0.5
            ),
            None
        );
        let narrow = Link {
            mtu: 1_280,
            ..Link::default()
        };
        assert!(queue.admit(&narrow, 0, 1_294, &mut || 0.5).is_some());
        assert_eq!(queue.admit(&narrow, 0, 1_295, &mut || 0.5), None);
        let lossy = Link {
            loss: 0.25,
            ..Link::default()
        };
        let mut dice = Dice(3);
        let lost = (0..10_000)
            .filter(|_| queue.admit(&lossy, 0, 1, &mut || dice.roll()).is_none())
            .count();
        assert!((2_300..2_700).contains(&lost), "{lost}");
    }
}
