//! Tests of sessions without a loop. Events go in, and effects come out.

mod circuits;

use futures::{FutureExt as _, StreamExt as _, channel::mpsc as futures_mpsc};
use libp2p::{Multiaddr, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{
    Config,
    core::{
        address::Route,
        liveness::Hint,
        plan::{AttemptId, Rules},
    },
    datagrams::Lane,
    event::{PathKind, Strategy},
    metrics::Metrics,
    node::{
        Command,
        effect::{Effects, tests::briefs},
        engine::Internal,
        relays::{Relays, Spares},
        round::Outbox,
    },
    stream::PumpEvent,
    ticket::Ticket,
};

/// One session, and everything that its methods need.
struct Scene {
    config: Config,
    rules: Rules,
    metrics: Metrics,
    outbox: Outbox,
    relays: Relays,
    spares: Spares,
    effects: Effects,
    now: Instant,
    sessions: Sessions,
    id: SessionId,
    local: PeerId,
    _held: (
        mpsc::Sender<Command>,
        mpsc::Receiver<Internal>,
        futures_mpsc::Receiver<PumpEvent>,
    ),
}

const DIRECT: &str = "/ip4/192.0.2.7/udp/1/quic-v1";

fn conn(id: usize) -> ConnectionId {
    ConnectionId::new_unchecked(id)
}

impl Scene {
    fn new() -> Self {
        let local = PeerId::random();
        let (commands, _) = mpsc::channel(8);
        let (internal, internal_rx) = mpsc::channel(8);
        let (pumps, pumps_rx) = futures_mpsc::channel(8);
        let config = Config::default();
        let mut scene = Self {
            rules: Rules {
                ice: Vec::new(),
                turn: false,
                anew: None,
                start: config.start_delays.clone(),
                timeout: config.strategy_timeout,
                guessing: Duration::ZERO,
                retries: 3,
                backoff: Duration::from_secs(1),
            },
            metrics: Metrics::new(),
            outbox: Outbox {
                commands: commands.downgrade(),
                incoming: mpsc::channel(1).0,
                pumps,
                internal,
                events: tokio::sync::broadcast::Sender::new(1),
            },
            relays: Relays::new(local, &[], 0, config.relay_timeout, || 0.5),
            spares: Spares::default(),
            effects: Effects::default(),
            now: Instant::now(),
            sessions: Sessions::default(),
            id: SessionId::new(0),
            local,
            config,
            _held: (commands, internal_rx, pumps_rx),
        };
        let (sessions, mut round) = scene.split();
        scene.id = sessions.begin(PeerId::random(), &mut round).unwrap();
        scene.drain();
        scene
    }

    fn split(&mut self) -> (&mut Sessions, Round<'_>) {
        let round = Round {
            now: self.now,
            config: &self.config,
            rules: &self.rules,
            metrics: &self.metrics,
            outbox: &self.outbox,
            relays: &self.relays,
            spares: &mut self.spares,
            sealer: None,
            effects: &mut self.effects,
            entered: None,
            random: || 0.5,
        };
        (&mut self.sessions, round)
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Session, &mut Round<'_>) -> R) -> R {
        let id = self.id;
        let (sessions, mut round) = self.split();
        act(sessions.get_mut(id).unwrap(), &mut round)
    }

    /// Takes the effects that wait, without timers.
    fn drain(&mut self) -> Vec<String> {
        let mut briefs = briefs(&mut self.effects);
        briefs.retain(|brief| !brief.starts_with("after"));
        briefs
    }

    /// Makes a new plan for the session, as the loop does when no effect is left. It must have been
    /// touched.
    fn replan(&mut self) -> Vec<String> {
        let touched = self.effects.next_replan();
        assert_eq!(touched, Some(self.id));
        assert_eq!(self.effects.next_replan(), None);
        self.with(|session, round| session.replan(round));
        self.drain()
    }

    /// Connects to the peer, whose ticket has one direct address.
    fn connect(&mut self) -> oneshot::Receiver<Result<Connection, Error>> {
        self.connect_over(vec![])
    }

    /// Connects to the peer, whose ticket has one direct address and these relays.
    fn connect_over(
        &mut self,
        relays: Vec<Multiaddr>,
    ) -> oneshot::Receiver<Result<Connection, Error>> {
        let (reply, answer) = oneshot::channel();
        let local = self.local;
        self.with(|session, round| {
            let peer = PublicPeerId(session.peer());
            let direct = vec![DIRECT.parse().unwrap()];
            let ticket = Ticket::checked(peer, true, relays, direct).unwrap();
            session.learn(&ticket, local, true);
            session.pursue(Waiting::Connect(reply), round);
        });
        answer
    }

    fn connected(&mut self, id: usize, route: Route, attempt: Option<AttemptId>) {
        let (local, dialled) = (self.local, attempt.is_some());
        let remote: Multiaddr = DIRECT.parse().unwrap();
        self.with(|session, round| {
            let probing = round.config.probing();
            let new = Conn::new(route, &remote, attempt, dialled, round.now, probing);
            session.on_connection(conn(id), new, local, round);
        });
    }
}

fn circuit() -> Route {
    Route::Circuit("/ip4/192.0.2.1/tcp/1".parse().unwrap())
}

#[test]
fn a_connect_dials_and_is_answered_by_the_path() {
    let mut scene = Scene::new();
    let mut answer = scene.connect();
    assert!(scene.drain().is_empty(), "nothing starts before the plan");
    assert_eq!(scene.replan(), ["start Direct"]);
    scene.with(|session, round| session.start_direct(round));
    assert_eq!(scene.drain(), ["dial Direct"]);
    scene.connected(1, Route::Direct, Some(AttemptId::Direct));
    assert!(scene.drain().is_empty());
    assert!(answer.try_recv().is_err());
    assert!(scene.replan().is_empty());
    let connection = answer.try_recv().unwrap().unwrap();
    assert_eq!(connection.path().unwrap().kind, PathKind::Direct);
}

#[test]
fn streams_move_before_callers_are_answered() {
    let mut scene = Scene::new();
    let mut answer = scene.connect();
    let opened = scene.with(|session, round| session.open_resumable("chat/1", round));
    let _stream = opened.unwrap();
    assert_eq!(scene.drain(), ["spawn"]);
    scene.replan();
    scene.connected(1, Route::Direct, Some(AttemptId::Direct));
    assert_eq!(scene.drain(), ["open /throughline/stream/1 on 1"]);
    assert!(answer.try_recv().is_err());
    scene.replan();
    assert!(answer.try_recv().unwrap().is_ok());
}

#[test]
fn streams_follow_the_better_path_and_come_back() {
    let mut scene = Scene::new();
    scene.connected(1, circuit(), None);
    scene.drain();
    scene.with(|session, _| session.streams.is_resumable(true));
    let opened = scene.with(|session, round| session.open_resumable("chat/1", round));
    let _stream = opened.unwrap();
    assert_eq!(scene.drain(), ["spawn", "open /throughline/stream/1 on 1"]);
    scene.connected(2, Route::Direct, None);
    assert_eq!(scene.drain(), ["open /throughline/stream/1 on 2"]);
    scene.with(|session, round| session.on_connection_closed(conn(2), round));
    assert_eq!(scene.drain(), ["open /throughline/stream/1 on 1"]);
    scene.replan();
}

#[test]
fn a_session_without_a_path_ends_after_the_resume_timeout() {
    let mut scene = Scene::new();
    scene.connected(1, Route::Direct, None);
    scene.with(|session, round| {
        session.streams.is_resumable(true);
        session.on_connection_closed(conn(1), round);
    });
    scene.drain();
    scene.replan();
    let timeout = scene.config.resume_timeout;
    scene.now += timeout / 2;
    scene.with(|session, round| session.on_deadline(Deadline::Resume, round));
    assert!(scene.drain().is_empty());
    scene.now += timeout;
    scene.with(|session, round| session.on_deadline(Deadline::Resume, round));
    assert_eq!(scene.drain(), ["end ConnectionLost Close"]);
}

#[test]
fn attempts_begin_anew_when_a_lost_session_has_a_circuit_again() {
    let mut scene = Scene::new();
    let _answer = scene.connect();
    scene.replan();
    scene.connected(1, Route::Direct, Some(AttemptId::Direct));
    scene.replan();
    scene.with(|session, _| session.streams.is_resumable(true));
    scene.with(|session, round| session.on_connection_closed(conn(1), round));
    assert_eq!(scene.replan(), ["start Direct"]);
    // The addresses were dialled while nothing could pass.
    scene.now += Duration::from_secs(1);
    scene.connected(2, circuit(), None);
    assert!(scene.drain().contains(&"start Direct".to_owned()));
    scene.now += Duration::from_secs(1);
    scene.connected(3, Route::Direct, None);
    scene.connected(4, circuit(), None);
    assert!(!scene.drain().contains(&"start Direct".to_owned()));
}

#[test]
fn a_session_with_a_stock_peer_ends_with_its_last_connection() {
    let mut scene = Scene::new();
    scene.connected(1, Route::Direct, None);
    scene.drain();
    scene.with(|session, round| session.on_connection_closed(conn(1), round));
    assert_eq!(scene.drain(), ["end ConnectionClosed Close"]);
}

#[test]
fn a_connect_that_fails_ends_a_session_that_nobody_needs() {
    let mut scene = Scene::new();
    let mut answer = scene.connect();
    scene.replan();
    let reason = "refused".to_owned();
    scene.with(|session, round| {
        session.attempt_failed(AttemptId::Direct, Cause::Refused, reason, round);
    });
    assert_eq!(scene.drain(), ["end Unreachable Close"]);
    let error = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(error.attempts().len(), 1);
}

/// A page makes ICE anew for TURN. Its peer may come with a relayed address before that.
#[test]
fn a_page_lets_its_peer_join_turn_late() {
    let mut scene = Scene::new();
    (scene.rules.turn, scene.rules.anew) = (true, Some(Duration::from_secs(3)));
    scene.connected(1, circuit(), None);
    scene.drain();
    let mut start = |turn| {
        scene.with(|session, round| session.start_ice(turn, round));
        scene.drain()[0].clone()
    };
    assert_eq!(
        (start(false), start(true)),
        ("late turn".into(), "turn".into())
    );
}

#[test]
fn a_dropped_connect_takes_its_dials_back() {
    let mut scene = Scene::new();
    drop(scene.connect());
    scene.replan();
    scene.with(|session, round| session.abandon(round));
    assert_eq!(scene.drain(), ["end Aborted Close"]);
    let id = scene.id;
    let (sessions, mut round) = scene.split();
    let session = sessions.remove(id).unwrap();
    session.end(
        ErrorKind::Aborted,
        crate::node::effect::Conns::Close,
        &mut round,
    );
    assert_eq!(scene.drain(), ["cancel Direct", "turn"]);
}

/// A session with a direct path, a circuit, and a stream. Both connections have answered a probe.
fn with_two_paths() -> (Scene, Stream) {
    let mut scene = Scene::new();
    scene.connected(1, Route::Direct, None);
    scene.connected(2, circuit(), None);
    scene.with(|session, _| session.streams.is_resumable(true));
    let opened = scene.with(|session, round| session.open_resumable("chat/1", round));
    for id in [1, 2] {
        scene.pass(Duration::ZERO, id);
        scene.answer(id);
    }
    scene.drain();
    (scene, opened.unwrap().1)
}

impl Scene {
    /// Lets time pass until a deadline of a connection's liveness.
    fn pass(&mut self, pause: Duration, id: usize) {
        self.now += pause;
        self.with(|session, round| session.on_deadline(Deadline::Probe(conn(id)), round));
    }

    fn answer(&mut self, id: usize) {
        let rtt = Some(Duration::from_millis(20));
        self.with(|session, round| session.on_answer(conn(id), rtt, round));
    }
}

#[test]
fn a_suspect_path_gives_its_streams_to_another_until_it_answers() {
    let (mut scene, _stream) = with_two_paths();
    let config = scene.config.clone();
    scene.pass(config.probe_interval, 1);
    assert_eq!(scene.drain(), ["probe 1"]);
    scene.pass(config.probe_timeout, 1);
    let moved = [
        "probe 1",
        "doubt mapping",
        "open /throughline/stream/1 on 2",
        "open /throughline/doubt/1 on 2",
    ];
    assert_eq!(scene.drain(), moved);
    scene.answer(1);
    assert_eq!(scene.drain(), ["open /throughline/stream/1 on 1"]);
}

/// A path that is new in use has brought nothing yet, whatever other paths have brought before.
#[test]
fn a_path_is_judged_by_what_it_has_brought_itself() {
    let (mut scene, _stream) = with_two_paths();
    let heard = |scene: &mut Scene, id| {
        scene.with(|session, _| {
            let heard = session.streams.activity.heard();
            session.paths.heard(conn(id), heard)
        })
    };
    scene.with(|session, _| session.streams.activity.hear());
    assert_eq!((heard(&mut scene, 1), heard(&mut scene, 2)), (1, 0));
    scene.with(|session, round| session.on_doubt(conn(2), round));
    assert_eq!((heard(&mut scene, 1), heard(&mut scene, 2)), (0, 0));
    scene.with(|session, _| session.streams.activity.hear());
    assert_eq!((heard(&mut scene, 1), heard(&mut scene, 2)), (0, 1));
}

#[test]
fn a_path_that_the_peer_doubts_is_left_at_once_and_nothing_is_said_back() {
    let (mut scene, _stream) = with_two_paths();
    scene.with(|session, round| session.on_doubt(conn(2), round));
    assert_eq!(
        scene.drain(),
        [
            "probe 1",
            "doubt mapping",
            "open /throughline/stream/1 on 2"
        ]
    );
    scene.answer(1);
    assert_eq!(scene.drain(), ["open /throughline/stream/1 on 1"]);
}

/// The streams of a stock peer would break if their connection were closed for another one.
#[test]
fn the_paths_of_stock_peers_are_never_suspect() {
    let mut scene = Scene::new();
    scene.connected(1, Route::Direct, None);
    scene.connected(2, circuit(), None);
    scene.drain();
    scene.pass(Duration::ZERO, 1);
    scene.pass(Duration::from_secs(3), 1);
    scene.pass(Duration::from_secs(20), 1);
    let effects = scene.drain();
    assert!(effects.iter().all(|e| e == "probe 1"), "{effects:?}");
    assert!(scene.with(|session, _| session.paths.is_direct()));
    assert_eq!(
        scene.with(|session, _| session.paths.active()),
        Some(conn(1))
    );
}

#[test]
fn a_suspect_path_is_kept_while_there_is_no_other() {
    let mut scene = Scene::new();
    scene.connected(1, Route::Direct, None);
    scene.with(|session, _| session.streams.is_resumable(true));
    scene.pass(Duration::ZERO, 1);
    scene.pass(Duration::from_secs(3), 1);
    assert_eq!(scene.drain(), ["probe 1", "probe 1", "doubt mapping"]);
    assert!(scene.with(|session, _| session.has_path()));
    scene.pass(Duration::from_secs(10), 1);
    assert_eq!(scene.drain(), ["close 1"]);
}

#[test]
fn a_suspect_path_is_closed_once_an_equal_one_is_up() {
    let (mut scene, _stream) = with_two_paths();
    scene.with(|session, round| session.on_doubt(conn(2), round));
    scene.drain();
    scene.connected(3, Route::Direct, None);
    assert_eq!(
        scene.drain(),
        ["open /throughline/stream/1 on 3", "close 1"]
    );
}

#[test]
fn bytes_on_a_path_bring_probes_soon() {
    let (mut scene, _stream) = with_two_paths();
    scene.with(|session, round| session.on_busy(conn(1), round));
    scene.drain();
    scene.pass(scene.config.probe_timeout / 4, 1);
    assert_eq!(scene.drain(), ["probe 1"]);
}

#[test]
fn a_session_at_rest_has_no_circuit_until_its_path_is_suspect_or_busy() {
    for busy in [false, true] {
        let mut scene = Scene::new();
        let relay = PeerId::random();
        let address = format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}").parse().unwrap();
        let _answer = scene.connect_over(vec![address]);
        let starts = |effects: Vec<String>| effects.iter().any(|e| e.starts_with("start Circuit"));
        assert!(starts(scene.replan()));
        scene.connected(1, circuit(), Some(AttemptId::Circuit(relay)));
        scene.connected(2, Route::Direct, Some(AttemptId::Direct));
        scene.with(|session, _| session.streams.is_resumable(true));
        scene.pass(Duration::ZERO, 2);
        scene.answer(2);
        scene.drain();
        scene.pass(scene.config.circuit_idle_timeout, 2);
        scene.answer(2);
        assert_eq!(scene.drain(), ["probe 2", "close 1"]);
        assert!(!starts(scene.replan()));
        match busy {
            true => scene.with(|session, round| session.on_busy(conn(2), round)),
            false => {
                scene.pass(scene.config.probe_interval, 2);
                scene.pass(scene.config.probe_timeout, 2);
            }
        }
        scene.drain();
        assert!(starts(scene.replan()));
    }
}

