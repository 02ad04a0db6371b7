//! The sending half: the bytes that have been written and that the peer has not consumed yet.

use super::buffer::Buffer;
use super::frame::{MAX_DATA, ProtocolError, StreamFrame, data_head};
use super::{Closed, INITIAL_WINDOW};

/// The bytes `acked..written` are in `buffer`, ready to be sent again on another substream.
#[derive(Debug)]
pub(super) struct SendSide {
    buffer: Buffer,
    /// The peer has consumed everything before this offset.
    acked: u64,
    /// The next offset to put on the current substream.
    cursor: u64,
    /// The end of the bytes that were ever put on any substream.
    sent: u64,
    /// The limit of `buffer` that this side sets for itself.
    window: u64,
    /// The limit of `buffer` that the peer sets, because it is willing to hold this much. Since a
    /// write beyond it is not taken, everything taken can be sent without waiting for the reader.
    peer_window: u64,
    fin: Fin,
    /// The reason with which the peer's reader went away before it had everything, if it did.
    stopped: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    /// More may be written.
    Open,
    /// No more will be written. FIN has to be put on the current substream after the last byte.
    Due,
    /// FIN is on the current substream.
    Sent,
    /// The peer has everything.
    Acked,
}

impl SendSide {
    pub(super) fn new(window: u64, peer_window: u64) -> Self {
        Self {
            buffer: Buffer::default(),
            acked: 0,
            cursor: 0,
            sent: 0,
            window,
            peer_window,
            fin: Fin::Open,
            stopped: None,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        if let Some(code) = self.stopped {
            return Err(Closed::Stopped { code });
        }
        if self.fin != Fin::Open {
            return Err(Closed::Finished);
        }
        let count = bytes.len().min(self.room());
        self.buffer.push(&bytes[..count]);
        Ok(count)
    }

    pub(super) fn finish(&mut self) {
        if self.fin == Fin::Open {
            self.fin = Fin::Due;
        }
    }

    /// Whether no more will be written.
    pub(super) fn is_finished(&self) -> bool {
        self.fin != Fin::Open
    }

    pub(super) fn is_acked(&self) -> bool {
        self.fin == Fin::Acked
    }

    /// Returns the reason with which the peer's reader went away before it had everything.
    pub(super) fn stopped(&self) -> Option<u64> {
        self.stopped
    }

    pub(super) fn is_writable(&self) -> bool {
        match self.fin {
            Fin::Open => self.room() > 0,
            Fin::Due | Fin::Sent => self.stopped.is_some(),
            Fin::Acked => true,
        }
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The reader is gone. Nothing needs to be sent again, and the stream ends where it stands.
    pub(super) fn stop(&mut self, code: u64) {
        if self.fin != Fin::Acked {
            self.stopped.get_or_insert(code);
        }
        self.buffer.clear();
        self.acked = self.sent;
        self.cursor = self.sent;
        self.finish();
    }

    pub(super) fn discard(&mut self) {
        self.buffer.clear();
    }

    /// The peer has consumed up to `consumed`.
    pub(super) fn ack(&mut self, consumed: u64) -> Result<(), ProtocolError> {
        self.check_sent(consumed)?;
        if consumed > self.acked {
            self.buffer.discard((consumed - self.acked) as usize);
            self.acked = consumed;
            self.cursor = self.cursor.max(consumed);
        }
        Ok(())
    }

    pub(super) fn fin_ack(&mut self) -> Result<(), ProtocolError> {
        if self.fin == Fin::Acked {
            return Ok(());
        }
        if self.fin == Fin::Open || self.sent < self.written() {
            let got = self.written();
            return Err(ProtocolError::NeverSent {
                sent: self.sent,
                got,
            });
        }
        self.ack(self.written())?;
        self.fin = Fin::Acked;
        Ok(())
    }

    pub(super) fn set_peer_window(&mut self, window: u64) -> Result<(), ProtocolError> {
        // A smaller window would leave bytes in flight that the peer has not agreed to hold.
        if window < self.peer_window {
            return Err(ProtocolError::Field("window"));
        }
        self.peer_window = window;
        Ok(())
    }

    /// Begins again on a new substream, after the last byte that the peer has acknowledged.
    pub(super) fn rewind(&mut self) {
        self.cursor = self.acked;
        if self.fin == Fin::Sent {
            self.fin = Fin::Due;
        }
    }

    /// Notes that the peer has received up to `received`, so the current substream need not carry
    /// these bytes.
    pub(super) fn skip_to(&mut self, received: u64) -> Result<(), ProtocolError> {
        self.check_sent(received)?;
        self.cursor = self.cursor.max(received);
        Ok(())
    }

    /// Whether `transmit` would send bytes.
    pub(super) fn has_data(&self, answered: bool) -> bool {
        self.cursor < self.sendable(answered)
    }

    /// Whether `transmit` would send anything.
    pub(super) fn has_output(&self, answered: bool) -> bool {
        self.has_data(answered) || self.fin == Fin::Due && self.cursor == self.written()
    }

    /// Appends at most one DATA frame, and FIN if it is due after it.
    pub(super) fn transmit(&mut self, answered: bool, out: &mut Vec<u8>) {
        let available = self.sendable(answered).saturating_sub(self.cursor);
        if available > 0 {
            let count = MAX_DATA.min(available as usize);
            data_head(out, self.cursor, count);
            let (front, back) = self
                .buffer
                .range((self.cursor - self.acked) as usize, count);
            out.extend_from_slice(front);
            out.extend_from_slice(back);
            self.cursor += count as u64;
            self.sent = self.sent.max(self.cursor);
        }
        if self.fin == Fin::Due && self.cursor == self.written() {
            let offset = self.written();
            StreamFrame::Fin { offset }.encode(out);
            self.fin = Fin::Sent;
        }
    }

    fn room(&self) -> usize {
        self.window.min(self.peer_window) as usize - self.buffer.len()
    }

    fn written(&self) -> u64 {
        self.acked + self.buffer.len() as u64
    }

    /// Returns the end of the bytes that may be put on the current substream. Until the peer has
    /// answered the header, it may already have most of the buffer. So only the first bytes are
    /// sent without knowing whether the peer needs them.
    fn sendable(&self, answered: bool) -> u64 {
        if answered {
            self.written()
        } else {
            self.written().min(self.acked + INITIAL_WINDOW)
        }
    }

    fn check_sent(&self, got: u64) -> Result<(), ProtocolError> {
        if got > self.sent {
            let sent = self.sent;
            return Err(ProtocolError::NeverSent { sent, got });
        }
        Ok(())
    }
}
