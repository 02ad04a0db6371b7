//! An ordered, reliable byte stream to the peer.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};

use crate::{
    error::{Error, ErrorKind},
    node::junction::Junction,
    tasks::Tasks,
};

/// An ordered, reliable byte stream to the peer, in both directions.
///
/// Between peers of this library it survives every change of the connection's path: it pauses while
/// there is no path, and goes on with no byte lost or repeated. It fails with
/// [`ErrorKind::ConnectionLost`] when there was none for
/// [`Config::resume_timeout`](crate::Config::resume_timeout). With a stock libp2p peer it lives and
/// dies with the path it was opened on.
///
/// # Reading and writing
/// Through [`AsyncRead`] and [`AsyncWrite`]. A write is taken at once and sent without `flush`, until
/// the peer leaves more than [`Config::stream_window`](crate::Config::stream_window) bytes unread;
/// then it waits. `close` sends the end of the stream (FIN) and waits until the peer's library has
/// received every byte; reading goes on. A read of 0 bytes is the peer's FIN.
///
/// # Errors
/// An [`io::Error`] that has an [`Error`] inside: [`ErrorKind::StreamReset`] after a reset by either
/// side, and for writes when the peer has dropped its reading half; [`ErrorKind::ConnectionClosed`],
/// [`ErrorKind::ConnectionLost`], [`ErrorKind::ProtocolRefused`], [`ErrorKind::LimitExceeded`].
/// `Error::from` takes it out again. Bytes that had arrived before the connection was closed or lost
/// can still be read.
///
/// # Cancel safety
/// Single reads and writes are cancel safe: dropped while pending, they have moved nothing. A dropped
/// `close` has sent FIN all the same.
///
/// # Drop
/// Nothing that was written is lost: the library goes on to deliver it, then FIN, across moves, as
/// long as the peer makes progress at least every 30 seconds. What has not been read is thrown away,
/// and the peer's writes fail from then on. To tell the peer that the stream is cut short, call
/// [`reset`](Self::reset). With a stock libp2p peer, dropping without `close` is a reset.
pub struct Stream {
    send: SendStream,
    recv: RecvStream,
    early: bool,
}

/// The writing half of a [`Stream`], from [`Stream::split`].
///
/// # Drop
/// As if the stream had been closed, without waiting for it.
pub struct SendStream(Half);

/// The reading half of a [`Stream`], from [`Stream::split`].
///
/// # Drop
/// What has not been read is thrown away, and the peer's writes fail from then on, unless it had
/// finished.
pub struct RecvStream(Half);

#[derive(Clone)]
struct Half {
    protocol: Arc<str>,
    carrier: Carrier,
}

#[derive(Clone)]
enum Carrier {
    Resumable(Arc<Junction>),
    Plain(Arc<Plain>),
}

/// A substream of a stock libp2p peer. A lock rather than one half each, so that either half can
/// reset both.
struct Plain {
    substream: Mutex<Option<Pin<Box<dyn Duplex>>>>,
    tasks: Arc<Tasks>,
}

trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Duplex for S {}

impl Stream {
    pub(crate) fn resumable(protocol: &str, junction: Arc<Junction>) -> Self {
        Self::new(protocol, Carrier::Resumable(junction))
    }

    /// A substream of a peer that does not know resumable streams.
    pub(crate) fn plain(
        protocol: &str,
        substream: impl AsyncRead + AsyncWrite + Send + 'static,
    ) -> Self {
        let plain = Plain {
            substream: Mutex::new(Some(Box::pin(substream))),
            tasks: Arc::default(),
        };
        Self::new(protocol, Carrier::Plain(Arc::new(plain)))
    }

    fn new(protocol: &str, carrier: Carrier) -> Self {
        let half = Half {
            protocol: protocol.into(),
            carrier,
        };
        Self {
            send: SendStream(half.clone()),
            recv: RecvStream(half),
            early: false,
        }
    }

