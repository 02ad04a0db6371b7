//! The libp2p side of the server: its behaviours and the task that drives them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    error::Error as StdError,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{ListenerId, timeout::TransportTimeout},
        upgrade::Version,
    },
    identify, identity,
    multiaddr::Protocol,
    ping, relay,
    swarm::{self, NetworkBehaviour, SwarmEvent},
};
use libp2p_metrics::BandwidthTransport;
use tokio::sync::oneshot;

use super::{
    autonat, certificate,
    circuits::{self, Carried, Circuits, Room},
    config::{ConnectionLimits, RelayLimits, ServerConfig},
    descriptors::Descriptors,
    metrics::Metrics,
    pool::Pools,
};
use crate::{
    error::{Error, ErrorKind},
    native::{
        limits::{self, Most},
        transports,
    },
    node::{self, streams},
};

/// Longest wait for peers to be told of a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// File of the `/webrtc-direct` certificate in the data directory.
const CERTIFICATE_FILE: &str = "webrtc-direct.pem";

#[derive(NetworkBehaviour)]
struct Behaviour {
    // First, so that it refuses before others make room for a connection.
    limits: limits::Behaviour,
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    autonat: autonat::Behaviour,
    early: streams::Behaviour,
}

/// A relay whose listeners are open.
pub(crate) struct Relay {
    swarm: Swarm<Behaviour>,
    announce: Announcements,
    metrics: Metrics,
    reserved: Reserved,
    circuits: Circuits,
    descriptors: Descriptors,
    webrtc: Option<WildcardWebRtc>,
}

/// The `/webrtc-direct` listeners on each address of the IPv6 wildcard.
///
/// libp2p would bind the wildcard for both families, and IPv4 has a listener of its own. So they
/// follow the addresses that the TCP listener tells of, which is bound for IPv6 alone.
struct WildcardWebRtc {
    port: u16,
    listeners: HashMap<Ipv6Addr, ListenerId>,
}

impl WildcardWebRtc {
    fn new(config: &ServerConfig) -> Option<Self> {
        let wildcard = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        config.hosts.contains(&wildcard).then(|| Self {
            port: next(config.port),
            listeners: HashMap::new(),
        })
    }

    /// The address of the machine that a TCP listener tells of. A link-local one says nothing
    /// without its interface.
    fn ip(address: &Multiaddr) -> Option<Ipv6Addr> {
        let mut parts = address.iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Protocol::Ip6(ip)), Some(Protocol::Tcp(_)), None) => {
                (!ip.is_unicast_link_local()).then_some(ip)
            }
            _ => None,
        }
    }
}

impl Relay {
    /// Opens every listener that `config` asks for and waits until their addresses are known.
    pub(crate) async fn start(
        config: &ServerConfig,
        keypair: &identity::Keypair,
        metrics: Metrics,
        pools: Pools,
        mut own: Vec<SocketAddr>,
        descriptors: Descriptors,
    ) -> Result<Self, Error> {
        let reserved = Reserved::default();
        let circuits = Circuits::new(&config.relay, || circuit_rates(&config.relay));
        let announced = config.announced()?;
        own.extend(announced.iter().filter_map(autonat::socket));
        own.extend(config.turn.external_ip.map(|ip| SocketAddr::new(ip, 0)));
        let autonat = autonat::Behaviour::new(&config.autonat, own, &pools, metrics.clone());
        let behaviour = behaviour(config, keypair, &reserved, &circuits.room, autonat);
        let transport = transport(config, keypair, &metrics)?;
        let swarm_config = swarm::Config::with_tokio_executor()
            .with_substream_upgrade_protocol_override(Version::V1Lazy)
            .with_idle_connection_timeout(Duration::from_secs(config.connections.idle_seconds));
        let peer = keypair.public().to_peer_id();
        let mut relay = Self {
            swarm: Swarm::new(transport, behaviour, peer, swarm_config),
            announce: Announcements::new(announced),
            metrics,
            reserved,
            circuits,
            descriptors,
            webrtc: WildcardWebRtc::new(config),
        };
        relay.listen(config).await?;
        Ok(relay)
    }

