//! Serves the requests of peers to the relay, and carries their circuits.
//!
//! A stock libp2p relay holds back what a dialler sends after its request until the other peer has
//! agreed. That costs half a round trip through the relay. This relay sends the data to the other
//! peer at once, in one flight with the request to accept the circuit. libp2p's peers find the data
//! when they begin to read. Our own diallers do not wait for the answer, and ask by
//! [`EARLY_PROTOCOL`](crate::core::circuit::EARLY_PROTOCOL). Diallers that wait get the same
//! service.

use std::{
    collections::HashMap,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::try_join};
use libp2p::{PeerId, Stream, StreamProtocol, relay, swarm::ConnectionId};
use tokio::{sync::mpsc, time::timeout};

use super::{
    clients::Use,
    config::RelayLimits,
    hop::{self, MAX_MESSAGE, Request, Status},
    pool::{Place, Pool, Pools},
    settings::Settings,
    usage::{Account, Amounts, Tally, Usage},
    watch::Proof,
};
use crate::{
    arriving,
    core::{
        circuit::{EARLY_PROTOCOL, HOP_PROTOCOL},
        offer::OFFER_PROTOCOL,
        quota::{Holder, Refusal},
    },
    native::{runtime, trace, transports::windows::Wide},
    swarm::substreams::{OpenError, OpenId},
};

/// How long a request may take to arrive after its stream is open, and how long its answer may take
/// to leave. A request is one flight. This time is enough even if a packet is lost twice.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a peer may take to agree to a circuit.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most reports in the queue. While it is full, tasks wait.
const REPORTS: usize = 256;
/// The longest time for an offer and its answer.
const OFFER_DURATION: Duration = Duration::from_secs(30);
/// The most bytes for an offer and its answer. An offer, an answer and a hundred candidates each
/// way take a quarter of that.
const OFFER_BYTES: u64 = 128 * 1024;
/// The most bytes that are moved at a time.
const CHUNK: usize = 16 * 1024;
/// How long a peer may take to accept [`CHUNK`] bytes before the circuit ends. Peers read at once
/// what arrives, and apply their own flow control to each other. So a peer that reads nothing
/// is gone or means harm. Its unread bytes fill the relay, and stop all other data from
/// the peer at the other end.
const STALL: Duration = Duration::from_secs(30);

/// What a relay carries for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Circuit,
    /// An offer that is sealed for the peer. See `native::offer`.
    Offer,
}

impl Carried {
    /// Returns the protocols by which peers ask a relay.
    pub(crate) fn protocols() -> [StreamProtocol; 3] {
        [HOP_PROTOCOL, EARLY_PROTOCOL, OFFER_PROTOCOL].map(StreamProtocol::new)
    }

    pub(crate) fn by(protocol: &StreamProtocol) -> Self {
        match protocol.as_ref() {
            OFFER_PROTOCOL => Self::Offer,
            _ => Self::Circuit,
        }
    }

    /// Returns the protocol towards the other peer.
    pub(crate) fn onward(self) -> StreamProtocol {
        match self {
            Self::Circuit => relay::STOP_PROTOCOL_NAME,
            Self::Offer => StreamProtocol::new(OFFER_PROTOCOL),
        }
    }
}

/// A request of a peer, with the stream that waits for the answer.
pub(crate) struct Asked {
    pub(crate) source: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) what: Carried,
    stream: Stream,
    /// The place of the request, held until it is answered.
    place: Place,
}

impl Asked {
    /// Refuses the request in the background.
    pub(crate) fn refuse(self, status: Status) {
        let source = self.source;
        spawn(&source, async move {
            // For an offer, the end of the stream is the answer.
            if self.what == Carried::Circuit {
                let _ = answer(self.stream, &hop::hop_status(status as u64)).await;
            }
            drop(self.place);
        });
    }
}

