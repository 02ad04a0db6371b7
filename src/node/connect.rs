//! Sessions with peers: begun by a connect or by the peer, kept on their best path, ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use libp2p::{PeerId, core::ConnectedPoint, ping, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot};

use super::{
    engine::{DialFor, Node, Timer},
    relays::Link,
    session::{Conn, INCOMING_STREAMS, Session, Targets, Waiting, keep_newest, path_of},
};
use crate::{
    connection::{Connection, SessionState},
    core::{
        address::{self, Route},
        circuit::EARLY_PROTOCOL,
        offer::OFFER_PROTOCOL,
        race::Event,
    },
    error::{Error, ErrorKind},
    event::{Cause, Path, PathKind, Strategy},
    identity::PeerId as PublicPeerId,
    rtc::CandidatePair,
    ticket::{MAX_ADDRESSES, Ticket, relay_id},
};

/// A browser tells its nominated pair within a few of its statistics' ticks.
const PAIR_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest pause between two looks at whether a session is idle.
const IDLE_TICK: Duration = Duration::from_millis(100);

/// What becomes of the libp2p connections of a session that ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Conns {
    Close,
    /// One of them is needed to say so to the peer.
    Keep,
}

impl Node {
    pub(super) fn connect(
        &mut self,
        ticket: &Ticket,
        reply: oneshot::Sender<Result<Connection, Error>>,
    ) {
        match self.session_by(ticket) {
            Ok(id) => self.pursue(id, Waiting::Connect(reply)),
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    /// The session with the peer that `ticket` names.
    pub(super) fn session_by(&mut self, ticket: &Ticket) -> Result<u64, Error> {
        let peer = ticket.peer_id().0;
        if peer == *self.swarm.local_peer_id() {
            let own = "the ticket is this peer's own";
            return Err(Error::new(ErrorKind::InvalidTicket, own));
        }
        let id = match self.by_peer.get(&peer) {
            Some(id) => *id,
            None => self.new_session(peer)?,
        };
        self.learn_targets(id, ticket);
        Ok(id)
    }

    /// Seeks a path for `waiting`, if there is none.
    pub(super) fn pursue(&mut self, id: u64, waiting: Waiting) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.waiting.push_back(waiting);
            let deadline = session.started.elapsed() + self.config.connect_timeout;
            self.race(id, Event::Connect { deadline });
            self.link_for_offers(id);
            self.replan(id);
        }
    }

