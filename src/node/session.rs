//! One connection to one peer as the node sees it: its paths, its attempts and its streams.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot};
use web_time::Instant;

use super::{
    relays::{Link, Relay, Relays},
    resumable::PumpHandle,
};
use crate::{
    Config,
    backend::offer::{Carrier, Sealing, sealing},
    connection::{Connection, SessionState, WeakConnection},
    core::{
        offer::Incarnation,
        pace::Pace,
        path::{self, Candidate},
        plan::{AttemptId, Known},
        race::Race,
        resume::StreamId,
        scope::is_global,
    },
    error::{Error, ErrorKind},
    event::{Path, PathEvent, PathKind, Strategy},
    metrics::Metrics,
    rtc::{CandidateKind, CandidatePair, Endpoint},
    stream::Stream,
    ticket::MAX_ADDRESSES,
};

/// Streams opened by the peer that may wait to be accepted.
pub(crate) const INCOMING_STREAMS: usize = 64;

/// Circuits that come up within this were dialled at the same time.
const TOGETHER: Duration = Duration::from_secs(2);

/// A stream that the peer opened, behind a pointer, since there is room for many from the beginning.
pub(crate) type Incoming = Box<(String, Stream)>;
/// Who waits for the race to bring a path.
pub(crate) enum Waiting {
    Connect(oneshot::Sender<Result<Connection, Error>>),
    /// A stream that was opened before there is a path, and fails if none comes.
    Stream(StreamId),
}

pub(crate) struct Session {
    pub(crate) peer: PeerId,
    pub(crate) state: Arc<SessionState>,
    pub(crate) started: Instant,
    pub(crate) handle: WeakConnection,
    pub(crate) incoming: mpsc::Sender<Incoming>,
    /// What is being tried.
    pub(crate) race: Race,
    /// When the race is next told the time.
    pub(crate) wake: Option<Duration>,
    /// ICE is being signalled by a sealed offer, without a circuit.
    pub(crate) offering: bool,
    /// A sealed offer did not reach the peer: ICE waits for a circuit.
    pub(crate) unoffered: bool,
    /// Those who wait for the race to answer, the first first.
    pub(crate) waiting: VecDeque<Waiting>,
    /// Where the peer can be dialled; `None` on the accepting side, which leaves dialling to the
    /// other.
    pub(crate) targets: Option<Targets>,
    pub(crate) conns: HashMap<ConnectionId, Conn>,
    pub(crate) active: Option<ConnectionId>,
    next_conn: u64,
    pub(crate) lost_since: Option<Instant>,
    pub(crate) idle_since: Option<Instant>,
    /// Whether the peer speaks resumable streams; `None` until it is known.
    pub(crate) resumable: Option<bool>,
    /// Protocols that identify told of.
    pub(crate) protocols: HashSet<String>,
    /// Opens that wait for `resumable` to be known.
    pub(crate) opens: Vec<(String, oneshot::Sender<Result<Stream, Error>>)>,
    pub(crate) pumps: HashMap<StreamId, Pump>,
    /// One clone for each substream of the peer's whose header has not come yet.
    pub(crate) unread: Arc<()>,
}

impl Waiting {
    /// Whether nobody waits any longer. A stream's end is its pump's affair.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Connect(reply) => reply.is_closed(),
            Self::Stream(_) => false,
        }
    }
}

/// Addresses that tickets make us dial for one peer: so many at once, and so many a second after
/// that. All of a full ticket are within it with three retries, and the relays' come once more.
const DIALS_AT_ONCE: u32 = 5 * MAX_ADDRESSES as u32;
const DIALS_PER_SECOND: u32 = 1;

/// Where a peer can be dialled.
pub(crate) struct Targets {
    /// At most as many as a ticket holds.
    pub(crate) relays: Vec<PeerId>,
    /// Likewise.
    pub(crate) direct: Vec<Multiaddr>,
    /// The run of the peer that sealed offers are for.
    pub(crate) incarnation: Option<Incarnation>,
    pace: Pace,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            relays: Vec::new(),
            direct: Vec::new(),
            incarnation: None,
            pace: Pace::new(DIALS_PER_SECOND, DIALS_AT_ONCE),
        }
    }
}

impl Targets {
    /// Whether `count` addresses may be dialled now, of which some time after the first ticket has
    /// passed.
    pub(crate) fn may_dial(&mut self, passed: Duration, count: usize) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.pace.take(passed, count, Duration::ZERO).is_some()
    }
}

/// Adds what is `new`, in the place of what has been there longest when there are too many.
pub(crate) fn keep_newest<T: PartialEq>(known: &mut Vec<T>, new: T, most: usize) {
    if !known.contains(&new) {
        if known.len() >= most {
            known.remove(0);
        }
        known.push(new);
    }
}

