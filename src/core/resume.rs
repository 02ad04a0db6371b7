//! Streams that survive every change of path, with no byte lost or repeated.
//!
//! A stream between two of our peers is carried by one libp2p substream at a time, negotiated as
//! [`PROTOCOL`]. Both ends number the bytes of each direction and keep what they have written until
//! the other end has consumed it. When the path changes, the opener opens another substream and both
//! go on from where the other end stands:
//!
//! ```text
//! opener                                acceptor
//!   OPEN id, window, protocol ------------>
//!   DATA 0.. ----------------------------->    0 extra round trips
//!      <------------- ACCEPT received, window
//!      <-------------------------- DATA 0..
//!   ................ path changes ................
//!   RESUME id, received ------------------>    on the new substream
//!   DATA acked.. ------------------------->    at most INITIAL_WINDOW, on the chance
//!      <----- ACCEPT received, DATA received'..
//!   DATA received.. ---------------------->
//! ```
//!
//! Why it is right: a substream carries the bytes of one direction in order, beginning at or before
//! what its reader has received when its first byte arrives; the reader's count only grows; so a byte
//! comes either as the next one or as one to be dropped, whichever of the old and the new substream
//! brings it. The old one may therefore be read to its end while the new one is in use.
//!
//! One number does for flow control and for memory: a writer may hold `window` bytes that the peer has
//! not consumed, the peer must be able to hold them, and neither needs more. Everything a write has
//! taken can be sent at once, so a stream that is finished and dropped never waits for its reader.
//!
//! This module is the state machine alone: no clock, no IO. `node::pump` moves its bytes.

mod buffer;
mod frame;
mod recv;
mod send;
#[cfg(test)]
mod simulation;

pub(crate) use frame::{
    Decoder, Frame, Header, MAX_FRAME, MAX_HEADER, ProtocolError, Refusal, Request, StreamId,
};

use recv::RecvSide;
use send::SendSide;

/// What multistream-select calls a substream that carries a resumable stream.
pub(crate) const PROTOCOL: &str = "/throughline/stream/1";

/// Bytes that the opener may send before it has an answer; the least window there is. 64 KiB holds
/// any first request with room to spare, and is all that a peer has to hold for a stream that it may
/// refuse, or that it already has when a stream moves.
pub(crate) const INITIAL_WINDOW: u64 = 64 * 1024;

/// Largest window, in bytes: 1 GiB, so that sizes fit a 32-bit address space.
pub(crate) const MAX_WINDOW: u64 = 1 << 30;

/// Why no more bytes can be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The stream was finished here.
    Finished,
    /// The peer's reader is gone.
    Stopped,
    /// The stream was reset.
    Reset {
        /// The application's reason.
        code: u64,
        /// Whether the peer did it.
        by_peer: bool,
    },
}

/// One end of a resumable stream.
#[derive(Debug)]
pub(crate) struct Resume {
    id: StreamId,
    role: Role,
    /// Epoch of the newest header sent or taken; 0 before the first.
    epoch: u64,
    /// There is a substream to send on.
    attached: bool,
    /// A header (opener) or ACCEPT (acceptor) must be the next thing sent.
    greeting_due: bool,
    /// The header of the current epoch has been answered. Always true for the acceptor.
    answered: bool,
    /// The peer has said something, so it knows the stream.
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
    /// RESET is on the current substream.
    sent: bool,
    /// The peer has sent RESET too.
    heard: bool,
}

impl Resume {
    /// The opening end. `window` bounds each direction, in bytes, between [`INITIAL_WINDOW`] and
    /// [`MAX_WINDOW`].
    pub(crate) fn opener(id: StreamId, protocol: String, window: u64) -> Self {
        Self::new(id, Role::Opener { protocol }, window, INITIAL_WINDOW)
    }

    /// The accepting end of a stream that `header` has announced, not yet attached. A RESUME, which
    /// announces nothing, and a window that is too small are errors.
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

    /// No more will be written. The peer learns of it behind the last byte.
    pub(crate) fn finish(&mut self) {
        self.send.finish();
    }

    /// Whether the peer has received everything that was written and knows that it was all.
    pub(crate) fn is_finished(&self) -> Result<bool, Closed> {
        if self.send.is_stopped() {
            return Err(Closed::Stopped);
        }
        if !self.send.is_acked() {
            self.check_reset()?;
        }
        Ok(self.send.is_acked())
    }

