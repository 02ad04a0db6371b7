//! Cuts the frames of yamux into pieces, so that none announces much.
//!
//! A receiver of yamux allocates the announced length of a data frame, up to 1 MiB, before a byte
//! of it has come. The protocol knows no bounds of messages, so one long frame and several short
//! ones say the same (<https://github.com/hashicorp/yamux/blob/master/spec.md>).

/// Implementations send no longer frames of data than 16 KiB (Rust) or 64 KiB (Go, JavaScript).
/// So those of our own pass as they are.
pub(crate) const MAX_PIECE: u32 = 16 * 1024;

/// A frame that announces more ends the connection; that is left to the receiver.
const MAX_FRAME: u32 = 1024 * 1024;

const HEADER: usize = 12;
const TYPE: usize = 1;
const DATA: u8 = 0;
const FLAGS: usize = 3;
/// FIN and RST stand at the end of what they end; SYN and ACK at the beginning.
const CLOSING: u8 = 4 | 8;

/// What the receiver gets next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until more of the [`room`](Splitter::room) is filled.
    Header,
    /// A header, from [`give`](Splitter::give).
    Given,
    /// So many bytes as they come.
    Data(usize),
}

/// The place in a stream of frames.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    header: [u8; HEADER],
    filled: usize,
    given: usize,
    /// What is left of the piece that the receiver knows of.
    piece: u32,
    /// What is left of the frame behind that piece.
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

    /// Whether no frame has begun that is not complete.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.filled == 0
    }

    /// Where bytes of the next header belong.
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
            if (MAX_PIECE + 1..=MAX_FRAME).contains(&length) {
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

    /// Moves what is there of a header to `out`.
    pub(crate) fn give(&mut self, out: &mut [u8]) -> usize {
        let left = &self.header[self.given..self.filled];
        let count = left.len().min(out.len());
        out[..count].copy_from_slice(&left[..count]);
        self.given += count;
        count
    }

    /// Notes that `count` bytes of data were moved, which are no more than were told.
    pub(crate) fn pass(&mut self, count: usize) {
        self.piece -= count as u32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A frame as it stands in a stream: type, flags, stream, data or length.
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

    /// What a receiver gets that reads so many bytes at a time.
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
    fn short_frames_and_those_without_data_pass_as_they_are() {
        let wire = [
            data(1, 1, 0),
            data(4, 1, 5),
            // A window of 4 GiB, a ping, and a going away.
            frame(1, 1, 3, u32::MAX, &[]),
            frame(2, 1, 0, 0x1234_5678, &[]),
            frame(3, 0, 0, 1, &[]),
            data(0, 3, MAX_PIECE as usize),
        ];
        assert_eq!(split(&wire.concat(), &[7, 100, 3]), wire.concat());
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

    /// The receiver has to see that it is too long.
    #[test]
    fn what_no_frame_may_be_is_not_hidden() {
        let head = frame(DATA, 0, 1, MAX_FRAME + 1, &[]);
        assert_eq!(split(&head, &[5]), head);
    }

    proptest! {
        #[test]
        fn streams_are_the_same_however_they_are_read(
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

    /// The data of each stream, and which flags stand before which byte of it. No frame is longer
    /// than a piece in what was split, which the caller sees by its being equal.
    fn told(mut wire: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
        let mut streams: Vec<(u8, u8, Vec<u8>)> = Vec::new();
        while let Some((head, rest)) = wire.split_at_checked(HEADER) {
            let length = u32::from_be_bytes(head[8..].try_into().unwrap()) as usize;
            let (kind, flags, stream) = (head[TYPE], head[FLAGS], head[7]);
            let (data, rest) = rest.split_at(if kind == DATA { length } else { 0 });
            wire = rest;
            // Flags of opening stand before the data, those of closing behind it.
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
