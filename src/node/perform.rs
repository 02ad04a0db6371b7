//! How the loop performs effects and the commands of handles.

use std::collections::HashSet;

use futures::FutureExt as _;
use libp2p::{Multiaddr, PeerId, Stream as Substream, StreamProtocol};
use web_time::Instant;

use super::{
    Command,
    effect::{Conns, Effect},
    engine::{Internal, Node},
    network::{DialFor, Purpose},
    relays::{RelayLink, ReservationId, SiteId, Sought},
    session::{TOO_MANY, Waiting},
};
use crate::{
    attendance::Seat,
    backend,
    connection::Connection,
    core::{
        address,
        circuit::CircuitError,
        plan::AttemptId,
        race,
        reservation::ReservationError,
        site::{By, RelayText, Site},
    },
    error::{Error, ErrorKind},
    event::{Cause, Strategy},
    report::{NatReport, Report},
    stream::{SessionId, Stream},
    swarm::{circuit, reservation, substreams::OpenError},
    ticket::{Ticket, relay_id},
    webrtc::IceServer,
};

impl Node {
    pub(super) fn perform(&mut self, effect: Effect) {
        if effect.is_news() {
            self.status.is_old = true;
        }
        let effects = &mut self.effects;
        match effect {
            Effect::Start(id, attempt, turn) => self.start_attempt(id, attempt, turn),
            Effect::Cancel(id, peer, attempt) => self.cancel(id, peer, attempt),
            Effect::Failed(id, attempt, cause, reason) => {
                if let Some((session, mut round)) = self.session(id) {
                    session.attempt_failed(attempt, cause, reason, &mut round);
                }
            }
            Effect::DialOver(id, relay) => self.dial_over(id, &relay),
            Effect::RelayChanged(relay) => {
                for id in self.sessions.over(&relay) {
                    if let Some((session, mut round)) = self.session(id) {
                        session.send_all_early(&mut round);
                        session.on_way_back(&mut round);
                        round.effects.replan(id);
                    }
                    self.look_up(id);
                }
            }
            Effect::RelayGone(relay) => {
                // No offer goes over this relay, so a spare circuit starts now.
                for id in self.sessions.over(&relay) {
                    self.tell(id, race::RaceEvent::Due);
                }
            }
            Effect::Reserved => {
                let held = self.relays.held();
                self.shared.metrics.reservations.set(held as i64);
                self.online.settle();
            }
            Effect::Directory(relay) => self.on_directory(relay),
            Effect::NoRelay => self.answer_no_relay(),
            Effect::Dial(purpose, opts) => {
                // The dial runs in a task, which carries the span.
                let span = self.dial_span(purpose);
                if let Err(error) = span.in_scope(|| self.network.dial(purpose, *opts)) {
                    self.on_dial_failed(purpose, &error);
                }
            }
            Effect::GiveUp(purpose) => self.network.take_back(purpose),
            Effect::Announce(relays) => relays.iter().for_each(|r| self.network.announce(r)),
            Effect::Withdraw(relays) => relays.iter().for_each(|r| self.network.withdraw(r)),
            Effect::CloseConnection(conn) => self.network.close(conn),
            Effect::ProbeLink(relay, how) => self.relays.probe(relay, how, effects),
            Effect::DoubtMapping => self.net.rtc.doubt_mapping(),
            Effect::Probe(peer, conn) => self.network.probe(peer, conn),
            Effect::Open {
                peer,
                connection,
                protocol,
                purpose,
            } => self.network.open(peer, connection, protocol, purpose),
            Effect::UseTurn(relay, server) => self.use_turn(relay, server),
            Effect::SpareTurn(peer, spare) => self.net.rtc.spare_turn(peer, spare),
            Effect::UseServers(relay, stun, turn) => self.use_servers(relay, stun, turn),
            Effect::ForgetServers(relay) => self.net.rtc.forget_servers(&relay),
            Effect::AskSite(id, site, by) => self.ask_site(id, site, by),
            Effect::Found(id, relay) => {
                if let Some((session, mut round)) = self.session(id) {
                    session.found(relay, &mut round);
                }
            }
            Effect::StatusChanged => {}
            Effect::SignalOver(peer, stream) => self.network.rtc().signal_over(peer, stream),
            Effect::Spawn(task) => backend::runtime::spawn(task),
            Effect::After(pause, timer) => self.timers.after(pause, timer),
            Effect::End(id, kind, conns) => self.end_session(id, kind, conns),
            Effect::CloseSession(id) => self.close_session(id, None),
            Effect::Settle => self.online.settle(),
            Effect::FarewellDone(peer) => self.finish_farewell(peer),
            Effect::ReleaseRelays => self.release_relays(),
            Effect::StopIfDone => self.stop_if_done(),
        }
    }

