//! The libp2p side of the server: its behaviours and the task that drives them.

use std::{
    collections::{BTreeSet, HashMap},
    error::Error as StdError,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
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
    ping,
    swarm::{self, ConnectionId, NetworkBehaviour, SwarmEvent},
};
use libp2p_metrics::BandwidthTransport;
use tokio::{sync::oneshot, time};

use super::{
    autonat, certificate,
    circuits::{self, Carried, Circuits, Held},
    clients::{Clients, Reserved},
    config::{RelayLimits, ServerConfig},
    descriptors::Descriptors,
    hop::{self, Request, Status},
    metrics::Metrics,
    pool::Pools,
    rates::{Rate, Rates},
};
pub(crate) use crate::native::limits::ip_of;
use crate::{
    core::quota::Holder,
    error::{Error, ErrorKind},
    native::{
        limits,
        transports::{self, DEFAULT_CONNECT_TIMEOUT},
    },
    node::{self, streams},
};

/// Longest wait for peers to be told of a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// How often connections that nobody needs are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// File of the `/webrtc-direct` certificate in the data directory.
const CERTIFICATE_FILE: &str = "webrtc-direct.pem";

#[derive(NetworkBehaviour)]
struct Behaviour {
    // First, so that it refuses before others make room for a connection.
    limits: limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    autonat: autonat::Behaviour,
    requests: streams::Behaviour,
}

/// A relay whose listeners are open.
pub(crate) struct Relay {
    swarm: Swarm<Behaviour>,
    announce: Announcements,
    metrics: Metrics,
    relay: RelayLimits,
    pools: Pools,
    rates: Rates,
    clients: Clients,
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
        let announced = config.announced()?;
        own.extend(announced.iter().filter_map(autonat::socket));
        own.extend(config.turn.external_ip.map(|ip| SocketAddr::new(ip, 0)));
        let autonat = autonat::Behaviour::new(&config.autonat, own, &pools, metrics.clone());
        let behaviour = behaviour(keypair, &pools, autonat);
        let transport = transport(config, keypair, &metrics, &pools)?;
        // `Clients` tells which connections nobody needs: it knows more of them than libp2p.
        let swarm_config = swarm::Config::with_tokio_executor()
            .with_substream_upgrade_protocol_override(Version::V1Lazy);
        let peer = keypair.public().to_peer_id();
        let mut relay = Self {
            swarm: Swarm::new(transport, behaviour, peer, swarm_config),
            announce: Announcements::new(announced),
            metrics,
            relay: config.relay.clone(),
            rates: Rates::new(&config.relay),
            clients: Clients::new(config, &pools),
            circuits: Circuits::new(&config.relay, &pools),
            pools,
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
        let mut sweep = time::interval(SWEEP);
        sweep.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                report = self.circuits.report() => self.on_report(report),
                _ = sweep.tick() => self.sweep(),
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
        let _ = time::timeout(SHUTDOWN_GRACE, goodbye).await;
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
                let from = endpoint.get_remote_address();
                self.clients
                    .connected(peer_id, connection_id, from, Instant::now());
                self.metrics.connection("established");
                self.count_connections();
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                ..
            } => {
                self.clients
                    .disconnected(&peer_id, connection_id, Instant::now());
                self.count_reservations();
                self.count_connections();
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                tracing::debug!(%error, "incoming connection failed");
                self.metrics.connection(match error {
                    swarm::ListenError::Denied { .. } => "denied",
                    _ => "failed",
                });
            }
            SwarmEvent::Behaviour(BehaviourEvent::Requests(event)) => self.on_stream(event),
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

    /// A peer asks for something, or the stream to the other peer is there.
    fn on_stream(&mut self, event: streams::Event) {
        match event {
            streams::Event::Inbound {
                peer,
                connection,
                protocol,
                stream,
            } => {
                let what = Carried::by(&protocol);
                let holder = self.holder(peer, connection);
                if self.circuits.ask(holder, connection, what, stream).is_err()
                    && what == Carried::Circuit
                {
                    self.metrics.circuit("limit");
                }
            }
            streams::Event::Opened { id, result } => {
                if self.circuits.opened(id, result) {
                    self.metrics.circuit("failed");
                }
            }
        }
    }

    fn holder(&self, peer: PeerId, connection: ConnectionId) -> Holder {
        let from = self.clients.address(&peer, connection);
        Holder {
            ip: from.and_then(ip_of),
            peer: Some(peer),
        }
    }

    fn on_report(&mut self, report: circuits::Report) {
        use circuits::Report;
        match report {
            Report::Asked(asked, Request::Reserve) if asked.what == Carried::Circuit => {
                self.on_reserve(asked);
            }
            Report::Asked(asked, Request::Reserve) => asked.refuse(Status::Malformed),
            Report::Asked(asked, Request::Connect(to)) => self.on_connect(asked, to),
            Report::Untold { source, connection } => {
                self.metrics.reservation("failed");
                self.clients.unreserve(&source, connection, Instant::now());
                self.count_reservations();
            }
            Report::Accepted => {
                self.metrics.circuit("accepted");
                self.metrics.circuits(self.circuits.taken());
            }
            Report::Closed { accepted } => {
                if !accepted {
                    self.metrics.circuit("failed");
                }
                self.metrics.circuits(self.circuits.taken());
            }
        }
    }

