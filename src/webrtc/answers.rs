//! Decides which offers are answered when many come at once.
//!
//! Identities cost nothing, so a share for each peer would not keep strangers from taking every
//! place. An answer whose peer never goes on would hold its place until it times out. While all
//! places are taken, the oldest answer ends as soon as it has had its fair time, and the newest
//! offer gets its place.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::channel::oneshot;
use web_time::Instant;

/// How long an answer keeps its place in any case. Signalling through a relay, ICE and DTLS take
/// about eight round trips, so peers that are 200 ms apart finish in this time.
pub(crate) const FAIR_TIME: Duration = Duration::from_secs(2);

/// The places for answers. Clones share them.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Inner>);

struct Inner {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// The taken places, the oldest first.
    places: VecDeque<(u64, Instant, oneshot::Sender<()>)>,
}

impl Answers {
    /// Allows at most `most` answers at once.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Inner {
            most,
            taken: Mutex::default(),
        }))
    }

    /// Takes a place at `now`. If all places are taken, the oldest answer loses its place. Returns
    /// `None` if the oldest answer has not had its fair time either.
    pub(crate) fn place(&self, now: Instant) -> Option<Place> {
        let mut taken = self.lock();
        if taken.places.len() >= self.0.most {
            let (_, since, _) = taken.places.front()?;
            if now.saturating_duration_since(*since) < FAIR_TIME {
                return None;
            }
            // Dropping the sender tells the oldest answer that it has lost its place.
            taken.places.pop_front();
        }
        let id = taken.next;
        taken.next += 1;
        let (sender, lost) = oneshot::channel();
        taken.places.push_back((id, now, sender));
        Some(Place {
            answers: self.clone(),
            id,
            lost,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for an answer. Dropping it gives the place back.
pub(crate) struct Place {
    answers: Answers,
    id: u64,
    lost: oneshot::Receiver<()>,
}

impl Place {
    /// Resolves when another answer has taken this place.
    pub(crate) async fn lost(&mut self) {
        let _ = (&mut self.lost).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answers.lock().places.retain(|(id, ..)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_gives_way_once_it_has_had_its_time() {
        let answers = Answers::new(2);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut first = answers.place(at(0)).unwrap();
        let mut second = answers.place(at(1000)).unwrap();
        assert!(answers.place(at(1999)).is_none());
        let mut third = answers.place(at(2000)).unwrap();
        assert!(first.lost().now_or_never().is_some());
        assert!(second.lost().now_or_never().is_none());
        assert!(answers.place(at(2999)).is_none(), "the next has its time");
        // An answer that lost its place has no place to give back.
        drop(first);
        assert!(answers.place(at(2999)).is_none());
        drop(second);
        let _fourth = answers.place(at(2999)).unwrap();
        assert!(third.lost().now_or_never().is_none());
        let none = Answers::new(0);
        assert!(none.place(start).is_none());
    }
}
