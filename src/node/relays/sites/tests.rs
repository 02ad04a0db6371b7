use libp2p::swarm::ConnectionId;

use super::*;
use crate::{
    core::site::RelayText,
    node::{effect::tests::briefs, relays::tests::*},
};

fn site(text: &str) -> Site {
    match text.parse() {
        Ok(RelayText::Site(site)) => site,
        other => panic!("{other:?}"),
    }
}

fn learnt(peer: PeerId, port: u16) -> Learnt {
    let address = format!("/ip4/192.0.2.1/tcp/{port}/p2p/{peer}");
    Learnt {
        peer,
        addresses: vec![address.parse().unwrap()],
        stun: vec!["stun:192.0.2.1:3".into()],
        turn: None,
        age: Duration::from_secs(300),
    }
}

/// Relays of which the first is named by a site. It was asked.
fn named(others: &[PeerId]) -> (Relays, SiteId, Effects) {
    let (mut relays, mut effects) = (configured(others, 1), Effects::default());
    relays.named(vec![(0, site("relay.example"))], &mut effects);
    assert_eq!(briefs(&mut effects), ["ask relay.example"]);
    let id = relays.sites.known[0].id;
    (relays, id, effects)
}

#[test]
fn a_relay_is_dialled_where_its_site_says_and_stays_there_when_the_site_is_gone() {
    let (mut relays, id, mut effects) = named(&[]);
    let peer = PeerId::random();
    assert!(!relays.all_failed(), "the site is asked");
    relays.on_site(id, Ok(learnt(peer, 1)), &mut effects);
    let told = briefs(&mut effects);
    let expected = [
        "after 262500 ms",
        "servers stun:192.0.2.1:3",
        "status changed",
        "dial relay",
    ];
    assert_eq!(told, expected);
    assert!(relays.get(&peer).unwrap().is_users());
    relays.on_site(id, Err(Fault::TimedOut), &mut effects);
    assert_eq!(relays.get(&peer).unwrap().addresses.len(), 1);
    relays.on_site(id, Ok(learnt(peer, 2)), &mut effects);
    let addresses = &relays.get(&peer).unwrap().addresses;
    assert_eq!(*addresses, learnt(peer, 2).addresses, "the old one is gone");
    relays.on_link_failed(peer, "refused", &mut effects);
    briefs(&mut effects);
    relays.on_site(id, Ok(learnt(peer, 2)), &mut effects);
    let dials = |effects: &mut Effects| briefs(effects).contains(&"dial relay".to_owned());
    assert!(!dials(&mut effects), "it rests");
    relays.on_site(id, Ok(learnt(peer, 3)), &mut effects);
    assert!(dials(&mut effects), "it has moved");
}

#[test]
fn a_site_that_says_it_is_this_peer_is_not_believed() {
    let (mut relays, id, mut effects) = named(&[]);
    let own = relays.local;
    relays.on_site(id, Ok(learnt(own, 1)), &mut effects);
    assert!(relays.get(&own).is_none() && relays.to_pursue().is_empty());
    assert!(relays.all_failed());
    let errors = relays.errors().join(" ");
    assert!(errors.contains("another relay is there"), "{errors}");
    // Nor is a ticket that names its reader as the relay.
    relays.learn(own, &learnt(own, 1).addresses[0], false);
    assert!(relays.get(&own).is_none());
}

#[test]
fn a_site_that_says_nothing_counts_as_a_relay_that_has_failed() {
    let (mut relays, id, mut effects) = named(&[]);
    relays.on_site(id, Err(Fault::Status(404)), &mut effects);
    let told = briefs(&mut effects);
    assert!(told[0].starts_with("after "), "{told:?}");
    assert_eq!(told[1..], ["status changed", "no relay"]);
    let errors = relays.errors().join(" ");
    let parts = [
        "relay.example",
        "https://relay.example/.well-known/throughline",
        "404",
    ];
    assert!(parts.iter().all(|part| errors.contains(part)), "{errors}");
    relays.on_site_due(id, &mut effects);
    assert!(briefs(&mut effects).is_empty(), "it is too early");
    relays.sites.known[0].alarm = Alarm::default();
    relays.sites.known[0]
        .alarm
        .set(Some(Instant::now()), Instant::now());
    relays.on_site_due(id, &mut effects);
    assert_eq!(briefs(&mut effects), ["ask relay.example"]);
    assert!(!relays.all_failed());
}

