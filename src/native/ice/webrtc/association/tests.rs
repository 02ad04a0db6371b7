//! Channels that use the same few streams again and again, over a network that loses and reorders.

use futures::task::noop_waker;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::task::{Context, Poll};

use super::*;

/// Who closes a channel, and when.
#[derive(Clone, Copy, Debug)]
enum Close {
    /// The opener, as soon as it has the echo.
    Opener,
    /// The acceptor, as soon as it has sent the echo. The opener follows when it has the echo.
    Both,
    /// The acceptor alone. The opener only sees the end.
    Acceptor,
    /// The opener, before the acceptor knows the channel.
    AtOnce,
}

/// A channel at its opener.
struct Opened {
    id: ChannelId,
    number: u32,
    close: Close,
    asked: bool,
    answered: bool,
}

/// A channel at its acceptor.
struct Accepted {
    id: ChannelId,
    question: Option<Bytes>,
    answered: bool,
}

struct Model {
    random: StdRng,
    now: Instant,
    ends: [Association; 2],
    flying: Vec<(Instant, usize, Bytes)>,
    loss: f64,
    opened: [Vec<Opened>; 2],
    accepted: [Vec<Accepted>; 2],
    /// A lane, at its acceptor.
    lane: Option<ChannelId>,
    /// The number of the next channel, and how many acceptors have read theirs.
    next: u32,
    read: u32,
    lost: bool,
    /// Whether the owners of channels do anything by themselves.
    attended: bool,
    /// How many packets the ends sent in the last step.
    sent: usize,
}

impl Model {
    fn new(seed: u64, loss: f64) -> Self {
        let now = Instant::now();
        let end = |client| Association::start(client, MAX_MESSAGE_SIZE, None, now).unwrap();
        Self::of([end(true), end(false)], seed, loss)
    }

    fn of(ends: [Association; 2], seed: u64, loss: f64) -> Self {
        let now = ends[0].now;
        Self {
            random: StdRng::seed_from_u64(seed),
            now,
            ends,
            flying: Vec::new(),
            loss,
            opened: Default::default(),
            accepted: Default::default(),
            lane: None,
            next: 0,
            read: 0,
            lost: false,
            attended: true,
            sent: 0,
        }
    }

