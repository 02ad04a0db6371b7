//! Streams whose bytes are sealed: messages of Noise, each behind its length.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use snow::{HandshakeState, TransportState};

use super::{First, OfferError};
use crate::{
    core::{
        offer::{KEY, Prelude, SIGNATURE},
        signalling::MAX_MESSAGE_LEN,
    },
    stream::poll_drain,
};

/// The most bytes sealed into one message: a whole message of signalling and its length. They must
/// fit, because a second message can be sent only after the answer to the first.
const MAX_PLAIN: usize = MAX_MESSAGE_LEN + 8;

/// The most bytes that a handshake message has besides its payload: two keys and two tags.
const MAX_OVERHEAD: usize = 2 * KEY + 2 * TAG;
pub(super) const TAG: usize = 16;

/// The longest sealed message, which is the first.
pub(super) const MAX_SEALED: usize = Prelude::LEN + SIGNATURE + MAX_PLAIN + MAX_OVERHEAD;
pub(super) const LENGTH: usize = 2;

/// The read buffer of a message grows by at most this many bytes at a time, so memory grows with
/// the bytes that arrive.
pub(super) const PIECE: usize = 4096;

pub(super) fn checked(length: [u8; LENGTH]) -> Result<usize, OfferError> {
    match usize::from(u16::from_be_bytes(length)) {
        length if (TAG..=MAX_SEALED).contains(&length) => Ok(length),
        _ => Err(OfferError::Length),
    }
}

pub(super) enum Noise {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    /// A message did not open.
    Broken,
}

/// A stream whose bytes are sealed between two peers. The second write of the offerer waits for the
/// first bytes of the other peer.
pub(crate) struct Sealed<S> {
    pub(super) stream: S,
    pub(super) noise: Noise,
    /// The parts that stand before the bytes of the first write.
    pub(super) first: Option<Box<First>>,
    /// Bytes that are still to be written to the stream.
    pub(super) outgoing: Vec<u8>,
    /// Opened bytes that the caller has not read yet.
    pub(super) incoming: Vec<u8>,
    /// A message that has not arrived whole, behind its length.
    pub(super) partial: Vec<u8>,
    /// Whether this side has sent its end.
    closed: bool,
    /// Whether the end of the peer has arrived.
    ended: bool,
}

impl<S> Sealed<S> {
    pub(super) fn new(stream: S, noise: HandshakeState) -> Self {
        Self {
            stream,
            noise: Noise::Handshake(Box::new(noise)),
            first: None,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            partial: Vec::new(),
            closed: false,
            ended: false,
        }
    }

    fn is_writable(&self) -> bool {
        match &self.noise {
            Noise::Handshake(noise) => noise.is_my_turn(),
            Noise::Transport(_) | Noise::Broken => true,
        }
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), OfferError> {
        let mut message = vec![0; plain.len() + MAX_OVERHEAD];
        let length = match &mut self.noise {
            Noise::Handshake(noise) => noise.write_message(plain, &mut message)?,
            Noise::Transport(noise) => noise.write_message(plain, &mut message)?,
            Noise::Broken => return Err(OfferError::Length),
        };
        let prefix = u16::try_from(length).map_err(|_| OfferError::Length)?;
        self.outgoing.extend(prefix.to_be_bytes());
        self.outgoing.extend(&message[..length]);
        self.advance()
    }

    pub(super) fn unseal(&mut self, message: &[u8]) -> Result<Vec<u8>, OfferError> {
        let mut plain = vec![0; message.len()];
        let length = match &mut self.noise {
            Noise::Handshake(noise) => noise.read_message(message, &mut plain)?,
            Noise::Transport(noise) => noise.read_message(message, &mut plain)?,
            Noise::Broken => return Err(OfferError::Length),
        };
        plain.truncate(length);
        self.advance()?;
        Ok(plain)
    }

    fn advance(&mut self) -> Result<(), OfferError> {
        self.noise = match std::mem::replace(&mut self.noise, Noise::Broken) {
            Noise::Handshake(noise) if noise.is_handshake_finished() => {
                Noise::Transport(Box::new(noise.into_transport_mode()?))
            }
            noise => noise,
        };
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sealed<S> {
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_drain(&mut self.stream, &mut self.outgoing, cx)
    }

    /// Reads one message.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let wanted = match self.partial.first_chunk() {
                None => LENGTH,
                Some(length) => LENGTH + checked(*length)?,
            };
            let before = self.partial.len();
            if before == wanted {
                let message = std::mem::take(&mut self.partial);
                let turn = self.is_writable();
                self.incoming = self.unseal(&message[LENGTH..])?;
                self.ended = self.incoming.is_empty();
                if turn != self.is_writable() {
                    // The task that waits to write is the task that reads.
                    cx.waker().wake_by_ref();
                }
                return Poll::Ready(Ok(()));
            }
            self.partial.resize(wanted.min(before + PIECE), 0);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut self.partial[before..]);
            let read = match read {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.partial.truncate(before);
                    return Poll::Pending;
                }
            };
            self.partial.truncate(before + read);
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Sealed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.incoming.is_empty() && !this.ended {
            ready!(this.poll_message(cx))?;
        }
        let length = buffer.len().min(this.incoming.len());
        buffer[..length].copy_from_slice(&this.incoming[..length]);
        this.incoming.drain(..length);
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Sealed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !this.is_writable() {
            // The first message must go before the answer can come. The same task reads the answer,
            // and `poll_message` wakes it.
            ready!(Pin::new(&mut *this).poll_flush(cx))?;
            return Poll::Pending;
        }
        // One message is buffered at a time. The first one joins the request to the relay.
        if this.first.is_none() {
            ready!(this.poll_outgoing(cx))?;
        }
        let length = buffer.len().min(MAX_PLAIN);
        let said = &buffer[..length];
        match this.first.take() {
            Some(first) => this.seal(&first.payload(said))?,
            None => this.seal(said)?,
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outgoing(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed && matches!(this.noise, Noise::Transport(_)) {
            this.closed = true;
            this.seal(&[])?;
        }
        ready!(this.poll_outgoing(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}
