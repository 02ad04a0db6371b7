//! The message by which a relay tells a peer that its quota is nearly used up.
//!
//! The relay opens a stream of [`PROTOCOL`] to the peer, and sends one proto3 message after its
//! length, which is an unsigned varint. Stock peers refuse the stream.

use std::time::Duration;

use super::{
    allowance::{Left, Period},
    protobuf::{behind_length, skip_field, take_varint, varint},
};

pub(crate) const PROTOCOL: &str = "/throughline/quota/1";

/// The longest message that is read.
pub(crate) const MAX_MESSAGE: usize = 128;

/// The longest time that counts, in seconds. No month is longer.
const MAX_SECONDS: u64 = 31 * 24 * 60 * 60;

// Quota { left = 1, all = 2, seconds = 3, month = 4 }
const LEFT: u64 = 1 << 3;
const ALL: u64 = 2 << 3;
const SECONDS: u64 = 3 << 3;
const MONTH: u64 = 4 << 3;

/// Returns the message as it stands on the stream.
pub(crate) fn encode(left: &Left) -> Vec<u8> {
    let fields = [
        (LEFT, left.left),
        (ALL, left.all),
        (SECONDS, left.ends.as_secs()),
        (MONTH, u64::from(left.period == Period::Month)),
    ];
    let fields = fields.map(|(tag, value)| [vec![tag as u8], varint(value)].concat());
    behind_length(&fields.concat())
}

/// Reads a message without its length. Returns `None` if it is malformed or names no quota.
pub(crate) fn decode(mut rest: &[u8]) -> Option<Left> {
    let (mut left, mut all, mut seconds, mut month) = (0, 0, 0, 0);
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            LEFT => left = take_varint(&mut rest)?,
            ALL => all = take_varint(&mut rest)?,
            SECONDS => seconds = take_varint(&mut rest)?,
            MONTH => month = take_varint(&mut rest)?,
            tag => skip_field(tag, &mut rest)?,
        }
    }
    (all > 0).then_some(Left {
        left: left.min(all),
        all,
        ends: Duration::from_secs(seconds.min(MAX_SECONDS)),
        period: match month {
            0 => Period::Day,
            _ => Period::Month,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::protobuf::take_bytes;

    #[test]
    fn a_message_has_the_specified_bytes() {
        let left = Left {
            left: 200,
            all: 1000,
            ends: Duration::from_secs(60),
            period: Period::Month,
        };
        let message = [8, 0xc8, 1, 16, 0xe8, 7, 24, 60, 32, 1];
        assert_eq!(encode(&left), behind_length(&message));
        assert_eq!(decode(&message), Some(left));
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[16]), None);
        let for_ever = decode(&[8, 1, 16, 2, 24, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
        assert_eq!(for_ever.ends, Duration::from_secs(2_678_400));
        let odd = decode(&[8, 9, 16, 5, 0x2a, 1, 7]).unwrap();
        assert_eq!((odd.left, odd.period), (5, Period::Day));
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(all in 1u64.., left: u64, seconds in 0..MAX_SECONDS, month: bool) {
            let left = Left {
                left: left.min(all),
                all,
                ends: Duration::from_secs(seconds),
                period: if month { Period::Month } else { Period::Day },
            };
            let framed = encode(&left);
            let message = take_bytes(&mut &framed[..]).unwrap().to_vec();
            prop_assert!(message.len() <= MAX_MESSAGE);
            prop_assert_eq!(decode(&message), Some(left));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
