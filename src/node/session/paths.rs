//! The libp2p connections with the peer. One of them carries the session's traffic.

use std::{collections::HashMap, sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use web_time::Instant;

use super::{Session, targets::keep_newest};
use crate::{
    core::{
        address::Route,
        liveness::{Liveness, Probing},
        loss::Loss,
        path::{self, PathCandidate},
        plan::AttemptId,
        race::RaceEvent,
        record::MAX_ADDRESSES,
        scope::is_global,
    },
    datagrams::Lane,
    error::ErrorKind,
    event::{Cause, ChangeReason, Path, PathEvent, PathKind, Strategy},
    node::{
        effect::{Conns, Effect},
        round::Round,
        timers::{Alarm, Deadline},
    },
    ticket::relay_id,
    webrtc::{CandidateKind, CandidatePair, Endpoint},
};

/// Circuits that come up within this time of each other count as dialled at the same time.
const TOGETHER: Duration = Duration::from_secs(2);
/// How long ICE may take to report the pair that it nominated. A browser does so within a few
/// readings of its statistics.
const PAIR_TIMEOUT: Duration = Duration::from_secs(1);

/// One libp2p connection to the peer.
pub(in crate::node) struct Conn {
    /// The path. It is `None` until ICE has reported the pair that it nominated.
    pub(super) path: Option<Path>,
    attempt: Option<AttemptId>,
    /// Whether we dialled the connection. Otherwise the peer did.
    dialled: bool,
    /// Whether the streams of a stock peer are data channels on this connection.
    pub(super) webrtc: bool,
    pub(super) since: Instant,
    /// The relay's address, if this is a circuit.
    relay: Option<Multiaddr>,
    /// The lane that carries the path's datagrams, once the connection has one.
    pub(super) lane: Option<Arc<Lane>>,
    pub(super) liveness: Liveness,
    pub(super) loss: Loss,
    /// When the session is told the time next for `liveness`.
    pub(super) alarm: Alarm,
    order: u64,
}

impl Conn {
    /// Describes a connection that was made by `route`, for `attempt` if we dialled it for one.
    pub(in crate::node) fn new(
        route: Route,
        remote: &Multiaddr,
        attempt: Option<AttemptId>,
        dialled: bool,
        now: Instant,
        probing: Probing,
    ) -> Self {
        let webrtc = matches!(route, Route::WebRtc);
        let (path, relay) = match route {
            // The pair is not known yet.
            Route::WebRtc => (None, None),
            Route::Circuit(relay) => {
                let mut path = Path::new(PathKind::Relayed, Strategy::CircuitRelay);
                path.remote = Some(relay.to_string());
                (Some(path), Some(relay))
            }
            Route::Direct => {
                let mut path = Path::new(PathKind::Direct, Strategy::Direct);
                path.remote = Some(remote.to_string());
                (Some(path), None)
            }
        };
        Self {
            path,
            attempt,
            dialled,
            webrtc,
            since: now,
            relay,
            lane: None,
            liveness: Liveness::new(now, probing),
            loss: Loss::default(),
            alarm: Alarm::default(),
            order: 0,
        }
    }

    /// Returns the kind of path that this is, unless the path is suspect. A connection of the peer's
    /// ICE whose pair is not known yet counts as direct. One of our own ICE does not count, because
    /// the race knows of it.
    fn promise(&self) -> Option<PathKind> {
        match &self.path {
            _ if self.liveness.is_suspect() => None,
            Some(path) => Some(path.kind),
            None => self.attempt.is_none().then_some(PathKind::Direct),
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        let path = self.path.as_ref();
        path.is_some_and(|path| path.kind == PathKind::Direct)
    }

    /// The relay, if this is a circuit.
    pub(super) fn relay(&self) -> Option<PeerId> {
        relay_id(self.relay.as_ref()?)
    }

    /// Whether this is a circuit that counts against our own limit.
    pub(super) fn is_our_circuit(&self) -> bool {
        self.relay.is_some() && self.dialled
    }
}

/// All connections with the peer.
#[derive(Default)]
pub(super) struct Paths {
    pub(super) conns: HashMap<ConnectionId, Conn>,
    active: Option<ConnectionId>,
    /// How often the streams had received bytes when the connection in use was chosen.
    heard_before: u32,
    next: u64,
    lost_since: Option<Instant>,
    /// The relays whose circuits were compared with the one in use.
    pub(super) compared: Vec<PeerId>,
}

/// The changes by a new choice of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chosen {
    /// The connection in use is another one.
    moved: bool,
    /// There was a path before, and there is none now.
    lost: bool,
}

impl Paths {
    /// Returns the connection in use.
    pub(super) fn active(&self) -> Option<ConnectionId> {
        self.active
    }

    /// Counts how often the streams have received bytes over a connection since it was chosen, if it is
    /// in use. `heard` counts it for all connections.
    pub(super) fn heard(&self, id: ConnectionId, heard: u32) -> u32 {
        match self.active == Some(id) {
            true => heard.wrapping_sub(self.heard_before),
            false => 0,
        }
    }

    /// Whether streams of a stock peer are data channels on the path in use.
    pub(super) fn has_channels(&self) -> bool {
        let active = self.active.and_then(|active| self.conns.get(&active));
        active.is_some_and(|conn| conn.webrtc)
    }

    /// Returns the path in use, unless it is suspect.
    pub(super) fn sound_path(&self) -> Option<&Path> {
        let conn = self.conns.get(&self.active?)?;
        conn.path.as_ref().filter(|_| !conn.liveness.is_suspect())
    }

    /// Whether there is no connection, and no path has been lost.
    pub(super) fn never_any(&self) -> bool {
        self.conns.is_empty() && self.lost_since.is_none()
    }

    /// Whether there was a path, and none is sound now.
    pub(super) fn is_lost(&self) -> bool {
        !self.never_any() && self.promised().is_none()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.conns.keys().copied()
    }

    /// Returns the best kind of path that is up or about to be.
    pub(super) fn promised(&self) -> Option<PathKind> {
        self.conns.values().filter_map(Conn::promise).min()
    }

    /// Returns a circuit that is not suspect, with the address of its relay.
    pub(super) fn sound_circuit(&self) -> Option<(ConnectionId, &Multiaddr)> {
        let mut sound = self.conns.iter().filter(|(_, c)| !c.liveness.is_suspect());
        sound.find_map(|(id, conn)| Some((*id, conn.relay.as_ref()?)))
    }

    /// Whether a direct path is up.
    pub(super) fn is_direct(&self) -> bool {
        self.conns.values().any(Conn::is_direct)
    }

    /// Returns the connections that were dialled for `attempt` and whose path is not known yet.
    pub(super) fn unknown_of(&self, attempt: AttemptId) -> Vec<ConnectionId> {
        let unknown = |conn: &Conn| conn.attempt == Some(attempt) && conn.path.is_none();
        let conns = self.conns.iter().filter(|(_, conn)| unknown(conn));
        conns.map(|(id, _)| *id).collect()
    }

    /// Whether a circuit through this relay may be quicker than those that there are.
    pub(super) fn is_rival(&self, relay: &PeerId) -> bool {
        let has = |conn: &Conn| conn.relay().as_ref() == Some(relay);
        !self.compared.contains(relay) && !self.conns.values().any(has)
    }

    fn add(&mut self, id: ConnectionId, mut conn: Conn) {
        conn.order = self.next;
        self.next += 1;
        self.conns.insert(id, conn);
    }

    /// Returns the circuit to close if `new` is a second one. If both peers dialled at the same
    /// time, both keep the one that the peer with the lower id dialled. If one peer dialled both,
    /// because it took the first dial back too late, that peer closes the new one. If the peers
    /// dialled at different times, the second has lost the old circuit, and none is closed here. A rival is
    /// kept until it is measured. A stock peer does not follow this rule, and may signal ICE over either circuit, so it
    /// keeps both.
    fn surplus_circuit(
        &self,
        local: PeerId,
        remote: PeerId,
        is_stock: bool,
        id: ConnectionId,
        new: &Conn,
        now: Instant,
    ) -> Option<ConnectionId> {
        let sound_circuit = |c: &Conn| c.relay.is_some() && !c.liveness.is_suspect();
        let (old_id, old) = self.conns.iter().find(|(_, c)| sound_circuit(c))?;
        let is_late = now.saturating_duration_since(old.since) >= TOGETHER;
        match (old.dialled, new.dialled) {
            (true, true) if is_late && new.relay().is_some_and(|r| self.is_rival(&r)) => None,
            (true, true) => Some(id),
            (false, false) => None,
            _ if is_stock => None,
            _ if is_late => None,
            (_, ours) if (local < remote) == ours => Some(*old_id),
            _ => Some(id),
        }
    }

    /// Returns the connection to use, among those whose path is known. `lossy` tells of a relay whether
    /// its link loses much.
    fn select(&self, lossy: impl Fn(&PeerId) -> bool) -> Option<ConnectionId> {
        // The oldest comes first. A general sort for a handful of paths would cost a kilobyte of
        // wasm.
        let mut orders = Vec::new();
        let mut candidates = Vec::new();
        for (id, conn) in &self.conns {
            if let Some(path) = &conn.path {
                let place = orders.partition_point(|order| *order < conn.order);
                orders.insert(place, conn.order);
                candidates.insert(
                    place,
                    PathCandidate {
                        id: *id,
                        kind: path.kind,
                        rtt: path.rtt,
                        standing: conn.liveness.standing(),
                        lossy: match conn.relay() {
                            Some(relay) => lossy(&relay),
                            None => conn.loss.is_high(),
                        },
                    },
                );
            }
        }
        path::select(&candidates, self.active)
    }
}

impl Session {
    /// Returns the address of the relay whose circuit ICE is signalled over.
    pub(super) fn circuit(&self) -> Option<&Multiaddr> {
        Some(self.paths.sound_circuit()?.1)
    }

    /// Returns how many circuits count against our own limit: those that we dialled or are
    /// dialling.
    pub(super) fn our_circuits(&self) -> usize {
        let up = self.paths.conns.values().filter(|c| c.is_our_circuit());
        up.count() + self.attempts.circuits()
    }

    /// Closes a circuit of ours that does not carry the traffic, so that another session may have
    /// one. Returns whether there was such a circuit.
    pub(in crate::node) fn spare_circuit(&mut self, round: &mut Round<'_>) -> bool {
        let active = self.paths.active;
        let is_spare = |(id, conn): (&ConnectionId, &Conn)| {
            (conn.is_our_circuit() && active.is_some_and(|active| active != *id)).then_some(*id)
        };
        let Some(spare) = self.paths.conns.iter().find_map(is_spare) else {
            return false;
        };
        round.push(Effect::CloseConnection(spare));
        self.paths.conns.remove(&spare);
        round.effects.replan(self.id);
        true
    }

    pub(in crate::node) fn has_path(&self) -> bool {
        self.paths.active.is_some()
    }

    /// A connection with the peer is up.
    pub(in crate::node) fn on_connection(
        &mut self,
        id: ConnectionId,
        mut conn: Conn,
        local: PeerId,
        round: &mut Round<'_>,
    ) {
        match &mut conn.path {
            None => self.wake_after(PAIR_TIMEOUT, Deadline::Pair(id), round),
            Some(path) if path.kind == PathKind::Direct => {
                if self.punched(id, conn.dialled, round) {
                    path.strategy = Strategy::Stun;
                }
            }
            Some(_) => {}
        }
        let is_stock = !self.streams.are_resumable();
        if conn.relay.is_some()
            && let Some(surplus) = self
                .paths
                .surplus_circuit(local, self.peer, is_stock, id, &conn, round.now)
        {
            // The circuit that stays is up at both ends, so nothing is lost.
            round.push(Effect::CloseConnection(surplus));
            if surplus == id {
                return;
            }
        }
        let strategy = conn.path.as_ref().map(|path| path.strategy);
        let attempt = conn.attempt;
        let way_back = conn.relay.is_some() && self.paths.is_lost();
        if let Some(relay) = conn.relay() {
            self.rest.on_circuit(round.now);
            keep_newest(&mut self.paths.compared, relay, MAX_ADDRESSES);
        }
        self.paths.add(id, conn);
        self.watch(id, round);
        if let (Some(attempt), Some(strategy)) = (attempt, strategy) {
            self.tell(RaceEvent::Succeeded(attempt, strategy), round);
        }
        if way_back {
            self.tell(RaceEvent::Anew, round);
        }
        self.choose_path(round);
    }

    /// ICE has reported which pair carries a connection.
    pub(in crate::node) fn on_pair(
        &mut self,
        id: ConnectionId,
        pair: &CandidatePair,
        round: &mut Round<'_>,
    ) {
        self.set_path(id, path_of(pair), round);
    }

    /// The time for ICE to report the pair of a connection is over. The path counts as found by
    /// STUN if the pair is still unknown.
    pub(super) fn on_pair_deadline(&mut self, id: ConnectionId, round: &mut Round<'_>) {
        let conn = self.paths.conns.get(&id);
        if conn.is_some_and(|conn| conn.path.is_none()) {
            self.set_path(id, Path::new(PathKind::Direct, Strategy::Stun), round);
        }
    }

    fn set_path(&mut self, id: ConnectionId, path: Path, round: &mut Round<'_>) {
        let Some(conn) = self.paths.conns.get_mut(&id) else {
            return;
        };
        let strategy = path.strategy;
        let is_first = conn.path.replace(path).is_none();
        if let (true, Some(attempt)) = (is_first, conn.attempt) {
            self.tell(RaceEvent::Succeeded(attempt, strategy), round);
        }
        self.choose_path(round);
    }

    pub(in crate::node) fn on_connection_closed(
        &mut self,
        id: ConnectionId,
        round: &mut Round<'_>,
    ) {
        let Some(gone) = self.paths.conns.remove(&id) else {
            return;
        };
        // A stock peer cannot resume a session, so its last connection ends the session.
        if self.paths.conns.is_empty() && !self.streams.are_resumable() {
            let kind = ErrorKind::ConnectionClosed;
            round.push(Effect::End(self.id, kind, Conns::Close));
            return;
        }
        if let (Some(attempt), None) = (gone.attempt, gone.path) {
            let reason = "it broke as soon as it was up".to_owned();
            self.attempt_failed(attempt, Cause::Transport, reason, round);
        }
        self.choose_path(round);
    }

    /// Puts the session on its best path, moves its streams there, and asks for a new plan.
    pub(super) fn choose_path(&mut self, round: &mut Round<'_>) {
        let chosen = self.reselect(round);
        if chosen.moved && self.has_path() {
            self.streams.activity.forget_sent();
            self.move_streams(round);
        }
        self.close_superseded(round);
        if chosen.lost {
            self.paths.compared.clear();
            let timeout = round.config.resume_timeout;
            self.wake_after(timeout, Deadline::Resume, round);
        }
        round.effects.replan(self.id);
    }

    /// Chooses the path again, and tells whoever watches the connection.
    fn reselect(&mut self, round: &Round<'_>) -> Chosen {
        let (metrics, now) = (round.metrics, round.now);
        let chosen = self.paths.select(|relay| round.relays.is_lossy(relay));
        let before = self.state.path();
        let after = chosen.and_then(|id| self.measured(self.paths.conns.get(&id)?));
        let moved = chosen != self.paths.active;
        let same = |a: &Path, b: &Path| a.kind == b.kind && a.strategy == b.strategy;
        let told = match (&before, &after) {
            (Some(b), Some(a)) => moved || !same(b, a),
            (None, None) => false,
            _ => true,
        };
        if told {
            metrics.path_changed(
                before.as_ref().map(|p| p.strategy),
                after.as_ref().map(|p| (p.kind, p.strategy)),
            );
        }
        let at = now.saturating_duration_since(self.started);
        let active = self.paths.active;
        let gone = active.is_some_and(|id| !self.paths.conns.contains_key(&id));
        let reason = match (&before, &after) {
            (None, _) if self.paths.lost_since.is_some() => ChangeReason::Resumed,
            (None, _) => ChangeReason::First,
            (Some(b), Some(a)) if gone || b.kind < a.kind => ChangeReason::Lost,
            _ => ChangeReason::Better,
        };
        if moved {
            self.paths.heard_before = self.streams.activity.heard();
        }
        self.paths.active = chosen;
        self.use_lane();
        self.state.set_path(after.clone());
        match after {
            Some(path) => {
                self.paths.lost_since = None;
                let max_datagram_size = path.max_datagram_size;
                if told {
                    self.state.emit(PathEvent::Changed { path, at, reason });
                } else if before.is_some_and(|b| b.max_datagram_size != max_datagram_size) {
                    self.state.emit(PathEvent::DatagramSize {
                        max_datagram_size,
                        at,
                    });
                }
            }
            None if told => {
                self.paths.lost_since = Some(now);
                self.state.emit(PathEvent::Lost { at });
            }
            None => {}
        }
        Chosen {
            moved,
            lost: active.is_some() && chosen.is_none(),
        }
    }

    /// The time for a path to come back is over. Ends the session if it has had none for that long.
    pub(super) fn on_resume_deadline(&mut self, round: &mut Round<'_>) {
        // A session that began with early data and never had a path has lacked one since its start.
        let since = self.paths.lost_since.unwrap_or(self.started);
        let without = round.now.saturating_duration_since(since);
        if !self.has_path() && without >= round.config.resume_timeout {
            let kind = ErrorKind::ConnectionLost;
            round.push(Effect::End(self.id, kind, Conns::Close));
        }
    }
}

/// Returns the path that a nominated pair makes.
fn path_of(pair: &CandidatePair) -> Path {
    let mut path = if pair.is_relayed() {
        Path::new(PathKind::Turn, Strategy::Turn)
    } else if pair.guessed {
        Path::new(PathKind::Direct, Strategy::Birthday)
    } else if is_host(&pair.local) && is_host(&pair.remote) {
        Path::new(PathKind::Direct, Strategy::Direct)
    } else if pair.local.mapped || pair.remote.mapped {
        Path::new(PathKind::Direct, Strategy::Upnp)
    } else {
        Path::new(PathKind::Direct, Strategy::Stun)
    };
    path.local = pair.local.addr.map(|a| a.to_string());
    path.remote = pair.remote.addr.map(|a| a.to_string());
    path.rtt = pair.rtt;
    path
}

/// Whether this end of a pair is reached without a NAT. Browsers hide their host addresses behind
/// mDNS names, so the other side learns them as peer-reflexive. Such a candidate counts as host if
/// its address is one of a local network.
fn is_host(end: &Endpoint) -> bool {
    match (end.kind, end.addr.map(|a| a.ip())) {
        (CandidateKind::Host, _) => true,
        (CandidateKind::PeerReflexive, Some(ip)) => !is_global(ip),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(kind: CandidateKind, addr: &str) -> Endpoint {
        Endpoint {
            kind,
            addr: Some(addr.parse().unwrap()),
            mapped: false,
        }
    }

    #[test]
    fn the_strategy_of_a_path_follows_from_its_pair() {
        use CandidateKind::{Host, PeerReflexive, Relayed, ServerReflexive};
        let host = end(Host, "192.168.1.2:1");
        let cases = [
            (end(Host, "192.168.1.3:1"), Strategy::Direct),
            (end(PeerReflexive, "192.168.1.3:1"), Strategy::Direct),
            (end(PeerReflexive, "198.51.100.3:1"), Strategy::Stun),
            (end(ServerReflexive, "198.51.100.3:1"), Strategy::Stun),
            (end(Relayed, "198.51.100.3:1"), Strategy::Turn),
            (
                Endpoint {
                    mapped: true,
                    ..end(ServerReflexive, "198.51.100.3:1")
                },
                Strategy::Upnp,
            ),
        ];
        for (remote, strategy) in cases {
            let mut pair = CandidatePair::new(host, remote);
            assert_eq!(path_of(&pair).strategy, strategy);
            pair.guessed = true;
            let guessed = match strategy {
                Strategy::Turn => Strategy::Turn,
                _ => Strategy::Birthday,
            };
            assert_eq!(path_of(&pair).strategy, guessed);
        }
    }
}
