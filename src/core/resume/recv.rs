//! The receiving half: what has arrived and not yet been consumed by the application.

use super::buffer::Buffer;
use super::frame::{Frame, ProtocolError};

/// Bytes `consumed..received` are in `buffer`.
#[derive(Debug)]
pub(super) struct RecvSide {
    buffer: Buffer,
    /// End of what has arrived, in order.
    received: u64,
    /// Bound on `buffer`.
    window: u64,
    /// What the last ACK on the current substream said.
    announced: u64,
    /// The peer has finished, and everything has arrived.
    finished: bool,
    fin_ack_due: bool,
    /// The application wants no more.
    stopped: bool,
    stop_due: bool,
}

impl RecvSide {
    pub(super) fn new(window: u64) -> Self {
        Self {
            buffer: Buffer::default(),
            received: 0,
            window,
            announced: 0,
            finished: false,
            fin_ack_due: false,
            stopped: false,
            stop_due: false,
        }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether everything has arrived and the peer has been told so on the current substream.
    pub(super) fn is_confirmed(&self) -> bool {
        self.finished && !self.fin_ack_due
    }

    /// Whether the peer has finished, and everything has arrived.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn is_readable(&self) -> bool {
        self.finished || self.buffer.len() > 0
    }

    /// Moves bytes to `out`: `Some(0)` at the end of the stream, `None` if nothing has arrived.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.buffer.pop(out) {
            0 if !self.finished && !out.is_empty() => None,
            count => Some(count),
        }
    }

    pub(super) fn stop(&mut self) {
        self.buffer.clear();
        self.stop_due = !self.finished;
        self.stopped = true;
    }

    pub(super) fn discard(&mut self) {
        self.buffer.clear();
    }

    /// A new substream: whatever was last said may not have arrived. A lost FIN_ACK is not repeated
    /// here, because its FIN will be.
    pub(super) fn rewind(&mut self) {
        self.announced = 0;
        self.stop_due = self.stopped && !self.finished;
    }

    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ProtocolError> {
        if offset > self.received {
            let expected = self.received;
            return Err(ProtocolError::Gap {
                expected,
                got: offset,
            });
        }
        let got = offset + bytes.len() as u64;
        if got <= self.received {
            return Ok(());
        }
        let limit = if self.finished {
            self.received
        } else {
            self.consumed() + self.window
        };
        if got > limit {
            return Err(ProtocolError::Overrun { limit, got });
        }
        if !self.stopped {
            self.buffer
                .push(&bytes[(self.received - offset) as usize..]);
        }
        self.received = got;
        Ok(())
    }

    pub(super) fn fin(&mut self, offset: u64) -> Result<(), ProtocolError> {
        let expected = self.received;
        if offset < expected {
            return Err(ProtocolError::Overrun {
                limit: offset,
                got: expected,
            });
        }
        // After STOP the peer does not send again what was lost with a substream.
        if offset > expected && (self.finished || !self.stopped) {
            return Err(ProtocolError::Gap {
                expected,
                got: offset,
            });
        }
        self.received = offset;
        self.finished = true;
        self.fin_ack_due = true;
        self.stop_due = false;
        Ok(())
    }

    /// Whether something must be said even if there is nothing else to send.
    pub(super) fn has_output(&self) -> bool {
        self.fin_ack_due || self.stop_due || self.ack_is_due()
    }

    /// Appends what is due. An ACK that is not due yet rides along with data for nothing.
    pub(super) fn transmit(&mut self, with_data: bool, out: &mut Vec<u8>) {
        if self.stop_due {
            self.stop_due = false;
            Frame::Stop.encode(out);
        }
        if self.fin_ack_due {
            self.fin_ack_due = false;
            Frame::FinAck.encode(out);
        } else if self.ack_is_due() || with_data && self.has_unannounced() {
            self.announced = self.consumed();
            let consumed = self.announced;
            Frame::Ack { consumed }.encode(out);
        }
    }

    fn consumed(&self) -> u64 {
        self.received - self.buffer.len() as u64
    }

    fn has_unannounced(&self) -> bool {
        !self.finished && !self.stopped && self.consumed() > self.announced
    }

    /// An ACK for each eighth of the window keeps the writer's credit above seven eighths of it.
    fn ack_is_due(&self) -> bool {
        self.has_unannounced() && self.consumed() - self.announced >= self.window / 8
    }
}
