//! The server of AutoNAT v2: dials peers that ask for it at their own address, so that they know
//! whether others reach them there (libp2p specification `autonat/autonat-v2.md`).
//!
//! libp2p's own server dials wherever it is told to. What may be dialled is decided in
//! [`dial_back`](crate::core::dial_back); nothing else on a server dials, see
//! [`AutonatServer::handle_pending_outbound_connection`].

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    task::{Context, Poll},
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
        CloseConnection, ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::timeout;

use super::{
    metrics::Metrics,
    pool::{Place, Pool, Pools, Refusals},
    rate_limiter::{RateLimiter, Refill},
    settings::Settings,
    swarm::ip_of,
};
use crate::{
    arriving,
    core::{
        autonat::{self, Dialled, Response},
        dial_back::Server,
        quota::Holder,
    },
    native::behaviours::{
        exchange::{self, News, Next},
        forwarded::Forwarded,
    },
    swarm::substreams::{OpenId, SubstreamEvent, SubstreamHandler, Substreams},
};

/// How long a dial may take, handshake included. libp2p's clients wait ten seconds for an answer in
/// all, and ask again and again for what they get none of.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a client may take to say what it wants, to take the proof, and to take the answer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(crate) struct AutonatServer {
    streams: Substreams,
    server: Server,
    requests: Pool,
    tests: Pool,
    rate: RateLimiter,
    settings: Settings,
    refusals: Refusals,
    forwarded: Forwarded,
    metrics: Metrics,
    /// Where those who have connected to us are seen.
    observed: HashMap<ConnectionId, Multiaddr>,
    /// Tests by the connection that is being made.
    dialling: HashMap<ConnectionId, Test>,
    /// Tests whose connection is there, by the stream for the proof.
    opening: HashMap<OpenId, (ConnectionId, Test)>,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    /// What the swarm has not been told yet.
    news: VecDeque<News>,
}

/// A client that asks.
struct Client {
    peer: PeerId,
    observed: Multiaddr,
    stream: Stream,
    /// Among the requests, until it is answered or dialled.
    place: Place,
}

/// A client that is dialled.
struct Test {
    peer: PeerId,
    stream: Stream,
    place: Place,
    /// Which address of the request it is.
    index: usize,
    nonce: u64,
}

/// What comes next.
enum Step {
    /// A client has said what it wants.
    Asked(Client, io::Result<Vec<u8>>),
    /// The proof was taken or not, on this connection.
    Proven(ConnectionId, Test, Dialled),
    Answered,
}

impl AutonatServer {
    /// `own` are the sockets of other services of this server, and where others see it.
    pub(crate) fn new(own: Vec<SocketAddr>, pools: &Pools, metrics: Metrics) -> Self {
        let settings = pools.settings.clone();
        let rates = move || {
            let config = &settings.now().autonat;
            Refill::new(config.per_source.get(), config.total.get())
        };
        Self {
            streams: Substreams::new([StreamProtocol::new(autonat::DIAL_REQUEST)], false),
            server: Server {
                allow_private: pools.settings.now().autonat.allow_private,
                sockets: own,
            },
            settings: pools.settings.clone(),
            requests: pools.requests.clone(),
            tests: pools.dial_backs.clone(),
            rate: RateLimiter::following(rates, Instant::now()),
            refusals: pools.refusals.clone(),
            forwarded: pools.limits.forwarded.clone(),
            metrics,
            observed: HashMap::new(),
            dialling: HashMap::new(),
            opening: HashMap::new(),
            steps: FuturesUnordered::new(),
            news: VecDeque::new(),
        }
    }

    /// Others see this server at `announced` too.
    pub(crate) fn announced(&mut self, announced: impl Iterator<Item = SocketAddr>) {
        for socket in announced {
            if !self.server.sockets.contains(&socket) {
                self.server.sockets.push(socket);
            }
        }
    }

