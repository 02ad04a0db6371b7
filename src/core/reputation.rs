//! What is thought of peers: scores that somebody else gives, and what a server has seen itself.
//!
//! A score of another is from -100 to 100. What the server sees costs points, and half of them are
//! forgiven in [`HALF_LIFE`].

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

/// The scores are from minus this to this.
pub(crate) const MOST_SCORE: i32 = 100;

/// In what time half of the points are forgiven.
const HALF_LIFE: Duration = Duration::from_secs(10 * 60);

/// The most peers or networks of which points are kept. Each takes about 250 bytes.
const MOST: usize = 16_384;

/// Points below this are forgotten.
const LEAST: f64 = 0.5;

/// The most points. They are forgiven within hours, whatever somebody did.
const MOST_POINTS: f64 = 400.0;

/// What a server sees of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offence {
    /// A handshake over TCP failed. A client whose network fails has some of these.
    FailedHandshake,
    /// More was asked for than the rate allows.
    Flood,
    /// A circuit that it asked for was refused by the other peer.
    RefusedCircuit,
}

impl Offence {
    /// The points that it costs. It takes hundreds in a short time to get far.
    fn points(self) -> f64 {
        match self {
            Self::FailedHandshake => 0.25,
            Self::Flood => 1.0,
            Self::RefusedCircuit => 0.5,
        }
    }
}

/// The points of those who have some.
///
/// All points are forgiven at the same speed, so the order of their holders stays the same as time passes. The
/// order is that of `rank`, and to make room takes no look at the others.
#[derive(Debug)]
pub(crate) struct Points<K> {
    held: HashMap<K, (f64, Duration)>,
    /// Who has the fewest first.
    order: BTreeSet<(Rank, K)>,
}

/// A number that is not negative, in an order. Such numbers have the order of their bits.
type Rank = u64;

impl<K> Default for Points<K> {
    fn default() -> Self {
        Self {
            held: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Points<K> {
    /// Notes an offence at `now`.
    pub(crate) fn note(&mut self, who: &K, offence: Offence, now: Duration) {
        let before = self.of(who, now);
        self.forget(who);
        if self.held.len() >= MOST {
            self.make_room(now);
        }
        let points = (before + offence.points()).min(MOST_POINTS);
        self.held.insert(who.clone(), (points, now));
        self.order.insert((rank((points, now)), who.clone()));
    }

    /// Returns the points of `who` at `now`.
    pub(crate) fn of(&self, who: &K, now: Duration) -> f64 {
        self.held.get(who).map_or(0.0, |held| left(*held, now))
    }

    fn forget(&mut self, who: &K) {
        if let Some(held) = self.held.remove(who) {
            self.order.remove(&(rank(held), who.clone()));
        }
    }

    /// Forgets whoever has the fewest points, and those who have next to none.
    fn make_room(&mut self, now: Duration) {
        while let Some((_, who)) = self.order.pop_first() {
            self.held.remove(&who);
            let next = self.order.first().and_then(|(_, who)| self.held.get(who));
            if next.is_none_or(|held| left(*held, now) >= LEAST) {
                return;
            }
        }
    }
}

/// Whoever has a larger rank has more points left, whenever one looks.
fn rank((points, at): (f64, Duration)) -> Rank {
    // The logarithm of what is left, without what time takes from all. Nobody has fewer points than
    // an offence costs, so the sum is not negative.
    const LOWEST: f64 = 2.0;
    let halves = at.as_secs_f64() / HALF_LIFE.as_secs_f64();
    (halves + points.log2() + LOWEST).max(0.0).to_bits()
}

fn left((points, at): (f64, Duration), now: Duration) -> f64 {
    let halves = now.saturating_sub(at).as_secs_f64() / HALF_LIFE.as_secs_f64();
    points * (-halves).exp2()
}

/// From which scores on something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Peers below this are refused.
    pub(crate) refuse: i32,
    /// Peers below this are slowed down.
    pub(crate) slow: i32,
    /// Peers from this on are preferred.
    pub(crate) prefer: i32,
}

/// How a peer is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Treatment {
    Refused,
    Slow,
    #[default]
    Usual,
    Preferred,
}

impl Treatment {
    /// The word in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Usual => "usual",
            Self::Preferred => "preferred",
        }
    }

    /// The weight of its share where somebody else wants one, too.
    pub(crate) fn weight(self) -> u32 {
        match self {
            Self::Refused | Self::Slow => 1,
            Self::Usual => 4,
            Self::Preferred => 8,
        }
    }
}

impl Thresholds {
    /// Decides how a peer is treated that others give `score`, if they give any, and that has `points`.
    pub(crate) fn treat(&self, score: Option<i32>, points: f64) -> Treatment {
        // Whoever is not known is neither good nor bad.
        let score = f64::from(score.unwrap_or(0).clamp(-MOST_SCORE, MOST_SCORE)) - points;
        if score < f64::from(self.refuse) {
            Treatment::Refused
        } else if score < f64::from(self.slow) {
            Treatment::Slow
        } else if score >= f64::from(self.prefer) {
            Treatment::Preferred
        } else {
            Treatment::Usual
        }
    }
}

