//! Frames of a resumable stream: `length: uvarint | kind: u8 | body`.
//!
//! `length` counts kind and body. All integers are unsigned varints as in the multiformats
//! specification (minimal, at most 9 bytes for an offset). The opener's first frame on a substream
//! is a [`Header`]. Every frame after it, in both directions, is a [`StreamFrame`].
//!
//! | kind | name    | body                                    |
//! | ---- | ------- | --------------------------------------- |
//! | 0    | OPEN    | id 16 bytes, epoch, window, protocol    |
//! | 1    | RESUME  | id 16 bytes, epoch, received            |
//! | 2    | ACCEPT  | epoch, received, window                 |
//! | 3    | REFUSE  | epoch, code                             |
//! | 4    | DATA    | offset, bytes                           |
//! | 5    | ACK     | consumed                                |
//! | 6    | FIN     | offset                                  |
//! | 7    | FIN_ACK |                                         |
//! | 8    | RESET   | code                                    |
//! | 9    | STOP    | code, left out if it is 0               |
//!
//! The codes of RESET and STOP below 2^32 belong to the application. [`REFUSED`](super::REFUSED) is
//! above them, and only RESET has it.

use std::fmt;

use unsigned_varint::{decode, encode};

/// The longest frame that is sent or accepted, without its length field. 64 KiB is four of the 16
/// KiB messages into which WebRTC and yamux cut it, so one frame head serves four messages. An ACK
/// or a RESET behind such a frame waits half a millisecond at 1 Gbit/s.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

/// The longest header. It has room for the fixed fields and a protocol name of [`MAX_PROTOCOL`]
/// bytes.
pub(crate) const MAX_HEADER: usize = 320;

/// The longest protocol name in bytes.
pub(crate) const MAX_PROTOCOL: usize = 256;

/// Offsets, windows and codes stay below 2^62, as in QUIC (RFC 9000 section 16), so that the sum of
/// two never overflows.
const MAX_INTEGER: u64 = 1 << 62;

/// The longest frame other than DATA: the kind and three integers.
const MAX_CONTROL: usize = 1 + 3 * 9;

const OPEN: u8 = 0;
const RESUME: u8 = 1;
const ACCEPT: u8 = 2;
const REFUSE: u8 = 3;
const DATA: u8 = 4;
const ACK: u8 = 5;
const FIN: u8 = 6;
const FIN_ACK: u8 = 7;
const RESET: u8 = 8;
const STOP: u8 = 9;

/// The name of one stream between two peers. Its opener draws it at random, and it outlives every
/// substream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) [u8; 16]);

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first four bytes are enough to tell streams apart in a log.
        let [a, b, c, d, ..] = self.0;
        write!(f, "StreamId({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

/// The opener's first frame on every substream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The stream that this substream carries.
    pub(crate) id: StreamId,
    /// How many substreams the opener has tried, including this one. A header that arrives after
    /// one with a higher epoch is stale.
    pub(crate) epoch: u64,
    /// The request of the opener.
    pub(crate) request: Request,
}

/// The request in a [`Header`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Begin the stream, or go on from the start if the acceptor knows it already. An opener that
    /// has received nothing cannot tell whether an earlier OPEN arrived.
    Open {
        /// How many bytes the acceptor may have unconsumed at the opener.
        window: u64,
        /// The application protocol.
        protocol: String,
    },
    /// Go on with a stream that the acceptor has answered before.
    Resume {
        /// How many bytes the opener has received, in order.
        received: u64,
    },
}

/// Any frame that is not a header. DATA may come in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFrame<'a> {
    /// The answer to a header: the acceptor has the stream.
    Accept {
        /// The epoch of the header.
        epoch: u64,
        /// How many bytes the acceptor has received, in order.
        received: u64,
        /// How many bytes the opener may have unconsumed at the acceptor.
        window: u64,
    },
    /// The answer to a header: the acceptor will not carry the stream.
    Refuse {
        /// The epoch of the header.
        epoch: u64,
        /// The reason.
        refusal: Refusal,
    },
    /// Bytes of the stream.
    Data {
        /// The offset of the first byte.
        offset: u64,
        /// The bytes, of which there is at least one.
        bytes: &'a [u8],
    },
    /// The reader has consumed this many bytes, so the writer may forget them.
    Ack {
        /// The number of bytes consumed.
        consumed: u64,
    },
    /// The writer's bytes end here.
    Fin {
        /// The number of bytes in all.
        offset: u64,
    },
    /// All bytes up to FIN have been received.
    FinAck,
    /// Both directions end at once. The answer is RESET.
    Reset {
        /// The application's code.
        code: u64,
    },
    /// The reader is gone. The answer is FIN after the bytes that were sent so far.
    Stop {
        /// The application's reason.
        code: u64,
    },
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Refusal {
    /// RESUME names a stream that the acceptor does not have, or no longer has.
    UnknownStream,
    /// Nobody accepts the application protocol.
    UnknownProtocol,
    /// The acceptor holds as many streams as it allows.
    TooManyStreams,
    /// This version does not know the code.
    Other(u64),
}