/// What a circuit or an offer holds while it is carried: its place, the uses by both peers, and
/// room on both connections.
#[expect(dead_code, reason = "it holds them by being there")]
pub(crate) struct Held(
    pub(crate) Place,
    pub(crate) [Option<Use>; 2],
    pub(crate) [Option<Wide>; 2],
);

/// A request for which a stream to the other peer is being opened.
struct Opening {
    /// The other peer.
    peer: PeerId,
    asked: Asked,
    held: Held,
    proof: Proof,
}

/// The circuits and offers under way.
pub(crate) struct Circuits {
    settings: Settings,
    requests: Pool,
    circuits: Pool,
    offers: Pool,
    opening: HashMap<OpenId, Opening>,
    usage: Usage,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
}

impl Circuits {
    pub(crate) fn new(pools: &Pools, usage: Usage) -> Self {
        Self {
            settings: pools.settings.clone(),
            requests: pools.requests.clone(),
            circuits: pools.circuits.clone(),
            offers: pools.offers.clone(),
            opening: HashMap::new(),
            usage,
            reports: mpsc::channel(REPORTS),
        }
    }

    /// Waits for the next report of a task. Without a report, it waits forever.
    pub(crate) async fn report(&mut self) -> Report {
        match self.reports.1.recv().await {
            Some(report) => report,
            // The channel does not close, because one sender is kept beside the receiver.
            None => std::future::pending().await,
        }
    }

    /// Returns the number of circuits.
    pub(crate) fn taken(&self) -> usize {
        self.circuits.taken()
    }

    /// Reads a request from the stream that `holder` has opened.
    ///
    /// # Errors
    /// The limit that refuses it.
    pub(crate) fn ask(
        &self,
        holder: Holder,
        connection: ConnectionId,
        what: Carried,
        mut stream: Stream,
    ) -> Result<(), Refusal> {
        let Some(source) = holder.peer else {
            return Err(Refusal::Peer);
        };
        let place = self.requests.take(holder).inspect_err(|_| {
            // The refusal is sent only if that needs no waiting, because the peer may be flooding
            // the relay.
            let status = hop::hop_status(Status::Limit as u64);
            if what == Carried::Circuit {
                let _ = answer_to(&mut stream, &status).now_or_never();
            }
        });
        let asked = Asked {
            source,
            connection,
            what,
            place: place?,
            stream,
        };
        spawn(&source, read_request(asked, self.reports.0.clone()));
        Ok(())
    }

    /// Takes a place for what `holder` asks to carry.
    ///
    /// # Errors
    /// The limit that refuses it.
    pub(crate) fn place(&self, what: Carried, holder: Holder) -> Result<Place, Refusal> {
        match what {
            Carried::Circuit => self.circuits.take(holder),
            Carried::Offer => self.offers.take(holder),
        }
    }

    /// Records that a stream to `peer` is being opened. `proof` tells whether that peer is still
    /// there.
    pub(crate) fn opening(
        &mut self,
        id: OpenId,
        peer: PeerId,
        asked: Asked,
        held: Held,
        proof: Proof,
    ) {
        let opening = Opening {
            peer,
            asked,
            held,
            proof,
        };
        self.opening.insert(id, opening);
    }

    /// Handles the stream to the other peer, or the failure to open it. Returns whether a circuit
    /// fails with it.
    pub(crate) fn opened(&mut self, id: OpenId, result: Result<Stream, OpenError>) -> bool {
        let Some(opening) = self.opening.remove(&id) else {
            return false;
        };
        let Opening {
            peer,
            asked,
            held,
            proof,
        } = opening;
        let Ok(to) = result else {
            let fails = asked.what == Carried::Circuit;
            asked.refuse(Status::Failed);
            return fails;
        };
        let Asked {
            source,
            what,
            stream: from,
            ..
        } = asked;
        match what {
            Carried::Offer => {
                spawn(&source, async move {
                    let carried = timeout(OFFER_DURATION, carry_offer(from, to)).await;
                    tracing::debug!(?carried, "an offer has passed");
                    drop(held);
                });
            }
            Carried::Circuit => {
                let limits = self.settings.now().relay.clone();
                let one = Amounts {
                    circuits: 1,
                    ..Amounts::default()
                };
                // The peer with the reservation is the one whom the relay serves.
                let tally = self.usage.tally(Account::of(peer), one);
                let circuit = Circuit {
                    source,
                    from,
                    to,
                    limits,
                    proof,
                    tally,
                };
                spawn(&source, circuit.run(held, self.reports.0.clone()));
            }
        }
        false
    }

