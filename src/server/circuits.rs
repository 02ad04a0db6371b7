//! What peers ask a relay for, and the circuits that it carries.
//!
//! A relay as libp2p has it holds back what a dialler sends behind its request until the other
//! peer has agreed, which costs half a round trip through the relay. Here it goes to the other peer
//! in one flight with the request to take the circuit in; libp2p's peers find it there when they
//! come to read. Our own diallers, which do not wait, ask by
//! [`EARLY_PROTOCOL`](crate::core::circuit::EARLY_PROTOCOL); those that wait are served alike.

use std::{
    collections::HashMap,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::try_join};
use libp2p::{PeerId, Stream, StreamProtocol, relay, swarm::ConnectionId};
use tokio::{sync::mpsc, time::timeout};

use super::{
    clients::Use,
    config::RelayLimits,
    hop::{self, MAX_MESSAGE, Request, Status},
    pool::{Place, Pool, Pools},
};
use crate::{
    core::{
        circuit::{EARLY_PROTOCOL, HOP_PROTOCOL},
        offer::OFFER_PROTOCOL,
        quota::{Holder, Refusal},
    },
    native::message,
    node::streams::{OpenError, OpenId},
};

/// How long a request, which is one flight, may take to arrive from when its stream is open, and how
/// long its answer may take to leave. One packet that is lost twice comes within it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a peer may take to agree to a circuit.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Reports that may wait; tasks wait beyond.
const REPORTS: usize = 256;
/// How long an offer and its answer may take, and how many bytes: an offer, an answer and a hundred
/// candidates each way are a quarter of that.
const OFFER_DURATION: Duration = Duration::from_secs(30);
const OFFER_BYTES: u64 = 128 * 1024;
/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// What a relay of ours carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Circuit,
    /// An offer sealed for the peer; see `native::offer`.
    Offer,
}

impl Carried {
    /// The protocols that a relay is asked by.
    pub(crate) fn protocols() -> [StreamProtocol; 3] {
        [HOP_PROTOCOL, EARLY_PROTOCOL, OFFER_PROTOCOL].map(StreamProtocol::new)
    }

    pub(crate) fn by(protocol: &StreamProtocol) -> Self {
        match protocol.as_ref() {
            OFFER_PROTOCOL => Self::Offer,
            _ => Self::Circuit,
        }
    }

    /// The protocol to the other peer.
    pub(crate) fn onward(self) -> StreamProtocol {
        match self {
            Self::Circuit => relay::STOP_PROTOCOL_NAME,
            Self::Offer => StreamProtocol::new(OFFER_PROTOCOL),
        }
    }
}

/// Who asked for what, on a stream that waits for the answer.
pub(crate) struct Asked {
    pub(crate) source: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) what: Carried,
    stream: Stream,
    /// The place of a request, until it is answered.
    place: Place,
}

impl Asked {
    /// Answers in the background.
    pub(crate) fn refuse(self, status: Status) {
        tokio::spawn(async move {
            // Of an offer, the end of the stream says it.
            if self.what == Carried::Circuit {
                let _ = answer(self.stream, &hop::hop_status(status as u64)).await;
            }
            drop(self.place);
        });
    }
}

/// What a circuit or an offer holds while it is carried: its place, and both of its peers.
#[expect(dead_code, reason = "it holds them by being there")]
pub(crate) struct Held(pub(crate) Place, pub(crate) [Option<Use>; 2]);

/// The circuits and offers under way.
pub(crate) struct Circuits {
    limits: RelayLimits,
    requests: Pool,
    circuits: Pool,
    offers: Pool,
    /// Those whose stream to the other peer is being opened.
    opening: HashMap<OpenId, (Asked, Held)>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
}

impl Circuits {
    pub(crate) fn new(limits: &RelayLimits, pools: &Pools) -> Self {
        Self {
            limits: limits.clone(),
            requests: pools.requests.clone(),
            circuits: pools.circuits.clone(),
            offers: pools.offers.clone(),
            opening: HashMap::new(),
            reports: mpsc::channel(REPORTS),
        }
    }

    /// What tasks have to tell; never ends.
    pub(crate) async fn report(&mut self) -> Report {
        match self.reports.1.recv().await {
            Some(report) => report,
            // One sender is kept beside the receiver.
            None => std::future::pending().await,
        }
    }

    /// How many circuits there are.
    pub(crate) fn taken(&self) -> usize {
        self.circuits.taken()
    }

