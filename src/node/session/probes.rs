//! The probes of the session's connections, and what becomes of a path that does not answer.

use std::time::Duration;

use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};

use super::{Session, paths::Conn};
use crate::{
    backend::IS_PAGE,
    core::{
        liveness::{Hint, Liveness, Probe, Verdict},
        race::RaceEvent,
    },
    event::PathKind,
    node::{effect::Effect, network::Purpose, round::Round, timers::Deadline},
};

/// How old a direct path is before a path over TURN is given up for it. It is longer than a page takes to
/// report which pair is in use, and than losses take to show.
const PROVEN: Duration = Duration::from_secs(10);
/// How old a circuit is before its round-trip time is compared. The first time includes the negotiation of the
/// protocol, and the second one follows at once.
const MEASURED: Duration = Duration::from_secs(2);

/// A substream of this protocol says that its opener doubts all other paths.
pub(in crate::node) const DOUBT_PROTOCOL: &str = "/throughline/doubt/1";

impl Session {
    /// A connection has answered a probe. There is no round-trip time if the peer does not speak the
    /// protocol.
    pub(in crate::node) fn on_answer(
        &mut self,
        id: ConnectionId,
        rtt: Option<Duration>,
        round: &mut Round<'_>,
    ) {
        let is_active = self.paths.active() == Some(id);
        let Some(conn) = self.paths.conns.get_mut(&id) else {
            return;
        };
        let Some(rtt) = rtt else {
            conn.liveness.mute();
            return;
        };
        if is_active {
            self.streams.activity.forget_sent();
        }
        if let Some(path) = &mut conn.path {
            path.rtt = Some(rtt);
        }
        let counts = conn.lane.as_ref().and_then(|lane| lane.counts());
        if let Some(counts) = counts {
            conn.loss.count(round.now, counts);
        }
        let verdict = conn.liveness.answered(round.now, rtt);
        let is_trusted = is_active && conn.liveness.is_trusted();
        // A page can say goodbye over a circuit only, and a page has data channels, which count nothing.
        if is_trusted && conn.is_direct() && (!conn.webrtc || counts.is_some()) {
            self.on_sound(round);
        }
        self.judge(id, verdict, round);
        self.choose_path(round);
    }

    /// The direct path in use is sound. After a while without traffic, the session gives its circuits
    /// back. A stock peer would lose the streams on them.
    fn on_sound(&mut self, round: &mut Round<'_>) {
        if IS_PAGE || !self.streams.are_resumable() {
            return;
        }
        let heard = self.streams.activity.heard();
        let pause = round.config.circuit_idle_timeout;
        if self.rest.sound(round.now, heard, pause) && self.rest.is_resting() {
            while self.spare_circuit(round) {}
        }
    }

    /// A deadline of a connection's [`Liveness`] has come.
    pub(super) fn on_probe_deadline(&mut self, id: ConnectionId, round: &mut Round<'_>) {
        let heard = self.paths.heard(id, self.streams.activity.heard());
        let Some(conn) = self.paths.conns.get_mut(&id) else {
            return;
        };
        if !conn.alarm.rings(round.now) {
            return;
        }
        let mut verdict = conn.liveness.tick(round.now, heard);
        // The streams of a stock peer cannot move, and do not count what they hear. An answer behind
        // their bytes may take long. So the transport alone decides when such a path is dead.
        if conn.liveness.is_suspect() && !self.streams.are_resumable() {
            conn.liveness.excuse(round.now);
            verdict = Verdict::default();
        }
        self.judge(id, verdict, round);
        if verdict.changed {
            self.choose_path(round);
            self.tell_doubt(id, round);
        }
    }

    /// Counts what the streams have received, if a circuit through `relay` carries them.
    pub(super) fn heard_over(&self, relay: &PeerId) -> u32 {
        let active = self.paths.active();
        let relays = |id: &ConnectionId| self.paths.conns.get(id).and_then(Conn::relay);
        match active.filter(|id| relays(id).as_ref() == Some(relay)) {
            Some(id) => self.paths.heard(id, self.streams.activity.heard()),
            None => 0,
        }
    }

    /// The session's streams send bytes over a connection.
    pub(super) fn on_busy(&mut self, id: ConnectionId, round: &mut Round<'_>) {
        if self.rest.end(round.now) {
            round.effects.replan(self.id);
        }
        if let Some(conn) = self.paths.conns.get_mut(&id) {
            conn.liveness.busy(round.now);
            if let Some(relay) = conn.relay() {
                round.push(Effect::ProbeLink(relay, Liveness::busy));
            }
            self.watch(id, round);
        }
    }

    /// This machine's network may have changed, so each path shows whether it is still there.
    pub(in crate::node) fn on_hint(&mut self, hint: Hint, round: &mut Round<'_>) {
        self.probe_paths(None, hint.probes(), round);
        if hint == Hint::Network {
            self.rest.end(round.now);
            self.paths.compared.clear();
            round.effects.replan(self.id);
            self.tell(RaceEvent::Anew, round);
        }
    }

    /// A link to a relay is up. If the session has lost its path, attempts begin anew. What they have
    /// sent over the old link is lost.
    pub(in crate::node) fn on_way_back(&mut self, round: &mut Round<'_>) {
        if self.paths.is_lost() {
            self.tell(RaceEvent::Anew, round);
        }
    }