    /// Sends `message` over `stream`, and waits until the peer has taken it.
    pub(crate) fn tell(peer: &PeerId, mut stream: Stream, message: Vec<u8>) {
        spawn(peer, async move {
            let told = async {
                answer_to(&mut stream, &message).await?;
                // The peer agrees to the protocol after that. A stream that is gone by then would
                // make it drop what it has got.
                stream.read(&mut [0]).await
            };
            // A peer that is not told in time finds another relay when this one is gone.
            let _ = timeout(REQUEST_TIMEOUT, told).await;
        });
    }

    /// Grants the reservation that was asked for. `granted` is the encoded answer.
    pub(crate) fn grant(&self, asked: Asked, granted: Vec<u8>) {
        let reports = self.reports.0.clone();
        let source = asked.source;
        spawn(&source, async move {
            let connection = asked.connection;
            if answer(asked.stream, &granted).await.is_err() {
                let _ = reports.send(Report::Untold { source, connection }).await;
            }
            drop(asked.place);
        });
    }
}

/// Runs `task` in the background. Its lines in the log name the peer that asked for it.
fn spawn(source: &PeerId, task: impl Future<Output = ()> + Send + 'static) {
    trace::connection(source).in_scope(|| runtime::spawn(task));
}

/// A report of a background task.
#[expect(
    clippy::large_enum_variant,
    reason = "a few in one queue, most of them the large one"
)]
pub(crate) enum Report {
    Asked(Asked, Request),
    /// The peer could not be told of its reservation.
    Untold {
        source: PeerId,
        connection: ConnectionId,
    },
    /// The other peer has agreed to a circuit.
    Accepted,
    /// A circuit has ended, or the other peer did not agree to it.
    Closed {
        accepted: bool,
    },
}

/// Reads a request and reports it.
async fn read_request(mut asked: Asked, reports: mpsc::Sender<Report>) {
    let request = arriving::read_message(&mut asked.stream, MAX_MESSAGE);
    let Ok(Ok(request)) = timeout(REQUEST_TIMEOUT, request).await else {
        return;
    };
    match Request::decode(&request) {
        Some(request) => _ = reports.send(Report::Asked(asked, request)).await,
        None => asked.refuse(Status::Malformed),
    }
}

async fn answer(mut stream: Stream, message: &[u8]) -> io::Result<()> {
    timeout(REQUEST_TIMEOUT, answer_to(&mut stream, message)).await?
}

async fn answer_to(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.close().await
}

/// Carries an offer and the messages that follow it.
async fn carry_offer(from: Stream, to: Stream) -> io::Result<()> {
    let (mut from_source, mut to_source) = from.split();
    let (mut from_peer, mut to_peer) = to.split();
    let carried = Carriage::up_to(OFFER_BYTES, Tally::default());
    let there = pump(&mut from_source, &mut to_peer, &carried);
    let back = pump(&mut from_peer, &mut to_source, &carried);
    try_join(there, back).await.map(drop)
}

/// One circuit, with the streams to both peers.
struct Circuit {
    source: PeerId,
    from: Stream,
    to: Stream,
    limits: RelayLimits,
    proof: Proof,
    tally: Tally,
}

