use std::{
    hash::{DefaultHasher, Hasher as _},
    pin::pin,
    sync::Mutex,
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, FutureExt as _, StreamExt as _,
    channel::mpsc, future::join,
};
use libp2p::swarm::ConnectionId;

use super::{
    super::{
        PumpHandle,
        resumable::{accept, open, read_header, refuse},
    },
    duplex::{Duplex, Scissors, duplex},
    *,
};
use crate::{
    core::resume::{Header, INITIAL_WINDOW, Request},
    stream::{SessionId, Stream},
    testing::settle,
};

const WINDOW: usize = 1 << 20;

fn config() -> StreamConfig {
    StreamConfig {
        session: SessionId::new(7),
        activity: Arc::default(),
        first_bytes: Duration::from_secs(3600),
        window: WINDOW as u32,
        resume_timeout: Duration::from_secs(30),
    }
}

const MIB: usize = 1 << 20;

/// The event loops of two peers with one stream between them, and the network.
struct World {
    opener: PumpHandle<Duplex>,
    acceptor: Arc<Mutex<Option<PumpHandle<Duplex>>>>,
    accepted: Sender<Stream>,
    acceptor_events: Sender<PumpEvent>,
    substreams: usize,
    random: Random,
    /// The mean number of bytes that a substream carries before it dies, or `None` if it does not
    /// die.
    lifetime: Option<usize>,
}

/// The receiving ends of a world.
struct Ends {
    near: Stream,
    accepted: mpsc::Receiver<Stream>,
    opener_events: mpsc::Receiver<PumpEvent>,
    acceptor_events: mpsc::Receiver<PumpEvent>,
}

/// xorshift64, which scatters the cuts and makes the same ones each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % bound
    }
}

/// Returns the next event besides those that only say that bytes are sent.
async fn next(events: &mut mpsc::Receiver<PumpEvent>) -> Option<PumpEvent> {
    loop {
        let event = events.next().await;
        if !matches!(event, Some(PumpEvent::Busy { .. })) {
            return event;
        }
    }
}

impl World {
    fn new(config: StreamConfig) -> (Self, Ends) {
        let (events, opener_events) = mpsc::channel(0);
        let (acceptor_events, far_events) = mpsc::channel(0);
        let (accepted, streams) = mpsc::channel(1);
        let (near, opener, pump) = open("test/1", config, events).unwrap();
        tokio::spawn(pump);
        let world = Self {
            opener,
            acceptor: Arc::default(),
            accepted,
            acceptor_events,
            substreams: 0,
            random: Random(0x9e37_79b9_7f4a_7c15),
            lifetime: None,
        };
        let ends = Ends {
            near,
            accepted: streams,
            opener_events,
            acceptor_events: far_events,
        };
        (world, ends)
    }

    /// Moves the opener to a new substream, which reaches the acceptor some time later.
    fn connect(&mut self) -> Scissors {
        let (near, far, scissors) = self.substream();
        self.opener.attach(near, self.connection());
        self.arrive(far);
        scissors
    }

    fn substream(&mut self) -> (Duplex, Duplex, Scissors) {
        self.substreams += 1;
        let mut budget = || match self.lifetime {
            Some(mean) => self.random.below(2 * mean) + 1,
            None => usize::MAX,
        };
        duplex([budget(), budget()])
    }

    fn connection(&self) -> Via {
        Some(ConnectionId::new_unchecked(self.substreams))
    }

    fn arrive(&self, mut far: Duplex) {
        let acceptor = self.acceptor.clone();
        let connection = self.connection();
        let (mut accepted, events) = (self.accepted.clone(), self.acceptor_events.clone());
        tokio::spawn(async move {
            let Ok(header) = read_header(&mut far).await else {
                return;
            };
            let mut acceptor = acceptor.lock().unwrap();
            match &*acceptor {
                Some(handle) => handle.resume(header, far, connection),
                None => {
                    let (stream, handle, pump) =
                        accept(header, far, connection, config(), events).unwrap();
                    assert_eq!(stream.protocol(), "test/1");
                    *acceptor = Some(handle);
                    accepted.try_send(stream).unwrap();
                    tokio::spawn(pump);
                }
            }
        });
    }

    /// Opens another substream whenever one is lost, until the stream is done.
    async fn keep_connected(mut self, mut events: mpsc::Receiver<PumpEvent>) -> usize {
        self.connect();
        while let Some(PumpEvent::Lost { .. }) = next(&mut events).await {
            self.connect();
        }
        self.substreams
    }
}

