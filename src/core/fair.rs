//! Divides a rate fairly: whoever asks for less than a fair share waits for nobody, and the others
//! share the rest equally.
//!
//! It is generalized processor sharing, which fair queueing approximates (Demers, Keshav, Shenker 1989).
//! Each holder owes the bytes that were passed on for it. The rate pays all debts at the same speed, and
//! a holder whose debt is small may go on. So the state is one number for each holder that owes
//! something, and one for all. A holder with twice the weight of another one has twice the share.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

/// How much of its share a holder may have ahead.
const AHEAD: f64 = 0.05;
/// What a holder may always have ahead, in bytes, so that one piece of data passes at a time.
const LEAST_AHEAD: f64 = 16.0 * 1024.0;

/// Who owes what. It holds those who owe something, and nobody else.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    /// How many bytes were paid by now for somebody with the weight 1 who owed something all the time.
    paid: f64,
    now: Duration,
    owing: HashMap<K, Owing>,
    /// The sum of their weights.
    weights: u64,
    order: BTreeSet<(Key, K)>,
}

#[derive(Clone, Copy, Debug)]
struct Owing {
    /// What `paid` is when the holder owes nothing any more.
    clear: f64,
    weight: u32,
}

/// A number that is not negative, in an order. Such numbers have the order of their bits.
type Key = u64;

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self {
            paid: 0.0,
            now: Duration::ZERO,
            owing: HashMap::new(),
            weights: 0,
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Shares<K> {
    /// Notes that `bytes` are passed on for a holder with a weight. Returns how long they have to wait
    /// until then, at `rate` bytes a second for all together.
    ///
    /// If others end meanwhile, the wait is a little too long.
    pub(crate) fn carry(
        &mut self,
        now: Duration,
        rate: u64,
        (holder, weight): (&K, u32),
        bytes: u64,
    ) -> Duration {
        let rate = rate.max(1) as f64;
        self.pay(now, rate);
        let before = self.owed(holder);
        self.owe(holder, weight, bytes);
        let each = rate * f64::from(weight.max(1)) / self.weights as f64;
        Duration::try_from_secs_f64((before - ahead(each)) / each).unwrap_or_default()
    }

    /// Whether `bytes` of a datagram, which cannot wait, may pass for a holder with a weight. Notes them
    /// if so.
    pub(crate) fn passes(
        &mut self,
        now: Duration,
        rate: u64,
        (holder, weight): (&K, u32),
        bytes: u64,
    ) -> bool {
        let rate = rate.max(1) as f64;
        self.pay(now, rate);
        let own = self.owing.get(holder).map_or(0, |owing| owing.weight);
        let all = self.weights - u64::from(own) + u64::from(weight.max(1));
        let each = rate * f64::from(weight.max(1)) / all as f64;
        let passes = self.owed(holder) <= ahead(each);
        if passes {
            self.owe(holder, weight, bytes);
        }
        passes
    }

    fn owed(&self, holder: &K) -> f64 {
        let owed = |owing: &Owing| (owing.clear - self.paid) * f64::from(owing.weight);
        self.owing.get(holder).map_or(0.0, owed)
    }

    fn owe(&mut self, holder: &K, weight: u32, bytes: u64) {
        let owed = self.owed(holder) + bytes as f64;
        let weight = weight.max(1);
        let clear = self.paid + owed / f64::from(weight);
        let owing = Owing { clear, weight };
        if let Some(before) = self.owing.insert(holder.clone(), owing) {
            self.order.remove(&(before.clear.to_bits(), holder.clone()));
            self.weights -= u64::from(before.weight);
        }
        self.weights += u64::from(weight);
        self.order.insert((clear.to_bits(), holder.clone()));
    }

    /// Pays what the rate has paid since the last call.
    fn pay(&mut self, now: Duration, rate: f64) {
        let mut left = now.saturating_sub(self.now).as_secs_f64() * rate;
        self.now = self.now.max(now);
        while let Some((clear, holder)) = self.order.first().cloned() {
            let clear = f64::from_bits(clear);
            let weights = self.weights as f64;
            let needed = (clear - self.paid) * weights;
            if needed > left {
                self.paid += left / weights;
                return;
            }
            left -= needed;
            self.paid = clear;
            self.order.pop_first();
            if let Some(owing) = self.owing.remove(&holder) {
                self.weights -= u64::from(owing.weight);
            }
        }
        // Nobody owes anything, so the number may begin anew and stay exact.
        self.paid = 0.0;
    }
}

/// What somebody whose share is `each` may owe and still go on, in bytes.
fn ahead(each: f64) -> f64 {
    (each * AHEAD).max(LEAST_AHEAD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 1_000_000;
    const PIECE: u64 = 16 * 1024;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn one_holder_has_everything() {
        let mut shares = Shares::default();
        let mut carry = |bytes| shares.carry(at(0), RATE, (&'a', 1), bytes).as_millis();
        assert_eq!(carry(50_000), 0);
        assert_eq!(carry(100_000), 0, "what may be ahead");
        assert_eq!(carry(100_000), 100);
        assert_eq!(carry(1), 200);
    }

    #[test]
    fn two_halve_what_there_is_and_a_third_waits_for_nobody() {
        let mut shares = Shares::default();
        shares.carry(at(0), RATE, (&'a', 1), 525_000);
        shares.carry(at(0), RATE, (&'b', 1), 525_000);
        assert_eq!(shares.carry(at(0), RATE, (&'a', 1), 1).as_millis(), 1000);
        assert_eq!(shares.carry(at(500), RATE, (&'b', 1), 1).as_millis(), 500);
        assert_eq!(
            shares.carry(at(500), RATE, (&'c', 1), 10_000),
            Duration::ZERO
        );
        // Others that end leave their part to those that stay.
        let mut shares = Shares::default();
        shares.carry(at(0), RATE, (&'a', 1), 1_000_000);
        shares.carry(at(0), RATE, (&'b', 1), 100_000);
        assert_eq!(shares.owed(&'a'), 1_000_000.0);
        shares.pay(at(200), RATE as f64);
        assert_eq!((shares.owed(&'a'), shares.owed(&'b')), (900_000.0, 0.0));
        shares.pay(at(300), RATE as f64);
        assert_eq!(shares.owed(&'a'), 800_000.0);
    }

    #[test]
    fn datagrams_pass_or_do_not_and_nothing_is_left_behind() {
        let mut shares = Shares::default();
        assert!(shares.passes(at(0), RATE, (&'a', 1), 25_001));
        assert!(
            shares.passes(at(0), RATE, (&'a', 1), 25_000),
            "its own share does not count twice"
        );
        assert!(!shares.passes(at(0), RATE, (&'a', 1), 1));
        assert!(shares.passes(at(0), RATE, (&'b', 1), 1000), "somebody else");
        assert!(shares.passes(at(40), RATE, (&'a', 1), 1));
        assert!(shares.passes(at(1000), RATE, (&'c', 1), 0));
        assert_eq!(
            (shares.owing.len(), shares.order.len(), shares.weights),
            (1, 1, 1)
        );
        assert_eq!(shares.paid, 0.0);
        // A clock that stands still pays nothing.
        assert!(shares.passes(at(900), RATE, (&'c', 1), 1));
        assert_eq!(shares.now, at(1000));
    }

    #[test]
    fn a_share_has_a_weight_which_may_change() {
        let mut shares = Shares::default();
        shares.carry(at(0), RATE, (&'a', 4), 1_000_000);
        shares.carry(at(0), RATE, (&'b', 1), 1_000_000);
        // Of four fifths of the rate, 50 ms may be ahead.
        assert_eq!(shares.carry(at(0), RATE, (&'a', 4), 0).as_millis(), 1200);
        shares.pay(at(1000), RATE as f64);
        let owed = (shares.owed(&'a'), shares.owed(&'b'));
        assert_eq!(owed, (200_000.0, 800_000.0));
        shares.carry(at(1000), RATE, (&'a', 1), 0);
        assert_eq!((shares.owed(&'a'), shares.weights), (200_000.0, 2));
        shares.pay(at(1500), RATE as f64);
        let owed = (shares.owed(&'a'), shares.owed(&'b'));
        assert_eq!(owed, (0.0, 500_000.0));
        assert!(shares.passes(at(1500), RATE, (&'c', 8), 9000));
        assert!(!shares.passes(at(1500), RATE, (&'b', 8), 1));
    }

    /// A simulation of holders that always have something, and of one that asks now and then.
    /// Returns what each busy holder got.
    fn simulate(busy: usize, pieces: &[u64], millis: u64) -> Vec<u64> {
        let quiet = busy;
        let mut shares = Shares::default();
        let mut free = vec![Duration::ZERO; busy];
        let mut got = vec![0; busy];
        let each = RATE / (busy as u64 + 1);
        for now in (0..millis).map(at) {
            for holder in 0..busy {
                while free[holder] <= now {
                    let bytes = pieces[holder % pieces.len()];
                    free[holder] = now + shares.carry(now, RATE, (&holder, 1), bytes);
                    got[holder] += bytes;
                    // With no wait at all it would go on forever.
                    if free[holder] == now && got[holder] > RATE * 100 {
                        panic!("nothing bounds it");
                    }
                }
            }
            let wait = shares.carry(now, RATE, (&quiet, 1), each / 1000);
            assert_eq!(wait, Duration::ZERO, "a quiet holder waits for nobody");
        }
        got
    }

    proptest! {
        #[test]
        fn busy_holders_get_the_same_and_all_of_it_whatever_their_pieces(
            busy in 1usize..6,
            pieces in prop::collection::vec(1..=PIECE, 1..6),
        ) {
            let got = simulate(busy, &pieces, 4000);
            let quiet = RATE / (busy as u64 + 1) * 4;
            let share = (4 * RATE - quiet) as f64 / busy as f64;
            // The slack is what may be ahead, a piece, and the millisecond of the simulation.
            let slack = ahead(RATE as f64) + PIECE as f64 + share * 0.02 + 8000.0;
            for bytes in got {
                prop_assert!((bytes as f64 - share).abs() <= slack, "{bytes} of {share}");
            }
        }

        /// Whatever comes, no more passes than the rate, what each may have ahead, and a datagram.
        #[test]
        fn datagrams_never_exceed_the_rate(
            sent in prop::collection::vec((0u64..20, 0u8..4, 1u64..9000), 1..300),
        ) {
            let mut shares = Shares::default();
            let (mut now, mut passed) = (0, 0);
            for (pause, holder, bytes) in sent {
                now += pause;
                passed += if shares.passes(at(now), RATE, (&holder, 1), bytes) { bytes } else { 0 };
            }
            let most = RATE * now / 1000 + 4 * (50_000 + 9000);
            prop_assert!(passed <= most, "{passed} > {most}");
            shares.pay(at(now + 1_000_000), RATE as f64);
            prop_assert!(shares.owing.is_empty() && shares.order.is_empty() && shares.weights == 0);
        }
    }
}
