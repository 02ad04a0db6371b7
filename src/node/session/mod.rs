//! A session: everything that this peer has with one other peer, behind one
//! [`Connection`](crate::Connection).
//!
//! - `targets`: where the peer can be dialled.
//! - `race`: the attempts to reach the peer, and the callers that wait for a path.
//! - `paths`: the libp2p connections with the peer. One of them carries the session's traffic.
//! - `probes`: what becomes of a path that does not answer.
//! - `streams`: the session's streams.
//! - `datagrams`: the lanes of the paths, and what the peer takes.
//! - `early`: streams that are sent, sealed, before there is a path.
//! - `farewell`: the end of the session.
//! - `tests`: a session without a loop, whose effects the tests compare.
//!
//! A method takes what has happened and a [`Round`], changes the session, and pushes effects. Facts
//! flow from `paths` to `streams` and `race`. When a path comes up or breaks, `paths` chooses the
//! path anew, `streams` moves the streams to it, and the session is marked for a new plan. When all
//! effects are performed, the loop calls `replan`. `race` makes the plan, and pushes what it starts
//! and takes back as effects.

mod datagrams;
mod early;
mod farewell;
mod paths;
mod probes;
mod race;
mod streams;
mod targets;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::sync::mpsc;
use web_time::Instant;

pub(super) use self::{
    paths::Conn,
    probes::DOUBT_PROTOCOL,
    race::{TOO_MANY, Waiting},
    streams::on_raw_opened,
    targets::keep_newest,
};
use self::{paths::Paths, race::Attempts, streams::Streams, targets::Targets};
use super::{
    command::closed,
    effect::Effect,
    round::Round,
    timers::{Deadline, Timer},
};
use crate::{
    backend::trace::Span,
    connection::{Connection, SessionState, WeakConnection},
    core::rest::Rest,
    error::{Error, ErrorKind},
    event::{Attempt, Cause, Outcome, PathEvent, Strategy},
    identity::PeerId as PublicPeerId,
    stream::{SessionId, Stream},
};

/// The shortest pause between two checks whether a session is idle.
const IDLE_TICK: Duration = Duration::from_millis(100);

/// A stream that the peer opened. It is boxed, because the channel allocates room for many at once.
pub(crate) type Incoming = Box<(String, Stream)>;

/// Everything that this peer has with one other peer.
pub(super) struct Session {
    id: SessionId,
    peer: PeerId,
    started: Instant,
    /// The state that handles read directly.
    state: Arc<SessionState>,
    handle: WeakConnection,
    incoming: mpsc::Sender<Incoming>,
    idle_since: Option<Instant>,
    /// Where the peer can be dialled. It is `None` if no ticket named the peer: then the peer
    /// dials.
    targets: Option<Targets>,
    attempts: Attempts,
    paths: Paths,
    rest: Rest,
    streams: Streams,
}

impl Session {
    fn new(id: SessionId, peer: PeerId, round: &mut Round<'_>) -> Result<Self, Error> {
        let state = Arc::new(SessionState::new(&peer, round.metrics));
        let (incoming, handle) = new_handle(id, peer, &state, round)?;
        round.metrics.connections.inc();
        let first_look = round.config.idle_timeout.max(IDLE_TICK);
        round.after(first_look, Timer::Session(id, Deadline::Idle));
        Ok(Self {
            id,
            peer,
            started: round.now,
            state,
            handle: handle.downgrade(),
            incoming,
            idle_since: None,
            targets: None,
            attempts: Attempts::new(round.config.acceptance_delay),
            paths: Paths::default(),
            rest: Rest::new(round.now),
            streams: Streams::default(),
        })
    }

    /// The span of all that is logged about the connection.
    pub(super) fn span(&self) -> &Span {
        &self.state.span
    }

    pub(super) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Returns how long the session has lasted.
    pub(super) fn age(&self, round: &Round<'_>) -> Duration {
        round.now.saturating_duration_since(self.started)
    }

    /// Returns a handle to the session: the existing one if there is one, or a new one.
    pub(super) fn handle(&mut self, round: &Round<'_>) -> Result<Connection, Error> {
        if let Some(handle) = self.handle.upgrade() {
            return Ok(handle);
        }
        let (incoming, handle) = new_handle(self.id, self.peer, &self.state, round)?;
        self.incoming = incoming;
        self.handle = handle.downgrade();
        Ok(handle)
    }

    /// An attempt has begun. Counts it, and remembers it for whoever asks why there is no path yet.
    pub(super) fn began(&self, strategy: Strategy, round: &Round<'_>) {
        round.metrics.attempt_started(strategy);
        self.state.began(strategy, self.age(round));
    }

