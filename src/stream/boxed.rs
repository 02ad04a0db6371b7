//! One type for every stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// Any stream. There is one type for all streams, because each stream type would have its own copy
/// of noise, yamux and multistream-select, which is 30 KB of compressed wasm.
pub(crate) type BoxedStream = Pin<Box<dyn AsyncReadWrite>>;

/// The trait of whatever a [`BoxedStream`] holds.
pub(crate) trait AsyncReadWrite: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> AsyncReadWrite for S {}

/// Writes all of `bytes`. Bytes that were written are removed from the buffer.
pub(crate) fn poll_drain(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.drain(..written);
    }
    Poll::Ready(Ok(()))
}
