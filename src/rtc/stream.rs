//! A libp2p stream on a data channel.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncWrite, channel::mpsc};
use futures_timer::Delay;

use super::{FIN_ACK_TIMEOUT, backend::DataChannel};
use crate::{
    core::frame::{self, Decoder, StreamState},
    tasks::Tasks,
};

/// One libp2p stream on one data channel.
///
/// Reading ends with `Ok(0)` after the peer's FIN and with `ConnectionReset` after its RESET.
/// `poll_close` ends the writing half once FIN is queued; it does not wait for FIN_ACK.
///
/// Dropping it resets whatever half is not closed: both with RESET while the writing half is
/// open, the reading half alone with STOP_SENDING after `poll_close`. The channel itself is
/// then wound up by the connection, in at most [`FIN_ACK_TIMEOUT`].
#[derive(Debug)]
pub struct Stream<C: DataChannel> {
    /// Taken only by `drop`.
    parts: Option<Parts<C>>,
    /// Payload received and not read yet.
    unread: Bytes,
    scratch: BytesMut,
    tasks: Arc<Tasks>,
    winding_up: mpsc::UnboundedSender<WindUp<C>>,
}

#[derive(Debug)]
struct Parts<C> {
    channel: C,
    state: StreamState,
    decoder: Decoder,
}

impl<C: DataChannel> Parts<C> {
    /// Sends the flags that wait.
    fn poll_flags(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.state.has_flags() {
            if ready!(self.channel.poll_ready(cx)).is_err() {
                self.state.channel_closed();
                break;
            }
            let Some(flag) = self.state.poll_flag() else {
                break;
            };
            if self.channel.send(&frame::encode_flag(flag)).is_err() {
                self.state.channel_closed();
            }
        }
        Poll::Ready(())
    }

    /// The next piece of payload; `None` when the state changed instead.
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    let wanted = self.state.can_read() && !frame.message.is_empty();
                    if let Some(flag) = frame.flag {
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
                        tracing::debug!(%error, "data channel failed");
                        self.state.reset();
                        return Poll::Ready(None);
                    }
                    None => {
                        self.state.channel_closed();
                        return Poll::Ready(None);
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "stream reset");
                    self.state.reset();
                    let _ = self.poll_flags(cx);
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl<C: DataChannel> Stream<C> {
    /// `fin_ack` tells whether the peer acknowledges FIN and takes acknowledgements.
    pub(crate) fn new(
        channel: C,
        fin_ack: bool,
        winding_up: mpsc::UnboundedSender<WindUp<C>>,
    ) -> Self {
        let state = match fin_ack {
            true => StreamState::default(),
            false => StreamState::without_fin_ack(),
        };
        Self {
            parts: Some(Parts {
                channel,
                state,
                decoder: Decoder::default(),
            }),
            unread: Bytes::new(),
            tasks: Arc::default(),
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
        let waker = this.tasks.reader(cx);
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
                // What has changed may be what the writer waits for.
                None => this.tasks.wake_both(),
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
        let waker = this.tasks.writer(cx);
        let cx = &mut Context::from_waker(&waker);
        let parts = this
            .parts
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        // One who only writes must still hear STOP_SENDING and RESET.
        if this.unread.is_empty()
            && parts.state.can_read()
            && let Poll::Ready(payload) = parts.poll_payload(cx)
        {
            this.unread = payload.unwrap_or_default();
            this.tasks.wake_both();
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
            parts.state.channel_closed();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        this.scratch.clear();
        let taken = frame::encode_data(buf, &mut this.scratch);
        if parts.channel.send(&this.scratch).is_err() {
            parts.state.channel_closed();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waker = this.tasks.writer(cx);
        this.parts()?
            .poll_flags(&mut Context::from_waker(&waker))
            .map(Ok)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waker = this.tasks.writer(cx);
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
        // If the connection is gone, so is the channel, and there is nobody to tell.
        let _ = self.winding_up.unbounded_send(WindUp {
            parts,
            timeout: Delay::new(FIN_ACK_TIMEOUT),
        });
    }
}

/// The end of a dropped stream: says what is left to say, waits for FIN and FIN_ACK, and closes
/// the channel.
#[derive(Debug)]
pub(crate) struct WindUp<C> {
    parts: Parts<C>,
    timeout: Delay,
}

impl<C: DataChannel> Future for WindUp<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let timed_out = Pin::new(&mut this.timeout).poll(cx).is_ready();
        loop {
            let flushed = this.parts.poll_flags(cx).is_ready();
            if timed_out || (flushed && this.parts.state.is_done()) {
                this.parts.channel.close();
                return Poll::Ready(());
            }
            // The payload is nobody's any more.
            if this.parts.poll_payload(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
