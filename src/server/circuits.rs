//! Circuits for diallers that do not wait.
//!
//! A relay as libp2p has it holds back what a dialler sends behind its request until the other
//! peer has agreed, which costs half a round trip through the relay. For our own diallers, which
//! ask by [`EARLY_PROTOCOL`](crate::core::circuit::EARLY_PROTOCOL), it goes to the other peer in one flight with the request to take the
//! circuit in; libp2p's peers find it there when they come to read. The messages are those of the
//! relay specification (`relay/circuit-v2.md`).

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::try_join};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, relay, swarm::ConnectionId};
use tokio::{sync::mpsc, time::timeout};

use super::config::RelayLimits;
use crate::{
    core::{
        circuit::EARLY_PROTOCOL,
        offer::OFFER_PROTOCOL,
        protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint},
    },
    native::message,
    node::streams::{OpenError, OpenId},
};

/// How long either end may take to say what it has to.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest message taken, as in libp2p.
const MAX_MESSAGE: usize = 4096;
/// Requests that are read at once; further ones are reset.
const MAX_ASKING: usize = 1024;
/// Reports that may wait; tasks wait beyond.
const REPORTS: usize = 256;
/// How long an offer and its answer may take, and how many bytes: an offer, an answer and a hundred
/// candidates each way are a quarter of that.
const OFFER_DURATION: Duration = Duration::from_secs(30);
const OFFER_BYTES: u64 = 128 * 1024;
/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// What a relay of ours carries before the peer has agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Circuit,
    /// An offer sealed for the peer; see `native::offer`.
    Offer,
}

impl Carried {
    /// The protocol that a dialler asks by.
    pub(crate) fn protocols() -> [StreamProtocol; 2] {
        [EARLY_PROTOCOL, OFFER_PROTOCOL].map(StreamProtocol::new)
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

/// The circuits that each dialler has, of both kinds together.
#[derive(Clone)]
pub(crate) struct Room {
    total: usize,
    per_peer: usize,
    taken: Arc<Mutex<HashMap<PeerId, usize>>>,
}

impl Room {
    pub(crate) fn new(limits: &RelayLimits) -> Self {
        Self {
            total: limits.circuits.get(),
            per_peer: limits.circuits_per_peer.get(),
            taken: Arc::default(),
        }
    }

    /// Whether `peer` may have another circuit.
    pub(crate) fn has_place(&self, peer: &PeerId) -> bool {
        let taken = self.lock();
        taken.values().sum::<usize>() < self.total
            && taken.get(peer).copied().unwrap_or_default() < self.per_peer
    }

    /// Notes another circuit of `peer`; gives how many there are.
    pub(crate) fn take(&self, peer: PeerId) -> usize {
        let mut taken = self.lock();
        *taken.entry(peer).or_default() += 1;
        taken.values().sum()
    }

    /// Notes that a circuit of `peer` is gone; gives how many are left.
    pub(crate) fn give_back(&self, peer: &PeerId) -> usize {
        let mut taken = self.lock();
        if let Some(count) = taken.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(peer);
            }
        }
        taken.values().sum()
    }

    /// How many circuits there are.
    pub(crate) fn taken(&self) -> usize {
        self.lock().values().sum()
    }

