//! The public [`Stream`], and everything that moves its bytes.
//!
//! A resumable stream is a state machine ([`core::resume`](crate::core::resume)) in a `junction`.
//! The application's handles read and write it there. Its task, the `pump`, moves bytes between the
//! junction and the substream that carries the stream at the moment. The event loop hands
//! substreams to the pump through the `mailbox`.
//!
//! ```text
//! Stream ─ write ─▶ junction ─▶ pump ─▶ substream ─▶ peer
//! Stream ◀─ read ── junction ◀─ pump ◀─ substream ◀─ peer
//!                                ▲ mailbox ◀─ event loop
//! ```

mod boxed;
mod junction;
mod mailbox;
mod pump;
mod reports;
pub(crate) mod resumable;
#[cfg(feature = "tokio")]
mod tokio_io;
mod wakers;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};

use self::junction::Junction;
pub(crate) use self::{
    boxed::{AsyncReadWrite, BoxedStream, poll_drain},
    mailbox::{PumpHandle, Via},
    pump::Pump,
    reports::{Activity, PumpEvent, SessionId},
    wakers::Wakers,
};
use crate::error::{Error, ErrorKind, ResetCode};

/// An ordered, reliable byte stream to the peer, in both directions.
///
/// Between peers of this library, a stream survives every change of the connection's path. It
/// pauses while there is no path, and then goes on without losing or repeating a byte. It fails
/// with [`ErrorKind::ConnectionLost`] when there was no path for
/// [`Config::resume_timeout`](crate::Config::resume_timeout). With a stock libp2p peer, a stream
/// ends with the path on which it was opened.
///
/// # Reading and writing
/// A stream is read and written through [`AsyncRead`] and [`AsyncWrite`]. A write is accepted at
/// once and sent without `flush`, until the peer leaves more than
/// [`Config::stream_window`](crate::Config::stream_window) bytes unread. Then the write waits.
/// `close` sends the end of the stream (FIN) and waits until the peer's library has received every
/// byte. Reading goes on after `close`. A read of 0 bytes means that the peer has sent FIN.
///
/// # Errors
/// Reads and writes fail with an [`io::Error`] that has an [`Error`] inside. `Error::from` takes
/// the `Error` out, and [`ResetCode::of`] takes out the code of a reset. The kinds are:
/// - [`ErrorKind::StreamReset`] after a reset by either side. Writes also fail with it when the
///   peer has dropped or stopped its reading half.
/// - [`ErrorKind::ConnectionClosed`] and [`ErrorKind::ConnectionLost`]. Bytes that arrived before
///   can still be read.
/// - [`ErrorKind::ProtocolRefused`] and [`ErrorKind::LimitExceeded`] from the peer.
///
/// # Cancel safety
/// Single reads and writes are cancel safe: if the future is dropped while it is pending, no bytes
/// have moved. A `close` that is dropped still sends FIN.
///
/// # Drop
/// Written bytes are not lost: the library goes on to deliver them, and then FIN, also when the
/// path changes, as long as the peer makes progress at least every 30 seconds. Unread bytes are
/// thrown away, and the peer's writes fail from then on. To tell the peer that the stream is cut
/// short, call [`reset`](Self::reset). With a stock libp2p peer, dropping without `close` is a
/// reset.
///
/// ```no_run
/// use futures::{AsyncReadExt as _, AsyncWriteExt as _};
/// use throughline::{Connection, Error};
///
/// async fn ask(connection: &Connection, question: &str) -> Result<String, Error> {
///     let mut stream = connection.open("ask/1").await?;
///     stream.write_all(question.as_bytes()).await?;
///     stream.close().await?; // the peer reads the end, and its answer can still come
///     let mut answer = String::new();
///     stream.read_to_string(&mut answer).await?;
///     Ok(answer)
/// }
/// ```
pub struct Stream {
    send: SendStream,
    recv: RecvStream,
    early: bool,
}

/// The writing half of a [`Stream`], from [`Stream::split`].
///
/// # Cancel safety
/// A write that is dropped while it is pending has moved no bytes. A `close` that is dropped still
/// sends FIN.
///
/// # Drop
/// Dropping it closes the writing half, and does not wait for the peer.
///
/// ```no_run
/// # use futures::AsyncWriteExt as _;
/// # async fn send(stream: throughline::Stream) -> Result<(), throughline::Error> {
/// let (mut send, recv) = stream.split();
/// drop(recv); // the peer's writes fail from now on
/// send.write_all(b"one way").await?;
/// send.close().await?;
/// # Ok(()) }
/// ```
pub struct SendStream(Half);

/// The reading half of a [`Stream`], from [`Stream::split`].
///
/// # Cancel safety
/// A read that is dropped while it is pending has taken no bytes.
///
/// # Drop
/// Unread bytes are thrown away, and the peer's writes fail from then on, unless the peer had
/// finished. [`stop`](Self::stop) does the same and gives a reason.
///
/// ```no_run
/// # use futures::AsyncReadExt as _;
/// # async fn receive(stream: throughline::Stream) -> Result<(), throughline::Error> {
/// let (_send, mut recv) = stream.split();
/// let mut head = [0; 4];
/// recv.read_exact(&mut head).await?;
/// if head != *b"PICT" {
///     recv.stop(415); // the peer's writes fail with this code; `_send` goes on
/// }
/// # Ok(()) }
/// ```
pub struct RecvStream(Half);

#[derive(Clone)]
struct Half {
    protocol: Arc<str>,
    carrier: StreamKind,
}

#[derive(Clone)]
enum StreamKind {
    Resumable(Arc<Junction>),
    Plain(Arc<Plain>),
}

