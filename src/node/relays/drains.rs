//! Relays that are about to end. Such a relay tells its clients, and each reserves on another relay
//! while its reservation there lasts.

use std::time::Duration;

use libp2p::{PeerId, multiaddr::Protocol, swarm::ConnectionId};

use super::{RelayLink, Relays, Reservation};
use crate::{
    core::drain::{Drain, MAX_RELAYS},
    node::{
        effect::{Effect, Effects},
        timers::Timer,
    },
    ticket::{check_address, relay_id},
};

/// The clients of one relay move within this part of its time, so that they do not arrive at another
/// relay all at once.
const SPREAD: f64 = 0.1;

/// The longest wait of a client.
const LONGEST: Duration = Duration::from_secs(3);

impl Relays {
    /// Whether a relay may say now that it is about to end. It says so once for each link, and only
    /// to those that hold a reservation.
    pub(in crate::node) fn may_drain(&mut self, peer: &PeerId, link: ConnectionId) -> bool {
        let relay = self.get_mut(peer).filter(|relay| {
            relay.is_linked_by(link) && relay.reservation != Reservation::None && !relay.has_told
        });
        relay.is_some_and(|relay| {
            relay.has_told = true;
            true
        })
    }

    /// A relay has said that it is about to end.
    pub(in crate::node) fn on_drain(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        drain: Drain,
        effects: &mut Effects,
    ) {
        let random = (self.random)();
        if let Some(relay) = self.get_mut(&peer).filter(|relay| relay.is_linked_by(link)) {
            tracing::debug!(relay = %peer, "a relay is about to end");
            relay.successors = drain.relays;
            let pause = drain.time.mul_f64(SPREAD).min(LONGEST).mul_f64(random);
            effects.push(Effect::After(pause, Timer::Leave(peer, link)));
        }
    }

    /// It is time to reserve on another relay in the place of one that is about to end.
    pub(in crate::node) fn leave(
        &mut self,
        peer: PeerId,
        link: ConnectionId,
        effects: &mut Effects,
    ) {
        let relay = self.get_mut(&peer).filter(|relay| relay.is_linked_by(link));
        let Some(relay) = relay else {
            return;
        };
        relay.leaving = true;
        let successors = std::mem::take(&mut relay.successors);
        if self.to_pursue().is_empty() && self.wants_more() {
            self.take_successors(&successors);
        }
        self.pursue(effects);
    }

    /// Adds relays to those that the user has configured, which are none to move to.
    fn take_successors(&mut self, successors: &[libp2p::Multiaddr]) {
        for address in successors {
            let is_sound = check_address(address).is_ok()
                && !address.iter().any(|part| part == Protocol::P2pCircuit);
            let is_sound = is_sound && relay_id(address) != Some(self.local);
            let Some(peer) = relay_id(address).filter(|_| is_sound) else {
                continue;
            };
            let known = self.get(&peer);
            // Another relay may not change what the user has said of this one.
            if known.is_some_and(|relay| relay.configured && !relay.is_successor) {
                continue;
            }
            let is_new = known.is_none_or(|relay| !relay.is_successor);
            let all = self.known.values().filter(|relay| relay.is_successor);
            if is_new && all.count() >= MAX_RELAYS {
                continue;
            }
            if let Some(relay) = self.get_mut(&peer) {
                relay.configured = true;
            }
            self.learn(peer, address, true);
            if let Some(relay) = self.get_mut(&peer) {
                relay.is_successor = true;
            }
        }
    }

    /// Whether a reservation is held on a relay that stays.
    pub(super) fn has_lasting(&self) -> bool {
        self.known
            .values()
            .any(|relay| matches!(relay.reservation, Reservation::Held(_)) && !relay.leaving)
    }
}

impl super::Relay {
    /// There is another link, or none, so what was said over the last one does not count.
    pub(super) fn forget_drain(&mut self) {
        (self.has_told, self.leaving) = (false, false);
        self.successors.clear();
    }

    /// Whether another relay is wanted in the place of this one.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving && matches!(self.link, RelayLink::Up(..))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::Multiaddr;

    use super::*;
    use crate::{
        core::circuit::HOP_PROTOCOL,
        node::{effect::tests::briefs, relays::tests::*},
    };

