use super::*;
use proptest::prelude::*;

fn frames(bytes: &[u8]) -> Vec<ChannelFrame> {
    let mut decoder = Decoder::default();
    decoder.push(Bytes::copy_from_slice(bytes));
    std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
}

fn flags(state: &mut StreamState) -> Vec<Flag> {
    std::iter::from_fn(|| state.poll_flag()).collect()
}

#[test]
fn the_largest_frame_fits_16_kib() {
    let mut out = BytesMut::new();
    let taken = encode_data(&[7; 20_000], &mut out);
    assert_eq!(taken, MAX_PAYLOAD_LEN);
    assert!(out.len() + 2 <= MAX_FRAME_LEN);
    assert_eq!(frames(&out)[0].message.len(), MAX_PAYLOAD_LEN);
}

#[test]
fn frames_are_written_as_specified() {
    let all = [Flag::Fin, Flag::StopSending, Flag::Reset, Flag::FinAck];
    for (wire, flag) in (0..).zip(all) {
        assert_eq!(encode_flag(flag), [2, 0x08, wire]);
        assert_eq!(frames(&[2, 0x08, wire])[0].flag, Some(flag));
    }
    let mut out = BytesMut::new();
    assert_eq!(encode_data(b"ab", &mut out), 2);
    assert_eq!(out[..], [4, 0x12, 2, b'a', b'b']);
}

#[test]
fn a_frame_may_be_16_kib_with_its_length() {
    let announced = |len: usize| {
        let mut decoder = Decoder::default();
        let mut buffer = unsigned_varint::encode::usize_buffer();
        let prefix = unsigned_varint::encode::usize(len, &mut buffer);
        assert_eq!(prefix.len(), 2);
        decoder.push(Bytes::copy_from_slice(prefix));
        decoder.next_frame()
    };
    assert_eq!(announced(16_382), Ok(None));
    assert_eq!(announced(16_383), Err(FrameError::TooLong(16_383)));
}

#[test]
fn each_half_is_given_up_once() {
    let mut state = StreamState::default();
    assert!(state.can_read() && state.can_write());
    assert!(!state.read_finished() && !state.write_reset() && !state.has_flags());
    state.stop_reading();
    state.stop_reading();
    assert!(state.has_flags() && !state.can_read() && !state.read_finished());
    assert_eq!(flags(&mut state), [Flag::StopSending]);
    assert!(state.can_write() && !state.is_done());
    state.reset();
    assert!(state.write_reset() && !state.is_done());
    assert_eq!(flags(&mut state), [Flag::Reset]);
    assert!(state.is_done());
    state.reset();
    state.close_write();
    state.stop_reading();
    assert_eq!(flags(&mut state), []);
}

#[test]
fn what_ended_in_order_is_not_reset() {
    let mut state = StreamState::with_any_peer();
    state.close_write();
    state.received(Flag::Fin);
    assert_eq!(flags(&mut state), [Flag::Fin, Flag::FinAck]);
    assert!(state.is_done());
    state.reset();
    assert_eq!(flags(&mut state), []);
    assert!(state.read_finished() && !state.write_reset());
}

#[test]
fn unknown_fields_and_flags_are_skipped() {
    // `errorCode = 3` as go-libp2p sends it, and an unknown flag.
    let frame = &frames(&[6, 0x08, 9, 0x18, 1, 0x12, 0])[0];
    assert_eq!(*frame, ChannelFrame::default());
}

#[test]
fn frames_that_are_too_long_or_malformed_are_refused() {
    let mut decoder = Decoder::default();
    decoder.push(Bytes::from_static(&[0xff, 0xff, 0x7f]));
    assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
    let mut decoder = Decoder::default();
    decoder.push(Bytes::from_static(&[0xff; 4]));
    assert_eq!(decoder.next_frame(), Err(FrameError::Malformed("length")));
    let mut decoder = Decoder::default();
    decoder.push(Bytes::from_static(&[2, 0x12, 9]));
    assert_eq!(decoder.next_frame(), Err(FrameError::Malformed("message")));
}

#[test]
fn a_stream_closed_by_both_waits_for_both_acknowledgements() {
    let mut state = StreamState::default();
    state.close_write();
    assert_eq!(flags(&mut state), [Flag::Fin]);
    assert!(state.can_read() && !state.can_write());
    state.received(Flag::Fin);
    assert!(state.read_finished());
    assert!(!state.is_done());
    assert_eq!(flags(&mut state), [Flag::FinAck]);
    assert!(!state.is_done());
    state.received(Flag::FinAck);
    assert!(state.is_done());
}

