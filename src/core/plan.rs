//! What to try on the way to a peer, when and for how long: a plan as data, from what is known.
//!
//! A plan holds what is still worth trying. Whatever changes what is known (a ticket, a path that
//! came up or went) gives another plan, and [`race`](super::race) makes the difference happen.

use std::time::Duration;

use multiaddr::{Multiaddr, PeerId};

use super::{address, backoff::Backoff};
use crate::{
    config::StartDelays,
    event::{PathKind, Strategy},
};

/// A circuit through a second relay is asked for this much later, so that none is built twice
/// where the first relay does its work. Twice the delay of RFC 8305 section 5, since a circuit
/// takes twice the round trips of a TCP connection.
const RELAY_STAGGER: Duration = Duration::from_millis(500);
/// How long a connection without a path waits for its circuit's turn at most, where an offer may
/// make do without: half of what a connect has by default, so that the other half is left for the
/// circuit.
pub(crate) const SPARE_WAIT: Duration = Duration::from_secs(5);
/// So much longer for each that waits before it, since all at once would take what their offers need
/// where there is too much to do;
const SPARE_STAGGER: Duration = Duration::from_millis(400);
/// at most so many times, which leaves the last ones a quarter.
const SPARE_STAGGERED: usize = 6;
/// A lost circuit is the way back to everything else, so it is sought sooner than a better path,
const CIRCUIT_HASTE: u32 = 4;
/// for as long as the session lasts, at pauses that grow to this.
const CIRCUIT_REST: Duration = Duration::from_secs(30);

/// What an attempt is known by: each is under way at most once per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptId {
    /// A circuit through this relay, whose link may still be coming up.
    Circuit(PeerId),
    /// The peer's own addresses.
    Direct,
    /// ICE, signalled over a circuit or by a sealed offer: several strategies at once, by one of
    /// [`UPGRADES`].
    Ice,
}

/// A protocol that brings a better path about over a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// libp2p `/webrtc`.
    WebRtc,
}

/// In order of preference; the next is for a peer that does not speak the one before it.
pub(crate) const UPGRADES: &[Upgrade] = &[Upgrade::WebRtc];

impl Upgrade {
    /// Where `peer` is dialled for it, over the circuit through `relay`.
    pub(crate) fn address(self, relay: &Multiaddr, peer: PeerId) -> Multiaddr {
        match self {
            Self::WebRtc => address::webrtc(relay, peer),
        }
    }
}

/// What the configuration and this target allow.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rules {
    /// The strategies of ICE here; none if only the relay may be used.
    pub(crate) ice: Vec<Strategy>,
    /// How long each strategy waits for its start.
    pub(crate) start: StartDelays,
    /// How long one attempt may take.
    pub(crate) timeout: Duration,
    /// How much longer ICE may take, to guess ports.
    pub(crate) guessing: Duration,
    /// How often an attempt at a better path is repeated.
    pub(crate) retries: u32,
    /// The pause before the first repetition.
    pub(crate) backoff: Duration,
}

impl Rules {
    /// Whether a circuit can wait where an offer can be sealed: ICE may make do without it, and
    /// nobody has said how long it is to wait.
    pub(crate) fn spares_circuits(&self) -> bool {
        !self.ice.is_empty() && self.start.of(Strategy::CircuitRelay).is_zero()
    }
}

/// What is known of a peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// Whether dialling is ours; otherwise the peer does it.
    pub(crate) ours: bool,
    /// Relays it can be reached through, those with a link before the others.
    pub(crate) relays: Vec<PeerId>,
    /// Whether there are addresses of its own to dial.
    pub(crate) addresses: bool,
    /// Whether a circuit to it is up.
    pub(crate) circuit: bool,
    /// Whether an offer can be sealed for it, which needs no circuit.
    pub(crate) offer: bool,
    /// How many circuits wait before this one, if it is to wait for others:
    /// [`Rules::spares_circuits`], and enough of them are being made already.
    pub(crate) spared: Option<usize>,
    /// Whether ICE is under way, which outlives its circuit once the candidates are exchanged.
    pub(crate) ice: bool,
    /// The best path that is up, or about to be.
    pub(crate) best: Option<PathKind>,
    /// The path in use.
    pub(crate) path: Option<PathKind>,
}

