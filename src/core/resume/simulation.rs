//! Simulates two ends, any number of substreams that are cut anywhere, and a network that delivers
//! in any order.

use std::collections::VecDeque;

use proptest::prelude::*;
use unsigned_varint::decode;

use super::*;

const OPENER: usize = 0;
const ACCEPTOR: usize = 1;

#[derive(Debug, Clone)]
enum Op {
    Write {
        side: usize,
        count: usize,
    },
    Read {
        side: usize,
        count: usize,
    },
    Finish {
        side: usize,
    },
    Stop {
        side: usize,
    },
    Reset {
        side: usize,
    },
    Transmit {
        side: usize,
    },
    Deliver {
        side: usize,
        pick: prop::sample::Index,
        count: usize,
    },
    Cut {
        pick: prop::sample::Index,
        keep: [usize; 2],
    },
    Move,
}

fn op() -> impl Strategy<Value = Op> {
    let side = 0..2usize;
    let count = prop_oneof![0..40usize, 0..200_000usize];
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        4 => (side.clone(), count.clone()).prop_map(|(side, count)| Op::Write { side, count }),
        4 => (side.clone(), count.clone()).prop_map(|(side, count)| Op::Read { side, count }),
        8 => side.prop_map(|side| Op::Transmit { side }),
        12 => (0..2usize, pick(), count.clone())
            .prop_map(|(side, pick, count)| Op::Deliver { side, pick, count }),
        1 => (pick(), [count.clone(), count]).prop_map(|(pick, keep)| Op::Cut { pick, keep }),
        2 => Just(Op::Move),
    ]
}

/// Makes operations like `op`, with one end of a stream somewhere among them.
fn ops(end: impl Strategy<Value = Op>) -> impl Strategy<Value = Vec<Op>> {
    let ops = || prop::collection::vec(op(), 0..80);
    (ops(), end, ops()).prop_map(|(mut all, end, after)| {
        all.push(end);
        all.extend(after);
        all
    })
}

fn window() -> impl Strategy<Value = u64> {
    INITIAL_WINDOW..4 * INITIAL_WINDOW
}

/// Returns the byte that `side` writes at `offset`.
fn byte(side: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8 ^ (side as u8 * 0x55)
}

/// One direction of one substream.
#[derive(Default)]
struct Pipe {
    wire: VecDeque<u8>,
    dead: bool,
    carry: Vec<u8>,
    decoder: Decoder,
    greeted: bool,
}

impl Pipe {
    fn take_header(&mut self) -> Option<Header> {
        let (length, rest) = decode::usize(&self.carry).ok()?;
        let (header, rest) = rest.split_at_checked(length)?;
        let header = Header::decode(header).unwrap();
        self.carry = rest.to_vec();
        self.greeted = true;
        Some(header)
    }
}

struct End {
    resume: Option<Resume>,
    /// The substream on which this end writes.
    current: Option<usize>,
    written: u64,
    read: u64,
    saw_end: bool,
    stopped: bool,
    finished: bool,
    reset: bool,
}

struct World {
    ends: [End; 2],
    /// For each substream, the pipe that each side writes.
    substreams: Vec<[Pipe; 2]>,
    windows: [u64; 2],
}

impl World {
    fn new(windows: [u64; 2]) -> Self {
        let end = |resume| End {
            resume,
            current: None,
            written: 0,
            read: 0,
            saw_end: false,
            stopped: false,
            finished: false,
            reset: false,
        };
        let opener = Resume::opener(StreamId([7; 16]), "echo/1".to_owned(), windows[OPENER]);
        Self {
            ends: [end(Some(opener)), end(None)],
            substreams: Vec::new(),
            windows,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write { side, count } => self.write(side, count),
            Op::Read { side, count } => drop(self.read(side, count)),
            Op::Finish { side } => self.finish(side),
            Op::Stop { side } => {
                if let Some(resume) = &mut self.ends[side].resume {
                    resume.stop(7);
                    self.ends[side].stopped = true;
                }
            }
            Op::Reset { side } => {
                if let Some(resume) = &mut self.ends[side].resume {
                    resume.reset(42);
                    self.ends[side].reset = true;
                }
            }
            Op::Transmit { side } => drop(self.transmit(side)),
            Op::Deliver { side, pick, count } => {
                if !self.substreams.is_empty() {
                    self.deliver(pick.index(self.substreams.len()), side, count);
                }
            }
            Op::Cut { pick, keep } => {
                if !self.substreams.is_empty() {
                    self.cut(pick.index(self.substreams.len()), keep);
                }
            }
            Op::Move => self.attach(),
        }
        for (end, window) in self.ends.iter().zip(self.windows) {
            if let Some(resume) = &end.resume {
                let (sending, reading) = resume.buffered();
                assert!(sending as u64 <= window && reading as u64 <= window);
            }
        }
    }

