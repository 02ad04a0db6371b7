//! Clients over TCP. One connection is one client.
//!
//! The memory of a connection grows with the bytes that have arrived and with those that the client
//! has not read yet. Both are bounded.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::ready,
    time::{Duration, Instant},
};

#[cfg(any(target_os = "linux", target_os = "android"))]
use socket2::SockRef;
use tokio::{
    io::{self, AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time,
};
use tracing::Instrument as _;

use super::{
    allocation::{MAX_DATAGRAM, Reply},
    deadlines::{Deadlines, WRITE},
    requests::{Client, Requests},
};
use crate::{
    native::ice::turn::frame,
    server::{
        pool::{Place, Pool},
        socket::{Socket, reset},
    },
};

/// How many bytes may wait for a slow client, with [`OVERHEAD`] for each frame. Frames beyond that
/// are lost. A burst of a QUIC connection has room.
const QUEUE: usize = 256 * 1024;

/// The cost of a frame that waits, in bytes, besides its own bytes.
const OVERHEAD: usize = 64;

/// How many bytes may wait in the kernel before they are sent, besides those that the client has
/// not acknowledged yet. The number is small, because data that waits long is old when it arrives.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 64 * 1024;

/// How many bytes are read in one call.
const CHUNK: usize = 8 * 1024;

/// The longest frame: the longest datagram with its attributes.
const MAX_FRAME: usize = MAX_DATAGRAM + 128;

/// Serves the connections of `listener` until the future is dropped. Nobody waits for a connection
/// that gets no place.
pub(super) async fn serve(listener: TcpListener, places: Pool, requests: Arc<Requests>) {
    let mut tasks = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // A connection that gets no place is closed at once.
                let Ok(place) = places.take(address.ip()) else {
                    continue;
                };
                let (requests, stream) = (requests.clone(), Socket::from(stream));
                let served = async move { client(stream, address, place, &requests).await };
                tasks.spawn(served.in_current_span());
            }
            Err(error) => {
                tracing::debug!(%error, "TURN listener");
                time::sleep(Duration::from_millis(10)).await;
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// Serves one client until it goes, or is given up. A proxy may have said that it is at `address`.
pub(super) async fn client(stream: Socket, address: SocketAddr, place: Place, requests: &Requests) {
    let Ok(local) = stream.tcp().local_addr() else {
        return;
    };
    let client = Client {
        over_tcp: true,
        local,
        address,
    };
    serve_one(stream, client, requests).await;
    requests.close(client);
    drop(place);
}

async fn serve_one(stream: Socket, client: Client, requests: &Requests) {
    let _ = stream.tcp().set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = SockRef::from(stream.tcp()).set_tcp_notsent_lowat(UNSENT);
    let (queue, frames) = queue(QUEUE);
    let (mut reader, mut writer) = io::split(stream);
    let in_time = tokio::select! {
        in_time = write(&mut writer, frames, WRITE) => in_time,
        in_time = read(&mut reader, client, Reply::Stream(queue), requests) => in_time,
    };
    if !in_time {
        requests.refuse("turn_connection", "deadline", client);
        reset(reader.unsplit(writer).tcp());
    }
}

/// Writes frames to the client. Returns whether the connection ended before a deadline.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    mut frames: Frames,
    patience: Duration,
) -> bool {
    while let Some(frame) = frames.next().await {
        let written = async {
            writer.write_all(&frame).await?;
            // TLS may have kept the end of it.
            writer.flush().await
        };
        match time::timeout(patience, written).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Whether the connection has ended before a deadline.
async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    client: Client,
    reply: Reply,
    requests: &Requests,
) -> bool {
    let mut deadlines = Deadlines::new(Instant::now());
    let mut assembler = Assembler::default();
    loop {
        // The buffer is on the stack, and exists only while there is something to read, so a silent
        // client costs no buffer.
        let received = poll_fn(|cx| {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut chunk))?;
            let bytes = chunk.filled();
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into()).into();
            }
            let frames = assembler.take(bytes, |frame| requests.receive(client, &reply, frame));
            frames.map_err(|_| io::ErrorKind::InvalidData.into()).into()
        });
        let received: Result<io::Result<usize>, _> =
            time::timeout_at(deadlines.next().into(), received).await;
        // This is checked even if there is always something to read, because a byte moves no
        // deadline.
        if deadlines.have_passed(Instant::now(), || requests.has_allocation(client)) {
            return false;
        }
        match received {
            Ok(Ok(frames)) => {
                deadlines.received(Instant::now(), frames, !assembler.is_empty());
            }
            Ok(Err(_)) => return true,
            Err(_) => {}
        }
    }
}

/// Puts frames together. It holds the part of a frame that has arrived, and nothing between frames.
#[derive(Debug, Default)]
struct Assembler(Vec<u8>);

