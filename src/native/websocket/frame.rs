//! WebSocket frames (RFC 6455 section 5) as a codec without IO.
//!
//! A libp2p connection is a stream of bytes, so the bounds of messages mean nothing to it. The
//! decoder hands out the payload of binary messages as it arrives and holds only the head of one
//! frame or the payload of one control frame: what a frame announces costs nothing.

use std::fmt;

/// The longest message, whatever the number of its frames, that a peer may send.
///
/// Peers on rust-libp2p write what noise has collected as one message, which is more than 128 KiB:
/// its buffer counts as full at that, and then holds one more noise message of up to 64 KiB.
pub(crate) const MAX_MESSAGE_LEN: u64 = 256 * 1024;

/// The longest message that is sent. Every libp2p takes it, and it carries a full noise message.
pub(crate) const MAX_SENT_LEN: usize = 64 * 1024;

/// RFC 6455 section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
const MAX_CONTROL_LEN: usize = 125;

/// Two bytes, eight of an extended length, four of a masking key.
const MAX_HEAD_LEN: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// Which end of a connection this is. Only what a client sends is masked (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What a frame is (RFC 6455 section 5.2).
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

/// What a peer said besides data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Signal {
    /// It wants this payload back in a pong.
    Ping(Control),
    /// It sends nothing more. The status code is 1005 where it gave none.
    Close(u16),
}

/// How a peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    ReservedBits,
    Opcode(u8),
    /// Only binary messages carry libp2p.
    Text,
    /// A client's frame without a mask, or a server's with one.
    Mask,
    /// A control frame in pieces, or longer than 125 bytes.
    Control,
    /// A continuation of nothing, or a message within a message.
    Fragment,
    /// A length that a shorter form could have told, or with the most significant bit set.
    Length,
    /// A message longer than [`MAX_MESSAGE_LEN`].
    TooLong,
    /// A close frame of one byte, with a status code that may not be sent, or with a reason that
    /// is not UTF-8.
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

/// Reads what a peer sends.
#[derive(Debug)]
pub(crate) struct Decoder {
    role: Role,
    state: State,
    /// How long the message has become that is not yet complete.
    message: Option<u64>,
}

impl Decoder {
    /// A decoder for the end that has this `role`.
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            state: HEAD,
            message: None,
        }
    }

    /// Whether no frame has begun that is not complete.
    pub(crate) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head { len: 0, .. })
    }

    /// Reads all of `bytes`, moves the data among it to the front, and tells how long that is.
    ///
    /// What else the peer says goes to `signal`. After a close, which is the last that a peer
    /// says, the rest is dropped.
    ///
    /// # Errors
    /// At the first byte that breaks the protocol. The connection is over.
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

    /// What follows `head`, once it is complete. What is wrong is told as soon as it shows.
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

/// Masks or unmasks `bytes` (RFC 6455 section 5.3), and gives the key for what follows them.
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