/// Returns when the scores are asked for next. `random` is in `0.0..1.0`, and spreads the questions of
/// many servers over a tenth of the interval. After failures, it takes longer, up to eight intervals.
pub(crate) fn next_sync(interval: Duration, failures: u32, random: f64) -> Duration {
    let factor = f64::from(1u32 << failures.min(3));
    interval.mul_f64(factor * (0.95 + random * 0.1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Thresholds = Thresholds {
        refuse: -50,
        slow: -10,
        prefer: 50,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn points_add_up_and_are_forgiven() {
        let mut points = Points::default();
        for _ in 0..40 {
            points.note(&'a', Offence::Flood, at(0));
        }
        assert_eq!(points.of(&'a', at(0)), 40.0);
        assert_eq!(points.of(&'a', at(600)), 20.0);
        assert_eq!(points.of(&'a', at(1200)), 10.0);
        assert_eq!(points.of(&'b', at(0)), 0.0);
        points.note(&'a', Offence::RefusedCircuit, at(600));
        assert_eq!(points.of(&'a', at(600)), 20.5);
        points.note(&'b', Offence::FailedHandshake, at(600));
        assert_eq!(points.of(&'b', at(600)), 0.25);
        for _ in 0..1000 {
            points.note(&'a', Offence::Flood, at(600));
        }
        assert_eq!(points.of(&'a', at(600)), MOST_POINTS);
    }

    #[test]
    fn whoever_has_the_fewest_points_makes_room() {
        let mut points = Points::default();
        points.note(&0, Offence::Flood, at(0));
        for who in 1..MOST {
            points.note(&who, Offence::Flood, at(0));
            points.note(&who, Offence::Flood, at(0));
        }
        points.note(&MOST, Offence::FailedHandshake, at(0));
        assert_eq!((points.held.len(), points.order.len()), (MOST, MOST));
        assert_eq!(points.of(&0, at(0)), 0.0);
        points.note(&0, Offence::Flood, at(1500));
        assert_eq!(points.of(&MOST, at(1500)), 0.0);
        let later = at(600 * 3);
        points.note(&usize::MAX, Offence::Flood, later);
        assert!(points.held.len() <= 2, "all others are forgiven");
        assert_eq!(points.held.len(), points.order.len());
    }

    /// A flood of newcomers costs about as much as the same number of acquaintances. To look at all for
    /// each would take ten thousand times as long.
    #[test]
    fn room_for_a_newcomer_costs_no_look_at_all_the_others() {
        let mut points = Points::default();
        let offend = |points: &mut Points<usize>, who: usize| {
            points.note(&who, Offence::Flood, at(0));
        };
        (0..MOST).for_each(|who| offend(&mut points, who));
        let begun = std::time::Instant::now();
        (0..4 * MOST).for_each(|who| offend(&mut points, who));
        let took = begun.elapsed();
        assert!(took < at(10), "{took:?}");
    }

    #[test]
    fn every_treatment_has_a_share() {
        let treatments = [
            Treatment::Refused,
            Treatment::Slow,
            Treatment::Usual,
            Treatment::Preferred,
        ];
        assert_eq!(treatments.map(Treatment::weight), [1, 1, 4, 8]);
    }

    #[test]
    fn thresholds_decide() {
        for (score, points, treatment) in [
            (None, 0.0, Treatment::Usual),
            (Some(-50), 0.0, Treatment::Slow),
            (Some(-51), 0.0, Treatment::Refused),
            (Some(i32::MIN), 0.0, Treatment::Refused),
            (Some(-10), 0.0, Treatment::Usual),
            (Some(-10), 0.5, Treatment::Slow),
            (None, 50.5, Treatment::Refused),
            (Some(50), 0.0, Treatment::Preferred),
            (Some(i32::MAX), 50.0, Treatment::Preferred),
            (Some(100), 151.0, Treatment::Refused),
        ] {
            assert_eq!(USUAL.treat(score, points), treatment, "{score:?} {points}");
        }
        let words = [
            Treatment::Refused,
            Treatment::Slow,
            Treatment::Usual,
            Treatment::Preferred,
        ];
        assert_eq!(
            words.map(Treatment::name),
            ["refused", "slow", "usual", "preferred"]
        );
        assert!(words.is_sorted_by_key(|treatment| treatment.weight()));
    }

    #[test]
    fn servers_ask_at_different_times_and_less_often_if_it_fails() {
        let interval = at(100);
        assert_eq!(next_sync(interval, 0, 0.0), at(95));
        assert_eq!(next_sync(interval, 0, 0.5), at(100));
        assert_eq!(next_sync(interval, 1, 0.5), at(200));
        assert_eq!(next_sync(interval, 99, 0.5), at(800));
    }

    proptest! {
        /// The order is that of the points that are left, whenever one looks.
        #[test]
        fn ranks_have_the_order_of_what_is_left(
            a in (0.25f64..400.0, 0u64..100_000), b in (0.25f64..400.0, 0u64..100_000), later in 0u64..9999,
        ) {
            let [a, b] = [a, b].map(|(points, seconds)| (points, at(seconds)));
            let now = a.1.max(b.1) + at(later);
            let (ranks, lefts) = ((rank(a), rank(b)), (left(a, now), left(b, now)));
            // Numbers that are nearly the same may have either order.
            prop_assume!((lefts.0 / lefts.1 - 1.0).abs() > 1e-6);
            prop_assert_eq!(ranks.0 < ranks.1, lefts.0 < lefts.1);
        }

        /// Points never make a peer better, and time never makes it worse.
        #[test]
        fn more_points_are_never_better(score in -200i32..200, a in 0.0f64..400.0, b in 0.0f64..400.0) {
            let (few, many) = (a.min(b), a.max(b));
            let treated = |points| USUAL.treat(Some(score), points).weight();
            prop_assert!(treated(few) >= treated(many));
        }
    }
}