    fn start_attempt(&mut self, id: SessionId, attempt: AttemptId, turn: bool) {
        match attempt {
            AttemptId::Circuit(relay) => self.start_circuit(id, relay),
            AttemptId::Direct => {
                if let Some((session, mut round)) = self.session(id) {
                    session.start_direct(&mut round);
                }
            }
            AttemptId::Ice => {
                if let Some((session, mut round)) = self.session(id) {
                    session.start_ice(turn, &mut round);
                }
                self.end_hopeless(id);
            }
        }
    }

    /// Dials a circuit. If the link to its relay is not up, dials that first.
    fn start_circuit(&mut self, id: SessionId, relay: PeerId) {
        let most = self.config.max_circuits;
        let has_room = self.has_room(id, most);
        let Some(link) = self.relays.get(&relay).map(|relay| relay.link.clone()) else {
            return;
        };
        let Some((session, mut round)) = self.session(id) else {
            return;
        };
        let refused = if !has_room {
            Some(format!("max_circuits: {most} are open"))
        } else if link == RelayLink::Down && !session.may_dial_relay(&relay, &round) {
            Some(TOO_MANY.to_owned())
        } else {
            None
        };
        if let Some(reason) = refused {
            let attempt = AttemptId::Circuit(relay);
            session.attempt_failed(attempt, Cause::Limit, reason, &mut round);
            return;
        }
        match link {
            RelayLink::Up(..) if !self.relays.awaits_access(&relay) => self.dial_over(id, &relay),
            RelayLink::Up(..) | RelayLink::Dialling(_) => self.relays.wait_for(&relay, id),
            RelayLink::Down => {
                self.relays.wait_for(&relay, id);
                self.relays.dial(relay, &mut self.effects);
            }
        }
    }

    /// Whether another circuit may be made. Beyond the limit it may if its session has no path and
    /// a circuit of another session can be closed, because it does not carry that session's
    /// traffic.
    fn has_room(&mut self, id: SessionId, most: usize) -> bool {
        // The circuit that is about to be made counts already.
        if self.sessions.our_circuits() <= most {
            return true;
        }
        let needed = self.sessions.get(id).is_some_and(|s| !s.has_path());
        needed
            && self.sessions.ids().into_iter().any(|other| {
                self.session(other)
                    .is_some_and(|(session, mut round)| session.spare_circuit(&mut round))
            })
    }

    /// Dials a session's circuit over the link to its relay, which is up.
    fn dial_over(&mut self, id: SessionId, relay: &PeerId) {
        let Some(RelayLink::Up(_, addr)) = self.relays.get(relay).map(|r| r.link.clone()) else {
            return;
        };
        if let Some((session, mut round)) = self.session(id) {
            let address = address::circuit(&addr, session.peer());
            session.dial(AttemptId::Circuit(*relay), vec![address], &mut round);
        }
        // The relay may have had to see our token first.
        self.look_up(id);
    }

    fn cancel(&mut self, id: SessionId, peer: PeerId, attempt: AttemptId) {
        self.network.take_back(DialFor::Attempt(id, attempt));
        match attempt {
            AttemptId::Circuit(relay) => self.relays.stop_waiting(&relay, id),
            AttemptId::Ice => self.network.rtc().retract(&peer),
            AttemptId::Direct => {}
        }
    }

    /// The request for a stream on which a relay is asked for something has been answered.
    pub(super) fn ask_relay(
        &mut self,
        relay: PeerId,
        id: Option<ReservationId>,
        how: reservation::Ask,
        stream: Result<Substream, OpenError>,
    ) {
        let report = self.outbox.internal.clone();
        let patience = self.config.relay_timeout;
        let access = matches!(how, reservation::Ask::Access { .. });
        let ask = async move {
            let answer = match stream {
                Ok(stream) => reservation::ask(stream, how, patience).await,
                Err(OpenError::Unsupported) => Err(ReservationError::NoRelay),
                Err(error) => Err(ReservationError::NoAnswer(error.to_string())),
            };
            let _ = report
                .send(Internal::Answered(relay, id, access, answer))
                .await;
        };
        self.effects.push(Effect::Spawn(ask.boxed()));
    }

    /// Asks a site for its relay.
    fn ask_site(&mut self, id: SiteId, site: Site, by: By) {
        let report = self.outbox.internal.clone();
        let asked = self.net.sites.ask(site, by, self.config.relay_timeout);
        let ask = async move {
            let answer = asked.await;
            let _ = report.send(Internal::Site(id, answer)).await;
        };
        self.effects.push(Effect::Spawn(ask.boxed()));
    }

