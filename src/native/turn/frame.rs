//! TURN messages in a byte stream (RFC 8656 section 12.5, RFC 8489 section 6.2.2).

/// Length of a STUN header, and the constant in it (RFC 8489 section 5).
const STUN_HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The first frame of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What the frame says.
    pub(crate) len: usize,
    /// Where the next one begins: data of channels is padded.
    pub(crate) end: usize,
}

/// What follows in the stream is not TURN; nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotTurn;

/// The first frame of `data`; `None` while it is not there whole.
pub(crate) fn first(data: &[u8]) -> Result<Option<Frame>, NotTurn> {
    let &[first, _, high, low, ..] = data else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let frame = match first {
        0..=0x3f => {
            if data.len() < STUN_HEADER {
                return Ok(None);
            }
            // RFC 8489 section 5: lengths are multiples of four.
            if data[4..8] != MAGIC_COOKIE || len % 4 != 0 {
                return Err(NotTurn);
            }
            let len = STUN_HEADER + len;
            Frame { len, end: len }
        }
        // RFC 8656 section 12: numbers from 0x4000 to 0x4fff.
        0x40..=0x4f => Frame {
            len: 4 + len,
            end: (4 + len).next_multiple_of(4),
        },
        _ => return Err(NotTurn),
    };
    Ok((frame.end <= data.len()).then_some(frame))
}

/// Pads the frame that `stream` ends with.
pub(crate) fn pad(stream: &mut Vec<u8>, frame: usize) {
    let padding = frame.next_multiple_of(4) - frame;
    stream.resize(stream.len() + padding, 0);
}

/// Whether a datagram is a STUN message of the binding method, which is none of TURN's: a server
/// often is both (RFC 8489 section 5 has the bits of the method).
pub(crate) fn is_binding(datagram: &[u8]) -> bool {
    matches!(datagram, [high @ 0..=0x3f, low, ..]
        if u16::from_be_bytes([*high, *low]) & 0x3eef == 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest frame: a STUN message, or the data of a channel, with the longest length there is.
    const MAX_FRAME: usize = STUN_HEADER + u16::MAX as usize + 1;

    fn stun(len: u16) -> Vec<u8> {
        let mut message = vec![0x01, 0x13];
        message.extend(len.to_be_bytes());
        message.extend(MAGIC_COOKIE);
        message.resize(STUN_HEADER + usize::from(len), 7);
        message
    }

    fn channel(len: u16) -> Vec<u8> {
        let mut data = vec![0x40, 0x01];
        data.extend(len.to_be_bytes());
        data.resize(4 + usize::from(len), 9);
        data
    }

    #[test]
    fn what_is_not_turn_ends_the_stream() {
        assert_eq!(first(b"SSH-2.0-OpenSSH_9.2"), Err(NotTurn));
        assert_eq!(first(&[0x50, 0, 0, 0]), Err(NotTurn));
        let mut message = stun(8);
        message[4] = 0;
        assert_eq!(first(&message), Err(NotTurn));
        let mut message = stun(8);
        message[3] = 7;
        assert_eq!(first(&message), Err(NotTurn));
    }

    #[test]
    fn the_longest_frames_fit() {
        for frame in [stun(u16::MAX - 3), channel(u16::MAX)] {
            let mut padded = frame.clone();
            pad(&mut padded, frame.len());
            let found = first(&padded).unwrap().unwrap();
            assert_eq!((found.len, found.end), (frame.len(), padded.len()));
            assert!(found.end <= MAX_FRAME);
        }
    }

    #[test]
    fn bindings_are_told_from_turn() {
        for binding in [[0x00, 0x01], [0x01, 0x01], [0x01, 0x11]] {
            assert!(is_binding(&binding));
        }
        for other in [
            [0x00, 0x03],
            [0x01, 0x13],
            [0x00, 0x17],
            [0x40, 0x01],
            [0x80, 0x01],
        ] {
            assert!(!is_binding(&other));
        }
        assert!(!is_binding(&[0]));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            sent in prop::collection::vec((any::<bool>(), 0u16..400), 0..8),
            chunk in 1usize..64,
        ) {
            let sent: Vec<_> = sent
                .into_iter()
                .map(|(is_stun, len)| if is_stun { stun(len / 4 * 4) } else { channel(len) })
                .collect();
            let mut stream = Vec::new();
            for frame in &sent {
                stream.extend(frame);
                pad(&mut stream, frame.len());
            }
            let (mut buffer, mut seen) = (Vec::new(), Vec::new());
            for piece in stream.chunks(chunk) {
                buffer.extend(piece);
                while let Some(frame) = first(&buffer).unwrap() {
                    seen.push(buffer[..frame.len].to_vec());
                    buffer.drain(..frame.end);
                }
            }
            prop_assert_eq!(seen, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_are_a_frame_or_not(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(frame)) = first(&data) {
                prop_assert!(4 <= frame.len && frame.len <= frame.end && frame.end <= data.len());
            }
        }
    }
}
