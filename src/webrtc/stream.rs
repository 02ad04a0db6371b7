//! A libp2p stream on a data channel.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncWrite, channel::mpsc};
use futures_timer::Delay;

use super::{FIN_ACK_TIMEOUT, backend::DataChannel};
use crate::{
    core::frame::{self, Decoder, Flag, StreamState},
    stream::Wakers,
};

/// One libp2p stream on one data channel.
///
/// Reading ends with `Ok(0)` after the peer's FIN and with `ConnectionReset` after its RESET.
/// `poll_close` ends the writing half once FIN is queued. It does not wait for FIN_ACK.
///
/// Dropping it resets the halves that are not closed. While the writing half is open, RESET resets
/// both halves. After `poll_close`, STOP_SENDING resets only the reading half. Then the connection
/// closes the channel, within [`FIN_ACK_TIMEOUT`].
///
/// ```no_run
/// use std::{future::poll_fn, pin::Pin};
///
/// use futures::{AsyncRead, AsyncWrite};
/// use libp2p::core::muxing::StreamMuxer;
///
/// /// Opens a stream on a [`Muxer`](throughline::rtc::Muxer). It is read and written as any other.
/// async fn open<M>(muxer: &mut M) -> Result<impl AsyncRead + AsyncWrite, M::Error>
/// where
///     M: StreamMuxer + Unpin,
/// {
///     poll_fn(|cx| Pin::new(&mut *muxer).poll_outbound(cx)).await
/// }
/// ```
#[derive(Debug)]
pub struct Stream<C: DataChannel> {
    /// The parts of the stream. Only `drop` takes them.
    parts: Option<Parts<C>>,
    /// The payload that was received and not read yet.
    unread: Bytes,
    scratch: BytesMut,
    wakers: Arc<Wakers>,
    winding_up: mpsc::UnboundedSender<WindUp<C>>,
}

/// Whether the peer of a connection is known to acknowledge FIN. The first acknowledgement on any
/// stream says so for all later streams. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FinAck(Arc<AtomicBool>);

