//! When a session needs no circuit beside its direct path: when the path is sound and has carried nothing
//! for a while. The relay then has room for others, and the circuit is not probed. A path that becomes
//! suspect or busy brings the circuit back.

use std::time::Duration;

use web_time::Instant;

/// Whether a session rests, as its module says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Since when nothing has been carried.
    since: Instant,
    /// The last count of what was heard.
    heard: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The session has a circuit, or gets one when it is its turn.
    Awake,
    /// The session needs no circuit.
    Resting,
    /// The session has given its circuit back, and needs one at once.
    Waking,
}

impl Rest {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            heard: 0,
            state: State::Awake,
        }
    }

    /// Whether the session needs no circuit as long as its direct path is sound.
    pub(crate) fn is_resting(&self) -> bool {
        self.state == State::Resting
    }

    /// Whether a circuit that the session needs is to be made at once.
    pub(crate) fn hurries(&self) -> bool {
        self.state != State::Awake
    }

    /// Notes that the session sends bytes, or that its network may have changed. Returns whether it
    /// rested until now.
    pub(crate) fn end(&mut self, now: Instant) -> bool {
        self.since = now;
        let rested = self.is_resting();
        if rested {
            self.state = State::Waking;
        }
        rested
    }

    /// Notes that there is a circuit.
    pub(crate) fn on_circuit(&mut self, now: Instant) {
        self.since = now;
        self.state = State::Awake;
    }

    /// Notes that the direct path is sound. `heard` counts what streams have received, and wraps around.
    /// The session rests after a time `pause` without traffic. Returns whether this has changed.
    pub(crate) fn sound(&mut self, now: Instant, heard: u32, pause: Duration) -> bool {
        if std::mem::replace(&mut self.heard, heard) != heard {
            return self.end(now);
        }
        let begins = !self.is_resting() && now.saturating_duration_since(self.since) >= pause;
        if begins {
            self.state = State::Resting;
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(60);

    #[test]
    fn a_session_rests_after_a_pause_and_until_something_moves() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rest = Rest::new(start);
        assert!(!rest.sound(at(59), 0, PAUSE));
        assert!(rest.sound(at(60), 0, PAUSE) && rest.is_resting());
        assert!(!rest.sound(at(65), 0, PAUSE), "it is told once");
        assert!(rest.sound(at(70), 1, PAUSE), "the peer sends");
        assert!(!rest.is_resting() && !rest.sound(at(129), 1, PAUSE));
        assert!(rest.sound(at(130), 1, PAUSE));
        assert!(rest.end(at(140)) && !rest.end(at(141)));
        assert!(!rest.sound(at(200), 1, PAUSE));
        assert!(rest.sound(at(201), 1, PAUSE));
    }

    #[test]
    fn a_circuit_that_comes_back_does_not_wait_for_its_turn() {
        let now = Instant::now();
        let mut rest = Rest::new(now);
        assert!(!rest.hurries());
        rest.sound(now + PAUSE, 0, PAUSE);
        assert!(rest.hurries(), "the path may become suspect");
        rest.end(now + PAUSE);
        assert!(rest.hurries() && !rest.is_resting());
        rest.on_circuit(now + PAUSE);
        assert!(!rest.hurries());
    }
}
