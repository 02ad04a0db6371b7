//! TURN messages in a byte stream (RFC 8656 section 12.5, RFC 8489 section 6.2.2).

/// The length of a STUN header (RFC 8489 section 5).
const STUN_HEADER: usize = 20;
/// The constant in each STUN header (RFC 8489 section 5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The first frame of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnFrame {
    /// The length of the frame without padding.
    pub(crate) len: usize,
    /// The position of the next frame. Data of channels is padded.
    pub(crate) end: usize,
}

/// The error of a stream that is not TURN. Nothing after this point can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotTurn;

/// Finds the first frame of `data`, which a server has sent. Returns `None` while the frame is incomplete.
/// The numbers of our channels end at 0x4fff (RFC 8656 section 12).
pub(crate) fn first(data: &[u8]) -> Result<Option<TurnFrame>, NotTurn> {
    first_up_to(data, 0x4f)
}

/// Finds the first frame of `data`, which a client has sent. Clients of RFC 5766 take channel numbers up to
/// 0x7fff.
#[cfg(feature = "server")]
pub(crate) fn first_of_client(data: &[u8]) -> Result<Option<TurnFrame>, NotTurn> {
    first_up_to(data, 0x7f)
}

fn first_up_to(data: &[u8], last_channel: u8) -> Result<Option<TurnFrame>, NotTurn> {
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
            TurnFrame { len, end: len }
        }
        channel if (0x40..=last_channel).contains(&channel) => TurnFrame {
            len: 4 + len,
            end: (4 + len).next_multiple_of(4),
        },
        _ => return Err(NotTurn),
    };
    Ok((frame.end <= data.len()).then_some(frame))
}

/// Pads the frame at the end of `stream`, which has `frame` bytes.
pub(crate) fn pad(stream: &mut Vec<u8>, frame: usize) {
    let padding = frame.next_multiple_of(4) - frame;
    stream.resize(stream.len() + padding, 0);
}

/// Returns whether a datagram is a STUN message of the binding method. Such a message is not
/// TURN's, but a server often does both. RFC 8489 section 5 has the bits of the method.
pub(crate) fn is_binding(datagram: &[u8]) -> bool {
    matches!(datagram, [high @ 0..=0x3f, low, ..]
        if u16::from_be_bytes([*high, *low]) & 0x3eef == 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The longest frame: a STUN message, or the data of a channel, with the greatest length.
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
    fn bytes_that_are_not_turn_are_refused() {
        assert_eq!(first(b"SSH-2.0-OpenSSH_9.2"), Err(NotTurn));
        assert_eq!(first(&[0x50, 0, 0, 0]), Err(NotTurn));
        assert_eq!(
            first_up_to(&[0x7f, 0, 0, 0], 0x7f).map(|frame| frame.is_some()),
            Ok(true)
        );
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
        fn frames_are_found_in_a_stream_of_any_pieces(
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
        fn arbitrary_bytes_do_not_panic(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(frame)) = first(&data) {
                prop_assert!(4 <= frame.len && frame.len <= frame.end && frame.end <= data.len());
            }
        }
    }
}