    /// The peer doubts all paths but this one.
    pub(in crate::node) fn on_doubt(&mut self, sound: ConnectionId, round: &mut Round<'_>) {
        if !self.paths.conns.contains_key(&sound) {
            return;
        }
        let mut ids: Vec<_> = self.paths.ids().collect();
        ids.retain(|id| *id != sound);
        for id in ids {
            if let Some(conn) = self.paths.conns.get_mut(&id) {
                let verdict = conn.liveness.doubt(round.now);
                self.judge(id, verdict, round);
            }
        }
        self.choose_path(round);
    }

    fn is_suspect(&self, id: ConnectionId) -> bool {
        let conn = self.paths.conns.get(&id);
        conn.is_some_and(|conn| conn.liveness.is_suspect())
    }

    /// If a connection is suspect and another one is in use, tells the peer.
    fn tell_doubt(&self, id: ConnectionId, round: &mut Round<'_>) {
        let sound = self
            .paths
            .active()
            .filter(|active| !self.is_suspect(*active));
        if let Some(connection) = sound
            && self.is_suspect(id)
            && self.streams.are_resumable()
        {
            round.push(Effect::Open {
                peer: self.peer,
                connection,
                protocol: StreamProtocol::new(DOUBT_PROTOCOL),
                purpose: Purpose::Doubt,
            });
        }
    }

    /// Does what a connection's liveness asks for.
    fn judge(&mut self, id: ConnectionId, verdict: Verdict, round: &mut Round<'_>) {
        if verdict.probe {
            round.push(Effect::Probe(self.peer, id));
        }
        let suspect = verdict.changed && self.is_suspect(id);
        if verdict.changed {
            tracing::debug!(connection = %id, suspect, "a path is judged anew");
        }
        if suspect {
            round.push(Effect::DoubtMapping);
            self.probe_others(id, Liveness::hint, round);
        } else if verdict.late {
            self.probe_others(id, Liveness::probe, round);
        }
        if verdict.dead {
            // A connection over a dead path may take long to close.
            round.push(Effect::CloseConnection(id));
            self.on_connection_closed(id, round);
        }
        self.watch(id, round);
    }

    /// Has the links to relays probed, because whatever ended a path, such as a new mapping of the NAT,
    /// may have ended them too. If it was the path in use, its successor has to be sound, so the
    /// others are probed as well.
    fn probe_others(&mut self, id: ConnectionId, how: Probe, round: &mut Round<'_>) {
        for relay in round.relays.linked() {
            round.push(Effect::ProbeLink(relay, how));
        }
        if self.paths.active() == Some(id) {
            self.probe_paths(Some(id), how, round);
        }
    }

    fn probe_paths(&mut self, except: Option<ConnectionId>, how: Probe, round: &mut Round<'_>) {
        for id in self.paths.ids().collect::<Vec<_>>() {
            if let Some(conn) = self.paths.conns.get_mut(&id)
                && except != Some(id)
            {
                how(&mut conn.liveness, round.now);
                self.watch(id, round);
            }
        }
    }

    /// Makes sure that the session is told the time when a connection's liveness wants it.
    pub(super) fn watch(&mut self, id: ConnectionId, round: &mut Round<'_>) {
        let conn = self.paths.conns.get_mut(&id);
        let pause = conn.and_then(|conn| conn.alarm.set(conn.liveness.wake(), round.now));
        if let Some(pause) = pause {
            self.wake_after(pause, Deadline::Probe(id), round);
        }
    }

    /// Closes suspect connections that have a sound successor, and a path over TURN once a direct one is
    /// proven, because it holds an allocation. A stock peer's streams may still be on it.
    pub(super) fn close_superseded(&mut self, round: &mut Round<'_>) {
        let kind = |conn: &Conn| conn.path.as_ref().map(|path| path.kind);
        let trusted = self
            .paths
            .conns
            .values()
            .filter(|c| c.liveness.is_trusted());
        let best = trusted.filter_map(kind).min();
        let proven = self.paths.conns.values().any(|conn| {
            let is_sound = conn.liveness.is_trusted() && !conn.loss.is_high();
            kind(conn) == Some(PathKind::Direct) && is_sound && conn.since.elapsed() >= PROVEN
        });
        let active = self.paths.active();
        let may_move = |id| self.streams.are_resumable() && active != Some(id);
        let now = round.now;
        let is_measured = |conn: &Conn| {
            let is_young = now.saturating_duration_since(conn.since) < MEASURED;
            kind(conn) == Some(PathKind::Relayed) && conn.liveness.is_trusted() && !is_young
        };
        // The quicker one of two circuits is in use.
        let in_use = active.and_then(|id| self.paths.conns.get(&id));
        let is_beaten = in_use.is_some_and(is_measured);
        self.paths.conns.retain(|id, conn| {
            let superseded = kind(conn)
                .zip(best)
                .is_some_and(|(kind, best)| best <= kind);
            let costs = kind(conn) == Some(PathKind::Turn) && proven && may_move(*id);
            let beaten = is_beaten && conn.is_our_circuit() && is_measured(conn) && may_move(*id);
            let closed = costs || beaten || superseded && conn.liveness.is_suspect();
            if closed {
                round.push(Effect::CloseConnection(*id));
            }
            !closed
        });
    }
}