    /// `holder` has opened a stream to ask on.
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
            // Said if it can be said at once: whoever floods us is not waited for.
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
        tokio::spawn(read_request(asked, self.reports.0.clone()));
        Ok(())
    }

    /// Takes the place of what is carried for `holder`.
    ///
    /// # Errors
    /// The limit that refuses it.
    pub(crate) fn place(&self, what: Carried, holder: Holder) -> Result<Place, Refusal> {
        match what {
            Carried::Circuit => self.circuits.take(holder),
            Carried::Offer => self.offers.take(holder),
        }
    }

    /// The stream to the other peer is being opened.
    pub(crate) fn opening(&mut self, id: OpenId, asked: Asked, held: Held) {
        self.opening.insert(id, (asked, held));
    }

    /// It is open, or never will be; gives whether a circuit fails with it.
    pub(crate) fn opened(&mut self, id: OpenId, result: Result<Stream, OpenError>) -> bool {
        let Some((asked, held)) = self.opening.remove(&id) else {
            return false;
        };
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
                tokio::spawn(async move {
                    let carried = timeout(OFFER_DURATION, carry_offer(from, to)).await;
                    tracing::debug!(?carried, "an offer has passed");
                    drop(held);
                });
            }
            Carried::Circuit => {
                let limits = self.limits.clone();
                let circuit = Circuit {
                    source,
                    from,
                    to,
                    limits,
                };
                tokio::spawn(circuit.run(held, self.reports.0.clone()));
            }
        }
        false
    }

    /// Grants the reservation that was asked for, in the words of `granted`.
    pub(crate) fn grant(&self, asked: Asked, granted: Vec<u8>) {
        let reports = self.reports.0.clone();
        tokio::spawn(async move {
            let Asked {
                source, connection, ..
            } = asked;
            if answer(asked.stream, &granted).await.is_err() {
                let _ = reports.send(Report::Untold { source, connection }).await;
            }
            drop(asked.place);
        });
    }
}

/// What the tasks of circuits tell.
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
    /// A circuit is gone, or the other peer did not agree.
    Closed {
        accepted: bool,
    },
}

/// Reads what is asked for.
async fn read_request(mut asked: Asked, reports: mpsc::Sender<Report>) {
    let request = message::read(&mut asked.stream, MAX_MESSAGE);
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

/// Passes an offer on, and what follows it.
async fn carry_offer(from: Stream, to: Stream) -> io::Result<()> {
    let (mut from_source, mut to_source) = from.split();
    let (mut from_peer, mut to_peer) = to.split();
    let carried = AtomicU64::new(0);
    let there = pump(&mut from_source, &mut to_peer, &carried, OFFER_BYTES);
    let back = pump(&mut from_peer, &mut to_source, &carried, OFFER_BYTES);
    try_join(there, back).await.map(drop)
}

/// One circuit: the streams to both peers.
struct Circuit {
    source: PeerId,
    from: Stream,
    to: Stream,
    limits: RelayLimits,
}

impl Circuit {
    /// Carries it until it ends, is worn out, or is not agreed to.
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
        let carried = AtomicU64::new(0);
        let most = match self.limits.circuit_bytes {
            0 => u64::MAX,
            most => most,
        };
        let there = async {
            to_peer
                .write_all(&hop::stop_connect(&self.source, &self.limits))
                .await?;
            pump(&mut from_source, &mut to_peer, &carried, most).await
        };
        let back = async {
            let answer = timeout(MESSAGE_TIMEOUT, message::read(&mut from_peer, MAX_MESSAGE)).await;
            let status = match answer {
                Ok(Ok(answer)) => hop::stop_status(&answer),
                Ok(Err(_)) | Err(_) => None,
            };
            let status = status.unwrap_or(Status::Failed as u64);
            let told = hop::hop_status(status);
            timeout(REQUEST_TIMEOUT, to_source.write_all(&told)).await??;
            if status != Status::Ok as u64 {
                timeout(REQUEST_TIMEOUT, to_source.close()).await??;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            *accepted = true;
            let _ = reports.send(Report::Accepted).await;
            pump(&mut from_peer, &mut to_source, &carried, most).await
        };
        try_join(there, back).await.map(drop)
    }
}

/// Moves bytes until `from` ends, flushing whenever it has nothing more at the moment.
async fn pump(
    from: &mut (impl futures::AsyncRead + Unpin),
    to: &mut (impl futures::AsyncWrite + Unpin),
    carried: &AtomicU64,
    most: u64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut chunk).now_or_never() {
            Some(read) => read?,
            None => {
                to.flush().await?;
                from.read(&mut chunk).await?
            }
        };
        if read == 0 {
            return to.close().await;
        }
        let before = carried.fetch_add(read as u64, Ordering::Relaxed);
        if before.saturating_add(read as u64) > most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        to.write_all(&chunk[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_is_worn_out() {
        let carried = AtomicU64::new(0);
        let pumped = |most| {
            let (mut from, mut to) = (&[7; 100][..], Vec::new());
            futures::executor::block_on(pump(&mut from, &mut to, &carried, most))
        };
        pumped(100).unwrap();
        assert_eq!(
            pumped(150).unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
    }
}