    /// The request for a stream on which a relay is asked what it says of itself has been answered.
    pub(super) fn read_profile(&mut self, relay: PeerId, stream: Result<Substream, OpenError>) {
        let (report, policy) = (self.outbox.internal.clone(), self.policy.clone());
        let patience = self.config.relay_timeout;
        let read = async move {
            let Ok(stream) = stream else {
                return;
            };
            match reservation::ask_profile(stream, &policy, patience).await {
                Ok(learnt) => _ = report.send(Internal::Profile(relay, learnt)).await,
                Err(error) => tracing::debug!(%relay, %error, "a relay does not say what it is"),
            }
        };
        self.effects.push(Effect::Spawn(read.boxed()));
    }

    /// A relay has said what its servers are. Those of the user win.
    fn use_servers(&mut self, relay: PeerId, stun: Vec<String>, turn: Option<IceServer>) {
        if self.config.direct && self.config.stun.is_empty() {
            self.net.rtc.use_stun(relay, stun);
        }
        if let Some(turn) = turn.filter(|_| self.config.asks_for_turn()) {
            self.use_turn(relay, turn);
        }
        if self.config.direct {
            self.net.rtc.prepare();
        }
    }

    /// A relay has given us access to a TURN server. The next connections use it.
    fn use_turn(&mut self, relay: PeerId, server: IceServer) {
        self.net.rtc.use_turn(relay, server);
        self.rules.turn = true;
    }

    /// Starts spare circuits whose turn has come.
    pub(super) fn start_spares(&mut self) {
        let now = Instant::now();
        let waits = |sessions: &super::session::Sessions, id| {
            let session = sessions.get(id);
            session.is_some_and(|session| session.awaits_circuit())
        };
        while let Some(id) = self.spares.call(now, |id| waits(&self.sessions, id)) {
            self.tell(id, race::RaceEvent::Due);
        }
    }

    /// Ends the strategies of ICE that cannot work from this end of a connection.
    pub(super) fn end_hopeless(&mut self, id: SessionId) {
        let Some(nat) = self.net.rtc.nat() else {
            return;
        };
        let hopeless = nat.borrow().hopeless.clone();
        if let Some((session, mut round)) = self.session(id) {
            session.end_hopeless(&hopeless, &mut round);
        }
    }

    /// The transport dials a circuit. Opens the substream to its relay if the link is up.
    pub(super) fn on_circuit_request(&mut self, request: circuit::CircuitRequest<Substream>) {
        let circuit::CircuitRequest { relay, reply } = request;
        let Some((connection, protocol)) = self.relays.circuit_link(&relay) else {
            let _ = reply.send(Err(CircuitError::NoLink));
            return;
        };
        self.effects.push(Effect::Open {
            peer: relay,
            connection,
            protocol: StreamProtocol::new(protocol),
            purpose: Purpose::Circuit(reply),
        });
    }

    /// Removes a session. Its streams and the callers that wait for it get an error.
    pub(super) fn end_session(&mut self, id: SessionId, kind: ErrorKind, conns: Conns) {
        let (sessions, mut round) = self.split();
        if let Some(session) = sessions.remove(id) {
            session.end(kind, conns, &mut round);
            round.push(Effect::ReleaseRelays);
        }
    }

    /// Closes links that only ended sessions needed. It waits until all farewells are over, because
    /// a link may carry one.
    pub(super) fn release_relays(&mut self) {
        if !self.farewells.is_empty() {
            return;
        }
        let sessions = self.sessions.iter();
        let used: HashSet<_> = sessions.flat_map(|s| s.relays().iter().copied()).collect();
        for relay in self.relays.release(&used) {
            self.network.disconnect(relay);
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { ticket, reply } => match self.session_by(&ticket) {
                Ok(id) => self.pursue(id, Waiting::Connect(reply)),
                Err(error) => _ = reply.send(Err(error)),
            },
            Command::OpenEarly {
                ticket,
                protocol,
                reply,
            } => _ = reply.send(self.open_early(&ticket, &protocol)),
            Command::Abandoned { peer } => {
                if let Some((session, mut round)) = self.session_with(&peer.0) {
                    session.abandon(&mut round);
                }
            }
            Command::Open {
                session,
                protocol,
                reply,
            } => match self.session(session) {
                Some((session, mut round)) => session.open(protocol, reply, &mut round),
                None => {
                    let kind = ErrorKind::ConnectionClosed;
                    let closed = Error::new(kind, "the connection is closed");
                    let _ = reply.send(Err(closed));
                }
            },
            Command::CloseSession { session, reply } => self.close_session(session, Some(reply)),
            Command::Online { reply } => self.wait_online(reply),
            Command::Join { keys, data, reply } => _ = reply.send(Seat(self.join(keys, &data))),
            Command::Report { reply } => _ = reply.send(self.report()),
            Command::Shutdown { reply } => self.begin_shutdown(Some(reply)),
        }
    }

