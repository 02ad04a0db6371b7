//! Yamux that allocates memory only for bytes that have arrived, and bounds that memory.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSlice},
    iter,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use futures::{
    AsyncRead, AsyncWrite,
    future::{Ready, ready as done},
};
use libp2p::core::{
    muxing::{StreamMuxer, StreamMuxerEvent},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
};
use yamux::{ConnectionError, Mode};

use crate::core::{
    unread::Unread,
    yamux::{Next, Splitter},
};

/// The most inbound streams of a server's connection that wait to be accepted. Further streams are
/// reset. libp2p opens as many before one of them is acknowledged.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
const MAX_WAITING: usize = 256;

/// The bytes that all streams of a peer's connection may have unread, beyond the initial windows. With
/// it, auto-tuned windows are as wide as with libp2p's own settings.
const MORE_WINDOW: usize = (1 << 30) - MAX_STREAMS * yamux::DEFAULT_CREDIT as usize;

/// Yamux over [`Pieces`].
#[derive(Clone, Debug)]
pub(crate) struct Yamux {
    config: yamux::Config,
    most_waiting: usize,
    /// How many bytes of a connection may be unread until its [window](Window::set) changes.
    most_unread: Option<usize>,
}

impl Yamux {
    /// Makes room for this many streams of the application, and for those of libp2p's and this
    /// library's protocols. Yamux ends the connection if there are more than it has room for, so the
    /// application's limit has to be met first. A stream that gets another carrier counts twice for a
    /// moment.
    pub(crate) fn holding(streams: usize) -> Self {
        let most = streams.saturating_mul(2).saturating_add(MAX_STREAMS / 2);
        Self::new(most, MORE_WINDOW)
    }

    /// Each stream begins with the window of the specification, for which the configuration must leave
    /// room. All streams together may have `more` in addition.
    fn new(streams: usize, more: usize) -> Self {
        let mut config = yamux::Config::default();
        let least = streams.saturating_mul(yamux::DEFAULT_CREDIT as usize);
        // The library compares the two at each change.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(streams);
        config.set_max_connection_receive_window(Some(least.saturating_add(more)));
        Self {
            config,
            most_waiting: streams,
            most_unread: None,
        }
    }

    /// Bounds the unread bytes of a connection. `connection` is its bound until its
    /// [window](Window::set) changes. `stream` is the bound of one stream, which it reaches only
    /// while other streams do not use the room beyond their initial windows.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn bounded(connection: usize, stream: usize) -> Self {
        let more = stream.saturating_sub(yamux::DEFAULT_CREDIT as usize);
        let mut yamux = Self::new(MAX_STREAMS, more);
        yamux.most_waiting = MAX_WAITING;
        yamux.most_unread = Some(connection);
        yamux
    }

    fn over<C>(self, io: C, mode: Mode) -> Muxer<C>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let window = self.most_unread.map(Window::new);
        let io = Pieces::new(io, window.clone());
        Muxer {
            connection: yamux::Connection::new(io, self.config, mode),
            window,
            most_waiting: self.most_waiting,
            waiting: VecDeque::new(),
            waker: None,
            kept: None,
        }
    }
}

/// The most streams of a server's connection, as in libp2p.
const MAX_STREAMS: usize = 512;

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C> InboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        done(Ok(self.over(io, Mode::Server)))
    }
}

impl<C> OutboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        done(Ok(self.over(io, Mode::Client)))
    }
}

/// Bounds the unread bytes of one connection. Clones share the bound.
#[derive(Clone, Debug)]
pub(crate) struct Window(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    unread: Unread,
    /// The task that waits until there is room.
    waker: Option<Waker>,
}

impl Window {
    fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            unread: Unread::new(most),
            waker: None,
        })))
    }

    /// Changes how many bytes may be unread.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn set(&self, most: usize) {
        self.change(|unread| unread.set_most(most));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The count is consistent after every call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Unread)) {
        let mut inner = self.lock();
        change(&mut inner.unread);
        if !inner.unread.is_full()
            && let Some(waker) = inner.waker.take()
        {
            waker.wake();
        }
    }

    /// Ready when more bytes may be taken from the peer.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.unread.is_full() {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A connection with its streams.
