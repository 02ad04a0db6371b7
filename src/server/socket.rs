//! A TCP connection of a client, with or without TLS. What was read to find out which protocol the
//! client speaks is read again by that protocol.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// A stream of which the first bytes are read twice.
#[derive(Debug)]
pub(crate) struct Replayed<S> {
    /// The bytes that are read again. It is empty once they have been.
    first: Vec<u8>,
    at: usize,
    stream: S,
}

impl<S> Replayed<S> {
    /// Puts `first` before what comes from `stream`.
    pub(crate) fn new(first: Vec<u8>, stream: S) -> Self {
        let at = 0;
        Self { first, at, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let rest = &this.first[this.at..];
        let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
        buf.put_slice(now);
        this.at += now.len();
        if later.is_empty() {
            this.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// TLS over the TCP connection of a client.
pub(crate) type Secured = TlsStream<Replayed<TcpStream>>;

/// A client's connection, whatever it speaks.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(Replayed<TcpStream>),
    Tls(Replayed<Box<Secured>>),
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(Replayed::new(Vec::new(), stream))
    }
}

impl Socket {
    /// The TCP connection, for its options.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(plain) => &plain.stream,
            Self::Tls(tls) => &tls.stream.get_ref().0.stream,
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Has the kernel drop what it has not sent when the connection is dropped. An orderly close would
/// leave the connection's state in the kernel for a minute.
pub(crate) fn reset(stream: &TcpStream) {
    // An error says that the connection has ended already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Calls a method of the stream in a [`Socket`].
macro_rules! either {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket.get_mut() {
            Socket::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Socket::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

/// A connection with the traits that libp2p asks for.
pub(crate) struct ForPeers(pub(crate) Socket);

impl futures::AsyncRead for ForPeers {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        let read = Pin::new(&mut self.0).poll_read(cx, &mut buf);
        read.map_ok(|()| buf.filled().len())
    }
}

impl futures::AsyncWrite for ForPeers {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    proptest! {
        /// Whatever was read first, and whatever size a reader has, every byte comes once.
        #[test]
        fn every_byte_is_read_once(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            first in 0usize..100,
            sizes in prop::collection::vec(1usize..20, 1..10),
        ) {
            let (first, rest) = bytes.split_at(first.min(bytes.len()));
            let mut stream = Replayed::new(first.to_vec(), rest);
            let read = async {
                let (mut seen, mut sizes) = (Vec::new(), sizes.iter().cycle());
                loop {
                    let mut piece = [0; 20];
                    let size = *sizes.next().unwrap();
                    match stream.read(&mut piece[..size]).await.unwrap() {
                        0 => return seen,
                        read => seen.extend_from_slice(&piece[..read]),
                    }
                }
            };
            let seen = futures::executor::block_on(read);
            prop_assert_eq!(seen, bytes);
        }
    }
}
