//! The last scores, and how old they are.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use libp2p::PeerId;

use super::{kept::Dated, source::Scores};

/// How much younger the scores are than those that are kept before they are written again.
const RENEW: Duration = Duration::from_secs(60 * 60);
/// How far the clock of the source may be ahead of ours. A later date would count for ever, and no answer
/// after it.
const AHEAD: Duration = Duration::from_secs(5 * 60);

/// The last scores. Whoever asks gives the time, and the age from which on scores do not count.
#[derive(Default)]
pub(super) struct Known {
    /// When the source was asked first, if there is one.
    pub(super) since: Option<Instant>,
    /// Whether the log says that the scores are too old.
    pub(super) is_told_old: bool,
    scores: Arc<Scores>,
    /// A time, and how old the scores were then. It needs no clock that may be set.
    age: Option<(Instant, Duration)>,
    /// The date of the scores that were written last.
    stored: Option<SystemTime>,
    /// Whether other scores have come since then.
    has_changed: bool,
}

impl Known {
    /// Returns the age of the scores, if there are some.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        let (then, age) = self.age?;
        Some(age.saturating_add(now.saturating_duration_since(then)))
    }

    /// Whether there are scores, and they are not too old.
    pub(super) fn counts(&self, now: Instant, max_age: Duration) -> bool {
        self.age(now).is_some_and(|age| age <= max_age)
    }

    pub(super) fn peer(&self, peer: &PeerId, now: Instant, max_age: Duration) -> Option<i32> {
        let score = self.scores.peers.get(peer).copied();
        score.filter(|_| self.counts(now, max_age))
    }

    pub(super) fn relay(&self, relay: &PeerId, now: Instant, max_age: Duration) -> Option<i32> {
        let score = self.scores.relays.get(relay).copied();
        score.filter(|_| self.counts(now, max_age))
    }

    /// Returns the version that the source is told. Without one, it gives all scores.
    pub(super) fn version(&self, now: Instant, max_age: Duration) -> Option<String> {
        let version = self.scores.version.clone();
        version.filter(|_| self.counts(now, max_age))
    }

    /// Takes the scores that were kept over a restart, unless they are of a time to come.
    pub(super) fn restore(&mut self, dated: Dated, (now, time): (Instant, SystemTime)) {
        let Ok(age) = age_of(dated.at, time) else {
            return;
        };
        self.scores = dated.scores;
        self.age = Some((now, age));
        self.stored = Some(dated.at);
    }

    /// Takes the answer of the source: other scores, or that they are the same. Scores with a date do
    /// not become younger by that, because anybody can say so who stands between. Returns the scores that
    /// count no more. To drop them may take a while.
    ///
    /// # Errors
    /// The answer is too old, or of a time to come.
    pub(super) fn take(
        &mut self,
        scores: Option<Scores>,
        (now, time): (Instant, SystemTime),
        max_age: Duration,
    ) -> Result<Option<Arc<Scores>>, String> {
        let Some(scores) = scores else {
            if self.scores.issued.is_none() {
                self.age = Some((now, Duration::ZERO));
            }
            return Ok(None);
        };
        if let Some((issued, before)) = scores.issued.zip(self.scores.issued)
            && issued < before
        {
            return Err("its answer is older than the last one".to_owned());
        }
        let age = scores.issued.map(|issued| age_of(issued, time));
        let age = age.transpose()?.unwrap_or_default();
        if age > max_age {
            return Err("its answer was issued too long ago".to_owned());
        }
        self.age = Some((now, age));
        // Without a version, the answer may be the same. It costs more to find that out.
        self.has_changed |= scores.version.is_none()
            || (&scores.version, scores.issued) != (&self.scores.version, self.scores.issued);
        Ok(Some(std::mem::replace(&mut self.scores, Arc::new(scores))))
    }

    /// Returns the scores if they have to be written now.
    pub(super) fn due_to_store(&mut self, time: SystemTime) -> Option<Dated> {
        let at = self.scores.issued.unwrap_or(time);
        let is_old = |stored: SystemTime| at.duration_since(stored).is_ok_and(|age| age >= RENEW);
        if !self.has_changed && !self.stored.is_none_or(is_old) {
            return None;
        }
        self.has_changed = false;
        self.stored = Some(at);
        let scores = self.scores.clone();
        Some(Dated { scores, at })
    }
}

