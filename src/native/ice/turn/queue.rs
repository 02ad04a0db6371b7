//! The bytes that wait to be sent to a TURN server over TCP.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The most bytes that wait for a TCP connection. This is one round trip at 20 Mbit/s and 100 ms.
const MAX_QUEUE: usize = 256 << 10;

/// The further room for requests, which are not repeated on a stream. There are never so many.
const MAX_REQUESTS: usize = 64 << 10;

/// The bytes that a connection has to send.
#[derive(Default)]
pub(super) struct Queue {
    bytes: Mutex<Vec<u8>>,
    filled: Notify,
}

impl Queue {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds whole frames of data, or drops them if too much waits.
    pub(super) fn data(&self, frames: &[u8]) {
        self.push(frames, MAX_QUEUE);
    }

    pub(super) fn request(&self, frame: &[u8]) {
        self.push(frame, MAX_QUEUE + MAX_REQUESTS);
    }

    fn push(&self, frames: &[u8], most: usize) {
        let mut bytes = self.bytes();
        if bytes.len() + frames.len() <= most {
            bytes.extend_from_slice(frames);
        }
        drop(bytes);
        self.filled.notify_one();
    }

    /// Waits for bytes and takes them all.
    pub(super) async fn take(&self) -> Vec<u8> {
        loop {
            let taken = std::mem::take(&mut *self.bytes());
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_find_room_where_data_does_not() {
        let queue = Queue::default();
        let fill = |push: fn(&Queue, &[u8])| {
            let before = queue.bytes().len();
            for _ in 0..=(MAX_QUEUE + MAX_REQUESTS) / 1024 {
                push(&queue, &[1; 1024]);
            }
            queue.bytes().len() - before
        };
        assert_eq!(fill(Queue::data), MAX_QUEUE);
        assert_eq!(fill(Queue::request), MAX_REQUESTS);
    }
}