impl Refusal {
    fn code(self) -> u64 {
        match self {
            Self::UnknownStream => 1,
            Self::UnknownProtocol => 2,
            Self::TooManyStreams => 3,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u64) -> Self {
        match code {
            1 => Self::UnknownStream,
            2 => Self::UnknownProtocol,
            3 => Self::TooManyStreams,
            code => Self::Other(code),
        }
    }
}

/// How the peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum ProtocolError {
    /// A frame's length field is zero or above the bound for its kind.
    Length(u64),
    /// The kind of the frame does not exist, or is not allowed here.
    Kind(u8),
    /// A field is missing, is not minimally encoded, is above 2^62, or is followed by something
    /// else.
    Field(&'static str),
    /// DATA or FIN starts after a byte that has never arrived.
    Gap {
        /// The next offset expected.
        expected: u64,
        /// The offset that came.
        got: u64,
    },
    /// DATA goes beyond the credit given, or beyond FIN.
    Overrun {
        /// The end of the allowed bytes.
        limit: u64,
        /// The end of the bytes that came.
        got: u64,
    },
    /// The peer claims to have received bytes that were never sent.
    NeverSent {
        /// The end of the bytes that were sent.
        sent: u64,
        /// The end of the bytes that the peer claims.
        got: u64,
    },
    /// A header came for a stream that the receiver of the header has opened itself, or an answer
    /// came to a header that the receiver has not sent.
    Role,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "frame length {length} is out of bounds"),
            Self::Kind(kind) => write!(f, "frame kind {kind} is not expected"),
            Self::Field(name) => write!(f, "frame field `{name}` is malformed"),
            Self::Gap { expected, got } => {
                write!(f, "bytes from offset {got} came, but {expected} was next")
            }
            Self::Overrun { limit, got } => {
                write!(f, "bytes up to offset {got} came, but {limit} is the limit")
            }
            Self::NeverSent { sent, got } => {
                write!(
                    f,
                    "the peer confirmed {got} bytes, but only {sent} were sent"
                )
            }
            Self::Role => write!(f, "the peer sent a frame that does not fit its role"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl Header {
    /// Appends the header, with its length field, to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(MAX_HEADER);
        match &self.request {
            Request::Open { window, protocol } => {
                body.push(OPEN);
                body.extend(self.id.0);
                put(&mut body, self.epoch);
                put(&mut body, *window);
                body.extend(protocol.as_bytes());
            }
            Request::Resume { received } => {
                body.push(RESUME);
                body.extend(self.id.0);
                put(&mut body, self.epoch);
                put(&mut body, *received);
            }
        }
        put(out, body.len() as u64);
        out.extend(body);
    }

    /// Reads a header without its length field. The caller limits the length to [`MAX_HEADER`].
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, ProtocolError> {
        let (&kind, mut body) = frame.split_first().ok_or(ProtocolError::Length(0))?;
        if kind != OPEN && kind != RESUME {
            return Err(ProtocolError::Kind(kind));
        }
        let (id, rest) = body.split_first_chunk().ok_or(ProtocolError::Field("id"))?;
        body = rest;
        let epoch = take(&mut body, "epoch")?;
        let request = if kind == OPEN {
            let window = take(&mut body, "window")?;
            let protocol = std::str::from_utf8(body)
                .ok()
                .filter(|name| !name.is_empty() && name.len() <= MAX_PROTOCOL)
                .filter(|name| !name.chars().any(char::is_control))
                .ok_or(ProtocolError::Field("protocol"))?;
            Request::Open {
                window,
                protocol: protocol.to_owned(),
            }
        } else {
            let received = take(&mut body, "received")?;
            end(body)?;
            Request::Resume { received }
        };
        Ok(Self {
            id: StreamId(*id),
            epoch,
            request,
        })
    }
}

impl<'a> StreamFrame<'a> {
    /// Appends the frame, with its length field, to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            StreamFrame::Accept {
                epoch,
                received,
                window,
            } => control(out, ACCEPT, &[epoch, received, window]),
            StreamFrame::Refuse { epoch, refusal } => {
                control(out, REFUSE, &[epoch, refusal.code()])
            }
            StreamFrame::Data { offset, bytes } => {
                data_head(out, offset, bytes.len());
                out.extend_from_slice(bytes);
            }
            StreamFrame::Ack { consumed } => control(out, ACK, &[consumed]),
            StreamFrame::Fin { offset } => control(out, FIN, &[offset]),
            StreamFrame::FinAck => control(out, FIN_ACK, &[]),
            StreamFrame::Reset { code } => control(out, RESET, &[code]),
            StreamFrame::Stop { code: 0 } => control(out, STOP, &[]),
            StreamFrame::Stop { code } => control(out, STOP, &[code]),
        }
    }

    fn decode(kind: u8, mut body: &'a [u8]) -> Result<Self, ProtocolError> {
        let frame = match kind {
            ACCEPT => StreamFrame::Accept {
                epoch: take(&mut body, "epoch")?,
                received: take(&mut body, "received")?,
                window: take(&mut body, "window")?,
            },
            REFUSE => StreamFrame::Refuse {
                epoch: take(&mut body, "epoch")?,
                refusal: Refusal::from_code(take(&mut body, "code")?),
            },
            ACK => StreamFrame::Ack {
                consumed: take(&mut body, "consumed")?,
            },
            FIN => StreamFrame::Fin {
                offset: take(&mut body, "offset")?,
            },
            FIN_ACK => StreamFrame::FinAck,
            RESET => StreamFrame::Reset {
                code: take(&mut body, "code")?,
            },
            STOP if body.is_empty() => StreamFrame::Stop { code: 0 },
            STOP => StreamFrame::Stop {
                code: take(&mut body, "code")?,
            },
            kind => return Err(ProtocolError::Kind(kind)),
        };
        end(body)?;
        Ok(frame)
    }
}