pub(crate) struct Muxer<C> {
    connection: yamux::Connection<Pieces<C>>,
    window: Option<Window>,
    most_waiting: usize,
    /// Inbound streams that have arrived while the muxer was polled for other work.
    waiting: VecDeque<Stream>,
    waker: Option<Waker>,
    /// A value that is dropped with the connection.
    kept: Option<Box<dyn Send>>,
}

impl<C> fmt::Debug for Muxer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Muxer").finish_non_exhaustive()
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Returns the bound of the connection, if it has one.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn window(&self) -> Option<Window> {
        self.window.clone()
    }

    /// Keeps a value that is dropped with the connection.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn keep(&mut self, kept: Box<dyn Send>) {
        self.kept = Some(kept);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        let next = ready!(self.connection.poll_next_inbound(cx));
        let stream = next.unwrap_or(Err(ConnectionError::Closed))?;
        Poll::Ready(Ok(Stream::new(stream, self.window.clone())))
    }
}

impl<C> StreamMuxer for Muxer<C>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        if let Some(stream) = self.waiting.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(next) = self.poll_next(cx) {
            return Poll::Ready(next);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        let stream = ready!(self.connection.poll_new_outbound(cx))?;
        Poll::Ready(Ok(Stream::new(stream, self.window.clone())))
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        let stream = ready!(self.poll_next(cx))?;
        if self.waiting.len() < self.most_waiting {
            self.waiting.push_back(stream);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        // Other tasks get a turn before the next stream.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One stream. Reading from it makes room in the window of its connection.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: yamux::Stream,
    window: Option<Window>,
}

impl Stream {
    fn new(inner: yamux::Stream, window: Option<Window>) -> Self {
        let id = inner.id().val();
        if let Some(window) = &window {
            window.change(|unread| unread.open(id));
        }
        Self { inner, window }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let id = self.inner.id().val();
        if let Some(window) = &self.window {
            window.change(|unread| unread.close(id));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
        if let Some(window) = &self.window {
            window.change(|unread| unread.read(self.inner.id().val(), read));
        }
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A connection that passes its peer's frames on in pieces: see
/// [`core::yamux`](crate::core::yamux). It takes nothing from the peer while its window is full.
#[derive(Debug)]
pub(crate) struct Pieces<C> {
    inner: C,
    splitter: Splitter,
    window: Option<Window>,
}

impl<C> Pieces<C> {
    fn new(inner: C, window: Option<Window>) -> Self {
        Self {
            inner,
            splitter: Splitter::default(),
            window,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Pieces<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            inner,
            splitter,
            window,
        } = self.get_mut();
        loop {
            match splitter.next() {
                Next::Given => return Poll::Ready(Ok(splitter.give(out))),
                Next::Data(most) => {
                    if let Some(window) = window {
                        ready!(window.poll_room(cx));
                    }
                    let most = most.min(out.len());
                    let read = ready!(Pin::new(inner).poll_read(cx, &mut out[..most]))?;
                    if let Some((window, stream)) = window.as_ref().zip(splitter.stream()) {
                        window.change(|unread| unread.arrived(stream, read));
                    }
                    splitter.pass(read);
                    return Poll::Ready(Ok(read));
                }
                Next::Header => {
                    let room = splitter.room();
                    match ready!(Pin::new(&mut *inner).poll_read(cx, room))? {
                        0 if splitter.is_between_frames() => return Poll::Ready(Ok(0)),
                        0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        read => splitter.fill(read),
                    }
                    let begun = splitter.stream().filter(|_| splitter.begins_stream());
                    if let Some((window, stream)) = window.as_ref().zip(begun) {
                        window.change(|unread| unread.open(stream));
                    }
                }
            }
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Pieces<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(all(test, feature = "server"))]
mod tests;
