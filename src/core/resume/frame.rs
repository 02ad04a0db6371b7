//! Frames of a resumable stream: `length: uvarint | kind: u8 | body`.
//!
//! `length` counts kind and body. All integers are unsigned varints as in the multiformats
//! specification (minimal, at most 9 bytes for an offset). The opener's first frame on a substream is
//! a [`Header`]; everything after it, in both directions, is a [`Frame`].
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
//! | 9    | STOP    |                                         |

use std::fmt;

use unsigned_varint::{decode, encode};

/// Longest frame we send or take, counted like its length field. 64 KiB is four of the 16 KiB
/// messages that WebRTC and yamux cut it into, so a frame head is paid once for four of them, while
/// an ACK or a RESET behind it waits half a millisecond at 1 Gbit/s.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

/// Longest header. Room for the fixed fields and a protocol name of [`MAX_PROTOCOL`] bytes.
pub(crate) const MAX_HEADER: usize = 320;

/// Longest protocol name in bytes.
pub(crate) const MAX_PROTOCOL: usize = 256;

/// Offsets, windows and codes stay below 2^62, as in QUIC (RFC 9000 section 16): sums of two never
/// overflow.
const MAX_INTEGER: u64 = 1 << 62;

/// Longest frame other than DATA: kind and three integers.
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

/// Name of one stream between two peers, drawn at random by its opener; it outlives every substream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) [u8; 16]);

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first four bytes tell streams apart in a log.
        let [a, b, c, d, ..] = self.0;
        write!(f, "StreamId({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

/// The opener's first frame on every substream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The stream this substream is to carry.
    pub(crate) id: StreamId,
    /// How many substreams the opener has tried, this one included. A header that arrives after one
    /// with a higher epoch is stale.
    pub(crate) epoch: u64,
    /// What the opener asks for.
    pub(crate) request: Request,
}

/// What a [`Header`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Begin the stream, or go on from the start if the acceptor knows it already: an opener that has
    /// heard nothing cannot tell whether an earlier OPEN arrived.
    Open {
        /// Bytes the acceptor may have unconsumed at the opener.
        window: u64,
        /// The application protocol.
        protocol: String,
    },
    /// Go on with a stream that the acceptor has answered before.
    Resume {
        /// Bytes the opener has received, in order.
        received: u64,
    },
}

