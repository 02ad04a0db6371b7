//! A byte queue whose memory follows what it holds.

use std::collections::VecDeque;

/// An empty queue keeps at most this much memory. So a thousand idle streams take little memory,
/// and a busy stream does not allocate each time its reader catches up.
const KEEP: usize = 64 * 1024;

/// Bytes in order. The owner limits their number.
#[derive(Debug, Default)]
pub(super) struct Buffer(VecDeque<u8>);

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Drops `count` bytes from the front.
    pub(super) fn discard(&mut self, count: usize) {
        self.0.drain(..count);
        if self.0.is_empty() && self.0.capacity() > KEEP {
            self.0 = VecDeque::new();
        }
    }

    /// Moves as many bytes as fit from the front to `out`.
    pub(super) fn pop(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let (front, back) = self.range(0, count);
        out[..front.len()].copy_from_slice(front);
        out[front.len()..count].copy_from_slice(back);
        self.discard(count);
        count
    }

    /// Returns the `count` bytes from `start` on, in two pieces because the queue is a ring.
    pub(super) fn range(&self, start: usize, count: usize) -> (&[u8], &[u8]) {
        let (front, back) = self.0.as_slices();
        let end = start + count;
        let split = front.len();
        (
            &front[start.min(split)..end.min(split)],
            &back[start.saturating_sub(split)..end.saturating_sub(split)],
        )
    }

    pub(super) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_across_the_end_of_the_ring() {
        let mut buffer = Buffer::default();
        let (mut pushed, mut popped) = (0u8, 0u8);
        for step in 0..200 {
            let chunk: Vec<u8> = (0..step % 7).map(|i| pushed.wrapping_add(i)).collect();
            pushed = pushed.wrapping_add(chunk.len() as u8);
            buffer.push(&chunk);

            let (front, back) = buffer.range(buffer.len() / 2, buffer.len() - buffer.len() / 2);
            let half: Vec<u8> = front.iter().chain(back).copied().collect();
            let first = popped.wrapping_add((buffer.len() / 2) as u8);
            assert!(
                half.iter()
                    .enumerate()
                    .all(|(i, &b)| b == first.wrapping_add(i as u8))
            );

            let mut out = [0; 5];
            let count = buffer.pop(&mut out[..step as usize % 5]);
            for &byte in &out[..count] {
                assert_eq!(byte, popped);
                popped = popped.wrapping_add(1);
            }
        }
    }

    #[test]
    fn an_empty_queue_gives_its_memory_back() {
        let mut buffer = Buffer::default();
        buffer.push(&vec![0; KEEP * 4]);
        buffer.discard(KEEP * 4 - 1);
        assert!(buffer.0.capacity() > KEEP);
        buffer.discard(1);
        assert!(buffer.0.capacity() <= KEEP);
        buffer.push(&[0; 64 * 1024]);
        assert_eq!(buffer.0.capacity(), 64 * 1024);
        buffer.discard(64 * 1024);
        assert_eq!(buffer.0.capacity(), 64 * 1024, "so much is kept");
    }
}
