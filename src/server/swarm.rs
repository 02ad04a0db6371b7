//! The libp2p side of the server: its behaviours and the task that drives them.

pub(super) mod addresses;
mod admission;
mod directory;
mod journal;
mod traffic;
mod transport;

use std::{
    collections::{BTreeSet, HashMap},
    error::Error as StdError,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm,
    core::{transport::ListenerId, upgrade::Version},
    identify, identity,
    multiaddr::Protocol,
    swarm::{self, ConnectionId, NetworkBehaviour, SwarmEvent},
};
use tokio::{
    sync::{oneshot, watch},
    time,
};

use self::{
    addresses::{Announcements, listen_addresses, preference},
    journal::Journal,
    traffic::Traffic,
    transport::transport,
};
use super::{
    access::{Access, Meter},
    autonat,
    circuits::{self, Carried, Circuits, End, Held, Meters},
    clients::{Clients, Reserved},
    config::ServerConfig,
    descriptors::Descriptors,
    directory::{Directory, Memory},
    heart::Heart,
    hop::{self, Status},
    metrics::Metrics,
    pool::{Pool, Pools},
    profile::Profiles,
    relay_rates::{Rate, Rates, Spent},
    settings::Settings,
    turn::TurnOffer,
    usage::{Amounts, Usage},
    watch::Watch,
};
pub(crate) use crate::native::behaviours::limits::ip_of;
use crate::{
    core::{
        drain, notice,
        quota::{Holder, Refusal},
        reached::Reached,
        reputation::{Offence, Treatment},
    },
    error::{Error, ErrorKind},
    native::{
        behaviours::limits,
        runtime,
        transports::{handed::Arrivals, windows::Wide},
        udp::Sockets,
    },
    swarm::{
        ping::Ping,
        substreams::{OpenId, SubstreamEvent, Substreams},
    },
    ticket::relay_id,
};

/// The longest wait for peers to learn of a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// The pause between two searches for connections that nobody needs.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(NetworkBehaviour)]
struct ServerBehaviour {
    // This behaviour is first, so that it refuses a connection before others make room for it.
    limits: limits::LimitsBehaviour,
    identify: identify::Behaviour,
    ping: Ping,
    autonat: autonat::AutonatServer,
    requests: Substreams,
}

/// The parts of a server that its relay uses, too.
pub(crate) struct RelayParts {
    pub(crate) metrics: Metrics,
    pub(crate) pools: Pools,
    pub(crate) access: Access,
    pub(crate) descriptors: Descriptors,
    pub(crate) usage: Usage,
}

/// Where the peers of a relay come in.
pub(crate) struct Bound {
    /// The connections over TCP.
    pub(crate) arrivals: Arrivals,
    /// The sockets of QUIC.
    pub(crate) quic: Vec<Sockets>,
    /// The sockets of `/webrtc-direct`.
    pub(crate) direct: Vec<Sockets>,
}

/// A relay whose listeners are open.
pub(crate) struct Relay {
    swarm: Swarm<ServerBehaviour>,
    listeners: Vec<ListenerId>,
    announce: Announcements,
    metrics: Metrics,
    pools: Pools,
    settings: Settings,
    /// The addresses that are announced now, as texts.
    announced: watch::Sender<Vec<String>>,
    rates: Rates,
    clients: Clients,
    watch: Watch,
    circuits: Circuits,
    access: Access,
    /// Whether peers show their tokens here, or get something for them.
    gives_access: bool,
    /// What admitted peers get for the TURN server, if there is one.
    turn: Option<TurnOffer>,
    /// What the relay says of itself.
    profiles: Option<Profiles>,
    descriptors: Descriptors,
    usage: Usage,
    /// Where peers are, and who is in which room.
    directory: Arc<dyn Directory>,
    /// What each peer may exchange in all its rooms.
    room_rates: HashMap<PeerId, Weak<Meter>>,
    heart: Heart,
    journal: Journal,
    /// At which addresses peers reach this server.
    reached: Reached,
    /// Whether the clients are told that the server is about to end.
    drains: bool,
    /// The clients that are being told something, by the stream for it, and what that is. Nobody is
    /// told more than the end, and each step of a quota once.
    telling: HashMap<OpenId, (PeerId, Vec<u8>)>,
}