/// Any frame but a header. DATA may come in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// Answer to a header: the acceptor has the stream.
    Accept {
        /// Epoch of the header.
        epoch: u64,
        /// Bytes the acceptor has received, in order.
        received: u64,
        /// Bytes the opener may have unconsumed at the acceptor.
        window: u64,
    },
    /// Answer to a header: the acceptor will not carry the stream.
    Refuse {
        /// Epoch of the header.
        epoch: u64,
        /// Why.
        refusal: Refusal,
    },
    /// Bytes of the stream.
    Data {
        /// Offset of the first byte.
        offset: u64,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// The reader has consumed this many bytes, so the writer may forget them.
    Ack {
        /// Bytes consumed.
        consumed: u64,
    },
    /// The writer's bytes end here.
    Fin {
        /// Number of bytes in all.
        offset: u64,
    },
    /// All bytes up to FIN have been received.
    FinAck,
    /// Both directions end at once. Answered by RESET.
    Reset {
        /// The application's reason.
        code: u64,
    },
    /// The reader is gone: answered by FIN at what has been sent so far.
    Stop,
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Refusal {
    /// RESUME of a stream that the acceptor does not have (any more).
    UnknownStream,
    /// Nobody accepts the application protocol.
    UnknownProtocol,
    /// The acceptor holds as many streams as it is willing to.
    TooManyStreams,
    /// A code this version does not know.
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
    /// A frame of a kind that does not exist or does not belong here.
    Kind(u8),
    /// A field is missing, not minimally encoded, above 2^62, or followed by something else.
    Field(&'static str),
    /// DATA or FIN starts behind a byte that has never arrived.
    Gap {
        /// The next offset expected.
        expected: u64,
        /// The offset that came.
        got: u64,
    },
    /// DATA beyond the credit given, or beyond FIN.
    Overrun {
        /// The end of what was allowed.
        limit: u64,
        /// The end of what came.
        got: u64,
    },
    /// The peer claims to have received bytes that were never sent.
    NeverSent {
        /// The end of what was sent.
        sent: u64,
        /// The end of what the peer claims.
        got: u64,
    },
    /// A header for a stream that the receiver of the header has opened itself, or an answer to one
    /// that it has not sent.
    Role,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "frame length {length} is out of bounds"),
            Self::Kind(kind) => write!(f, "frame kind {kind} is not expected"),
            Self::Field(name) => write!(f, "frame field `{name}` is malformed"),
            Self::Gap { expected, got } => {
                write!(f, "bytes from offset {got} came where {expected} was next")
            }
            Self::Overrun { limit, got } => {
                write!(
                    f,
                    "bytes up to offset {got} came where {limit} was the limit"
                )
            }
            Self::NeverSent { sent, got } => {
                write!(
                    f,
                    "bytes up to offset {got} were confirmed where {sent} were sent"
                )
            }
            Self::Role => write!(f, "the peer took the opener for the acceptor"),
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

    /// Reads a header without its length field. The caller bounds the length by [`MAX_HEADER`].
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

impl<'a> Frame<'a> {
    /// Appends the frame, with its length field, to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Frame::Accept {
                epoch,
                received,
                window,
            } => control(out, ACCEPT, &[epoch, received, window]),
            Frame::Refuse { epoch, refusal } => control(out, REFUSE, &[epoch, refusal.code()]),
            Frame::Data { offset, bytes } => {
                data_head(out, offset, bytes.len());
                out.extend_from_slice(bytes);
            }
            Frame::Ack { consumed } => control(out, ACK, &[consumed]),
            Frame::Fin { offset } => control(out, FIN, &[offset]),
            Frame::FinAck => control(out, FIN_ACK, &[]),
            Frame::Reset { code } => control(out, RESET, &[code]),
            Frame::Stop => control(out, STOP, &[]),
        }
    }

    fn decode(kind: u8, mut body: &'a [u8]) -> Result<Self, ProtocolError> {
        let frame = match kind {
            ACCEPT => Frame::Accept {
                epoch: take(&mut body, "epoch")?,
                received: take(&mut body, "received")?,
                window: take(&mut body, "window")?,
            },
            REFUSE => Frame::Refuse {
                epoch: take(&mut body, "epoch")?,
                refusal: Refusal::from_code(take(&mut body, "code")?),
            },
            ACK => Frame::Ack {
                consumed: take(&mut body, "consumed")?,
            },
            FIN => Frame::Fin {
                offset: take(&mut body, "offset")?,
            },
            FIN_ACK => Frame::FinAck,
            RESET => Frame::Reset {
                code: take(&mut body, "code")?,
            },
            STOP => Frame::Stop,
            kind => return Err(ProtocolError::Kind(kind)),
        };
        end(body)?;
        Ok(frame)
    }
}

/// Appends the head of a DATA frame of `len` bytes; the bytes follow.
pub(super) fn data_head(out: &mut Vec<u8>, offset: u64, len: usize) {
    let mut buffer = encode::u64_buffer();
    let offset = encode::u64(offset, &mut buffer);
    put(out, (1 + offset.len() + len) as u64);
    out.push(DATA);
    out.extend_from_slice(offset);
}

/// Most bytes a DATA frame can carry, whatever its offset.
pub(super) const MAX_DATA: usize = MAX_FRAME - 1 - 9;

/// Cuts one direction of one substream into frames.
///
/// The bytes of a DATA frame are handed on as they come, so a substream that dies in the middle of a
/// frame loses nothing that has arrived, and no frame is ever gathered in memory.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Where the next byte of the DATA frame being read belongs.
    offset: u64,
    /// How many bytes of it are still to come.
    left: usize,
}

impl Decoder {
    /// Takes the next frame, or the next piece of a DATA frame, from the front of `input`.
    /// `None`: the rest of `input`, at most 28 bytes, is the beginning of a frame; call again with
    /// more behind it.
    pub(crate) fn decode<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Frame<'a>>, ProtocolError> {
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
                return Frame::decode(kind, body).map(Some);
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
        Ok(Some(Frame::Data { offset, bytes }))
    }
}

fn control(out: &mut Vec<u8>, kind: u8, fields: &[u64]) {
    let start = out.len();
    out.extend([0, kind]);
    for &field in fields {
        put(out, field);
    }
    // At most MAX_CONTROL, so one byte of varint.
    out[start] = (out.len() - start - 1) as u8;
}

fn put(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(encode::u64(value, &mut encode::u64_buffer()));
}

/// An integer at the front of `input`, or `None` if it is not all there yet.
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