    /// The same stream, whose first bytes came as early data.
    pub(crate) fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// The name the stream was opened for.
    pub fn protocol(&self) -> &str {
        self.send.protocol()
    }

    /// Whether the peer opened this stream with early data, by [`Connector::open`]. Its
    /// section on security says what that does not promise of the bytes that came before this peer's
    /// first answer. `false` for a stream that this peer opened.
    ///
    /// [`Connector::open`]: crate::Connector::open
    pub fn is_early(&self) -> bool {
        self.early
    }

    /// Ends both directions at once and tells the peer why. What is unsent or unread is thrown away;
    /// reads and writes fail with [`ErrorKind::StreamReset`] here and, as soon as it hears of it, at
    /// the peer. `code` means what the two applications agree on; a stock libp2p peer does not get
    /// it. Without effect once both directions have ended.
    pub fn reset(&mut self, code: u32) {
        self.send.reset(code);
    }

    /// The two halves, to be used and dropped on their own.
    pub fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}

impl SendStream {
    /// The name the stream was opened for.
    pub fn protocol(&self) -> &str {
        &self.0.protocol
    }

    /// Ends both directions at once: see [`Stream::reset`].
    pub fn reset(&mut self, code: u32) {
        self.0.reset(code);
    }
}

impl RecvStream {
    /// The name the stream was opened for.
    pub fn protocol(&self) -> &str {
        &self.0.protocol
    }

    /// Ends both directions at once: see [`Stream::reset`].
    pub fn reset(&mut self, code: u32) {
        self.0.reset(code);
    }
}

impl Half {
    fn reset(&self, code: u32) {
        match &self.carrier {
            Carrier::Resumable(junction) => junction.reset(code),
            Carrier::Plain(plain) => plain.reset(),
        }
    }

    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("protocol", &self.protocol)
            .field("resumable", &matches!(self.carrier, Carrier::Resumable(_)))
            .finish_non_exhaustive()
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &self.0.carrier {
            Carrier::Resumable(junction) => junction.poll_read(cx, out),
            Carrier::Plain(plain) => plain.poll(plain.tasks.reader(cx), |substream, cx| {
                substream.poll_read(cx, out)
            }),
        }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &self.0.carrier {
            Carrier::Resumable(junction) => junction.poll_write(cx, bytes),
            Carrier::Plain(plain) => plain.poll(plain.tasks.writer(cx), |substream, cx| {
                substream.poll_write(cx, bytes)
            }),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0.carrier {
            Carrier::Resumable(junction) => junction.poll_flush(),
            Carrier::Plain(plain) => plain.poll(plain.tasks.writer(cx), |substream, cx| {
                substream.poll_flush(cx)
            }),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0.carrier {
            Carrier::Resumable(junction) => junction.poll_close(cx),
            Carrier::Plain(plain) => plain.poll(plain.tasks.writer(cx), |substream, cx| {
                substream.poll_close(cx)
            }),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.recv).poll_read(cx, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_close(cx)
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if let Carrier::Resumable(junction) = &self.0.carrier {
            junction.drop_writer();
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if let Carrier::Resumable(junction) = &self.0.carrier {
            junction.drop_reader();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.send.0.debug("Stream", f)
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("SendStream", f)
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("RecvStream", f)
    }
}

impl Plain {
    fn poll<T>(
        &self,
        waker: Waker,
        poll: impl FnOnce(Pin<&mut dyn Duplex>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(substream) = &mut *self.lock() else {
            let error = Error::new(ErrorKind::StreamReset, "the stream was reset here");
            return Poll::Ready(Err(error.into()));
        };
        let cx = &mut Context::from_waker(&waker);
        poll(substream.as_mut(), cx).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => {
                Error::new(ErrorKind::StreamReset, "the peer reset the stream").into()
            }
            _ => error,
        })
    }

    fn reset(&self) {
        *self.lock() = None;
        self.tasks.wake_both();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pin<Box<dyn Duplex>>>> {
        self.substream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
