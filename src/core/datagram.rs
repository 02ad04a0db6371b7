//! Datagrams between two peers: their sizes, the queue in front of a lane, and their frames on a
//! substream.

use std::{collections::VecDeque, fmt, ops::Range};

/// The protocol of a substream that carries datagrams. A peer that lists it takes datagrams on every
/// kind of path.
pub(crate) const PROTOCOL: &str = "/throughline/datagrams/1";

/// The most bytes of a datagram on a substream or a data channel. It is what an SCTP packet of a
/// data channel carries in one piece, and a little less than every QUIC path carries (1,150 bytes).
/// So a datagram of this size fits on every path, and a better path never carries less.
pub(crate) const MAX_LEN: usize = 1120;

/// The most datagrams that wait in one direction of a connection. It is half a second of a video of 5
/// Mbit/s, and five seconds of one datagram every 20 ms. What is older is of no use.
pub(crate) const MAX_WAITING: usize = 256;

/// Datagrams that wait. When it is full, a new one takes the place of the oldest.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Vec<u8>>);

impl Queue {
    /// Adds a datagram. Returns whether the oldest was dropped for it.
    pub(crate) fn push(&mut self, datagram: Vec<u8>) -> bool {
        let full = self.0.len() >= MAX_WAITING;
        if full {
            self.0.pop_front();
        }
        self.0.push_back(datagram);
        full
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0 = VecDeque::new();
    }
}

/// Appends the frame of a datagram: its length in two bytes, the greater one first, and its bytes.
/// A datagram of more than [`MAX_LEN`] bytes has no frame.
pub(crate) fn encode(datagram: &[u8], out: &mut Vec<u8>) {
    if datagram.len() <= MAX_LEN {
        out.extend((datagram.len() as u16).to_be_bytes());
        out.extend(datagram);
    }
}

/// The frame is longer than [`MAX_LEN`]. Nothing that follows can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a datagram has more than {MAX_LEN} bytes")
    }
}

impl std::error::Error for TooLong {}

/// The bytes that a decoder holds: three of the longest frames.
const ROOM: usize = 3 * (2 + MAX_LEN);

/// Cuts a received byte stream into datagrams.
#[derive(Debug)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    /// The part of the buffer that was received and not taken.
    unread: Range<usize>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            buffer: vec![0; ROOM],
            unread: 0..0,
        }
    }
}

impl Decoder {
    /// Where received bytes go. It is empty only before [`next`](Self::next) has returned `None`.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        &mut self.buffer[self.unread.end..]
    }

    /// Notes that so many bytes were received into [`room`](Self::room).
    pub(crate) fn received(&mut self, bytes: usize) {
        self.unread.end = ROOM.min(self.unread.end + bytes);
    }

    /// Takes the next datagram that has arrived whole.
    ///
    /// # Errors
    /// Fails when the frame is longer than any datagram.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let unread = &self.buffer[self.unread.clone()];
        let Some((length, rest)) = unread.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_LEN {
            return Err(TooLong);
        }
        let Some(datagram) = rest.get(..length) else {
            return Ok(None);
        };
        let datagram = datagram.to_vec();
        self.unread.start += 2 + length;
        Ok(Some(datagram))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_queue_drops_the_oldest() {
        let mut queue = Queue::default();
        for n in 0..MAX_WAITING as u32 {
            assert!(!queue.push(n.to_be_bytes().to_vec()));
        }
        assert!(queue.push(b"new".to_vec()));
        assert_eq!(queue.pop(), Some(1u32.to_be_bytes().to_vec()));
        let mut left = 0;
        while let Some(datagram) = queue.pop() {
            left += 1;
            assert!(left < MAX_WAITING - 1 || datagram == b"new");
        }
        assert_eq!(left, MAX_WAITING - 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_lane_before_it_has_arrived() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.room().len(), 3 * (2 + MAX_LEN));
        decoder.room()[..2].copy_from_slice(&(MAX_LEN as u16 + 1).to_be_bytes());
        decoder.received(2);
        assert_eq!(decoder.next(), Err(TooLong));
        let mut out = Vec::new();
        encode(&[0; MAX_LEN + 1], &mut out);
        assert!(out.is_empty());
    }

    /// Feeds `wire` in pieces, as a substream does.
    fn decode(mut wire: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        while !wire.is_empty() {
            let room = decoder.room();
            let taken = piece.min(room.len()).min(wire.len());
            assert!(taken > 0);
            room[..taken].copy_from_slice(&wire[..taken]);
            decoder.received(taken);
            wire = &wire[taken..];
            while let Some(datagram) = decoder.next().unwrap() {
                found.push(datagram);
            }
        }
        found
    }

    proptest! {
        #[test]
        fn datagrams_survive_any_cut(
            sent in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..=MAX_LEN), 0..8),
            piece in 1..4 * MAX_LEN,
        ) {
            let mut wire = Vec::new();
            for datagram in &sent {
                encode(datagram, &mut wire);
            }
            prop_assert_eq!(decode(&wire, piece), sent);
        }
    }
}