    fn on_stream(&mut self, event: SubstreamEvent) {
        match event {
            SubstreamEvent::Inbound {
                peer,
                connection,
                stream,
                ..
            } => self.on_request(peer, connection, stream),
            SubstreamEvent::Opened { id, result } => {
                let Some((connection, test)) = self.opening.remove(&id) else {
                    return;
                };
                let prove = async move {
                    let taken = match result {
                        Ok(stream) => timeout(MESSAGE_TIMEOUT, prove(stream, test.nonce)).await,
                        Err(_) => Ok(Ok(false)),
                    };
                    let dialled = match taken {
                        Ok(Ok(true)) => Dialled::Reached,
                        _ => Dialled::Unproven,
                    };
                    Step::Proven(connection, test, dialled)
                };
                self.steps.push(prove.boxed());
            }
            SubstreamEvent::Lane { .. } => {}
        }
    }

    fn on_request(&mut self, peer: PeerId, connection: ConnectionId, mut stream: Stream) {
        // Over a connection that we made nobody has a reason to ask.
        let Some(observed) = self.observed.get(&connection).cloned() else {
            return;
        };
        // Behind a proxy nobody's own address is seen.
        if self.forwarded.is_proxy(&observed) {
            return self.metrics.autonat("rejected");
        }
        let Ok(place) = self.requests.take(holder(peer, &observed)) else {
            return self.metrics.autonat("rejected");
        };
        let read = async move {
            let read = arriving::read_message(&mut stream, autonat::MAX_REQUEST);
            let request = timeout(MESSAGE_TIMEOUT, read).await;
            let client = Client {
                peer,
                observed,
                stream,
                place,
            };
            Step::Asked(client, request.unwrap_or_else(|late| Err(late.into())))
        };
        self.steps.push(read.boxed());
    }

    fn on_step(&mut self, step: Step) {
        match step {
            // Dropping its stream says it.
            Step::Asked(_, Err(_)) => self.metrics.autonat("failed"),
            Step::Asked(client, Ok(request)) => self.on_asked(client, &request),
            Step::Proven(connection, test, dialled) => {
                self.news.push_back(ToSwarm::CloseConnection {
                    peer_id: test.peer,
                    connection: CloseConnection::One(connection),
                });
                self.tested(test, dialled);
            }
            Step::Answered => {}
        }
    }

    /// Dials the client, or says that it is not dialled.
    fn on_asked(&mut self, client: Client, request: &[u8]) {
        let Client {
            peer,
            observed,
            stream,
            place,
        } = client;
        let Some(request) = autonat::read_request(request) else {
            return self.answer(stream, place, Response::Rejected);
        };
        let holder = holder(peer, &observed);
        self.server.allow_private = self.settings.now().autonat.allow_private;
        let addresses = &request.addresses;
        let Some((index, target)) = self.server.choose(addresses, &peer, &observed) else {
            self.refusals.tell("dial_back", "target", holder.ip);
            return self.answer(stream, place, Response::Refused);
        };
        let now = Instant::now();
        if !holder.ip.is_some_and(|ip| self.rate.allow(ip, now)) {
            self.refusals.tell("dial_back", "rate", holder.ip);
            return self.answer(stream, place, Response::Rejected);
        }
        let Ok(place) = self.tests.take(holder) else {
            return self.answer(stream, place, Response::Rejected);
        };
        // The specification: a port that the client has sent to would be reached through its NAT
        // by accident.
        let opts = DialOpts::peer_id(peer)
            .addresses(vec![target])
            .condition(PeerCondition::Always)
            .allocate_new_port()
            .build();
        let test = Test {
            peer,
            stream,
            place,
            index,
            nonce: request.nonce,
        };
        self.dialling.insert(opts.connection_id(), test);
        self.news.push_back(ToSwarm::Dial { opts });
    }

    fn tested(&mut self, test: Test, dialled: Dialled) {
        let response = Response::Tested(test.index, dialled);
        self.answer(test.stream, test.place, response);
    }