    fn on_reserve(&mut self, asked: circuits::Asked) {
        let (peer, connection, now) = (asked.source, asked.connection, Instant::now());
        // Whoever has one keeps it, however often its neighbours ask.
        let allowed = self.clients.is_reserved(&peer, connection, now)
            || self.allows(Rate::Reservations, peer, connection);
        let reserved = allowed.then(|| self.clients.reserve(peer, connection, now));
        let Some(Ok(reserved)) = reserved else {
            self.metrics.reservation("denied");
            return asked.refuse(Status::Limit);
        };
        self.metrics.reservation(match reserved {
            Reserved::New => "accepted",
            Reserved::Renewed => "renewed",
        });
        self.count_reservations();
        let granted = hop::granted(&self.addresses(), &self.relay);
        self.circuits.grant(asked, granted);
    }

    fn on_connect(&mut self, asked: circuits::Asked, to: PeerId) {
        match self.admit(&asked, to) {
            Ok((connection, held)) => {
                let requests = &mut self.swarm.behaviour_mut().requests;
                let open = requests.open(to, connection, asked.what.onward());
                self.circuits.opening(open, asked, held);
            }
            Err(status) => {
                if asked.what == Carried::Circuit {
                    self.metrics.circuit(match status {
                        Status::Limit => "limit",
                        Status::NoReservation => "no_reservation",
                        _ => "denied",
                    });
                }
                asked.refuse(status);
            }
        }
    }

    /// The connection over which the other peer is told, and what is held meanwhile.
    fn admit(
        &mut self,
        asked: &circuits::Asked,
        to: PeerId,
    ) -> Result<(ConnectionId, Held), Status> {
        let (source, now) = (asked.source, Instant::now());
        let connection = self.clients.reserved(&to, now);
        let connection = connection.ok_or(Status::NoReservation)?;
        let rate = match asked.what {
            Carried::Circuit => Rate::Circuits,
            Carried::Offer => Rate::Offers,
        };
        if !self.allows(rate, source, asked.connection) {
            return Err(Status::Limit);
        }
        let holder = self.holder(source, asked.connection);
        let place = self.circuits.place(asked.what, holder);
        let place = place.map_err(|_| Status::Limit)?;
        let uses = [source, to].map(|peer| self.clients.use_by(&peer, now));
        Ok((connection, Held(place, uses)))
    }

    /// Whether the peer may ask that often. A refusal is told.
    fn allows(&mut self, rate: Rate, peer: PeerId, connection: ConnectionId) -> bool {
        let ip = self.holder(peer, connection).ip;
        let now = Instant::now();
        let allowed = ip.is_some_and(|ip| self.rates.allow(rate, peer, ip, now));
        if !allowed {
            self.pools.refusals.tell(rate.name(), "rate", ip);
        }
        allowed
    }

    /// Closes the connections that nobody needs.
    fn sweep(&mut self) {
        for connection in self.clients.sweep(Instant::now()) {
            self.swarm.close_connection(connection);
        }
        self.count_reservations();
    }

    fn count_reservations(&self) {
        self.metrics.reservations(self.pools.reservations.taken());
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

fn behaviour(keypair: &identity::Keypair, pools: &Pools, autonat: autonat::Behaviour) -> Behaviour {
    let agent = concat!("throughline/", env!("CARGO_PKG_VERSION"));
    Behaviour {
        limits: limits::Behaviour::new(pools.limits.clone()),
        identify: identify::Behaviour::new(
            identify::Config::new(String::from("ipfs/0.1.0"), keypair.public())
                .with_agent_version(agent.to_owned())
                // The interfaces of a server are nobody's business, its announced addresses are.
                .with_hide_listen_addrs(true),
        ),
        ping: node::ping(),
        autonat,
        requests: streams::Behaviour::new(Carried::protocols(), true),
    }
}

fn transport(
    config: &ServerConfig,
    keypair: &identity::Keypair,
    metrics: &Metrics,
    pools: &Pools,
) -> Result<transports::BoxedTransport, Error> {
    let certificate = match &config.data {
        Some(directory) => certificate::load_or_create(&directory.join(CERTIFICATE_FILE))?,
        None => certificate::generate().map_err(|e| io_error("cannot set up the transports", e))?,
    };
    // The DTLS of webrtc-rs panics at the first handshake where rustls is built with more than one
    // cryptography and none is chosen. Err means that the program has chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let webrtc = libp2p_webrtc::tokio::Transport::new(keypair.clone(), certificate)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    // It waits for its last handshake without end.
    let webrtc = TransportTimeout::new(webrtc, DEFAULT_CONNECT_TIMEOUT).boxed();
    let hosts = config.hosts.iter();
    let quic: Vec<_> = hosts
        .map(|host| SocketAddr::new(*host, config.port))
        .collect();
    let internet = transports::server(keypair, &quic, &pools.quic, DEFAULT_CONNECT_TIMEOUT)
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

#[cfg(test)]
mod tests;
