//! Chooses which of a connection's paths carries its traffic.

use std::time::Duration;

use crate::event::PathKind;

/// Streams move to a path of the same kind only if it is faster by more than this. A move costs
/// each stream a round trip, and the round-trip times of one path vary by more than a millisecond.
const HYSTERESIS: Duration = Duration::from_millis(10);

/// The standing of a path, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// The path is sound, and has been for long enough.
    Trusted,
    /// The path answers, and was suspect a short time ago.
    Sound,
    /// The path leaves a probe unanswered.
    Suspect,
}

/// The facts about one path that the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PathCandidate<Id> {
    pub(crate) id: Id,
    pub(crate) kind: PathKind,
    /// The round-trip time, or `None` until it is measured.
    pub(crate) rtt: Option<Duration>,
    pub(crate) standing: Standing,
    /// Whether the path loses much of what is sent.
    pub(crate) lossy: bool,
}

/// Chooses the path to use. A path of better standing wins. Then one that loses little wins. Then
/// direct wins over TURN, and TURN over relayed. Then the current path stays, unless another is faster by more than the
/// hysteresis. Among equals, the first wins.
pub(crate) fn select<Id: Copy + PartialEq>(
    candidates: &[PathCandidate<Id>],
    current: Option<Id>,
) -> Option<Id> {
    // Whether a suspect path is dead does not depend on its kind, so the current one stays.
    let tier = |c: &PathCandidate<Id>| match c.standing {
        Standing::Suspect => (c.standing, false, PathKind::Relayed),
        _ => (c.standing, c.lossy, c.kind),
    };
    let best_tier = candidates.iter().map(tier).min()?;
    let mut tied = candidates.iter().filter(|c| tier(c) == best_tier);
    let first = tied.clone().next()?;
    let base = tied
        .clone()
        .find(|c| Some(c.id) == current)
        .unwrap_or(first);
    let quicker = |c: &&PathCandidate<Id>| match (c.rtt, base.rtt) {
        _ if c.standing == Standing::Suspect => false,
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

    fn path(id: u32, kind: PathKind, rtt: Option<u64>) -> PathCandidate<u32> {
        PathCandidate {
            id,
            kind,
            rtt: rtt.map(Duration::from_millis),
            standing: Standing::Trusted,
            lossy: false,
        }
    }

    #[test]
    fn the_kind_matters_more_than_the_round_trip_time() {
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
    fn a_clean_relay_wins_over_a_lossy_direct_path_of_the_same_standing() {
        let mut direct = path(1, PathKind::Direct, Some(5));
        let mut relayed = path(2, PathKind::Relayed, Some(100));
        direct.lossy = true;
        assert_eq!(select(&[direct, relayed], Some(1)), Some(2));
        relayed.standing = Standing::Sound;
        assert_eq!(select(&[direct, relayed], Some(1)), Some(1));
        relayed.standing = Standing::Trusted;
        relayed.lossy = true;
        assert_eq!(select(&[direct, relayed], Some(2)), Some(1));
        direct.standing = Standing::Suspect;
        relayed.standing = Standing::Suspect;
        assert_eq!(select(&[direct, relayed], Some(2)), Some(2));
    }

    #[test]
    fn a_suspect_path_is_chosen_last() {
        let mut direct = path(1, PathKind::Direct, Some(5));
        direct.standing = Standing::Suspect;
        let mut relayed = path(2, PathKind::Relayed, Some(100));
        assert_eq!(select(&[direct, relayed], Some(1)), Some(2));
        relayed.standing = Standing::Sound;
        assert_eq!(select(&[direct, relayed], Some(1)), Some(2));
        relayed.standing = Standing::Suspect;
        assert_eq!(select(&[direct, relayed], Some(1)), Some(1));
        assert_eq!(select(&[direct, relayed], Some(2)), Some(2));
        assert_eq!(select(&[direct], Some(1)), Some(1));
    }
}