/// Returns how old something of this date is at `time`.
///
/// # Errors
/// The date is in the future.
fn age_of(date: SystemTime, time: SystemTime) -> Result<Duration, String> {
    match time.duration_since(date) {
        Ok(age) => Ok(age),
        Err(ahead) if ahead.duration() <= AHEAD => Ok(Duration::ZERO),
        Err(_) => Err("its answer is of a time to come, so one of the clocks is wrong".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(hours: u32) -> SystemTime {
        UNIX_EPOCH + hours * HOUR
    }

    fn scores(peer: PeerId, issued: Option<SystemTime>) -> Scores {
        Scores {
            version: Some("1".into()),
            issued,
            peers: [(peer, -80)].into(),
            ..Scores::default()
        }
    }

    #[test]
    fn scores_with_a_date_do_not_become_younger_by_an_answer_that_nobody_signed() {
        let (mut known, peer, begun) = (Known::default(), PeerId::random(), Instant::now());
        let dated = scores(peer, Some(at(90)));
        let took = known.take(Some(dated.clone()), (begun, at(100)), DAY);
        assert_eq!(took, Ok(Some(Arc::default())));
        assert_eq!(known.age(begun), Some(10 * HOUR));
        for hours in 1..=14 {
            let now = begun + hours * HOUR;
            assert_eq!(known.peer(&peer, now, DAY), Some(-80));
            assert!(known.version(now, DAY).is_some());
            known.take(None, (now, at(100 + hours)), DAY).unwrap();
        }
        let now = begun + 15 * HOUR;
        assert_eq!(known.peer(&peer, now, DAY), None);
        assert_eq!(known.version(now, DAY), None, "it is asked for everything");
        // The same answer again, and an older one, do not help either.
        let replayed = known.take(Some(dated), (now, at(115)), DAY);
        assert!(replayed.unwrap_err().contains("too long ago"));
        let older = scores(peer, Some(at(89)));
        assert!(known.take(Some(older), (now, at(100)), DAY).is_err());
        // Nor does a clock that is set back.
        assert_eq!(known.peer(&peer, now, DAY), None);
        let new = scores(peer, Some(at(115) + AHEAD));
        known.take(Some(new), (now, at(115)), DAY).unwrap();
        assert_eq!(known.age(now), Some(Duration::ZERO));
    }

    #[test]
    fn a_date_in_the_future_does_not_keep_later_scores_out() {
        let (mut known, peer, now) = (Known::default(), PeerId::random(), Instant::now());
        let ahead = at(100) + AHEAD + Duration::from_secs(1);
        let took = known.take(Some(scores(peer, Some(ahead))), (now, at(100)), DAY);
        assert!(took.unwrap_err().contains("a time to come"));
        let dated = Dated {
            scores: Arc::new(scores(peer, Some(ahead))),
            at: ahead,
        };
        known.restore(dated, (now, at(100)));
        assert_eq!(known.age(now), None);
        known
            .take(Some(scores(peer, Some(at(99)))), (now, at(100)), DAY)
            .unwrap();
        assert_eq!(known.peer(&peer, now, DAY), Some(-80));
    }

    #[test]
    fn scores_without_a_date_are_as_old_as_the_last_answer() {
        let (mut known, peer, begun) = (Known::default(), PeerId::random(), Instant::now());
        known
            .take(Some(scores(peer, None)), (begun, at(0)), DAY)
            .unwrap();
        assert_eq!(known.peer(&peer, begun + 25 * HOUR, DAY), None);
        known.take(None, (begun + DAY, at(24)), DAY).unwrap();
        assert_eq!(known.peer(&peer, begun + 25 * HOUR, DAY), Some(-80));
    }

    #[test]
    fn scores_are_written_when_they_change_and_now_and_then() {
        let (mut known, peer, now) = (Known::default(), PeerId::random(), Instant::now());
        let take = |known: &mut Known, scores| {
            known.take(scores, (now, at(0)), DAY).unwrap();
        };
        take(&mut known, Some(scores(peer, None)));
        assert_eq!(known.due_to_store(at(1)).map(|dated| dated.at), Some(at(1)));
        take(&mut known, None);
        assert_eq!(known.due_to_store(at(1)), None);
        let half_later = at(1) + HOUR / 2;
        assert_eq!(known.due_to_store(half_later), None);
        let renewed = known.due_to_store(at(2)).unwrap();
        assert_eq!(renewed.at, at(2));
        let mut next = Known::default();
        next.restore(renewed, (now, at(4)));
        assert_eq!(next.age(now), Some(2 * HOUR));
        assert_eq!(next.peer(&peer, now, DAY), Some(-80));
        assert_eq!(next.peer(&peer, now, HOUR), None);
        assert_eq!(next.due_to_store(at(2)), None);
        let mut other = scores(peer, None);
        other.version = Some("2".into());
        take(&mut next, Some(other));
        assert!(next.due_to_store(at(2)).is_some());
    }
}