/// What is worth trying, in the order of preference.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// The path in use.
    pub(crate) path: Option<PathKind>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) attempt: AttemptId,
    pub(crate) strategies: Vec<Strategy>,
    /// When it starts, from when it came into the plan.
    pub(crate) after: Duration,
    /// Whether it waits for its turn instead if there is a path before.
    pub(crate) spared: bool,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// How many ways of it there are, for a peer that does not speak the first.
    pub(crate) ways: usize,
    /// How often it is repeated in the background, and
    pub(crate) retries: u32,
    /// at which pauses.
    pub(crate) backoff: Backoff,
}

/// Everything that is not up yet and better than what is: a circuit, which is the fallback and
/// carries signalling, always; the peer's own addresses unless a path is direct; ICE unless
/// something is better than a circuit.
pub(crate) fn plan(known: &Known, rules: &Rules) -> Plan {
    let mut steps = Vec::new();
    if known.ours {
        if !known.circuit {
            steps.extend(circuits(known, rules));
        }
        if known.addresses && known.best != Some(PathKind::Direct) {
            steps.push(better(AttemptId::Direct, &[Strategy::Direct], 1, rules));
        }
        let relayed = matches!(known.best, None | Some(PathKind::Relayed));
        if (known.circuit || known.offer || known.ice) && relayed && !rules.ice.is_empty() {
            steps.push(better(AttemptId::Ice, &rules.ice, UPGRADES.len(), rules));
        }
    }
    Plan {
        steps,
        path: known.path,
    }
}

fn circuits<'a>(known: &'a Known, rules: &'a Rules) -> impl Iterator<Item = Step> + 'a {
    let mut first = rules.start.of(Strategy::CircuitRelay);
    if let Some(before) = known.spared {
        first += SPARE_WAIT + SPARE_STAGGER * before.min(SPARE_STAGGERED) as u32;
    }
    (0..).zip(&known.relays).map(move |(nth, relay)| Step {
        attempt: AttemptId::Circuit(*relay),
        strategies: vec![Strategy::CircuitRelay],
        after: first + RELAY_STAGGER * nth,
        spared: known.spared.is_some(),
        timeout: rules.timeout,
        ways: 1,
        retries: u32::MAX,
        backoff: Backoff::new(rules.backoff / CIRCUIT_HASTE, CIRCUIT_REST),
    })
}