impl Circuit {
    /// Carries the circuit until it ends, reaches a limit, or is refused by the other peer.
    async fn run(self, held: Held, reports: mpsc::Sender<Report>) {
        let duration = self.limits.circuit_duration();
        let mut accepted = false;
        let carried = timeout(duration, self.carry(&reports, &mut accepted)).await;
        tracing::debug!(?carried, "a circuit ended");
        drop(held);
        let _ = reports.send(Report::Closed { accepted }).await;
    }

    async fn carry(self, reports: &mpsc::Sender<Report>, accepted: &mut bool) -> io::Result<()> {
        let (mut from_source, mut to_source) = self.from.split();
        let (mut from_peer, mut to_peer) = self.to.split();
        let most = match self.limits.circuit_bytes {
            0 => u64::MAX,
            most => most,
        };
        let carried = Carriage::up_to(most, self.tally);
        let there = async {
            to_peer
                .write_all(&hop::stop_connect(&self.source, &self.limits))
                .await?;
            pump(&mut from_source, &mut to_peer, &carried).await
        };
        let back = async {
            let answer = arriving::read_message(&mut from_peer, MAX_MESSAGE);
            let status = tokio::select! {
                answer = timeout(MESSAGE_TIMEOUT, answer) => match answer {
                    Ok(Ok(answer)) => hop::stop_status(&answer),
                    Ok(Err(_)) | Err(_) => None,
                },
                () = self.proof.missing() => None,
            };
            let status = status.unwrap_or(Status::Failed as u64);
            let told = hop::hop_status(status);
            timeout(REQUEST_TIMEOUT, to_source.write_all(&told)).await??;
            if status != Status::Ok as u64 {
                timeout(REQUEST_TIMEOUT, to_source.close()).await??;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            *accepted = true;
            carried.tally.begin(Instant::now());
            let _ = reports.send(Report::Accepted).await;
            pump(&mut from_peer, &mut to_source, &carried).await
        };
        try_join(there, back).await.map(drop)
    }
}

/// The bytes that a circuit or an offer has carried, in both directions together.
struct Carriage {
    bytes: AtomicU64,
    most: u64,
    tally: Tally,
}

impl Carriage {
    fn up_to(most: u64, tally: Tally) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            most,
            tally,
        }
    }

    /// Counts bytes, and fails if they are too many.
    fn count(&self, bytes: usize) -> io::Result<()> {
        let before = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if before.saturating_add(bytes as u64) > self.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.tally.carried(bytes);
        Ok(())
    }
}

/// Moves bytes until `from` ends. It flushes `to` whenever `from` has no more bytes at the moment.
async fn pump(
    from: &mut (impl futures::AsyncRead + Unpin),
    to: &mut (impl futures::AsyncWrite + Unpin),
    carried: &Carriage,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut chunk).now_or_never() {
            Some(read) => read?,
            None => {
                timeout(STALL, to.flush()).await??;
                from.read(&mut chunk).await?
            }
        };
        if read == 0 {
            return timeout(STALL, to.close()).await?;
        }
        carried.count(read)?;
        timeout(STALL, to.write_all(&chunk[..read])).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::time;

    use super::*;

    /// A writer that accepts nothing.
    struct Stalled;

    impl futures::AsyncWrite for Stalled {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_whose_receiver_takes_nothing_ends() {
        let begun = time::Instant::now();
        let carried = Carriage::up_to(1000, Tally::default());
        let pumped = pump(&mut &[7; 100][..], &mut Stalled, &carried).await;
        assert_eq!(pumped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), STALL);
    }

    #[tokio::test]
    async fn a_circuit_is_worn_out() {
        let carried = Carriage::up_to(150, Tally::default());
        let pumped = || {
            let (mut from, mut to) = (&[7; 100][..], Vec::new());
            let carried = &carried;
            async move { pump(&mut from, &mut to, carried).await }
        };
        pumped().await.unwrap();
        assert_eq!(
            pumped().await.unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
    }
}
