//! Decides what to try on the way to a peer, when, and for how long. The plan is data, made from
//! the known facts.
//!
//! A plan holds what is still worth trying. Whatever changes the facts, such as a ticket or a path
//! that came up or went down, gives another plan, and [`race`](super::race) carries out the
//! difference.

use std::time::Duration;

use multiaddr::PeerId;

use super::{backoff::Backoff, delays::StartDelays};
use crate::event::{Cause, PathKind, Strategy};

/// How much later a circuit through a further relay starts than the one before it. The delay keeps
/// a second circuit from being built while the first relay does its work. It is twice the delay of
/// RFC 8305 section 5, because a circuit takes twice the round trips of a TCP connection.
pub(super) const RELAY_STAGGER: Duration = Duration::from_millis(500);
/// How much later each further relay is tried while a relay carries the traffic. By then, most pairs have a
/// direct path.
pub(super) const RIVAL_STAGGER: Duration = Duration::from_secs(5);
/// How long a spare circuit waits for its turn at most while the session has no path, where a
/// sealed offer may make the circuit unnecessary. It is half of the time that a connect has by
/// default, so that the other half is left for the circuit.
pub(crate) const SPARE_WAIT: Duration = Duration::from_secs(5);
/// How much longer a spare circuit waits for each spare circuit before it. If all started at once
/// on a busy machine, they would take the time that their offers need.
const SPARE_STAGGER: Duration = Duration::from_millis(400);
/// How often [`SPARE_STAGGER`] is added at most. This leaves a quarter of the time for the last
/// circuits.
const SPARE_STAGGERED: usize = 6;
/// How many times sooner a lost circuit is tried again than a better path. A circuit is needed to
/// get everything else back.
const CIRCUIT_HASTE: u32 = 4;
/// How long ICE has got a path over TURN before ICE is tried again for a direct path. A pair over TURN
/// is often the first to answer, and the same ICE moves on from it a few round trips later.
const PAST_TURN: Duration = Duration::from_millis(500);
/// The longest pause between tries of a circuit. They go on as long as the session lasts.
const CIRCUIT_REST: Duration = Duration::from_secs(30);

/// The name of an attempt. Each attempt is under way at most once per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptId {
    /// A circuit through this relay. The link to the relay may still be coming up.
    Circuit(PeerId),
    /// The peer's own addresses.
    Direct,
    /// ICE, by libp2p's `/webrtc`, signalled over a circuit or by a sealed offer. It combines several
    /// strategies.
    Ice,
}

/// What ICE tells of a strategy that joins it by itself: the birthday method, or TURN. The nominated
/// pair tells of a success.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "in a page, no strategy joins by itself")]
pub(crate) enum Late {
    /// The strategy begins.
    Began(Strategy),
    /// The strategy ends without a pair, or cannot begin.
    Failed(Strategy, Cause, String),
}

/// The rules that follow from the configuration and this target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rules {
    /// The strategies with which ICE begins on this target. It is empty if only the relay may be used.
    pub(crate) ice: Vec<Strategy>,
    /// Whether there are TURN servers. TURN joins ICE when the other strategies have had their time.
    pub(crate) turn: bool,
    /// How long the others have where ICE has to be made anew for TURN. `None` where TURN joins by itself.
    pub(crate) anew: Option<Duration>,
    /// How long each strategy waits before it starts.
    pub(crate) start: StartDelays,
    /// How long one attempt may take.
    pub(crate) timeout: Duration,
    /// How much longer ICE may take, to guess ports.
    pub(crate) guessing: Duration,
    /// How often an attempt at a better path is repeated until it is only repeated once a minute. With
    /// 0 it is never repeated.
    pub(crate) retries: u32,
    /// The pause before the first repetition.
    pub(crate) backoff: Duration,
}

impl Rules {
    /// Whether a circuit can wait when an offer can be sealed. It can if ICE is allowed, which may
    /// make the circuit unnecessary, and if the user has configured no start delay for circuits.
    pub(crate) fn spares_circuits(&self) -> bool {
        !self.ice.is_empty() && self.start.of(Strategy::CircuitRelay).is_zero()
    }

    /// Whether `strategy` may be tried.
    pub(crate) fn allows(&self, strategy: Strategy) -> bool {
        match strategy {
            Strategy::CircuitRelay => true,
            Strategy::Turn if self.turn => true,
            _ => self.ice.contains(&strategy),
        }
    }
}

