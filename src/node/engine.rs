//! The event loop. It takes one input, performs effects until none is left, makes a new plan for
//! each session that was touched, and waits for the next input.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt as _, StreamExt as _,
    channel::mpsc as futures_mpsc,
    future::{BoxFuture, pending},
};
use libp2p::{
    Multiaddr, PeerId, Stream as Substream,
    identity::Keypair,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::sync::mpsc;
use web_time::Instant;

use super::{
    Command, Shared,
    behaviour::NodeBehaviourEvent,
    directory::{Inquiry, Records},
    effect::Effects,
    farewells::{Farewells, Shutdown},
    network::Network,
    online::Online,
    own_addresses::OwnAddresses,
    relays::{Relays, ReservationId, SiteId, Spares},
    rooms::{RoomId, Rooms},
    round::{Outbox, Round, random},
    session::{Session, Sessions},
    status::Told,
    timers::{Timer, Timers},
};
use crate::{
    Config,
    backend::{self, trace},
    core::{
        access::Admitted,
        dial::Policy,
        directory::Answer,
        drain::Drain,
        liveness::Hint,
        plan::{Late, Rules},
        profile::Learnt,
        race,
        reservation::ReservationError,
        resume::Header,
        room::Source,
        site::Fault,
    },
    offer::Sealer,
    stream::{BoxedStream, PumpEvent, SessionId, Via},
    swarm::circuit,
};

pub(super) struct Node {
    pub(super) config: Config,
    pub(super) rules: Rules,
    pub(super) shared: Arc<Shared>,
    pub(super) network: Network,
    /// The backend's sockets, and what it knows about the network that they are in.
    pub(super) net: backend::Net,
    pub(super) inputs: Inputs,
    pub(super) outbox: Outbox,
    pub(super) timers: Timers<Timer>,
    pub(super) effects: Effects,
    pub(super) sessions: Sessions,
    pub(super) relays: Relays,
    pub(super) spares: Spares,
    /// Seals offers. It is `None` if the identity's key cannot do that.
    pub(super) sealer: Option<Sealer>,
    /// What others may make us dial.
    pub(super) policy: Arc<Policy>,
    /// Signs what the directories of relays are told.
    pub(super) key: Keypair,
    pub(super) records: Records,
    pub(super) rooms: Rooms,
    pub(super) own: OwnAddresses,
    pub(super) online: Online,
    pub(super) status: Told,
    pub(super) farewells: Farewells,
    pub(super) shutdown: Shutdown,
}

/// The inputs of the loop, besides the swarm and the timers.
pub(super) struct Inputs {
    /// Resolves when more is known about the NAT.
    pub(super) nat_changed: BoxFuture<'static, ()>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) pumps: futures_mpsc::Receiver<PumpEvent>,
    pub(super) internal: mpsc::Receiver<Internal>,
    pub(super) circuits: futures_mpsc::Receiver<circuit::CircuitRequest<Substream>>,
    pub(super) signals: backend::Signals,
}

impl Inputs {
    /// Takes no further commands.
    pub(super) fn close(&mut self) {
        self.commands.close();
    }
}

/// A report from a task that the loop has spawned.
pub(super) enum Internal {
    /// The header of a substream that a peer opened has arrived.
    Header {
        peer: PeerId,
        connection: Via,
        header: Header,
        substream: BoxedStream,
    },
    /// The peer knows that the connection is closed, or the time for telling it is over.
    FarewellDone(PeerId),
    /// A peer signals ICE with a sealed offer, through a relay of ours.
    Offered(PeerId, BoxedStream),
    /// A relay has answered what it was asked for, and whether that was access. The answer may have a
    /// reservation.
    Answered(
        PeerId,
        Option<ReservationId>,
        bool,
        Result<Admitted, ReservationError>,
    ),
    /// The directory of a relay has answered. Without an answer, it was not asked, or too slow.
    Inquired(PeerId, Inquiry, Option<Answer>),
    /// The local network was asked for the peer of this session, which is at these addresses.
    Nearby(SessionId, Vec<Multiaddr>),
    /// The stream over which a room was attended has ended.
    Attended(RoomId, Source),
    /// A relay has said over this link that it is about to end.
    Drains(PeerId, ConnectionId, Drain),
    /// A site has answered, or has not.
    Site(SiteId, Result<Learnt, Fault>),
    /// A relay has said what it is.
    Profile(PeerId, Learnt),
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one input at a time, on the loop's own stack"
)]
enum Input {
    Swarm(SwarmEvent<NodeBehaviourEvent>),
    Settled,
    Pump(PumpEvent),
    Internal(Internal),
    Circuit(circuit::CircuitRequest<Substream>),
    Late(PeerId, Late),
    Timer(Timer),
    Command(Command),
    NatChanged,
    Hint(Hint),
    HandlesGone,
}

