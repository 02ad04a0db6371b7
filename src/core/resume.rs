//! Streams that survive every change of path, with no byte lost or repeated.
//!
//! A stream between two peers of this library is carried by one libp2p substream at a time,
//! negotiated as [`PROTOCOL`]. Both ends number the bytes of each direction and keep what they have
//! written until the other end has consumed it. When the path changes, the opener opens another
//! substream, and both ends go on from where the other end stands:
//!
//! ```text
//! opener                                acceptor
//!   OPEN id, window, protocol ------------>
//!   DATA 0.. ----------------------------->    0 extra round trips
//!      <------------- ACCEPT received, window
//!      <-------------------------- DATA 0..
//!   ................ path changes ................
//!   RESUME id, received ------------------>    on the new substream
//!   DATA acked.. ------------------------->    at most INITIAL_WINDOW before the answer
//!      <----- ACCEPT received, DATA received'..
//!   DATA received.. ---------------------->
//! ```
//!
//! Why no byte is lost or repeated: a substream carries the bytes of one direction in order. They
//! begin at or before the number of bytes that the reader has received when the first of them
//! arrives, and this number only grows. So each byte is either the next one or one to be dropped,
//! whether the old or the new substream brings it. The old substream may therefore be read to its
//! end while the new one is in use.
//!
//! One number serves for flow control and for memory. A writer may hold `window` bytes that the
//! peer has not consumed, the peer must be able to hold them, and neither needs more. Everything
//! that a write has taken can be sent at once, so a stream that is finished and dropped never waits
//! for its reader.
//!
//! This module is only the state machine, without a clock and without IO. `stream::pump` moves its
//! bytes.

mod buffer;
mod frame;
mod recv;
mod send;
#[cfg(test)]
mod simulation;

pub(crate) use frame::{
    Decoder, Header, MAX_FRAME, MAX_HEADER, ProtocolError, Refusal, Request, StreamFrame, StreamId,
};

use recv::RecvSide;
use send::SendSide;

/// The multistream-select name of a substream that carries a resumable stream.
pub(crate) const PROTOCOL: &str = "/throughline/stream/1";

/// How many bytes the opener may send before it has an answer. It is also the smallest window. 64
/// KiB holds any first request with room to spare. A peer need not hold more than this for a stream
/// that it may refuse, and not more than this is sent again when a stream moves.
pub(crate) const INITIAL_WINDOW: u64 = 64 * 1024;

/// The largest window in bytes: 1 GiB, so that sizes fit a 32-bit address space.
pub(crate) const MAX_WINDOW: u64 = 1 << 30;

/// The code of RESET if the application does not serve the protocol. Applications' own codes have
/// 32 bits, and this code is above them.
pub(crate) const REFUSED: u64 = (1 << 32) + 2;

/// Why no more bytes can be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The stream was finished here.
    Finished,
    /// The peer's reader is gone.
    Stopped {
        /// The application's reason.
        code: u64,
    },
    /// The stream was reset.
    Reset {
        /// The application's code.
        code: u64,
        /// Whether the peer reset the stream.
        by_peer: bool,
    },
}

/// One end of a resumable stream.
#[derive(Debug)]
pub(crate) struct Resume {
    id: StreamId,
    role: Role,
    /// The epoch of the newest header that was sent or accepted. It is 0 before the first.
    epoch: u64,
    /// Whether there is a substream to send on.
    attached: bool,
    /// Whether a header (opener) or ACCEPT (acceptor) must be sent next.
    greeting_due: bool,
    /// Whether the header of the current epoch has been answered. It is always true for the
    /// acceptor.
    answered: bool,
    /// Whether the peer has sent anything on this stream, so that it knows the stream.
    heard: bool,
    refusal: Option<Refusal>,
    reset: Option<Reset>,
    send: SendSide,
    recv: RecvSide,
}

#[derive(Debug)]
enum Role {
    Opener { protocol: String },
    Acceptor,
}

#[derive(Debug)]
struct Reset {
    code: u64,
    by_peer: bool,
    /// Whether RESET was sent on the current substream.
    sent: bool,
    /// Whether the peer has sent RESET too.
    heard: bool,
}

impl Resume {
    /// Makes the opening end. `window` is the limit of each direction in bytes, between
    /// [`INITIAL_WINDOW`] and [`MAX_WINDOW`].
    pub(crate) fn opener(id: StreamId, protocol: String, window: u64) -> Self {
        Self::new(id, Role::Opener { protocol }, window, INITIAL_WINDOW)
    }

