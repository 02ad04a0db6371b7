//! Tests of sessions with two circuits.

use super::*;

#[test]
fn one_of_two_circuits_dialled_at_the_same_time_is_closed() {
    let both = |is_ours: bool| {
        let mut scene = Scene::new();
        let relay = PeerId::random();
        scene.with(|session, _| session.streams.is_resumable(is_ours));
        scene.connected(1, circuit(), None);
        scene.drain();
        scene.connected(2, circuit(), Some(AttemptId::Circuit(relay)));
        let peer = scene.with(|session, _| session.peer());
        let surplus = if scene.local < peer { 1 } else { 2 };
        (scene.drain(), format!("close {surplus}"))
    };
    let (effects, close) = both(true);
    assert_eq!(effects, [close]);
    // A stock peer may signal ICE over either circuit.
    assert!(both(false).0.is_empty());
}

/// A circuit through this relay.
fn circuit_of(relay: PeerId) -> Route {
    Route::Circuit(format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}").parse().unwrap())
}

#[test]
fn of_two_relays_the_quicker_one_stays_and_each_is_tried_once() {
    let relays = [(); 2].map(|()| PeerId::random());
    let attempts = relays.map(AttemptId::Circuit);
    let addresses = relays.map(|relay| format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}"));
    for [near, far] in [[1, 2], [2, 1]] {
        let mut scene = Scene::new();
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        let _answer = scene.connect_over(addresses.collect());
        scene.with(|session, _| session.streams.is_resumable(true));
        let _stream = scene.with(|session, round| session.open_resumable("chat/1", round));
        scene.connected(1, circuit_of(relays[0]), Some(attempts[0]));
        let rivals =
            |scene: &mut Scene| scene.with(|session, round| session.known(round.relays).rivals);
        assert_eq!(rivals(&mut scene), [relays[1]]);
        scene.drain();
        scene.now += Duration::from_secs(5);
        scene.connected(2, circuit_of(relays[1]), Some(attempts[1]));
        assert_eq!(rivals(&mut scene), []);
        assert!(
            scene.drain().is_empty(),
            "both stay until they are measured"
        );
        let mut answer = |pause| {
            scene.now += Duration::from_secs(pause);
            for id in [near, far] {
                scene.pass(Duration::ZERO, id);
                let rtt = Some(Duration::from_millis(if id == near { 20 } else { 40 }));
                scene.with(|session, round| session.on_answer(conn(id), rtt, round));
            }
            let mut effects = scene.drain();
            effects.retain(|effect| !effect.starts_with("probe"));
            effects
        };
        let moved: &[&str] = match near {
            1 => &[],
            _ => &["open /throughline/stream/1 on 2"],
        };
        assert_eq!(answer(1), moved);
        assert_eq!(answer(1), [format!("close {far}")]);
        assert_eq!(rivals(&mut scene), [], "none is tried again");
        scene.with(|session, round| session.on_hint(Hint::Network, round));
        assert_eq!(rivals(&mut scene), [relays[far - 1]]);
    }
}
