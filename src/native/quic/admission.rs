//! Which connections that others begin over QUIC are gone on with.
//!
//! Anyone can write any source on a datagram. What comes from an address that has not been validated
//! (RFC 9000 section 8.1) is gone on with at once while few such handshakes are under way: nobody
//! pays a round trip for a flood that there is not. Beyond, a Retry packet asks the sender to show
//! that it receives what is sent to it (section 8.1.2), and nothing is kept of it. So a forged source
//! costs others a round trip and no more, and nobody but its holder uses up the share of an address.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime},
};

use crate::{
    core::quota::{Holder, Quota, Refusal},
    native::behaviours::pool::{Observer, Place, Pool, Quotas},
};

/// The part of all handshakes that may be under way with addresses that have not been validated: one
/// in so many. Each holds some 100 KB until it is given up.
const UNPROVEN: usize = 16;

/// The pools that handshakes are counted in. A clone shares them.
#[derive(Clone)]
pub(crate) struct Admission {
    proven: Pool,
    unproven: Pool,
}

/// What becomes of a connection that somebody begins.
pub(super) enum Answer {
    /// It is gone on with. The place is for as long as the handshake takes.
    Accept(Place),
    /// The sender is to show that it is at its address.
    Retry,
    /// It has shown that, and has its share.
    Refuse,
}

impl Admission {
    /// At most `handshakes` with validated addresses, and a sixteenth of that with others.
    pub(crate) fn new(handshakes: impl Into<Quotas>, observer: &impl Observer) -> Self {
        let handshakes = handshakes.into();
        let part = |places: usize| places.div_ceil(UNPROVEN);
        let unproven = handshakes.map(move |all| Quota {
            all: part(all.all),
            per_address: part(all.per_address),
            per_site: part(all.per_site),
            per_peer: usize::MAX,
        });
        Self {
            proven: Pool::new("quic_handshake", handshakes, observer),
            unproven: Pool::new("quic_unproven", unproven, observer),
        }
    }

    /// Whether nobody's handshake is gone on with, however it shows its address.
    #[cfg(feature = "server")]
    pub(crate) fn is_full(&self) -> bool {
        self.proven.is_full()
    }

    /// The pool of handshakes whose senders have shown their addresses.
    #[cfg(all(test, feature = "server"))]
    pub(crate) fn proven(&self) -> &Pool {
        &self.proven
    }

    /// Decides on what comes from `ip`.
    pub(super) fn decide(&self, ip: IpAddr, validated: bool) -> Answer {
        let holder = Holder::from(ip);
        match validated {
            true => self
                .proven
                .take(holder)
                .map_or(Answer::Refuse, Answer::Accept),
            // That is no refusal: whoever is there comes back at once.
            false => self
                .unproven
                .try_take(holder)
                .map_or_else(retry, Answer::Accept),
        }
    }
}

fn retry(_: Refusal) -> Answer {
    Answer::Retry
}

/// The clock that the age of a Retry token is told by. A token is good for one run of its endpoint, so
/// that the clock may begin anywhere, and a wall clock that jumps makes no token older or younger.
pub(super) struct Monotonic(Instant);

impl Default for Monotonic {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl quinn::TimeSource for Monotonic {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::behaviours::pool::Debug;

    fn word(answer: &Answer) -> &'static str {
        match answer {
            Answer::Accept(_) => "accept",
            Answer::Retry => "retry",
            Answer::Refuse => "refuse",
        }
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_clock_of_tokens_begins_with_the_endpoint() {
        use quinn::TimeSource as _;
        let clock = Monotonic::default();
        let age = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(age < std::time::Duration::from_secs(3600), "{age:?}");
        assert!(clock.now() >= SystemTime::UNIX_EPOCH + age);
    }

    #[test]
    fn a_load_costs_a_round_trip_and_a_share_costs_its_holder_alone() {
        let quota = Quota {
            all: 64,
            per_address: 32,
            per_site: 32,
            per_peer: usize::MAX,
        };
        let admission = Admission::new(quota, &Debug);
        let few: Vec<_> = (0..2).map(|_| admission.decide(ip(1), false)).collect();
        assert!(few.iter().all(|answer| word(answer) == "accept"));
        assert_eq!(word(&admission.decide(ip(1), false)), "retry", "its part");
        let more: Vec<_> = (2..4).map(|n| admission.decide(ip(n), false)).collect();
        assert!(more.iter().all(|answer| word(answer) == "accept"));
        assert_eq!(word(&admission.decide(ip(9), false)), "retry", "all");
        // What was forged in its name is not held against it.
        let shown: Vec<_> = (0..32).map(|_| admission.decide(ip(1), true)).collect();
        assert!(shown.iter().all(|answer| word(answer) == "accept"));
        assert_eq!(word(&admission.decide(ip(1), true)), "refuse");
        assert_eq!(word(&admission.decide(ip(2), true)), "accept");
        drop(few);
        assert_eq!(word(&admission.decide(ip(9), false)), "accept");
    }
}