    /// Keeps libp2p's relay to what the others leave.
    pub(crate) fn limiter(&self) -> Box<dyn relay::RateLimiter> {
        let room = self.clone();
        Box::new(move |peer: PeerId, _: &Multiaddr, _| room.has_place(&peer))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PeerId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The circuits of diallers that do not wait, and who could have one.
pub(crate) struct Circuits {
    limits: RelayLimits,
    pub(crate) room: Room,
    rate: Vec<Box<dyn relay::RateLimiter>>,
    /// The same for sealed offers.
    offers: Room,
    offer_rate: Vec<Box<dyn relay::RateLimiter>>,
    /// Connections that peers made, and where each comes from.
    peers: HashMap<PeerId, Vec<(ConnectionId, Multiaddr)>>,
    /// Circuits whose stream to the other peer is being opened.
    opening: HashMap<OpenId, (PeerId, Carried, Stream)>,
    /// One clone for each request that is being read.
    asking: Arc<()>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
}

impl Circuits {
    /// `rate` makes the limiters of one kind.
    pub(crate) fn new(
        limits: &RelayLimits,
        rate: impl Fn() -> Vec<Box<dyn relay::RateLimiter>>,
    ) -> Self {
        Self {
            limits: limits.clone(),
            room: Room::new(limits),
            rate: rate(),
            offers: Room::new(limits),
            offer_rate: rate(),
            peers: HashMap::new(),
            opening: HashMap::new(),
            asking: Arc::new(()),
            reports: mpsc::channel(REPORTS),
        }
    }

    pub(crate) fn connected(&mut self, peer: PeerId, connection: ConnectionId, from: &Multiaddr) {
        let known = self.peers.entry(peer).or_default();
        known.push((connection, from.clone()));
    }

    pub(crate) fn disconnected(&mut self, peer: &PeerId, connection: ConnectionId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.retain(|(id, _)| *id != connection);
            if known.is_empty() {
                self.peers.remove(peer);
            }
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

    /// `source` has opened a stream to ask on.
    pub(crate) fn ask(&self, source: PeerId, what: Carried, stream: Stream) {
        if Arc::strong_count(&self.asking) > MAX_ASKING {
            return;
        }
        let (permit, reports) = (self.asking.clone(), self.reports.0.clone());
        tokio::spawn(async move {
            read_request(source, what, stream, reports).await;
            drop(permit);
        });
    }

    /// The connection that a circuit from `source` to `destination` can go on over.
    pub(crate) fn admit(
        &mut self,
        source: PeerId,
        what: Carried,
        destination: &PeerId,
    ) -> Result<ConnectionId, Status> {
        let from = self.peers.get(&source).and_then(|known| known.first());
        let Some((_, from)) = from else {
            return Err(Status::Failed);
        };
        let now = web_time::Instant::now();
        let allowed =
            |limiter: &mut Box<dyn relay::RateLimiter>| limiter.try_next(source, from, now);
        let (room, rate) = match what {
            Carried::Circuit => (&self.room, &mut self.rate),
            Carried::Offer => (&self.offers, &mut self.offer_rate),
        };
        if !room.has_place(&source) || !rate.iter_mut().all(allowed) {
            return Err(Status::Limit);
        }
        // A peer that has come back reserves on its newest connection, and takes no circuit in on
        // another.
        let to = self.peers.get(destination).and_then(|known| known.last());
        to.map(|(connection, _)| *connection)
            .ok_or(Status::NoReservation)
    }

    /// The stream to the other peer is being opened.
    pub(crate) fn opening(&mut self, id: OpenId, source: PeerId, what: Carried, stream: Stream) {
        // From here on, so that a burst of requests stays within the limit, too.
        self.room_of(what).take(source);
        self.opening.insert(id, (source, what, stream));
    }

    fn room_of(&self, what: Carried) -> &Room {
        match what {
            Carried::Circuit => &self.room,
            Carried::Offer => &self.offers,
        }
    }

    /// It is open, or never will be; gives whether a circuit fails with it.
    pub(crate) fn opened(&mut self, id: OpenId, result: Result<Stream, OpenError>) -> bool {
        let Some((source, what, from)) = self.opening.remove(&id) else {
            return false;
        };
        match (what, result) {
            (Carried::Offer, Ok(to)) => {
                let room = self.offers.clone();
                tokio::spawn(async move {
                    let carried = timeout(OFFER_DURATION, carry_offer(from, to)).await;
                    tracing::debug!(?carried, "an offer has passed");
                    room.give_back(&source);
                });
                false
            }
            // Its stream ends with this, which is all that the offerer needs to know.
            (Carried::Offer, Err(_)) => {
                self.offers.give_back(&source);
                false
            }
            (Carried::Circuit, Ok(to)) => {
                let limits = self.limits.clone();
                let circuit = Circuit {
                    source,
                    from,
                    to,
                    limits,
                };
                tokio::spawn(circuit.run(self.reports.0.clone()));
                false
            }
            (Carried::Circuit, Err(_)) => {
                self.room.give_back(&source);
                tokio::spawn(deny(from, Status::Failed));
                true
            }
        }
    }
}

/// What the tasks of circuits tell.
#[expect(
    clippy::large_enum_variant,
    reason = "a few in one queue, most of them the large one"
)]
pub(crate) enum Report {
    /// `source` asks for a circuit to `destination`, or to pass an offer on.
    Asked {
        source: PeerId,
        what: Carried,
        destination: PeerId,
        stream: Stream,
    },
    /// The other peer has agreed.
    Accepted,
    /// The circuit of `source` is gone, or the other peer did not agree.
    Closed { source: PeerId, accepted: bool },
}

/// Reads what a dialler asks for.
async fn read_request(
    source: PeerId,
    what: Carried,
    mut stream: Stream,
    reports: mpsc::Sender<Report>,
) {
    let request = timeout(MESSAGE_TIMEOUT, message::read(&mut stream, MAX_MESSAGE)).await;
    let Ok(Ok(request)) = request else {
        return;
    };
    let Some(destination) = decode(&request).and_then(|message| message.connect_to()) else {
        return refuse(stream, what, Status::Malformed).await;
    };
    let report = Report::Asked {
        source,
        what,
        destination,
        stream,
    };
    let _ = reports.send(report).await;
}

/// What a relay answers (`relay/circuit-v2.md`, "Status codes").
#[derive(Clone, Copy)]
pub(crate) enum Status {
    Ok = 100,
    Limit = 201,
    Failed = 203,
    NoReservation = 204,
    Malformed = 400,
}

/// Refuses what was asked for.
pub(crate) async fn refuse(stream: Stream, what: Carried, status: Status) {
    match what {
        Carried::Circuit => deny(stream, status).await,
        // Dropping the stream says it.
        Carried::Offer => {}
    }
}

async fn deny(mut stream: Stream, status: Status) {
    let answer = async {
        stream.write_all(&hop_status(status as u64)).await?;
        stream.close().await
    };
    let _ = timeout(MESSAGE_TIMEOUT, answer).await;
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
    async fn run(self, reports: mpsc::Sender<Report>) {
        let source = self.source;
        let duration = self.limits.circuit_duration();
        let mut accepted = false;
        let carried = timeout(duration, self.carry(&reports, &mut accepted)).await;
        tracing::debug!(?carried, "a circuit ended");
        let _ = reports.send(Report::Closed { source, accepted }).await;
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
                .write_all(&stop_connect(&self.source, &self.limits))
                .await?;
            pump(&mut from_source, &mut to_peer, &carried, most).await
        };
        let back = async {
            let answer = timeout(MESSAGE_TIMEOUT, message::read(&mut from_peer, MAX_MESSAGE)).await;
            let status = match answer {
                Ok(Ok(answer)) => decode(&answer).and_then(|message| message.stop_status()),
                Ok(Err(_)) | Err(_) => Some(Status::Failed as u64),
            };
            let status = status.unwrap_or(Status::Failed as u64);
            to_source.write_all(&hop_status(status)).await?;
            if status != Status::Ok as u64 {
                to_source.close().await?;
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

// HopMessage { type = 1, peer = 2, limit = 4, status = 5 }; types RESERVE, CONNECT, STATUS.
// StopMessage { type = 1, peer = 2, limit = 3, status = 4 }; types CONNECT, STATUS.
const HOP_CONNECT: u64 = 1;
const HOP_STATUS: u8 = 2;
const STOP_STATUS: u64 = 1;

/// The fields of either message that matter here.
#[derive(Default)]
struct Message {
    kind: u64,
    peer: Option<PeerId>,
    status: Option<u64>,
}

impl Message {
    fn connect_to(&self) -> Option<PeerId> {
        self.peer.filter(|_| self.kind == HOP_CONNECT)
    }

    fn stop_status(&self) -> Option<u64> {
        self.status.filter(|_| self.kind == STOP_STATUS)
    }
}

fn decode(mut rest: &[u8]) -> Option<Message> {
    let mut message = Message::default();
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            8 => message.kind = take_varint(&mut rest)?,
            0x12 => {
                let mut peer = take_bytes(&mut rest)?;
                while !peer.is_empty() {
                    match take_varint(&mut peer)? {
                        0x0a => message.peer = PeerId::from_bytes(take_bytes(&mut peer)?).ok(),
                        tag => skip_field(tag, &mut peer)?,
                    }
                }
            }
            0x20 => message.status = Some(take_varint(&mut rest)?),
            tag => skip_field(tag, &mut rest)?,
        }
    }
    Some(message)
}

fn hop_status(status: u64) -> Vec<u8> {
    behind_length(&[vec![8, HOP_STATUS, 0x28], varint(status)].concat())
}

fn stop_connect(source: &PeerId, limits: &RelayLimits) -> Vec<u8> {
    let seconds = varint(limits.circuit_duration().as_secs());
    let bytes = varint(limits.circuit_bytes);
    let limit = [vec![8], seconds, vec![0x10], bytes].concat();
    let peer = field(0x12, &field(0x0a, &source.to_bytes()));
    behind_length(&[vec![8, 0], peer, field(0x1a, &limit)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_as_the_specification_has_them() {
        let peer = PeerId::random();
        let request = crate::core::circuit::connect(&peer);
        let mut stream = &request[..];
        let message = futures::executor::block_on(message::read(&mut stream, MAX_MESSAGE)).unwrap();
        assert_eq!(decode(&message).unwrap().connect_to(), Some(peer));
        assert!(decode(&[8, 1, 0x20, 100]).unwrap().stop_status() == Some(100));
        assert!(decode(&[8, 0, 0x20, 100]).unwrap().stop_status().is_none());
        assert_eq!(hop_status(100), [4, 8, 2, 0x28, 100]);
        assert_eq!(hop_status(204), [5, 8, 2, 0x28, 0xcc, 1]);
    }

    #[test]
    fn circuits_of_both_kinds_share_the_room() {
        let limits = RelayLimits {
            circuits: std::num::NonZeroUsize::new(2).unwrap(),
            circuits_per_peer: std::num::NonZeroUsize::MIN,
            ..RelayLimits::default()
        };
        let room = Room::new(&limits);
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        let mut limiter = room.limiter();
        let now = web_time::Instant::now();
        assert_eq!(room.take(a), 1);
        assert!(!limiter.try_next(a, &Multiaddr::empty(), now));
        assert!(limiter.try_next(b, &Multiaddr::empty(), now));
        assert_eq!(room.take(b), 2);
        assert!(!room.has_place(&c));
        assert_eq!(room.give_back(&a), 1);
        assert!(room.has_place(&c));
    }

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
