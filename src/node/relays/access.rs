//! How this peer shows relays its token, and what relays that admit it give besides.
//!
//! A relay is asked once on each link, and again before what it gave ends. It is asked only if it
//! names the protocol in identify, so that no other relay reads the token. A reservation that needs
//! the token is asked for in the same message.

use std::time::Duration;

use libp2p::PeerId;
use web_time::Instant;

use super::{BARRED, MOST_BARRED, Relay, RelayLink, Relays, Reservation, ReservationId};
use crate::{
    core::{
        access::Admitted,
        reservation::{self, ReservationError},
    },
    node::effect::{Effect, Effects},
    webrtc::IceServer,
};

/// The shortest pause before a relay is asked again on the same link.
const SOONEST: Duration = Duration::from_secs(30);

/// What this peer has to show, and what it wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// Whether there is a token to show.
    pub(crate) tokens: bool,
    /// Whether it wants credentials for TURN servers.
    pub(crate) turn: bool,
}

/// What is known of one relay.
#[derive(Default)]
pub(super) struct RelayAccess {
    /// Whether it has named the protocol.
    pub(super) named: bool,
    /// Whether it was asked on this link.
    pub(super) asked: bool,
    /// Whether it has answered on this link.
    pub(super) answered: bool,
    /// Whether it has admitted this peer on this link, and that has not ended.
    pub(super) admitted: bool,
    /// When it is asked again.
    again: Option<Instant>,
}

impl Relays {
    /// Has relays asked for what `wishes` says.
    pub(crate) fn wishing(mut self, wishes: Wishes) -> Self {
        self.wishes = wishes;
        self
    }

    /// Asks a relay for access over its link, unless that was done on this link.
    pub(super) fn seek_access(&mut self, peer: PeerId, effects: &mut Effects) {
        let wishes = self.wishes;
        if (wishes.tokens || wishes.turn)
            && let Some(relay) = self.get_mut(&peer)
            && relay.is_users()
            && relay.identified
            && relay.may_ask_access()
        {
            relay.open(peer, None, true, effects);
        }
    }

    /// A relay has answered a request for a reservation, for access, or for both.
    pub(in crate::node) fn on_access(
        &mut self,
        peer: PeerId,
        id: Option<ReservationId>,
        access: bool,
        answer: Result<Admitted, ReservationError>,
        effects: &mut Effects,
    ) {
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        if access {
            relay.access.answered = true;
            relay.access.admitted = answer.is_ok();
        }
        // What it has refused before it admitted this peer may be asked for again.
        let is_unbarred = access && id.is_none() && answer.is_ok() && relay.is_barred();
        if is_unbarred {
            relay.refused = None;
            relay.resting = false;
        }
        let reserved = match answer {
            Ok(admitted) => {
                let turn = admitted.turn;
                let ends = [admitted.lasts, turn.as_ref().map(|turn| turn.lasts)];
                if let Some(lasts) = ends.into_iter().flatten().min() {
                    relay.ask_again((lasts * 3 / 4).max(SOONEST));
                }
                if let (Some(turn), RelayLink::Up(_, link)) = (turn, &relay.link) {
                    let server = IceServer {
                        urls: turn.urls(link),
                        username: Some(turn.username),
                        credential: Some(turn.credential),
                    };
                    // Browsers refuse a server without an address, and all others with it.
                    if !server.urls.is_empty() {
                        effects.push(Effect::UseTurn(peer, server));
                    }
                }
                let granted = admitted.reservation.ok_or(ReservationError::Malformed);
                granted.and_then(|granted| reservation::granted(&granted))
            }
            Err(error) => {
                if id.is_none() {
                    relay.ask_again(match &error {
                        ReservationError::Quota(Some(ends)) => (*ends).clamp(SOONEST, MOST_BARRED),
                        error if error.may_pass() => 2 * SOONEST,
                        _ => BARRED,
                    });
                }
                Err(error)
            }
        };
        if let Some(id) = id {
            self.on_reserved(peer, id, reserved, effects);
        }
        if is_unbarred {
            self.pursue(effects);
        }
        self.call_waiting(peer, effects);
    }

