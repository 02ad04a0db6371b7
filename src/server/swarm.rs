//! The libp2p side of the server: its behaviours and the task that drives them.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `start`, `transport` | how a relay starts: its listeners and transports |
//! | `admission` | who gets what they ask for |
//! | `hops` | reservations, circuits and offers of those that are admitted |
//! | `directory` | what peers ask the directory |
//! | `telling` | what clients are told without having asked |
//! | `addresses` | which addresses are announced |
//! | `journal`, `traffic` | the line in the log about each connection, and its bytes |

pub(super) mod addresses;
mod admission;
mod directory;
mod hops;
mod journal;
mod start;
mod telling;
mod traffic;
mod transport;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    identify,
    multiaddr::Protocol,
    swarm::{self, ConnectionId, NetworkBehaviour, SwarmEvent},
};
use tokio::{
    sync::{oneshot, watch},
    time,
};

use self::{
    addresses::{Announcements, preference},
    journal::Journal,
};
use super::{
    access::{Access, Meter},
    autonat,
    circuits::{self, Carried, Circuits, End},
    clients::Clients,
    descriptors::Descriptors,
    directory::Directory,
    fleet::Sisters,
    heart::Heart,
    metrics::Metrics,
    pool::{Pool, Pools},
    profile::Profiles,
    relay_rates::Rates,
    settings::Settings,
    turn::TurnOffer,
    usage::Usage,
    watch::Watch,
};
pub(crate) use crate::native::behaviours::limits::ip_of;
use crate::{
    core::{quota::Holder, reached::Reached, reputation::Offence},
    native::{behaviours::limits, transports::handed::Arrivals, udp::Sockets},
    swarm::{
        ping::Ping,
        substreams::{OpenId, SubstreamEvent, Substreams},
    },
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
    pub(super) directory: Arc<dyn Directory>,
    /// The other servers of the fleet.
    pub(super) sisters: Sisters,
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
    /// The other servers of the fleet.
    sisters: Sisters,
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

#[cfg(test)]
mod tests;
