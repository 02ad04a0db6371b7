//! Sealed offers and sealed streams, which need no circuit: the bytes in front of the content, and
//! the recognition of copies.

use std::collections::HashSet;
use std::time::Duration;

/// The protocol that carries a sealed offer. On the way to a relay it follows a CONNECT message. On
/// the way from the relay to the peer it stands alone.
pub(crate) const OFFER_PROTOCOL: &str = "/throughline/offer/1";

/// How far the clocks of two peers may differ. If they differ more, the offer waits for the
/// circuit, for which clocks do not matter.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(120);

/// How many offers one relay may bring at once. This is how many peers may connect at the same
/// moment without a circuit. A peer that uses up the pace of a relay makes the others that come
/// through this relay wait for circuits, as long as it goes on.
pub(crate) const AT_ONCE: u32 = 128;
/// How many offers one relay may bring per second after that. Opening an offer takes a tenth of a
/// millisecond, so a relay can use at most 1 % of a core.
pub(crate) const PER_SECOND: u32 = 64;

/// How long an offer counts as fresh, from the fastest clock to the slowest. An offer is remembered
/// for at least this long, and for at most twice as long.
const FRESH: Duration = MAX_SKEW.saturating_mul(2);

/// How many offers are remembered at most: what 16 relays can bring at their full pace, which takes
/// 9 MB. A peer holds reservations on at most 16 relays. With the default of two relays, at most
/// 1.1 MB is used.
const MAX_SEEN: usize = 16 * (2 * FRESH.as_secs() * PER_SECOND as u64 + AT_ONCE as u64) as usize;

/// The length of an X25519 or Ed25519 public key in bytes.
pub(crate) const KEY: usize = 32;

/// The length of an Ed25519 signature in bytes.
pub(crate) const SIGNATURE: usize = 64;

/// A random name for one run of a peer's process. A peer forgets which offers it has seen when its
/// process ends, so an offer for one run must be void for the next.
pub(crate) type Incarnation = [u8; 8];

/// The kind of content that follows the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Signalling of ICE.
    Signalling,
    /// A resumable stream with the application's bytes.
    Stream,
}

/// The first bytes of the first sealed message: the offerer, the time, the incarnation of the peer,
/// and the kind of content. The offerer's signature of the [`statement`] follows, and then the
/// content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prelude {
    /// The Ed25519 key that is the offerer's peer id.
    pub(crate) identity: [u8; KEY],
    /// The time since the Unix epoch by the offerer's clock.
    pub(crate) at: Duration,
    pub(crate) incarnation: Incarnation,
    pub(crate) content: Content,
}

impl Prelude {
    pub(crate) const LEN: usize = KEY + 8 + size_of::<Incarnation>() + 1;

    /// Encodes the key, the time in milliseconds (64 bits, big-endian), the incarnation, and the
    /// content (0 for signalling, 1 for a stream).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend(self.identity);
        let millis = u64::try_from(self.at.as_millis()).unwrap_or(u64::MAX);
        bytes.extend(millis.to_be_bytes());
        bytes.extend(self.incarnation);
        bytes.push(match self.content {
            Content::Signalling => 0,
            Content::Stream => 1,
        });
        bytes
    }

    /// Reads a prelude from the front of `bytes`. Returns `None` if there are too few bytes, or if
    /// the kind of content is unknown.
    pub(crate) fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (identity, rest) = bytes.split_first_chunk()?;
        let (millis, rest) = rest.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (content, rest) = match rest.split_first()? {
            (0, rest) => (Content::Signalling, rest),
            (1, rest) => (Content::Stream, rest),
            _ => return None,
        };
        let prelude = Self {
            identity: *identity,
            at: Duration::from_millis(u64::from_be_bytes(*millis)),
            incarnation: *incarnation,
            content,
        };
        Some((prelude, rest))
    }
}

/// Returns the bytes that an offerer signs. They state that the offerer began the handshake whose
/// hash was `handshake` before its first message, with the key `ephemeral`, and sent `said` in that
/// message. The hash covers the protocol and the peer's key.
///
/// Noise authenticates the first message of IK by a secret that both peers can compute (Noise
/// Protocol Framework, section 7.7, source property 1). So whoever holds the peer's key could write
/// that message in anybody's name. Only the offerer can sign.
pub(crate) fn statement(
    handshake: &[u8],
    ephemeral: &[u8],
    prelude: &Prelude,
    said: &[u8],
) -> Vec<u8> {
    let protocol = OFFER_PROTOCOL.as_bytes();
    [protocol, handshake, ephemeral, &prelude.encode(), said].concat()
}