    /// Lets one millisecond pass.
    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        let now = self.now;
        let due = self.flying.extract_if(.., |(at, ..)| *at <= now);
        let due: Vec<_> = due.collect();
        self.sent = 0;
        for (_, to, packet) in due {
            self.ends[to].receive(now, &packet);
        }
        for end in 0..2 {
            if self.ends[end].poll_timeout().is_some_and(|at| at <= now) {
                self.ends[end].handle_timeout(now);
            }
            if self.attended {
                self.converse(end);
            }
            while let Some(packets) = self.ends[end].poll_transmit(now) {
                self.sent += packets.len();
                for packet in packets {
                    if !self.random.random_bool(self.loss) {
                        let delay = Duration::from_millis(self.random.random_range(3..6));
                        self.flying.push((now + delay, 1 - end, packet));
                    }
                }
            }
        }
    }

    fn open(&mut self, end: usize) {
        // The lowest free id is always taken, as in browsers.
        self.ends[end].next_id %= 2;
        let id = self.ends[end].open().unwrap();
        let close = match self.random.random_range(0..8) {
            0..3 => Close::Opener,
            3..6 => Close::Both,
            6 => Close::AtOnce,
            _ => Close::Acceptor,
        };
        let number = self.next;
        self.next += 1;
        self.opened[end].push(Opened {
            id,
            number,
            close,
            asked: false,
            answered: false,
        });
    }

    /// Does what the owners of the channels do.
    fn converse(&mut self, end: usize) {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let association = &mut self.ends[end];
        while let Some(change) = association.poll() {
            match change {
                Change::Lane(id) => self.lane = Some(id),
                Change::Opened(id) => self.accepted[end].push(Accepted {
                    id,
                    question: None,
                    answered: false,
                }),
                Change::Lost(_) => self.lost = true,
            }
        }
        if self.lost {
            return;
        }
        self.opened[end].retain_mut(|channel| {
            if !channel.asked {
                if association.poll_ready(channel.id, &mut cx).is_pending() {
                    return true;
                }
                let mut question = channel.number.to_be_bytes().to_vec();
                question.push(channel.close as u8);
                association.send(channel.id, &question).unwrap();
                channel.asked = true;
                if matches!(channel.close, Close::AtOnce) {
                    association.close(channel.id);
                    association.detach(channel.id);
                    return false;
                }
            }
            match association.poll_next(channel.id, &mut cx) {
                Poll::Pending => true,
                Poll::Ready(Some(answer)) => {
                    assert_eq!(answer, channel.number.to_be_bytes().as_slice());
                    assert!(!std::mem::replace(&mut channel.answered, true));
                    if matches!(channel.close, Close::Acceptor) {
                        return true;
                    }
                    association.close(channel.id);
                    association.detach(channel.id);
                    false
                }
                Poll::Ready(None) => {
                    let (number, close) = (channel.number, channel.close);
                    assert!(channel.answered, "{number} ended early: {close:?}");
                    association.detach(channel.id);
                    false
                }
            }
        });
        self.accepted[end].retain_mut(|channel| {
            if channel.question.is_none() {
                match association.poll_next(channel.id, &mut cx) {
                    Poll::Pending => return true,
                    Poll::Ready(None) => panic!("nothing came on {:?}", channel.id),
                    Poll::Ready(Some(question)) => {
                        self.read += 1;
                        if question[4] == Close::AtOnce as u8 {
                            association.close(channel.id);
                            association.detach(channel.id);
                            return false;
                        }
                        channel.question = Some(question);
                    }
                }
            }
            if let Some(question) = &channel.question
                && !channel.answered
            {
                if association.poll_ready(channel.id, &mut cx).is_pending() {
                    return true;
                }
                association.send(channel.id, &question[..4]).unwrap();
                channel.answered = true;
                if question[4] != Close::Opener as u8 {
                    association.close(channel.id);
                    association.detach(channel.id);
                    return false;
                }
            }
            match association.poll_next(channel.id, &mut cx) {
                Poll::Pending => true,
                Poll::Ready(None) => {
                    association.detach(channel.id);
                    false
                }
                Poll::Ready(Some(more)) => panic!("more came: {more:?}"),
            }
        });
    }

    fn idle(&self) -> bool {
        let channels = self.opened.iter().map(Vec::len).sum::<usize>();
        let streams = self.ends.iter().map(Association::len).sum::<usize>();
        channels == 0 && streams == 0
    }
}

fn run(seed: u64, loss: f64) {
    let mut model = Model::new(seed, loss);
    for _ in 0..3_000 {
        if model.lost {
            break;
        }
        for end in 0..2 {
            if model.opened[end].len() < 5 && model.random.random_bool(0.5) {
                model.open(end);
            }
        }
        model.step();
    }
    let end = model.now + Duration::from_secs(60);
    while !model.idle() && !model.lost && model.now < end {
        model.step();
    }
    if model.lost {
        assert!(loss > 0.0, "seed {seed}: the association is lost");
        return;
    }
    let left: Vec<_> = model
        .opened
        .iter()
        .flatten()
        .map(|channel| channel.number)
        .collect();
    assert!(model.idle(), "seed {seed}: {left:?} hang of {}", model.next);
    assert_eq!(model.read, model.next, "seed {seed}");
}

#[test]
fn streams_that_are_used_again_at_once_lose_no_channel() {
    for seed in 0..10 {
        run(seed, 0.0);
    }
}

/// Where packets are lost, the association may end, but no channel hangs.
#[test]
fn streams_that_are_used_again_do_not_hang_where_packets_are_lost() {
    for seed in 0..10 {
        run(seed, 0.1);
    }
}