    /// Answers, and gives the place back when that is done.
    fn answer(&mut self, mut stream: Stream, place: Place, response: Response) {
        self.metrics.autonat(match response {
            Response::Rejected => "rejected",
            Response::Refused => "refused",
            Response::Tested(_, Dialled::Reached) => "reached",
            Response::Tested(_, Dialled::Unreached) => "unreached",
            Response::Tested(_, Dialled::Unproven) => "unproven",
        });
        let answer = async move {
            let send = async {
                stream.write_all(&autonat::response(response)).await?;
                stream.close().await
            };
            // Whoever has gone needs no answer.
            let _ = timeout(MESSAGE_TIMEOUT, send).await;
            drop(place);
            Step::Answered
        };
        self.steps.push(answer.boxed());
    }
}

impl NetworkBehaviour for AutonatServer {
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

    /// Nothing but a test may dial, whichever part of the server wants to.
    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match self.dialling.contains_key(&connection) {
            true => Ok(Vec::new()),
            false => Err(ConnectionDenied::new(NoTest)),
        }
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
            FromSwarm::NewListenAddr(new) => self.server.sockets.extend(socket(new.addr)),
            FromSwarm::ExpiredListenAddr(old) => {
                // One of them: QUIC and TCP may share an address.
                let sockets = &mut self.server.sockets;
                let same = |known: &SocketAddr| socket(old.addr) == Some(*known);
                if let Some(at) = sockets.iter().position(same) {
                    sockets.swap_remove(at);
                }
            }
            FromSwarm::ConnectionEstablished(new) if new.endpoint.is_dialer() => {
                if let Some(test) = self.dialling.remove(&new.connection_id) {
                    let protocol = StreamProtocol::new(autonat::DIAL_BACK);
                    let id = self.streams.open(test.peer, new.connection_id, protocol);
                    self.opening.insert(id, (new.connection_id, test));
                }
            }
            FromSwarm::ConnectionEstablished(new) => {
                let observed = new.endpoint.get_remote_address().clone();
                self.observed.insert(new.connection_id, observed);
            }
            FromSwarm::ConnectionClosed(old) => _ = self.observed.remove(&old.connection_id),
            FromSwarm::DialFailure(failed) => {
                if let Some(test) = self.dialling.remove(&failed.connection_id) {
                    match failed.error {
                        // A limit of ours, which says nothing about the client.
                        DialError::Denied { .. } => {
                            self.answer(test.stream, test.place, Response::Rejected);
                        }
                        _ => self.tested(test, Dialled::Unreached),
                    }
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
        loop {
            if let Some(news) = self.news.pop_front() {
                return Poll::Ready(news);
            }
            match exchange::poll(&mut self.streams, cx) {
                Poll::Ready(Next::Event(event)) => {
                    self.on_stream(event);
                    continue;
                }
                Poll::Ready(Next::News(news)) => return Poll::Ready(news),
                Poll::Pending => {}
            }
            match self.steps.poll_next_unpin(cx) {
                Poll::Ready(Some(step)) => self.on_step(step),
                _ => return Poll::Pending,
            }
        }
    }
}

/// Says a nonce; tells whether the client has taken it.
async fn prove(mut stream: Stream, nonce: u64) -> io::Result<bool> {
    stream.write_all(&autonat::dial_back(nonce)).await?;
    stream.flush().await?;
    let answer = arriving::read_message(&mut stream, autonat::MAX_PROOF_ANSWER).await?;
    Ok(autonat::is_taken(&answer))
}

fn holder(peer: PeerId, observed: &Multiaddr) -> Holder {
    Holder {
        ip: ip_of(observed),
        peer: Some(peer),
    }
}

/// Where a listener is.
pub(crate) fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let port = address.iter().find_map(|protocol| match protocol {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    });
    Some(SocketAddr::new(ip_of(address)?, port?))
}

#[derive(Debug)]
struct NoTest;

impl fmt::Display for NoTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a server dials for tests of AutoNAT only")
    }
}

impl std::error::Error for NoTest {}