/// One moment by two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The time since some moment of this run, by a clock that never jumps.
    pub(crate) uptime: Duration,
    /// The time since the Unix epoch, by the wall clock, which may be set at any time.
    pub(crate) wall: Duration,
}

/// The offers of the last minutes. Whoever carried the first message of a handshake can send it
/// again. This memory makes the copy useless.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// There are two spans of time, so that the older one can be dropped as a whole.
    young: Span,
    old: Span,
    /// When `young` was begun.
    since: Duration,
    /// No forgotten offer was made later than this. An offer that is not later is refused, so a
    /// copy never counts, whatever jumps the wall clock makes.
    forgotten: Duration,
}

#[derive(Debug, Default)]
struct Span {
    /// The first bytes of ephemeral keys, which are as good as random. A new offer has the same
    /// bytes as a remembered one in one of 2^47 cases, and then it waits for its circuit.
    keys: HashSet<[u8; 8]>,
    /// When the latest of these offers was made.
    latest: Duration,
}

impl Seen {
    /// Whether an offer with the ephemeral key `key`, made `at`, counts at `now`. An offer that
    /// counts is remembered.
    pub(crate) fn admit(&mut self, now: Moment, at: Duration, key: [u8; KEY]) -> bool {
        let elapsed = now.uptime.saturating_sub(self.since);
        if elapsed >= FRESH {
            self.begin_span();
            self.since = now.uptime;
        }
        if elapsed >= FRESH * 2 {
            self.begin_span();
        }
        let fresh = now.wall.abs_diff(at) <= MAX_SKEW && at > self.forgotten;
        let room = self.young.keys.len() + self.old.keys.len() < MAX_SEEN;
        let Some(key) = key.first_chunk() else {
            return false;
        };
        let counts = fresh && room && !self.old.keys.contains(key) && self.young.keys.insert(*key);
        if counts {
            self.young.latest = self.young.latest.max(at);
        }
        counts
    }

