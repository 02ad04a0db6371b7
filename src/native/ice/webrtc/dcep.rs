//! The Data Channel Establishment Protocol (RFC 8832).

use crate::webrtc::backend::LANE_LABEL;

/// `DATA_CHANNEL_ACK` (RFC 8832 section 5.2).
pub(super) const ACK: [u8; 1] = [2];

const OPEN: u8 = 3;

/// The channel type that delivers everything, in order (RFC 8832 section 8.2.2).
const RELIABLE: u8 = 0;

/// The channel type that delivers in any order, and repeats a message as often as the reliability
/// parameter says: not at all.
const UNRELIABLE: u8 = 0x81;

/// Makes the `DATA_CHANNEL_OPEN` of a channel with normal priority and this label. It is reliable and
/// ordered, unless it is for datagrams.
pub(super) fn open(label: &str) -> Vec<u8> {
    let mut message = vec![OPEN, kind(label), 1, 0, 0, 0, 0, 0];
    // The labels of this library are constants of a few bytes.
    message.extend((label.len() as u16).to_be_bytes());
    message.extend([0, 0]);
    message.extend(label.as_bytes());
    message
}

fn kind(label: &str) -> u8 {
    match label {
        LANE_LABEL => UNRELIABLE,
        _ => RELIABLE,
    }
}

/// Reads the label of a `DATA_CHANNEL_OPEN` for a channel as [`open`] makes it. Returns `None` for
/// anything else.
pub(crate) fn parse_open(message: &[u8]) -> Option<&str> {
    let (header, rest) = message.split_at_checked(12)?;
    if header[0] != OPEN {
        return None;
    }
    let label = usize::from(u16::from_be_bytes([header[8], header[9]]));
    let protocol = usize::from(u16::from_be_bytes([header[10], header[11]]));
    if rest.len() != label + protocol {
        return None;
    }
    let label = std::str::from_utf8(&rest[..label]).ok()?;
    (header[1] == kind(label)).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_datagrams_have_an_unordered_channel() {
        for (label, kind) in [("", 0x80), ("", UNRELIABLE), (LANE_LABEL, RELIABLE)] {
            let mut message = open(label);
            message[1] = kind;
            assert_eq!(parse_open(&message), None);
        }
        assert_eq!(open(LANE_LABEL)[..8], [OPEN, 0x81, 1, 0, 0, 0, 0, 0]);
        assert_eq!(parse_open(&open(LANE_LABEL)), Some(LANE_LABEL));
    }

    proptest! {
        #[test]
        fn labels_survive(label in ".{0,40}") {
            let message = open(&label);
            prop_assert_eq!(parse_open(&message), Some(label.as_str()));
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_open(&bytes);
        }
    }
}