    /// Opens the listeners; returns once each has an address.
    async fn listen(&mut self, config: &ServerConfig) -> Result<(), Error> {
        let mut pending = HashMap::new();
        for address in listen_addresses(&config.hosts, config.port) {
            let listener = self
                .swarm
                .listen_on(address.clone())
                .map_err(|error| listen_error(&address, io::Error::other(error)))?;
            pending.insert(listener, address);
        }
        while !pending.is_empty() {
            let event = self.swarm.select_next_some().await;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    pending.remove(listener_id);
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason,
                    ..
                } => fail(&pending, listener_id, reason.as_ref().err())?,
                SwarmEvent::ListenerError { listener_id, error } => {
                    fail(&pending, listener_id, Some(error))?;
                }
                _ => {}
            }
            self.on_event(event);
        }
        // A wildcard listener tells one interface after the other: take what is there.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_event(event);
        }
        Ok(())
    }

    /// The announced addresses, each ending in the peer id.
    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        let peer = *self.swarm.local_peer_id();
        let mut addresses: Vec<_> = self
            .announce
            .current()
            .into_iter()
            .map(|address| address.with_p2p(peer).unwrap_or_else(|address| address))
            .collect();
        addresses.sort_by_key(preference);
        addresses
    }

    /// Where peers may come in: the bound addresses, and those announced besides.
    pub(crate) fn listening(&self) -> impl Iterator<Item = &Multiaddr> {
        self.announce.bound.iter().chain(&self.announce.configured)
    }

    /// Serves until `stop` is sent or dropped, then says goodbye to everybody.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                report = self.circuits.report() => self.on_circuit(report),
                _ = &mut stop => break,
            }
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // Err means that it has gone by itself.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let goodbye = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, goodbye).await;
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.follow(&address);
                self.announce.bound.insert(address);
                self.announce();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.unfollow(&address);
                self.announce.bound.remove(&address);
                self.announce();
            }
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => {
                // Ok says that it was closed on purpose.
                if let Err(error) = reason {
                    tracing::error!(%error, "a listener closed");
                }
                for address in &addresses {
                    self.announce.bound.remove(address);
                }
                self.announce();
            }
            SwarmEvent::ListenerError { error, .. } => self.descriptors.failed("relay", &error),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                if endpoint.is_listener() {
                    let from = endpoint.get_remote_address();
                    self.circuits.connected(peer_id, connection_id, from);
                }
                self.metrics.connection("established");
                self.count_connections();
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                ..
            } => {
                self.circuits.disconnected(&peer_id, connection_id);
                if num_established == 0 {
                    self.release(&peer_id);
                }
                self.count_connections();
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                tracing::debug!(%error, "incoming connection failed");
                self.metrics.connection(match error {
                    swarm::ListenError::Denied { .. } => "denied",
                    _ => "failed",
                });
            }
            SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => self.on_relay_event(event),
            SwarmEvent::Behaviour(BehaviourEvent::Early(event)) => self.on_early(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            _ => {}
        }
    }

    /// Listens for `/webrtc-direct` at an address that a TCP listener tells of.
    fn follow(&mut self, address: &Multiaddr) {
        let Some(webrtc) = &mut self.webrtc else {
            return;
        };
        let Some(ip) = WildcardWebRtc::ip(address) else {
            return;
        };
        if webrtc.listeners.contains_key(&ip) {
            return;
        }
        let address = webrtc_address(ip.into(), webrtc.port);
        match self.swarm.listen_on(address.clone()) {
            Ok(listener) => _ = webrtc.listeners.insert(ip, listener),
            Err(error) => {
                let error = root(&error);
                tracing::warn!(%address, %error, "cannot listen");
            }
        }
    }

    fn unfollow(&mut self, address: &Multiaddr) {
        let Some(webrtc) = &mut self.webrtc else {
            return;
        };
        let gone = WildcardWebRtc::ip(address).and_then(|ip| webrtc.listeners.remove(&ip));
        if let Some(listener) = gone {
            self.swarm.remove_listener(listener);
        }
    }

    /// Who vanished without a close would keep its reservation for as long as TCP hopes for it, a
    /// quarter of an hour, and whoever asks for a circuit to it would wait.
    fn on_ping(&mut self, event: ping::Event) {
        // Whatever else fails may be a peer that does not speak it.
        if let Err(ping::Failure::Timeout) = event.result {
            tracing::debug!(peer = %event.peer, "a peer does not answer");
            self.swarm.close_connection(event.connection);
        }
    }

    #[expect(
        deprecated,
        reason = "the failures are counted, whatever libp2p logs of them"
    )]
    fn on_relay_event(&mut self, event: relay::Event) {
        use relay::Event;
        match event {
            Event::ReservationReqAccepted { renewed, .. } => {
                self.metrics
                    .reservation(if renewed { "renewed" } else { "accepted" });
                self.metrics.reservations(self.reserved.len());
            }
            Event::ReservationReqDenied { .. } => self.metrics.reservation("denied"),
            Event::ReservationReqAcceptFailed { src_peer_id, .. } => {
                self.metrics.reservation("failed");
                self.release(&src_peer_id);
            }
            Event::ReservationReqDenyFailed { .. } => self.metrics.reservation("failed"),
            Event::ReservationTimedOut { src_peer_id } => self.release(&src_peer_id),
            Event::CircuitReqAccepted { src_peer_id, .. } => {
                self.metrics.circuit("accepted");
                let now = self.circuits.room.take(src_peer_id);
                self.metrics.circuits(now);
            }
            Event::CircuitClosed { src_peer_id, .. } => {
                let left = self.circuits.room.give_back(&src_peer_id);
                self.metrics.circuits(left);
            }
            Event::CircuitReqDenied { status, .. } => self.metrics.circuit(match status {
                relay::StatusCode::ReservationRefused
                | relay::StatusCode::ResourceLimitExceeded => "limit",
                relay::StatusCode::NoReservation => "no_reservation",
                _ => "denied",
            }),
            Event::CircuitReqOutboundConnectFailed { .. }
            | Event::CircuitReqAcceptFailed { .. }
            | Event::CircuitReqDenyFailed { .. } => self.metrics.circuit("failed"),
            // Said of every closed connection, reserved or not; see `ConnectionClosed`.
            Event::ReservationClosed { .. } | Event::StatusChanged { .. } => {}
        }
    }

    /// A dialler of ours asks for a circuit, or the stream to the other peer is there.
    fn on_early(&mut self, event: streams::Event) {
        match event {
            streams::Event::Inbound {
                peer,
                protocol,
                stream,
                ..
            } => self.circuits.ask(peer, Carried::by(&protocol), stream),
            streams::Event::Opened { id, result } => {
                if self.circuits.opened(id, result) {
                    self.metrics.circuit("failed");
                }
            }
        }
    }

    fn on_circuit(&mut self, report: circuits::Report) {
        use circuits::{Report, Status};
        match report {
            Report::Asked {
                source,
                what,
                destination,
                stream,
            } => {
                let admitted = match self.reserved.contains(&destination) {
                    true => self.circuits.admit(source, what, &destination),
                    false => Err(Status::NoReservation),
                };
                match admitted {
                    Ok(connection) => {
                        let early = &mut self.swarm.behaviour_mut().early;
                        let open = early.open(destination, connection, what.onward());
                        self.circuits.opening(open, source, what, stream);
                    }
                    Err(status) => {
                        if what == Carried::Circuit {
                            self.metrics.circuit(match status {
                                Status::Limit => "limit",
                                Status::NoReservation => "no_reservation",
                                _ => "denied",
                            });
                        }
                        tokio::spawn(circuits::refuse(stream, what, status));
                    }
                }
            }
            Report::Accepted => {
                self.metrics.circuit("accepted");
                self.metrics.circuits(self.circuits.room.taken());
            }
            Report::Closed { source, accepted } => {
                if !accepted {
                    self.metrics.circuit("failed");
                }
                let left = self.circuits.room.give_back(&source);
                self.metrics.circuits(left);
            }
        }
    }

    fn release(&self, peer: &PeerId) {
        let held = self.reserved.remove(peer);
        self.metrics.reservations(held);
    }

    fn count_connections(&self) {
        let counters = self.swarm.network_info();
        self.metrics
            .connections(counters.connection_counters().num_established());
    }

    /// Makes the external addresses those that are to be announced: a reservation carries
    /// exactly these, and a browser can dial a peer only by its WebSocket and WebRTC ones.
    fn announce(&mut self) {
        let wanted = self.announce.current();
        let known: BTreeSet<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        for address in known.difference(&wanted) {
            self.swarm.remove_external_address(address);
        }
        for address in wanted.difference(&known) {
            self.swarm.add_external_address(address.clone());
        }
    }
}

