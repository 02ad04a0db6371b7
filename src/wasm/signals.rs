//! Listens for what the browser tells about the page's network and about the page itself.

use std::task::{Context, Poll};

use futures::{StreamExt as _, channel::mpsc};
use send_wrapper::SendWrapper;
use wasm_bindgen::JsCast;
use web_sys::{Event, EventTarget};

use super::{Net, listener::Listener};
use crate::core::liveness::Hint;

/// After these events the network may be another one, and timers may have stood still: the page was
/// offline, in the background, or in the back-forward cache.
const EVENTS: [&str; 4] = ["online", "offline", "visibilitychange", "pageshow"];

/// Listens for these events as long as it exists.
pub(crate) struct Signals {
    _listeners: SendWrapper<Vec<Listener>>,
    changed: mpsc::Receiver<()>,
}

impl Signals {
    pub(crate) fn new(_: &Net) -> Self {
        // The channel has room for one signal from each listener. Further signals would say nothing
        // new.
        let (sender, changed) = mpsc::channel(0);
        let target: Option<EventTarget> = js_sys::global().dyn_into().ok();
        let listen = |event| {
            let mut sender = sender.clone();
            let on_event = move |_: Event| _ = sender.try_send(());
            Some(Listener::new(target.as_ref()?, event, on_event))
        };
        Self {
            _listeners: SendWrapper::new(EVENTS.into_iter().filter_map(listen).collect()),
            changed,
        }
    }

    /// Resolves when paths may have changed.
    pub(crate) fn poll_hint(&mut self, cx: &mut Context<'_>) -> Poll<Hint> {
        match self.changed.poll_next_unpin(cx) {
            Poll::Ready(Some(())) => Poll::Ready(Hint::Network),
            _ => Poll::Pending,
        }
    }
}
