//! Messages on streams, each behind its length.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _};

use crate::arriving;

/// Reads one of at most `most` bytes, which is less than 16 KiB, and nothing that stands behind it.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> io::Result<Vec<u8>> {
    let mut length = 0;
    // Two bytes hold every length allowed.
    for shift in [0, 7] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            if length > most {
                break;
            }
            return arriving::read(stream, length).await;
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_message_ends_where_its_length_says() {
        let mut stream = &[3, 1, 2, 3, 4][..];
        assert_eq!(block_on(read(&mut stream, 3)).unwrap(), [1, 2, 3]);
        assert_eq!(stream, [4]);
        let long = [&[0x80, 1][..], &[7; 128]].concat();
        assert_eq!(block_on(read(&mut &long[..], 128)).unwrap(), [7; 128]);
    }

    #[test]
    fn what_is_too_long_or_cut_off_is_an_error() {
        for (bytes, kind) in [
            (&[4, 1, 2, 3, 4][..], io::ErrorKind::InvalidData),
            (&[0x80, 0x80, 1], io::ErrorKind::InvalidData),
            (&[3, 1, 2], io::ErrorKind::UnexpectedEof),
            (&[0x80], io::ErrorKind::UnexpectedEof),
        ] {
            let error = block_on(read(&mut &bytes[..], 3)).unwrap_err();
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
    }
}