    fn begin_span(&mut self) {
        let young = std::mem::take(&mut self.young);
        let gone = std::mem::replace(&mut self.old, young);
        self.forgotten = self.forgotten.max(gone.latest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::pace::Pace;

    const WALL: Duration = Duration::from_secs(1_800_000_000);

    fn key(number: usize) -> [u8; KEY] {
        let mut key = [0; KEY];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    /// A moment this long after the start, by both clocks.
    fn after(passed: Duration) -> Moment {
        Moment {
            uptime: passed,
            wall: WALL + passed,
        }
    }

    fn start() -> Moment {
        after(Duration::ZERO)
    }

    #[test]
    fn an_offer_counts_once() {
        let mut seen = Seen::default();
        assert!(seen.admit(start(), WALL, key(1)));
        assert!(!seen.admit(start(), WALL, key(1)));
        assert!(seen.admit(start(), WALL, key(2)));
    }

    #[test]
    fn clocks_may_differ_by_the_documented_time() {
        let mut seen = Seen::default();
        let more = MAX_SKEW + Duration::from_millis(1);
        assert!(seen.admit(start(), WALL - MAX_SKEW, key(1)));
        assert!(seen.admit(start(), WALL + MAX_SKEW, key(2)));
        assert!(!seen.admit(start(), WALL - more, key(3)));
        assert!(!seen.admit(start(), WALL + more, key(4)));
        assert!(!seen.admit(start(), Duration::ZERO, key(5)));
        assert!(!seen.admit(start(), Duration::MAX, key(6)));
    }

    #[test]
    fn a_copy_does_not_count_when_the_wall_clock_is_set_forth_and_back() {
        let mut seen = Seen::default();
        assert!(seen.admit(start(), WALL, key(1)));
        let hour = Duration::from_secs(3600);
        for (passed, wall) in [(FRESH, WALL + hour), (FRESH * 3, WALL + hour), (hour, WALL)] {
            let now = Moment {
                uptime: passed,
                wall,
            };
            seen.admit(now, wall, key(2));
            assert!(!seen.admit(now, WALL, key(1)));
        }
    }

    #[test]
    fn memory_is_bounded_and_becomes_free_again() {
        let mut seen = Seen::default();
        for number in 0..MAX_SEEN {
            assert!(seen.admit(start(), WALL, key(number)));
        }
        assert!(!seen.admit(start(), WALL, key(MAX_SEEN)));
        let later = after(FRESH * 2);
        assert!(seen.admit(later, later.wall, key(MAX_SEEN)));
    }

    /// The relays that hold reservations cannot fill the memory, whatever they bring.
    #[test]
    fn sixteen_relays_at_full_pace_fit_the_memory() {
        let (mut seen, mut pace) = (Seen::default(), Pace::new(PER_SECOND, AT_ONCE));
        let (mut number, mut most) = (0, 0);
        for millis in (0..3 * FRESH.as_millis() as u64).step_by(10) {
            let now = after(Duration::from_millis(millis));
            while pace.take(now.uptime, 1, Duration::ZERO).is_some() {
                number += 1;
                assert!(seen.admit(now, now.wall, key(number)));
            }
            most = most.max(seen.young.keys.len() + seen.old.keys.len());
        }
        assert!(most * 16 <= MAX_SEEN, "{most}");
    }

    #[test]
    fn every_part_changes_the_statement() {
        let prelude = Prelude {
            identity: [1; KEY],
            at: WALL,
            incarnation: [2; 8],
            content: Content::Stream,
        };
        let (hash, ephemeral) = ([3; 32], [4; KEY]);
        let one = statement(&hash, &ephemeral, &prelude, b"order");
        let mut preludes = [prelude; 4];
        preludes[0].identity[0] ^= 1;
        preludes[1].at += Duration::from_millis(1);
        preludes[2].incarnation[7] ^= 1;
        preludes[3].content = Content::Signalling;
        let others = preludes.map(|other| statement(&hash, &ephemeral, &other, b"order"));
        assert!(!others.contains(&one));
        assert_ne!(one, statement(&[5; 32], &ephemeral, &prelude, b"order"));
        assert_ne!(one, statement(&hash, &[5; KEY], &prelude, b"order"));
        assert_ne!(one, statement(&hash, &ephemeral, &prelude, b"orders"));
    }

    proptest! {
        #[test]
        fn an_encoded_prelude_is_decoded(
            identity: [u8; KEY],
            millis: u64,
            incarnation: Incarnation,
            stream: bool,
            rest: Vec<u8>,
        ) {
            let at = Duration::from_millis(millis);
            let content = if stream { Content::Stream } else { Content::Signalling };
            let prelude = Prelude { identity, at, incarnation, content };
            let bytes = [&prelude.encode()[..], &rest].concat();
            prop_assert_eq!(bytes.len() - rest.len(), Prelude::LEN);
            prop_assert_eq!(Prelude::take(&bytes), Some((prelude, &rest[..])));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((prelude, rest)) = Prelude::take(&bytes) {
                prop_assert_eq!([&prelude.encode()[..], rest].concat(), bytes);
            }
        }

        /// No copy is ever accepted, however the wall clock jumps and whatever else arrives.
        #[test]
        fn no_copy_ever_counts(
            skew in -120_000i64..=120_000,
            steps in prop::collection::vec((0u64..300_000, -2_000_000i64..2_000_000, any::<bool>()), 0..40),
        ) {
            let mut seen = Seen::default();
            let at = shifted(WALL, skew);
            prop_assert!(seen.admit(start(), at, key(0)));
            let mut now = start();
            for (number, (step, jump, back)) in steps.into_iter().enumerate() {
                now.uptime += Duration::from_millis(step);
                // The clock is set to any time, or to the time at which the copy would be the
                // freshest.
                now.wall = if back { at } else { shifted(now.wall, jump) };
                seen.admit(now, now.wall, key(number + 1));
                prop_assert!(!seen.admit(now, at, key(0)));
            }
        }

        /// A peer with a correct clock is never refused because of offers that were forgotten.
        #[test]
        fn a_steady_clock_refuses_no_new_offer(
            steps in prop::collection::vec((1u64..300_000, -120_000i64..=120_000), 0..40),
        ) {
            let (mut seen, mut passed) = (Seen::default(), Duration::ZERO);
            for (number, (step, skew)) in steps.into_iter().enumerate() {
                passed += Duration::from_millis(step);
                let now = after(passed);
                prop_assert!(seen.admit(now, shifted(now.wall, skew), key(number)));
            }
        }
    }

    fn shifted(time: Duration, millis: i64) -> Duration {
        let by = Duration::from_millis(millis.unsigned_abs());
        if millis < 0 {
            time.saturating_sub(by)
        } else {
            time + by
        }
    }
}
