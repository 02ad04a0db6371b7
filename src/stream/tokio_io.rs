//! Streams with the traits of tokio, for its codecs and its `copy`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{RecvStream, SendStream, Stream};

macro_rules! reads {
    ($stream:ty) => {
        /// Reads as the trait of `futures` does. This needs the feature `tokio`.
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                out: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let room = out.initialize_unfilled();
                let read = ready!(futures::AsyncRead::poll_read(self, cx, room))?;
                out.advance(read);
                Poll::Ready(Ok(()))
            }
        }
    };
}

macro_rules! writes {
    ($stream:ty) => {
        /// Writes as the trait of `futures` does, and `shutdown` is that trait's `close`. This
        /// needs the feature `tokio`.
        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                futures::AsyncWrite::poll_write(self, cx, bytes)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                futures::AsyncWrite::poll_flush(self, cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                futures::AsyncWrite::poll_close(self, cx)
            }
        }
    };
}

reads!(Stream);
reads!(RecvStream);
writes!(Stream);
writes!(SendStream);