#[test]
fn a_session_that_nobody_needs_is_closed() {
    let mut scene = Scene::new();
    scene.with(|session, round| session.on_deadline(Deadline::Idle, round));
    assert!(scene.drain().is_empty());
    scene.now += scene.config.idle_timeout;
    scene.with(|session, round| session.on_deadline(Deadline::Idle, round));
    assert_eq!(scene.drain(), ["close session"]);
}

#[test]
fn a_circuit_that_carries_no_traffic_is_closed_to_make_room() {
    let mut scene = Scene::new();
    let relay = PeerId::random();
    scene.connected(1, circuit(), Some(AttemptId::Circuit(relay)));
    let spare = |scene: &mut Scene| scene.with(|session, round| session.spare_circuit(round));
    assert!(!spare(&mut scene), "the circuit is in use");
    assert_eq!(scene.sessions.our_circuits(), 1);
    scene.connected(2, Route::Direct, None);
    scene.drain();
    assert!(spare(&mut scene));
    assert_eq!(scene.drain(), ["close 1"]);
    assert_eq!(scene.sessions.our_circuits(), 0);
}

#[test]
fn the_strategy_of_a_path_is_counted_when_it_comes_up() {
    let mut scene = Scene::new();
    let _answer = scene.connect();
    scene.replan();
    scene.connected(1, Route::Direct, Some(AttemptId::Direct));
    let attempts = scene.with(|session, _| session.state.ended_attempts());
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].strategy, Strategy::Direct);
    assert_eq!(attempts[0].outcome, Outcome::Succeeded);
}