fn better(attempt: AttemptId, strategies: &[Strategy], ways: usize, rules: &Rules) -> Step {
    // The strategies of ICE share one negotiation, which the first of them starts. Its host
    // candidates come along, and birthday probing waits by itself.
    let starts = |s: &&Strategy| {
        attempt != AttemptId::Ice || !matches!(s, Strategy::Direct | Strategy::Birthday)
    };
    let delays = strategies.iter().filter(starts);
    Step {
        attempt,
        strategies: strategies.to_vec(),
        after: delays.map(|s| rules.start.of(*s)).min().unwrap_or_default(),
        spared: false,
        timeout: match attempt {
            AttemptId::Ice => rules.timeout + rules.guessing,
            _ => rules.timeout,
        },
        ways,
        retries: rules.retries,
        backoff: Backoff::new(rules.backoff, rules.backoff * 64),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SECOND: Duration = Duration::from_secs(1);

    pub(crate) fn rules() -> Rules {
        Rules {
            ice: vec![Strategy::Direct, Strategy::Stun],
            start: StartDelays::default(),
            timeout: 10 * SECOND,
            guessing: Duration::ZERO,
            retries: 3,
            backoff: 2 * SECOND,
        }
    }

    #[test]
    fn guessing_ports_gives_ice_more_time() {
        let rules = Rules {
            guessing: 7 * SECOND,
            ..rules()
        };
        let known = Known {
            ours: true,
            addresses: true,
            circuit: true,
            ..Known::default()
        };
        let steps = plan(&known, &rules).steps;
        let times: Vec<_> = steps.iter().map(|s| (s.attempt, s.timeout)).collect();
        let expected = [
            (AttemptId::Direct, 10 * SECOND),
            (AttemptId::Ice, 17 * SECOND),
        ];
        assert_eq!(times, expected);
    }

    fn circuit(relay: PeerId, after: Duration) -> Step {
        Step {
            attempt: AttemptId::Circuit(relay),
            strategies: vec![Strategy::CircuitRelay],
            after,
            spared: false,
            timeout: 10 * SECOND,
            ways: 1,
            retries: u32::MAX,
            backoff: Backoff::new(SECOND / 2, 30 * SECOND),
        }
    }

    fn better(attempt: AttemptId, strategies: &[Strategy], after: Duration) -> Step {
        Step {
            attempt,
            strategies: strategies.to_vec(),
            after,
            spared: false,
            timeout: 10 * SECOND,
            ways: 1,
            retries: 3,
            backoff: Backoff::new(2 * SECOND, 128 * SECOND),
        }
    }

    fn known(relays: &[PeerId]) -> Known {
        Known {
            ours: true,
            relays: relays.to_vec(),
            addresses: true,
            ..Known::default()
        }
    }

    const ICE: [Strategy; 2] = [Strategy::Direct, Strategy::Stun];

    #[test]
    fn everything_starts_together_but_for_the_second_relay() {
        let relays = [PeerId::random(), PeerId::random()];
        let steps = vec![
            circuit(relays[0], Duration::ZERO),
            circuit(relays[1], RELAY_STAGGER),
            better(AttemptId::Direct, &[Strategy::Direct], Duration::ZERO),
        ];
        let path = None;
        assert_eq!(plan(&known(&relays), &rules()), Plan { steps, path });
    }

    #[test]
    fn delays_are_taken_as_they_are_configured() {
        let relay = PeerId::random();
        let mut rules = rules();
        rules.start.direct = SECOND;
        rules.start.circuit_relay = 2 * SECOND;
        rules.start.stun = 3 * SECOND;
        rules.start.turn = 4 * SECOND;
        let steps = plan(&known(&[relay]), &rules).steps;
        let starts: Vec<_> = steps.iter().map(|s| s.after).collect();
        assert_eq!(starts, [2 * SECOND, SECOND]);
        let mut up = known(&[relay]);
        up.circuit = true;
        rules.ice.push(Strategy::Turn);
        assert_eq!(plan(&up, &rules).steps[1].after, 3 * SECOND);
        rules.start.stun = 5 * SECOND;
        assert_eq!(plan(&up, &rules).steps[1].after, 4 * SECOND);
    }

    #[test]
    fn circuits_that_wait_do_not_end_their_wait_together() {
        let mut known = known(&[PeerId::random()]);
        known.addresses = false;
        let waits = [None, Some(0), Some(1), Some(6), Some(900)].map(|before| {
            known.spared = before;
            let step = plan(&known, &rules()).steps.remove(0);
            assert_eq!(step.spared, before.is_some());
            step.after
        });
        let expected = [0, 5_000, 5_400, 7_400, 7_400].map(Duration::from_millis);
        assert_eq!(waits, expected);
    }

    #[test]
    fn what_is_up_is_not_sought_again() {
        let relay = PeerId::random();
        let direct = better(AttemptId::Direct, &[Strategy::Direct], Duration::ZERO);
        let ice = better(AttemptId::Ice, &ICE, Duration::ZERO);
        let steps = |circuit, best| {
            let mut known = known(&[relay]);
            (known.circuit, known.best) = (circuit, best);
            plan(&known, &rules()).steps
        };
        let relayed = Some(PathKind::Relayed);
        assert_eq!(steps(true, relayed), [direct.clone(), ice]);
        assert_eq!(steps(true, Some(PathKind::Turn)), [direct]);
        assert_eq!(steps(true, Some(PathKind::Direct)), []);
        // The fallback is brought back under a direct path.
        let fallback = circuit(relay, Duration::ZERO);
        assert_eq!(steps(false, Some(PathKind::Direct)), [fallback]);
    }

    #[test]
    fn ice_outlives_the_circuit_it_was_signalled_over() {
        let mut known = known(&[]);
        known.addresses = false;
        assert_eq!(plan(&known, &rules()).steps, []);
        known.ice = true;
        let ice = better(AttemptId::Ice, &ICE, Duration::ZERO);
        assert_eq!(plan(&known, &rules()).steps, [ice]);
    }

    #[test]
    fn ice_need_not_wait_for_a_circuit_where_an_offer_can_be_sealed() {
        let relay = PeerId::random();
        let mut known = known(&[relay]);
        known.addresses = false;
        let circuit = circuit(relay, Duration::ZERO);
        assert_eq!(plan(&known, &rules()).steps, std::slice::from_ref(&circuit));
        known.offer = true;
        let ice = better(AttemptId::Ice, &ICE, Duration::ZERO);
        assert_eq!(plan(&known, &rules()).steps, [circuit, ice]);
    }

    #[test]
    fn relay_only_plans_no_ice_and_the_accepting_side_nothing() {
        let mut rules = rules();
        rules.ice.clear();
        let mut known = known(&[PeerId::random()]);
        known.circuit = true;
        known.addresses = false;
        assert_eq!(plan(&known, &rules).steps, []);
        known.circuit = false;
        known.ours = false;
        assert_eq!(plan(&known, &rules).steps, []);
    }
}