/// Writes `count` bytes that follow from `seed`, in pieces of all sizes, and returns their hash.
async fn write_noise(stream: &mut (impl AsyncWrite + Unpin), seed: u64, count: usize) -> u64 {
    let mut random = Random(seed);
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; 100_000];
    let mut left = count;
    while left > 0 {
        let size = (random.below(block.len()) + 1).min(left);
        for word in block[..size].chunks_mut(8) {
            word.copy_from_slice(&random.below(usize::MAX).to_le_bytes()[..word.len()]);
        }
        hasher.write(&block[..size]);
        stream.write_all(&block[..size]).await.unwrap();
        left -= size;
    }
    hasher.finish_bytes(count)
}

/// Reads to the end and returns the hash of the bytes.
async fn read_hash(stream: &mut (impl AsyncRead + Unpin)) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; 50_000];
    let mut count = 0;
    loop {
        match stream.read(&mut block).await.unwrap() {
            0 => return hasher.finish_bytes(count),
            size => {
                hasher.write(&block[..size]);
                count += size;
            }
        }
    }
}

trait FinishBytes {
    fn finish_bytes(self, count: usize) -> u64;
}

impl FinishBytes for DefaultHasher {
    fn finish_bytes(mut self, count: usize) -> u64 {
        self.write_usize(count);
        self.finish()
    }
}

fn kind(error: io::Error) -> ErrorKind {
    Error::from(error).kind()
}

#[tokio::test]
async fn bytes_survive_hundreds_of_cuts_both_ways() {
    const COUNT: usize = 64 * MIB;
    let (mut world, mut ends) = World::new(config());
    world.lifetime = Some(300_000);
    let network = tokio::spawn(world.keep_connected(ends.opener_events));

    let (mut send, mut recv) = ends.near.split();
    let up = tokio::spawn(async move {
        let hash = write_noise(&mut send, 1, COUNT).await;
        send.close().await.unwrap();
        hash
    });
    let down = tokio::spawn(async move { read_hash(&mut recv).await });

    let (mut send, mut recv) = ends.accepted.next().await.unwrap().split();
    let (sent, received) = join(
        async {
            let hash = write_noise(&mut send, 2, COUNT).await;
            send.close().await.unwrap();
            hash
        },
        read_hash(&mut recv),
    )
    .await;
    assert_eq!(up.await.unwrap(), received);
    assert_eq!(down.await.unwrap(), sent);

    let substreams = network.await.unwrap();
    assert!(substreams > 200, "only {substreams} substreams were needed");
    while let Some(event) = next(&mut ends.acceptor_events).await {
        if let PumpEvent::Done { .. } = event {
            return;
        }
    }
    panic!("the acceptor's pump never ended");
}

#[tokio::test]
async fn moves_under_load_neither_lose_nor_repeat_a_byte() {
    let (mut world, mut ends) = World::new(config());
    let mut substreams = vec![world.connect()];
    let up = tokio::spawn(async move {
        let hash = write_noise(&mut ends.near, 3, 16 * MIB).await;
        ends.near.close().await.unwrap();
        hash
    });
    let mut far = ends.accepted.next().await.unwrap();
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; 70_000];
    let (mut count, mut moves) = (0, 0);
    loop {
        let size = far.read(&mut block).await.unwrap();
        if size == 0 {
            break;
        }
        hasher.write(&block[..size]);
        count += size;
        if count > moves * MIB / 4 {
            moves += 1;
            substreams.push(world.connect());
        }
    }
    assert_eq!(up.await.unwrap(), hasher.finish_bytes(count));
    assert!(moves > 60);
}

#[tokio::test]
async fn a_reader_that_pauses_stops_the_writer() {
    let (mut world, mut ends) = World::new(config());
    let scissors = world.connect();
    ends.near.write_all(b"x").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    let mut taken = 1;
    // The window stops a writer that always has more to write, before and after a move.
    for round in 0..2 {
        loop {
            settle().await;
            let write = ends.near.write(&[7; 100_000]);
            match futures::poll!(write) {
                Poll::Ready(count) => taken += count.unwrap(),
                Poll::Pending => break,
            }
        }
        assert_eq!(taken, WINDOW);
        if round == 0 {
            scissors.cut();
            world.connect();
        }
    }
    let mut block = vec![0; taken];
    far.read_exact(&mut block).await.unwrap();
    settle().await;
    ends.near.write_all(&[8; 100_000]).await.unwrap();
}

