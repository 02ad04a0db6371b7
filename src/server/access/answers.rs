//! What the hook has answered, and how long that counts.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::{What, meter::Limits};
use crate::{
    core::{access::Denial, quota::Holder},
    server::pool::{Place, Pool},
};

/// The hook's answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Allow {
        /// Whose quota is used. Without a name, it is the peer's own.
        name: Option<String>,
        limits: Limits,
        /// Whether the peer gets credentials for TURN, too.
        turn: bool,
    },
    Deny(Denial),
}

/// What the hook is asked about.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) peer: PeerId,
    pub(crate) address: Option<IpAddr>,
    pub(crate) token: Option<Arc<str>>,
    pub(crate) what: What,
    /// Whether it asks for TURN credentials, too.
    pub(crate) turn: bool,
}

/// A question without its address, and with digests of the token instead of the token, which is
/// long and a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(PeerId, What, bool, [u64; 2]);

/// An answer that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It counts.
    Fresh(Answer),
    /// It counts only if the hook cannot be asked.
    Old(Answer),
}

impl Known {
    pub(crate) fn answer(self) -> Answer {
        match self {
            Self::Fresh(answer) | Self::Old(answer) => answer,
        }
    }
}

struct Entry {
    answer: Answer,
    /// The number of the answer.
    number: u64,
    fresh_until: Instant,
    until: Instant,
    _place: Place,
}

/// The known answers. Each has a place in a pool, so that one address holds only its share.
pub(crate) struct Answers {
    places: Pool,
    /// How long an answer counts, and how long it counts if the hook cannot be asked.
    fresh: Duration,
    old: Duration,
    known: HashMap<Key, Entry>,
    /// The keys in the order of their answers.
    order: BTreeMap<u64, Key>,
    next: u64,
    digests: [RandomState; 2],
}

impl Answers {
    pub(crate) fn new(places: Pool, fresh: Duration, old: Duration) -> Self {
        Self {
            places,
            fresh,
            old,
            known: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            digests: Default::default(),
        }
    }

    fn key(&self, question: &Question) -> Key {
        let token = question.token.as_deref();
        let digests = self.digests.each_ref();
        let digests = digests.map(|digest| digest.hash_one(token));
        Key(question.peer, question.what, question.turn, digests)
    }

    /// Returns what is known of the answer to a question.
    pub(crate) fn known(&self, question: &Question, now: Instant) -> Option<Known> {
        let entry = self.known.get(&self.key(question))?;
        let answer = entry.answer.clone();
        match now {
            _ if now < entry.fresh_until => Some(Known::Fresh(answer)),
            _ if now < entry.until => Some(Known::Old(answer)),
            _ => None,
        }
    }

    /// Keeps an answer. The hook may say that it counts for less time than usual. If there is no
    /// place, the oldest answer goes. If the address holds its share, the answer is not kept.
    pub(crate) fn learn(
        &mut self,
        question: &Question,
        answer: Answer,
        lasts: Option<Duration>,
        now: Instant,
    ) {
        let key = self.key(question);
        self.forget(&key);
        let holder = Holder {
            ip: question.address,
            peer: Some(question.peer),
        };
        if self.places.is_full()
            && let Some(oldest) = self.order.first_entry().map(|entry| *entry.get())
        {
            self.forget(&oldest);
        }
        let Ok(place) = self.places.try_take(holder) else {
            return;
        };
        let lasts = lasts.unwrap_or(Duration::MAX);
        let entry = Entry {
            answer,
            number: self.next,
            fresh_until: now + self.fresh.min(lasts),
            until: now + self.old.min(lasts),
            _place: place,
        };
        self.order.insert(self.next, key);
        self.next += 1;
        self.known.insert(key, entry);
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.known.remove(key) {
            self.order.remove(&entry.number);
        }
    }

    /// Forgets the answers that count no more.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let order = &mut self.order;
        self.known.retain(|_, entry| {
            let counts = now < entry.until;
            if !counts {
                order.remove(&entry.number);
            }
            counts
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::quota::Quota, native::behaviours::pool::Debug};

    const SECOND: Duration = Duration::from_secs(1);

    fn answers(places: Quota) -> Answers {
        let places = Pool::new("test", places, &Debug);
        Answers::new(places, 10 * SECOND, 60 * SECOND)
    }

    fn question(address: &str) -> Question {
        Question {
            peer: PeerId::random(),
            address: Some(address.parse().unwrap()),
            token: None,
            what: What::Reservation,
            turn: false,
        }
    }

    fn allow() -> Answer {
        Answer::Allow {
            name: None,
            limits: Limits::default(),
            turn: true,
        }
    }

    #[test]
    fn an_answer_is_fresh_and_old_and_gone() {
        let mut answers = answers(Quota::shared(10, 100));
        let (asked, now) = (question("192.0.2.1"), Instant::now());
        assert_eq!(answers.known(&asked, now), None);
        answers.learn(&asked, allow(), None, now);
        let at = |answers: &Answers, seconds| answers.known(&asked, now + seconds * SECOND);
        assert_eq!(at(&answers, 9), Some(Known::Fresh(allow())));
        assert_eq!(at(&answers, 10), Some(Known::Old(allow())));
        assert_eq!(at(&answers, 60), None);
        let denied = Answer::Deny(Denial::Access);
        answers.learn(&asked, denied.clone(), Some(5 * SECOND), now);
        assert_eq!(at(&answers, 4), Some(Known::Fresh(denied)));
        assert_eq!(at(&answers, 5), None, "the hook has said so");
        answers.sweep(now + 5 * SECOND);
        assert!(answers.known.is_empty() && answers.order.is_empty());
        assert_eq!(answers.places.taken(), 0);
    }

    #[test]
    fn another_token_or_another_thing_is_another_question() {
        let mut answers = answers(Quota::shared(10, 100));
        let (asked, now) = (question("192.0.2.1"), Instant::now());
        answers.learn(&asked, allow(), None, now);
        let mut other = asked.clone();
        other.token = Some("token".into());
        assert_eq!(answers.known(&other, now), None);
        other = asked.clone();
        other.what = What::Turn;
        assert_eq!(answers.known(&other, now), None);
        other = asked.clone();
        other.turn = true;
        assert_eq!(answers.known(&other, now), None);
        other = asked.clone();
        other.address = None;
        assert!(answers.known(&other, now).is_some(), "it has moved");
    }

    #[test]
    fn the_oldest_goes_first_and_nobody_has_more_than_a_share() {
        let mut answers = answers(Quota::shared(10, 80));
        let now = Instant::now();
        let crowd: Vec<_> = (0..9).map(|_| question("192.0.2.1")).collect();
        for asked in &crowd {
            answers.learn(asked, allow(), None, now);
        }
        assert!(answers.known(&crowd[7], now).is_some());
        assert_eq!(answers.known(&crowd[8], now), None, "the share");
        let others: Vec<_> = (0..3).map(|_| question("198.51.100.1")).collect();
        for asked in &others {
            answers.learn(asked, allow(), None, now);
        }
        assert!(
            others
                .iter()
                .all(|asked| answers.known(asked, now).is_some())
        );
        assert_eq!(answers.known(&crowd[0], now), None, "the oldest");
        assert_eq!(answers.order.len(), 10);
    }
}
