//! A relay and plain rust-libp2p peers that speak `/webrtc` over it. All are on loopback.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{
    StreamExt,
    channel::{mpsc, oneshot},
    future::Either,
};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, Transport,
    core::{
        Endpoint,
        muxing::StreamMuxerBox,
        transport::PortUse,
        transport::choice::OrTransport,
        upgrade::{ReadyUpgrade, Version},
    },
    identity::Keypair,
    noise, relay,
    swarm::{
        self, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::toggle::Toggle,
        dial_opts::{DialOpts, PeerCondition},
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
    tcp, yamux,
};
use throughline::rtc;

use super::common::PATIENCE;

/// An event that a peer's swarm reported.
#[derive(Debug)]
pub enum Seen {
    Listening(Multiaddr),
    Connected(PeerId, ConnectionId, Multiaddr),
    Closed(ConnectionId),
    DialFailed(String),
    IncomingFailed(String),
    Path(ConnectionId, rtc::CandidatePair),
    Stream(Stream),
}

enum Command {
    Listen(Multiaddr),
    Dial(PeerId, Multiaddr),
    Open(PeerId, ConnectionId, oneshot::Sender<Stream>),
    Close(ConnectionId),
}

/// A running peer.
pub struct Node {
    pub id: PeerId,
    commands: mpsc::UnboundedSender<Command>,
    pub seen: mpsc::UnboundedReceiver<Seen>,
}

impl Node {
    /// Starts a peer that is connected to nobody.
    pub fn start(mut config: rtc::Config) -> Self {
        // The tests ask no router for a mapping.
        config.port_mapping = false;
        Self::run(Some(config))
    }

    /// Starts a peer without `/webrtc`. Its streams are raw signalling streams.
    pub fn impostor() -> Self {
        Self::run(None)
    }

    fn run(config: Option<rtc::Config>) -> Self {
        let key = Keypair::generate_ed25519();
        let id = key.public().to_peer_id();
        let mut swarm = swarm(&key, config);
        let (commands, mut inbox) = mpsc::unbounded();
        let (outbox, seen) = mpsc::unbounded();
        tokio::spawn(async move {
            loop {
                let next = futures::future::select(inbox.next(), swarm.select_next_some());
                let seen = match next.await {
                    Either::Left((None, _)) => return,
                    Either::Left((Some(command), _)) => {
                        run(&mut swarm, command);
                        continue;
                    }
                    Either::Right((event, _)) => match event {
                        SwarmEvent::NewListenAddr { address, .. } => Seen::Listening(address),
                        SwarmEvent::ConnectionEstablished {
                            peer_id,
                            connection_id,
                            endpoint,
                            ..
                        } => Seen::Connected(
                            peer_id,
                            connection_id,
                            endpoint.get_remote_address().clone(),
                        ),
                        SwarmEvent::ConnectionClosed { connection_id, .. } => {
                            Seen::Closed(connection_id)
                        }
                        SwarmEvent::OutgoingConnectionError { error, .. } => {
                            Seen::DialFailed(format!("{error:?}"))
                        }
                        SwarmEvent::IncomingConnectionError { error, .. } => {
                            Seen::IncomingFailed(format!("{error:?}"))
                        }
                        SwarmEvent::Behaviour(PeerEvent::Rtc(rtc::Event::Path {
                            connection,
                            pair,
                            ..
                        })) => Seen::Path(connection, pair),
                        SwarmEvent::Behaviour(PeerEvent::Raw(stream)) => Seen::Stream(stream),
                        _ => continue,
                    },
                };
                if outbox.unbounded_send(seen).is_err() {
                    return;
                }
            }
        });
        Self { id, commands, seen }
    }

    fn command(&self, command: Command) {
        self.commands.unbounded_send(command).unwrap();
    }

    pub fn listen(&self, addr: Multiaddr) {
        self.command(Command::Listen(addr));
    }

    pub fn dial(&self, peer: PeerId, addr: Multiaddr) {
        self.command(Command::Dial(peer, addr));
    }