/// One libp2p connection to the peer.
pub(crate) struct Conn {
    /// `None` while ICE has not said which pair it nominated.
    pub(crate) path: Option<Path>,
    pub(crate) attempt: Option<AttemptId>,
    /// By us, not by the peer.
    pub(crate) dialled: bool,
    since: Instant,
    /// The relay's address, on a circuit.
    pub(crate) relay: Option<Multiaddr>,
    pub(crate) suspect: bool,
    order: u64,
}

/// The task that moves one stream's bytes.
pub(crate) struct Pump {
    pub(crate) handle: PumpHandle<Carrier>,
    pub(crate) opener: bool,
    /// It was sent before there was a path.
    pub(crate) early: bool,
}

impl Session {
    pub(crate) fn new(
        peer: PeerId,
        state: Arc<SessionState>,
        handle: WeakConnection,
        incoming: mpsc::Sender<Incoming>,
        config: &Config,
    ) -> Self {
        Self {
            peer,
            state,
            started: Instant::now(),
            handle,
            incoming,
            race: Race::new(config.acceptance_delay),
            wake: None,
            offering: false,
            unoffered: false,
            waiting: VecDeque::new(),
            targets: None,
            conns: HashMap::new(),
            active: None,
            next_conn: 0,
            lost_since: None,
            idle_since: None,
            resumable: None,
            protocols: HashSet::new(),
            opens: Vec::new(),
            pumps: HashMap::new(),
            unread: Arc::new(()),
        }
    }

    pub(crate) fn add(&mut self, id: ConnectionId, mut conn: Conn) {
        conn.order = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(id, conn);
    }

    /// Whether another stream may be opened.
    pub(crate) fn check_room(&self, max_streams: usize) -> Result<(), Error> {
        if self.pumps.len() + self.opens.len() < max_streams {
            return Ok(());
        }
        let limit = format!("max_streams: {max_streams} are open on this connection");
        Err(Error::new(ErrorKind::LimitExceeded, limit))
    }

    /// The circuit that ICE is signalled over.
    pub(crate) fn circuit(&self) -> Option<&Multiaddr> {
        self.conns.values().find_map(|c| c.relay.as_ref())
    }

    /// Whether a direct path is up.
    pub(crate) fn is_direct(&self) -> bool {
        let mut paths = self.conns.values().filter_map(|conn| conn.path.as_ref());
        paths.any(|path| path.kind == PathKind::Direct)
    }

    /// The run of the peer that offers are sealed for, if its ticket told one.
    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.targets.as_ref()?.incarnation
    }

    /// The relay that passes on to the peer what is sealed for it.
    pub(crate) fn offer_relay<'a>(
        &self,
        relays: &'a Relays,
    ) -> Option<(PeerId, &'a Relay, Sealing)> {
        let sealing = sealing(&self.peer)?;
        self.incarnation()?;
        let targets = self.targets.as_ref().filter(|_| !self.unoffered)?;
        targets.relays.iter().find_map(|relay| {
            let link = relays.get(relay)?;
            let usable = link.forwards && matches!(link.link, Link::Up(..));
            usable.then_some((*relay, link, sealing))
        })
    }

    /// Whether an offer can be sealed for the peer, now or as soon as a link that is coming up is up.
    pub(crate) fn expects_offer(&self, relays: &Relays) -> bool {
        let forwards = |relay: &PeerId| {
            let relay = relays.get(relay);
            relay.is_some_and(|relay| relay.forwards && relay.link != Link::Down)
        };
        let targets = self.targets.as_ref().filter(|_| !self.unoffered);
        let sealable = sealing(&self.peer).is_some() && self.incarnation().is_some();
        sealable && targets.is_some_and(|t| t.relays.iter().any(forwards))
    }

    /// The circuit to close when `new` is another one: two are up when both peers dialled at the
    /// same time, and both keep the one that the lower id dialled; or when ours was taken back too
    /// late, and its dialler closes it. A peer that dials later has lost the old one.
    pub(crate) fn surplus_circuit(
        &self,
        local: PeerId,
        id: ConnectionId,
        new: &Conn,
    ) -> Option<ConnectionId> {
        let (old_id, old) = self.conns.iter().find(|(_, c)| c.relay.is_some())?;
        match (old.dialled, new.dialled) {
            (true, true) => Some(id),
            (false, false) => None,
            _ if old.since.elapsed() >= TOGETHER => None,
            (_, ours) if (local < self.peer) == ours => Some(*old_id),
            _ => Some(id),
        }
    }

    /// What the plan is made from.
    pub(crate) fn known(&self, relays: &Relays) -> Known {
        let best = self.conns.values().filter_map(Conn::promise).min();
        let path = self
            .active
            .and_then(|id| self.conns.get(&id)?.path.as_ref());
        let mut known = Known {
            circuit: self.circuit().is_some(),
            ice: self.race.is_running(AttemptId::Ice),
            best,
            path: path.map(|p| p.kind),
            ..Known::default()
        };
        if let Some(targets) = &self.targets {
            known.ours = true;
            known.offer = self.offer_relay(relays).is_some();
            known.addresses = !targets.direct.is_empty();
            let is_up = |relay: &PeerId| {
                let link = relays.get(relay).map(|r| &r.link);
                matches!(link, Some(Link::Up(..)))
            };
            let (up, others): (Vec<_>, Vec<_>) = targets.relays.iter().partition(|r| is_up(r));
            known.relays = [up, others].concat();
        }
        known
    }

    /// Chooses the path anew. Returns whether traffic has to move.
    pub(crate) fn reselect(&mut self, metrics: &Metrics) -> bool {
        // The oldest first. A general sort is a kilobyte of a page's wasm, for a handful of paths.
        let mut orders = Vec::new();
        let mut candidates = Vec::new();
        for (id, conn) in &self.conns {
            if let Some(path) = &conn.path {
                let place = orders.partition_point(|order| *order < conn.order);
                orders.insert(place, conn.order);
                candidates.insert(
                    place,
                    Candidate {
                        id: *id,
                        kind: path.kind,
                        rtt: path.rtt,
                        suspect: conn.suspect,
                    },
                );
            }
        }
        let chosen = path::select(&candidates, self.active);
        let before = self.state.path();
        let after = chosen.and_then(|id| self.conns.get(&id)?.path.clone());
        let moved = chosen != self.active;
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
        let at = self.started.elapsed();
        let lost = self.active.is_some_and(|id| !self.conns.contains_key(&id));
        let reason = match (&before, &after) {
            (None, _) if self.lost_since.is_some() => "resumed",
            (None, _) => "first",
            (Some(b), Some(a)) if lost || b.kind < a.kind => "lost",
            _ => "better",
        };
        self.active = chosen;
        self.state.set_path(after.clone());
        match after {
            Some(path) => {
                self.lost_since = None;
                if told {
                    self.state.emit(PathEvent::Changed {
                        path,
                        at,
                        reason: reason.to_owned(),
                    });
                }
            }
            None if told => {
                self.lost_since = Some(Instant::now());
                self.state.emit(PathEvent::Lost { at });
            }
            None => {}
        }
        moved
    }
}

