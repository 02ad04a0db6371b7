//! The last scores, and how old they are.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use libp2p::PeerId;

use super::{kept::Dated, source::Scores};

/// How much younger the scores are than those that are kept before they are written again.
const RENEW: Duration = Duration::from_secs(60 * 60);

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

    /// Takes the scores that were kept over a restart, and were this old then.
    pub(super) fn restore(&mut self, dated: Dated, age: Duration, now: Instant) {
        self.scores = dated.scores;
        self.age = Some((now, age));
        self.stored = Some(dated.at);
    }

    /// Takes the answer of the source: other scores, or that they are the same. Scores with a date do
    /// not become younger by that, because anybody can say so who stands between.
    ///
    /// # Errors
    /// The answer is too old.
    pub(super) fn take(
        &mut self,
        scores: Option<Scores>,
        (now, time): (Instant, SystemTime),
        max_age: Duration,
    ) -> Result<(), String> {
        let Some(scores) = scores else {
            if self.scores.issued.is_none() {
                self.age = Some((now, Duration::ZERO));
            }
            return Ok(());
        };
        if let Some((issued, before)) = scores.issued.zip(self.scores.issued)
            && issued < before
        {
            return Err("its answer is older than the last one".to_owned());
        }
        let age = scores.issued.map(|issued| time.duration_since(issued));
        // A date in the future is one of a clock that is ahead.
        let age = age.and_then(Result::ok).unwrap_or_default();
        if age > max_age {
            return Err("its answer was issued too long ago".to_owned());
        }
        self.age = Some((now, age));
        // Without a version, the answer may be the same. It costs more to find that out.
        self.has_changed |= scores.version.is_none()
            || (&scores.version, scores.issued) != (&self.scores.version, self.scores.issued);
        self.scores = Arc::new(scores);
        Ok(())
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
        assert_eq!(took, Ok(()));
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
        let new = scores(peer, Some(at(120)));
        assert_eq!(known.take(Some(new), (now, at(115)), DAY), Ok(()));
        assert_eq!(known.age(now), Some(Duration::ZERO));
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
        let take = |known: &mut Known, scores| known.take(scores, (now, at(0)), DAY).unwrap();
        take(&mut known, Some(scores(peer, None)));
        assert_eq!(known.due_to_store(at(1)).map(|dated| dated.at), Some(at(1)));
        take(&mut known, None);
        assert_eq!(known.due_to_store(at(1)), None);
        let half_later = at(1) + HOUR / 2;
        assert_eq!(known.due_to_store(half_later), None);
        let renewed = known.due_to_store(at(2)).unwrap();
        assert_eq!(renewed.at, at(2));
        let mut next = Known::default();
        next.restore(renewed, 2 * HOUR, now);
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
