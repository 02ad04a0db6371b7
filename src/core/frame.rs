//! Frames on a data channel, and the state of the libp2p stream that they carry.
//!
//! Each frame is an unsigned varint length and a proto2 `Message { flag, message }`, at most 16 KiB
//! with its prefix. Each channel message carries one frame. Received frames are read as a byte
//! stream, because some peers split or join them (libp2p specification `webrtc/README.md`,
//! "Multiplexing").

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::protobuf::{skip_field, take_bytes, take_varint};

/// The largest frame with its length prefix, in bytes.
pub(crate) const MAX_FRAME_LEN: usize = 16 * 1024;

/// The largest payload of one frame. It leaves room for the frame's length (2 bytes), the payload's
/// tag and length (3) and a flag (2). js-libp2p keeps room for the flag, too.
pub(crate) const MAX_PAYLOAD_LEN: usize = MAX_FRAME_LEN - 7;

/// A control flag of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    /// The sender will send no more data.
    Fin,
    /// The sender will read no more data.
    StopSending,
    /// The sender abandons both directions.
    Reset,
    /// The answer to [`Flag::Fin`].
    FinAck,
}

impl Flag {
    fn from_wire(value: u64) -> Option<Self> {
        match value {
            0 => Some(Self::Fin),
            1 => Some(Self::StopSending),
            2 => Some(Self::Reset),
            3 => Some(Self::FinAck),
            _ => None,
        }
    }

    fn wire(self) -> u8 {
        match self {
            Self::Fin => 0,
            Self::StopSending => 1,
            Self::Reset => 2,
            Self::FinAck => 3,
        }
    }
}

/// One frame. `message` is applied before `flag`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChannelFrame {
    /// The flag, if there is one. A value that no version of the specification knows counts as
    /// none.
    pub flag: Option<Flag>,
    /// The payload, which may be empty.
    pub message: Bytes,
}

/// Why received bytes are not frames. The stream is reset after such an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum FrameError {
    /// The frame is longer than [`MAX_FRAME_LEN`].
    TooLong(u64),
    /// The bytes are not the expected protobuf message. The value names the field.
    Malformed(&'static str),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "the frame has {len} bytes, over {MAX_FRAME_LEN}"),
            Self::Malformed(field) => write!(f, "the frame is malformed: {field}"),
        }
    }
}

impl std::error::Error for FrameError {}

const FIELD_FLAG: u64 = 1 << 3;
const FIELD_MESSAGE: u64 = 2 << 3 | 2;

/// Appends a frame with up to [`MAX_PAYLOAD_LEN`] bytes of `payload`. Returns how many bytes were
/// taken.
pub(crate) fn encode_data(payload: &[u8], out: &mut BytesMut) -> usize {
    let payload = &payload[..payload.len().min(MAX_PAYLOAD_LEN)];
    let mut len = unsigned_varint::encode::usize_buffer();
    let len = unsigned_varint::encode::usize(payload.len(), &mut len);
    let mut frame = unsigned_varint::encode::usize_buffer();
    let frame = unsigned_varint::encode::usize(1 + len.len() + payload.len(), &mut frame);
    out.reserve(frame.len() + 1 + len.len() + payload.len());
    out.put_slice(frame);
    out.put_u8(FIELD_MESSAGE as u8);
    out.put_slice(len);
    out.put_slice(payload);
    payload.len()
}

/// Returns the frame that carries only `flag`.
pub(crate) fn encode_flag(flag: Flag) -> [u8; 3] {
    [2, FIELD_FLAG as u8, flag.wire()]
}

