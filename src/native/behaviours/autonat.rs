//! The client of AutoNAT v2. It has servers, which are mostly relays, dial the addresses of this
//! peer from elsewhere. It tells the swarm which addresses lead to this peer, and which no longer
//! do.
//!
//! libp2p's own client tests each address only once. Here,
//! [`reachability`](crate::core::reachability) decides which address is tested when, and this
//! module has the streams.
//!
//! Only `throughline serve` serves AutoNAT, and peers do not. It would not suffice that a peer
//! dials from another port than that of its one socket, because a peer does not know its place in
//! the network. It may be in the network of the peer that asks, or behind the same carrier, and
//! reach addresses that nobody else can reach. Such an answer would be worse than none.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{
    AsyncWriteExt as _, FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered,
};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};
use tokio::time::{Sleep, sleep, timeout};

use super::exchange::{self, News, Next};
use crate::{
    arriving,
    core::{
        autonat::{self, Answer, Outcome},
        reachability::{Change, Reachability},
    },
    swarm::substreams::{OpenId, SubstreamEvent, SubstreamHandler, Substreams},
};

/// How long a test may take. libp2p's servers give a dial ten seconds, and ask for data before it.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a proof may take once its stream is open.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// The most proofs that are read at a time. More are refused. Each test has one proof.
const MAX_PROOFS: usize = 16;

/// The nonces of the tests under way, and whether a server has proved each of them.
type Nonces = Arc<Mutex<HashMap<u64, bool>>>;

/// The client of AutoNAT v2. See the documentation of the module.
pub(crate) struct AutonatClient {
    streams: Substreams,
    known: Reachability,
    /// The peers that say they serve AutoNAT.
    serving: HashSet<PeerId>,
    /// The connections that this peer made, in their order. Circuits are not among them.
    dialled: Vec<(PeerId, ConnectionId, Multiaddr)>,
    /// The connections that others made. Circuits are not among them.
    accepted: HashSet<ConnectionId>,
    nonces: Nonces,
    /// The address that the router forwards to this peer.
    mapped: Option<Multiaddr>,
    /// The events about that address that the swarm has not been told yet.
    news: VecDeque<News>,
    opening: HashMap<OpenId, (u64, PeerId, Multiaddr)>,
    tests: FuturesUnordered<BoxFuture<'static, (u64, PeerId, Outcome)>>,
    proofs: FuturesUnordered<BoxFuture<'static, ()>>,
    start: Instant,
    timer: Pin<Box<Sleep>>,
    waker: Option<Waker>,
}

impl AutonatClient {
    /// Makes a client. `retry` is the pause after a test that fails. Other pauses are multiples of
    /// it. Needs a Tokio runtime.
    pub(crate) fn new(retry: Duration) -> Self {
        let inbound = StreamProtocol::new(autonat::DIAL_BACK);
        Self {
            streams: Substreams::new([inbound], false),
            known: Reachability::new(retry),
            serving: HashSet::new(),
            dialled: Vec::new(),
            accepted: HashSet::new(),
            nonces: Nonces::default(),
            mapped: None,
            news: VecDeque::new(),
            opening: HashMap::new(),
            tests: FuturesUnordered::new(),
            proofs: FuturesUnordered::new(),
            start: Instant::now(),
            timer: Box::pin(sleep(Duration::ZERO)),
            waker: None,
        }
    }