    fn link(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    /// Holds a reservation on the relay over the link with this number.
    fn hold(relays: &mut Relays, peer: PeerId, n: usize, effects: &mut Effects) {
        let remote = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let probing = crate::core::liveness::Probing {
            idle: Duration::from_secs(5),
            patience: Duration::from_secs(1),
        };
        relays.on_link_up(peer, link(n), &remote, None, probing, effects);
        let id = relays.get(&peer).unwrap().reservation.id().unwrap();
        relays.on_reserved(peer, id, Ok(Vec::new()), effects);
        briefs(effects);
    }

    fn drain(relays: &[Multiaddr]) -> Drain {
        Drain {
            time: Duration::from_secs(20),
            relays: relays.to_vec(),
        }
    }

    #[test]
    fn another_relay_is_reserved_on_before_the_reservation_ends() {
        let peers = peers(2);
        let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
        hold(&mut relays, peers[0], 1, &mut effects);
        assert!(!relays.may_drain(&peers[0], link(2)), "not its link");
        assert!(!relays.may_drain(&peers[1], link(1)), "no reservation");
        assert!(relays.may_drain(&peers[0], link(1)));
        assert!(!relays.may_drain(&peers[0], link(1)), "it was told");
        relays.on_drain(peers[0], link(1), drain(&[]), &mut effects);
        assert_eq!(briefs(&mut effects), ["after 1000 ms"], "half of a tenth");
        relays.leave(peers[0], link(1), &mut effects);
        assert_eq!(briefs(&mut effects), ["dial relay"]);
        let of = |relays: &Relays| -> Vec<PeerId> {
            let addresses = relays.for_ticket().0;
            addresses.iter().filter_map(relay_id).collect()
        };
        assert_eq!((relays.held(), of(&relays)), (1, vec![peers[0]]));
        hold(&mut relays, peers[1], 2, &mut effects);
        assert_eq!(relays.held(), 2, "circuits may still come");
        assert_eq!(
            of(&relays),
            [peers[1]],
            "nobody new is sent to the old relay"
        );
        relays.on_link_closed(peers[0], link(1), None, &mut effects);
        assert!(!briefs(&mut effects).contains(&"dial relay".to_owned()));
        assert_eq!(of(&relays), [peers[1]]);
    }

    #[test]
    fn what_was_said_over_an_old_link_does_not_count() {
        let peers = peers(2);
        let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
        hold(&mut relays, peers[0], 1, &mut effects);
        relays.on_drain(peers[0], link(1), drain(&[]), &mut effects);
        relays.on_link_closed(peers[0], link(1), None, &mut effects);
        relays.on_rested(&peers[0], &mut effects);
        briefs(&mut effects);
        relays.leave(peers[0], link(1), &mut effects);
        assert!(briefs(&mut effects).is_empty());
    }

    #[test]
    fn the_named_relays_are_used_by_those_that_know_no_other_and_are_few() {
        let peers = peers(1);
        let (mut relays, mut effects) = (configured(&peers, 1), Effects::default());
        hold(&mut relays, peers[0], 1, &mut effects);
        let other = |port: usize| -> Multiaddr {
            let address = format!("/ip4/192.0.2.9/tcp/{port}/p2p/{}", PeerId::random());
            address.parse().unwrap()
        };
        let mut named: Vec<_> = (1..=MAX_RELAYS + 1).map(other).collect();
        // It may not add an address to itself.
        named[0] = format!("/ip4/192.0.2.9/tcp/1/p2p/{}", peers[0])
            .parse()
            .unwrap();
        relays.on_drain(peers[0], link(1), drain(&named), &mut effects);
        briefs(&mut effects);
        relays.leave(peers[0], link(1), &mut effects);
        assert_eq!(briefs(&mut effects), ["dial relay"]);
        assert_eq!(relays.get(&peers[0]).unwrap().addresses.len(), 1);
        let first = relay_id(&named[1]).unwrap();
        assert!(relays.get(&first).unwrap().is_pursued());
        relays.take_successors(&[other(8), other(9)]);
        let all = relays.known.values().filter(|relay| relay.is_successor);
        assert_eq!(all.count(), MAX_RELAYS);
        assert!(
            relays.release(&Default::default()).is_empty(),
            "there is no other"
        );
        hold(&mut relays, first, 2, &mut effects);
        let needless = relays.release(&Default::default());
        assert!(!needless.contains(&first) && needless.len() == MAX_RELAYS - 1);
        let reserve = format!("open {HOP_PROTOCOL} on 2");
        relays.pursue(&mut effects);
        assert!(!briefs(&mut effects).contains(&reserve));
    }
}