    fn write(&mut self, side: usize, count: usize) {
        let end = &mut self.ends[side];
        if let Some(resume) = &mut end.resume {
            let bytes: Vec<u8> = (end.written..)
                .take(count)
                .map(|at| byte(side, at))
                .collect();
            match resume.write(&bytes) {
                Ok(count) => end.written += count as u64,
                Err(Closed::Finished) => assert!(end.finished),
                Err(Closed::Stopped { code }) => {
                    assert_eq!(code, 7);
                    assert!(self.ends[1 - side].stopped);
                }
                Err(Closed::Reset { code, .. }) => assert_eq!(code, 42),
            }
        }
    }

    fn read(&mut self, side: usize, count: usize) -> bool {
        let end = &mut self.ends[side];
        let mut out = vec![0; count];
        let Some(resume) = &mut end.resume else {
            return false;
        };
        match resume.read(&mut out) {
            Ok(Some(0)) if count > 0 => {
                end.saw_end = true;
                false
            }
            Ok(Some(count)) => {
                for &got in &out[..count] {
                    assert_eq!(got, byte(1 - side, end.read), "at offset {}", end.read);
                    end.read += 1;
                }
                count > 0
            }
            Ok(None) => false,
            Err(Closed::Reset { code, .. }) => {
                assert_eq!(code, 42);
                false
            }
            Err(closed) => panic!("read: {closed:?}"),
        }
    }

    fn finish(&mut self, side: usize) {
        if let Some(resume) = &mut self.ends[side].resume {
            resume.finish();
            self.ends[side].finished = true;
        }
    }

    fn attach(&mut self) {
        let opener = &mut self.ends[OPENER];
        opener.current = Some(self.substreams.len());
        opener.resume.as_mut().unwrap().attach();
        self.substreams.push(Default::default());
    }

    fn cut(&mut self, substream: usize, keep: [usize; 2]) {
        for (pipe, keep) in self.substreams[substream].iter_mut().zip(keep) {
            pipe.wire.truncate(keep);
            pipe.dead = true;
        }
    }

    fn transmit(&mut self, side: usize) -> bool {
        let (Some(resume), Some(current)) = (&mut self.ends[side].resume, self.ends[side].current)
        else {
            return false;
        };
        let mut out = Vec::new();
        let announced = resume.has_output();
        resume.poll_transmit(&mut out);
        assert_eq!(announced, !out.is_empty());
        assert!(out.len() <= MAX_FRAME + MAX_HEADER + 64);
        let pipe = &mut self.substreams[current][side];
        if !pipe.dead {
            pipe.wire.extend(&out);
        }
        !out.is_empty()
    }

    /// Delivers up to `count` bytes that the other side has written to `side`.
    fn deliver(&mut self, substream: usize, side: usize, count: usize) -> bool {
        let pipe = &mut self.substreams[substream][1 - side];
        if pipe.wire.is_empty() {
            if pipe.dead && self.ends[side].current == Some(substream) {
                self.ends[side].current = None;
                self.ends[side].resume.as_mut().unwrap().detach();
                return true;
            }
            return false;
        }
        let count = count.min(pipe.wire.len());
        pipe.carry.extend(pipe.wire.drain(..count));
        let end = &mut self.ends[side];
        if side == ACCEPTOR && !pipe.greeted {
            let Some(header) = pipe.take_header() else {
                return count > 0;
            };
            let window = self.windows[ACCEPTOR];
            let resume = end
                .resume
                .get_or_insert_with(|| Resume::acceptor(&header, window).unwrap());
            if !resume.attach_from(&header).unwrap() {
                self.cut(substream, [0, 0]);
                return true;
            }
            end.current = Some(substream);
        }
        let resume = end.resume.as_mut().unwrap();
        let mut input = &pipe.carry[..];
        while let Some(frame) = pipe.decoder.decode(&mut input).unwrap() {
            resume.handle_frame(frame).unwrap();
        }
        pipe.carry = input.to_vec();
        count > 0
    }

    /// Lets the network work again until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.ends[OPENER].current.is_none() {
                self.attach();
            }
            let mut busy = false;
            for side in [OPENER, ACCEPTOR] {
                while self.transmit(side) {
                    busy = true;
                }
                for substream in 0..self.substreams.len() {
                    busy |= self.deliver(substream, side, usize::MAX);
                }
                while self.read(side, 10_000) {
                    busy = true;
                }
            }
            if !busy {
                return;
            }
        }
        panic!("the ends never come to rest");
    }

    fn resume(&self, side: usize) -> &Resume {
        self.ends[side].resume.as_ref().unwrap()
    }
}

