//! Cuts long frames of yamux into short ones, so that none announces many bytes.
//!
//! A receiver of yamux allocates the announced length of a data frame before any byte of it has come,
//! and refuses a frame of more than 1 MiB. But a frame may be as long as the window that its stream
//! was granted, which is up to 16 MiB, and JavaScript's peers send such frames. The protocol does not
//! have message boundaries, so several short frames mean the same as one long frame
//! (<https://github.com/hashicorp/yamux/blob/master/spec.md>). If a frame exceeds the window, the
//! receiver notices this at one of the pieces.

/// The longest piece. Rust sends data frames of at most 16 KiB, so the frames of peers of this library
/// are not cut. Go sends up to 64 KiB.
pub(crate) const MAX_PIECE: u32 = 16 * 1024;

const HEADER: usize = 12;
const TYPE: usize = 1;
const DATA: u8 = 0;
const FLAGS: usize = 3;
const SYN: u8 = 1;
/// FIN and RST belong to the end of the data, and SYN and ACK to its beginning.
const CLOSING: u8 = 4 | 8;

/// The next bytes for the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until more of the [`room`](Splitter::room) is filled.
    Header,
    /// A header, from [`give`](Splitter::give).
    Given,
    /// This many bytes, as they come.
    Data(usize),
}

/// The position in a stream of frames.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    header: [u8; HEADER],
    filled: usize,
    given: usize,
    /// How many bytes are left of the piece that was announced to the receiver.
    piece: u32,
    /// How many bytes of the frame are left after that piece.
    rest: u32,
    closing: u8,
}

impl Splitter {
    pub(crate) fn next(&mut self) -> Next {
        if self.filled == HEADER && self.given == HEADER {
            if self.piece > 0 {
                return Next::Data(self.piece as usize);
            }
            match self.rest {
                0 => (self.filled, self.given) = (0, 0),
                rest => self.begin_piece(rest, 0),
            }
        }
        match self.filled {
            HEADER => Next::Given,
            _ => Next::Header,
        }
    }

