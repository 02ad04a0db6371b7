use proptest::prelude::*;

use super::*;

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, 0..MAX_INTEGER]
}

fn header() -> impl Strategy<Value = Header> {
    let open = (value(), "[a-z0-9/é]{1,100}")
        .prop_map(|(window, protocol)| Request::Open { window, protocol });
    let resume = value().prop_map(|received| Request::Resume { received });
    (any::<[u8; 16]>(), value(), prop_oneof![open, resume]).prop_map(|(id, epoch, request)| {
        Header {
            id: StreamId(id),
            epoch,
            request,
        }
    })
}

fn frame(bytes: &[u8], kind: u8, [a, b, c]: [u64; 3]) -> StreamFrame<'_> {
    match kind {
        ACCEPT => StreamFrame::Accept {
            epoch: a,
            received: b,
            window: c,
        },
        REFUSE => StreamFrame::Refuse {
            epoch: a,
            refusal: Refusal::from_code(b),
        },
        DATA => StreamFrame::Data {
            offset: a / 2,
            bytes,
        },
        ACK => StreamFrame::Ack { consumed: a },
        FIN => StreamFrame::Fin { offset: a },
        FIN_ACK => StreamFrame::FinAck,
        RESET => StreamFrame::Reset { code: a },
        _ => StreamFrame::Stop { code: a },
    }
}

proptest! {
    #[test]
    fn an_encoded_header_is_decoded(header in header()) {
        let mut out = Vec::new();
        header.encode(&mut out);
        let (length, body) = decode::usize(&out).unwrap();
        prop_assert_eq!(length, body.len());
        prop_assert!(length <= MAX_HEADER);
        prop_assert_eq!(Header::decode(body), Ok(header));
    }

    #[test]
    fn a_header_cut_short_is_an_error(header in header(), cut in 0..17usize) {
        let mut out = Vec::new();
        header.encode(&mut out);
        let (_, body) = decode::usize(&out).unwrap();
        prop_assert!(Header::decode(&body[..cut]).is_err());
    }

    #[test]
    fn encoded_frames_are_decoded_however_they_are_split(
        frames in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..300), ACCEPT..=STOP, [value(), value(), value()]),
            1..20,
        ),
        splits in prop::collection::vec(1..50usize, 1..20),
    ) {
        let frames: Vec<StreamFrame<'_>> =
            frames.iter().map(|(bytes, kind, fields)| frame(bytes, *kind, *fields)).collect();
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));

        let mut decoder = Decoder::default();
        let mut splits = splits.iter().cycle();
        let (mut arrived, mut taken) = (0, 0);
        let mut expected = frames.into_iter();
        let mut partial: Option<(u64, &[u8])> = None;
        while arrived < wire.len() {
            arrived = wire.len().min(arrived + splits.next().unwrap());
            let mut input = &wire[taken..arrived];
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                let StreamFrame::Data { offset, bytes } = frame else {
                    prop_assert_eq!(Some(frame), expected.next());
                    continue;
                };
                let (start, rest) = partial.take().unwrap_or_else(|| match expected.next() {
                    Some(StreamFrame::Data { offset, bytes }) => (offset, bytes),
                    other => panic!("DATA came, but {other:?} was sent"),
                });
                prop_assert_eq!(offset, start);
                prop_assert_eq!(bytes, &rest[..bytes.len()]);
                let rest = &rest[bytes.len()..];
                partial = (!rest.is_empty()).then_some((start + bytes.len() as u64, rest));
            }
            prop_assert!(input.len() <= 28);
            taken = arrived - input.len();
        }
        prop_assert_eq!(taken, wire.len());
        prop_assert_eq!(expected.next(), None);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::decode(&noise);
        let mut decoder = Decoder::default();
        let mut input = &noise[..];
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }
}

#[test]
fn lengths_are_checked_before_a_body_arrives() {
    let decode = |bytes: &[u8]| Decoder::default().decode(&mut &bytes[..]).unwrap_err();
    assert_eq!(decode(&[0]), ProtocolError::Length(0));
    assert_eq!(decode(&[0x81, 0x80, 4]), ProtocolError::Length(65537));
    assert_eq!(
        decode(&[MAX_CONTROL as u8 + 1, ACK]),
        ProtocolError::Length(29)
    );
    assert_eq!(
        decode(&[2, DATA, 0]),
        ProtocolError::Length(2),
        "DATA without a byte"
    );
    assert_eq!(decode(&[1, OPEN]), ProtocolError::Kind(OPEN));
    assert_eq!(decode(&[2, FIN_ACK, 0]), ProtocolError::Field("end"));
    assert_eq!(decode(&[3, ACK, 0x80, 0]), ProtocolError::Field("consumed"));
    let mut ack = Vec::new();
    let consumed = MAX_INTEGER;
    StreamFrame::Ack { consumed }.encode(&mut ack);
    assert_eq!(decode(&ack), ProtocolError::Field("consumed"));
}

#[test]
fn a_stop_without_a_reason_is_as_short_as_ever() {
    let encoded = |code| {
        let mut out = Vec::new();
        StreamFrame::Stop { code }.encode(&mut out);
        out
    };
    assert_eq!(encoded(0), [1, STOP]);
    assert_eq!(encoded(7), [2, STOP, 7]);
    for (bytes, expected) in [
        (&[1, STOP][..], Ok(Some(StreamFrame::Stop { code: 0 }))),
        (&[2, STOP, 7], Ok(Some(StreamFrame::Stop { code: 7 }))),
        (&[3, STOP, 7, 0], Err(ProtocolError::Field("end"))),
    ] {
        assert_eq!(Decoder::default().decode(&mut &bytes[..]), expected);
    }
}

/// A peer of another version holds as many bytes as these numbers say, and no more.
#[test]
fn the_numbers_of_the_protocol_stay() {
    use crate::core::resume::{INITIAL_WINDOW, MAX_WINDOW};

    assert_eq!((INITIAL_WINDOW, MAX_WINDOW), (65_536, 1 << 30));
    assert_eq!((MAX_FRAME, MAX_HEADER), (65_536, 320));
    let mut longest = Vec::new();
    data_head(&mut longest, MAX_INTEGER, MAX_DATA);
    assert_eq!(
        longest[..4],
        [0x80, 0x80, 4, DATA],
        "it is as long as a frame may be"
    );
}