#[tokio::test]
async fn written_bytes_arrive_after_the_stream_is_dropped() {
    let (mut world, mut ends) = World::new(config());
    let first = world.connect();
    ends.near.write_all(b"request").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    far.read_exact(&mut [0; 7]).await.unwrap();
    first.cut();

    let hash = write_noise(&mut ends.near, 4, 500_000).await;
    drop(ends.near);
    assert!(matches!(
        next(&mut ends.opener_events).await,
        Some(PumpEvent::Lost { connection, .. }) if connection == Some(ConnectionId::new_unchecked(1))
    ));
    world.connect();
    assert_eq!(read_hash(&mut far).await, hash);
    let error = far.write_all(b"answer").await.unwrap_err();
    assert_eq!(
        kind(error),
        ErrorKind::StreamReset,
        "the reading half was dropped"
    );
    drop(far);
    let id = world.opener.id();
    assert_eq!(
        next(&mut ends.opener_events).await,
        Some(PumpEvent::Done {
            session: SessionId::new(7),
            id,
        })
    );
}

#[tokio::test]
async fn close_waits_for_the_peer_and_leaves_the_other_direction_open() {
    let (mut world, mut ends) = World::new(config());
    ends.near.write_all(b"ping").await.unwrap();
    {
        let close = ends.near.close();
        futures::pin_mut!(close);
        settle().await;
        assert!(
            futures::poll!(&mut close).is_pending(),
            "there is no substream yet"
        );
        world.connect();
        close.await.unwrap();
    }
    let error = ends.near.write(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

    let mut far = ends.accepted.next().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"ping");
    far.write_all(b"pong").await.unwrap();
    far.close().await.unwrap();
    let mut answer = Vec::new();
    ends.near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"pong");

    let id = world.opener.id();
    let done = Some(PumpEvent::Done {
        session: SessionId::new(7),
        id,
    });
    assert_eq!(next(&mut ends.opener_events).await, done);
    assert_eq!(next(&mut ends.acceptor_events).await, done);
}

#[tokio::test]
async fn ended_waits_for_a_stream_that_both_ends_have_finished() {
    let (mut world, mut ends) = World::new(config());
    world.connect();
    ends.near.write_all(b"ping").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    far.close().await.unwrap();
    settle().await;
    assert!(!world.opener.is_ending(), "more may be written at this end");
    drop(ends.near);
    assert!(world.opener.is_ending());
    let ended = world.opener.ended();
    futures::pin_mut!(ended);
    assert!(futures::poll!(&mut ended).is_pending());
    ended.await;
    settle().await;
    let acceptor = world.acceptor.lock().unwrap().take().unwrap();
    assert!(futures::poll!(pin!(acceptor.ended())).is_ready());
}

#[tokio::test]
async fn a_reset_crosses_a_move_and_wakes_both_ends() {
    let (mut world, mut ends) = World::new(config());
    let first = world.connect();
    ends.near.write_all(b"x").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    let (mut send, mut recv) = ends.near.split();
    let waiting = tokio::spawn(async move { recv.read(&mut [0]).await });
    settle().await;

    first.cut();
    settle().await;
    send.reset(7);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(kind(error), ErrorKind::StreamReset);

    let waiting = tokio::spawn(async move { far.read(&mut [0]).await });
    world.connect();
    let error = Error::from(waiting.await.unwrap().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::StreamReset);
    assert!(error.message().contains("code 7"), "{error}");
}

#[tokio::test]
async fn the_first_bytes_are_sent_before_any_answer() {
    let (mut world, mut ends) = World::new(config());
    ends.near.write_all(b"request").await.unwrap();
    let (near, mut far, _scissors) = world.substream();
    world.opener.attach(near, world.connection());
    let header = read_header(&mut far).await.unwrap();
    assert!(matches!(header.request, Request::Open { .. }));
    // The acceptor has not answered anything yet.
    let mut data = [0; 10];
    far.read_exact(&mut data).await.unwrap();
    assert!(data.ends_with(b"request"));
}

/// A second flight of a sealed stream has to wait for the peer's answer.
#[tokio::test]
async fn the_header_of_a_sealed_stream_waits_for_the_first_bytes() {
    let (mut world, mut ends) = World::new(config());
    let (near, mut far, _scissors) = world.substream();
    world.opener.attach(near, None);
    settle().await;
    let mut first = [0];
    assert!(far.read(&mut first).now_or_never().is_none());
    ends.near.write_all(b"request").await.unwrap();
    read_header(&mut far).await.unwrap();
    far.read_exact(&mut first).await.unwrap();
}

#[tokio::test]
async fn the_header_of_a_sealed_stream_goes_alone_if_the_application_is_silent() {
    let (mut world, _ends) = World::new(StreamConfig {
        first_bytes: Duration::from_millis(1),
        ..config()
    });
    let (near, mut far, _scissors) = world.substream();
    world.opener.attach(near, None);
    read_header(&mut far).await.unwrap();
}