    /// An attempt has ended. Counts it, and tells whoever watches the connection.
    pub(super) fn record(&self, attempt: Attempt, round: &Round<'_>) {
        match (attempt.outcome, attempt.cause) {
            (Outcome::Succeeded, _) => {
                let took = attempt.ended.saturating_sub(attempt.started);
                round.metrics.attempt_succeeded(attempt.strategy, took);
            }
            (_, cause) => {
                let cause = cause.unwrap_or(Cause::Transport);
                round.metrics.attempt_failed(attempt.strategy, cause);
            }
        }
        self.state.emit(PathEvent::Attempt(attempt));
    }

    fn wake_after(&self, pause: Duration, deadline: Deadline, round: &mut Round<'_>) {
        round.after(pause, Timer::Session(self.id, deadline));
    }

    /// A deadline of the session has come.
    pub(super) fn on_deadline(&mut self, deadline: Deadline, round: &mut Round<'_>) {
        match deadline {
            Deadline::Race => self.on_race_deadline(round),
            Deadline::Identify => self.on_identify_deadline(round),
            Deadline::Resume => self.on_resume_deadline(round),
            Deadline::Probe(conn) => self.on_probe_deadline(conn, round),
            Deadline::Pair(conn) => self.on_pair_deadline(conn, round),
            Deadline::Idle => self.on_idle(round),
            Deadline::Reattach(stream) => self.attach(stream, round),
        }
    }

    /// Closes the session if nobody has needed it for the idle timeout.
    fn on_idle(&mut self, round: &mut Round<'_>) {
        let timeout = round.config.idle_timeout;
        let needed = self.handle.is_alive() || self.streams.any() || self.attempts.is_waited_for();
        if needed {
            self.idle_since = None;
        } else {
            let since = *self.idle_since.get_or_insert(round.now);
            if round.now.saturating_duration_since(since) >= timeout {
                round.push(Effect::CloseSession(self.id));
                return;
            }
        }
        let pause = (timeout / 2).max(IDLE_TICK);
        self.wake_after(pause, Deadline::Idle, round);
    }
}

fn new_handle(
    id: SessionId,
    peer: PeerId,
    state: &Arc<SessionState>,
    round: &Round<'_>,
) -> Result<(mpsc::Sender<Incoming>, Connection), Error> {
    let commands = round.outbox.commands.upgrade().ok_or_else(closed)?;
    // Streams that wait to be accepted count among all streams, so no other limit is needed.
    let (sender, receiver) = mpsc::channel(round.config.max_streams);
    let handle = Connection::new(PublicPeerId(peer), id, commands, receiver, state.clone());
    Ok((sender, handle))
}

/// All sessions. There is at most one with each peer.
#[derive(Default)]
pub(super) struct Sessions {
    map: HashMap<SessionId, Session>,
    by_peer: HashMap<PeerId, SessionId>,
    next: u64,
}

impl Sessions {
    /// Begins a session with `peer`, which has none.
    ///
    /// # Errors
    /// - [`ErrorKind::LimitExceeded`] if `max_connections` sessions exist.
    /// - [`ErrorKind::ConnectorClosed`] if all handles are gone.
    pub(super) fn begin(
        &mut self,
        peer: PeerId,
        round: &mut Round<'_>,
    ) -> Result<SessionId, Error> {
        let open = self.map.len();
        if open >= round.config.max_connections {
            let limit = format!("max_connections: {open} are open");
            return Err(Error::new(ErrorKind::LimitExceeded, limit));
        }
        self.next += 1;
        let id = SessionId::new(self.next);
        let session = Session::new(id, peer, round)?;
        self.map.insert(id, session);
        self.by_peer.insert(peer, id);
        Ok(id)
    }

    /// Returns the session with `peer`.
    pub(super) fn with(&self, peer: &PeerId) -> Option<SessionId> {
        self.by_peer.get(peer).copied()
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.map.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.map.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.map.remove(&id)?;
        self.by_peer.remove(&session.peer);
        Some(session)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.map.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.map.values()
    }

    /// Returns the sessions that `relay` leads to.
    pub(super) fn over(&self, relay: &PeerId) -> Vec<SessionId> {
        let over = self.iter().filter(|session| session.leads_over(relay));
        over.map(|session| session.id).collect()
    }

    /// Counts what the streams have received over circuits through `relay`.
    pub(super) fn heard_over(&self, relay: &PeerId) -> u32 {
        let heard = self.iter().map(|session| session.heard_over(relay));
        heard.fold(0, u32::wrapping_add)
    }

    /// Returns how many circuits count against our own limit: those that we dialled or are
    /// dialling.
    pub(super) fn our_circuits(&self) -> usize {
        self.iter().map(Session::our_circuits).sum()
    }
}
