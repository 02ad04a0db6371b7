//! What each relay's directory knows of this peer.
//!
//! This peer leaves its record with each relay that the user has configured, that holds a reservation,
//! and that names the protocol in identify. It renews the record when something has changed, and before
//! it is over.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use web_time::Instant;

use super::{Relay, RelayLink, Relays, Reservation};
use crate::{
    core::{
        directory::{Answer, Refusal},
        record::LIFETIME,
    },
    node::{
        effect::{Effect, Effects},
        timers::{Alarm, Timer},
    },
};

/// The shortest pause between two records. What changes together goes out together.
const SOONEST: Duration = Duration::from_secs(1);
/// The pause after a relay has taken no record.
const REFUSED: Duration = Duration::from_secs(30);

/// What is known of one relay's directory.
#[derive(Default)]
pub(super) struct RelayDirectory {
    /// Whether the relay has named the protocol.
    pub(super) named: bool,
    /// The version of our record that it knows over this link.
    told: Option<u64>,
    /// Whether it is being told.
    busy: bool,
    /// When it was told last.
    last: Option<Instant>,
    alarm: Alarm,
}

impl RelayDirectory {
    /// There is another link, or none.
    pub(super) fn forget(&mut self) {
        (self.told, self.busy) = (None, false);
    }
}

impl Relays {
    /// Returns the link to a relay that takes our record, and lets us into rooms.
    pub(in crate::node) fn directory(&self, peer: &PeerId) -> Option<ConnectionId> {
        let relay = self.get(peer).filter(|relay| relay.takes_records())?;
        relay.up()
    }

    /// Says that the directory of a relay can be used, if it can.
    pub(super) fn offer_directory(&self, peer: PeerId, effects: &mut Effects) {
        if self.directory(&peer).is_some() {
            effects.push(Effect::Directory(peer));
        }
    }

    /// Returns the link to a relay, if it is up.
    pub(in crate::node) fn link_to(&self, peer: &PeerId) -> Option<ConnectionId> {
        self.get(peer)?.up()
    }

    /// Returns the relays that take our record.
    pub(in crate::node) fn directories(&self) -> Vec<PeerId> {
        let known = self.order.iter();
        let ready = known.filter(|peer| self.directory(peer).is_some());
        ready.copied().collect()
    }

    /// Returns the link over which a relay is asked for a peer. A relay that has not said yet what it
    /// serves is asked, because that costs nothing if it serves no directory.
    pub(in crate::node) fn look_up_over(&self, peer: &PeerId) -> Option<ConnectionId> {
        let relay = self.get(peer)?;
        let may = !relay.identified || relay.directory.named;
        relay.up().filter(|_| may && !self.awaits_access(peer))
    }

    /// Returns the relays that the user has configured.
    pub(in crate::node) fn of_user(&self) -> impl Iterator<Item = PeerId> {
        let known = self.order.iter();
        known.filter(|peer| self.known[*peer].is_users()).copied()
    }

    /// Whether a relay is to be told this version of our record now. Then it counts as being told.
    pub(in crate::node) fn begin_record(
        &mut self,
        peer: PeerId,
        version: u64,
        effects: &mut Effects,
    ) -> Option<ConnectionId> {
        let link = self.directory(&peer)?;
        let now = Instant::now();
        let directory = &mut self.get_mut(&peer)?.directory;
        if directory.busy || directory.told == Some(version) {
            return None;
        }
        if let Some(soonest) = directory.last.map(|last| last + SOONEST)
            && now < soonest
        {
            directory.wake(soonest, now, peer, effects);
            return None;
        }
        directory.busy = true;
        directory.last = Some(now);
        Some(link)
    }

    /// A relay has answered this version of our record, or has not.
    pub(in crate::node) fn on_record(
        &mut self,
        peer: PeerId,
        version: u64,
        answer: Option<&Answer>,
        effects: &mut Effects,
    ) {
        let random = (self.random)();
        let Some(relay) = self.get_mut(&peer) else {
            return;
        };
        relay.directory.busy = false;
        let pause = match answer {
            Some(Answer::Done) => {
                relay.directory.told = Some(version);
                (LIFETIME / 2).mul_f64(0.8 + random / 5.0)
            }
            Some(Answer::Refused(Refusal::Stale(_))) => SOONEST,
            Some(Answer::Refused(Refusal::Unsound)) => {
                tracing::warn!(relay = %peer, "a relay refuses our record: is the clock right?");
                REFUSED
            }
            _ => REFUSED,
        };
        let now = Instant::now();
        relay.directory.wake(now + pause, now, peer, effects);
    }

    /// Whether it is time to tell a relay our record again.
    pub(in crate::node) fn is_record_due(&mut self, peer: &PeerId) -> bool {
        let Some(relay) = self.get_mut(peer) else {
            return false;
        };
        let due = relay.directory.alarm.rings(Instant::now());
        if due {
            relay.directory.told = None;
        }
        due
    }
}

impl RelayDirectory {
    fn wake(&mut self, at: Instant, now: Instant, peer: PeerId, effects: &mut Effects) {
        if let Some(pause) = self.alarm.set(Some(at), now) {
            effects.push(Effect::After(pause, Timer::Record(peer)));
        }
    }
}

impl Relay {
    fn takes_records(&self) -> bool {
        let held = matches!(self.reservation, Reservation::Held(_));
        held && self.directory.named && self.is_users()
    }