/// The known facts about a peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// Whether this side dials. Otherwise the peer does.
    pub(crate) ours: bool,
    /// The relays through which the peer can be reached. Relays with a link come first.
    pub(crate) relays: Vec<PeerId>,
    /// Whether the peer has addresses of its own to dial.
    pub(crate) addresses: bool,
    /// Further relays, whose circuits may be quicker than the one in use.
    pub(crate) rivals: Vec<PeerId>,
    /// Whether a circuit to the peer is up.
    pub(crate) circuit: bool,
    /// Whether the session rests on a direct path, and so needs no circuit.
    pub(crate) rests: bool,
    /// Whether an offer can be sealed for the peer, which needs no circuit.
    pub(crate) offer: bool,
    /// How many spare circuits wait before this one, or `None` if it need not wait. It waits if
    /// [`Rules::spares_circuits`] is true and enough other circuits are already under way.
    pub(crate) spared: Option<usize>,
    /// Whether ICE is under way. It outlives its circuit once the candidates are exchanged.
    pub(crate) ice: bool,
    /// The best path that is up, or about to come up.
    pub(crate) best: Option<PathKind>,
    /// The path in use.
    pub(crate) path: Option<PathKind>,
    /// Whether it is being asked where relays of the peer are.
    pub(crate) seeks: bool,
}

/// The attempts that are worth making, in the order of preference.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// The path in use.
    pub(crate) path: Option<PathKind>,
    /// Whether more attempts may come without any event of these.
    pub(crate) seeks: bool,
}

/// One attempt of a plan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) attempt: AttemptId,
    pub(crate) strategies: Vec<Strategy>,
    /// How long after it came into the plan the attempt starts.
    pub(crate) after: Duration,
    /// Whether the attempt waits for its turn instead if a path comes up before.
    pub(crate) spared: bool,
    /// How long the attempt may take.
    pub(crate) timeout: Duration,
    /// After how long without a path the attempt is made anew, with TURN.
    pub(crate) anew: Option<Duration>,
    /// How often the attempt is repeated in the background until it is only repeated once a minute.
    /// With 0 it is never repeated.
    pub(crate) retries: u32,
    /// The pauses between the first repetitions.
    pub(crate) backoff: Backoff,
}

/// Plans everything that is not up yet and is better than what is up. A circuit is planned unless the
/// session rests, because it is the fallback and carries signalling. The peer's own addresses and ICE are planned
/// unless a path is direct. With a path over TURN, ICE is planned without TURN.
pub(crate) fn plan(known: &Known, rules: &Rules) -> Plan {
    let mut steps = Vec::new();
    if known.ours {
        let is_wanted = match known.circuit {
            false => !known.rests,
            true => known.path == Some(PathKind::Relayed),
        };
        if is_wanted {
            steps.extend(circuits(known, rules));
        }
        let is_direct = known.best == Some(PathKind::Direct);
        if known.addresses && !is_direct {
            steps.push(better(AttemptId::Direct, &[Strategy::Direct], rules));
        }
        if (known.circuit || known.offer || known.ice) && !is_direct {
            let best = known.best.unwrap_or(PathKind::Relayed);
            let may_beat = |strategy: &&Strategy| strategy.kind() < best;
            let strategies: Vec<_> = rules.ice.iter().filter(may_beat).copied().collect();
            if !strategies.is_empty() {
                let mut ice = better(AttemptId::Ice, &strategies, rules);
                if best == PathKind::Turn {
                    ice.after = ice.after.max(PAST_TURN);
                } else if rules.turn {
                    ice.anew = rules.anew;
                }
                steps.push(ice);
            }
        }
    }
    Plan {
        steps,
        path: known.path,
        seeks: known.seeks,
    }
}

/// Circuits are sought until there is one. While it carries the traffic, each further relay is tried once.
fn circuits<'a>(known: &'a Known, rules: &'a Rules) -> impl Iterator<Item = Step> + 'a {
    let mut first = rules.start.of(Strategy::CircuitRelay);
    if let Some(before) = known.spared {
        first += SPARE_WAIT + SPARE_STAGGER * before.min(SPARE_STAGGERED) as u32;
    }
    let (relays, first, stagger, retries) = match known.circuit {
        false => (&known.relays, first, RELAY_STAGGER, u32::MAX),
        true => (&known.rivals, RIVAL_STAGGER, RIVAL_STAGGER, 0),
    };
    (0..).zip(relays).map(move |(nth, relay)| Step {
        attempt: AttemptId::Circuit(*relay),
        strategies: vec![Strategy::CircuitRelay],
        after: first + stagger * nth,
        spared: known.spared.is_some(),
        timeout: rules.timeout,
        anew: None,
        retries,
        backoff: Backoff::new(rules.backoff / CIRCUIT_HASTE, CIRCUIT_REST),
    })
}