/// Sends a datagram every 5 ms over a lane. Returns when each one arrived, in milliseconds after it was
/// sent.
fn datagrams(loss: f64) -> Vec<Option<u128>> {
    const COUNT: usize = 400;
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let mut model = Model::new(7, 0.0);
    let lane = model.ends[0].open_lane().unwrap();
    let mut sent = Vec::new();
    let mut arrived = vec![None; COUNT];
    let mut step = 0;
    while step < 5 * COUNT + 500 {
        // Reading takes the acknowledgement.
        assert_eq!(model.ends[0].poll_next(lane, &mut cx), Poll::Pending);
        if model.ends[0].poll_ready(lane, &mut cx).is_ready() {
            model.loss = loss;
            if step % 5 == 0 && sent.len() < COUNT {
                let number = (sent.len() as u32).to_be_bytes();
                model.ends[0].send(lane, &number).unwrap();
                sent.push(model.now);
            }
            step += 1;
        }
        model.step();
        while let Some(id) = model.lane
            && let Poll::Ready(Some(number)) = model.ends[1].poll_next(id, &mut cx)
        {
            let number = u32::from_be_bytes(number[..].try_into().unwrap()) as usize;
            let before = arrived[number].replace((model.now - sent[number]).as_millis());
            assert_eq!(before, None, "{number} came twice");
        }
    }
    assert_eq!(sent.len(), COUNT);
    arrived
}

#[test]
fn a_lane_loses_what_the_network_loses_and_delays_nothing_else() {
    let all = datagrams(0.0);
    assert!(all.iter().all(Option::is_some));
    let some = datagrams(0.1);
    let lost = some.iter().filter(|time| time.is_none()).count();
    assert!((10..100).contains(&lost), "{lost} of 400 are lost");
    let late = some.iter().flatten().filter(|time| **time > 8).count();
    assert!(late < 20, "{late} of 400 are late: {some:?}");
}

#[test]
fn an_empty_datagram_arrives() {
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let mut model = Model::new(1, 0.0);
    let lane = model.ends[0].open_lane().unwrap();
    for _ in 0..1000 {
        let _ = model.ends[0].poll_next(lane, &mut cx);
        if model.ends[0].poll_ready(lane, &mut cx).is_ready() {
            model.ends[0].send(lane, b"").unwrap();
        }
        model.step();
        if let Some(id) = model.lane
            && let Poll::Ready(datagram) = model.ends[1].poll_next(id, &mut cx)
        {
            return assert_eq!(datagram, Some(Bytes::new()));
        }
    }
    panic!("nothing arrived");
}

#[test]
fn with_the_first_chunks_of_both_ends_a_channel_opens_in_one_flight() {
    let now = Instant::now();
    let [a, b] = [(); 2].map(|()| init().unwrap());
    let end = |client, ours: &Bytes, theirs: &Bytes| {
        let (ours, theirs) = (ours.clone(), theirs.clone());
        let inits = Some(Inits { ours, theirs });
        Association::start(client, MAX_MESSAGE_SIZE, inits, now).unwrap()
    };
    let mut model = Model::of([end(true, &a, &b), end(false, &b, &a)], 1, 0.0);
    model.attended = false;
    for opener in 0..2 {
        model.ends[opener].open().unwrap();
        // A flight takes 3 to 5 ms.
        for _ in 0..7 {
            model.step();
        }
        let opened = model.ends[1 - opener].poll();
        assert!(matches!(opened, Some(Change::Opened(_))), "{opened:?}");
    }
}

/// A browser has room for about 90 packets in the buffer of its socket.
#[test]
fn a_lost_flight_is_sent_again_as_acknowledgements_come() {
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let mut model = Model::new(1, 0.0);
    model.attended = false;
    let opened = model.ends[0].open().unwrap();
    let message = vec![7; 16 << 10];
    let mut accepted = None;
    let (mut sent, mut read) = (0, 0);
    let mut largest = 0;
    for step in 0..6_000 {
        // The path is dark for a second, after half a second of slow start.
        model.loss = f64::from(u8::from((500..1_500).contains(&step)));
        while step < 2_000 && model.ends[0].poll_ready(opened, &mut cx).is_ready() {
            model.ends[0].send(opened, &message).unwrap();
            sent += 1;
        }
        model.step();
        // What was sent before is lost, and sent again from here on.
        if step > 600 {
            largest = largest.max(model.sent);
        }
        if let Some(Change::Opened(id)) = model.ends[1].poll() {
            accepted = Some(id);
        }
        while let Some(id) = accepted
            && let Poll::Ready(Some(part)) = model.ends[1].poll_next(id, &mut cx)
        {
            assert_eq!(part, message);
            read += 1;
        }
    }
    assert!(sent > 300, "{sent}");
    assert_eq!(read, sent);
    assert!(largest < 90, "{largest} packets at once");
}