/// Appends the head of a DATA frame of `len` bytes. The caller appends the bytes.
pub(super) fn data_head(out: &mut Vec<u8>, offset: u64, len: usize) {
    let mut buffer = encode::u64_buffer();
    let offset = encode::u64(offset, &mut buffer);
    put(out, (1 + offset.len() + len) as u64);
    out.push(DATA);
    out.extend_from_slice(offset);
}

/// The most bytes that a DATA frame can carry, whatever its offset.
pub(super) const MAX_DATA: usize = MAX_FRAME - 1 - 9;

/// Cuts one direction of one substream into frames.
///
/// The bytes of a DATA frame are handed on as they come. So a substream that dies in the middle of
/// a frame loses nothing that has arrived, and no frame is ever collected in memory.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The offset of the next byte of the DATA frame that is being read.
    offset: u64,
    /// How many bytes of that frame are still to come.
    left: usize,
}

impl Decoder {
    /// Takes the next frame, or the next piece of a DATA frame, from the front of `input`. Returns
    /// `None` if the rest of `input`, at most 28 bytes, is the beginning of a frame. The caller
    /// calls again with more bytes after it.
    pub(crate) fn decode<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<StreamFrame<'a>>, ProtocolError> {
        if self.left == 0 {
            let Some((length, rest)) = integer(input, "length")? else {
                return Ok(None);
            };
            if length == 0 || length > MAX_FRAME as u64 {
                return Err(ProtocolError::Length(length));
            }
            let Some((&kind, body)) = rest.split_first() else {
                return Ok(None);
            };
            let body_len = length as usize - 1;
            if kind != DATA {
                if length as usize > MAX_CONTROL {
                    return Err(ProtocolError::Length(length));
                }
                let Some((body, rest)) = body.split_at_checked(body_len) else {
                    return Ok(None);
                };
                *input = rest;
                return StreamFrame::decode(kind, body).map(Some);
            }
            let Some((offset, rest)) = integer(body, "offset")? else {
                return Ok(None);
            };
            let head = body.len() - rest.len();
            if head >= body_len {
                return Err(ProtocolError::Length(length));
            }
            self.offset = offset;
            self.left = body_len - head;
            *input = rest;
        }
        let (bytes, rest) = input.split_at(self.left.min(input.len()));
        if bytes.is_empty() {
            return Ok(None);
        }
        *input = rest;
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        self.left -= bytes.len();
        Ok(Some(StreamFrame::Data { offset, bytes }))
    }
}

fn control(out: &mut Vec<u8>, kind: u8, fields: &[u64]) {
    let start = out.len();
    out.extend([0, kind]);
    for &field in fields {
        put(out, field);
    }
    // The length is at most MAX_CONTROL, so its varint has one byte.
    out[start] = (out.len() - start - 1) as u8;
}

fn put(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(encode::u64(value, &mut encode::u64_buffer()));
}

/// Reads an integer at the front of `input`. Returns `None` if it has not arrived completely.
fn integer<'a>(
    input: &'a [u8],
    name: &'static str,
) -> Result<Option<(u64, &'a [u8])>, ProtocolError> {
    match decode::u64(input) {
        Ok((value, rest)) if value < MAX_INTEGER => Ok(Some((value, rest))),
        Err(decode::Error::Insufficient) => Ok(None),
        _ => Err(ProtocolError::Field(name)),
    }
}

fn take(body: &mut &[u8], name: &'static str) -> Result<u64, ProtocolError> {
    let (value, rest) = integer(body, name)?.ok_or(ProtocolError::Field(name))?;
    *body = rest;
    Ok(value)
}

fn end(body: &[u8]) -> Result<(), ProtocolError> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(ProtocolError::Field("end"))
    }
}

#[cfg(test)]
mod tests;
