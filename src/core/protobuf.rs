//! The parts of Protocol Buffers that libp2p's messages need: varints and length-delimited fields.

/// Takes an unsigned varint off the front. Returns `None` if it is cut off or too long.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (value, rest) = unsigned_varint::decode::u64(bytes).ok()?;
    *bytes = rest;
    Some(value)
}

/// Takes a value off the front, with the length that stands before it.
pub(crate) fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(bytes)?).ok()?;
    let (value, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(value)
}

/// Skips the value of an unknown field.
pub(crate) fn skip_field(tag: u64, bytes: &mut &[u8]) -> Option<()> {
    let fixed = match tag & 7 {
        0 => return take_varint(bytes).map(drop),
        2 => return take_bytes(bytes).map(drop),
        1 => 8,
        5 => 4,
        _ => return None,
    };
    *bytes = bytes.split_at_checked(fixed)?.1;
    Some(())
}

pub(crate) fn varint(value: u64) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    unsigned_varint::encode::u64(value, &mut buffer).to_vec()
}

/// Encodes a length-delimited field. Its number is below 16, so that its tag is one byte.
pub(crate) fn field(tag: u64, value: &[u8]) -> Vec<u8> {
    [&[tag as u8], &behind_length(value)[..]].concat()
}

/// Returns a message with its length in front, as it stands on a stream.
pub(crate) fn behind_length(message: &[u8]) -> Vec<u8> {
    [&varint(message.len() as u64), message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_each_wire_type_is_skipped_by_its_length() {
        let after = |tag, mut bytes: &[u8]| skip_field(tag, &mut bytes).map(|()| bytes.to_vec());
        assert_eq!(after(8, &[0x80, 1, 9]), Some(vec![9]));
        assert_eq!(after(8 | 1, &[0; 9]), Some(vec![0]));
        assert_eq!(after(8 | 2, &[2, 0, 0, 9]), Some(vec![9]));
        assert_eq!(after(8 | 5, &[0; 5]), Some(vec![0]));
        assert_eq!(after(8 | 1, &[0; 7]), None, "it is cut");
        for group in [3, 4, 6, 7] {
            assert_eq!(after(8 | group, &[0; 9]), None);
        }
    }
}
