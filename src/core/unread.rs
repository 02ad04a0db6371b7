//! Counts the bytes that have arrived from a peer and that nobody has read yet.
//!
//! Yamux bounds these bytes for each stream, at 256 KiB or more, and a peer may open hundreds of
//! streams. A server that carries data for strangers bounds them for each connection.

use std::collections::HashMap;

/// The bytes of one connection that wait for their readers, by stream. Bytes of a stream that is
/// not open are dropped on arrival and do not count.
#[derive(Debug)]
pub(crate) struct Unread {
    streams: HashMap<u32, usize>,
    total: usize,
    most: usize,
}

impl Unread {
    /// Creates a count for which `most` bytes make the connection full. The chunk that reaches the
    /// limit may exceed it.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            streams: HashMap::new(),
            total: 0,
            most,
        }
    }

    pub(crate) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Returns how many bytes wait.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Returns whether nothing more may be taken from the peer for now.
    pub(crate) fn is_full(&self) -> bool {
        self.total >= self.most
    }

    /// Records that a stream is open. It may have been open already.
    pub(crate) fn open(&mut self, stream: u32) {
        self.streams.entry(stream).or_default();
    }

    /// Records that bytes of a stream have arrived.
    pub(crate) fn arrived(&mut self, stream: u32, bytes: usize) {
        if let Some(unread) = self.streams.get_mut(&stream) {
            *unread += bytes;
            self.total += bytes;
        }
    }

    /// Records that bytes of a stream have been read.
    pub(crate) fn read(&mut self, stream: u32, bytes: usize) {
        if let Some(unread) = self.streams.get_mut(&stream) {
            let bytes = bytes.min(*unread);
            *unread -= bytes;
            self.total -= bytes;
        }
    }

    /// Records that a stream is gone, together with its unread bytes.
    pub(crate) fn close(&mut self, stream: u32) {
        self.total -= self.streams.remove(&stream).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_read_or_dropped_makes_room() {
        let mut unread = Unread::new(100);
        unread.open(1);
        unread.open(3);
        unread.arrived(1, 60);
        assert!(!unread.is_full());
        unread.arrived(3, 40);
        assert!(unread.is_full());
        unread.read(3, 1);
        assert!(!unread.is_full());
        unread.arrived(3, 1);
        unread.close(1);
        assert!(!unread.is_full());
        // Bytes that arrive for a closed stream are dropped at once.
        unread.arrived(1, 1000);
        assert!(!unread.is_full());
        unread.set_most(40);
        assert!(unread.is_full());
    }

    proptest! {
        #[test]
        fn nothing_is_left_of_streams_that_are_gone(
            steps in prop::collection::vec((0_u8..4, 0_u32..5, 0_usize..1000), 0..100),
        ) {
            let mut unread = Unread::new(1);
            for (step, stream, bytes) in steps {
                match step {
                    0 => unread.open(stream),
                    1 => unread.arrived(stream, bytes),
                    2 => unread.read(stream, bytes),
                    _ => unread.close(stream),
                }
                prop_assert_eq!(unread.total, unread.streams.values().sum::<usize>());
            }
            (0..5).for_each(|stream| unread.close(stream));
            prop_assert!(!unread.is_full() && unread.streams.is_empty());
        }
    }
}
