use super::*;
use crate::node::{effect::tests::briefs, relays::tests::*};

const PROBING: Probing = Probing {
    idle: Duration::from_secs(5),
    patience: Duration::from_secs(1),
};

#[test]
fn a_link_that_comes_up_starts_a_reservation_and_the_circuits_that_wait() {
    let peers = peers(1);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    relays.pursue(&mut effects);
    assert_eq!(briefs(&mut effects), ["dial relay"]);
    relays.pursue(&mut effects);
    assert!(briefs(&mut effects).is_empty(), "one dial at a time");
    relays.wait_for(&peers[0], SessionId::new(3));
    let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
    let link = ConnectionId::new_unchecked(1);
    relays.on_link_up(peers[0], link, &remote, None, PROBING, &mut effects);
    let reserve = format!("open {HOP_PROTOCOL} on 1");
    let expected = [
        "after 0 ms",
        &reserve,
        "after 10000 ms",
        "relay changed",
        "dial over",
    ];
    assert_eq!(briefs(&mut effects), expected);
    relays.on_link_up(peers[0], link, &remote, None, PROBING, &mut effects);
    assert!(briefs(&mut effects).is_empty(), "the link is up already");
}

#[test]
fn a_link_that_fails_ends_what_waits_and_a_standby_is_dialled() {
    let peers = peers(2);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    relays.pursue(&mut effects);
    relays.wait_for(&peers[0], SessionId::new(3));
    briefs(&mut effects);
    relays.on_link_failed(peers[0], "refused", &mut effects);
    let failed = format!("failed {:?} RelayUnreachable", AttemptId::Circuit(peers[0]));
    let expected = [&failed, "relay gone", "after 750 ms", "dial relay"];
    let briefs_now = briefs(&mut effects);
    assert_eq!(briefs_now[..2], expected[..2]);
    assert!(briefs_now[2].starts_with("after"), "{briefs_now:?}");
    assert_eq!(briefs_now[3], expected[3]);
    relays.on_link_failed(peers[1], "refused", &mut effects);
    assert_eq!(briefs(&mut effects).last().unwrap(), "no relay");

    // A dial that another connection has made needless says nothing about the link.
    let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
    let link = ConnectionId::new_unchecked(1);
    relays.on_link_up(peers[0], link, &remote, None, PROBING, &mut effects);
    briefs(&mut effects);
    relays.on_link_failed(peers[0], "refused", &mut effects);
    assert!(briefs(&mut effects).is_empty());
    assert!(relays.circuit_link(&peers[0]).is_some());
}

#[test]
fn a_relay_that_was_there_is_dialled_anew_if_it_does_not_answer() {
    let peers = peers(1);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    for (rtt, patience) in [(20, 1875), (400, 4000)] {
        let relay = relays.get_mut(&peers[0]).unwrap();
        relay.rtt = Some(Duration::from_millis(rtt));
        relay.resting = false;
        relays.pursue(&mut effects);
        let expected = [format!("after {patience} ms"), "dial relay".to_owned()];
        assert_eq!(briefs(&mut effects), expected);
        let RelayLink::Dialling(dial) = relays.get(&peers[0]).unwrap().link else {
            panic!("it is dialled");
        };
        let other = ConnectionId::new_unchecked(usize::MAX);
        relays.on_unanswered(peers[0], other, &mut effects);
        assert!(briefs(&mut effects).is_empty(), "an earlier dial");
        relays.on_unanswered(peers[0], dial, &mut effects);
        let given_up = briefs(&mut effects);
        assert_eq!(given_up[..2], ["give up dial", "relay gone"]);
        assert!(given_up[2].starts_with("after "), "{given_up:?}");
        relays.on_unanswered(peers[0], dial, &mut effects);
        assert!(briefs(&mut effects).is_empty(), "it is over");
    }
}

