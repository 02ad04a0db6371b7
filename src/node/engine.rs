//! The loop itself.

mod addresses;
mod start;

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    channel::mpsc as futures_mpsc,
    future::{BoxFuture, pending},
};
use libp2p::{
    Multiaddr, PeerId, Stream as Substream, StreamProtocol, Swarm,
    core::transport::ListenerId,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::start::start;
use super::{
    Command, Shared,
    behaviour::{Behaviour, BehaviourEvent},
    dials::{self, Dialling},
    opening::Purpose,
    relays::Relays,
    resumable::{PumpEvent, Via},
    session::Session,
    spares::Spares,
    streams::{self, OpenId},
    timers::Timers,
};
use crate::{
    Config,
    backend::{self, offer::Sealing},
    circuit,
    connection::Connection,
    core::{
        address,
        birthday::Guessing,
        plan::{AttemptId, Rules},
        race,
        resume::{self, Header},
    },
    error::{Error, ErrorKind},
    event::Strategy,
    report::{NatReport, Report},
    rtc,
};

/// How long streams that end may take before their connection closes: on a slow path two round
/// trips and a retransmission.
pub(super) const LAST_STREAMS: Duration = Duration::from_secs(2);
/// How long closing connections may take to say so.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// The name on the wire of a protocol that stock peers speak; libp2p's begin with a slash.
pub(super) fn raw_protocol(name: &str) -> Result<StreamProtocol, Error> {
    let wire = if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("/{name}")
    };
    StreamProtocol::try_from_owned(wire)
        .map_err(|_| Error::new(ErrorKind::InvalidProtocol, "not a libp2p protocol name"))
}

pub(super) struct Node {
    pub(super) config: Config,
    pub(super) swarm: Swarm<backend::heap::OnHeap<Behaviour>>,
    /// The sockets, and what is known of the network they are in.
    pub(super) net: backend::Net,
    /// Resolves when more is known of the NAT.
    nat_changed: BoxFuture<'static, ()>,
    pub(super) shared: Arc<Shared>,
    /// Weak, so that the loop ends when all handles are gone.
    pub(super) commands: mpsc::WeakSender<Command>,
    command_rx: mpsc::Receiver<Command>,
    pub(super) incoming: mpsc::Sender<Connection>,
    pub(super) pump_tx: futures_mpsc::Sender<PumpEvent>,
    pump_rx: futures_mpsc::Receiver<PumpEvent>,
    pub(super) internal_tx: mpsc::Sender<Internal>,
    internal_rx: mpsc::Receiver<Internal>,
    circuit_requests: futures_mpsc::Receiver<circuit::Request<Substream>>,
    pub(super) guesses: mpsc::Receiver<(PeerId, Guessing)>,
    pub(super) timers: Timers<Timer>,
    pub(super) sessions: HashMap<u64, Session>,
    pub(super) by_peer: HashMap<PeerId, u64>,
    pub(super) next_session: u64,
    pub(super) rules: Rules,
    pub(super) recorder: dials::Recorder,
    pub(super) dials: HashMap<ConnectionId, (DialFor, Dialling)>,
    /// Dials that libp2p makes by itself to punch a hole: for which session, and since when.
    pub(super) punches: HashMap<ConnectionId, (u64, Duration)>,
    pub(super) opening: HashMap<OpenId, Purpose>,
    /// Peers that are being told of a close, and who waits for it.
    pub(super) farewells: HashMap<PeerId, Vec<oneshot::Sender<()>>>,
    pub(super) raw: HashMap<StreamProtocol, String>,
    pub(super) relays: Relays,
    pub(super) spares: Spares,
    /// Seals offers, where the identity allows it.
    pub(super) sealer: Option<backend::offer::Sealer>,
    pub(super) online: Vec<oneshot::Sender<Result<(), Error>>>,
    /// A reservation is complete as soon as libp2p has nothing more to report at the moment.
    pub(super) settling: bool,
    listening: HashMap<ListenerId, Vec<Multiaddr>>,
    observed: Vec<Multiaddr>,
    /// Our addresses that others can dial, as AutoNAT servers have found.
    confirmed: Vec<Multiaddr>,
    shutdown: Vec<oneshot::Sender<()>>,
    stopping: bool,
}

/// What a dial of ours is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DialFor {
    Relay(PeerId),
    Attempt(u64, AttemptId),
}

pub(super) enum Timer {
    /// A session's race wants to know the time.
    Race(u64),
    /// The peer has had time to say by identify whether it speaks resumable streams.
    OpenDeadline(u64),
    /// No path came back in time.
    ResumeDeadline(u64),
    /// ICE has not told its pair.
    Pair(u64, ConnectionId),
    /// Time to see whether somebody still needs the session.
    Idle(u64),
    /// A stream's substream failed on a path that still stands.
    Reattach(u64, resume::StreamId),
    /// There is a place for a circuit that could wait.
    Spare,
    /// The pause after a relay's failure is over.
    RelayRested(PeerId),
    /// A relay has had long enough to grant a reservation.
    ReservationDeadline(ListenerId),
    OnlineDeadline,
    ShutdownDeadline,
}