#[test]
fn a_stream_is_free_although_nobody_has_read_its_last_channel() {
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let mut model = Model::new(1, 0.0);
    model.attended = false;
    let mut channels = Vec::new();
    for round in [["a", "b"], ["c", "d"], ["e", "f"]] {
        let opener = &mut model.ends[0];
        opener.next_id %= 2;
        let opened = opener.open().unwrap();
        for message in round {
            while model.ends[0].poll_ready(opened, &mut cx).is_pending() {
                model.step();
            }
            let message = message.as_bytes();
            model.ends[0].send(opened, message).unwrap();
        }
        model.ends[0].close(opened);
        model.ends[0].detach(opened);
        // The stream is free when the acceptor has seen the reset, and the opener its answer.
        for _ in 0..1_000 {
            model.step();
        }
        let acceptor = &mut model.ends[1];
        let change = acceptor.poll();
        let Some(Change::Opened(id)) = change else {
            panic!("the channel of {round:?} does not come: {change:?}");
        };
        let sending = acceptor.poll_ready(id, &mut cx);
        assert!(matches!(sending, Poll::Ready(Err(_))), "{sending:?}");
        channels.push((id, round));
    }
    for (id, round) in channels {
        assert_eq!(id.stream, 0);
        for message in round {
            let read = model.ends[1].poll_next(id, &mut cx);
            assert_eq!(read, Poll::Ready(Some(Bytes::from(message))));
        }
        assert_eq!(model.ends[1].poll_next(id, &mut cx), Poll::Ready(None));
        model.ends[1].detach(id);
    }
    assert!(model.idle());
}

#[test]
fn what_nobody_has_read_is_kept_within_its_bound() {
    let id = |generation| ChannelId::of(0, generation);
    let message = Bytes::from_static(&[0; 36]);
    let mut leftovers = Leftovers::new(300);
    for generation in [1, 1, 2, 2, 1] {
        leftovers.keep(id(generation), message.clone());
    }
    // There was room for three messages, and none of a channel follows one that was dropped.
    leftovers.take(id(1));
    leftovers.keep(id(2), message.clone());
    let mut taken = |generation| std::iter::from_fn(|| leftovers.take(id(generation))).count();
    assert_eq!((taken(1), taken(2)), (1, 1));
    leftovers.forget(id(1));
    leftovers.forget(id(2));
    for _ in 0..4 {
        leftovers.keep(id(3), message.clone());
    }
    assert_eq!(std::iter::from_fn(|| leftovers.take(id(3))).count(), 3);
}

#[test]
fn the_streams_of_a_packet_are_found() {
    let data = |stream: u8, length: u8| {
        let mut chunk = vec![0, 3, 0, length, 0, 0, 0, 0, 0, stream];
        chunk.resize(usize::from(length).next_multiple_of(4).max(10), 0);
        chunk
    };
    let mut packet = vec![0; COMMON_HEADER];
    packet.extend(data(7, 17));
    packet.extend([130, 0, 0, 8, 9, 9, 9, 9]);
    packet.extend(data(9, 16));
    assert_eq!(streams_of(&packet).collect::<Vec<_>>(), [7, 9]);
    for end in 0..packet.len() {
        assert!(streams_of(&packet[..end]).count() <= 2);
    }
    // A length of zero moves on nevertheless.
    assert!(streams_of(&[0; 100]).count() <= 100);
}