#[test]
fn the_size_of_datagrams_is_that_of_the_path_in_use_and_changes_are_told() {
    let mut scene = Scene::new();
    scene.connected(1, circuit(), None);
    let size = |scene: &mut Scene| {
        scene.with(|session, _| session.state.path().and_then(|path| path.max_datagram_size))
    };
    assert_eq!(size(&mut scene), Some(1120));
    let direct = Arc::new(Lane::default());
    direct.carry(1300);
    let lane = direct.clone();
    scene.connected(2, Route::Direct, None);
    let handle = scene.with(|session, round| session.handle(round)).unwrap();
    let mut events = handle.path_events();
    scene.with(|session, round| session.on_lane(conn(2), lane, round));
    assert_eq!(size(&mut scene), Some(1300));
    let lane = direct.clone();
    scene.with(|session, round| session.on_lane(conn(2), lane, round));
    handle.send_datagram(&[0; 1300]).unwrap();
    let stock = ["/ipfs/id/1.0.0".to_owned()].into();
    scene.with(|session, round| session.on_identified(stock, round));
    assert_eq!(size(&mut scene), None);
    let error = handle.send_datagram(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let mut told = Vec::new();
    while let Some(event) = events.next().now_or_never() {
        match event.unwrap() {
            PathEvent::DatagramSize {
                max_datagram_size, ..
            } => told.push(max_datagram_size),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [Some(1300), None]);
}
