use super::*;

const WINDOW: u64 = 1 << 20;

fn pair(window: u64) -> (Resume, Resume) {
    let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), window);
    opener.attach();
    let (header, _) = transmit(&mut opener);
    let mut acceptor = Resume::acceptor(&header.unwrap(), window).unwrap();
    assert!(acceptor.attach_from(&opening(1, window)).unwrap());
    (opener, acceptor)
}

fn opening(epoch: u64, window: u64) -> Header {
    Header {
        id: StreamId([1; 16]),
        epoch,
        request: Request::Open {
            window,
            protocol: "chat/1".to_owned(),
        },
    }
}

/// Returns the header, if there is one, and how many bytes of DATA there are.
fn transmit(resume: &mut Resume) -> (Option<Header>, usize) {
    let mut header_due = resume.greeting_due && matches!(resume.role, Role::Opener { .. });
    let (mut header, mut data) = (None, 0);
    while resume.has_output() {
        let mut out = Vec::new();
        resume.poll_transmit(&mut out);
        let mut input = &out[..];
        if std::mem::take(&mut header_due) {
            let (length, rest) = unsigned_varint::decode::usize(input).unwrap();
            header = Some(Header::decode(&rest[..length]).unwrap());
            input = &rest[length..];
        }
        let mut decoder = Decoder::default();
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            if let StreamFrame::Data { bytes, .. } = frame {
                data += bytes.len();
            }
        }
    }
    (header, data)
}

fn accept(epoch: u64, received: u64) -> StreamFrame<'static> {
    StreamFrame::Accept {
        epoch,
        received,
        window: WINDOW,
    }
}

#[test]
fn the_first_bytes_do_not_wait_for_an_answer() {
    let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), WINDOW);
    assert_eq!(opener.write(&[0; 100_000]), Ok(INITIAL_WINDOW as usize));
    assert!(!opener.has_output(), "there is no substream");
    opener.attach();
    let (header, data) = transmit(&mut opener);
    assert_eq!(header, Some(opening(1, WINDOW)));
    assert_eq!(data, INITIAL_WINDOW as usize);
    opener.handle_frame(accept(1, 0)).unwrap();
    assert_eq!(opener.write(&[0; 100_000]), Ok(100_000));
}

#[test]
fn a_move_repeats_at_most_the_initial_window_before_the_answer() {
    let (mut opener, _) = pair(WINDOW);
    opener.handle_frame(accept(1, 0)).unwrap();
    assert_eq!(opener.write(&[0; 300_000]), Ok(300_000));
    assert_eq!(transmit(&mut opener).1, 300_000);
    opener.recv.data(0, b"hello").unwrap();

    opener.attach();
    opener.attach();
    let (header, data) = transmit(&mut opener);
    let header = header.unwrap();
    assert_eq!(header.epoch, 3);
    assert_eq!(header.request, Request::Resume { received: 5 });
    assert_eq!(data, INITIAL_WINDOW as usize);
    opener.handle_frame(accept(2, 0)).unwrap();
    assert_eq!(
        transmit(&mut opener).1,
        0,
        "the answer was to an older header"
    );
    opener.handle_frame(accept(3, 299_000)).unwrap();
    assert_eq!(transmit(&mut opener).1, 1000);
}

#[test]
fn acknowledged_received_and_readable_bytes_are_counted() {
    let (mut opener, _) = pair(WINDOW);
    opener.handle_frame(accept(1, 0)).unwrap();
    assert_eq!((opener.acked(), opener.received()), (0, 0));
    assert!(!opener.is_readable());
    assert_eq!(opener.write(&[0; 10]), Ok(10));
    transmit(&mut opener);
    opener
        .handle_frame(StreamFrame::Ack { consumed: 7 })
        .unwrap();
    assert_eq!(opener.acked(), 7);
    let hello = StreamFrame::Data {
        offset: 0,
        bytes: b"hello",
    };
    opener.handle_frame(hello).unwrap();
    assert!(opener.is_readable());
    let mut buffer = [0; 9];
    assert_eq!(opener.read(&mut buffer), Ok(Some(5)));
    assert_eq!((&buffer[..5], opener.received()), (&b"hello"[..], 5));
    assert_eq!(opener.read(&mut buffer), Ok(None));
    assert!(!opener.is_readable());
    opener.handle_frame(StreamFrame::Fin { offset: 5 }).unwrap();
    assert!(opener.is_readable(), "the end can be read");
    assert_eq!(opener.read(&mut buffer), Ok(Some(0)));
}

#[test]
fn a_writer_waits_for_credit_and_then_for_the_end() {
    let (mut opener, _) = pair(WINDOW);
    assert!(opener.is_writable());
    opener.write(&[0; INITIAL_WINDOW as usize]).unwrap();
    assert!(!opener.is_writable());
    opener.handle_frame(accept(1, 0)).unwrap();
    assert!(opener.is_writable());
    opener.finish();
    assert!(!opener.is_writable(), "the end is not known yet");
    transmit(&mut opener);
    let consumed = INITIAL_WINDOW;
    opener.handle_frame(StreamFrame::Ack { consumed }).unwrap();
    opener.handle_frame(StreamFrame::FinAck).unwrap();
    assert!(opener.is_writable());
    assert_eq!(opener.is_finished(), Ok(true));
}