impl FinAck {
    /// The peer is known to acknowledge FIN.
    pub(crate) fn known() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn learn(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Parts<C> {
    channel: C,
    state: StreamState,
    fin_ack: FinAck,
    decoder: Decoder,
}

impl<C: DataChannel> Parts<C> {
    /// Sends the waiting flags.
    fn poll_flags(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.state.has_flags() {
            if ready!(self.channel.poll_ready(cx)).is_err() {
                self.state.sending_ended();
                break;
            }
            let Some(flag) = self.state.poll_flag() else {
                break;
            };
            if self.channel.send(&frame::encode_flag(flag)).is_err() {
                self.state.sending_ended();
            }
        }
        Poll::Ready(())
    }

    /// Returns the next piece of payload, or `None` if the state changed instead.
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    let wanted = self.state.can_read() && !frame.message.is_empty();
                    if let Some(flag) = frame.flag {
                        if flag == Flag::FinAck {
                            self.fin_ack.learn();
                        }
                        self.state.received(flag);
                        let _ = self.poll_flags(cx);
                    }
                    match (wanted, frame.flag) {
                        (true, _) => return Poll::Ready(Some(frame.message)),
                        (false, Some(_)) => return Poll::Ready(None),
                        (false, None) => {}
                    }
                }
                Ok(None) => match ready!(self.channel.poll_next(cx)) {
                    Some(Ok(message)) => self.decoder.push(message),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a data channel failed");
                        self.state.reset();
                        return Poll::Ready(None);
                    }
                    None => {
                        self.state.channel_closed();
                        return Poll::Ready(None);
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "a stream was reset");
                    self.state.reset();
                    let _ = self.poll_flags(cx);
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl<C: DataChannel> Stream<C> {
    pub(crate) fn new(
        channel: C,
        fin_ack: FinAck,
        winding_up: mpsc::UnboundedSender<WindUp<C>>,
    ) -> Self {
        let state = match fin_ack.is_known() {
            true => StreamState::default(),
            false => StreamState::with_any_peer(),
        };
        Self {
            parts: Some(Parts {
                channel,
                state,
                fin_ack,
                decoder: Decoder::default(),
            }),
            unread: Bytes::new(),
            wakers: Arc::default(),
            scratch: BytesMut::new(),
            winding_up,
        }
    }

    fn parts(&mut self) -> io::Result<&mut Parts<C>> {
        self.parts
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<C: DataChannel> AsyncRead for Stream<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let waker = this.wakers.reader(cx);
        let cx = &mut Context::from_waker(&waker);
        let parts = this
            .parts
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let _ = parts.poll_flags(cx);
        while this.unread.is_empty() {
            if !parts.state.can_read() {
                return Poll::Ready(match parts.state.read_finished() {
                    true => Ok(0),
                    false => Err(io::ErrorKind::ConnectionReset.into()),
                });
            }
            match ready!(parts.poll_payload(cx)) {
                Some(payload) => this.unread = payload,
                // The writer may be waiting for this change.
                None => this.wakers.wake_both(),
            }
        }
        let n = this.unread.len().min(buf.len());
        this.unread.copy_to_slice(&mut buf[..n]);
        Poll::Ready(Ok(n))
    }
}

impl<C: DataChannel> AsyncWrite for Stream<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let waker = this.wakers.writer(cx);
        let cx = &mut Context::from_waker(&waker);
        let parts = this
            .parts
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        // A task that only writes must still learn of STOP_SENDING and RESET. They may follow a FIN.
        if this.unread.is_empty()
            && let Poll::Ready(payload) = parts.poll_payload(cx)
        {
            this.unread = payload.unwrap_or_default();
            this.wakers.wake_both();
        }
        ready!(parts.poll_flags(cx));
        if !parts.state.can_write() {
            let kind = match parts.state.write_reset() {
                true => io::ErrorKind::ConnectionReset,
                false => io::ErrorKind::BrokenPipe,
            };
            return Poll::Ready(Err(kind.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if ready!(parts.channel.poll_ready(cx)).is_err() {
            parts.state.sending_ended();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        this.scratch.clear();
        let taken = frame::encode_data(buf, &mut this.scratch);
        if parts.channel.send(&this.scratch).is_err() {
            parts.state.sending_ended();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waker = this.wakers.writer(cx);
        this.parts()?
            .poll_flags(&mut Context::from_waker(&waker))
            .map(Ok)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waker = this.wakers.writer(cx);
        let parts = this.parts()?;
        parts.state.close_write();
        ready!(parts.poll_flags(&mut Context::from_waker(&waker)));
        Poll::Ready(match parts.state.write_reset() {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        })
    }
}

impl<C: DataChannel> Drop for Stream<C> {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        if parts.state.can_write() {
            parts.state.reset();
        } else {
            parts.state.stop_reading();
        }
        // If the connection is gone, so is the channel, and nobody needs to be told.
        let _ = self.winding_up.unbounded_send(WindUp {
            parts,
            timeout: Delay::new(FIN_ACK_TIMEOUT),
            lingers: false,
        });
    }
}

/// The end of a dropped stream. It sends the remaining flags, waits for FIN and FIN_ACK, and closes
/// the channel.
#[derive(Debug)]
pub(crate) struct WindUp<C> {
    parts: Parts<C>,
    timeout: Delay,
    /// Only a FIN may still come.
    lingers: bool,
}

/// How long a stream that is over waits for a FIN that may be on its way. js-libp2p does not end a
/// stream before its FIN is acknowledged or the channel is closed.
const FIN_LINGER: Duration = Duration::from_secs(1);

impl<C: DataChannel> Future for WindUp<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let timed_out = Pin::new(&mut this.timeout).poll(cx).is_ready();
        loop {
            let flushed = this.parts.poll_flags(cx).is_ready();
            let done = flushed && this.parts.state.is_done();
            let lingers = done && this.parts.state.may_get_fin();
            if timed_out || (done && !lingers) {
                this.parts.channel.close();
                return Poll::Ready(());
            }
            if lingers && !std::mem::replace(&mut this.lingers, true) {
                this.timeout.reset(FIN_LINGER);
                return self.poll(cx);
            }
            // Nobody reads this payload any more.
            if this.parts.poll_payload(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