    fn up(&self) -> Option<ConnectionId> {
        match &self.link {
            RelayLink::Up(connection, _) => Some(*connection),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{directory::PROTOCOL, liveness::Probing},
        node::{effect::tests::briefs, relays::tests::*},
    };

    const PROBING: Probing = Probing {
        idle: Duration::from_secs(5),
        patience: Duration::from_secs(1),
    };

    struct Scene {
        relays: Relays,
        relay: PeerId,
        effects: Effects,
    }

    impl Scene {
        fn new() -> Self {
            let peers = peers(1);
            let mut scene = Self {
                relays: configured(&peers, 1),
                relay: peers[0],
                effects: Effects::default(),
            };
            scene.link(1);
            scene
        }

        fn link(&mut self, number: usize) {
            let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
            let conn = ConnectionId::new_unchecked(number);
            let effects = &mut self.effects;
            self.relays
                .on_link_up(self.relay, conn, &remote, None, PROBING, effects);
        }

        fn reserve(&mut self) {
            let reservation = self.relays.get(&self.relay).unwrap().reservation;
            let (id, effects) = (reservation.id().unwrap(), &mut self.effects);
            self.relays
                .on_reserved(self.relay, id, Ok(Vec::new()), effects);
        }

        fn identify(&mut self, names: bool) {
            let named = names.then(|| PROTOCOL.to_owned());
            let (protocols, effects) = (named.into_iter().collect(), &mut self.effects);
            self.relays.on_identified(self.relay, &protocols, effects);
        }

        fn begin(&mut self, version: u64) -> bool {
            let begun = self
                .relays
                .begin_record(self.relay, version, &mut self.effects);
            begun.is_some()
        }

        fn answer(&mut self, version: u64, answer: Option<Answer>) {
            let effects = &mut self.effects;
            self.relays
                .on_record(self.relay, version, answer.as_ref(), effects);
        }

        /// Whether a directory is told of, since the last call.
        fn is_ready(&mut self) -> bool {
            briefs(&mut self.effects).contains(&"directory".to_owned())
        }
    }

    #[test]
    fn a_record_goes_to_configured_relays_that_hold_a_reservation_and_name_the_protocol() {
        let mut scene = Scene::new();
        scene.reserve();
        assert!(!scene.is_ready() && !scene.begin(1), "it has named nothing");
        scene.identify(true);
        assert!(scene.is_ready() && scene.begin(1));
        assert_eq!(scene.relays.directories(), [scene.relay]);
        assert!(!scene.begin(2), "one at a time");
        let mut stock = Scene::new();
        stock.identify(false);
        stock.reserve();
        assert!(!stock.is_ready() && !stock.begin(1));
        assert!(stock.relays.look_up_over(&stock.relay).is_none());
        let mut early = Scene::new();
        assert!(early.relays.look_up_over(&early.relay).is_some());
        early.identify(true);
        assert!(!early.is_ready() && !early.begin(1), "no reservation");
        early.reserve();
        assert!(early.is_ready());
        early.relays.get_mut(&early.relay).unwrap().configured = false;
        assert!(!early.begin(1), "a ticket has named it");
    }

    #[test]
    fn a_change_follows_after_a_pause_and_a_new_link_begins_anew() {
        let mut scene = Scene::new();
        scene.reserve();
        scene.identify(true);
        assert!(scene.begin(1));
        briefs(&mut scene.effects);
        scene.answer(1, Some(Answer::Done));
        let renewal = briefs(&mut scene.effects);
        assert_eq!(renewal, ["after 135000 ms"], "nine tenths of half its life");
        assert!(!scene.begin(1), "it knows it");
        assert!(!scene.begin(2), "it is too soon");
        assert!(briefs(&mut scene.effects)[0].starts_with("after"));
        let directory = &mut scene.relays.get_mut(&scene.relay).unwrap().directory;
        directory.last = None;
        assert!(scene.begin(2));
        let conn = ConnectionId::new_unchecked(1);
        let (relay, effects) = (scene.relay, &mut scene.effects);
        scene.relays.on_link_closed(relay, conn, None, effects);
        scene.relays.on_rested(&relay, &mut scene.effects);
        scene.link(2);
        scene.reserve();
        assert!(scene.is_ready(), "the relay is known to name it");
        scene.relays.get_mut(&relay).unwrap().directory.last = None;
        assert!(scene.begin(2));
    }

    #[test]
    fn a_refusal_is_not_repeated_at_once() {
        let mut scene = Scene::new();
        scene.reserve();
        scene.identify(true);
        let cases = [
            (Some(Answer::Refused(Refusal::Stale(9))), "after 1000 ms"),
            (Some(Answer::Refused(Refusal::Limit)), "after 30000 ms"),
            (Some(Answer::Refused(Refusal::Unsound)), "after 30000 ms"),
            (None, "after 30000 ms"),
        ];
        for (answer, pause) in cases {
            scene.relays.get_mut(&scene.relay).unwrap().directory = RelayDirectory {
                named: true,
                ..RelayDirectory::default()
            };
            assert!(scene.begin(1));
            briefs(&mut scene.effects);
            scene.answer(1, answer);
            assert_eq!(briefs(&mut scene.effects), [pause]);
            assert!(!scene.relays.is_record_due(&scene.relay));
        }
    }
}
