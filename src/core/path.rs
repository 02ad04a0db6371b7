//! Which of a connection's paths carries its traffic.

use std::time::Duration;

use crate::event::PathKind;

/// A path of the same kind must be quicker by this much to be moved to: a move costs each stream
/// a round trip, and round-trip times of one path vary by more than a millisecond.
const HYSTERESIS: Duration = Duration::from_millis(10);

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate<Id> {
    pub(crate) id: Id,
    pub(crate) kind: PathKind,
    /// `None` until measured.
    pub(crate) rtt: Option<Duration>,
    /// Missed its last liveness check; chosen only when nothing else is there.
    pub(crate) suspect: bool,
}

/// The path to use: sound before suspect, then direct before TURN before relayed, then the current
/// one unless another is quicker by more than the hysteresis. Of equals, the first.
pub(crate) fn select<Id: Copy + PartialEq>(
    candidates: &[Candidate<Id>],
    current: Option<Id>,
) -> Option<Id> {
    let tier = |c: &Candidate<Id>| (c.suspect, c.kind);
    let best_tier = candidates.iter().map(tier).min()?;
    let mut tied = candidates.iter().filter(|c| tier(c) == best_tier);
    let first = tied.clone().next()?;
    let base = tied
        .clone()
        .find(|c| Some(c.id) == current)
        .unwrap_or(first);
    let quicker = |c: &&Candidate<Id>| match (c.rtt, base.rtt) {
        (Some(theirs), Some(ours)) => theirs + HYSTERESIS < ours,
        _ => false,
    };
    let better = tied
        .by_ref()
        .filter(quicker)
        .min_by_key(|c| c.rtt)
        .unwrap_or(base);
    Some(better.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(id: u32, kind: PathKind, rtt: Option<u64>) -> Candidate<u32> {
        Candidate {
            id,
            kind,
            rtt: rtt.map(Duration::from_millis),
            suspect: false,
        }
    }

    #[test]
    fn kind_beats_round_trip_time() {
        let relayed = path(1, PathKind::Relayed, Some(1));
        let turn = path(2, PathKind::Turn, Some(50));
        let direct = path(3, PathKind::Direct, None);
        assert_eq!(select(&[relayed], None), Some(1));
        assert_eq!(select(&[relayed, turn], Some(1)), Some(2));
        assert_eq!(select(&[relayed, turn, direct], Some(2)), Some(3));
        assert_eq!(select::<u32>(&[], Some(3)), None);
    }

    #[test]
    fn the_hysteresis_is_exact() {
        let slow = path(1, PathKind::Direct, Some(30));
        assert_eq!(
            select(&[slow, path(2, PathKind::Direct, Some(20))], Some(1)),
            Some(1)
        );
        assert_eq!(
            select(&[slow, path(2, PathKind::Direct, Some(19))], Some(1)),
            Some(2)
        );
        assert_eq!(
            select(&[slow, path(2, PathKind::Direct, None)], Some(1)),
            Some(1)
        );
        assert_eq!(
            select(&[slow, path(2, PathKind::Direct, Some(19))], Some(2)),
            Some(2)
        );
    }

    #[test]
    fn a_suspect_path_is_the_last_choice() {
        let mut direct = path(1, PathKind::Direct, Some(5));
        direct.suspect = true;
        let relayed = path(2, PathKind::Relayed, Some(100));
        assert_eq!(select(&[direct, relayed], Some(1)), Some(2));
        assert_eq!(select(&[direct], Some(1)), Some(1));
    }
}
