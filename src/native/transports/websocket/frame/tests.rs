//! Tests of the codec with the examples of the RFC, with violations, and with bytes split anywhere.

use proptest::{collection::vec, option, prelude::*};

use super::*;

/// Decodes `bytes` in pieces. Returns the data, the signals, and the result.
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

/// The examples are from RFC 6455 section 5.7, with binary frames in place of text.
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
fn nothing_is_read_after_a_close() {
    let (data, signals) = whole(Role::Client, b"\x82\x01a\x88\x02\x03\xe8\xff\xff").unwrap();
    assert_eq!((data, signals), (b"a".to_vec(), vec![Signal::Close(1000)]));
    let (_, signals) = whole(Role::Client, b"\x88\x00").unwrap();
    assert_eq!(signals, [Signal::Close(1005)]);
}

#[test]
fn violations_are_refused() {
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

/// A frame with a length above the limit is refused at its head. So is a frame that takes its
/// message above the limit.
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

/// A decoder needs no memory for lengths that a peer announces.
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
    fn encoded_frames_are_decoded(
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
        // Data that came in the same piece as the violation is dropped.
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