/// Resolves when more is known about the NAT. On a page, it never resolves.
pub(super) fn nat_changed(net: &backend::Net) -> BoxFuture<'static, ()> {
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
    pub(super) async fn run(mut self) {
        // `start` has pushed effects already.
        self.run_dry();
        while !self.shutdown.is_over() {
            self.tell_status();
            let input = poll_fn(|cx| self.poll_input(cx)).await;
            self.take(input);
            self.run_dry();
        }
        self.net.rtc.close().await;
        // The swarm and the sockets go before the reply. They tell servers of their end as they are
        // dropped, and the program may exit on the reply.
        drop(self.network);
        drop(self.net);
        self.shutdown.answer();
    }

    /// Returns the most urgent input that is ready.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        if let Poll::Ready(Some(event)) = self.network.swarm.poll_next_unpin(cx) {
            return Poll::Ready(Input::Swarm(event));
        }
        if self.online.take_settling() {
            return Poll::Ready(Input::Settled);
        }
        let inputs = &mut self.inputs;
        if let Poll::Ready(Some(event)) = inputs.pumps.poll_next_unpin(cx) {
            return Poll::Ready(Input::Pump(event));
        }
        if let Poll::Ready(Some(event)) = inputs.internal.poll_recv(cx) {
            return Poll::Ready(Input::Internal(event));
        }
        if let Poll::Ready(Some(request)) = inputs.circuits.poll_next_unpin(cx) {
            return Poll::Ready(Input::Circuit(request));
        }
        if let Poll::Ready((peer, late)) = self.net.poll_late(cx) {
            return Poll::Ready(Input::Late(peer, late));
        }
        if inputs.nat_changed.poll_unpin(cx).is_ready() {
            return Poll::Ready(Input::NatChanged);
        }
        if let Poll::Ready(hint) = inputs.signals.poll_hint(cx) {
            return Poll::Ready(Input::Hint(hint));
        }
        if let Poll::Ready(timer) = self.timers.poll(cx) {
            return Poll::Ready(Input::Timer(timer));
        }
        if !self.shutdown.has_begun() {
            return inputs.commands.poll_recv(cx).map(|command| match command {
                Some(command) => Input::Command(command),
                None => Input::HandlesGone,
            });
        }
        Poll::Pending
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Swarm(event) => self.on_swarm(event),
            Input::Settled => self.on_settled(),
            Input::Pump(event) => {
                if let Some((session, mut round)) = self.session(event.session()) {
                    session.on_pump(event, &mut round);
                }
            }
            Input::Internal(event) => self.on_internal(event),
            Input::Circuit(request) => self.on_circuit_request(request),
            Input::Late(peer, late) => self.on_late(&peer, late),
            Input::Timer(timer) => {
                if self.timers.have_stood_still() {
                    self.probe_all(Hint::Network);
                }
                self.on_timer(timer);
            }
            Input::Command(command) => self.on_command(command),
            Input::NatChanged => {
                self.inputs.nat_changed = nat_changed(&self.net);
                self.take_mapping();
                self.refresh_ticket();
                for id in self.sessions.ids() {
                    self.end_hopeless(id);
                }
            }
            Input::Hint(hint) => self.probe_all(hint),
            Input::HandlesGone => self.begin_shutdown(None),
        }
    }

    /// Performs effects, and makes new plans for touched sessions, until neither is left.
    fn run_dry(&mut self) {
        loop {
            if let Some(effect) = self.effects.next() {
                self.perform(effect);
            } else if let Some(id) = self.effects.next_replan() {
                if let Some((session, mut round)) = self.session(id) {
                    session.replan(&mut round);
                }
            } else {
                return;
            }
        }
    }

    /// Splits the node into the sessions, and what their methods know of everything else.
    pub(super) fn split(&mut self) -> (&mut Sessions, Round<'_>) {
        let round = Round {
            now: Instant::now(),
            config: &self.config,
            rules: &self.rules,
            metrics: &self.shared.metrics,
            outbox: &self.outbox,
            relays: &self.relays,
            spares: &mut self.spares,
            sealer: self.sealer.as_ref(),
            effects: &mut self.effects,
            entered: None,
            random,
        };
        (&mut self.sessions, round)
    }

    pub(super) fn session(&mut self, id: SessionId) -> Option<(&mut Session, Round<'_>)> {
        let (sessions, mut round) = self.split();
        let session = sessions.get_mut(id)?;
        round.entered = Some(trace::enter(session.span()));
        Some((session, round))
    }

    /// Returns the session with `peer`, and what its methods know of everything else.
    pub(super) fn session_with(&mut self, peer: &PeerId) -> Option<(&mut Session, Round<'_>)> {
        self.session(self.sessions.with(peer)?)
    }

    /// Tells a session's race what happened.
    pub(super) fn tell(&mut self, id: SessionId, event: race::RaceEvent) {
        if let Some((session, mut round)) = self.session(id) {
            session.tell(event, &mut round);
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
            Internal::Offered(peer, stream) => self.network.rtc().signalled(peer, stream),
            Internal::Answered(relay, id, access, answer) => {
                self.relays
                    .on_access(relay, id, access, answer, &mut self.effects);
            }
            Internal::Inquired(relay, inquiry, answer) => self.on_inquired(relay, inquiry, answer),
            Internal::Nearby(id, addresses) => {
                // A page asks nobody, and the code for it is left out there.
                if self.net.lan.is_on()
                    && let Some((session, mut round)) = self.session(id)
                {
                    session.on_nearby(addresses, &mut round);
                }
            }
            Internal::Attended(room, source) => self.on_attended(room, source),
            Internal::Drains(relay, link, drain) => {
                self.relays.on_drain(relay, link, drain, &mut self.effects);
            }
            Internal::Site(site, answer) => self.relays.on_site(site, answer, &mut self.effects),
            Internal::Profile(relay, learnt) => {
                self.relays.on_profile(relay, learnt, &mut self.effects);
            }
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        let effects = &mut self.effects;
        match timer {
            Timer::Session(id, deadline) => {
                if let Some((session, mut round)) = self.session(id) {
                    session.on_deadline(deadline, &mut round);
                }
            }
            Timer::Link(relay) => {
                let heard = self.sessions.heard_over(&relay);
                self.relays.on_link_deadline(relay, heard, effects);
            }
            Timer::Unanswered(relay, dial) => self.relays.on_unanswered(relay, dial, effects),
            Timer::Spare => self.start_spares(),
            Timer::RelayRested(relay) => self.relays.on_rested(&relay, effects),
            Timer::ReservationDeadline(relay, id) => {
                self.relays.on_reservation_deadline(relay, id, effects);
            }
            Timer::Site(site) => self.relays.on_site_due(site, effects),
            Timer::Leave(relay, link) => self.relays.leave(relay, link, effects),
            Timer::Renew(relay, id) => self.relays.renew(relay, id, effects),
            Timer::Record(relay) => {
                if self.relays.is_record_due(&relay) {
                    self.put_record(relay);
                }
            }
            Timer::JoinDeadline(room) => self.on_join_deadline(room),
            Timer::Attend(room, relay) => self.attend(room, relay),
            Timer::Unseen(room, source) => self.on_unseen(room, source),
            Timer::OnlineDeadline => self.on_online_deadline(),
            Timer::ShutdownDeadline => self.shutdown.end(),
        }
    }

    /// Takes what strategies that join ICE by themselves have reported so far.
    pub(super) fn take_late(&mut self) {
        while let Some((peer, late)) = self.net.take_late() {
            self.on_late(&peer, late);
        }
    }

    fn on_late(&mut self, peer: &PeerId, late: Late) {
        if let Some((session, mut round)) = self.session_with(peer) {
            session.on_late(late, &mut round);
        }
    }
}