/// What tasks of the node's own report.
pub(super) enum Internal {
    /// The header of a substream that a peer opened.
    Header {
        peer: PeerId,
        connection: Via,
        header: Header,
        substream: backend::offer::Carrier,
    },
    /// The peer knows that the connection is closed.
    FarewellDone(PeerId),
    /// A peer signals by a sealed offer, through a relay of ours.
    Offered(PeerId, circuit::Duplex, Sealing),
}

#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the loop's own stack"
)]
enum Input {
    Swarm(SwarmEvent<BehaviourEvent>),
    Settled,
    Pump(PumpEvent),
    Internal(Internal),
    Circuit(circuit::Request<Substream>),
    Guessing(PeerId, Guessing),
    Timer(Timer),
    Command(Command),
    NatChanged,
    HandlesGone,
}

/// Resolves when more is known of the NAT.
fn nat_changed(net: &backend::Net) -> BoxFuture<'static, ()> {
    let Some(mut nat) = net.rtc.nat() else {
        return pending().boxed();
    };
    async move {
        if nat.changed().await.is_err() {
            pending::<()>().await;
        }
    }
    .boxed()
}

impl Node {
    async fn run(mut self) {
        while !self.stopping {
            let input = poll_fn(|cx| self.poll_input(cx)).await;
            match input {
                Input::Swarm(event) => self.on_swarm(event),
                Input::Settled => self.on_settled(),
                Input::Pump(event) => self.on_pump(event),
                Input::Internal(event) => self.on_internal(event),
                Input::Circuit(request) => self.on_circuit_request(request),
                Input::Guessing(peer, guessing) => self.on_guessing(peer, guessing),
                Input::Timer(timer) => self.on_timer(timer),
                Input::Command(command) => self.on_command(command),
                Input::NatChanged => {
                    self.nat_changed = nat_changed(&self.net);
                    self.take_mapping();
                    self.refresh_ticket();
                    for id in self.sessions.keys().copied().collect::<Vec<_>>() {
                        self.end_hopeless(id);
                    }
                }
                Input::HandlesGone => self.begin_shutdown(),
            }
        }
        self.net.rtc.close().await;
        // First: what ends with it says so to servers, and the program may end with the reply.
        drop(self.swarm);
        drop(self.net);
        for reply in self.shutdown {
            let _ = reply.send(());
        }
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        if let Poll::Ready(Some(event)) = self.swarm.poll_next_unpin(cx) {
            return Poll::Ready(Input::Swarm(event));
        }
        if std::mem::take(&mut self.settling) {
            return Poll::Ready(Input::Settled);
        }
        if let Poll::Ready(Some(event)) = self.pump_rx.poll_next_unpin(cx) {
            return Poll::Ready(Input::Pump(event));
        }
        if let Poll::Ready(Some(event)) = self.internal_rx.poll_recv(cx) {
            return Poll::Ready(Input::Internal(event));
        }
        if let Poll::Ready(Some(request)) = self.circuit_requests.poll_next_unpin(cx) {
            return Poll::Ready(Input::Circuit(request));
        }
        if let Poll::Ready(Some((peer, guessing))) = self.guesses.poll_recv(cx) {
            return Poll::Ready(Input::Guessing(peer, guessing));
        }
        if self.nat_changed.poll_unpin(cx).is_ready() {
            return Poll::Ready(Input::NatChanged);
        }
        if let Poll::Ready(timer) = self.timers.poll(cx) {
            return Poll::Ready(Input::Timer(timer));
        }
        if self.shutdown.is_empty() {
            return self.command_rx.poll_recv(cx).map(|command| match command {
                Some(command) => Input::Command(command),
                None => Input::HandlesGone,
            });
        }
        Poll::Pending
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { ticket, reply } => self.connect(&ticket, reply),
            Command::Abandoned { peer } => self.abandon(peer.0),
            Command::OpenEarly {
                _sealing: _,
                ticket,
                protocol,
                reply,
            } => _ = reply.send(self.open_early(&ticket, &protocol)),
            Command::Open {
                session,
                protocol,
                reply,
            } => self.open(session, protocol, reply),
            Command::CloseSession { session, reply } => self.close_session(session, Some(reply)),
            Command::Online { reply } => self.wait_online(reply),
            Command::Report { reply } => {
                let _ = reply.send(self.report());
            }
            Command::Shutdown { reply } => {
                self.shutdown.push(reply);
                self.begin_shutdown();
            }
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        // What was told of an attempt before it ended.
        self.take_guesses();
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.on_established(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                let cause = cause.map(|c| c.to_string());
                self.on_link_closed(peer_id, connection_id, cause.as_deref());
                self.on_conn_closed(peer_id, connection_id);
            }
            SwarmEvent::Dialing {
                peer_id: Some(peer),
                connection_id,
            } => self.on_dialling(peer, connection_id),
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                error,
                ..
            } => self.on_dial_error(connection_id, &error),
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                self.on_listen_addr(listener_id, &address);
                let known = self.listening.entry(listener_id).or_default();
                known.push(address);
                self.refresh_ticket();
            }
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                if let Some(known) = self.listening.get_mut(&listener_id) {
                    known.retain(|a| *a != address);
                }
                if address::route(&address) == address::Route::Direct {
                    self.on_network_changed();
                }
                self.refresh_ticket();
            }
            SwarmEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => {
                self.listening.remove(&listener_id);
                let reason = reason.err().map(|e| e.to_string());
                self.on_reservation_ended(listener_id, reason.as_deref());
                self.refresh_ticket();
            }
            SwarmEvent::NewExternalAddrCandidate { address } => self.observe(address),
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(address),
            SwarmEvent::ExternalAddrExpired { address } => {
                self.confirmed.retain(|known| *known != address);
                self.confirmed_changed();
            }
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(streams::Event::Opened { id, result }) => {
                self.on_opened(id, result);
            }
            BehaviourEvent::Streams(streams::Event::Inbound {
                peer,
                connection,
                protocol,
                stream,
            }) => self.on_inbound(peer, connection, protocol, stream),
            BehaviourEvent::Rtc(rtc::Event::Path {
                peer,
                connection,
                pair,
            }) => self.on_pair(peer, connection, &pair),
            BehaviourEvent::Stock(event) => {
                let Some(event) = backend::stock::ping(event) else {
                    return;
                };
                self.on_ping(event.peer, event.connection, event.result);
            }
            BehaviourEvent::Identify(libp2p::identify::Event::Received {
                peer_id, info, ..
            }) => {
                let stock = &mut self.swarm.behaviour_mut().stock;
                backend::stock::identified(stock, peer_id, &info.protocols);
                let protocols = info.protocols.iter().map(ToString::to_string).collect();
                self.on_identified(peer_id, protocols);
            }
            _ => {}
        }
    }

    fn on_internal(&mut self, event: Internal) {
        match event {
            Internal::Header {
                peer,
                connection,
                header,
                substream,
            } => self.on_header(peer, connection, header, substream),
            Internal::FarewellDone(peer) => self.finish_farewell(peer),
            Internal::Offered(peer, stream, _) => {
                self.swarm.behaviour_mut().rtc.signalled(peer, stream);
            }
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Race(session) => self.race(session, race::Event::Tick),
            Timer::OpenDeadline(session) => self.on_open_deadline(session),
            Timer::ResumeDeadline(session) => self.on_resume_deadline(session),
            Timer::Pair(session, conn) => self.on_pair_unknown(session, conn),
            Timer::Idle(session) => self.on_idle(session),
            Timer::Reattach(session, stream) => self.attach(session, stream),
            Timer::Spare => self.start_spares(),
            Timer::RelayRested(relay) => self.on_relay_rested(relay),
            Timer::ReservationDeadline(listener) => self.on_reservation_deadline(listener),
            Timer::OnlineDeadline => self.on_online_deadline(),
            Timer::ShutdownDeadline => self.stopping = true,
        }
    }

    fn report(&self) -> Report {
        let listening = self.listening.values().flatten();
        let nat = self.net.rtc.nat();
        let nat = nat.map_or_else(NatReport::default, |nat| nat.borrow().clone());
        let strategies = Strategy::ALL.iter().copied();
        let usable = |s: &Strategy| *s == Strategy::CircuitRelay || self.rules.ice.contains(s);
        Report {
            peer_id: self.shared.peer_id.to_string(),
            relays: self.relays.report(),
            listening: listening.map(ToString::to_string).collect(),
            observed: self.observed.iter().map(ToString::to_string).collect(),
            nat,
            confirmed: self.confirmed.iter().map(ToString::to_string).collect(),
            connections: self.sessions.len(),
            strategies: strategies.filter(usable).collect(),
        }
    }

    fn begin_shutdown(&mut self) {
        if self.shutdown.is_empty() {
            // Nobody waits, but the loop's end is marked by somebody waiting.
            self.shutdown.push(oneshot::channel().0);
        }
        self.command_rx.close();
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.close_session(session, None);
        }
        let patience = LAST_STREAMS + FAREWELL * 2;
        self.timers.after(patience, Timer::ShutdownDeadline);
        self.stop_if_done();
    }

    /// A shutdown is done when the last peer knows of it.
    pub(super) fn stop_if_done(&mut self) {
        if !self.shutdown.is_empty() && self.farewells.is_empty() {
            self.stopping = true;
        }
    }
}

/// Uniform in `0.0..1.0`, for jitter.
pub(super) fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter, which is no harm.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