impl Assembler {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next `bytes` of the stream and passes each frame that they end to `each`. Returns
    /// how many frames that were.
    ///
    /// # Errors
    /// If the stream is not TURN, or a frame is longer than any that is relayed.
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<usize, frame::NotTurn> {
        let part = std::mem::take(&mut self.0);
        let joined = match part.is_empty() {
            true => None,
            false => Some([&part, bytes].concat()),
        };
        let stream = joined.as_deref().unwrap_or(bytes);
        let (mut rest, mut frames) = (stream, 0);
        while let Some(frame) = frame::first_of_client(rest)? {
            each(rest.get(..frame.len).unwrap_or_default());
            rest = rest.get(frame.end..).unwrap_or_default();
            frames += 1;
        }
        if rest.len() >= MAX_FRAME {
            return Err(frame::NotTurn);
        }
        self.0 = rest.to_vec();
        Ok(frames)
    }
}

/// The sending end of the frames to a client over TCP. Clones share one queue.
#[derive(Clone)]
pub(super) struct Queue {
    frames: mpsc::UnboundedSender<(Vec<u8>, OwnedSemaphorePermit)>,
    /// Bounds `frames`, in bytes.
    room: Arc<Semaphore>,
    size: usize,
}

/// The frames that wait in a [`Queue`].
pub(super) struct Frames(mpsc::UnboundedReceiver<(Vec<u8>, OwnedSemaphorePermit)>);

/// Makes a queue with room for `size` bytes.
pub(super) fn queue(size: usize) -> (Queue, Frames) {
    let (frames, waiting) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(size));
    let queue = Queue { frames, room, size };
    (queue, Frames(waiting))
}

impl Queue {
    /// Appends data from a peer, unless that leaves less than a quarter of the room. The rest is
    /// for answers, because a client does not repeat a request on a stream.
    pub(super) fn relay(&self, frame: &[u8]) {
        if self.room.available_permits() >= cost(frame) + self.size / 4 {
            self.answer(frame);
        }
    }

    /// Appends an answer. It is lost if there is no room.
    pub(super) fn answer(&self, frame: &[u8]) {
        let cost = u32::try_from(cost(frame)).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(cost) else {
            return;
        };
        let mut padded = Vec::with_capacity(frame.len().next_multiple_of(4));
        padded.extend_from_slice(frame);
        frame::pad(&mut padded, frame.len());
        let _ = self.frames.send((padded, room));
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len().next_multiple_of(4) + OVERHEAD
}

impl Frames {
    /// Waits for the next frame. Returns `None` when all senders are gone.
    async fn next(&mut self) -> Option<Vec<u8>> {
        Some(self.0.recv().await?.0)
    }

    /// Returns the next frame, if one waits.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn try_next(&mut self) -> Option<Vec<u8>> {
        Some(self.0.try_recv().ok()?.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn answers_have_room_that_data_has_not() {
        let (queue, mut frames) = queue(8 * (4 + OVERHEAD));
        for n in 0..10 {
            queue.relay(&[n; 4]);
        }
        queue.answer(&[42; 3]);
        let sent: Vec<_> = std::iter::from_fn(|| frames.try_next()).collect();
        let data = (0..6).map(|n| vec![n; 4]);
        assert_eq!(sent, data.chain([vec![42, 42, 42, 0]]).collect::<Vec<_>>());
        assert_eq!(
            queue.room.available_permits(),
            queue.size,
            "all room is back"
        );
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let (queue, frames) = queue(64 << 20);
        // This is more than the kernel's buffers hold.
        for _ in 0..1000 {
            queue.answer(&[0; 32_000]);
        }
        assert!(!write(&mut stream, frames, Duration::from_millis(100)).await);
        assert_eq!(
            queue.room.available_permits(),
            queue.size,
            "nothing waits after the end"
        );
    }

    #[test]
    fn a_frame_that_never_ends_holds_what_has_arrived_and_ends_the_connection() {
        let mut assembler = Assembler::default();
        // The frame announces 65,535 bytes.
        let mut sent = assembler.take(&[0x40, 0, 0xff, 0xff], |_| {}).map(|_| 4);
        while let Ok(bytes) = sent {
            assert!(assembler.0.capacity() <= bytes, "{bytes}");
            assert!(bytes < MAX_FRAME);
            sent = assembler.take(&[7], |_| {}).map(|_| bytes + 1);
        }
    }

    proptest! {
        /// The frames do not depend on how the stream is cut.
        #[test]
        fn frames_come_out_as_they_went_in(
            lengths in prop::collection::vec(0u16..400, 0..12),
            cuts in prop::collection::vec(1usize..600, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut sent = Vec::new();
            for len in lengths {
                let mut frame = vec![0x40, 1];
                frame.extend(len.to_be_bytes());
                frame.resize(4 + usize::from(len), 9);
                stream.extend(&frame);
                frame::pad(&mut stream, frame.len());
                sent.push(frame);
            }
            let (mut assembler, mut seen, mut count) = (Assembler::default(), Vec::new(), 0);
            let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                count += assembler.take(now, |frame| seen.push(frame.to_vec())).unwrap();
                rest = later;
            }
            prop_assert!(assembler.is_empty());
            prop_assert_eq!(count, sent.len());
            prop_assert_eq!(seen, sent);
        }
    }
}
