//! What is sealed for a peer and needs no circuit: what stands in front of it, and how a copy is
//! told from the first.

use std::collections::HashSet;
use std::time::Duration;

/// The protocol that carries a sealed offer: to a relay behind its CONNECT, and from the relay to
/// the peer as it is.
pub(crate) const OFFER_PROTOCOL: &str = "/throughline/offer/1";

/// How far the clocks of two peers may differ. Beyond it the offer waits for the circuit, which
/// has no clock.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(120);

/// Offers remembered at most; while they are so many, further ones wait for their circuits.
const MAX_SEEN: usize = 4096;

/// Bytes of an X25519 or Ed25519 public key.
pub(crate) const KEY: usize = 32;

/// One run of a peer's process, by random numbers. What the peer has seen is forgotten with the
/// run, so that early data for one run must mean nothing to the next.
pub(crate) type Incarnation = [u8; 8];

/// What follows a [`Prelude`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Signalling of ICE. A copy can only make the peer try addresses.
    Signalling,
    /// A resumable stream with the application's bytes, for this run of the peer alone.
    Stream(Incarnation),
}

/// Who offers, when, and what: the first bytes of the first sealed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prelude {
    /// The Ed25519 key that is the offerer's peer id.
    pub(crate) identity: [u8; KEY],
    /// By the offerer's clock, since the Unix epoch.
    pub(crate) at: Duration,
    pub(crate) content: Content,
}

impl Prelude {
    /// The longest one.
    pub(crate) const MAX_LEN: usize = KEY + 8 + 1 + size_of::<Incarnation>();

    /// The key; the time in milliseconds, 64 bits, big-endian; 0 for signalling, or 1 and the
    /// incarnation for a stream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::MAX_LEN);
        bytes.extend(self.identity);
        let millis = u64::try_from(self.at.as_millis()).unwrap_or(u64::MAX);
        bytes.extend(millis.to_be_bytes());
        match self.content {
            Content::Signalling => bytes.push(0),
            Content::Stream(incarnation) => {
                bytes.push(1);
                bytes.extend(incarnation);
            }
        }
        bytes
    }

    /// Takes it off the front of `bytes`; `None` where they are too few, or of another kind.
    pub(crate) fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (identity, rest) = bytes.split_first_chunk()?;
        let (millis, rest) = rest.split_first_chunk()?;
        let (content, rest) = match rest.split_first()? {
            (0, rest) => (Content::Signalling, rest),
            (1, rest) => {
                let (incarnation, rest) = rest.split_first_chunk()?;
                (Content::Stream(*incarnation), rest)
            }
            _ => return None,
        };
        let prelude = Self {
            identity: *identity,
            at: Duration::from_millis(u64::from_be_bytes(*millis)),
            content,
        };
        Some((prelude, rest))
    }
}

/// The offers of the last minutes. The first message of a handshake can be sent again by whoever
/// carried it; this is what makes a second one useless.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Two spans of time, so that the older one can be dropped as a whole.
    young: HashSet<[u8; KEY]>,
    old: HashSet<[u8; KEY]>,
    /// When `young` was begun.
    since: Duration,
}

impl Seen {
    /// Whether an offer under the ephemeral key `key`, made `at`, is fresh `now`; remembers it.
    pub(crate) fn admit(&mut self, now: Duration, at: Duration, key: [u8; KEY]) -> bool {
        // An offer counts as fresh for twice the skew: from the fastest clock to the slowest.
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= MAX_SKEW * 2 {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
            if elapsed >= MAX_SKEW * 4 {
                self.old.clear();
            }
        }
        let fresh = now.abs_diff(at) <= MAX_SKEW;
        let room = self.young.len() + self.old.len() < MAX_SEEN;
        fresh && room && !self.old.contains(&key) && self.young.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn key(number: usize) -> [u8; KEY] {
        let mut key = [0; KEY];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn an_offer_is_taken_once() {
        let mut seen = Seen::default();
        assert!(seen.admit(NOW, NOW, key(1)));
        assert!(!seen.admit(NOW, NOW, key(1)));
        assert!(seen.admit(NOW, NOW, key(2)));
    }

    #[test]
    fn clocks_may_differ_as_far_as_documented() {
        let mut seen = Seen::default();
        let more = MAX_SKEW + Duration::from_millis(1);
        assert!(seen.admit(NOW, NOW - MAX_SKEW, key(1)));
        assert!(seen.admit(NOW, NOW + MAX_SKEW, key(2)));
        assert!(!seen.admit(NOW, NOW - more, key(3)));
        assert!(!seen.admit(NOW, NOW + more, key(4)));
        assert!(!seen.admit(NOW, Duration::ZERO, key(5)));
        assert!(!seen.admit(NOW, Duration::MAX, key(6)));
    }

    #[test]
    fn memory_is_bounded_and_room_comes_back() {
        let mut seen = Seen::default();
        for number in 0..MAX_SEEN {
            assert!(seen.admit(NOW, NOW, key(number)));
        }
        assert!(!seen.admit(NOW, NOW, key(MAX_SEEN)));
        let later = NOW + MAX_SKEW * 4;
        assert!(seen.admit(later, later, key(MAX_SEEN)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            identity: [u8; KEY],
            millis: u64,
            run: Option<Incarnation>,
            rest: Vec<u8>,
        ) {
            let at = Duration::from_millis(millis);
            let content = run.map_or(Content::Signalling, Content::Stream);
            let prelude = Prelude { identity, at, content };
            let bytes = [&prelude.encode()[..], &rest].concat();
            prop_assert!(bytes.len() - rest.len() <= Prelude::MAX_LEN);
            prop_assert_eq!(Prelude::take(&bytes), Some((prelude, &rest[..])));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((prelude, rest)) = Prelude::take(&bytes) {
                prop_assert_eq!([&prelude.encode()[..], rest].concat(), bytes);
            }
        }

        /// No copy is taken while the offer itself would still count as fresh.
        #[test]
        fn no_copy_is_ever_taken(skew in -120_000i64..=120_000, steps in prop::collection::vec(1u64..100_000, 0..40)) {
            let mut seen = Seen::default();
            let at = Duration::from_millis(NOW.as_millis() as u64).saturating_add_signed_millis(skew);
            prop_assert!(seen.admit(NOW, at, key(0)));
            let mut now = NOW;
            for (number, step) in steps.into_iter().enumerate() {
                now += Duration::from_millis(step);
                seen.admit(now, now, key(number + 1));
                prop_assert!(!seen.admit(now, at, key(0)));
            }
        }
    }

    trait Signed {
        fn saturating_add_signed_millis(self, millis: i64) -> Self;
    }

    impl Signed for Duration {
        fn saturating_add_signed_millis(self, millis: i64) -> Self {
            let by = Duration::from_millis(millis.unsigned_abs());
            if millis < 0 {
                self.saturating_sub(by)
            } else {
                self + by
            }
        }
    }
}