    pub fn close(&self, connection: ConnectionId) {
        self.command(Command::Close(connection));
    }

    pub async fn open(&self, peer: PeerId, connection: ConnectionId) -> Stream {
        let (reply, stream) = oneshot::channel();
        self.command(Command::Open(peer, connection, reply));
        tokio::time::timeout(PATIENCE, stream)
            .await
            .unwrap()
            .unwrap()
    }

    /// Waits for the first event that `wanted` takes, and skips the others.
    pub async fn wait<T>(&mut self, mut wanted: impl FnMut(Seen) -> Option<T>) -> T {
        let found = async {
            loop {
                let seen = self.seen.next().await.expect("swarm ended");
                if let Some(found) = wanted(seen) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("no such event was seen")
    }

    /// Waits for a `/webrtc` connection to `peer`.
    pub async fn webrtc(&mut self, peer: PeerId) -> ConnectionId {
        self.wait(|seen| match seen {
            Seen::Connected(p, id, addr) if p == peer && is_webrtc(&addr) => Some(id),
            Seen::DialFailed(error) => panic!("{error}"),
            _ => None,
        })
        .await
    }

    pub async fn stream(&mut self) -> Stream {
        self.wait(|seen| match seen {
            Seen::Stream(stream) => Some(stream),
            _ => None,
        })
        .await
    }
}

pub fn is_webrtc(addr: &Multiaddr) -> bool {
    addr.to_string().contains("/webrtc")
}

/// Starts a relay on loopback. Returns its address with its peer id.
pub async fn relay() -> Multiaddr {
    let key = Keypair::generate_ed25519();
    let id = key.public().to_peer_id();
    let config = relay::Config {
        max_circuits: 64,
        max_circuits_per_peer: 64,
        max_circuit_duration: Duration::from_secs(600),
        max_circuit_bytes: 1 << 30,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    let mut swarm = Swarm::new(plain(&key), relay::Behaviour::new(id, config), id, idle());
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(addr.clone());
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    addr.with_p2p(id).unwrap()
}

/// Starts a peer with a reservation on `relay` and a `/webrtc` listener. Returns it with its
/// address.
pub async fn listener(relay: &Multiaddr, config: rtc::Config) -> (Node, Multiaddr) {
    reserve(Node::start(config), relay).await
}

/// Starts an impostor with a reservation. Returns it with the `/webrtc` address that it claims to
/// have.
pub async fn impostor(relay: &Multiaddr) -> (Node, Multiaddr) {
    let mut node = Node::impostor();
    node.listen(format!("{relay}/p2p-circuit").parse().unwrap());
    node.wait(|seen| match seen {
        Seen::Listening(_) => Some(()),
        _ => None,
    })
    .await;
    let addr = format!("{relay}/p2p-circuit/webrtc/p2p/{}", node.id);
    (node, addr.parse().unwrap())
}

pub async fn reserve(mut node: Node, relay: &Multiaddr) -> (Node, Multiaddr) {
    node.listen("/webrtc".parse().unwrap());
    node.listen(format!("{relay}/p2p-circuit").parse().unwrap());
    let addr = node
        .wait(|seen| match seen {
            Seen::Listening(addr) if is_webrtc(&addr) => Some(addr),
            _ => None,
        })
        .await;
    let addr = addr.with_p2p(node.id).unwrap();
    (node, addr)
}

fn idle() -> swarm::Config {
    swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60))
}

type Upgraded = libp2p::core::transport::Boxed<(PeerId, StreamMuxerBox)>;

fn plain(key: &Keypair) -> Upgraded {
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed()
}

fn first(a: Upgraded, b: Upgraded) -> Upgraded {
    OrTransport::new(a, b)
        .map(|either, _| match either {
            Either::Left(connection) | Either::Right(connection) => connection,
        })
        .boxed()
}

fn swarm(key: &Keypair, config: Option<rtc::Config>) -> Swarm<Peer> {
    let id = key.public().to_peer_id();
    let protocol = match config {
        Some(_) => StreamProtocol::new("/test/1"),
        None => StreamProtocol::new("/webrtc-signaling/0.0.1"),
    };
    let (webrtc, rtc) = rtc::new(id, config.clone().unwrap_or_default()).unwrap();
    let (circuit, relay) = relay::client::new(id);
    let webrtc = webrtc
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let circuit = circuit
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    // `/webrtc` comes first, because the relay client would take its addresses.
    let transport = first(webrtc, first(circuit, plain(key)));
    let behaviour = Peer {
        relay,
        rtc: Toggle::from(config.map(|_| rtc)),
        raw: Raw::new(protocol),
    };
    Swarm::new(transport, behaviour, id, idle())
}

fn run(swarm: &mut Swarm<Peer>, command: Command) {
    match command {
        Command::Listen(addr) => drop(swarm.listen_on(addr).unwrap()),
        Command::Dial(peer, addr) => {
            let opts = DialOpts::peer_id(peer)
                .addresses(vec![addr])
                .condition(PeerCondition::Always)
                .build();
            swarm.dial(opts).unwrap();
        }
        Command::Open(peer, connection, reply) => {
            swarm.behaviour_mut().raw.open(peer, connection, reply);
        }
        Command::Close(connection) => drop(swarm.close_connection(connection)),
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "PeerEvent")]
pub struct Peer {
    relay: relay::client::Behaviour,
    rtc: Toggle<rtc::Behaviour>,
    raw: Raw,
}

pub enum PeerEvent {
    Relay,
    Rtc(rtc::Event),
    Raw(Stream),
}

impl From<relay::client::Event> for PeerEvent {
    fn from(_: relay::client::Event) -> Self {
        Self::Relay
    }
}

impl From<rtc::Event> for PeerEvent {
    fn from(event: rtc::Event) -> Self {
        Self::Rtc(event)
    }
}

impl From<Stream> for PeerEvent {
    fn from(stream: Stream) -> Self {
        Self::Raw(stream)
    }
}

/// Opens streams on a chosen connection, and accepts them.
pub struct Raw {
    protocol: StreamProtocol,
    actions: VecDeque<ToSwarm<Stream, oneshot::Sender<Stream>>>,
    waker: Option<Waker>,
}

impl Raw {
    fn new(protocol: StreamProtocol) -> Self {
        Self {
            protocol,
            actions: VecDeque::new(),
            waker: None,
        }
    }