impl Conn {
    /// The kind of path this is or, if the peer brings it about, is about to become. Of our own
    /// ICE the race knows.
    fn promise(&self) -> Option<PathKind> {
        match &self.path {
            Some(path) => Some(path.kind),
            None => self.attempt.is_none().then_some(PathKind::Direct),
        }
    }

    /// A circuit that counts against our own limit.
    pub(crate) fn is_our_circuit(&self) -> bool {
        self.relay.is_some() && self.dialled
    }

    /// A circuit through the relay at `relay`.
    pub(crate) fn circuit(relay: Multiaddr, attempt: Option<AttemptId>) -> Self {
        let mut path = Path::new(PathKind::Relayed, Strategy::CircuitRelay);
        path.remote = Some(relay.to_string());
        Self::new(Some(path), Some(relay), attempt)
    }

    /// A connection to the peer's own address.
    pub(crate) fn direct(remote: &Multiaddr, attempt: Option<AttemptId>) -> Self {
        let mut path = Path::new(PathKind::Direct, Strategy::Direct);
        path.remote = Some(remote.to_string());
        Self::new(Some(path), None, attempt)
    }

    /// A WebRTC connection whose pair is not known yet.
    pub(crate) fn webrtc(attempt: Option<AttemptId>) -> Self {
        Self::new(None, None, attempt)
    }

    fn new(path: Option<Path>, relay: Option<Multiaddr>, attempt: Option<AttemptId>) -> Self {
        Self {
            path,
            attempt,
            dialled: false,
            since: Instant::now(),
            relay,
            suspect: false,
            order: 0,
        }
    }
}

/// The path that a nominated pair is.
pub(crate) fn path_of(pair: &CandidatePair) -> Path {
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

/// Whether no NAT stands before this end. Browsers hide their host addresses behind mDNS names, so
/// that the other side learns them as peer-reflexive; an address of the local network gives them
/// away.
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
    fn tickets_for_one_peer_make_us_dial_so_much_and_no_more() {
        let (mut targets, at) = (Targets::default(), Duration::from_secs(7));
        for _ in 0..5 {
            assert!(targets.may_dial(at, MAX_ADDRESSES));
        }
        assert!(!targets.may_dial(at, 1));
        assert!(targets.may_dial(at + Duration::from_secs(1), 1));
        assert!(!targets.may_dial(at + Duration::from_secs(1), 1));
        let mut known = vec![1, 2];
        for new in [2, 3] {
            keep_newest(&mut known, new, 2);
        }
        assert_eq!(known, [2, 3]);
    }

    #[test]
    fn the_pair_tells_the_strategy() {
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
