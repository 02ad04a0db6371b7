//! The changes of the network, as a table.

use std::time::Duration;

use crate::{
    error::Result,
    mobility::scene::{End, Scene},
    nat::NatKind,
    queue::Dice,
    scenario::Pairing,
    theory::Peer,
};

/// Something that happens to the network.
pub(crate) type Act = fn(&mut Scene) -> Result<()>;

/// The paths and links of the two peers before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A direct path.
    Direct,
    /// A direct path, and hosts with IPv4 and IPv6.
    DualStack,
    /// A direct path, and the dialler's host is in two networks.
    TwoNetworks,
    /// A direct path, and the listener has a link of this kind to the relay.
    LinkOver(Link),
    /// No path but the relay.
    Relayed,
    /// Nothing but the listener's ticket. The dialler starts after the change. The listener has a
    /// link of this kind to the relay.
    Ticket(Link),
}

/// The transport of a link to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Quic,
    Tcp,
    WebSocket,
}

/// When things happen, in milliseconds since the first of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Steps {
    Listed(&'static [(u64, Act)]),
    /// So many changes of all sorts, at times and in an order that the seed decides.
    Random(usize),
}

/// A change of the network that a person can name, and what it may cost.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The name of the change.
    pub name: &'static str,
    pub(crate) setting: Setting,
    pub(crate) steps: Steps,
    /// Whether nothing can pass until the last step is done. Only what follows counts then.
    pub(crate) outage: bool,
    /// Between which peers it is made.
    pub(crate) pairings: &'static [Pairing],
    /// Whether it takes too long for every test run.
    pub(crate) long: bool,
    /// The longest stall that is allowed, in milliseconds.
    pub(crate) stall: u64,
    /// The longest stall where a page takes part, because no browser tells a page of a new address
    /// or route.
    pub(crate) page_stall: u64,
    /// How long after the last step the path has to be direct again, in milliseconds, if it can be.
    pub(crate) direct: Option<u64>,
    /// The most changes of the path that are allowed.
    pub(crate) moves: usize,
    /// How long the peers are watched after the last step at least.
    pub(crate) watch: Duration,
}

const PROGRAMS: &[Pairing] = &[Pairing {
    dialler: Peer::Native,
    listener: Peer::Native,
}];

/// The values of a change whose row says nothing else.
const PLAIN: Change = Change {
    name: "",
    setting: Setting::Direct,
    steps: Steps::Listed(&[]),
    outage: false,
    pairings: PROGRAMS,
    long: false,
    stall: 1_500,
    page_stall: 3_000,
    direct: None,
    moves: 12,
    watch: Duration::from_secs(6),
};

/// All changes.
pub const CHANGES: &[Change] = &[
    Change {
        name: "the dialler's NAT gives a new port",
        steps: Steps::Listed(&[(0, |scene| scene.new_port(End::Dialler))]),
        direct: Some(5_000),
        pairings: &Pairing::ALL,
        ..PLAIN
    },
    Change {
        name: "the listener's NAT gives a new port",
        steps: Steps::Listed(&[(0, |scene| scene.new_port(End::Listener))]),
        direct: Some(5_000),
        pairings: &Pairing::ALL,
        ..PLAIN
    },
    Change {
        name: "the dialler's address is replaced",
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Dialler))]),
        stall: 1_000,
        // A page gets no other connection to the relay for some seconds.
        page_stall: 9_000,
        direct: Some(2_000),
        pairings: &Pairing::ALL,
        ..PLAIN
    },
    Change {
        name: "the dialler's address is replaced after a gap of 2 s",
        steps: Steps::Listed(&[
            (0, |scene| scene.unplug(End::Dialler)),
            (2_000, |scene| scene.renumber(End::Dialler)),
        ]),
        outage: true,
        direct: Some(6_000),
        pairings: &Pairing::ALL,
        ..PLAIN
    },
    Change {
        name: "the listener's address is replaced",
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Listener))]),
        stall: 1_000,
        direct: Some(2_000),
        pairings: &Pairing::ALL,
        ..PLAIN
    },
    Change {
        name: "the listener's address is replaced, and its relay link is TCP",
        setting: Setting::LinkOver(Link::Tcp),
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Listener))]),
        stall: 3_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the listener's address is replaced, and its relay link is WebSocket",
        setting: Setting::LinkOver(Link::WebSocket),
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Listener))]),
        stall: 3_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the default route moves to another interface",
        setting: Setting::TwoNetworks,
        steps: Steps::Listed(&[(0, Scene::move_route)]),
        stall: 1_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the direct path is blocked",
        steps: Steps::Listed(&[(0, |scene| scene.block(&["daddr", "saddr"]))]),
        ..PLAIN
    },
    Change {
        name: "one direction of the direct path is lost",
        steps: Steps::Listed(&[(0, |scene| scene.block(&["daddr"]))]),
        ..PLAIN
    },
    Change {
        name: "the direct path is blocked for 150 s",
        steps: Steps::Listed(&[
            (0, |scene| scene.block(&["daddr", "saddr"])),
            (150_000, Scene::allow),
        ]),
        long: true,
        direct: Some(60_000),
        ..PLAIN
    },
    Change {
        name: "IPv6 disappears",
        setting: Setting::DualStack,
        steps: Steps::Listed(&[(0, Scene::lose_ipv6)]),
        // The link to the relay is lost as well, and its successor tries IPv6 first.
        stall: 2_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the direct path loses 30 % of all packets",
        steps: Steps::Listed(&[(0, |scene| scene.lose(30))]),
        // A probe or an echo may be lost several times in a row before the loss is known.
        stall: 4_000,
        moves: 3,
        watch: Duration::from_secs(25),
        ..PLAIN
    },
    Change {
        name: "the dialler has no network for 29 s",
        steps: Steps::Listed(&[
            (0, |scene| scene.cut(End::Dialler)),
            (29_000, |scene| scene.mend(End::Dialler)),
        ]),
        outage: true,
        stall: 5_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the relay that carries the path is killed, and is back after 5 s",
        setting: Setting::Relayed,
        steps: Steps::Listed(&[(0, Scene::kill_relay), (5_000, Scene::start_relay)]),
        outage: true,
        // A dial of the relay that began while it was away repeats its packets later and later.
        stall: 6_000,
        ..PLAIN
    },
    Change {
        name: "the relay that carries the path is restarted",
        setting: Setting::Relayed,
        steps: Steps::Listed(&[(0, Scene::kill_relay), (0, Scene::start_relay)]),
        outage: true,
        stall: 3_000,
        ..PLAIN
    },
    Change {
        name: "the dialler stands still for 20 s",
        steps: Steps::Listed(&[
            (0, |scene| scene.signal(End::Dialler, "-STOP")),
            (20_000, |scene| scene.signal(End::Dialler, "-CONT")),
        ]),
        outage: true,
        stall: 2_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the listener stands still for 20 s",
        steps: Steps::Listed(&[
            (0, |scene| scene.signal(End::Listener, "-STOP")),
            (20_000, |scene| scene.signal(End::Listener, "-CONT")),
        ]),
        outage: true,
        stall: 3_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the ticket is from before the listener moved, over QUIC",
        setting: Setting::Ticket(Link::Quic),
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Listener))]),
        stall: 2_000,
        direct: Some(5_000),
        ..PLAIN
    },
    Change {
        name: "the ticket is from before the listener moved, over TCP",
        setting: Setting::Ticket(Link::Tcp),
        steps: Steps::Listed(&[(0, |scene| scene.renumber(End::Listener))]),
        stall: 2_000,
        // An offer that went to the dead link is made again only after its timeout.
        direct: Some(12_000),
        ..PLAIN
    },
    Change {
        name: "ten changes at random times",
        steps: Steps::Random(10),
        // Two changes may follow each other so closely that the second spoils the recovery from the
        // first.
        stall: 6_000,
        direct: Some(15_000),
        moves: 60,
        ..PLAIN
    },
];