/// Cuts a received byte stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds received bytes. They are not copied if no unfinished frame is left. Besides `bytes`, at
    /// most one unfinished frame is held.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.buffer.is_empty() {
            self.buffer = bytes.into();
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// Returns the next whole frame, or `None` until more bytes come.
    pub(crate) fn next_frame(&mut self) -> Result<Option<ChannelFrame>, FrameError> {
        let mut rest = &self.buffer[..];
        let before = rest.len();
        let Some(len) = take_varint(&mut rest) else {
            // Three bytes can hold every allowed length, so a longer prefix is an error at once.
            return match self.buffer.len() {
                0..=3 => Ok(None),
                _ => Err(FrameError::Malformed("length")),
            };
        };
        let prefix = before - rest.len();
        if len > (MAX_FRAME_LEN - prefix.min(3)) as u64 {
            return Err(FrameError::TooLong(len));
        }
        let len = len as usize;
        if rest.len() < len {
            return Ok(None);
        }
        self.buffer.advance(prefix);
        let body = self.buffer.split_to(len).freeze();
        Self::decode(body).map(Some)
    }

    fn decode(body: Bytes) -> Result<ChannelFrame, FrameError> {
        use FrameError::Malformed;

        let mut frame = ChannelFrame::default();
        let mut rest = &body[..];
        while !rest.is_empty() {
            let tag = take_varint(&mut rest).ok_or(Malformed("tag"))?;
            match tag {
                FIELD_FLAG => {
                    let value = take_varint(&mut rest).ok_or(Malformed("flag"))?;
                    frame.flag = Flag::from_wire(value);
                }
                FIELD_MESSAGE => {
                    let message = take_bytes(&mut rest).ok_or(Malformed("message"))?;
                    frame.message = body.slice_ref(message);
                }
                tag => skip_field(tag, &mut rest).ok_or(Malformed("unknown field"))?,
            }
        }
        Ok(frame)
    }
}

/// The state of one direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Open,
    /// FIN was sent or received.
    Finished,
    /// STOP_SENDING or RESET was sent or received, or the channel closed before FIN.
    Reset,
}

/// The flags of one stream: which directions are open, what has to be sent, and when the stream is
/// done.
///
/// There is no IO here. The caller sends the flags that [`poll_flag`](Self::poll_flag) returns and
/// reports the flags that arrive. It closes the channel when [`is_done`](Self::is_done) is true, or
/// [`FIN_ACK_TIMEOUT`] after it wanted to close.
///
/// [`FIN_ACK_TIMEOUT`]: crate::webrtc::FIN_ACK_TIMEOUT
#[derive(Debug)]
pub(crate) struct StreamState {
    read: Half,
    write: Half,
    /// We sent FIN and the peer has acknowledged it, or may never do so.
    fin_acked: bool,
    /// Whether the peer is known to use FIN_ACK.
    fin_ack: bool,
    /// A FIN of the peer will be acknowledged when our writing has ended.
    owed: bool,
    /// A FIN of the peer has come.
    finned: bool,
    /// Both directions were abandoned. Only our own RESET may still be sent.
    aborted: bool,
    /// The flags to send, one bit each. They are sent in the order of [`SEND_ORDER`].
    pending: u8,
}

/// After a reset only RESET matters. FIN goes before FIN_ACK, because an old peer that has read FIN
/// reads no more.
const SEND_ORDER: [Flag; 4] = [Flag::Reset, Flag::Fin, Flag::FinAck, Flag::StopSending];

impl Default for StreamState {
    fn default() -> Self {
        Self {
            read: Half::Open,
            write: Half::Open,
            fin_acked: false,
            fin_ack: true,
            owed: false,
            finned: false,
            aborted: false,
            pending: 0,
        }
    }
}

impl StreamState {
    /// Makes the state for a peer that may be too old to know FIN_ACK. Such a peer takes FIN_ACK for
    /// a malformed frame while it reads or writes. So its FIN is acknowledged when both directions
    /// are over, and no acknowledgement is awaited.
    pub(crate) fn with_any_peer() -> Self {
        Self {
            fin_acked: true,
            fin_ack: false,
            ..Self::default()
        }
    }

    /// Whether data may be sent.
    pub(crate) fn can_write(&self) -> bool {
        self.write == Half::Open
    }

    /// Whether data may still arrive.
    pub(crate) fn can_read(&self) -> bool {
        self.read == Half::Open
    }

    /// Whether reading ended in order, so that the received data is complete.
    pub(crate) fn read_finished(&self) -> bool {
        self.read == Half::Finished
    }