#[test]
fn a_dead_site_delays_no_other_relay() {
    let others = peers(1);
    let (mut relays, id, mut effects) = named(&others);
    relays.pursue(&mut effects);
    assert_eq!(briefs(&mut effects), ["dial relay"]);
    relays.on_site(id, Err(Fault::TimedOut), &mut effects);
    assert!(!briefs(&mut effects).contains(&"no relay".to_owned()));
    let first = PeerId::random();
    relays.on_site(id, Ok(learnt(first, 1)), &mut effects);
    assert_eq!(relays.order, [first, others[0]], "in the user's order");
}

#[test]
fn a_site_is_asked_anew_when_its_relay_is_not_reached_but_not_all_the_time() {
    let (mut relays, id, mut effects) = named(&[]);
    let peer = PeerId::random();
    relays.on_site(id, Ok(learnt(peer, 1)), &mut effects);
    briefs(&mut effects);
    let asks = |effects: &mut Effects| {
        let told = briefs(effects).into_iter();
        told.filter(|brief| brief.starts_with("ask")).count()
    };
    relays.doubt_sites(Some(peer), &mut effects);
    assert_eq!(asks(&mut effects), 0, "it was asked a moment ago");
    let long_ago = Instant::now().checked_sub(SOONEST);
    relays.sites.known[0].asked = long_ago;
    relays.doubt_sites(Some(PeerId::random()), &mut effects);
    assert_eq!(asks(&mut effects), 0, "it is another relay");
    relays.on_link_failed(peer, "refused", &mut effects);
    assert_eq!(asks(&mut effects), 1);
    relays.sites.known[0].asked = long_ago;
    relays.doubt_sites(None, &mut effects);
    assert_eq!(asks(&mut effects), 0, "one question at a time");
}

#[test]
fn another_relay_takes_the_place_of_the_one_before() {
    let (mut relays, id, mut effects) = named(&[]);
    let peers = peers(2);
    relays.on_site(id, Ok(learnt(peers[0], 1)), &mut effects);
    relays.on_site(id, Ok(learnt(peers[1], 1)), &mut effects);
    assert!(!relays.get(&peers[0]).unwrap().configured);
    assert!(relays.get(&peers[1]).unwrap().is_users());
    assert!(briefs(&mut effects).contains(&"release relays".to_owned()));
}

#[test]
fn what_a_relay_says_over_its_link_adds_to_what_the_user_has_said() {
    let peers = peers(1);
    let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
    let given = relays.get(&peers[0]).unwrap().addresses.clone();
    relays.on_profile(peers[0], learnt(peers[0], 9), &mut effects);
    let told = learnt(peers[0], 9).addresses;
    assert_eq!(
        relays.get(&peers[0]).unwrap().addresses,
        [given.clone(), told].concat()
    );
    assert_eq!(briefs(&mut effects), ["servers stun:192.0.2.1:3"]);
    relays.on_profile(peers[0], learnt(PeerId::random(), 9), &mut effects);
    assert!(briefs(&mut effects).is_empty(), "it speaks for itself only");
    let link = RelayLink::Up(ConnectionId::new_unchecked(1), given[0].clone());
    relays.get_mut(&peers[0]).unwrap().link = link;
    relays.ask_profile(peers[0], true, &mut effects);
    let expected = [format!("open {} on 1", profile::PROTOCOL)];
    assert_eq!(briefs(&mut effects), expected);
    relays.ask_profile(peers[0], false, &mut effects);
    assert!(
        briefs(&mut effects).is_empty(),
        "a stock relay is not asked"
    );
}

#[test]
fn a_ticket_makes_us_ask_few_sites() {
    let (mut relays, mut effects) = (configured(&[], 1), Effects::default());
    let session = SessionId::new(1);
    for port in 1..100 {
        let named = site(&format!("a.example:{port}"));
        let expected = match port <= FOREIGN.0 {
            true => Sought::Asked,
            false => Sought::Nowhere,
        };
        assert_eq!(relays.seek(&named, session, &mut effects), expected);
    }
    let asked = briefs(&mut effects);
    assert_eq!(asked.len(), FOREIGN.0 as usize, "{asked:?}");
    assert!(relays.sites.known.len() <= MAX_FOREIGN);
    let id = relays.sites.known[0].id;
    let named = relays.sites.known[0].site.clone();
    let peer = PeerId::random();
    relays.on_site(id, Ok(learnt(peer, 1)), &mut effects);
    assert_eq!(briefs(&mut effects), ["found", "status changed"]);
    assert!(
        !relays.get(&peer).unwrap().configured,
        "no reservation there"
    );
    assert_eq!(
        relays.seek(&named, session, &mut effects),
        Sought::Known(peer)
    );
    assert!(relays.to_pursue().is_empty());
}