    /// Moves bytes to `out`: `Some(0)` at the end of the stream, `None` if there is nothing yet.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Closed> {
        self.check_reset()?;
        Ok(self.recv.read(out))
    }

    /// Whether a read would give bytes, the end or an error.
    pub(crate) fn is_readable(&self) -> bool {
        self.reset.is_some() || self.recv.is_readable()
    }

    /// Whether a write would take bytes or give an error, or, if the stream was finished here,
    /// whether that is settled.
    pub(crate) fn is_writable(&self) -> bool {
        self.reset.is_some() || self.send.is_writable()
    }

    /// Bytes of the peer's that have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.recv.received()
    }

    /// No more will be read. The peer's writes fail from the moment it learns of it.
    pub(crate) fn stop(&mut self) {
        self.recv.stop();
    }

    /// Ends both directions at once, unless both have ended already.
    pub(crate) fn reset(&mut self, code: u64) {
        if !self.is_complete() {
            self.set_reset(code, false);
        }
    }

    /// Bytes held for sending, and for reading.
    #[cfg(test)]
    pub(crate) fn buffered(&self) -> (usize, usize) {
        (self.send.buffered(), self.recv.buffered())
    }

    /// Bytes of ours that the peer has consumed. It grows as long as the peer makes progress.
    pub(crate) fn acked(&self) -> u64 {
        self.send.acked()
    }

    /// Opener: a new substream is there. What is to be sent starts again with a header.
    pub(crate) fn attach(&mut self) {
        self.answered = false;
        self.restart(self.epoch + 1);
    }

    /// Acceptor: a new substream has brought `header`. `false` if the header is stale and its
    /// substream is to be dropped.
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

    /// The current substream is gone. Nothing is sent until the next attach.
    pub(crate) fn detach(&mut self) {
        self.attached = false;
    }

    /// Whether the peer has answered on the current substream, and so writes there and no longer on
    /// an older one.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// The refusal of the current substream's header.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Whether both directions have ended, both ends know, and the current substream has been given
    /// everything that tells so.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.reset {
            Some(reset) => self.epoch == 0 || reset.heard && reset.sent,
            None => self.send.is_acked() && self.recv.is_confirmed(),
        }
    }

    /// Whether neither end has anything to add, so that [`is_complete`](Self::is_complete) is but a
    /// matter of time.
    pub(crate) fn is_ending(&self) -> bool {
        self.reset.is_some() || self.send.is_finished() && self.recv.is_finished()
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has anything to send.
    pub(crate) fn has_output(&self) -> bool {
        self.attached
            && (self.greeting_due
                || match &self.reset {
                    Some(reset) => !reset.sent,
                    None => self.recv.has_output() || self.send.has_output(self.answered),
                })
    }

    /// Appends what is to be sent next on the current substream: at most one DATA frame and a few
    /// small ones, a little over [`MAX_FRAME`] bytes in all. Nothing: wait for another event.
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
                Frame::Reset { code: reset.code }.encode(out);
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
            let accept = Frame::Accept {
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

    /// Takes a frame that the current substream, or an older one, has brought.
    pub(crate) fn handle_frame(&mut self, frame: Frame<'_>) -> Result<(), ProtocolError> {
        match frame {
            Frame::Refuse { epoch, refusal } => {
                self.check_answer(epoch)?;
                if epoch == self.epoch {
                    self.refusal = Some(refusal);
                }
                return Ok(());
            }
            Frame::Reset { code } => {
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
            Frame::Accept {
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
            Frame::Data { offset, bytes } => self.recv.data(offset, bytes),
            Frame::Ack { consumed } => self.send.ack(consumed),
            Frame::Fin { offset } => self.recv.fin(offset),
            Frame::FinAck => self.send.fin_ack(),
            Frame::Stop => {
                self.send.stop();
                Ok(())
            }
            Frame::Refuse { .. } | Frame::Reset { .. } => Ok(()),
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
mod tests {
    use super::*;

    const WINDOW: u64 = 1 << 20;

    fn pair(window: u64) -> (Resume, Resume) {
        let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), window);
        opener.attach();
        let (header, _) = transmit(&mut opener);
        let mut acceptor = Resume::acceptor(&header.unwrap(), window).unwrap();
        assert!(acceptor.attach_from(&opening(1, window)).unwrap());
        (opener, acceptor)
    }

    fn opening(epoch: u64, window: u64) -> Header {
        Header {
            id: StreamId([1; 16]),
            epoch,
            request: Request::Open {
                window,
                protocol: "chat/1".to_owned(),
            },
        }
    }

    /// The header, if there is one, and how many bytes of DATA there are.
    fn transmit(resume: &mut Resume) -> (Option<Header>, usize) {
        let mut header_due = resume.greeting_due && matches!(resume.role, Role::Opener { .. });
        let (mut header, mut data) = (None, 0);
        while resume.has_output() {
            let mut out = Vec::new();
            resume.poll_transmit(&mut out);
            let mut input = &out[..];
            if std::mem::take(&mut header_due) {
                let (length, rest) = unsigned_varint::decode::usize(input).unwrap();
                header = Some(Header::decode(&rest[..length]).unwrap());
                input = &rest[length..];
            }
            let mut decoder = Decoder::default();
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                if let Frame::Data { bytes, .. } = frame {
                    data += bytes.len();
                }
            }
        }
        (header, data)
    }

    fn accept(epoch: u64, received: u64) -> Frame<'static> {
        Frame::Accept {
            epoch,
            received,
            window: WINDOW,
        }
    }

    #[test]
    fn the_first_bytes_do_not_wait_for_an_answer() {
        let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), WINDOW);
        assert_eq!(opener.write(&[0; 100_000]), Ok(INITIAL_WINDOW as usize));
        assert!(!opener.has_output(), "there is no substream");
        opener.attach();
        let (header, data) = transmit(&mut opener);
        assert_eq!(header, Some(opening(1, WINDOW)));
        assert_eq!(data, INITIAL_WINDOW as usize);
        opener.handle_frame(accept(1, 0)).unwrap();
        assert_eq!(opener.write(&[0; 100_000]), Ok(100_000));
    }

    #[test]
    fn a_move_repeats_little_and_only_until_it_is_answered() {
        let (mut opener, _) = pair(WINDOW);
        opener.handle_frame(accept(1, 0)).unwrap();
        assert_eq!(opener.write(&[0; 300_000]), Ok(300_000));
        assert_eq!(transmit(&mut opener).1, 300_000);
        opener.recv.data(0, b"hello").unwrap();

        opener.attach();
        opener.attach();
        let (header, data) = transmit(&mut opener);
        let header = header.unwrap();
        assert_eq!(header.epoch, 3);
        assert_eq!(header.request, Request::Resume { received: 5 });
        assert_eq!(data, INITIAL_WINDOW as usize);
        opener.handle_frame(accept(2, 0)).unwrap();
        assert_eq!(
            transmit(&mut opener).1,
            0,
            "the answer was to an older header"
        );
        opener.handle_frame(accept(3, 299_000)).unwrap();
        assert_eq!(transmit(&mut opener).1, 1000);
    }

    #[test]
    fn a_writer_is_held_to_its_credit() {
        let (_, mut acceptor) = pair(INITIAL_WINDOW);
        let bytes = [0; INITIAL_WINDOW as usize];
        let data = |offset, bytes| Frame::Data { offset, bytes };
        acceptor.handle_frame(data(0, &bytes)).unwrap();
        assert_eq!(
            acceptor.handle_frame(data(INITIAL_WINDOW, b"!")),
            Err(ProtocolError::Overrun {
                limit: INITIAL_WINDOW,
                got: INITIAL_WINDOW + 1
            })
        );
        acceptor.read(&mut [0]).unwrap();
        acceptor.handle_frame(data(INITIAL_WINDOW, b"!")).unwrap();
        acceptor
            .handle_frame(Frame::Fin {
                offset: INITIAL_WINDOW + 1,
            })
            .unwrap();
        let behind_fin = acceptor.handle_frame(data(INITIAL_WINDOW + 1, b"!"));
        assert!(matches!(behind_fin, Err(ProtocolError::Overrun { .. })));
    }

    #[test]
    fn headers_are_checked_before_state_is_made() {
        let small = opening(1, INITIAL_WINDOW - 1);
        assert_eq!(
            Resume::acceptor(&small, WINDOW).unwrap_err(),
            ProtocolError::Field("window")
        );
        let resume = Header {
            request: Request::Resume { received: 0 },
            ..small
        };
        assert_eq!(
            Resume::acceptor(&resume, WINDOW).unwrap_err(),
            ProtocolError::Role
        );

        let (mut opener, mut acceptor) = pair(WINDOW);
        assert_eq!(opener.attach_from(&resume), Err(ProtocolError::Role));
        assert_eq!(
            acceptor.attach_from(&resume),
            Ok(false),
            "the epoch is stale"
        );
        let unsent = Header {
            epoch: 2,
            request: Request::Resume { received: 1 },
            ..resume
        };
        assert_eq!(
            acceptor.attach_from(&unsent),
            Err(ProtocolError::NeverSent { sent: 0, got: 1 })
        );
    }
}
