//! Decides which connections that others begin over QUIC are accepted.
//!
//! Anyone can write any source on a datagram. While few handshakes with unvalidated addresses (RFC
//! 9000 section 8.1) are under way, a connection from such an address is accepted at once. So no
//! peer pays a round trip when there is no flood. Beyond that number, a Retry packet asks the
//! sender to show that it receives what is sent to it (section 8.1.2), and this side keeps nothing
//! of the connection. So a forged source costs others one round trip and no more, and only the
//! holder of an address uses up its share.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime},
};

use crate::{
    core::quota::{Holder, Quota, Refusal},
    native::behaviours::pool::{Observer, Place, Pool, Quotas},
};

/// One in this many of all handshakes may be under way with addresses that have not been validated.
/// Each of those holds some 100 KB until it is given up.
const UNPROVEN: usize = 16;

/// The pools that handshakes are counted in. A clone shares them.
#[derive(Clone)]
pub(crate) struct Admission {
    proven: Pool,
    unproven: Pool,
}

/// The answer to a connection that somebody begins.
pub(super) enum Answer {
    /// The connection is accepted. It holds the place for as long as the handshake takes.
    Accept(Place),
    /// The sender has to show that it is at its address.
    Retry,
    /// The sender has shown that it is at its address, and already has its share.
    Refuse,
}

impl Admission {
    /// Allows at most `handshakes` with validated addresses, and a sixteenth of that with others.
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

    /// Whether no further handshake is accepted, even from an address that was shown.
    #[cfg(feature = "server")]
    pub(crate) fn is_full(&self) -> bool {
        self.proven.is_full()
    }

    /// The pool of handshakes whose senders have shown their addresses.
    #[cfg(all(test, feature = "server"))]
    pub(crate) fn proven(&self) -> &Pool {
        &self.proven
    }

    /// Decides on a connection that comes from `ip`.
    pub(super) fn decide(&self, ip: IpAddr, validated: bool) -> Answer {
        let holder = Holder::from(ip);
        match validated {
            true => self
                .proven
                .take(holder)
                .map_or(Answer::Refuse, Answer::Accept),
            // A Retry is no refusal, because an honest sender comes back at once.
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

/// The clock for the ages of Retry tokens. A token is valid for one run of its endpoint, so the
/// clock may begin anywhere. A wall clock that jumps makes no token older or younger.
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
        // Handshakes that were forged in its name do not count against an address.
        let shown: Vec<_> = (0..32).map(|_| admission.decide(ip(1), true)).collect();
        assert!(shown.iter().all(|answer| word(answer) == "accept"));
        assert_eq!(word(&admission.decide(ip(1), true)), "refuse");
        assert_eq!(word(&admission.decide(ip(2), true)), "accept");
        drop(few);
        assert_eq!(word(&admission.decide(ip(9), false)), "accept");
    }
}