/// The changes from which [`Steps::Random`] is made.
const PALETTE: &[Act] = &[
    |scene| scene.new_port(End::Dialler),
    |scene| scene.new_port(End::Listener),
    |scene| scene.renumber(End::Dialler),
    |scene| scene.renumber(End::Listener),
    |scene| scene.block(&["daddr", "saddr"]),
    |scene| scene.block(&["saddr"]),
    Scene::allow,
];

/// The longest pause between two random changes, in milliseconds.
const MOST_PAUSE: f64 = 4_000.0;

impl Steps {
    /// The steps in their order, each with the time since the first one.
    pub(crate) fn schedule(self, seed: u64) -> Vec<(Duration, Act)> {
        let millis = Duration::from_millis;
        match self {
            Self::Listed(steps) => steps.iter().map(|(at, act)| (millis(*at), *act)).collect(),
            Self::Random(count) => {
                let mut dice = Dice::seeded(seed);
                let mut at = 0.0;
                let mut steps: Vec<(Duration, Act)> = Vec::new();
                for _ in 0..count {
                    let act = PALETTE[(dice.roll() * PALETTE.len() as f64) as usize];
                    steps.push((millis(at as u64), act));
                    at += dice.roll() * MOST_PAUSE;
                }
                // Blocked traffic passes again in the end, because the path has to be direct then.
                steps.push((millis(at as u64), Scene::allow));
                steps
            }
        }
    }
}

impl Setting {
    /// The transport of the listener's link to the relay, if it matters.
    pub(crate) fn link(self) -> Option<Link> {
        match self {
            Self::LinkOver(link) | Self::Ticket(link) => Some(link),
            _ => None,
        }
    }
}

impl Link {
    /// Whether this address of a relay makes such a link.
    pub(crate) fn is_made_by(self, address: &str) -> bool {
        match self {
            Self::Quic => address.contains("/quic-v1"),
            Self::Tcp => address.contains("/tcp/") && !address.contains("/ws"),
            Self::WebSocket => address.contains("/ws"),
        }
    }
}

/// The NAT that both routers have at first.
pub(crate) const FIRST: NatKind = NatKind::PortRestricted;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_steps_are_in_order() {
        let names: HashSet<_> = CHANGES.iter().map(|change| change.name).collect();
        assert_eq!(names.len(), CHANGES.len());
        for change in CHANGES {
            let steps = change.steps.schedule(1);
            assert!(!steps.is_empty(), "{}", change.name);
            assert!(steps.is_sorted_by_key(|(at, _)| *at), "{}", change.name);
        }
    }

    #[test]
    fn a_seed_decides_when_what_happens() {
        let times = |seed| {
            let steps = Steps::Random(10).schedule(seed);
            steps.into_iter().map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        assert_eq!(times(0).len(), 11);
    }
}
