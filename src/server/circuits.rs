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
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use futures::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _,
    future::{BoxFuture, try_join},
    io::BufReader,
};
use libp2p::{PeerId, Stream, StreamProtocol, relay, swarm::ConnectionId};
use tokio::{sync::mpsc, time::timeout};

use super::{
    access::{
        Meter, Verdict,
        messages::{self, MAX_REQUEST},
    },
    bill::{Bill, Party},
    clients::Use,
    config::RelayLimits,
    fairness::Fairness,
    hop::{self, MAX_MESSAGE, Request, Status},
    pool::{Place, Pool, Pools},
    pump::{Bounds, pump},
    settings::Settings,
    usage::{Amounts, Usage},
    watch::Proof,
};
use crate::{
    arriving,
    core::{
        access::{self, Denial},
        circuit::{EARLY_PROTOCOL, HOP_PROTOCOL},
        directory::{self, Answer},
        offer::OFFER_PROTOCOL,
        profile,
        quota::{Holder, Refusal},
        reputation::Treatment,
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

/// What a relay carries for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Circuit,
    /// An offer that is sealed for the peer. See `native::offer`.
    Offer,
    /// Nothing: the peer shows its token, or asks for what admitted peers get.
    Access,
    /// Nothing: the peer asks what the relay says of itself.
    Profile,
    /// Nothing: the peer asks the directory.
    Directory,
}

impl Carried {
    /// Returns the protocols by which peers ask a relay.
    pub(crate) fn protocols(gives_access: bool) -> Vec<StreamProtocol> {
        let access = gives_access.then_some(access::PROTOCOL);
        let all = [
            HOP_PROTOCOL,
            EARLY_PROTOCOL,
            OFFER_PROTOCOL,
            profile::PROTOCOL,
            directory::PROTOCOL,
        ];
        let all = all.into_iter().chain(access);
        all.map(StreamProtocol::new).collect()
    }

    pub(crate) fn by(protocol: &StreamProtocol) -> Self {
        match protocol.as_ref() {
            OFFER_PROTOCOL => Self::Offer,
            access::PROTOCOL => Self::Access,
            profile::PROTOCOL => Self::Profile,
            directory::PROTOCOL => Self::Directory,
            _ => Self::Circuit,
        }
    }

    /// Returns the protocol towards the other peer.
    pub(crate) fn onward(self) -> StreamProtocol {
        match self {
            Self::Offer => StreamProtocol::new(OFFER_PROTOCOL),
            _ => relay::STOP_PROTOCOL_NAME,
        }
    }

    /// The longest request.
    fn longest(self) -> usize {
        match self {
            Self::Circuit | Self::Offer => MAX_MESSAGE,
            Self::Access => MAX_REQUEST,
            // It is empty.
            Self::Profile => 0,
            Self::Directory => directory::MAX_MESSAGE,
        }
    }
}

/// What a peer asks for on a stream of its own.
pub(crate) enum Wanted {
    Hop(Request),
    Access(messages::Request),
    Profile,
    Directory(directory::Request),
}

impl Wanted {
    fn decode(what: Carried, bytes: &[u8]) -> Option<Self> {
        match what {
            Carried::Access => messages::Request::decode(bytes).map(Self::Access),
            Carried::Profile => Some(Self::Profile),
            Carried::Directory => directory::Request::decode(bytes).map(Self::Directory),
            _ => Request::decode(bytes).map(Self::Hop),
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
            if let Some(refusal) = refusal(self.what, status) {
                let _ = answer(self.stream, &refusal).await;
            }
            drop(self.place);
        });
    }

    /// Answers a request to the directory.
    pub(crate) fn answer(self, message: &Answer) {
        let (source, message) = (self.source, message.encode());
        spawn(&source, async move {
            let _ = answer(self.stream, &message).await;
            drop(self.place);
        });
    }

    /// Returns the stream of the request, which is answered by that.
    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Refuses the request because of the rules of access.
    pub(crate) fn deny(self, denial: Denial) {
        match self.what {
            Carried::Access => {
                let source = self.source;
                spawn(&source, async move {
                    let _ = answer(self.stream, &messages::answer(&Err(denial))).await;
                    drop(self.place);
                });
            }
            Carried::Directory => self.answer(&Answer::Refused(match denial {
                Denial::Access => directory::Refusal::Denied,
                Denial::Quota(_) | Denial::Limit => directory::Refusal::Limit,
            })),
            _ => self.refuse(match denial {
                Denial::Access => Status::Denied,
                Denial::Quota(_) => Status::Quota,
                Denial::Limit => Status::Limit,
            }),
        }
    }
}