    /// Returns the session with the peer that `ticket` names, after it has learnt from the ticket.
    /// If there is none, it begins.
    fn session_by(&mut self, ticket: &Ticket) -> Result<SessionId, Error> {
        let (peer, local) = (ticket.peer_id().0, self.network.local());
        if peer == local {
            let own = "the ticket is this peer's own";
            return Err(Error::new(ErrorKind::InvalidTicket, own));
        }
        let named = ticket.relay_names().iter();
        let named = named.filter_map(|name| name.parse().ok());
        let sites: Vec<_> = named.filter_map(RelayText::into_site).collect();
        let mut relays = Vec::new();
        // A peer that only has a name is looked for at our own relays.
        if sites.is_empty() && ticket.relay_addrs().is_empty() && ticket.direct_addrs().is_empty() {
            relays.extend(self.relays.of_user());
        }
        let addresses = ticket.relay_addrs().len() + ticket.direct_addrs().len();
        let leads = sites.len() + relays.len() + addresses;
        let is_led = leads > 0 || self.net.lan.is_on();
        if !is_led && self.sessions.with(&peer).is_none() {
            let message = "no relay is configured where the peer can be looked up";
            return Err(Error::new(ErrorKind::NoRelay, message));
        }
        let id = match self.sessions.with(&peer) {
            Some(id) => id,
            None => self.begin_session(peer)?,
        };
        self.learn(id, ticket);
        let mut awaited = 0;
        for site in &sites {
            match self.relays.seek(site, id, &mut self.effects) {
                Sought::Known(relay) => relays.push(relay),
                Sought::Asked => awaited += 1,
                Sought::Nowhere => {}
            }
        }
        if let Some((session, _)) = self.session(id) {
            session.seek_anew(relays);
            session.await_places(awaited);
        }
        Ok(id)
    }

    /// Learns from a ticket of the peer of a session.
    pub(super) fn learn(&mut self, id: SessionId, ticket: &Ticket) {
        let local = self.network.local();
        for address in ticket.relay_addrs() {
            if let Some(relay) = relay_id(address) {
                self.relays.learn(relay, address, false);
                if ticket.is_forwarded() {
                    self.relays.trust(&relay);
                }
            }
        }
        let direct = self.config.direct;
        if direct {
            // The peer's checks may arrive before ours have opened the NAT, so it is opened now.
            self.net.rtc.open_nat(ticket.mapped_addrs());
        }
        if let Some((session, _)) = self.session(id) {
            session.learn(ticket, local, direct);
        }
    }

    /// Makes `waiting` wait for a path, and seeks one if there is none.
    fn pursue(&mut self, id: SessionId, waiting: Waiting) {
        let Some((session, mut round)) = self.session(id) else {
            return;
        };
        session.pursue(waiting, &mut round);
        // The link for sealed offers is dialled now, whenever the circuit starts.
        if let Some(relay) = session.link_for_offers(&round) {
            self.relays.dial(relay, &mut self.effects);
        }
        self.look_up(id);
        self.look_around(id);
    }

    /// Opens a stream to a peer, and begins a session if there is none. It does not wait for a
    /// path.
    fn open_early(
        &mut self,
        ticket: &Ticket,
        protocol: &str,
    ) -> Result<(Connection, Stream), Error> {
        let id = self.session_by(ticket)?;
        let (session, mut round) = self.session(id).ok_or_else(super::closed)?;
        session.check_room(&round)?;
        let connection = session.handle(&round)?;
        let (stream_id, stream) = session.open_resumable(protocol, &mut round)?;
        self.pursue(id, Waiting::Stream(stream_id));
        Ok((connection, stream))
    }

    pub(super) fn report(&self) -> Report {
        let text = |address: &Multiaddr| address.to_string();
        let nat = self.net.rtc.nat();
        let nat = nat.map_or_else(NatReport::default, |nat| nat.borrow().clone());
        let strategies = Strategy::ALL.iter().copied();
        Report {
            peer_id: self.shared.peer_id.to_string(),
            relays: self.relays.report(),
            listening: self.own.listening().map(text).collect(),
            observed: self.own.observed().iter().map(text).collect(),
            nat,
            confirmed: self.own.confirmed().iter().map(text).collect(),
            connections: self.sessions.len(),
            strategies: strategies.filter(|s| self.rules.allows(*s)).collect(),
        }
    }
}