fn better(attempt: AttemptId, strategies: &[Strategy], rules: &Rules) -> Step {
    // The strategies of ICE share one negotiation, which starts as soon as the first of them may.
    // Its host candidates need no start of their own. TURN and the birthday method join by themselves.
    let starts = |s: &&Strategy| attempt != AttemptId::Ice || **s != Strategy::Direct;
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
        anew: None,
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
            turn: false,
            anew: None,
            start: StartDelays::default(),
            timeout: 10 * SECOND,
            guessing: Duration::ZERO,
            retries: 3,
            backoff: 2 * SECOND,
        }
    }

    #[test]
    fn the_rules_say_which_strategies_may_be_tried() {
        let rules = rules();
        assert!(rules.allows(Strategy::CircuitRelay), "always");
        assert!(rules.allows(Strategy::Stun));
        assert!(!rules.allows(Strategy::Turn), "there are no servers");
        let relayed = Rules {
            ice: Vec::new(),
            turn: true,
            ..rules
        };
        assert!(relayed.allows(Strategy::Turn));
        assert!(!relayed.allows(Strategy::Stun));
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
            anew: None,
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
            anew: None,
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
    fn everything_but_the_second_relay_starts_at_once() {
        let relays = [PeerId::random(), PeerId::random()];
        let steps = vec![
            circuit(relays[0], Duration::ZERO),
            circuit(relays[1], RELAY_STAGGER),
            better(AttemptId::Direct, &[Strategy::Direct], Duration::ZERO),
        ];
        let (path, seeks) = (None, false);
        let expected = Plan { steps, path, seeks };
        assert_eq!(plan(&known(&relays), &rules()), expected);
    }

    #[test]
    fn configured_start_delays_are_used() {
        let relay = PeerId::random();
        let mut rules = rules();
        rules.start.direct = SECOND;
        rules.start.circuit_relay = 2 * SECOND;
        rules.start.stun = 3 * SECOND;
        let steps = plan(&known(&[relay]), &rules).steps;
        let starts: Vec<_> = steps.iter().map(|s| s.after).collect();
        assert_eq!(starts, [2 * SECOND, SECOND]);
        let mut up = known(&[relay]);
        up.circuit = true;
        rules.ice.push(Strategy::Upnp);
        rules.start.upnp = 4 * SECOND;
        assert_eq!(plan(&up, &rules).steps[1].after, 3 * SECOND);
        rules.start.stun = 5 * SECOND;
        assert_eq!(plan(&up, &rules).steps[1].after, 4 * SECOND);
    }

    #[test]
    fn spare_circuits_start_at_different_times() {
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
    fn further_relays_are_tried_once_each_while_a_relay_carries_the_traffic() {
        let relays = [(); 3].map(|()| PeerId::random());
        let mut known = known(&relays);
        known.addresses = false;
        known.circuit = true;
        known.rivals = relays[1..].to_vec();
        let circuits = |known: &Known| {
            let steps = plan(known, &rules()).steps;
            let circuits = steps.into_iter().filter(|s| s.attempt != AttemptId::Ice);
            circuits.collect::<Vec<_>>()
        };
        assert_eq!(circuits(&known), [], "the circuit is not in use yet");
        known.path = Some(PathKind::Relayed);
        let expected = [(relays[1], 5), (relays[2], 10)].map(|(relay, after)| Step {
            retries: 0,
            ..circuit(relay, after * SECOND)
        });
        assert_eq!(circuits(&known), expected);
        known.path = Some(PathKind::Turn);
        assert_eq!(circuits(&known), []);
        known.path = Some(PathKind::Direct);
        assert_eq!(circuits(&known), []);
    }

    #[test]
    fn paths_that_are_up_are_not_planned() {
        let relay = PeerId::random();
        let direct = better(AttemptId::Direct, &[Strategy::Direct], Duration::ZERO);
        let ice = better(AttemptId::Ice, &ICE, Duration::ZERO);
        let past_turn = better(AttemptId::Ice, &ICE, PAST_TURN);
        let anew = Step {
            anew: Some(3 * SECOND),
            ..ice.clone()
        };
        let steps = |circuit, best, turn| {
            let mut known = known(&[relay]);
            (known.circuit, known.best) = (circuit, best);
            let mut rules = rules();
            (rules.turn, rules.anew) = (turn, Some(3 * SECOND));
            plan(&known, &rules).steps
        };
        let relayed = Some(PathKind::Relayed);
        assert_eq!(steps(true, relayed, false), [direct.clone(), ice]);
        assert_eq!(steps(true, relayed, true), [direct.clone(), anew]);
        let turn = Some(PathKind::Turn);
        assert_eq!(steps(true, turn, true), [direct, past_turn]);
        assert_eq!(steps(true, Some(PathKind::Direct), true), []);
        // The fallback is brought back under a direct path.
        let fallback = circuit(relay, Duration::ZERO);
        assert_eq!(steps(false, Some(PathKind::Direct), true), [fallback]);
    }

    #[test]
    fn ice_stays_planned_without_its_circuit() {
        let mut known = known(&[]);
        known.addresses = false;
        assert_eq!(plan(&known, &rules()).steps, []);
        known.ice = true;
        let ice = better(AttemptId::Ice, &ICE, Duration::ZERO);
        assert_eq!(plan(&known, &rules()).steps, [ice]);
    }

    #[test]
    fn ice_needs_no_circuit_if_an_offer_can_be_sealed() {
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
    fn relay_only_plans_no_ice_and_the_accepting_side_plans_nothing() {
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