    /// Whether a relay may say now what is left of this peer's quota there.
    pub(in crate::node) fn may_notify(&mut self, peer: &PeerId) -> bool {
        let now = self.begun.elapsed();
        let relay = self.get_mut(peer).filter(|relay| relay.is_users());
        relay.is_some_and(|relay| relay.notices.take(now, 1, Duration::ZERO).is_some())
    }

    /// Whether circuits through a relay wait until it has seen our token, because it may admit
    /// diallers only with one.
    pub(in crate::node) fn awaits_access(&self, peer: &PeerId) -> bool {
        self.wishes.tokens
            && self.get(peer).is_some_and(|relay| {
                let access = &relay.access;
                relay.is_users() && (!relay.identified || access.named && !access.answered)
            })
    }

    /// If what a relay gave is about to end, asks it for more, with a new token if there is one. Each
    /// probe of a link is an occasion.
    pub(super) fn keep_access(&mut self, peer: PeerId, effects: &mut Effects) {
        let wishes = self.wishes;
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        let now = Instant::now();
        if relay.access.again.take_if(|again| *again <= now).is_none() {
            return;
        }
        (relay.access.asked, relay.access.admitted) = (false, false);
        match relay.reservation {
            Reservation::Held(id) if wishes.tokens => _ = relay.ask(peer, id, wishes, effects),
            _ => self.seek_access(peer, effects),
        }
    }
}

impl Relay {
    /// Whether the relay names the protocol and was not asked on this link yet.
    pub(super) fn may_ask_access(&self) -> bool {
        self.access.named && !self.access.asked
    }

    /// Whether the user has configured the relay. Only such a relay sees the token, and not those that
    /// another relay names when it drains.
    pub(super) fn is_users(&self) -> bool {
        self.configured && !self.is_successor
    }

