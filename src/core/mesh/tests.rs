use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

#[test]
fn a_proof_is_for_one_room_and_one_direction() {
    let key = MeshKey::new("app", "name", "secret");
    let proof = key.proof("a", "b");
    assert!(key.is_proof("a", "b", &proof));
    assert!(!key.is_proof("b", "a", &proof) && !key.is_proof("a", "c", &proof));
    assert!(!key.is_proof("a", "b", &proof[1..]) && !key.is_proof("a", "b", b""));
    for at in 0..PROOF {
        let mut changed = proof;
        changed[at] ^= 1;
        assert!(!key.is_proof("a", "b", &changed));
    }
    let mut twice = proof;
    twice[..2].iter_mut().for_each(|byte| *byte ^= 1);
    assert!(
        !key.is_proof("a", "b", &twice),
        "two differences do not cancel out"
    );
    for (application, name, secret) in [
        ("app2", "name", "secret"),
        ("app", "name2", "secret"),
        ("app", "name", "guess"),
    ] {
        let other = MeshKey::new(application, name, secret);
        assert!(!other.is_proof("a", "b", &proof));
    }
    // js/test/mesh.test.mjs has the same.
    assert_eq!(
        data_encoding::HEXLOWER.encode(&proof),
        "2d77dec22dd4dea631b04f94a6ca57d61e8cb2fd3a5e3ec4aeb0c35a1fc70434"
    );
}

#[test]
fn one_attempt_at_a_time_counts() {
    let mut roster = Roster::new();
    assert!(roster.admit('a') && !roster.admit('a'));
    let first = roster.seek('a').unwrap();
    assert_eq!(roster.seek('a'), None, "one is under way");
    let (second, pause) = roster.fail('a', first, 0.5).unwrap();
    assert_eq!(pause, AGAIN.0);
    assert_eq!(roster.fail('a', first, 0.5), None, "it is stale");
    assert!(roster.is_sought('a', second) && !roster.is_sought('a', first));
    assert_eq!(roster.linked('a'), None);
    let link = roster.link('a', NOW).unwrap();
    assert_eq!(roster.linked('a'), Some(link));
    assert!(!roster.is_sought('a', second));
    assert_eq!(roster.fail('a', second, 0.5), None);
    assert_eq!(roster.link('a', NOW), None, "a late one replaces nothing");
    assert_eq!(roster.unlink('a', link + 1, NOW, 0.5), None);
    roster.unlink('a', link, NOW, 0.5).unwrap();
    roster.remove('a');
    assert!(roster.admit('a'));
    let third = roster.seek('a').unwrap();
    assert!(third > second, "what was begun before it left is stale");
    roster.meet('a');
    assert_eq!(roster.seek('a'), None);
    assert!(roster.miss('a', 0.5).is_some() && roster.miss('a', 0.5).is_none());
}

#[test]
fn who_does_not_stay_is_sought_ever_less_often() {
    let mut roster = Roster::new();
    roster.admit('a');
    roster.seek('a');
    let ends = |roster: &mut Roster<char>, lasted: Duration, random| {
        let link = roster.link('a', NOW).unwrap();
        roster.unlink('a', link, NOW + lasted, random).unwrap().1
    };
    let second = Duration::from_secs(1);
    let pauses: Vec<_> = (0..6).map(|_| ends(&mut roster, second, 0.5)).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30].map(|n| n * second));
    assert_eq!(ends(&mut roster, AGAIN.1, 0.5), second, "it has stayed");
    assert_eq!(ends(&mut roster, AGAIN.1, 0.0), second * 3 / 4, "jitter");
}

#[test]
fn a_full_mesh_takes_nobody_in() {
    let mut roster = Roster::new();
    assert!((1..MAX_MEMBERS).all(|peer| roster.admit(peer)));
    assert!(!roster.admit(0), "this peer is a member, too");
    roster.remove(7);
    assert!(roster.admit(0));
}

#[test]
fn strangers_are_bounded_and_take_no_room_from_members() {
    let mut greets = Greets::new();
    let nobody = |_| false;
    let first = greets.begin(0, nobody).unwrap();
    assert!(greets.begin(0, nobody).is_some());
    assert_eq!(greets.begin(0, nobody), None, "two of one peer");
    greets.end(first);
    assert_eq!(greets.of(0).len(), 1);
    let begun = (1..100).filter(|peer| greets.begin(*peer, nobody).is_some());
    assert_eq!(begun.count(), STRANGERS - 1);
    assert!(greets.begin(77, |peer| peer == 77).is_some());
    assert!(greets.begin(78, |peer| peer == 77).is_none());
}

fn all(inbox: &mut Inbox<char>) -> Vec<News<char>> {
    std::iter::from_fn(|| inbox.next()).collect()
}

