//! Whether a server still holds what it was asked for, judged by what goes unanswered.
//!
//! A TURN server that has restarted knows no allocation, and drops what it gets without a word. Only
//! the answer to a request tells, and the next request may be half an hour away. So when something
//! that was sent has no answer for a while, a request is made at once. If that has no answer either,
//! the server is gone.

use std::time::Duration;

use web_time::Instant;

/// How long something may go unanswered until the server is asked.
const FIRST: Duration = Duration::from_secs(1);
/// The longest such time. It doubles when the server answers but the peer does not, because then the
/// peer is what is silent.
const MOST: Duration = Duration::from_secs(30);
/// How long the server may take to answer. It is the time after which a silent path is given up.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How long the server may take after the network has changed, because silence means more then.
const GIVE_UP_HINTED: Duration = Duration::from_secs(3);

/// The step that is to be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wait,
    /// Ask the server.
    Ask,
    /// The server is gone.
    Gone,
}

/// The state of one server.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    /// Since when something that was sent has no answer.
    unanswered: Option<Instant>,
    /// Since when the server has been asked.
    asked: Option<Instant>,
    patience: Duration,
    hinted: bool,
    /// Whether [`tick`](Self::tick) will be called.
    watched: bool,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            unanswered: None,
            asked: None,
            patience: FIRST,
            hinted: false,
            watched: false,
        }
    }
}

impl Silence {
    /// Notes that something was sent. Returns whether [`wake`](Self::wake) has to be looked at.
    pub(crate) fn sent(&mut self, now: Instant) -> bool {
        self.unanswered.get_or_insert(now);
        !std::mem::replace(&mut self.watched, true)
    }

    /// Notes that the server sent something: a peer's data, or else an answer.
    pub(crate) fn heard(&mut self, from_peer: bool) {
        let asked = self.asked.take().is_some();
        self.unanswered = None;
        self.hinted = false;
        match (from_peer, asked) {
            (true, _) => self.patience = FIRST,
            (false, true) => self.patience = (self.patience * 2).min(MOST),
            (false, false) => {}
        }
    }

    /// Notes that the way to the server may have changed, so that it has to be asked at once.
    pub(crate) fn hint(&mut self) {
        self.asked = None;
        self.hinted = true;
    }

    /// When [`tick`](Self::tick) is due next.
    pub(crate) fn wake(&self, now: Instant) -> Option<Instant> {
        match (self.asked, self.unanswered) {
            (Some(asked), _) => Some(asked + self.limit()),
            (None, _) if self.hinted => Some(now),
            (None, unanswered) => unanswered.map(|since| since + self.patience),
        }
    }

    fn limit(&self) -> Duration {
        match self.hinted {
            true => GIVE_UP_HINTED,
            false => GIVE_UP,
        }
    }

    /// Notes that time has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Verdict {
        let due = self.wake(now).is_some_and(|at| now >= at);
        let verdict = match (due, self.asked) {
            (false, _) => Verdict::Wait,
            (true, Some(_)) => Verdict::Gone,
            (true, None) => {
                self.asked = Some(now);
                Verdict::Ask
            }
        };
        self.watched = self.wake(now).is_some();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets time pass until there is something to do. Returns what it is, and when.
    fn next(silence: &mut Silence, mut now: Instant) -> (Verdict, Instant) {
        loop {
            match silence.tick(now) {
                Verdict::Wait => now = silence.wake(now).expect("something is due"),
                verdict => return (verdict, now),
            }
        }
    }

    #[test]
    fn a_server_that_answers_is_not_asked() {
        let mut silence = Silence::default();
        let mut now = Instant::now();
        assert!(silence.sent(now), "nobody would look");
        for _ in 0..100 {
            assert_eq!(silence.tick(now), Verdict::Wait);
            silence.heard(true);
            now += FIRST / 2;
            silence.sent(now);
        }
        silence.heard(true);
        assert_eq!(silence.tick(now), Verdict::Wait);
        assert_eq!(silence.wake(now), None);
    }

    #[test]
    fn a_silent_server_is_asked_and_then_given_up() {
        let start = Instant::now();
        for (hinted, asked, gone) in [
            (false, FIRST, GIVE_UP),
            (true, Duration::ZERO, GIVE_UP_HINTED),
        ] {
            let mut silence = Silence::default();
            silence.sent(start);
            if hinted {
                silence.hint();
            }
            let first = next(&mut silence, start);
            assert_eq!(first, (Verdict::Ask, start + asked));
            assert_eq!(next(&mut silence, first.1), (Verdict::Gone, first.1 + gone));
        }
    }

    #[test]
    fn a_silent_peer_costs_few_questions() {
        let mut silence = Silence::default();
        let start = Instant::now();
        let (mut now, mut questions) = (start, 0);
        while now < start + Duration::from_secs(120) {
            silence.sent(now);
            let (verdict, at) = next(&mut silence, now);
            assert_eq!(verdict, Verdict::Ask);
            silence.heard(false);
            (now, questions) = (at, questions + 1);
        }
        assert_eq!(questions, 8);
        silence.heard(true);
        silence.sent(now);
        assert_eq!(next(&mut silence, now), (Verdict::Ask, now + FIRST));
    }
}