impl Relay {
    /// Opens every listener that the settings ask for, and waits until their addresses are known.
    /// `own` are the addresses of the other services, which nobody may aim the relay at.
    pub(crate) async fn start(
        keypair: &identity::Keypair,
        bound: Bound,
        mut own: Vec<SocketAddr>,
        parts: RelayParts,
    ) -> Result<Self, Error> {
        let RelayParts {
            metrics,
            pools,
            access,
            descriptors,
            usage,
        } = parts;
        let settings = pools.settings.clone();
        let config = &*settings.now();
        let announced = config.announced()?;
        own.extend(announced.iter().filter_map(autonat::socket));
        let external = [config.external_ip, config.turn.external_ip];
        own.extend(
            external
                .into_iter()
                .flatten()
                .map(|ip| SocketAddr::new(ip, 0)),
        );
        let autonat = autonat::AutonatServer::new(own, &pools, metrics.clone());
        let gives_access = !access.is_open() || config.turn.secret.is_some();
        let protocols = Carried::protocols(gives_access);
        let behaviour = behaviour(keypair, &pools, autonat, protocols);
        let traffic = Traffic::default();
        let transport = transport(config, bound, keypair, &metrics, &pools, &traffic)?;
        // `Clients` decides which connections nobody needs, because it knows more about them than
        // libp2p.
        let swarm_config =
            swarm::Config::with_executor(|task: BoxFuture<'static, ()>| runtime::spawn(task))
                .with_substream_upgrade_protocol_override(Version::V1Lazy);
        let peer = keypair.public().to_peer_id();
        let rooms = pools.rooms();
        let mut relay = Self {
            listeners: Vec::new(),
            swarm: Swarm::new(transport, behaviour, peer, swarm_config),
            announce: Announcements::new(announced, config.external_ip),
            metrics,
            rates: Rates::new(&config.relay),
            clients: Clients::new(&pools),
            watch: Watch::default(),
            circuits: Circuits::new(&pools, usage.clone()),
            access,
            gives_access,
            turn: None,
            profiles: None,
            pools,
            settings: settings.clone(),
            announced: watch::Sender::default(),
            descriptors,
            usage,
            directory: Arc::new(Memory::new(rooms)),
            room_rates: HashMap::new(),
            heart: Heart::new(Instant::now()),
            journal: Journal::new(traffic, settings.clone()),
            reached: Reached::default(),
            drains: false,
            telling: HashMap::new(),
        };
        relay.listen(config).await?;
        Ok(relay)
    }

    /// Opens the listeners. Returns once each of them has an address.
    async fn listen(&mut self, config: &ServerConfig) -> Result<(), Error> {
        let mut pending = HashMap::new();
        for address in listen_addresses(&config.hosts, config.port, config.layout) {
            let listener = self
                .swarm
                .listen_on(address.clone())
                .map_err(|error| listen_error(&address, io::Error::other(error)))?;
            pending.insert(listener, address);
            self.listeners.push(listener);
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
        // A wildcard listener reports its interfaces one after the other. This takes all reports
        // that are ready.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_event(event);
        }
        Ok(())
    }

    /// Returns the announced addresses. Each ends in the peer id.
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

    pub(crate) fn heart(&self) -> Heart {
        self.heart.clone()
    }

    /// Returns the texts of [`addresses`](Self::addresses), which may change while the relay serves.
    pub(crate) fn announced(&self) -> watch::Receiver<Vec<String>> {
        self.announced.subscribe()
    }

    /// Returns the names of the protocols that the relay serves.
    pub(crate) fn protocols(&self) -> Vec<String> {
        let protocols = Carried::protocols(self.gives_access).into_iter();
        protocols.map(|protocol| protocol.to_string()).collect()
    }

    /// Tells peers what the server says of itself from now on.
    pub(crate) fn show(&mut self, profiles: Profiles) {
        self.profiles = Some(profiles);
    }

    /// Returns the addresses where peers may come in: those that are bound, and those that are
    /// configured.
    pub(crate) fn listening(&self) -> impl Iterator<Item = &Multiaddr> {
        self.announce.bound.iter().chain(&self.announce.configured)
    }

    /// Serves until `stop` is sent or dropped, then closes the connections of all peers.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut sweep = time::interval(SWEEP);
        sweep.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                report = self.circuits.report() => self.on_report(report),
                _ = sweep.tick() => self.sweep(),
                () = self.settings.changed() => self.on_settings(),
                _ = &mut stop => break,
            }
        }
        // A peer that comes back at once would get a link to a relay that is about to be gone, and
        // notice it late. It is refused, and comes back to the next relay.
        for listener in self.listeners {
            self.swarm.remove_listener(listener);
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error means that the peer has disconnected by itself.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let goodbye = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = time::timeout(SHUTDOWN_GRACE, goodbye).await;
    }

    fn on_event(&mut self, event: SwarmEvent<ServerBehaviourEvent>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                self.announce.bound.insert(address);
                self.announce();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.announce.bound.remove(&address);
                self.announce();
            }
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => {
                // `Ok` means that the listener was closed on purpose.
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
                self.watch.connected(peer_id, connection_id);
                self.journal.connected(connection_id, from);
                self.metrics.connection("established");
                self.count_connections();
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                self.watch.disconnected(connection_id);
                self.journal.closed(&peer_id, connection_id, cause.as_ref());
                self.clients
                    .disconnected(&peer_id, connection_id, Instant::now());
                if !self.clients.is_connected(&peer_id) {
                    self.access.forget(&peer_id);
                }
                self.count_reservations();
                self.count_connections();
            }
            SwarmEvent::IncomingConnectionError {
                error,
                send_back_addr,
                ..
            } => {
                tracing::debug!(%error, "incoming connection failed");
                self.metrics.connection(match error {
                    swarm::ListenError::Denied { .. } => "denied",
                    _ => "failed",
                });
                self.note_failure(&error, &send_back_addr);
            }
            SwarmEvent::Behaviour(ServerBehaviourEvent::Requests(event)) => self.on_stream(event),
            SwarmEvent::Behaviour(ServerBehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            })) => self.note_reached(peer_id, connection_id, &info.observed_addr),
            SwarmEvent::Behaviour(ServerBehaviourEvent::Ping(answer)) => {
                self.watch.answered(answer.connection, answer.rtt);
            }
            _ => {}
        }
    }

    /// A peer says at which address it has reached this server. The operator hears of one that nobody
    /// is told.
    fn note_reached(&mut self, peer: PeerId, connection: ConnectionId, at: &Multiaddr) {
        let from = self.holder(peer, connection).ip;
        if let Some((at, from)) = ip_of(at).zip(from) {
            let announced = self.announce.current();
            let is_announced = |ip| announced.iter().any(|one| ip_of(one) == Some(ip));
            if let Some(address) = self.reached.note(at, from, is_announced) {
                tracing::warn!(
                    %address,
                    "peers reach this server at an address that is not announced; set external_ip or announce"
                );
            }
        }
    }

    /// Returns the addresses of this machine that are not announced, because they lead to containers.
    pub(crate) fn hidden(&self) -> BTreeSet<IpAddr> {
        self.announce.hidden()
    }

    /// Notes a handshake that failed. Over UDP, the source may be forged, so only TCP counts.
    fn note_failure(&self, error: &swarm::ListenError, from: &Multiaddr) {
        let is_refusal = matches!(error, swarm::ListenError::Denied { .. });
        if !is_refusal && from.iter().any(|part| matches!(part, Protocol::Tcp(_))) {
            let ip = self.pools.limits.forwarded.source(from);
            let reputation = &self.pools.reputation;
            reputation.note(None, ip, Offence::FailedHandshake);
        }
    }

    /// Handles a request of a peer, or the stream to the other peer.
    fn on_stream(&mut self, event: SubstreamEvent) {
        match event {
            SubstreamEvent::Inbound {
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
            SubstreamEvent::Opened { id, result } => {
                if let Some((peer, message)) = self.telling.remove(&id) {
                    // Peers that do not know the protocol need not be told.
                    if let Ok(stream) = result {
                        Circuits::tell(&peer, stream, message);
                    }
                    return;
                }
                if self.circuits.opened(id, result) {
                    self.metrics.circuit("failed");
                }
            }
            SubstreamEvent::Lane { .. } => {}
        }
    }

    fn holder(&self, peer: PeerId, connection: ConnectionId) -> Holder {
        let from = self.clients.address(&peer, connection);
        Holder {
            ip: from.and_then(|from| self.pools.limits.forwarded.source(from)),
            peer: Some(peer),
        }
    }

    fn on_report(&mut self, report: circuits::Report) {
        use circuits::Report;
        match report {
            Report::Asked(asked, wanted) => self.on_asked(asked, wanted),
            Report::Judged(asked, wanted, verdict) => self.on_judged(asked, wanted, verdict),
            Report::Untold { source, connection } => {
                self.metrics.reservation("failed");
                self.clients.unreserve(&source, connection, Instant::now());
                self.count_reservations();
            }
            Report::Accepted => {
                self.metrics.circuit("accepted");
                self.metrics.circuits(self.circuits.taken());
            }
            Report::Closed { source, end } => {
                if end != End::Accepted {
                    self.metrics.circuit("failed");
                }
                if end == End::Refused {
                    let reputation = &self.pools.reputation;
                    reputation.note(Some(source), None, Offence::RefusedCircuit);
                }
                self.metrics.circuits(self.circuits.taken());
            }
        }
    }

    /// Whether a peer may ask for a reservation. The rate does not apply to renewals, so requests of
    /// neighbours cannot cost a peer its reservation.
    fn may_reserve(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        self.clients.is_reserved(&peer, connection, Instant::now())
            || self.allows(Rate::Reservations, peer, connection)
    }

    /// Gives a peer a reservation, or renews it. Returns the encoded answer.
    ///
    /// # Errors
    /// The limit that refuses it.
    fn reserve(&mut self, peer: PeerId, connection: ConnectionId) -> Result<Vec<u8>, Refusal> {
        let reserved = self.clients.reserve(peer, connection, Instant::now());
        let reserved = reserved.inspect_err(|_| self.metrics.reservation("denied"))?;
        match reserved {
            Reserved::New => {
                self.metrics.reservation("accepted");
                self.watch.superseded(&peer, connection);
                if let Some(left) = self.access.left(&peer) {
                    self.tell(peer, connection, notice::PROTOCOL, notice::encode(&left));
                }
                let one = Amounts {
                    reservations: 1,
                    ..Amounts::default()
                };
                self.usage.add(&self.access.account(&peer), one);
            }
            Reserved::Renewed => self.metrics.reservation("renewed"),
        }
        self.count_reservations();
        Ok(hop::granted(&self.addresses(), &self.settings.now().relay))
    }

    fn on_connect(&mut self, asked: circuits::Asked, to: PeerId) {
        match self.admit(&asked, to) {
            Ok((connection, held)) => {
                let requests = &mut self.swarm.behaviour_mut().requests;
                let open = requests.open(to, connection, asked.what.onward());
                let (proof, probe) = match asked.what {
                    Carried::Circuit => self.watch.ask(connection),
                    _ => Default::default(),
                };
                if probe {
                    self.swarm.behaviour_mut().ping.probe(to, connection);
                }
                // The peer with the reservation is the one whom the relay serves.
                let account = self.access.account(&to);
                self.circuits.opening(open, account, asked, held, proof);
            }
            Err(status) => {
                if asked.what == Carried::Circuit {
                    self.metrics.circuit(match status {
                        Status::Limit => "limit",
                        Status::Quota => "quota",
                        Status::NoReservation => "no_reservation",
                        _ => "denied",
                    });
                }
                asked.refuse(status);
            }
        }
    }

    /// Returns the connection over which the other peer is told, what the circuit or offer holds,
    /// and what counts its bytes.
    fn admit(
        &mut self,
        asked: &circuits::Asked,
        to: PeerId,
    ) -> Result<(ConnectionId, (Held, Meters, Treatment)), Status> {
        let (source, now) = (asked.source, Instant::now());
        let connection = self.clients.reserved(&to, now);
        let connection = connection.ok_or(Status::NoReservation)?;
        let [of_source, of_peer] = [(source, asked.connection), (to, connection)]
            .map(|(peer, connection)| self.treatment(peer, connection));
        if [of_source, of_peer].contains(&Treatment::Refused) {
            return Err(Status::Denied);
        }
        let rate = match asked.what {
            Carried::Circuit => Rate::Circuits,
            _ => Rate::Offers,
        };
        if !self.allows(rate, source, asked.connection) {
            return Err(Status::Limit);
        }
        let meters = self.access.meters_of(source, to);
        let meters = meters.map_err(|_| Status::Quota)?;
        let holder = self.holder(source, asked.connection);
        let place = self.circuits.place(asked.what, holder);
        let place = place.map_err(|_| Status::Limit)?;
        let uses = [source, to].map(|peer| self.clients.use_by(&peer, now));
        let wide = match asked.what {
            Carried::Circuit => [(source, asked.connection), (to, connection)]
                .map(|(peer, connection)| self.widen(&peer, connection)),
            _ => [None, None],
        };
        // It is slow if one of both is. The share is that of the peer with the reservation.
        let treatment = match of_source {
            Treatment::Slow => Treatment::Slow,
            _ => of_peer,
        };
        Ok((connection, (Held(place, uses, wide), meters, treatment)))
    }

    /// How a peer is treated, by what is thought of it.
    fn treatment(&self, peer: PeerId, connection: ConnectionId) -> Treatment {
        let ip = self.holder(peer, connection).ip;
        self.pools.reputation.treat(&peer, ip)
    }

    /// Widens the window of this connection for a circuit. It is narrowed again when the [`Wide`]
    /// is dropped.
    fn widen(&self, peer: &PeerId, connection: ConnectionId) -> Option<Wide> {
        let from = self.clients.address(peer, connection)?;
        self.pools.windows.widen(from)
    }

    /// Returns whether the rate limit allows the request of this peer. A refusal is counted and
    /// logged.
    fn allows(&mut self, rate: Rate, peer: PeerId, connection: ConnectionId) -> bool {
        let ip = self.holder(peer, connection).ip;
        let now = Instant::now();
        let allowed = ip.map(|ip| self.rates.allow(rate, peer, ip, now));
        if allowed == Some(Ok(())) {
            return true;
        }
        self.pools.refusals.tell(rate.name(), "rate", ip);
        // Its address is not to blame, and it is not to blame for its address: others may be behind it.
        if allowed == Some(Err(Spent::OfPeer)) {
            self.pools.reputation.note(Some(peer), None, Offence::Flood);
        }
        false
    }

    /// The settings have changed. Whatever asks for them when it needs them needs not be told.
    fn on_settings(&mut self) {
        let config = self.settings.now();
        self.rates.set(&config.relay);
        self.pools.fairness.set(config.traffic.total);
        // Validation of the configuration has already refused texts that are no addresses.
        if self.settings.is_draining() && !std::mem::replace(&mut self.drains, true) {
            self.tell_all();
        }
        self.announce.configured = config.announced().unwrap_or_default();
        let sockets = self.announce.configured.iter().filter_map(autonat::socket);
        self.swarm.behaviour_mut().autonat.announced(sockets);
        self.announce();
    }

    /// Tells a client something, by a message of `protocol`.
    fn tell(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: &'static str,
        message: Vec<u8>,
    ) {
        let requests = &mut self.swarm.behaviour_mut().requests;
        let id = requests.open(peer, connection, StreamProtocol::new(protocol));
        self.telling.insert(id, (peer, message));
    }

    /// Tells every client to move to another relay.
    fn tell_all(&mut self) {
        let farewell = self.farewell();
        for (peer, connection) in self.clients.all_reserved(Instant::now()) {
            self.tell(peer, connection, drain::PROTOCOL, farewell.clone());
        }
    }

    /// Tells those whose quota is nearly used up.
    fn tell_quotas(&mut self) {
        for (peer, left) in self.access.due() {
            if let Some(connection) = self.clients.newest(&peer, Instant::now()) {
                self.tell(peer, connection, notice::PROTOCOL, notice::encode(&left));
            }
        }
    }

    /// What the clients are told.
    fn farewell(&self) -> Vec<u8> {
        let config = self.settings.now();
        let drain = drain::Drain {
            time: Duration::from_secs(config.drain.seconds),
            // Validation of the configuration has already refused texts that are no addresses.
            relays: self
                .pools
                .reputation
                .order(config.successors().unwrap_or_default(), relay_id),
        };
        drain.encode()
    }

    /// Closes the connections that nobody needs.
    fn sweep(&mut self) {
        self.heart.beat(Instant::now());
        self.directory.sweep(Instant::now());
        self.room_rates.retain(|_, rate| rate.strong_count() > 0);
        self.count_directory();
        self.send_barred_away();
        self.tell_quotas();
        self.pools.reputation.show_age();
        for connection in self.clients.sweep(Instant::now()) {
            self.swarm.close_connection(connection);
        }
        let due = self.watch.sweep();
        for connection in due.close {
            self.swarm.close_connection(connection);
        }
        for (peer, connection) in due.probe {
            self.swarm.behaviour_mut().ping.probe(peer, connection);
        }
        self.count_reservations();
    }

    fn count_reservations(&self) {
        self.metrics.reservations(self.pools.reservations.taken());
    }

    fn count_directory(&self) {
        let [records, members] = [&self.pools.records, &self.pools.members].map(Pool::taken);
        self.metrics.directory(records, members);
    }

    fn count_connections(&self) {
        let counters = self.swarm.network_info();
        self.metrics
            .connections(counters.connection_counters().num_established());
    }

    /// Sets the external addresses to those that are announced. A reservation carries exactly these
    /// addresses, and a browser can dial a peer only by the WebSocket and WebRTC ones.
    fn announce(&mut self) {
        let wanted = self.announce.current();
        let known: BTreeSet<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        for address in known.difference(&wanted) {
            self.swarm.remove_external_address(address);
        }
        for address in wanted.difference(&known) {
            self.swarm.add_external_address(address.clone());
        }
        let texts = self.addresses().iter().map(Multiaddr::to_string).collect();
        self.announced.send_replace(texts);
    }
}

fn behaviour(
    keypair: &identity::Keypair,
    pools: &Pools,
    autonat: autonat::AutonatServer,
    protocols: Vec<StreamProtocol>,
) -> ServerBehaviour {
    let agent = concat!("throughline/", env!("CARGO_PKG_VERSION"));
    ServerBehaviour {
        limits: limits::LimitsBehaviour::new(pools.limits.clone()),
        identify: identify::Behaviour::new(
            identify::Config::new(String::from("ipfs/0.1.0"), keypair.public())
                .with_agent_version(agent.to_owned())
                // The addresses of a server's interfaces are private. Only its announced addresses
                // are public.
                .with_hide_listen_addrs(true),
        ),
        ping: Ping::default(),
        autonat,
        requests: Substreams::new(protocols, true),
    }
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

/// Returns the innermost source of `error`, which is the system's message. The messages of the
/// transports around it add nothing.
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

#[cfg(test)]
mod tests;