#[test]
fn a_suspect_link_is_replaced_before_it_is_closed() {
    let peers = peers(1);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    let link = ConnectionId::new_unchecked;
    let other = Some(DialFor::Replacement(peers[0]));
    let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
    relays.on_link_up(peers[0], link(1), &remote, None, PROBING, &mut effects);
    let doubt = |relays: &mut Relays| {
        let relay = relays.get_mut(&peers[0]).unwrap();
        let _ = relay.liveness.as_mut().unwrap().doubt(Instant::now());
    };
    doubt(&mut relays);
    briefs(&mut effects);
    relays.on_link_deadline(peers[0], 0, &mut effects);
    assert_eq!(briefs(&mut effects).last().unwrap(), "dial replacement");
    relays.on_link_deadline(peers[0], 0, &mut effects);
    assert!(!briefs(&mut effects).contains(&"dial replacement".to_owned()));
    relays.on_replacement_failed(peers[0], "unreachable", &mut effects);
    let again = briefs(&mut effects);
    assert!(
        again.len() == 1 && again[0].starts_with("after"),
        "{again:?}"
    );
    std::thread::sleep(REPLACE_AGAIN);
    relays.on_link_deadline(peers[0], 0, &mut effects);
    // The suspect link answers before the other link is up.
    relays.on_answer(
        &peers[0],
        link(1),
        Some(Duration::from_millis(20)),
        &mut effects,
    );
    briefs(&mut effects);
    relays.on_link_up(peers[0], link(2), &remote, other, PROBING, &mut effects);
    assert_eq!(briefs(&mut effects), ["close 2"]);
    // Now the suspect link does not answer.
    doubt(&mut relays);
    relays.on_link_deadline(peers[0], 0, &mut effects);
    briefs(&mut effects);
    relays.on_link_up(peers[0], link(3), &remote, other, PROBING, &mut effects);
    let replaced = briefs(&mut effects);
    assert_eq!(replaced[..3], ["withdraw", "reserved", "close 1"]);
    let reserve = format!("open {HOP_PROTOCOL} on 3");
    assert!(replaced.contains(&reserve), "{replaced:?}");
    relays.on_link_closed(peers[0], link(1), None, &mut effects);
    assert!(briefs(&mut effects).is_empty());
}

#[test]
fn a_link_that_cannot_follow_is_replaced_at_once_when_an_address_is_gone() {
    for (remote, replaced) in [
        ("/ip4/192.0.2.1/tcp/1", true),
        ("/ip4/192.0.2.1/tcp/1/ws", true),
        ("/ip4/192.0.2.1/udp/1/quic-v1", false),
    ] {
        let peers = peers(1);
        let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
        let link = ConnectionId::new_unchecked(1);
        let remote = remote.parse().unwrap();
        relays.on_link_up(peers[0], link, &remote, None, PROBING, &mut effects);
        briefs(&mut effects);
        relays.on_address_gone(&mut effects);
        let dialled = briefs(&mut effects).contains(&"dial replacement".to_owned());
        assert_eq!(dialled, replaced, "{remote}");
        relays.on_address_gone(&mut effects);
        let again = briefs(&mut effects).contains(&"dial replacement".to_owned());
        assert!(!again, "{remote}");
    }
}

#[test]
fn a_reservation_ends_with_its_link() {
    let peers = peers(1);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    let link = ConnectionId::new_unchecked(1);
    let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
    relays.on_link_up(peers[0], link, &remote, None, PROBING, &mut effects);
    let id = relays.get(&peers[0]).unwrap().reservation.id().unwrap();
    relays.on_reserved(peers[0], id, Ok(Vec::new()), &mut effects);
    assert_eq!(relays.held(), 1);
    briefs(&mut effects);
    let other = ConnectionId::new_unchecked(2);
    relays.on_link_closed(peers[0], other, None, &mut effects);
    assert!(briefs(&mut effects).is_empty(), "it was not the link");
    relays.on_link_closed(peers[0], link, None, &mut effects);
    let ended = briefs(&mut effects);
    assert_eq!(ended[..2], ["withdraw", "reserved"]);
    assert_eq!(
        relays.get(&peers[0]).unwrap().reservation,
        Reservation::None
    );
}