#[test]
fn what_a_member_says_stands_between_its_coming_and_its_going() {
    let mut inbox = Inbox::default();
    inbox.open('a', 1, b"x".to_vec());
    inbox.put('a', b"one".to_vec());
    inbox.put_datagram('a', 1, b"two".to_vec());
    inbox.close('a');
    assert_eq!(inbox.has_room('a', 1), None, "nothing comes after its end");
    inbox.put_datagram('a', 1, b"late".to_vec());
    inbox.show('a', b"late".to_vec());
    let told = [
        News::Joined('a', b"x".to_vec()),
        News::Message('a', b"one".to_vec()),
        News::Datagram('a', b"two".to_vec()),
    ];
    for news in told {
        assert!(!inbox.can_open('a'), "its end is unread");
        assert_eq!(inbox.next(), Some(news));
    }
    assert_eq!(all(&mut inbox), [News::Left('a')]);
    assert!(inbox.can_open('a'));
}

#[test]
fn twice_as_many_as_a_room_has_can_come_before_any_of_them_is_told() {
    let mut inbox = Inbox::default();
    for peer in 0..64 {
        assert!(inbox.can_open(peer), "{peer}");
        inbox.open(peer, 1, Vec::new());
    }
    assert!(!inbox.can_open(64));
}

#[test]
fn a_link_has_room_for_some_messages_of_its_own() {
    let mut inbox = Inbox::default();
    inbox.open('a', 2, Vec::new());
    assert_eq!(inbox.has_room('a', 1), None, "the link before it");
    assert_eq!(inbox.has_room('b', 2), None, "nobody is there");
    for n in 0..UNREAD_MESSAGES {
        assert_eq!(inbox.has_room('a', 2), Some(true), "{n}");
        inbox.put('a', vec![0]);
    }
    assert_eq!(inbox.has_room('a', 2), Some(false));
}

#[test]
fn who_comes_and_goes_unread_is_not_told() {
    let mut inbox = Inbox::default();
    for link in 0..1000 {
        inbox.open('a', link, Vec::new());
        inbox.close('a');
    }
    assert_eq!((all(&mut inbox), inbox.turns.len()), (Vec::new(), 0));
    inbox.open('a', 1000, b"x".to_vec());
    for n in 0..1000_u32 {
        inbox.show('a', n.to_be_bytes().to_vec());
    }
    let newest = 999_u32.to_be_bytes().to_vec();
    assert_eq!(all(&mut inbox), [News::Joined('a', newest.clone())]);
    inbox.show('a', newest);
    assert_eq!(all(&mut inbox), [], "it is no change");
    for n in 0..1000_u32 {
        inbox.show('a', n.to_be_bytes().to_vec());
    }
    assert_eq!(all(&mut inbox).len(), 1);
}

#[test]
fn members_take_turns() {
    let mut inbox = Inbox::default();
    for (peer, link) in [('a', 1), ('b', 2)] {
        inbox.open(peer, link, Vec::new());
        for text in [b"1", b"2"] {
            inbox.put(peer, text.to_vec());
        }
    }
    let who = all(&mut inbox).into_iter().map(|news| match news {
        News::Joined(peer, _) | News::Message(peer, _) => peer,
        other => panic!("{other:?}"),
    });
    assert_eq!(who.collect::<String>(), "ababab");
}

proptest! {
    #[test]
    fn every_member_comes_before_it_speaks_and_goes_once(
        steps in prop::collection::vec((0_u8..7, 0_u8..80), 0..400),
    ) {
        let mut inbox = Inbox::default();
        let mut links = HashMap::new();
        let mut here = std::collections::HashSet::new();
        for (at, (step, peer)) in steps.into_iter().enumerate() {
            let link = links.get(&peer).copied().unwrap_or_default();
            match step {
                0 if inbox.can_open(peer) => {
                    links.insert(peer, at as u64 + 1);
                    inbox.open(peer, at as u64 + 1, Vec::new());
                }
                1 => inbox.close(peer),
                2 if inbox.has_room(peer, link) == Some(true) => inbox.put(peer, vec![0]),
                3 => inbox.put_datagram(peer, link, vec![0]),
                4 => inbox.show(peer, vec![at as u8]),
                5 => match inbox.next() {
                    Some(News::Joined(peer, _)) => prop_assert!(here.insert(peer)),
                    Some(News::Left(peer)) => prop_assert!(here.remove(&peer)),
                    Some(
                        News::Changed(peer, _)
                        | News::Message(peer, _)
                        | News::Datagram(peer, _),
                    ) => prop_assert!(here.contains(&peer)),
                    None => {}
                },
                _ => {}
            }
            prop_assert!(inbox.boxes.len() <= 2 * MAX_MEMBERS);
            prop_assert!(inbox.turns.len() <= inbox.boxes.len());
            prop_assert!(inbox.boxes.values().all(|known| known.unread.len() < UNREAD + UNREAD_MESSAGES));
        }
    }
}
