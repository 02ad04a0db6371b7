//! Reads bytes whose number was announced, as they arrive.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _};

/// Reads `length` bytes, and no byte after them.
///
/// The caller has limited `length`. Memory is allocated only for bytes that have arrived, so a peer
/// that announces many bytes and then sends nothing uses none.
///
/// # Errors
/// Returns an error if the stream fails or ends early.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    length: usize,
) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Reads one message after its length, which is a varint, and no byte after the message.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a message of more than `most` bytes, which must be less than
/// 16 KiB, and the errors of [`read`].
pub(crate) async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> io::Result<Vec<u8>> {
    let mut length = 0;
    // Two bytes can hold every allowed length.
    for shift in [0, 7] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            if length > most {
                break;
            }
            return read(stream, length).await;
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn only_the_announced_bytes_are_read() {
        let mut stream = &[1, 2, 3][..];
        assert_eq!(block_on(read(&mut stream, 2)).unwrap(), [1, 2]);
        assert_eq!(stream, [3]);
        assert!(block_on(read(&mut stream, 0)).unwrap().is_empty());
        let error = block_on(read(&mut stream, 2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_message_ends_where_its_length_says() {
        let mut stream = &[3, 1, 2, 3, 4][..];
        assert_eq!(block_on(read_message(&mut stream, 3)).unwrap(), [1, 2, 3]);
        assert_eq!(stream, [4]);
        let long = [&[0x80, 1][..], &[7; 128]].concat();
        assert_eq!(
            block_on(read_message(&mut &long[..], 128)).unwrap(),
            [7; 128]
        );
    }

    #[test]
    fn messages_that_are_too_long_or_cut_off_are_errors() {
        for (bytes, kind) in [
            (&[4, 1, 2, 3, 4][..], io::ErrorKind::InvalidData),
            (&[0x80, 0x80, 1], io::ErrorKind::InvalidData),
            (&[3, 1, 2], io::ErrorKind::UnexpectedEof),
            (&[0x80], io::ErrorKind::UnexpectedEof),
        ] {
            let error = block_on(read_message(&mut &bytes[..], 3)).unwrap_err();
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
    }
}