fn run(windows: [u64; 2], ops: Vec<Op>) -> World {
    let mut world = World::new(windows);
    world.attach();
    ops.into_iter().for_each(|op| world.apply(op));
    world.settle();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_byte_arrives_once_and_in_order(
        windows in [window(), window()],
        ops in prop::collection::vec(op(), 0..160),
    ) {
        let mut world = run(windows, ops);
        for side in [OPENER, ACCEPTOR] {
            prop_assert_eq!(world.ends[side].read, world.ends[1 - side].written);
            prop_assert!(!world.ends[side].saw_end);
            prop_assert!(!world.resume(side).is_complete());
        }
        for side in [OPENER, ACCEPTOR] {
            // No credit was lost on the way.
            let before = world.ends[side].written;
            let half = windows[side].min(windows[1 - side]) / 2;
            world.write(side, half as usize);
            prop_assert_eq!(world.ends[side].written, before + half);
            world.finish(side);
        }
        world.settle();
        for side in [OPENER, ACCEPTOR] {
            prop_assert!(world.ends[side].saw_end);
            prop_assert_eq!(world.resume(side).is_finished(), Ok(true));
            prop_assert!(world.resume(side).is_complete());
            prop_assert_eq!(world.resume(side).buffered(), (0, 0));
        }
    }

    #[test]
    fn finishing_one_direction_leaves_the_other_open(
        windows in [window(), window()],
        ops in (0..2usize).prop_flat_map(|side| ops(Just(Op::Finish { side }))),
    ) {
        let mut world = run(windows, ops);
        let side = if world.ends[OPENER].finished { OPENER } else { ACCEPTOR };
        prop_assume!(world.ends[side].finished);
        prop_assert!(world.ends[1 - side].saw_end);
        prop_assert_eq!(world.resume(side).is_finished(), Ok(true));
        prop_assert!(!world.ends[side].saw_end);
        world.write(1 - side, 1000);
        world.settle();
        for side in [OPENER, ACCEPTOR] {
            prop_assert_eq!(world.ends[side].read, world.ends[1 - side].written);
        }
        prop_assert!(!world.resume(side).is_complete());
    }

    #[test]
    fn a_reader_that_stops_ends_only_the_direction_that_it_reads(
        windows in [window(), window()],
        ops in (0..2usize).prop_flat_map(|side| ops(Just(Op::Stop { side }))),
    ) {
        let mut world = run(windows, ops);
        let side = if world.ends[OPENER].stopped { OPENER } else { ACCEPTOR };
        prop_assume!(world.ends[side].stopped);
        let writer = 1 - side;
        prop_assert_eq!(world.resume(writer).is_finished(), Err(Closed::Stopped { code: 7 }));
        let resume = world.ends[writer].resume.as_mut().unwrap();
        prop_assert_eq!(resume.write(b"more"), Err(Closed::Stopped { code: 7 }));
        prop_assert_eq!(resume.buffered().0, 0);
        world.finish(side);
        world.settle();
        prop_assert_eq!(world.ends[writer].read, world.ends[side].written);
        prop_assert!(world.resume(OPENER).is_complete() && world.resume(ACCEPTOR).is_complete());
    }

    #[test]
    fn a_reset_reaches_both_ends(
        windows in [window(), window()],
        ops in (0..2usize).prop_flat_map(|side| ops(Just(Op::Reset { side }))),
    ) {
        let mut world = run(windows, ops);
        let side = if world.ends[OPENER].reset { OPENER } else { ACCEPTOR };
        prop_assume!(world.ends[side].reset);
        for (at, by_peer) in [(side, false), (1 - side, true)] {
            let resume = world.ends[at].resume.as_mut().unwrap();
            let reset = Closed::Reset { code: 42, by_peer };
            prop_assert_eq!(resume.write(b"more"), Err(reset));
            prop_assert_eq!(resume.read(&mut [0]), Err(reset));
            prop_assert_eq!(resume.buffered(), (0, 0));
            prop_assert!(resume.is_complete());
        }
    }
}

/// Makes frames that a hostile peer might send to a stream that is in use.
fn hostile() -> impl Strategy<Value = (u8, [u64; 3], usize)> {
    let value = || prop_oneof![0..200_000u64, 0..1u64 << 62];
    (2..10u8, [value(), value(), value()], 1..70_000usize)
}

proptest! {
    #[test]
    fn hostile_frames_never_break_the_limits(
        windows in [window(), window()],
        ops in prop::collection::vec(op(), 0..60),
        frames in prop::collection::vec((0..2usize, hostile()), 1..30),
    ) {
        let mut world = run(windows, ops);
        let bytes = vec![0; 70_000];
        for (side, (kind, [a, b, c], len)) in frames {
            let resume = world.ends[side].resume.as_mut().unwrap();
            let frame = match kind {
                2 => StreamFrame::Accept { epoch: a, received: b, window: c },
                3 => StreamFrame::Refuse { epoch: a, refusal: Refusal::Other(b) },
                4 => StreamFrame::Data { offset: a, bytes: &bytes[..len] },
                5 => StreamFrame::Ack { consumed: a },
                6 => StreamFrame::Fin { offset: a },
                7 => StreamFrame::FinAck,
                8 => StreamFrame::Reset { code: a },
                _ => StreamFrame::Stop { code: a },
            };
            let _ = resume.handle_frame(frame);
            let _ = resume.write(&bytes[..1000]);
            let _ = resume.read(&mut [0; 1000]);
            resume.poll_transmit(&mut Vec::new());
            let (sending, reading) = resume.buffered();
            prop_assert!(sending as u64 <= windows[side] && reading as u64 <= windows[side]);
        }
    }
}
