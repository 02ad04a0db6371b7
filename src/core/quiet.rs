//! When so little passes over a candidate pair that it is checked less often.

use std::time::Duration;

use web_time::Instant;

/// How long the datagrams are counted before a pair counts as quiet.
const WINDOW: Duration = Duration::from_secs(5);
/// The most datagrams that are sent over a quiet pair in this time. A probe of each side, every five
/// seconds, takes up to six with its answers and acknowledgements.
const MOST: u64 = 8;
/// How long a check may have no answer. A pair that does not answer is checked often.
const ANSWER: Duration = Duration::from_secs(1);

/// Whether little passes over a pair. A pair that is not looked at keeps its state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quiet {
    since: Option<Instant>,
    /// The count at that time.
    from: u64,
    is_quiet: bool,
    /// When the first check was sent that has no answer.
    unanswered: Option<Instant>,
}

impl Quiet {
    /// Notes that a check was sent over the pair.
    pub(crate) fn checked(&mut self, now: Instant) {
        self.unanswered.get_or_insert(now);
    }

    /// Notes that a check was answered.
    pub(crate) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// Returns when the pair stops to be quiet, if nothing comes until then.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        self.unanswered
            .filter(|_| self.is_quiet)
            .map(|at| at + ANSWER)
    }

    /// Returns whether the pair is quiet, if `sent` datagrams were sent over it so far.
    pub(crate) fn look(&mut self, now: Instant, sent: u64) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_busy = sent.saturating_sub(self.from) > MOST;
        if is_busy || now >= since + WINDOW {
            *self = Self {
                since: Some(now),
                from: sent,
                is_quiet: !is_busy,
                ..*self
            };
        }
        self.is_quiet && self.ends_at().is_none_or(|at| now < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_quiet_while_only_probes_pass() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        let mut look = |millis, sent| quiet.look(start + Duration::from_millis(millis), sent);
        assert!(!look(0, 0));
        assert!(!look(4_999, 8));
        assert!(look(5_000, 8));
        assert!(look(9_000, 16));
        assert!(!look(9_001, 17), "it is busy at once");
        assert!(!look(14_000, 18));
        assert!(look(14_001, 18));
        assert!(look(60_000, 26), "nobody looked for a while");
    }

    #[test]
    fn a_pair_that_does_not_answer_is_not_quiet() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut quiet = Quiet::default();
        quiet.look(start, 0);
        quiet.checked(start);
        assert_eq!(quiet.ends_at(), None, "it is not quiet");
        quiet.answered();
        assert!(quiet.look(at(5_000), 0));
        quiet.checked(at(5_000));
        quiet.checked(at(5_900));
        assert_eq!(quiet.ends_at(), Some(at(6_000)));
        assert!(quiet.look(at(5_999), 0) && !quiet.look(at(6_000), 0));
        assert!(!quiet.look(at(11_000), 0));
        quiet.answered();
        assert!(quiet.look(at(11_001), 0));
    }
}
