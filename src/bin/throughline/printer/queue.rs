//! The lines that wait to be printed: bounded, in order, and with a count of those that did not
//! fit.

use std::{collections::VecDeque, mem};

use tokio::sync::oneshot;

/// How many entries wait at most, unless they must not be lost.
pub(super) const MAX_ENTRIES: usize = 8192;
/// How many bytes wait at most, unless they must not be lost or are one entry.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Bytes to print, which are a line as a rule.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// How many lines were lost between the previous entry and this one.
    pub(super) lost: u64,
    /// The bytes. They are empty if the entry only says what was lost.
    pub(super) bytes: Vec<u8>,
    /// Whoever waits until the bytes are written.
    pub(super) written: Option<oneshot::Sender<()>>,
}

/// Entries in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// The bytes of all entries.
    bytes: usize,
    /// How many lines were lost after the last entry.
    lost: u64,
    /// Whether the queue was full and is not half empty yet. Without this, a slow reader would get a
    /// line and a report of lost lines in turn.
    overflown: bool,
}

impl Queue {
    /// Whether [`Self::offer`] would take `length` bytes.
    pub(super) fn has_room(&self, length: usize) -> bool {
        let fits = self.entries.len() < MAX_ENTRIES && self.bytes + length <= MAX_BYTES;
        self.entries.is_empty() || (fits && !self.overflown)
    }

    /// Appends `bytes` if there is room, and else counts a lost line.
    pub(super) fn offer(&mut self, bytes: Vec<u8>) {
        if self.has_room(bytes.len()) {
            self.keep(bytes, None);
        } else {
            self.overflown = true;
            self.lost += 1;
        }
    }

    /// Appends `bytes`, whether there is room or not.
    pub(super) fn keep(&mut self, bytes: Vec<u8>, written: Option<oneshot::Sender<()>>) {
        self.bytes += bytes.len();
        self.entries.push_back(Entry {
            lost: mem::take(&mut self.lost),
            bytes,
            written,
        });
    }

    /// Takes the first entry out, or the report that lines were lost after the last one.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front().or_else(|| {
            (self.lost > 0).then(|| Entry {
                lost: mem::take(&mut self.lost),
                ..Entry::default()
            })
        });
        self.bytes -= entry.as_ref().map_or(0, |entry| entry.bytes.len());
        self.overflown &= !self.is_half_empty();
        entry
    }

    /// Whether lines fit again for a while.
    pub(super) fn is_half_empty(&self) -> bool {
        self.entries.len() <= MAX_ENTRIES / 2 && self.bytes <= MAX_BYTES / 2
    }

    /// How often [`Self::pop`] returns something if nothing is added.
    pub(super) fn len(&self) -> usize {
        self.entries.len() + usize::from(self.lost > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes everything out. Returns how many lines were lost before each entry, and the entry's
    /// length.
    fn rest(queue: &mut Queue) -> Vec<(u64, usize)> {
        let entries = std::iter::from_fn(|| queue.pop());
        let taken = entries.map(|entry| (entry.lost, entry.bytes.len()));
        let taken = taken.collect();
        assert_eq!((queue.len(), queue.bytes), (0, 0));
        taken
    }

    #[test]
    fn entries_are_bounded_at_their_edge() {
        let mut queue = Queue::default();
        for _ in 0..MAX_ENTRIES {
            queue.offer(vec![1]);
        }
        assert_eq!(queue.len(), MAX_ENTRIES);
        assert!(!queue.overflown);
        queue.offer(vec![1]);
        queue.offer(vec![1]);
        assert_eq!(queue.len(), MAX_ENTRIES + 1, "one more says what is lost");
        let taken = rest(&mut queue);
        assert!(taken[..MAX_ENTRIES].iter().all(|entry| *entry == (0, 1)));
        assert_eq!(taken[MAX_ENTRIES..], [(2, 0)]);
    }

    #[test]
    fn bytes_are_bounded_at_their_edge() {
        let mut queue = Queue::default();
        queue.offer(vec![0; MAX_BYTES - 1]);
        queue.offer(vec![1]);
        queue.offer(vec![1]);
        assert_eq!(rest(&mut queue), [(0, MAX_BYTES - 1), (0, 1), (1, 0)]);
    }

    #[test]
    fn a_line_of_any_length_fits_into_an_empty_queue() {
        let mut queue = Queue::default();
        queue.offer(vec![0; MAX_BYTES + 1]);
        queue.offer(Vec::new());
        assert_eq!(rest(&mut queue), [(0, MAX_BYTES + 1), (1, 0)]);
    }

    #[test]
    fn a_full_queue_takes_lines_again_when_it_is_half_empty() {
        let mut queue = Queue::default();
        for _ in 0..=MAX_ENTRIES {
            queue.offer(vec![1]);
        }
        for _ in 1..MAX_ENTRIES / 2 {
            queue.pop();
        }
        assert!(!queue.has_room(1));
        queue.pop();
        assert!(queue.has_room(1));
        queue.offer(vec![1, 2]);
        assert_eq!(rest(&mut queue).last(), Some(&(1, 2)));
    }

    #[test]
    fn what_must_not_be_lost_is_kept_in_its_place() {
        let mut queue = Queue::default();
        queue.offer(vec![0; MAX_BYTES]);
        queue.offer(vec![1]);
        queue.keep(vec![1, 2], None);
        queue.offer(vec![1]);
        queue.keep(vec![1, 2, 3], None);
        let expected = [(0, MAX_BYTES), (1, 2), (1, 3)];
        assert_eq!(rest(&mut queue), expected);
    }

    proptest! {
        /// Lines are numbers here. An operation offers a line of this length, or takes one out.
        #[test]
        fn each_line_comes_out_once_in_its_place_or_is_counted(
            operations in proptest::collection::vec(proptest::option::of(8..MAX_BYTES / 2), 0..60)
        ) {
            let mut queue = Queue::default();
            let (mut offered, mut expected) = (0_u64, 0);
            let mut taken = Vec::new();
            for operation in operations {
                match operation {
                    Some(length) => {
                        let mut line = vec![0; length];
                        line[..8].copy_from_slice(&offered.to_be_bytes());
                        offered += 1;
                        queue.offer(line);
                    }
                    None => taken.extend(queue.pop()),
                }
                prop_assert!(queue.bytes <= MAX_BYTES);
            }
            taken.extend(std::iter::from_fn(|| queue.pop()));
            for entry in taken {
                expected += entry.lost;
                if let Some(line) = entry.bytes.first_chunk() {
                    prop_assert_eq!(u64::from_be_bytes(*line), expected);
                    expected += 1;
                }
            }
            prop_assert_eq!(expected, offered);
        }
    }
}