    /// Makes the accepting end of a stream that `header` has announced. It is not attached yet. A
    /// RESUME header is an error, because it announces no stream. A window that is too small is an
    /// error, too.
    pub(crate) fn acceptor(header: &Header, window: u64) -> Result<Self, ProtocolError> {
        match header.request {
            Request::Open { window: peer, .. } if peer >= INITIAL_WINDOW => {
                Ok(Self::new(header.id, Role::Acceptor, window, peer))
            }
            Request::Open { .. } => Err(ProtocolError::Field("window")),
            Request::Resume { .. } => Err(ProtocolError::Role),
        }
    }

    fn new(id: StreamId, role: Role, window: u64, peer_window: u64) -> Self {
        let window = window.clamp(INITIAL_WINDOW, MAX_WINDOW);
        Self {
            id,
            role,
            epoch: 0,
            attached: false,
            greeting_due: false,
            answered: false,
            heard: false,
            refusal: None,
            reset: None,
            send: SendSide::new(window, peer_window),
            recv: RecvSide::new(window),
        }
    }

    /// Takes as many of `bytes` as the window allows, possibly none.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        self.check_reset()?;
        self.send.write(bytes)
    }

    /// Ends writing. The peer learns of it after the last byte.
    pub(crate) fn finish(&mut self) {
        self.send.finish();
    }

    /// Whether the peer has received everything that was written and knows that it was all.
    pub(crate) fn is_finished(&self) -> Result<bool, Closed> {
        if let Some(code) = self.send.stopped() {
            return Err(Closed::Stopped { code });
        }
        if !self.send.is_acked() {
            self.check_reset()?;
        }
        Ok(self.send.is_acked())
    }

    /// Moves bytes to `out`. Returns `Some(0)` at the end of the stream, and `None` if there is
    /// nothing yet.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Closed> {
        self.check_reset()?;
        Ok(self.recv.read(out))
    }

    /// Whether a read would give bytes, the end or an error.
    pub(crate) fn is_readable(&self) -> bool {
        self.reset.is_some() || self.recv.is_readable()
    }

    /// Whether a write would take bytes or give an error. If the stream was finished here, it says
    /// whether the result of that is known.
    pub(crate) fn is_writable(&self) -> bool {
        self.reset.is_some() || self.send.is_writable()
    }

    /// Returns how many of the peer's bytes have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.recv.received()
    }

    /// Ends reading, for this reason. The peer's writes fail from the moment when the peer learns
    /// of it.
    pub(crate) fn stop(&mut self, code: u64) {
        self.recv.stop(code);
    }

    /// Ends both directions at once, unless both have ended already.
    pub(crate) fn reset(&mut self, code: u64) {
        if !self.is_complete() {
            self.set_reset(code, false);
        }
    }

    /// Returns how many bytes are held for sending, and for reading.
    #[cfg(test)]
    pub(crate) fn buffered(&self) -> (usize, usize) {
        (self.send.buffered(), self.recv.buffered())
    }

    /// Returns how many of our bytes the peer has consumed. The number grows as long as the peer
    /// makes progress.
    pub(crate) fn acked(&self) -> u64 {
        self.send.acked()
    }

    /// Opener: begins to use a new substream. It carries a header first.
    pub(crate) fn attach(&mut self) {
        self.answered = false;
        self.restart(self.epoch + 1);
    }

    /// Acceptor: begins to use the new substream that has brought `header`. Returns `false` if the
    /// header is stale. The substream must then be dropped.
    pub(crate) fn attach_from(&mut self, header: &Header) -> Result<bool, ProtocolError> {
        if let Role::Opener { .. } = self.role {
            return Err(ProtocolError::Role);
        }
        if header.epoch <= self.epoch {
            return Ok(false);
        }
        let received = match header.request {
            Request::Open { .. } => 0,
            Request::Resume { received } => received,
        };
        self.answered = true;
        self.restart(header.epoch);
        self.send.skip_to(received)?;
        Ok(true)
    }

    fn restart(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.attached = true;
        self.greeting_due = true;
        self.send.rewind();
        self.recv.rewind();
        if let Some(reset) = &mut self.reset {
            reset.sent = false;
        }
    }

    /// Notes that the current substream is gone. Nothing is sent until the next attach.
    pub(crate) fn detach(&mut self) {
        self.attached = false;
    }

    /// Whether the peer has answered on the current substream. From then on it writes there, and no
    /// longer on an older one.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Returns the refusal of the current substream's header.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Whether both directions have ended, both ends know it, and everything that tells so was sent
    /// on the current substream.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.reset {
            Some(reset) => self.epoch == 0 || reset.heard && reset.sent,
            None => self.send.is_acked() && self.recv.is_confirmed(),
        }
    }

    /// Whether neither end has anything to add, so that [`is_complete`](Self::is_complete) will
    /// become true with time.
    pub(crate) fn is_ending(&self) -> bool {
        self.reset.is_some() || self.send.is_finished() && self.recv.is_finished()
    }

    /// Whether the header is all that could be sent now.
    pub(crate) fn has_only_header(&self) -> bool {
        let said = self.recv.has_output() || self.send.has_output(self.answered);
        self.greeting_due && self.reset.is_none() && !said
    }

    pub(crate) fn has_output(&self) -> bool {
        self.attached
            && (self.greeting_due
                || match &self.reset {
                    Some(reset) => !reset.sent,
                    None => self.recv.has_output() || self.send.has_output(self.answered),
                })
    }

    /// Appends what has to be sent next on the current substream: at most one DATA frame and a few
    /// small frames, a little over [`MAX_FRAME`] bytes in all. If nothing is appended, nothing can
    /// be sent until another event.
    pub(crate) fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        if !self.attached {
            return;
        }
        if self.greeting_due {
            self.greeting_due = false;
            self.greet(out);
        }
        if let Some(reset) = &mut self.reset {
            if !reset.sent {
                reset.sent = true;
                StreamFrame::Reset { code: reset.code }.encode(out);
            }
            return;
        }
        let with_data = self.send.has_data(self.answered);
        self.recv.transmit(with_data, out);
        self.send.transmit(self.answered, out);
    }

    fn greet(&self, out: &mut Vec<u8>) {
        let (epoch, received, window) = (self.epoch, self.recv.received(), self.recv.window());
        let Role::Opener { protocol } = &self.role else {
            let accept = StreamFrame::Accept {
                epoch,
                received,
                window,
            };
            return accept.encode(out);
        };
        let request = if self.heard {
            Request::Resume { received }
        } else {
            Request::Open {
                window,
                protocol: protocol.clone(),
            }
        };
        let id = self.id;
        Header { id, epoch, request }.encode(out);
    }

    /// Handles a frame from the current substream or an older one.
    pub(crate) fn handle_frame(&mut self, frame: StreamFrame<'_>) -> Result<(), ProtocolError> {
        match frame {
            StreamFrame::Refuse { epoch, refusal } => {
                self.check_answer(epoch)?;
                if epoch == self.epoch {
                    self.refusal = Some(refusal);
                }
                return Ok(());
            }
            StreamFrame::Reset { code } => {
                self.heard = true;
                self.set_reset(code, true);
                return Ok(());
            }
            _ => self.heard = true,
        }
        if self.reset.is_some() {
            return Ok(());
        }
        match frame {
            StreamFrame::Accept {
                epoch,
                received,
                window,
            } => {
                self.check_answer(epoch)?;
                self.send.set_peer_window(window)?;
                if epoch == self.epoch {
                    self.answered = true;
                    self.send.skip_to(received)?;
                }
                Ok(())
            }
            StreamFrame::Data { offset, bytes } => self.recv.data(offset, bytes),
            StreamFrame::Ack { consumed } => self.send.ack(consumed),
            StreamFrame::Fin { offset } => self.recv.fin(offset),
            StreamFrame::FinAck => self.send.fin_ack(),
            StreamFrame::Stop { code } => {
                self.send.stop(code);
                Ok(())
            }
            StreamFrame::Refuse { .. } | StreamFrame::Reset { .. } => Ok(()),
        }
    }

    fn check_answer(&self, epoch: u64) -> Result<(), ProtocolError> {
        match self.role {
            Role::Opener { .. } if epoch <= self.epoch => Ok(()),
            _ => Err(ProtocolError::Role),
        }
    }

    fn check_reset(&self) -> Result<(), Closed> {
        match self.reset {
            Some(Reset { code, by_peer, .. }) => Err(Closed::Reset { code, by_peer }),
            None => Ok(()),
        }
    }

    fn set_reset(&mut self, code: u64, by_peer: bool) {
        let reset = self.reset.get_or_insert(Reset {
            code,
            by_peer,
            sent: false,
            heard: false,
        });
        reset.heard |= by_peer;
        self.send.discard();
        self.recv.discard();
    }
}

#[cfg(test)]
mod tests;