    fn ask_again(&mut self, pause: Duration) {
        self.access.again = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use libp2p::swarm::ConnectionId;

    use super::*;
    use crate::{
        core::{
            access::{self, TurnAccess},
            circuit::HOP_PROTOCOL,
            liveness::Probing,
            protobuf::{field, varint},
        },
        node::{
            effect::tests::briefs,
            relays::tests::{configured, peers},
        },
        stream::SessionId,
    };

    const PROBING: Probing = Probing {
        idle: Duration::from_secs(5),
        patience: Duration::from_secs(1),
    };

    /// A relay whose link has just come up. The effects are those that ask it for something.
    struct Scene {
        relays: Relays,
        relay: PeerId,
        effects: Effects,
    }

    impl Scene {
        fn new(tokens: bool, turn: bool) -> Self {
            let peers = peers(1);
            Self {
                relays: configured(&peers, 1).wishing(Wishes { tokens, turn }),
                relay: peers[0],
                effects: Effects::default(),
            }
        }

        fn opened(&mut self) -> Vec<String> {
            let briefs = briefs(&mut self.effects).into_iter();
            briefs.filter(|brief| brief.starts_with("open")).collect()
        }

        fn up(&mut self, number: usize) {
            self.relays.get_mut(&self.relay).unwrap().link = RelayLink::Down;
            let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
            let conn = ConnectionId::new_unchecked(number);
            let effects = &mut self.effects;
            self.relays
                .on_link_up(self.relay, conn, &remote, None, PROBING, effects);
        }

        fn link(&mut self, number: usize) -> Vec<String> {
            self.up(number);
            self.opened()
        }

        fn identified(&mut self, names: bool) {
            let named = names.then(|| access::PROTOCOL.to_owned());
            let protocols = named.into_iter().collect();
            self.relays
                .on_identified(self.relay, &protocols, &mut self.effects);
        }

        fn identify(&mut self, names: bool) -> Vec<String> {
            self.identified(names);
            self.opened()
        }

        /// The link answers a probe.
        fn probe(&mut self) -> Vec<String> {
            let conn = ConnectionId::new_unchecked(1);
            let rtt = Some(Duration::from_millis(1));
            self.relays
                .on_answer(&self.relay, conn, rtt, &mut self.effects);
            self.opened()
        }

        fn id(&self) -> Option<ReservationId> {
            self.relays.get(&self.relay).unwrap().reservation.id()
        }

        fn answer(
            &mut self,
            id: Option<ReservationId>,
            answer: Result<Admitted, ReservationError>,
        ) {
            self.relays
                .on_access(self.relay, id, true, answer, &mut self.effects);
        }
    }

    fn granted() -> Admitted {
        let reservation = [&[8, 2][..], &field(0x1a, &[8, 1]), &[0x28], &varint(100)].concat();
        Admitted {
            reservation: Some(reservation),
            ..Admitted::default()
        }
    }

    fn access_on(number: usize) -> Vec<String> {
        vec![format!("open {} on {number}", access::PROTOCOL)]
    }

    fn hop_on(number: usize) -> Vec<String> {
        vec![format!("open {HOP_PROTOCOL} on {number}")]
    }

    #[test]
    fn a_token_goes_with_the_reservation_to_a_relay_that_names_the_protocol() {
        let mut scene = Scene::new(true, true);
        assert_eq!(scene.link(1), [""; 0], "it has not said what it serves");
        assert_eq!(scene.identify(true), access_on(1));
        assert_eq!(scene.identify(true), [""; 0], "once on a link");
        scene.answer(scene.id(), Ok(granted()));
        assert_eq!(scene.relays.held(), 1);
        scene.opened();
        let conn = ConnectionId::new_unchecked(1);
        scene
            .relays
            .on_link_closed(scene.relay, conn, None, &mut scene.effects);
        assert_eq!(scene.link(2), access_on(2), "it is known what it serves");
    }

    #[test]
    fn a_stock_relay_never_sees_the_token() {
        let mut scene = Scene::new(true, true);
        assert_eq!(scene.link(1), [""; 0]);
        assert_eq!(scene.identify(false), hop_on(1));
        assert_eq!(scene.identify(false), [""; 0]);
    }

    #[test]
    fn without_a_token_the_reservation_waits_for_nothing() {
        let mut scene = Scene::new(false, true);
        assert_eq!(scene.link(1), hop_on(1));
        assert_eq!(scene.identify(true), access_on(1), "for TURN");
        let mut scene = Scene::new(false, false);
        assert_eq!(scene.link(1), hop_on(1));
        assert_eq!(scene.identify(true), [""; 0]);
    }

    #[test]
    fn relays_of_tickets_see_no_token() {
        let mut scene = Scene::new(true, true);
        scene.relays.get_mut(&scene.relay).unwrap().configured = false;
        assert_eq!(scene.link(1), [""; 0]);
        assert_eq!(scene.identify(true), [""; 0]);
    }

    #[test]
    fn circuits_wait_until_the_relay_has_seen_the_token() {
        let mut scene = Scene::new(true, false);
        let session = SessionId::new(1);
        scene.relays.wait_for(&scene.relay, session);
        let dials = |scene: &mut Scene| {
            let briefs = briefs(&mut scene.effects).into_iter();
            briefs.filter(|brief| brief == "dial over").count()
        };
        scene.up(1);
        assert_eq!(dials(&mut scene), 0);
        scene.identified(true);
        assert_eq!(dials(&mut scene), 0);
        scene.answer(scene.id(), Err(ReservationError::Denied));
        assert_eq!(dials(&mut scene), 1, "the relay may let diallers in");
        scene.relays.wait_for(&scene.relay, session);
        scene.up(2);
        assert_eq!(dials(&mut scene), 0, "another link");
        let mut scene = Scene::new(false, true);
        scene.relays.wait_for(&scene.relay, session);
        scene.up(1);
        assert_eq!(dials(&mut scene), 1);
    }

    #[test]
    fn what_ends_is_asked_for_in_time() {
        let mut scene = Scene::new(true, false);
        scene.link(1);
        scene.identify(true);
        let lasts = Some(Duration::from_secs(400));
        let before = Instant::now();
        scene.answer(scene.id(), Ok(Admitted { lasts, ..granted() }));
        let again = &mut scene.relays.get_mut(&scene.relay).unwrap().access.again;
        assert!(again.is_some_and(|at| at >= before + Duration::from_secs(300)));
        assert_eq!(scene.probe(), [""; 0], "it is too early");
        scene.relays.get_mut(&scene.relay).unwrap().access.again = Some(before);
        assert_eq!(scene.probe(), access_on(1));
        assert_eq!(scene.probe(), [""; 0], "it was asked");
        scene.answer(scene.id(), Err(ReservationError::Denied));
        assert_eq!(scene.relays.held(), 0);
    }

    #[test]
    fn credentials_lead_to_the_host_of_the_link() {
        let mut scene = Scene::new(false, true);
        scene.link(1);
        scene.identify(true);
        let turn = TurnAccess {
            udp: 4005,
            tcp: 0,
            username: "user".into(),
            credential: "secret".into(),
            lasts: Duration::from_secs(60),
        };
        let admitted = Admitted {
            turn: Some(turn),
            ..Admitted::default()
        };
        scene.answer(None, Ok(admitted));
        let told = briefs(&mut scene.effects);
        assert_eq!(told, ["turn turn:192.0.2.1:4005"]);
    }

    #[test]
    fn the_largest_numbers_of_a_relay_do_no_harm() {
        let largest = [
            &[16][..],
            &varint(u64::MAX),
            &[0x22, 11, 40],
            &varint(u64::MAX),
        ]
        .concat();
        let admitted = access::answered(&largest).unwrap().unwrap();
        let turn = admitted.turn.as_ref().unwrap();
        assert!(turn.lasts < Duration::from_secs(400 * 24 * 60 * 60));
        let mut scene = Scene::new(true, true);
        scene.link(1);
        scene.identify(true);
        scene.answer(scene.id(), Ok(admitted));
        let quota = [&[8, 2, 16][..], &varint(u64::MAX)].concat();
        let denial = access::answered(&quota).unwrap().unwrap_err();
        scene.answer(None, Err(denial.into()));
        assert!(
            scene
                .relays
                .get(&scene.relay)
                .unwrap()
                .access
                .again
                .is_some()
        );
        let name = field(0x1a, &[b'a'; access::MAX_USERNAME + 1]);
        assert!(access::answered(&field(0x22, &name)).is_none());
    }

    #[test]
    fn the_users_relays_say_what_is_left_and_not_too_often() {
        let mut scene = Scene::new(false, false);
        let said = |scene: &mut Scene| {
            let mut all = 0..99;
            all.by_ref()
                .take_while(|_| scene.relays.may_notify(&scene.relay))
                .count()
        };
        // One may come back during the test.
        assert!((4..=5).contains(&said(&mut scene)));
        assert!(!scene.relays.may_notify(&PeerId::random()));
        let mut scene = Scene::new(false, false);
        scene.relays.get_mut(&scene.relay).unwrap().configured = false;
        assert_eq!(said(&mut scene), 0);
    }

    #[test]
    fn a_relay_that_another_one_names_sees_no_token() {
        let mut scene = Scene::new(true, true);
        scene.relays.get_mut(&scene.relay).unwrap().is_successor = true;
        assert_eq!(scene.link(1), hop_on(1));
        assert_eq!(scene.identify(true), [""; 0]);
    }

    #[test]
    fn a_token_is_shown_again_until_the_relay_has_admitted_it() {
        let mut scene = Scene::new(true, false);
        scene.link(1);
        scene.identify(true);
        let id = scene.id();
        scene.answer(id, Err(ReservationError::NoAnswer("late".to_owned())));
        scene.opened();
        scene.relays.on_rested(&scene.relay, &mut scene.effects);
        assert_eq!(scene.opened(), access_on(1));
    }
}