    /// Whether the peer, or we, abandoned the writing direction.
    pub(crate) fn write_reset(&self) -> bool {
        self.write == Half::Reset
    }

    /// Ends writing in order. The FIN goes after all data that was handed out before.
    pub(crate) fn close_write(&mut self) {
        if self.write == Half::Open {
            self.write = Half::Finished;
            self.queue(Flag::Fin);
            self.pay();
        }
    }

    /// Gives up reading. Data that still arrives is thrown away.
    pub(crate) fn stop_reading(&mut self) {
        if self.read == Half::Open {
            self.read = Half::Reset;
            self.queue(Flag::StopSending);
        }
    }

    /// Abandons both directions.
    pub(crate) fn reset(&mut self) {
        if self.aborted {
            // The peer cannot be told.
            self.end_reading();
        } else if !self.is_done() {
            self.abandon();
            self.write = Half::Reset;
            self.queue(Flag::Reset);
        }
    }

    /// Handles a flag that arrived. The data of its frame is handled before.
    pub(crate) fn received(&mut self, flag: Flag) {
        match flag {
            Flag::Fin => {
                self.finned = true;
                if self.read == Half::Open {
                    self.read = Half::Finished;
                }
                // A FIN that is repeated, or comes after STOP_SENDING, is acknowledged too, because
                // the peer waits for the acknowledgement.
                if !self.aborted {
                    self.owed = true;
                    self.pay();
                }
            }
            Flag::FinAck => {
                if self.write == Half::Finished {
                    self.fin_acked = true;
                }
            }
            Flag::StopSending => {
                // The specification wants no RESET in reply. The peer will not acknowledge a FIN
                // either, so FIN_ACK is not awaited.
                if self.write == Half::Open {
                    self.write = Half::Reset;
                    self.fin_acked = true;
                    self.pay();
                }
            }
            Flag::Reset => self.abandon(),
        }
    }

    /// Handles the closing of the channel, once all that came before was read. Without an earlier
    /// FIN, data may be missing, so this is a reset.
    pub(crate) fn channel_closed(&mut self) {
        self.abandon();
    }

    /// Handles that nothing more can be sent. Data that came before can still be read.
    pub(crate) fn sending_ended(&mut self) {
        if self.write == Half::Open {
            self.write = Half::Reset;
        }
        self.fin_acked = true;
        self.aborted = true;
        self.owed = false;
        self.pending = 0;
    }

    /// Returns the next flag to send.
    pub(crate) fn poll_flag(&mut self) -> Option<Flag> {
        let flag = SEND_ORDER
            .into_iter()
            .find(|flag| self.pending & bit(*flag) != 0)?;
        self.pending &= !bit(flag);
        Some(flag)
    }

    /// Whether a flag waits to be sent.
    pub(crate) fn has_flags(&self) -> bool {
        self.pending != 0
    }

    /// Whether both directions are over and no flag has to be sent or awaited. The channel can then
    /// be closed, and its id can be used again once the close has completed.
    pub(crate) fn is_done(&self) -> bool {
        self.read != Half::Open && self.write != Half::Open && self.fin_acked && self.pending == 0
    }

    /// Whether the peer may still send a FIN. We gave up reading before it came, and a peer that has
    /// ended its writing waits for the acknowledgement.
    pub(crate) fn may_get_fin(&self) -> bool {
        !self.finned && !self.aborted
    }

    fn abandon(&mut self) {
        self.end_reading();
        self.sending_ended();
    }

    fn end_reading(&mut self) {
        if self.read == Half::Open {
            self.read = Half::Reset;
        }
    }

    /// Acknowledges the peer's FIN, if that may be done now.
    fn pay(&mut self) {
        let due = self.fin_ack || self.write != Half::Open;
        if due && std::mem::take(&mut self.owed) {
            self.queue(Flag::FinAck);
        }
    }

    fn queue(&mut self, flag: Flag) {
        self.pending |= bit(flag);
    }
}

fn bit(flag: Flag) -> u8 {
    1 << flag.wire()
}

#[cfg(test)]
mod tests;
