//! The queue of a behaviour or a connection handler for libp2p, with the waker of the task that
//! polls it.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

/// A queue that wakes its reader.
pub(crate) struct Queue<T> {
    items: VecDeque<T>,
    waker: Option<Waker>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            waker: None,
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&mut self, item: T) {
        self.items.push_back(item);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Returns the oldest item.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(item) = self.items.pop_front() {
            return Poll::Ready(item);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}