/// Returns the message that refuses a request. Else the end of the stream is the answer.
fn refusal(what: Carried, status: Status) -> Option<Vec<u8>> {
    match what {
        Carried::Circuit => Some(hop::hop_status(status as u64)),
        Carried::Access => Some(messages::answer(&Err(Denial::Limit))),
        Carried::Directory => Some(Answer::Refused(directory::Refusal::Limit).encode()),
        Carried::Offer | Carried::Profile => None,
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
    asked: Asked,
    held: Held,
    parties: Parties,
    treatment: Treatment,
    proof: Proof,
}

/// The dialler, and the peer with the reservation.
pub(crate) type Parties = (Party, Party);

/// The circuits and offers under way.
pub(crate) struct Circuits {
    settings: Settings,
    requests: Pool,
    circuits: Pool,
    offers: Pool,
    opening: HashMap<OpenId, Opening>,
    fairness: Fairness,
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
            fairness: pools.fairness.clone(),
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
            if let Some(refusal) = refusal(what, Status::Limit) {
                let _ = answer_to(&mut stream, &refusal).now_or_never();
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
            Carried::Access | Carried::Profile | Carried::Directory => Err(Refusal::Peer),
        }
    }

    /// Records that a stream to the other peer is being opened. `proof` tells whether that peer is
    /// still there.
    pub(crate) fn opening(
        &mut self,
        id: OpenId,
        asked: Asked,
        (held, parties, treatment): (Held, Parties, Treatment),
        proof: Proof,
    ) {
        let opening = Opening {
            asked,
            held,
            parties,
            treatment,
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
            asked,
            held,
            mut parties,
            treatment,
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
        let (fairness, usage) = (&self.fairness, &self.usage);
        match what {
            Carried::Offer => {
                let bill = Bill::new(parties, fairness, usage, Amounts::default());
                spawn(&source, async move {
                    let carried = timeout(OFFER_DURATION, carry_offer(from, to, &bill)).await;
                    tracing::debug!(?carried, "an offer has passed");
                    drop(held);
                });
            }
            _ => {
                let now = self.settings.now();
                // The dialler chooses when the circuit begins, so these rates count from then on.
                let meters = &mut parties.0.meters;
                meters.extend(Meter::of_rate(now.traffic.per_circuit));
                if treatment == Treatment::Slow {
                    meters.extend(Meter::of_rate(now.reputation.slow_rate));
                }
                let one = Amounts {
                    circuits: 1,
                    ..Amounts::default()
                };
                let circuit = Circuit {
                    source,
                    from,
                    to,
                    limits: now.relay.clone(),
                    bill: Bill::new(parties, fairness, usage, one),
                    proof,
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

    /// Waits in the background for the verdict on a request.
    pub(crate) fn await_verdict(
        &self,
        asked: Asked,
        wanted: Wanted,
        verdict: BoxFuture<'static, Verdict>,
    ) {
        let reports = self.reports.0.clone();
        let source = asked.source;
        spawn(&source, async move {
            let verdict = verdict.await;
            let _ = reports.send(Report::Judged(asked, wanted, verdict)).await;
        });
    }

    /// Grants what was asked for. `granted` is the encoded answer.
    pub(crate) fn grant(&self, asked: Asked, granted: Vec<u8>) {
        let reports = self.reports.0.clone();
        let source = asked.source;
        spawn(&source, async move {
            let connection = asked.connection;
            let is_told = answer(asked.stream, &granted).await.is_ok();
            if !is_told && asked.what != Carried::Profile {
                let _ = reports.send(Report::Untold { source, connection }).await;
            }
            drop(asked.place);
        });
    }
}

/// Runs `task` in the background. Its lines in the log name the peer that asked for it.
pub(super) fn spawn(source: &PeerId, task: impl Future<Output = ()> + Send + 'static) {
    trace::connection(source).in_scope(|| runtime::spawn(task));
}

/// A report of a background task.
pub(crate) enum Report {
    Asked(Asked, Wanted),
    /// There is a verdict on a request that waited for one.
    Judged(Asked, Wanted, Verdict),
    /// The peer could not be told of its reservation.
    Untold {
        source: PeerId,
        connection: ConnectionId,
    },
    /// The other peer has agreed to a circuit.
    Accepted,
    /// A circuit has ended, or the other peer did not agree to it.
    Closed {
        source: PeerId,
        end: End,
    },
}

/// Reads a request and reports it.
async fn read_request(mut asked: Asked, reports: mpsc::Sender<Report>) {
    let request = arriving::read_message(&mut asked.stream, asked.what.longest());
    let Ok(Ok(request)) = timeout(REQUEST_TIMEOUT, request).await else {
        return;
    };
    match Wanted::decode(asked.what, &request) {
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

/// Carries an offer and the messages that follow it. The peer agrees to the offer by its first bytes.
async fn carry_offer(from: Stream, to: Stream, bill: &Bill) -> io::Result<()> {
    let (mut from_source, mut to_source) = from.split();
    let (from_peer, mut to_peer) = to.split();
    let mut from_peer = BufReader::new(from_peer);
    let carried = AtomicU64::new(0);
    let bounds = Bounds {
        carried: &carried,
        most: OFFER_BYTES,
        bill,
    };
    let there = pump(&mut from_source, &mut to_peer, bounds);
    let back = async {
        if !from_peer.fill_buf().await?.is_empty() {
            bill.agree()?;
        }
        pump(&mut from_peer, &mut to_source, bounds).await
    };
    try_join(there, back).await.map(drop)
}

/// How far a circuit has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The other peer has not answered.
    Lost,
    /// The other peer has said no.
    Refused,
    Accepted,
}

/// One circuit, with the streams to both peers.
struct Circuit {
    source: PeerId,
    from: Stream,
    to: Stream,
    limits: RelayLimits,
    bill: Bill,
    proof: Proof,
}

impl Circuit {
    /// Carries the circuit until it ends, reaches a limit, or is refused by the other peer.
    async fn run(self, held: Held, reports: mpsc::Sender<Report>) {
        let source = self.source;
        let duration = self.limits.circuit_duration();
        let mut end = End::Lost;
        let carried = timeout(duration, self.carry(&reports, &mut end)).await;
        tracing::debug!(?carried, "a circuit ended");
        drop(held);
        let _ = reports.send(Report::Closed { source, end }).await;
    }

    async fn carry(self, reports: &mpsc::Sender<Report>, end: &mut End) -> io::Result<()> {
        let (mut from_source, mut to_source) = self.from.split();
        let (mut from_peer, mut to_peer) = self.to.split();
        let carried = AtomicU64::new(0);
        let bounds = Bounds {
            carried: &carried,
            most: match self.limits.circuit_bytes {
                0 => u64::MAX,
                most => most,
            },
            bill: &self.bill,
        };
        let there = async {
            to_peer
                .write_all(&hop::stop_connect(&self.source, &self.limits))
                .await?;
            pump(&mut from_source, &mut to_peer, bounds).await
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
            if status.is_some_and(|status| status != Status::Ok as u64) {
                *end = End::Refused;
            }
            let status = status.unwrap_or(Status::Failed as u64);
            let told = hop::hop_status(status);
            timeout(REQUEST_TIMEOUT, to_source.write_all(&told)).await??;
            if status != Status::Ok as u64 {
                timeout(REQUEST_TIMEOUT, to_source.close()).await??;
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            *end = End::Accepted;
            self.bill.tally().begin(Instant::now());
            self.bill.agree()?;
            let _ = reports.send(Report::Accepted).await;
            pump(&mut from_peer, &mut to_source, bounds).await
        };
        try_join(there, back).await.map(drop)
    }
}