fn behaviour(
    config: &ServerConfig,
    keypair: &identity::Keypair,
    reserved: &Reserved,
    room: &Room,
    autonat: autonat::Behaviour,
) -> Behaviour {
    let peer = keypair.public().to_peer_id();
    let agent = concat!("throughline/", env!("CARGO_PKG_VERSION"));
    Behaviour {
        limits: limits::Behaviour::new(most(&config.connections)),
        relay: relay::Behaviour::new(peer, relay_config(&config.relay, reserved, room)),
        identify: identify::Behaviour::new(
            identify::Config::new(String::from("ipfs/0.1.0"), keypair.public())
                .with_agent_version(agent.to_owned())
                // The interfaces of a server are nobody's business, its announced addresses are.
                .with_hide_listen_addrs(true),
        ),
        ping: node::ping(),
        autonat,
        early: streams::Behaviour::new(Carried::protocols(), false),
    }
}

fn most(limits: &ConnectionLimits) -> Most {
    Most {
        established: limits.established,
        per_peer: limits.per_peer,
        incoming: limits.pending,
        outgoing: limits.pending,
    }
}

fn relay_config(limits: &RelayLimits, reserved: &Reserved, room: &Room) -> relay::Config {
    let per_peer = limits.reservations_per_peer.get();
    let mut config = relay::Config {
        // libp2p counts a renewal against its limit, so that a full relay would lose one
        // peer after the other. `Reserved` below lets renewals through.
        max_reservations: limits.reservations.get().saturating_mul(per_peer),
        // libp2p refuses above these numbers, not at them.
        max_reservations_per_peer: per_peer - 1,
        reservation_duration: Duration::from_secs(limits.reservation_seconds),
        reservation_rate_limiters: Vec::new(),
        max_circuits: limits.circuits.get(),
        max_circuits_per_peer: limits.circuits_per_peer.get() - 1,
        max_circuit_duration: limits.circuit_duration(),
        max_circuit_bytes: limits.circuit_bytes,
        circuit_src_rate_limiters: circuit_rates(limits),
    };
    let two = NonZeroU32::MIN.saturating_add(1);
    config = config
        .reservation_rate_per_peer(limits.reservation_burst, Duration::from_secs(2))
        .reservation_rate_per_ip(
            limits.reservation_burst.saturating_mul(two),
            Duration::from_secs(1),
        );
    config.circuit_src_rate_limiters.push(room.limiter());
    // Last, so that it counts only what nothing else refuses.
    config
        .reservation_rate_limiters
        .push(reserved.limiter(limits.reservations.get()));
    config
}

