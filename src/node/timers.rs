//! Deadlines in one queue with one timer. A deadline that has lost its reason is not removed: who
//! takes it checks whether it still means something.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use futures_timer::Delay;
use web_time::Instant;

pub(crate) struct Timers<T> {
    queue: BTreeMap<(Instant, u64), T>,
    next: u64,
    delay: Option<(Instant, Delay)>,
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            next: 0,
            delay: None,
        }
    }

    pub(crate) fn after(&mut self, pause: Duration, what: T) {
        self.queue.insert((Instant::now() + pause, self.next), what);
        self.next += 1;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        loop {
            let Some(entry) = self.queue.first_entry() else {
                self.delay = None;
                return Poll::Pending;
            };
            let due = entry.key().0;
            let now = Instant::now();
            if due <= now {
                return Poll::Ready(entry.remove());
            }
            match &mut self.delay {
                // One that wakes too early costs less than another in its place.
                Some((at, delay)) if *at <= due => match delay.poll_unpin(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.delay = None,
                },
                _ => self.delay = Some((due, Delay::new(due - now))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn gives_deadlines_in_their_order() {
        futures::executor::block_on(async {
            let mut timers = Timers::new();
            timers.after(Duration::from_millis(20), "late");
            timers.after(Duration::from_millis(1), "early");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "early");
            timers.after(Duration::ZERO, "now");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "now");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "late");
        });
    }
}