/// Appends one complete message or control frame to `out`. A client gives a fresh random `mask`
/// for each (RFC 6455 section 5.3); a server gives none.
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
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    /// What a decoder makes of `bytes` that come in pieces: the data, the signals, and the end.
    fn decode(
        role: Role,
        bytes: &[u8],
        pieces: &[usize],
    ) -> (Vec<u8>, Vec<Signal>, Result<(), Violation>) {
        let (mut decoder, mut data, mut signals) = (Decoder::new(role), Vec::new(), Vec::new());
        let (mut rest, mut pieces) = (bytes, pieces.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
            rest = after;
            let mut piece = piece.to_vec();
            match decoder.decode(&mut piece, |signal| signals.push(signal)) {
                Ok(len) => data.extend_from_slice(&piece[..len]),
                Err(violation) => return (data, signals, Err(violation)),
            }
            if matches!(signals.last(), Some(Signal::Close(_))) {
                break;
            }
        }
        (data, signals, Ok(()))
    }

    fn whole(role: Role, bytes: &[u8]) -> Result<(Vec<u8>, Vec<Signal>), Violation> {
        let (data, signals, end) = decode(role, bytes, &[usize::MAX]);
        end.map(|()| (data, signals))
    }

    fn control(payload: &[u8]) -> Control {
        let mut bytes = [0; MAX_CONTROL_LEN];
        bytes[..payload.len()].copy_from_slice(payload);
        let len = payload.len();
        Control { bytes, len }
    }

    /// RFC 6455 section 5.7, with binary frames where it has text.
    #[test]
    fn the_examples_of_the_rfc() {
        let hello = (b"Hello".to_vec(), vec![]);
        let read = whole(Role::Client, b"\x82\x05Hello");
        assert_eq!(read, Ok(hello.clone()));
        let masked = b"\x82\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(whole(Role::Server, masked), Ok(hello.clone()));
        let read = whole(Role::Client, b"\x02\x03Hel\x80\x02lo");
        assert_eq!(read, Ok(hello));
        let ping = Signal::Ping(control(b"Hello"));
        assert_eq!(
            whole(Role::Client, b"\x89\x05Hello"),
            Ok((vec![], vec![ping]))
        );
        let mut long = vec![0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
        long.resize(10 + 65536, 7);
        assert_eq!(
            whole(Role::Client, &long).map(|(data, _)| data.len()),
            Ok(65536)
        );
    }

    #[test]
    fn control_frames_stand_between_the_fragments_of_a_message() {
        let (data, signals) = whole(
            Role::Client,
            b"\x02\x01a\x89\x01p\x00\x01b\x8a\x00\x80\x01c",
        )
        .unwrap();
        assert_eq!(data, b"abc");
        assert_eq!(signals, [Signal::Ping(control(b"p"))]);
    }

    #[test]
    fn a_close_is_the_last_that_is_read() {
        let (data, signals) = whole(Role::Client, b"\x82\x01a\x88\x02\x03\xe8\xff\xff").unwrap();
        assert_eq!((data, signals), (b"a".to_vec(), vec![Signal::Close(1000)]));
        let (_, signals) = whole(Role::Client, b"\x88\x00").unwrap();
        assert_eq!(signals, [Signal::Close(1005)]);
    }

    #[test]
    fn what_breaks_the_protocol() {
        use Violation::*;
        for (bytes, violation) in [
            (&b"\xc2"[..], ReservedBits),
            (b"\x92", ReservedBits),
            (b"\xa9", ReservedBits),
            (b"\x81", Text),
            (b"\x83", Opcode(3)),
            (b"\x8f", Opcode(15)),
            (b"\x82\x80", Mask),
            (b"\x80", Fragment),
            (b"\x00", Fragment),
            (b"\x02\x00\x82", Fragment),
            (b"\x09", Control),
            (b"\x89\x7e", Control),
            (b"\x88\x7f", Control),
            (b"\x82\x7e\x00\x7d", Length),
            (b"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", Length),
            (b"\x82\x7f\x80\x00\x00\x00\x00\x01\x00\x00", Length),
            (b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", TooLong),
            (b"\x82\x7f\x00\x00\x00\x00\x00\x04\x00\x01", TooLong),
            (b"\x88\x01\x03", Close),
            (b"\x88\x02\x03\xed", Close),
            (b"\x88\x02\x03\xe7", Close),
            (b"\x88\x03\x03\xe8\xff", Close),
        ] {
            let end = whole(Role::Client, bytes);
            assert_eq!(end, Err(violation), "{bytes:x?}");
        }
        assert_eq!(whole(Role::Server, b"\x82\x05"), Err(Mask));
    }

    /// A frame that is announced above the limit is refused at its head, and so is one that takes
    /// a message above it.
    #[test]
    fn the_limit_is_for_messages() {
        let limit = MAX_MESSAGE_LEN.to_be_bytes();
        let head = [&b"\x82\x7f"[..], &limit].concat();
        assert_eq!(whole(Role::Client, &head), Ok((vec![], vec![])));
        let mut message = [&b"\x02\x7f"[..], &limit].concat();
        message.resize(message.len() + MAX_MESSAGE_LEN as usize, 0);
        message.extend_from_slice(b"\x00\x00");
        assert!(whole(Role::Client, &message).is_ok());
        message.extend_from_slice(b"\x80\x01");
        assert_eq!(whole(Role::Client, &message), Err(Violation::TooLong));
    }

    /// The promise of the module: a decoder is no larger for what it was told.
    #[test]
    fn a_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 256, "{}", size_of::<Decoder>());
    }

    fn opcodes() -> impl Strategy<Value = Opcode> {
        prop_oneof![
            4 => Just(Opcode::Binary),
            1 => Just(Opcode::Ping),
            1 => Just(Opcode::Pong)
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            frames in vec((opcodes(), vec(any::<u8>(), 0..126), 0..700_usize), 0..8),
            mask in option::of(any::<[u8; 4]>()),
            pieces in vec(1..300_usize, 1..20),
        ) {
            let role = if mask.is_some() { Role::Server } else { Role::Client };
            let (mut wire, mut data, mut pings) = (Vec::new(), Vec::new(), Vec::new());
            for (opcode, mut payload, times) in frames {
                match opcode {
                    Opcode::Binary => {
                        payload = payload.repeat(times);
                        data.extend_from_slice(&payload);
                    }
                    Opcode::Ping => pings.push(Signal::Ping(control(&payload))),
                    _ => {}
                }
                encode(opcode, &payload, mask, &mut wire);
            }
            encode(Opcode::Close, &[], mask, &mut wire);
            pings.push(Signal::Close(1005));
            prop_assert_eq!(decode(role, &wire, &pieces), (data, pings, Ok(())));
        }

        #[test]
        fn any_split_gives_the_same(
            bytes in vec(prop_oneof![any::<u8>(), Just(0x82), Just(0x80), Just(2), Just(0)], 0..400),
            server in any::<bool>(),
            pieces in vec(1..40_usize, 1..20),
        ) {
            let role = if server { Role::Server } else { Role::Client };
            let (data, signals, end) = decode(role, &bytes, &pieces);
            let (all, all_signals, all_end) = decode(role, &bytes, &[1]);
            prop_assert_eq!(end, all_end);
            prop_assert_eq!(signals, all_signals);
            // What came in the same piece as the breach is dropped.
            prop_assert!(all.starts_with(&data));
            prop_assert!(end.is_err() || all == data);
        }

        #[test]
        fn masking_in_pieces_is_masking(
            key in any::<[u8; 4]>(),
            bytes in vec(any::<u8>(), 0..64),
            cut in 0..64_usize,
        ) {
            let naive: Vec<_> =
                bytes.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let mut masked = bytes;
            let cut = cut.min(masked.len());
            let (left, right) = masked.split_at_mut(cut);
            let key = apply(key, left);
            apply(key, right);
            prop_assert_eq!(masked, naive);
        }
    }
}
