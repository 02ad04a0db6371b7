//! WebSocket frames (RFC 6455 section 5) as a codec without IO.
//!
//! A libp2p connection is a stream of bytes, so the boundaries of messages have no meaning. The
//! decoder hands out the payload of binary messages as it arrives. It holds only the head of one
//! frame or the payload of one control frame, so a frame that announces a great length takes no
//! memory.

use std::fmt;

/// The longest message that a peer may send, whatever the number of its frames.
///
/// Peers on rust-libp2p write the bytes that noise has collected as one message. It can be longer
/// than 128 KiB: the buffer counts as full at that size, and then still takes one noise message of
/// up to 64 KiB.
pub(crate) const MAX_MESSAGE_LEN: u64 = 256 * 1024;

/// The longest message that is sent. Every libp2p implementation takes it, and it carries a full
/// noise message.
pub(crate) const MAX_SENT_LEN: usize = 64 * 1024;

/// RFC 6455 section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
const MAX_CONTROL_LEN: usize = 125;

/// The longest head: two bytes, eight of an extended length, and four of a masking key.
const MAX_HEAD_LEN: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// The end of the connection that this is. Only frames from a client are masked (RFC 6455 section
/// 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// The kind of a frame (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    Continuation = 0,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// The payload of a control frame.
#[derive(Clone, Copy)]
pub(crate) struct Control {
    bytes: [u8; MAX_CONTROL_LEN],
    len: usize,
}

impl Control {
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.payload().fmt(f)
    }
}

impl PartialEq for Control {
    fn eq(&self, other: &Self) -> bool {
        self.payload() == other.payload()
    }
}

/// A message of the peer that is not data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Signal {
    /// The peer wants this payload back in a pong.
    Ping(Control),
    /// The peer sends nothing more. The status code is 1005 if it gave none.
    Close(u16),
}

/// The ways in which a peer can break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    ReservedBits,
    Opcode(u8),
    /// The peer sent text. Only binary messages carry libp2p.
    Text,
    /// A frame from a client has no mask, or a frame from a server has one.
    Mask,
    /// A control frame is fragmented, or longer than 125 bytes.
    Control,
    /// A continuation has no beginning, or a message begins within a message.
    Fragment,
    /// A length is not in its shortest form, or has the most significant bit set.
    Length,
    /// A message is longer than [`MAX_MESSAGE_LEN`].
    TooLong,
    /// A close frame has one byte, a status code that may not be sent, or a reason that is not
    /// UTF-8.
    Close,
}

impl Violation {
    /// The status code to close with (RFC 6455 section 7.4.1).
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::TooLong => 1009,
            _ => 1002,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer's WebSocket sent ")?;
        match self {
            Self::ReservedBits => f.write_str("reserved bits"),
            Self::Opcode(opcode) => write!(f, "the reserved opcode {opcode}"),
            Self::Text => f.write_str("text"),
            Self::Mask => f.write_str("a frame that is masked the wrong way"),
            Self::Control => f.write_str("a control frame that is in pieces or too long"),
            Self::Fragment => f.write_str("a fragment out of place"),
            Self::Length => f.write_str("a length that is not in its shortest form"),
            Self::TooLong => write!(f, "a message of more than {MAX_MESSAGE_LEN} bytes"),
            Self::Close => f.write_str("a malformed close frame"),
        }
    }
}

impl std::error::Error for Violation {}

#[derive(Clone, Copy, Debug)]
enum State {
    Head {
        bytes: [u8; MAX_HEAD_LEN],
        len: usize,
    },
    Data {
        left: u64,
        mask: [u8; 4],
    },
    Control {
        opcode: Opcode,
        control: Control,
        wanted: usize,
        mask: [u8; 4],
    },
}

const HEAD: State = State::Head {
    bytes: [0; MAX_HEAD_LEN],
    len: 0,
};

/// Decodes the frames of a peer.
#[derive(Debug)]
pub(crate) struct Decoder {
    role: Role,
    state: State,
    /// The length so far of the message that is not complete.
    message: Option<u64>,
}

