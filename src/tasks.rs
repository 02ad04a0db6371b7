//! Two tasks on one stream.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use futures::task::{ArcWake, AtomicWaker, waker};

/// Who reads and who writes a stream, which may be two tasks.
///
/// What is below keeps one waker for each thing it is asked for, and either task may be the one
/// that asks: writing listens for the peer's flags, closing waits for a lazy negotiation's answer.
/// So each asks in the name of both.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Tasks {
    /// The waker to poll with as the reading task.
    pub(crate) fn reader(self: &Arc<Self>, cx: &Context<'_>) -> Waker {
        self.reader.register(cx.waker());
        waker(self.clone())
    }

    /// The waker to poll with as the writing task.
    pub(crate) fn writer(self: &Arc<Self>, cx: &Context<'_>) -> Waker {
        self.writer.register(cx.waker());
        waker(self.clone())
    }

    /// Wakes both.
    pub(crate) fn wake_both(&self) {
        self.reader.wake();
        self.writer.wake();
    }
}

impl ArcWake for Tasks {
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
    fn an_event_met_by_one_task_wakes_the_other() {
        let (reader, writer) = (
            Arc::new(Count(AtomicUsize::new(0))),
            Arc::new(Count(AtomicUsize::new(0))),
        );
        let tasks = Arc::<Tasks>::default();
        let _replaced = tasks.reader(&Context::from_waker(&waker(reader.clone())));
        let kept = tasks.writer(&Context::from_waker(&waker(writer.clone())));
        kept.wake();
        assert_eq!(reader.0.load(Ordering::Relaxed), 1);
        assert_eq!(writer.0.load(Ordering::Relaxed), 1);
    }
}