    fn handler(&self) -> RawHandler {
        RawHandler {
            protocol: self.protocol.clone(),
            open: VecDeque::new(),
            accepted: VecDeque::new(),
            waker: None,
        }
    }

    fn open(&mut self, peer_id: PeerId, connection: ConnectionId, reply: oneshot::Sender<Stream>) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(connection),
            event: reply,
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Raw {
    type ConnectionHandler = RawHandler;
    type ToSwarm = Stream;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        stream: THandlerOutEvent<Self>,
    ) {
        self.actions.push_back(ToSwarm::GenerateEvent(stream));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Stream, THandlerInEvent<Self>>> {
        match self.actions.pop_front() {
            Some(action) => Poll::Ready(action),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

pub struct RawHandler {
    protocol: StreamProtocol,
    open: VecDeque<oneshot::Sender<Stream>>,
    accepted: VecDeque<Stream>,
    waker: Option<Waker>,
}

impl ConnectionHandler for RawHandler {
    type FromBehaviour = oneshot::Sender<Stream>;
    type ToBehaviour = Stream;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Stream>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Stream>> {
        if let Some(stream) = self.accepted.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream));
        }
        if let Some(reply) = self.open.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), reply),
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, reply: oneshot::Sender<Stream>) {
        self.open.push_back(reply);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            (),
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => self.accepted.push_back(protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => drop(info.send(protocol)),
            _ => {}
        }
    }
}