    /// Whether every frame that has begun is complete.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.filled == 0
    }

    /// Returns the stream of the data frame whose header is complete.
    pub(crate) fn stream(&self) -> Option<u32> {
        let [_, _, _, _, a, b, c, d, ..] = self.header;
        let is_data = self.filled == HEADER && self.header[TYPE] == DATA;
        is_data.then_some(u32::from_be_bytes([a, b, c, d]))
    }

    /// Whether that frame begins its stream.
    pub(crate) fn begins_stream(&self) -> bool {
        self.header[FLAGS] & SYN != 0
    }

    /// Returns the space for bytes of the next header.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.header[self.filled..]
    }

    /// Notes that `count` bytes of the room were filled.
    pub(crate) fn fill(&mut self, count: usize) {
        self.filled += count;
        if self.filled == HEADER && self.header[TYPE] == DATA {
            let [.., a, b, c, d] = self.header;
            let length = u32::from_be_bytes([a, b, c, d]);
            self.piece = length;
            if length > MAX_PIECE {
                self.closing = self.header[FLAGS] & CLOSING;
                self.begin_piece(length, self.header[FLAGS] & !CLOSING);
            }
        }
    }

    fn begin_piece(&mut self, left: u32, flags: u8) {
        self.piece = left.min(MAX_PIECE);
        self.rest = left - self.piece;
        self.given = 0;
        self.header[FLAGS] = match self.rest {
            0 => flags | self.closing,
            _ => flags,
        };
        self.header[HEADER - 4..].copy_from_slice(&self.piece.to_be_bytes());
    }

    /// Moves the available bytes of a header to `out`.
    pub(crate) fn give(&mut self, out: &mut [u8]) -> usize {
        let left = &self.header[self.given..self.filled];
        let count = left.len().min(out.len());
        out[..count].copy_from_slice(&left[..count]);
        self.given += count;
        count
    }

    /// Notes that `count` bytes of data were moved. They are at most as many as [`Next::Data`]
    /// allowed.
    pub(crate) fn pass(&mut self, count: usize) {
        self.piece -= count as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Makes a frame as it stands in a stream. `length` is any number, and `data` follows the
    /// header.
    fn frame(kind: u8, flags: u8, stream: u8, length: u32, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, kind, 0, flags, 0, 0, 0, stream];
        frame.extend(length.to_be_bytes());
        frame.extend(data);
        frame
    }

    fn data(flags: u8, stream: u8, length: usize) -> Vec<u8> {
        let data: Vec<u8> = (0..length).map(|n| (n / 7) as u8).collect();
        frame(DATA, flags, stream, length as u32, &data)
    }

    /// Returns what a receiver gets that reads these numbers of bytes at a time.
    fn split(mut wire: &[u8], reads: &[usize]) -> Vec<u8> {
        let (mut splitter, mut out) = (Splitter::default(), Vec::new());
        for read in reads.iter().cycle() {
            let mut buffer = vec![0; *read];
            let count = match splitter.next() {
                Next::Given => splitter.give(&mut buffer),
                Next::Header if wire.is_empty() => break,
                Next::Header => {
                    let count = splitter.room().len().min(wire.len()).min(*read);
                    splitter.room()[..count].copy_from_slice(&wire[..count]);
                    wire = &wire[count..];
                    splitter.fill(count);
                    continue;
                }
                Next::Data(_) if wire.is_empty() => break,
                Next::Data(most) => {
                    let count = most.min(*read).min(wire.len());
                    buffer[..count].copy_from_slice(&wire[..count]);
                    wire = &wire[count..];
                    splitter.pass(count);
                    count
                }
            };
            out.extend_from_slice(&buffer[..count]);
        }
        out
    }

    #[test]
    fn short_frames_and_frames_without_data_pass_unchanged() {
        let wire = [
            data(1, 1, 0),
            data(4, 1, 5),
            // A window update of 4 GiB, a ping, and a going away.
            frame(1, 1, 3, u32::MAX, &[]),
            frame(2, 1, 0, 0x1234_5678, &[]),
            frame(3, 0, 0, 1, &[]),
            data(0, 3, MAX_PIECE as usize),
        ];
        assert_eq!(split(&wire.concat(), &[7, 100, 3]), wire.concat());
    }

    #[test]
    fn a_data_frame_names_its_stream_and_whether_it_begins_it() {
        let read = |header: &[u8]| {
            let mut splitter = Splitter::default();
            splitter.room()[..header.len()].copy_from_slice(header);
            splitter.fill(header.len());
            (splitter.stream(), splitter.begins_stream())
        };
        let begins = [0, 0, 0, 1, 0, 0, 1, 7, 0, 0, 0, 9];
        assert_eq!(read(&begins), (Some(263), true));
        let goes_on = [0, 0, 0, 2, 0, 0, 1, 7, 0, 0, 0, 9];
        assert_eq!(read(&goes_on), (Some(263), false));
        assert_eq!(read(&begins[..11]).0, None, "the header is cut off");
        let window = [0, 1, 0, 1, 0, 0, 1, 7, 0, 0, 0, 9];
        assert_eq!(read(&window).0, None, "it is no data");
    }

    #[test]
    fn a_long_frame_becomes_several() {
        let piece = MAX_PIECE as usize;
        let long = data(1 | 4, 9, piece * 2 + 5);
        let mut expected = frame(DATA, 1, 9, MAX_PIECE, &long[12..12 + piece]);
        expected.extend(frame(
            DATA,
            0,
            9,
            MAX_PIECE,
            &long[12 + piece..12 + piece * 2],
        ));
        expected.extend(frame(DATA, 4, 9, 5, &long[12 + piece * 2..]));
        expected.extend(data(0, 1, 3));
        let wire = [long, data(0, 1, 3)].concat();
        assert_eq!(split(&wire, &[12, 9_000, 1]), expected);
    }

    #[test]
    fn our_own_frames_pass_as_they_are() {
        // rust-yamux sends no longer frames.
        assert_eq!(MAX_PIECE, 16_384);
    }

    /// A stream may end between frames and nowhere else.
    #[test]
    fn a_frame_that_has_begun_is_known() {
        let mut splitter = Splitter::default();
        assert!(splitter.is_between_frames());
        let wire = data(0, 1, 2);
        splitter.room()[..5].copy_from_slice(&wire[..5]);
        splitter.fill(5);
        assert!(!splitter.is_between_frames());
        splitter.room().copy_from_slice(&wire[5..HEADER]);
        splitter.fill(HEADER - 5);
        assert_eq!(splitter.next(), Next::Given);
        splitter.give(&mut [0; HEADER]);
        assert_eq!(splitter.next(), Next::Data(2));
        assert!(!splitter.is_between_frames());
        splitter.pass(2);
        assert_eq!(splitter.next(), Next::Header);
        assert!(splitter.is_between_frames());
    }

    const FIN: u8 = 4;

    /// JavaScript's peers send such frames with the largest window.
    #[test]
    fn a_frame_as_long_as_a_window_is_cut() {
        let long = data(FIN, 1, 16 << 20);
        let mut splitter = Splitter::default();
        let mut frames = 0;
        let mut rest = &long[..];
        let mut head = [0; HEADER];
        while !rest.is_empty() {
            match splitter.next() {
                Next::Header => {
                    let room = splitter.room();
                    room.copy_from_slice(&rest[..HEADER]);
                    splitter.fill(HEADER);
                    rest = &rest[HEADER..];
                }
                Next::Given => {
                    assert_eq!(splitter.give(&mut head), HEADER);
                    assert_eq!(head[8..], MAX_PIECE.to_be_bytes());
                    frames += 1;
                }
                Next::Data(count) => {
                    splitter.pass(count);
                    rest = &rest[count..];
                }
            }
        }
        assert_eq!(frames, 1024);
        assert_eq!(head[FLAGS], FIN, "the last piece ends the stream");
    }

    proptest! {
        #[test]
        fn cutting_does_not_change_what_the_streams_carry(
            frames in vec((0..2_u8, 0..16_u8, 0..3_u8, 0..80_000_usize), 0..6),
            reads in vec(1..20_000_usize, 1..6),
        ) {
            let wire: Vec<u8> = frames
                .iter()
                .flat_map(|(kind, flags, stream, length)| match *kind {
                    DATA => data(*flags, *stream, *length),
                    kind => frame(kind, *flags, *stream, *length as u32, &[]),
                })
                .collect();
            prop_assert_eq!(told(&split(&wire, &reads)), told(&wire));
        }
    }

    /// Returns the data of each stream, and which flags stand before which byte of it.
    fn told(mut wire: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
        let mut streams: Vec<(u8, u8, Vec<u8>)> = Vec::new();
        while let Some((head, rest)) = wire.split_at_checked(HEADER) {
            let length = u32::from_be_bytes(head[8..].try_into().unwrap()) as usize;
            let (kind, flags, stream) = (head[TYPE], head[FLAGS], head[7]);
            let (data, rest) = rest.split_at(if kind == DATA { length } else { 0 });
            wire = rest;
            // Opening flags stand before the data, and closing flags after it.
            let mut say = |kind, bytes: &[u8]| match streams.last_mut() {
                Some((a, b, data)) if (*a, *b) == (kind, stream) => data.extend(bytes),
                _ => streams.push((kind, stream, bytes.to_vec())),
            };
            if flags & !CLOSING != 0 {
                say(10 + (flags & !CLOSING), &[]);
            }
            if kind == DATA {
                say(DATA, data);
            } else {
                say(kind, &head[8..]);
            }
            if flags & CLOSING != 0 {
                say(30 + (flags & CLOSING), &[]);
            }
        }
        streams
    }
}
