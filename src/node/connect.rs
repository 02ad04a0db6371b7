//! Dials peers, takes in what comes up, and keeps each session on its best path.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, transport::TransportError},
    ping,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::mpsc;

use super::{
    engine::{Dial, Node, Timer, random},
    relays::Link,
    session::{AttemptId, Conn, INCOMING_STREAMS, Session, Targets, Waiting, path_of},
};
use crate::{
    connection::{Connection, SessionState},
    core::{
        address::{self, Route},
        circuit::{CircuitError, EARLY_PROTOCOL},
    },
    error::{Error, ErrorKind},
    event::{Outcome, Path, PathKind, Strategy},
    identity::PeerId as PublicPeerId,
    rtc::CandidatePair,
    ticket::{Ticket, relay_id},
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
    pub(super) fn connect(&mut self, ticket: &Ticket, reply: Waiting) {
        let peer = ticket.peer_id().0;
        if peer == *self.swarm.local_peer_id() {
            let own = Error::new(ErrorKind::InvalidTicket, "the ticket is this peer's own");
            let _ = reply.send(Err(own));
            return;
        }
        let id = match self.by_peer.get(&peer) {
            Some(id) => *id,
            None => match self.new_session(peer) {
                Ok(id) => id,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return;
                }
            },
        };
        self.learn_targets(id, ticket);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.active.is_some() {
            let connection = self.handle(id);
            let _ = reply.send(connection);
            return;
        }
        session.waiting.push(reply);
        let timeout = self.config.connect_timeout;
        self.timers.after(timeout, Timer::ConnectDeadline(id));
        self.dial(id);
    }

    fn new_session(&mut self, peer: PeerId) -> Result<u64, Error> {
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
        for relay in ticket.relay_addrs() {
            let Some(relay_peer) = relay_id(relay).filter(|r| *r != local) else {
                continue;
            };
            self.relays.learn(relay_peer, relay, false);
            if !targets.relays.contains(&relay_peer) {
                targets.relays.push(relay_peer);
            }
        }
        if direct {
            for addr in ticket.direct_addrs() {
                if address::route(addr) == Route::Direct && !targets.direct.contains(addr) {
                    targets.direct.push(addr.clone());
                }
            }
        }
    }

    /// Starts every way to the peer that is not under way yet, all at once.
    fn dial(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let Some(targets) = &session.targets else {
            return;
        };
        let relays = if session.has_circuit() {
            Vec::new()
        } else {
            targets.relays.clone()
        };
        let direct = targets.direct.clone();
        let has_better = session.has_better();
        for relay in relays {
            self.dial_circuit(id, relay);
        }
        if !has_better && !direct.is_empty() {
            self.dial_direct(id, direct);
        }
        self.fail_if_nothing_runs(id);
    }

    fn dial_direct(&mut self, id: u64, addresses: Vec<Multiaddr>) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.attempts.contains_key(&AttemptId::Direct) {
            return;
        }
        session.begin(
            AttemptId::Direct,
            vec![Strategy::Direct],
            &self.shared.metrics,
        );
        let opts = DialOpts::peer_id(session.peer)
            .addresses(addresses)
            .condition(PeerCondition::Always)
            .build();
        self.start_dial(id, AttemptId::Direct, opts);
    }

    fn dial_circuit(&mut self, id: u64, relay: PeerId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let attempt = AttemptId::Circuit(relay);
        if session.attempts.contains_key(&attempt) {
            return;
        }
        session.begin(attempt, vec![Strategy::CircuitRelay], &self.shared.metrics);
        self.link_for(id, relay);
    }

    /// The relay is there: asks it for a circuit.
    pub(super) fn dial_over(&mut self, id: u64, relay: PeerId) {
        let Some(Link::Up(_, addr)) = self.relays.get(&relay).map(|r| r.link.clone()) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let opts = DialOpts::peer_id(session.peer)
            .addresses(vec![address::circuit(&addr, session.peer)])
            .condition(PeerCondition::Always)
            .build();
        self.start_dial(id, AttemptId::Circuit(relay), opts);
    }

    fn start_dial(&mut self, id: u64, attempt: AttemptId, opts: DialOpts) {
        let conn = opts.connection_id();
        self.dials.insert(conn, Dial::Attempt(id, attempt));
        if let Err(error) = self.swarm.dial(opts) {
            self.on_dial_error(conn, &error);
        }
    }

    /// libp2p dials by itself: where there is a circuit already, to punch a hole.
    pub(super) fn on_dialling(&mut self, peer: PeerId, conn: ConnectionId) {
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.has_circuit()) else {
            return;
        };
        let attempt = AttemptId::Punch;
        session.begin(attempt, vec![Strategy::Stun], &self.shared.metrics);
        self.dials.insert(conn, Dial::Attempt(id, attempt));
    }

    pub(super) fn on_dial_error(&mut self, conn: ConnectionId, error: &DialError) {
        match self.dials.remove(&conn) {
            Some(Dial::Relay(relay)) => self.on_link_failed(relay, &dial_reason(error)),
            Some(Dial::Attempt(id, attempt)) => {
                if let (Some(session), DialError::WrongPeerId { .. }) =
                    (self.sessions.get_mut(&id), error)
                {
                    session.wrong_peer = true;
                }
                let label = match error {
                    DialError::WrongPeerId { .. } => "wrong_peer",
                    DialError::Transport(errors) => {
                        circuit_error(errors).map_or("transport", CircuitError::label)
                    }
                    DialError::Denied { .. } => "denied",
                    _ => "other",
                };
                self.attempt_failed(id, attempt, label, &dial_reason(error));
            }
            None => {}
        }
    }

    pub(super) fn attempt_failed(
        &mut self,
        id: u64,
        attempt: AttemptId,
        label: &'static str,
        reason: &str,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.fail(
            attempt,
            Outcome::Failed,
            label,
            reason,
            &self.shared.metrics,
        );
        if attempt == AttemptId::Ice {
            if session.upgrade.failures() < self.config.upgrade_tries {
                let pause = session.upgrade.fail(random());
                self.timers.after(pause, Timer::Upgrade(id));
            }
            return;
        }
        // While connects wait for a first path, one round of attempts is all that is made.
        if session.waiting.is_empty() && !session.has_circuit() && session.attempts.is_empty() {
            let pause = session.redial.fail(random());
            self.timers.after(pause, Timer::Redial(id));
        }
        self.fail_if_nothing_runs(id);
    }

    fn fail_if_nothing_runs(&mut self, id: u64) {
        let done = self.sessions.get(&id).is_some_and(|session| {
            session.attempts.is_empty() && session.conns.is_empty() && !session.waiting.is_empty()
        });
        if done {
            self.fail_connects(id, "no path to the peer came up; check that it is online, and ask it for a fresh ticket");
        }
    }

    pub(super) fn on_connect_deadline(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        if session.active.is_some() || session.waiting.is_empty() {
            return;
        }
        let timeout = self.config.connect_timeout;
        // A later connect to the same peer has a deadline of its own.
        if session.started.elapsed() >= timeout {
            let message = format!(
                "no path to the peer came up within {} ms",
                timeout.as_millis()
            );
            for attempt in session.attempts.keys().copied().collect::<Vec<_>>() {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.fail(
                        attempt,
                        Outcome::Failed,
                        "timeout",
                        "no answer in time",
                        &self.shared.metrics,
                    );
                }
            }
            self.fail_connects(id, &message);
        }
    }

    fn fail_connects(&mut self, id: u64, message: &str) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let kind = if session.wrong_peer {
            ErrorKind::WrongPeer
        } else {
            ErrorKind::Unreachable
        };
        let message = match session.targets.as_ref() {
            Some(t) if t.relays.is_empty() && t.direct.is_empty() => {
                "the ticket holds no relay and no address that the configuration lets us dial"
            }
            _ => message,
        };
        for reply in std::mem::take(&mut session.waiting) {
            let error = Error::new(kind, message).with_attempts(session.failed.clone());
            let _ = reply.send(Err(error));
        }
        if session.conns.is_empty() && session.lost_since.is_none() {
            self.end_session(id, kind, Conns::Close);
        }
    }

    pub(super) fn on_established(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let attempt = match self.dials.remove(&conn) {
            Some(Dial::Relay(_)) => None,
            Some(Dial::Attempt(id, attempt)) => Some((id, attempt)),
            None => None,
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
                    self.swarm.close_connection(conn);
                    return;
                }
            },
            _ => {
                self.swarm.close_connection(conn);
                return;
            }
        };
        let is_new = known.is_none() && endpoint.is_listener();
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let entry = match route {
            Route::WebRtc => {
                self.timers.after(PAIR_TIMEOUT, Timer::Pair(id, conn));
                Conn::webrtc(attempt)
            }
            Route::Circuit(relay) => Conn::circuit(relay, attempt),
            Route::Direct => Conn::direct(endpoint.get_remote_address(), attempt),
        };
        let strategy = entry.path.as_ref().map(|p| p.strategy);
        if entry.relay.is_some() && session.has_circuit() {
            // Two relays were as quick; the second circuit is of no use.
            if let Some(attempt) = attempt {
                let reason = "another relay was sooner";
                session.fail(
                    attempt,
                    Outcome::Cancelled,
                    "cancelled",
                    reason,
                    &self.shared.metrics,
                );
                self.swarm.close_connection(conn);
                return;
            }
        }
        session.add(conn, entry);
        if let (Some(attempt), Some(strategy)) = (attempt, strategy) {
            session.succeed(attempt, strategy, &self.shared.metrics);
        }
        session.redial.reset();
        self.choose_path(id);
        if is_new {
            self.announce(id);
        }
        self.upgrade(id);
    }

    /// Hands a connection that the peer made to whoever accepts.
    fn announce(&mut self, id: u64) {
        let Ok(connection) = self.handle(id) else {
            return;
        };
        if let Err(error) = self.incoming.try_send(connection) {
            tracing::debug!(%error, "nobody accepts, an incoming connection is refused");
            self.close_session(id, None);
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
        let first = entry.path.is_none();
        let strategy = path.strategy;
        entry.path = Some(path);
        if let (true, Some(attempt)) = (first, entry.attempt) {
            session.succeed(attempt, strategy, &self.shared.metrics);
            session.upgrade.reset();
        }
        self.choose_path(id);
    }

    pub(super) fn on_ping(
        &mut self,
        peer: PeerId,
        conn: ConnectionId,
        result: Result<Duration, ping::Failure>,
    ) {
        if let (Some(relay), Ok(rtt)) = (self.relays.get_mut(&peer), &result)
            && matches!(&relay.link, Link::Up(id, _) if *id == conn)
        {
            relay.rtt = Some(*rtt);
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
            relay.early = protocols.contains(EARLY_PROTOCOL);
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

    /// Puts the session on its best path and brings its streams along.
    pub(super) fn choose_path(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let had = session.active.is_some();
        let moved = session.reselect(&self.shared.metrics);
        let has = session.active.is_some();
        if has && !session.waiting.is_empty() {
            let waiting = std::mem::take(&mut session.waiting);
            for reply in waiting {
                let connection = self.handle(id);
                let _ = reply.send(connection);
            }
        }
        if moved && has {
            self.move_streams(id);
        }
        if had && !has {
            let timeout = self.config.resume_timeout;
            self.timers.after(timeout, Timer::ResumeDeadline(id));
            self.redial(id);
        }
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
        self.choose_path(id);
        if gone.relay.is_some() {
            self.redial(id);
        } else {
            self.upgrade(id);
        }
    }

    /// Tries for a path that is better than a circuit, if there is none and it is ours to try.
    pub(super) fn upgrade(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !self.config.direct
            || session.targets.is_none()
            || session.has_better()
            || session.attempts.contains_key(&AttemptId::Ice)
        {
            return;
        }
        let Some(circuit) = session.circuit() else {
            return;
        };
        let opts = DialOpts::peer_id(session.peer)
            .addresses(vec![address::webrtc(circuit, session.peer)])
            .condition(PeerCondition::Always)
            .build();
        let mut strategies = vec![Strategy::Direct, Strategy::Stun];
        if !self.config.turn.is_empty() {
            strategies.push(Strategy::Turn);
        }
        session.begin(AttemptId::Ice, strategies, &self.shared.metrics);
        self.start_dial(id, AttemptId::Ice, opts);
    }

    /// Brings a lost circuit back, which is the fallback and carries the signalling.
    pub(super) fn redial(&mut self, id: u64) {
        let needed = self.sessions.get(&id).is_some_and(|session| {
            session.targets.is_some() && (!session.has_circuit() || session.active.is_none())
        });
        if needed {
            self.dial(id);
        }
    }

    pub(super) fn on_resume_deadline(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let over = session
            .lost_since
            .is_some_and(|since| since.elapsed() >= self.config.resume_timeout);
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
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        self.by_peer.remove(&session.peer);
        let metrics = &self.shared.metrics;
        for attempt in session.attempts.keys().copied().collect::<Vec<_>>() {
            let reason = "the connection is closed";
            session.fail(attempt, Outcome::Cancelled, "cancelled", reason, metrics);
        }
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
        for reply in session.waiting.drain(..) {
            let _ = reply.send(Err(ended()));
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

/// What a relay said against a circuit, if that is what a dial failed of.
fn circuit_error(errors: &[(Multiaddr, TransportError<io::Error>)]) -> Option<CircuitError> {
    errors.iter().find_map(|(_, error)| {
        let mut next: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(*found);
            }
            next = error.source();
        }
        None
    })
}

/// What a dial's error says, without libp2p's nesting.
fn dial_reason(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let mut reasons: Vec<String> = Vec::new();
            for (address, error) in errors {
                let mut innermost: &dyn std::error::Error = error;
                while let Some(source) = innermost.source() {
                    innermost = source;
                }
                tracing::debug!(%address, %error, "a dial failed");
                let reason = innermost.to_string();
                if !reasons.contains(&reason) && reasons.len() < 4 {
                    reasons.push(reason);
                }
            }
            if reasons.is_empty() {
                "no address of a kind that can be dialled here".to_owned()
            } else {
                reasons.join(", ")
            }
        }
        DialError::NoAddresses => "no address of a kind that can be dialled here".to_owned(),
        DialError::WrongPeerId { obtained, .. } => {
            format!("another peer answered: {obtained}")
        }
        DialError::Denied { .. } => "refused by a limit".to_owned(),
        other => other.to_string(),
    }
}