/// A substream of a stock libp2p peer. It stands behind a lock and is not split into halves, so
/// that either half can reset both.
struct Plain {
    substream: Mutex<Option<BoxedStream>>,
    wakers: Arc<Wakers>,
    /// The stream's place among those of its session.
    _place: Arc<()>,
}

impl Stream {
    pub(crate) fn resumable(protocol: &str, junction: Arc<Junction>) -> Self {
        Self::new(protocol, StreamKind::Resumable(junction))
    }

    /// Makes a stream from a substream of a peer that does not know resumable streams. It keeps `place`
    /// until it is dropped.
    pub(crate) fn plain(
        protocol: &str,
        substream: impl AsyncRead + AsyncWrite + Send + 'static,
        place: Arc<()>,
    ) -> Self {
        let plain = Plain {
            substream: Mutex::new(Some(Box::pin(substream))),
            wakers: Arc::default(),
            _place: place,
        };
        Self::new(protocol, StreamKind::Plain(Arc::new(plain)))
    }

    fn new(protocol: &str, carrier: StreamKind) -> Self {
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

    /// Marks the stream as one whose first bytes came as early data.
    pub(crate) fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Returns the protocol name for which the stream was opened.
    pub fn protocol(&self) -> &str {
        self.send.protocol()
    }

    /// Whether the peer opened this stream with early data, by [`Connector::open`]. The security
    /// section of that method says what is not guaranteed for the bytes that came before this
    /// peer's first answer. The result is `false` for a stream that this peer opened.
    ///
    /// [`Connector::open`]: crate::Connector::open
    pub fn is_early(&self) -> bool {
        self.early
    }

    /// Ends both directions at once and tells the peer why. Unsent and unread bytes are thrown
    /// away. Reads and writes fail with [`ErrorKind::StreamReset`], here at once and at the peer
    /// when the reset arrives. The peer reads `code` with [`ResetCode::of`] or
    /// [`Error::reset_code`], and the two applications agree on its meaning. It has no effect once
    /// both directions have ended.
    ///
    /// A stock libp2p peer gets no code. Over yamux and WebRTC it sees a reset, and over QUIC it
    /// sees the end of the stream.
    pub fn reset(&mut self, code: impl Into<ResetCode>) {
        self.send.reset(code);
    }

    /// Tells the peer that this side does not serve the stream's protocol. The peer's reads and
    /// writes fail with [`ErrorKind::ProtocolRefused`]. A stock libp2p peer sees a
    /// [`reset`](Self::reset).
    pub fn refuse(self) {
        self.send.refuse();
    }

    /// Splits the stream into halves that can be used and dropped separately.
    pub fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}

impl SendStream {
    /// Returns the protocol name for which the stream was opened.
    pub fn protocol(&self) -> &str {
        &self.0.protocol
    }

    /// Ends both directions at once. See [`Stream::reset`].
    pub fn reset(&mut self, code: impl Into<ResetCode>) {
        self.0.reset(code.into());
    }

    /// Refuses the stream. See [`Stream::refuse`].
    pub(crate) fn refuse(&self) {
        match &self.0.carrier {
            StreamKind::Resumable(junction) => junction.refuse(),
            StreamKind::Plain(plain) => plain.reset(),
        }
    }
}

impl RecvStream {
    /// Returns the protocol name for which the stream was opened.
    pub fn protocol(&self) -> &str {
        &self.0.protocol
    }

    /// Ends both directions at once. See [`Stream::reset`].
    pub fn reset(&mut self, code: impl Into<ResetCode>) {
        self.0.reset(code.into());
    }

    /// Ends only this direction and tells the peer why. The peer's writes fail with
    /// [`ErrorKind::StreamReset`] and `code` when the peer learns of it, unless it had finished.
    /// Dropping does the same with the code 0. A stock libp2p peer is not told.
    pub fn stop(self, code: impl Into<ResetCode>) {
        if let StreamKind::Resumable(junction) = &self.0.carrier {
            junction.stop(code.into());
        }
    }
}

impl Half {
    fn reset(&self, code: ResetCode) {
        match &self.carrier {
            StreamKind::Resumable(junction) => junction.reset(code),
            StreamKind::Plain(plain) => plain.reset(),
        }
    }

    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("protocol", &self.protocol)
            .field(
                "resumable",
                &matches!(self.carrier, StreamKind::Resumable(_)),
            )
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
            StreamKind::Resumable(junction) => junction.poll_read(cx, out),
            StreamKind::Plain(plain) => plain.poll(plain.wakers.reader(cx), |substream, cx| {
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
            StreamKind::Resumable(junction) => junction.poll_write(cx, bytes),
            StreamKind::Plain(plain) => plain.poll(plain.wakers.writer(cx), |substream, cx| {
                substream.poll_write(cx, bytes)
            }),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0.carrier {
            StreamKind::Resumable(junction) => junction.poll_flush(),
            StreamKind::Plain(plain) => plain.poll(plain.wakers.writer(cx), |substream, cx| {
                substream.poll_flush(cx)
            }),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0.carrier {
            StreamKind::Resumable(junction) => junction.poll_close(cx),
            StreamKind::Plain(plain) => plain.poll(plain.wakers.writer(cx), |substream, cx| {
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
        if let StreamKind::Resumable(junction) = &self.0.carrier {
            junction.drop_writer();
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if let StreamKind::Resumable(junction) = &self.0.carrier {
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
        poll: impl FnOnce(Pin<&mut dyn AsyncReadWrite>, &mut Context<'_>) -> Poll<io::Result<T>>,
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
        self.wakers.wake_both();
    }

    fn lock(&self) -> MutexGuard<'_, Option<BoxedStream>> {
        self.substream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
