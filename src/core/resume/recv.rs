//! The receiving half: the bytes that have arrived and that the application has not consumed yet.

use super::buffer::Buffer;
use super::frame::{ProtocolError, StreamFrame};

/// The bytes `consumed..received` are in `buffer`.
#[derive(Debug)]
pub(super) struct RecvSide {
    buffer: Buffer,
    /// The end of the bytes that have arrived, in order.
    received: u64,
    /// The limit of `buffer`.
    window: u64,
    /// The value of the last ACK on the current substream.
    announced: u64,
    /// Whether the peer has finished and everything has arrived.
    finished: bool,
    fin_ack_due: bool,
    /// The reason with which the application stopped reading, if it did.
    stopped: Option<u64>,
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
            stopped: None,
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

    /// Moves bytes to `out`. Returns `Some(0)` at the end of the stream, and `None` if nothing has
    /// arrived.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.buffer.pop(out) {
            0 if !self.finished && !out.is_empty() => None,
            count => Some(count),
        }
    }

    /// Stops reading. If it is called again, the first reason stays.
    pub(super) fn stop(&mut self, code: u64) {
        if self.stopped.is_none() {
            self.buffer.clear();
            self.stop_due = !self.finished;
            self.stopped = Some(code);
        }
    }

    pub(super) fn discard(&mut self) {
        self.buffer.clear();
    }

    /// Begins again on a new substream. The last ACK or STOP may not have arrived. A lost FIN_ACK
    /// is not repeated here, because its FIN will be repeated.
    pub(super) fn rewind(&mut self) {
        self.announced = 0;
        self.stop_due = self.stopped.is_some() && !self.finished;
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
        if self.stopped.is_none() {
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
        if offset > expected && (self.finished || self.stopped.is_none()) {
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

    /// Whether something must be sent even if there is no data to send.
    pub(super) fn has_output(&self) -> bool {
        self.fin_ack_due || self.stop_due || self.ack_is_due()
    }

    /// Appends what is due. An ACK that is not due yet is sent along with data, because it costs
    /// nothing there.
    pub(super) fn transmit(&mut self, with_data: bool, out: &mut Vec<u8>) {
        if self.stop_due {
            self.stop_due = false;
            let code = self.stopped.unwrap_or_default();
            StreamFrame::Stop { code }.encode(out);
        }
        if self.fin_ack_due {
            self.fin_ack_due = false;
            StreamFrame::FinAck.encode(out);
        } else if self.ack_is_due() || with_data && self.has_unannounced() {
            self.announced = self.consumed();
            let consumed = self.announced;
            StreamFrame::Ack { consumed }.encode(out);
        }
    }

    fn consumed(&self) -> u64 {
        self.received - self.buffer.len() as u64
    }

    fn has_unannounced(&self) -> bool {
        !self.finished && self.stopped.is_none() && self.consumed() > self.announced
    }

    /// An ACK for each eighth of the window keeps the writer's credit above seven eighths of the
    /// window.
    fn ack_is_due(&self) -> bool {
        self.has_unannounced() && self.consumed() - self.announced >= self.window / 8
    }
}