/// How often each peer, and each IP address, may ask for a circuit.
fn circuit_rates(limits: &RelayLimits) -> Vec<Box<dyn relay::RateLimiter>> {
    let four = NonZeroU32::MIN.saturating_add(3);
    let config = relay::Config {
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    config
        .circuit_src_per_peer(limits.circuit_burst, Duration::from_secs(1))
        .circuit_src_per_ip(
            limits.circuit_burst.saturating_mul(four),
            Duration::from_millis(250),
        )
        .circuit_src_rate_limiters
}

fn transport(
    config: &ServerConfig,
    keypair: &identity::Keypair,
    metrics: &Metrics,
) -> Result<transports::BoxedTransport, Error> {
    let certificate = match &config.data {
        Some(directory) => certificate::load_or_create(&directory.join(CERTIFICATE_FILE))?,
        None => certificate::generate().map_err(|e| io_error("cannot set up the transports", e))?,
    };
    // The DTLS of webrtc-rs panics at the first handshake where rustls is built with more than one
    // cryptography and none is chosen. Err means that the program has chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let webrtc = libp2p_webrtc::tokio::Transport::new(keypair.clone(), certificate)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let hosts = config.hosts.iter();
    let quic: Vec<_> = hosts
        .map(|host| SocketAddr::new(*host, config.port))
        .collect();
    let internet = transports::server(keypair, &quic, transports::DEFAULT_CONNECT_TIMEOUT)
        .map_err(|e| io_error("cannot set up the transports", e))?;
    let internet = TransportTimeout::with_outgoing_timeout(internet, autonat::DIAL_TIMEOUT);
    let all = transports::join(webrtc, internet.boxed());
    let counted = metrics.with_registry(|registry| BandwidthTransport::new(all, registry));
    Ok(counted
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

/// QUIC and TCP on the base port, WebSocket and `/webrtc-direct` on the next. Of the IPv6 wildcard
/// the last is left to [`WildcardWebRtc`].
fn listen_addresses(hosts: &[IpAddr], port: u16) -> Vec<Multiaddr> {
    hosts
        .iter()
        .flat_map(|ip| {
            let host = Multiaddr::from(*ip);
            let stream = [
                host.clone()
                    .with(Protocol::Udp(port))
                    .with(Protocol::QuicV1),
                host.clone().with(Protocol::Tcp(port)),
                host.with(Protocol::Tcp(next(port)))
                    .with(Protocol::Ws("/".into())),
            ];
            let is_wildcard = ip.is_ipv6() && ip.is_unspecified();
            let webrtc = (!is_wildcard).then(|| webrtc_address(*ip, next(port)));
            stream.into_iter().chain(webrtc)
        })
        .collect()
}

fn next(port: u16) -> u16 {
    if port == 0 { 0 } else { port.saturating_add(1) }
}

fn webrtc_address(ip: IpAddr, port: u16) -> Multiaddr {
    let host = Multiaddr::from(ip);
    host.with(Protocol::Udp(port)).with(Protocol::WebRTCDirect)
}

/// Fails if `listener` is one of those that must open.
fn fail(
    pending: &HashMap<ListenerId, Multiaddr>,
    listener: &ListenerId,
    reason: Option<&io::Error>,
) -> Result<(), Error> {
    let Some(address) = pending.get(listener) else {
        return Ok(());
    };
    let source = reason.map_or_else(
        || io::Error::other("the listener closed"),
        |error| io::Error::new(error.kind(), root(error).to_string()),
    );
    Err(listen_error(address, source))
}

fn listen_error(address: &Multiaddr, error: io::Error) -> Error {
    let reason = io::Error::new(error.kind(), root(&error).to_string());
    io_error(&format!("cannot listen on {address}"), reason)
}

/// What is at the bottom of `error`: the transports wrap the system's word in some of theirs that say
/// nothing.
fn root<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}

fn io_error(what: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{what}: {error}")).with_source(error)
}

/// Which addresses are announced: the configured ones, and of the bound ones those that
/// others can reach.
struct Announcements {
    configured: Vec<Multiaddr>,
    bound: BTreeSet<Multiaddr>,
}

impl Announcements {
    fn new(configured: Vec<Multiaddr>) -> Self {
        Self {
            configured,
            bound: BTreeSet::new(),
        }
    }

    fn current(&self) -> BTreeSet<Multiaddr> {
        let is_local = |address: &&Multiaddr| ip_of(address).is_none_or(is_local);
        let reachable: BTreeSet<_> = self.bound.iter().filter(|a| !is_local(a)).collect();
        let bound = if reachable.is_empty() {
            self.bound.iter().collect()
        } else {
            reachable
        };
        bound.into_iter().chain(&self.configured).cloned().collect()
    }
}

/// The first IP address of `address`.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|protocol| match protocol {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

/// Loopback and link-local addresses mean nothing to other machines.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// Order of the printed addresses: QUIC is the quickest to connect, then TCP.
fn preference(address: &Multiaddr) -> u8 {
    match address.iter().nth(2) {
        Some(Protocol::QuicV1) => 0,
        Some(Protocol::P2p(_)) | None => 1,
        Some(Protocol::Ws(_)) => 2,
        _ => 3,
    }
}

/// The peers that hold a reservation, shared with the relay behaviour's admission.
#[derive(Clone, Default)]
struct Reserved(Arc<Mutex<HashSet<PeerId>>>);

impl Reserved {
    fn len(&self) -> usize {
        self.lock().len()
    }

    fn contains(&self, peer: &PeerId) -> bool {
        self.lock().contains(peer)
    }

    fn remove(&self, peer: &PeerId) -> usize {
        let mut peers = self.lock();
        peers.remove(peer);
        peers.len()
    }

    /// Admits those who have a reservation, and others while fewer than `limit` have.
    fn limiter(&self, limit: usize) -> Box<dyn relay::RateLimiter> {
        let reserved = self.clone();
        Box::new(move |peer: PeerId, _: &Multiaddr, _| {
            let mut peers = reserved.lock();
            peers.contains(&peer) || (peers.len() < limit && peers.insert(peer))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<PeerId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