impl Decoder {
    /// Makes a decoder for the end that has this `role`.
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            state: HEAD,
            message: None,
        }
    }

    /// Returns whether no frame is incomplete.
    pub(crate) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head { len: 0, .. })
    }

    /// Reads all of `bytes`, moves the data in it to the front, and returns the length of the data.
    ///
    /// Pings and closes go to `signal`. A close is the last frame of a peer, so bytes after it are
    /// dropped.
    ///
    /// # Errors
    /// Fails at the first byte that breaks the protocol. The connection is over then.
    pub(crate) fn decode(
        &mut self,
        bytes: &mut [u8],
        mut signal: impl FnMut(Signal),
    ) -> Result<usize, Violation> {
        let (mut at, mut data) = (0, 0);
        while at < bytes.len() {
            match &mut self.state {
                State::Head { bytes: head, len } => {
                    head[*len] = bytes[at];
                    *len += 1;
                    at += 1;
                    let (head, len) = (*head, *len);
                    if let Some(next) = self.head(&head[..len])? {
                        self.state = next;
                    }
                }
                State::Data { left, mask } => {
                    let rest = bytes.len() - at;
                    let run = usize::try_from(*left).map_or(rest, |left| left.min(rest));
                    bytes.copy_within(at..at + run, data);
                    *mask = apply(*mask, &mut bytes[data..data + run]);
                    *left -= run as u64;
                    (at, data) = (at + run, data + run);
                }
                State::Control {
                    control,
                    wanted,
                    mask,
                    ..
                } => {
                    let run = (*wanted - control.len).min(bytes.len() - at);
                    let piece = &mut control.bytes[control.len..control.len + run];
                    piece.copy_from_slice(&bytes[at..at + run]);
                    *mask = apply(*mask, piece);
                    control.len += run;
                    at += run;
                }
            }
            match self.state {
                State::Data { left: 0, .. } => self.state = HEAD,
                State::Control {
                    opcode,
                    control,
                    wanted,
                    ..
                } if control.len == wanted => {
                    self.state = HEAD;
                    match opcode {
                        Opcode::Ping => signal(Signal::Ping(control)),
                        Opcode::Close => {
                            signal(Signal::Close(close_code(control.payload())?));
                            return Ok(data);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(data)
    }

    /// Returns the state after `head`, once the head is complete. Errors are found as early as
    /// possible.
    fn head(&mut self, head: &[u8]) -> Result<Option<State>, Violation> {
        let opcode = opcode(head[0])?;
        let is_final = head[0] & FIN != 0;
        let is_control = opcode as u8 >= Opcode::Close as u8;
        match (opcode, self.message) {
            _ if is_control && is_final => {}
            (Opcode::Continuation, Some(_)) | (Opcode::Binary, None) => {}
            _ if is_control => return Err(Violation::Control),
            _ => return Err(Violation::Fragment),
        }
        let Some(second) = head.get(1) else {
            return Ok(None);
        };
        // RFC 6455 section 5.1: "a server MUST close the connection upon receiving a frame that is
        // not masked", and "a client MUST close a connection if it detects a masked frame".
        let is_masked = second & MASKED != 0;
        if is_masked != (self.role == Role::Server) {
            return Err(Violation::Mask);
        }
        let short = second & LENGTH;
        if is_control && usize::from(short) > MAX_CONTROL_LEN {
            return Err(Violation::Control);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(length) = head.get(2..2 + extended) else {
            return Ok(None);
        };
        let length = length
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte));
        // RFC 6455 section 5.2: "the minimal number of bytes MUST be used to encode the length",
        // and the most significant bit of eight bytes "MUST be 0".
        let length = match short {
            126 if length < 126 => return Err(Violation::Length),
            127 if length <= 0xffff || length >> 63 == 1 => return Err(Violation::Length),
            126 | 127 => length,
            short => u64::from(short),
        };
        let message = self.message.unwrap_or(0) + length;
        if !is_control && message > MAX_MESSAGE_LEN {
            return Err(Violation::TooLong);
        }
        let mask = match head.get(2 + extended..) {
            _ if !is_masked => [0; 4],
            Some(&[a, b, c, d]) => [a, b, c, d],
            _ => return Ok(None),
        };
        Ok(Some(if is_control {
            State::Control {
                opcode,
                control: Control {
                    bytes: [0; MAX_CONTROL_LEN],
                    len: 0,
                },
                wanted: usize::from(short),
                mask,
            }
        } else {
            self.message = (!is_final).then_some(message);
            State::Data { left: length, mask }
        }))
    }
}

fn opcode(first: u8) -> Result<Opcode, Violation> {
    // RFC 6455 section 5.2: without an extension that defines them, these bits MUST be 0.
    if first & RESERVED != 0 {
        return Err(Violation::ReservedBits);
    }
    match first & OPCODE {
        0 => Ok(Opcode::Continuation),
        1 => Err(Violation::Text),
        2 => Ok(Opcode::Binary),
        8 => Ok(Opcode::Close),
        9 => Ok(Opcode::Ping),
        10 => Ok(Opcode::Pong),
        reserved => Err(Violation::Opcode(reserved)),
    }
}

/// The status code of a close frame (RFC 6455 sections 5.5.1 and 7.4).
fn close_code(payload: &[u8]) -> Result<u16, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return payload.is_empty().then_some(1005).ok_or(Violation::Close);
    };
    let code = u16::from_be_bytes(*code);
    let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if may_be_sent && std::str::from_utf8(reason).is_ok() {
        Ok(code)
    } else {
        Err(Violation::Close)
    }
}

/// Masks or unmasks `bytes` (RFC 6455 section 5.3), and returns the key for the bytes after them.
fn apply(mut key: [u8; 4], bytes: &mut [u8]) -> [u8; 4] {
    if key != [0; 4] {
        let [a, b, c, d] = key;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let mut chunks = bytes.chunks_exact_mut(8);
        for chunk in &mut chunks {
            if let Ok(chunk) = <&mut [u8; 8]>::try_from(chunk) {
                *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
            }
        }
        for (byte, key) in chunks.into_remainder().iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        key.rotate_left(bytes.len() % 4);
    }
    key
}

/// Appends one complete message or control frame to `out`. A client gives a fresh random `mask` for
/// each one (RFC 6455 section 5.3). A server gives none.
pub(crate) fn encode(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let masked = if mask.is_some() { MASKED } else { 0 };
    out.reserve(MAX_HEAD_LEN + payload.len());
    out.push(FIN | opcode as u8);
    match payload.len() {
        len @ 0..126 => out.push(masked | len as u8),
        len @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask.as_slice()));
    let start = out.len();
    out.extend_from_slice(payload);
    apply(mask.unwrap_or_default(), &mut out[start..]);
}

#[cfg(test)]
mod tests;
