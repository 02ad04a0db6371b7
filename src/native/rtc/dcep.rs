//! The Data Channel Establishment Protocol (RFC 8832).

/// `DATA_CHANNEL_ACK` (RFC 8832 section 5.2).
pub(super) const ACK: [u8; 1] = [2];

const OPEN: u8 = 3;

/// Channel types of RFC 8832 section 8.2.2 that deliver everything in order.
const RELIABLE: u8 = 0;

/// `DATA_CHANNEL_OPEN` of a reliable, ordered channel with normal priority and this label.
pub(super) fn open(label: &str) -> Vec<u8> {
    let mut message = vec![OPEN, RELIABLE, 1, 0, 0, 0, 0, 0];
    // Ours are constants of a few bytes.
    message.extend((label.len() as u16).to_be_bytes());
    message.extend([0, 0]);
    message.extend(label.as_bytes());
    message
}

/// The label of a `DATA_CHANNEL_OPEN` for a reliable, ordered channel; `None` for anything else.
pub(crate) fn parse_open(message: &[u8]) -> Option<&str> {
    let (header, rest) = message.split_at_checked(12)?;
    if header[0] != OPEN || header[1] != RELIABLE {
        return None;
    }
    let label = usize::from(u16::from_be_bytes([header[8], header[9]]));
    let protocol = usize::from(u16::from_be_bytes([header[10], header[11]]));
    if rest.len() != label + protocol {
        return None;
    }
    std::str::from_utf8(&rest[..label]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unordered_channels_are_refused() {
        let mut message = open("");
        message[1] = 0x80;
        assert_eq!(parse_open(&message), None);
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