#[test]
fn a_writer_cannot_exceed_its_credit() {
    let (_, mut acceptor) = pair(INITIAL_WINDOW);
    let bytes = [0; INITIAL_WINDOW as usize];
    let data = |offset, bytes| StreamFrame::Data { offset, bytes };
    acceptor.handle_frame(data(0, &bytes)).unwrap();
    assert_eq!(
        acceptor.handle_frame(data(INITIAL_WINDOW, b"!")),
        Err(ProtocolError::Overrun {
            limit: INITIAL_WINDOW,
            got: INITIAL_WINDOW + 1
        })
    );
    acceptor.read(&mut [0]).unwrap();
    acceptor.handle_frame(data(INITIAL_WINDOW, b"!")).unwrap();
    acceptor
        .handle_frame(StreamFrame::Fin {
            offset: INITIAL_WINDOW + 1,
        })
        .unwrap();
    let behind_fin = acceptor.handle_frame(data(INITIAL_WINDOW + 1, b"!"));
    assert!(matches!(behind_fin, Err(ProtocolError::Overrun { .. })));
}

#[test]
fn headers_are_checked_before_state_is_made() {
    let small = opening(1, INITIAL_WINDOW - 1);
    assert_eq!(
        Resume::acceptor(&small, WINDOW).unwrap_err(),
        ProtocolError::Field("window")
    );
    let resume = Header {
        request: Request::Resume { received: 0 },
        ..small
    };
    assert_eq!(
        Resume::acceptor(&resume, WINDOW).unwrap_err(),
        ProtocolError::Role
    );

    let (mut opener, mut acceptor) = pair(WINDOW);
    assert_eq!(opener.attach_from(&resume), Err(ProtocolError::Role));
    assert_eq!(
        acceptor.attach_from(&resume),
        Ok(false),
        "the epoch is stale"
    );
    let unsent = Header {
        epoch: 2,
        request: Request::Resume { received: 1 },
        ..resume
    };
    assert_eq!(
        acceptor.attach_from(&unsent),
        Err(ProtocolError::NeverSent { sent: 0, got: 1 })
    );
}

#[test]
fn an_end_knows_whether_it_was_answered() {
    let (mut opener, acceptor) = pair(WINDOW);
    assert!(acceptor.is_answered(), "the header was the answer");
    assert!(!opener.is_answered());
    opener.handle_frame(accept(1, 0)).unwrap();
    assert!(opener.is_answered());
    opener.attach();
    assert!(
        !opener.is_answered(),
        "the next substream has its own answer"
    );
}

#[test]
fn a_refusal_counts_for_the_substream_whose_header_it_answers() {
    let (mut opener, _) = pair(WINDOW);
    let refusal = Refusal::UnknownProtocol;
    let refuse = |epoch| StreamFrame::Refuse { epoch, refusal };
    opener.attach();
    opener.handle_frame(refuse(1)).unwrap();
    assert_eq!(opener.refusal(), None, "it answers an older header");
    opener.handle_frame(refuse(2)).unwrap();
    assert_eq!(opener.refusal(), Some(refusal));
}

#[test]
fn a_stream_is_ending_when_neither_end_has_anything_to_add() {
    let (mut opener, mut acceptor) = pair(WINDOW);
    assert!(!opener.is_ending());
    opener.finish();
    assert!(!opener.is_ending(), "the other end may still write");
    let fin = StreamFrame::Fin { offset: 0 };
    acceptor.handle_frame(fin).unwrap();
    assert!(!acceptor.is_ending(), "it may write itself");
    acceptor.finish();
    assert!(acceptor.is_ending());
    opener.reset(1);
    assert!(opener.is_ending());
}

#[test]
fn a_header_stands_alone_until_something_is_written() {
    let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), WINDOW);
    opener.attach();
    assert!(opener.has_only_header());
    opener.write(b"hello").unwrap();
    assert!(!opener.has_only_header(), "the bytes go with it");
    transmit(&mut opener);
    assert!(!opener.has_only_header(), "all of it was sent");
    opener.attach();
    opener.reset(1);
    assert!(!opener.has_only_header(), "the reset goes with it");
}

#[test]
fn a_stream_that_was_reset_before_its_first_substream_is_complete() {
    let mut opener = Resume::opener(StreamId([1; 16]), "chat/1".to_owned(), WINDOW);
    opener.reset(1);
    assert!(opener.is_complete(), "nobody knows of it");
    let (mut opener, _) = pair(WINDOW);
    opener.reset(1);
    assert!(!opener.is_complete(), "the peer has to hear of it");
}

#[test]
fn an_end_behind_bytes_that_have_not_come_is_refused() {
    let (_, mut acceptor) = pair(WINDOW);
    assert_eq!(
        acceptor.handle_frame(StreamFrame::Fin { offset: 5 }),
        Err(ProtocolError::Gap {
            expected: 0,
            got: 5
        })
    );
}

#[test]
fn what_was_read_is_acknowledged_by_eighths_of_the_window() {
    let (_, mut acceptor) = pair(WINDOW);
    transmit(&mut acceptor);
    let bytes = vec![0; WINDOW as usize / 8];
    let data = StreamFrame::Data {
        offset: 0,
        bytes: &bytes,
    };
    acceptor.handle_frame(data).unwrap();
    let mut out = vec![0; bytes.len() - 1];
    acceptor.read(&mut out).unwrap();
    assert!(!acceptor.has_output());
    acceptor.read(&mut [0]).unwrap();
    assert!(acceptor.has_output());
}
