//! The wakers of two tasks on one stream.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use futures::task::{ArcWake, AtomicWaker, waker};

/// The wakers of the task that reads a stream and of the task that writes it.
///
/// The layer below keeps one waker for each operation, and either task may be the one that calls
/// it. For example, writing also reads the peer's flags, and closing waits for the answer of a lazy
/// negotiation. So each task polls with a waker that wakes both.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wakers {
    /// Returns the waker for a poll by the reading task.
    pub(crate) fn reader(self: &Arc<Self>, cx: &Context<'_>) -> Waker {
        self.reader.register(cx.waker());
        waker(self.clone())
    }

    /// Returns the waker for a poll by the writing task.
    pub(crate) fn writer(self: &Arc<Self>, cx: &Context<'_>) -> Waker {
        self.writer.register(cx.waker());
        waker(self.clone())
    }

    pub(crate) fn wake_both(&self) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl ArcWake for Wakers {
    fn wake_by_ref(this: &Arc<Self>) {
        this.wake_both();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Count(AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_event_of_one_task_wakes_both() {
        let (reader, writer) = (
            Arc::new(Count(AtomicUsize::new(0))),
            Arc::new(Count(AtomicUsize::new(0))),
        );
        let wakers = Arc::<Wakers>::default();
        let _replaced = wakers.reader(&Context::from_waker(&waker(reader.clone())));
        let kept = wakers.writer(&Context::from_waker(&waker(writer.clone())));
        kept.wake();
        assert_eq!(reader.0.load(Ordering::Relaxed), 1);
        assert_eq!(writer.0.load(Ordering::Relaxed), 1);
    }
}