#[tokio::test]
async fn the_old_substream_is_read_to_its_end() {
    let (mut world, mut ends) = World::new(config());
    let _first = world.connect();
    ends.near.write_all(b"x").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();

    // The new substream arrives late, and the acceptor still answers on the old one.
    let (near, slow, _second) = world.substream();
    world.opener.attach(near, world.connection());
    settle().await;
    far.write_all(b"on the old path").await.unwrap();
    let mut answer = [0; 15];
    ends.near.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"on the old path");
    ends.near.write_all(b"y").await.unwrap();
    world.arrive(slow);
    far.read_exact(&mut [0]).await.unwrap();
    far.write_all(b"z").await.unwrap();
    ends.near.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_finds_no_path_fails_in_time() {
    let config = StreamConfig {
        resume_timeout: Duration::from_millis(20),
        ..config()
    };
    let (mut world, mut ends) = World::new(config);
    let first = world.connect();
    ends.near.write_all(b"x").await.unwrap();
    let mut far = ends.accepted.next().await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    far.write_all(b"last words").await.unwrap();
    settle().await;
    first.cut();
    let mut words = Vec::new();
    let error = ends.near.read_to_end(&mut words).await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::ConnectionLost);
    assert_eq!(words, b"last words", "bytes that have arrived can be read");
    let error = ends.near.write(b"y").await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::ConnectionLost);
}

#[tokio::test]
async fn refusals_and_closed_connections_have_different_errors() {
    for (refusal, expected) in [
        (Refusal::UnknownProtocol, ErrorKind::ProtocolRefused),
        (Refusal::TooManyStreams, ErrorKind::LimitExceeded),
        (Refusal::UnknownStream, ErrorKind::ConnectionLost),
    ] {
        let (mut world, mut ends) = World::new(config());
        let (near, mut far, _scissors) = world.substream();
        world.opener.attach(near, world.connection());
        let header = read_header(&mut far).await.unwrap();
        refuse(far, &header, refusal).await.unwrap();
        let error = ends.near.read(&mut [0]).await.unwrap_err();
        assert_eq!(kind(error), expected);
        let id = world.opener.id();
        assert_eq!(
            next(&mut ends.opener_events).await,
            Some(PumpEvent::Done {
                session: SessionId::new(7),
                id,
            })
        );
    }

    let (world, mut ends) = World::new(config());
    drop(world);
    let error = ends.near.read(&mut [0]).await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::ConnectionClosed);
}

#[tokio::test]
async fn a_protocol_violation_fails_the_stream() {
    let (mut world, mut ends) = World::new(config());
    let (near, mut far, _scissors) = world.substream();
    world.opener.attach(near, world.connection());
    read_header(&mut far).await.unwrap();
    far.write_all(&[2, 99, 0]).await.unwrap();
    let error = ends.near.read(&mut [0]).await.unwrap_err();
    assert_eq!(kind(error), ErrorKind::ProtocolViolation);
}

#[tokio::test]
async fn headers_are_bounded() {
    for (bytes, expected) in [
        (&[0xff, 0xff, 0x7f][..], ErrorKind::ProtocolViolation),
        (&[0xff, 0x7f], ErrorKind::ProtocolViolation),
        (&[0], ErrorKind::ProtocolViolation),
        (&[5, 0, 1, 2, 3, 4], ErrorKind::ProtocolViolation),
        (&[9, 0], ErrorKind::Io),
    ] {
        let error = read_header(&mut &bytes[..]).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{bytes:?}");
    }
    let header = Header {
        id: StreamId([9; 16]),
        epoch: 1,
        request: Request::Open {
            window: INITIAL_WINDOW,
            protocol: "chat/1".to_owned(),
        },
    };
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    bytes.extend(b"DATA");
    let mut rest = &bytes[..];
    assert_eq!(read_header(&mut rest).await.unwrap(), header);
    assert_eq!(rest, b"DATA", "no byte after the header is read");
}

#[tokio::test]
async fn a_plain_stream_behaves_like_its_substream() {
    let (near, mut far, _scissors) = duplex([usize::MAX; 2]);
    let mut stream = Stream::plain("chat/1", near, Arc::default());
    stream.write_all(b"ping").await.unwrap();
    stream.close().await.unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"ping");
    let (mut send, mut recv) = stream.split();
    let waiting = tokio::spawn(async move { recv.read(&mut [0]).await });
    settle().await;
    send.reset(1);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(kind(error), ErrorKind::StreamReset);
    assert!(far.write(b"pong").await.is_err());
}
