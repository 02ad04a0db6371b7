//! Reads what was announced, as it arrives.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _};

/// Reads `length` bytes, and nothing that stands behind them.
///
/// The caller has bounded `length`. Even so, a peer that announces it and falls silent costs no
/// more than what it has sent.
///
/// # Errors
/// When the stream breaks, or ends before.
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

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn so_much_and_no_more() {
        let mut stream = &[1, 2, 3][..];
        assert_eq!(block_on(read(&mut stream, 2)).unwrap(), [1, 2]);
        assert_eq!(stream, [3]);
        assert!(block_on(read(&mut stream, 0)).unwrap().is_empty());
        let error = block_on(read(&mut stream, 2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