#[test]
fn a_peer_that_may_be_old_gets_fin_ack_last_and_is_not_waited_for() {
    let mut state = StreamState::with_any_peer();
    state.received(Flag::Fin);
    assert_eq!(flags(&mut state), []);
    assert!(!state.is_done());
    state.close_write();
    assert_eq!(flags(&mut state), [Flag::Fin, Flag::FinAck]);
    assert!(state.is_done());
    let mut state = StreamState::with_any_peer();
    state.received(Flag::Fin);
    state.received(Flag::StopSending);
    assert_eq!(flags(&mut state), [Flag::FinAck]);
    let mut state = StreamState::with_any_peer();
    state.received(Flag::Fin);
    state.reset();
    assert_eq!(flags(&mut state), [Flag::Reset]);
}

#[test]
fn a_fin_that_crosses_stop_sending_is_acknowledged() {
    let mut state = StreamState::with_any_peer();
    state.close_write();
    state.stop_reading();
    assert_eq!(flags(&mut state), [Flag::Fin, Flag::StopSending]);
    assert!(state.is_done() && state.may_get_fin());
    state.received(Flag::Fin);
    assert_eq!(flags(&mut state), [Flag::FinAck]);
    assert!(state.is_done() && !state.may_get_fin());
    let mut state = StreamState::default();
    state.reset();
    assert!(!state.may_get_fin());
}

#[test]
fn stop_sending_gets_no_reset() {
    let mut state = StreamState::default();
    state.received(Flag::StopSending);
    assert!(state.write_reset() && state.can_read());
    assert_eq!(flags(&mut state), []);
    state.received(Flag::Fin);
    assert_eq!(flags(&mut state), [Flag::FinAck]);
    assert!(state.is_done());
}

#[test]
fn a_reset_drops_everything_at_once() {
    let mut state = StreamState::default();
    state.received(Flag::Reset);
    assert!(state.is_done() && !state.read_finished());
    let mut state = StreamState::default();
    state.close_write();
    state.reset();
    assert_eq!(flags(&mut state), [Flag::Reset]);
    assert!(state.is_done());
}

#[test]
fn a_close_is_an_end_after_fin_and_a_reset_without_it() {
    let mut state = StreamState::default();
    state.received(Flag::Fin);
    state.channel_closed();
    assert!(state.read_finished());
    let mut state = StreamState::default();
    state.channel_closed();
    assert!(!state.read_finished() && !state.can_read());
}

proptest! {
    #[test]
    fn decoding_never_panics(chunks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
        let mut decoder = Decoder::default();
        for chunk in chunks {
            decoder.push(chunk.into());
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn frames_are_decoded_wherever_they_are_cut(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..400), 1..8),
        cut in 1usize..50,
    ) {
        let mut wire = BytesMut::new();
        for payload in &payloads {
            encode_data(payload, &mut wire);
            wire.extend_from_slice(&encode_flag(Flag::FinAck));
        }
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for part in wire.chunks(cut) {
            decoder.push(Bytes::copy_from_slice(part));
            while let Some(frame) = decoder.next_frame().unwrap() {
                match frame.flag {
                    Some(flag) => prop_assert_eq!(flag, Flag::FinAck),
                    None => seen.push(frame.message.to_vec()),
                }
            }
        }
        prop_assert_eq!(seen, payloads);
    }

    /// Two ends that exchange flags in order always finish when both close or reset.
    #[test]
    fn both_ends_finish(
        known in any::<(bool, bool)>(),
        steps in proptest::collection::vec((any::<bool>(), 0u8..4), 0..20),
    ) {
        let end = |known| match known {
            true => StreamState::default(),
            false => StreamState::with_any_peer(),
        };
        let mut ends = [end(known.0), end(known.1)];
        let exchange = |ends: &mut [StreamState; 2]| {
            while ends.iter().any(StreamState::has_flags) {
                for from in 0..2 {
                    if let Some(flag) = ends[from].poll_flag() {
                        ends[1 - from].received(flag);
                    }
                }
            }
        };
        for (end, step) in steps {
            let end = &mut ends[usize::from(end)];
            match step {
                0 => end.close_write(),
                1 => end.stop_reading(),
                2 => end.reset(),
                _ => {}
            }
            exchange(&mut ends);
        }
        for end in &mut ends {
            end.close_write();
            end.stop_reading();
        }
        exchange(&mut ends);
        prop_assert!(ends.iter().all(StreamState::is_done), "{:?}", ends);
    }
}

#[test]
fn what_came_is_read_although_nothing_can_be_sent() {
    let mut state = StreamState::default();
    state.sending_ended();
    assert!(state.can_read() && !state.can_write() && state.write_reset());
    state.received(Flag::Fin);
    assert!(state.read_finished() && state.is_done() && !state.has_flags());

    let mut state = StreamState::default();
    state.sending_ended();
    state.reset();
    assert!(!state.can_read() && state.is_done() && !state.has_flags());
}