    /// Takes note of the address that the router forwards to this peer. It becomes a candidate like
    /// an address at which others see this peer.
    pub(crate) fn set_mapped(&mut self, mapped: Option<SocketAddr>) {
        // All UDP goes over one socket, so the mapped address takes QUIC.
        let mapped = mapped.map(|addr| {
            let address = Multiaddr::from(addr.ip()).with(Protocol::Udp(addr.port()));
            address.with(Protocol::QuicV1)
        });
        if self.mapped == mapped {
            return;
        }
        let before = std::mem::replace(&mut self.mapped, mapped.clone());
        let ended = before.map(ToSwarm::ExternalAddrExpired);
        let begun = mapped.map(ToSwarm::NewExternalAddrCandidate);
        self.news.extend(ended.into_iter().chain(begun));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes note of whether a peer says that it serves AutoNAT.
    pub(crate) fn identified(&mut self, peer: PeerId, serves: bool) {
        if !serves {
            self.serving.remove(&peer);
        } else if self.dialled.iter().any(|(p, ..)| *p == peer) {
            self.serving.insert(peer);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Begins the tests that are due.
    fn begin_tests(&mut self, now: Duration) {
        let serving = self.dialled.iter();
        let serving = serving.filter(|(peer, ..)| self.serving.contains(peer));
        let servers: Vec<_> = serving.map(|(peer, _, at)| (*peer, at.clone())).collect();
        while let Ok(nonce) = getrandom::u64() {
            let Some(test) = self.known.test(now, &servers, nonce) else {
                return;
            };
            let of = |(peer, ..): &&(PeerId, _, _)| *peer == test.server;
            if let Some((peer, connection, _)) = self.dialled.iter().find(of) {
                let protocol = StreamProtocol::new(autonat::DIAL_REQUEST);
                let id = self.streams.open(*peer, *connection, protocol);
                self.opening.insert(id, (nonce, *peer, test.address));
                lock(&self.nonces).insert(nonce, false);
            }
        }
    }

    fn on_stream(&mut self, event: SubstreamEvent) {
        match event {
            SubstreamEvent::Opened { id, result } => {
                let Some((nonce, server, address)) = self.opening.remove(&id) else {
                    return;
                };
                let test = async move {
                    let Ok(stream) = result else {
                        return (nonce, server, Outcome::Unknown);
                    };
                    let asked = timeout(TEST_TIMEOUT, ask(stream, &address, nonce)).await;
                    let outcome = asked.ok().and_then(Result::ok);
                    (nonce, server, outcome.unwrap_or(Outcome::Unknown))
                };
                self.tests.push(test.boxed());
            }
            // A proof over a connection that this peer made, or over a circuit, would prove
            // nothing.
            SubstreamEvent::Inbound {
                connection, stream, ..
            } if self.accepted.contains(&connection) && self.proofs.len() < MAX_PROOFS => {
                let proof = timeout(PROOF_TIMEOUT, take_proof(stream, self.nonces.clone()));
                self.proofs.push(proof.map(|_| ()).boxed());
            }
            SubstreamEvent::Inbound { .. } | SubstreamEvent::Lane { .. } => {}
        }
    }

    fn on_tested(&mut self, nonce: u64, server: PeerId, outcome: Outcome) -> Option<Change> {
        let proven = lock(&self.nonces).remove(&nonce).unwrap_or(false);
        let outcome = match outcome {
            // The word of the server alone proves nothing.
            Outcome::Reached if !proven => Outcome::Unknown,
            outcome => outcome,
        };
        let now = self.start.elapsed();
        self.known.tested(now, nonce, server, outcome)
    }

    /// Does the work that is due, and sets the timer for the next.
    fn advance(&mut self, cx: &mut Context<'_>) -> Option<Change> {
        loop {
            let now = self.start.elapsed();
            if let Some(change) = self.known.expired(now) {
                return Some(change);
            }
            self.begin_tests(now);
            let wake = self.known.wake(now)?;
            self.timer.as_mut().reset((self.start + wake).into());
            if self.timer.poll_unpin(cx).is_pending() {
                return None;
            }
        }
    }
}

impl NetworkBehaviour for AutonatClient {
    type ConnectionHandler = SubstreamHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.streams
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.streams
            .handle_established_outbound_connection(connection, peer, remote, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::NewExternalAddrCandidate(candidate) => {
                self.known.add(self.start.elapsed(), candidate.addr);
            }
            FromSwarm::ExternalAddrExpired(expired) => self.known.forget(expired.addr),
            FromSwarm::ConnectionEstablished(new) if !new.endpoint.is_relayed() => {
                let connection = new.connection_id;
                if new.endpoint.is_dialer() {
                    let remote = new.endpoint.get_remote_address().clone();
                    self.dialled.push((new.peer_id, connection, remote));
                } else {
                    self.accepted.insert(connection);
                }
            }
            FromSwarm::ConnectionClosed(old) => {
                self.accepted.remove(&old.connection_id);
                self.dialled.retain(|(_, c, _)| *c != old.connection_id);
                if !self.dialled.iter().any(|(peer, ..)| *peer == old.peer_id) {
                    self.serving.remove(&old.peer_id);
                }
            }
            _ => {}
        }
        self.streams.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.streams
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        if let Some(news) = self.news.pop_front() {
            return Poll::Ready(news);
        }
        let change = loop {
            match exchange::poll(&mut self.streams, cx) {
                Poll::Ready(Next::Event(event)) => {
                    self.on_stream(event);
                    continue;
                }
                Poll::Ready(Next::News(news)) => return Poll::Ready(news),
                Poll::Pending => {}
            }
            while let Poll::Ready(Some(())) = self.proofs.poll_next_unpin(cx) {}
            if let Poll::Ready(Some((nonce, server, outcome))) = self.tests.poll_next_unpin(cx) {
                match self.on_tested(nonce, server, outcome) {
                    Some(change) => break change,
                    None => continue,
                }
            }
            let requests = self.opening.len();
            if let Some(change) = self.advance(cx) {
                break change;
            }
            if self.opening.len() == requests {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        Poll::Ready(match change {
            Change::Confirmed(address) => ToSwarm::ExternalAddrConfirmed(address),
            Change::Lost(address) => ToSwarm::ExternalAddrExpired(address),
        })
    }
}

fn lock(nonces: &Nonces) -> MutexGuard<'_, HashMap<u64, bool>> {
    nonces.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a server to dial `address`, and returns its verdict.
async fn ask(mut stream: Stream, address: &Multiaddr, nonce: u64) -> io::Result<Outcome> {
    let mut send = autonat::request(&address.to_vec(), nonce);
    // The first round is before the server wants data, the second after.
    for _ in 0..2 {
        stream.write_all(&send).await?;
        stream.flush().await?;
        let answer = arriving::read_message(&mut stream, autonat::MAX_ANSWER).await?;
        match autonat::answer(&answer).ok_or(io::ErrorKind::InvalidData)? {
            Answer::Wants(bytes) => send = autonat::data(bytes),
            Answer::Done(outcome) => {
                // The server may have closed its end already.
                let _ = stream.close().await;
                return Ok(outcome);
            }
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Reads a nonce. If it is expected, marks it as proved and answers.
async fn take_proof(mut stream: Stream, nonces: Nonces) -> io::Result<()> {
    let proof = arriving::read_message(&mut stream, autonat::MAX_PROOF).await?;
    let nonce = autonat::proof(&proof).ok_or(io::ErrorKind::InvalidData)?;
    match lock(&nonces).get_mut(&nonce) {
        Some(proven) => *proven = true,
        None => return Err(io::ErrorKind::InvalidData.into()),
    }
    stream.write_all(&autonat::PROOF_TAKEN).await?;
    stream.close().await
}

#[cfg(all(test, feature = "server"))]
mod tests;