    pub(super) fn new_session(&mut self, peer: PeerId) -> Result<u64, Error> {
        if self.sessions.len() >= self.config.max_connections {
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("max_connections: {} are open", self.sessions.len()),
            ));
        }
        let id = self.next_session;
        self.next_session += 1;
        let state = Arc::new(SessionState::new());
        let (incoming, handle) = self.new_handle(peer, id, &state)?;
        let session = Session::new(peer, state, handle.downgrade(), incoming, &self.config);
        self.sessions.insert(id, session);
        self.by_peer.insert(peer, id);
        self.shared.metrics.connections.inc();
        self.timers
            .after(self.config.idle_timeout.max(IDLE_TICK), Timer::Idle(id));
        Ok(id)
    }

    fn new_handle(
        &self,
        peer: PeerId,
        id: u64,
        state: &Arc<SessionState>,
    ) -> Result<(mpsc::Sender<super::session::Incoming>, Connection), Error> {
        let commands = self
            .commands
            .upgrade()
            .ok_or_else(crate::connector::closed)?;
        let (sender, receiver) = mpsc::channel(INCOMING_STREAMS);
        let handle = Connection::new(PublicPeerId(peer), id, commands, receiver, state.clone());
        Ok((sender, handle))
    }

    /// A handle to the session: the one that is out, or a new one.
    pub(super) fn handle(&mut self, id: u64) -> Result<Connection, Error> {
        let session = self
            .sessions
            .get(&id)
            .ok_or_else(crate::connector::closed)?;
        if let Some(handle) = session.handle.upgrade() {
            return Ok(handle);
        }
        let (incoming, handle) = self.new_handle(session.peer, id, &session.state)?;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.incoming = incoming;
            session.handle = handle.downgrade();
        }
        Ok(handle)
    }

    fn learn_targets(&mut self, id: u64, ticket: &Ticket) {
        let direct = self.config.direct;
        let local = *self.swarm.local_peer_id();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if ticket.is_resumable() {
            session.resumable = Some(true);
        }
        let targets = session.targets.get_or_insert_with(Targets::default);
        targets.incarnation = ticket.incarnation().or(targets.incarnation);
        for relay in ticket.relay_addrs() {
            let Some(relay_peer) = relay_id(relay).filter(|r| *r != local) else {
                continue;
            };
            self.relays.learn(relay_peer, relay, false);
            if ticket.is_forwarded() {
                self.relays.trust(&relay_peer);
            }
            keep_newest(&mut targets.relays, relay_peer, MAX_ADDRESSES);
        }
        if direct {
            // The peer's checks come as soon as it has our offer, and ours later than that.
            self.net.rtc.open_nat(ticket.mapped_addrs());
            for addr in ticket.direct_addrs() {
                if address::route(addr) == Route::Direct {
                    keep_newest(&mut targets.direct, addr.clone(), MAX_ADDRESSES);
                }
            }
        }
    }

    pub(super) fn on_established(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let attempt = match self.dials.remove(&conn) {
            Some((DialFor::Attempt(id, attempt), _)) => Some((id, attempt)),
            Some((DialFor::Relay(_), _)) | None => None,
        };
        let route = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address::route(address),
            ConnectedPoint::Listener {
                local_addr,
                send_back_addr,
            } => match address::route(local_addr) {
                Route::Direct => address::route(send_back_addr),
                other => other,
            },
        };
        if route == Route::Direct && self.relays.get(&peer).is_some() && attempt.is_none() {
            self.on_link_up(peer, conn, endpoint.get_remote_address());
            return;
        }
        let known = self.by_peer.get(&peer).copied();
        let (id, attempt) = match (attempt, known) {
            // The session it was dialled for may have ended meanwhile.
            (Some((id, attempt)), _) if self.sessions.contains_key(&id) => (id, Some(attempt)),
            (_, Some(id)) => (id, None),
            (None, None) if endpoint.is_listener() => match self.new_session(peer) {
                Ok(id) => (id, None),
                Err(error) => {
                    tracing::debug!(%error, "an incoming connection is refused");
                    self.turn_away(peer, conn, Vec::new());
                    return;
                }
            },
            _ => {
                self.swarm.close_connection(conn);
                return;
            }
        };
        let local = *self.swarm.local_peer_id();
        let is_new = known.is_none() && endpoint.is_listener();
        let punched = route == Route::Direct && self.punched(id, conn, endpoint.is_dialer());
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let mut entry = match route {
            Route::WebRtc => {
                self.timers.after(PAIR_TIMEOUT, Timer::Pair(id, conn));
                Conn::webrtc(attempt)
            }
            Route::Circuit(relay) => Conn::circuit(relay, attempt),
            Route::Direct => Conn::direct(endpoint.get_remote_address(), attempt),
        };
        if let (true, Some(path)) = (punched, &mut entry.path) {
            path.strategy = Strategy::Stun;
        }
        entry.dialled = endpoint.is_dialer();
        if entry.relay.is_some()
            && let Some(surplus) = session.surplus_circuit(local, conn, &entry)
        {
            // The one that stays is up for both, so nothing is lost with the other.
            self.swarm.close_connection(surplus);
            if surplus == conn {
                return;
            }
        }
        let strategy = entry.path.as_ref().map(|p| p.strategy);
        session.add(conn, entry);
        if let (Some(attempt), Some(strategy)) = (attempt, strategy) {
            self.race(id, Event::Succeeded(attempt, strategy));
        }
        self.choose_path(id);
        if is_new {
            self.announce(id, Some(conn));
        }
    }

    /// Hands a connection that the peer made to whoever accepts.
    pub(super) fn announce(&mut self, id: u64, conn: Option<ConnectionId>) {
        let Ok(connection) = self.handle(id) else {
            return;
        };
        if let Err(error) = self.incoming.try_send(connection) {
            tracing::debug!(%error, "nobody accepts, an incoming connection is refused");
            if let Some(session) = self.sessions.get(&id) {
                let peer = session.peer;
                self.end_session(id, ErrorKind::ConnectionClosed, Conns::Keep);
                if let Some(conn) = conn {
                    self.turn_away(peer, conn, Vec::new());
                }
            }
        }
    }

    /// ICE tells which pair carries a connection.
    pub(super) fn on_pair(&mut self, peer: PeerId, conn: ConnectionId, pair: &CandidatePair) {
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        self.set_path(id, conn, path_of(pair));
    }

    pub(super) fn on_pair_unknown(&mut self, id: u64, conn: ConnectionId) {
        let unknown = self
            .sessions
            .get(&id)
            .and_then(|s| s.conns.get(&conn))
            .is_some_and(|c| c.path.is_none());
        if unknown {
            self.set_path(id, conn, Path::new(PathKind::Direct, Strategy::Stun));
        }
    }

    fn set_path(&mut self, id: u64, conn: ConnectionId, path: Path) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(entry) = session.conns.get_mut(&conn) else {
            return;
        };
        let strategy = path.strategy;
        let is_first = entry.path.replace(path).is_none();
        if let (true, Some(attempt)) = (is_first, entry.attempt) {
            self.race(id, Event::Succeeded(attempt, strategy));
        }
        self.choose_path(id);
    }

    pub(super) fn on_ping(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        result: Result<Duration, ping::Failure>,
    ) {
        if let Some(relay) = self.relays.get_mut(&peer)
            && matches!(&relay.link, Link::Up(id, _) if *id == conn)
        {
            match &result {
                Ok(rtt) => relay.rtt = Some(*rtt),
                // A relay that vanished without a word: TCP would hope for a quarter of an hour.
                Err(ping::Failure::Timeout) => _ = self.swarm.close_connection(conn),
                Err(_) => {}
            }
        }
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(entry) = session.conns.get_mut(&conn) else {
            return;
        };
        match result {
            Ok(rtt) => {
                entry.suspect = false;
                if let Some(path) = &mut entry.path {
                    path.rtt = Some(rtt);
                }
            }
            Err(ping::Failure::Unsupported) => return,
            Err(error) => {
                tracing::debug!(%error, "a path does not answer");
                entry.suspect = true;
            }
        }
        let suspect = entry.suspect;
        self.choose_path(id);
        let replaced = self
            .sessions
            .get(&id)
            .is_some_and(|s| suspect && s.active != Some(conn));
        if replaced {
            self.swarm.close_connection(conn);
        }
    }

    pub(super) fn on_identified(&mut self, peer: PeerId, protocols: HashSet<String>) {
        if let Some(relay) = self.relays.get_mut(&peer) {
            let forwards = [EARLY_PROTOCOL, OFFER_PROTOCOL];
            relay.forwards = forwards.iter().all(|name| protocols.contains(*name));
            self.replan_over(peer);
            self.refresh_ticket();
        }
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.resumable = Some(protocols.contains(crate::core::resume::PROTOCOL));
        session.protocols = protocols;
        self.release_opens(id);
    }

    /// Puts the session on its best path, brings its streams along, and lets the race know.
    pub(super) fn choose_path(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let had = session.active.is_some();
        let moved = session.reselect(&self.shared.metrics);
        let has = session.active.is_some();
        if moved && has {
            self.move_streams(id);
        }
        if had && !has {
            let timeout = self.config.resume_timeout;
            self.timers.after(timeout, Timer::ResumeDeadline(id));
        }
        self.replan(id);
    }

    pub(super) fn on_conn_closed(&mut self, peer: PeerId, conn: ConnectionId) {
        let Some(&id) = self.by_peer.get(&peer) else {
            if !self.swarm.is_connected(&peer) {
                self.finish_farewell(peer);
            }
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(gone) = session.conns.remove(&conn) else {
            return;
        };
        // A stock peer knows nothing of resuming: with its last connection it is gone.
        if session.conns.is_empty() && session.resumable != Some(true) {
            self.end_session(id, ErrorKind::ConnectionClosed, Conns::Close);
            return;
        }
        if let (Some(attempt), None) = (gone.attempt, gone.path) {
            let reason = "it broke as soon as it was up".to_owned();
            self.attempt_failed(id, attempt, Cause::Transport, reason);
        }
        self.choose_path(id);
    }

    pub(super) fn on_resume_deadline(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        // One that early data began, and no path followed, has been without since its beginning.
        let since = session.lost_since.unwrap_or(session.started);
        let over = session.active.is_none() && since.elapsed() >= self.config.resume_timeout;
        if over {
            self.end_session(id, ErrorKind::ConnectionLost, Conns::Close);
        }
    }

    pub(super) fn on_idle(&mut self, id: u64) {
        let timeout = self.config.idle_timeout;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let needed =
            session.handle.is_alive() || !session.pumps.is_empty() || !session.waiting.is_empty();
        if needed {
            session.idle_since = None;
        } else {
            let since = *session
                .idle_since
                .get_or_insert_with(web_time::Instant::now);
            if since.elapsed() >= timeout {
                self.close_session(id, None);
                return;
            }
        }
        self.timers
            .after((timeout / 2).max(IDLE_TICK), Timer::Idle(id));
    }

    /// Removes a session and fails what hangs on it.
    pub(super) fn end_session(&mut self, id: u64, kind: ErrorKind, conns: Conns) {
        self.race(id, Event::Closed);
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        self.by_peer.remove(&session.peer);
        let metrics = &self.shared.metrics;
        metrics.path_changed(session.state.path().map(|p| p.strategy), None);
        metrics.connections.dec();
        let ended = || Error::new(kind, "the connection is closed");
        for (_, pump) in session.pumps.drain() {
            metrics.streams.dec();
            pump.handle.fail(ended());
        }
        for (_, reply) in session.opens.drain(..) {
            let _ = reply.send(Err(ended()));
        }
        for waiting in session.waiting.drain(..) {
            if let Waiting::Connect(reply) = waiting {
                let _ = reply.send(Err(ended()));
            }
        }
        session.state.close(kind);
        if conns == Conns::Close {
            for conn in session.conns.keys() {
                self.swarm.close_connection(*conn);
            }
        }
        self.release_relays();
    }
}
