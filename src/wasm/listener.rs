//! DOM event listeners that end with their owner.

use wasm_bindgen::{JsCast, closure::Closure};
use web_sys::{Event, EventTarget};

/// A listener on an event target, removed when this is dropped.
///
/// Nothing can call into the wasm instance on behalf of an owner that no longer exists.
pub(crate) struct Listener {
    target: EventTarget,
    event: &'static str,
    callback: Closure<dyn FnMut(Event)>,
}

impl Listener {
    /// Calls `on_event` at every `event` of `target`.
    ///
    /// `E` is the event's interface. An event of another interface is ignored.
    pub(crate) fn new<E: JsCast>(
        target: &EventTarget,
        event: &'static str,
        mut on_event: impl FnMut(E) + 'static,
    ) -> Self {
        let callback = Closure::new(move |event: Event| {
            if let Ok(event) = event.dyn_into() {
                on_event(event);
            }
        });
        // Cannot fail: it throws for no input.
        let _ = target.add_event_listener_with_callback(event, callback.as_ref().unchecked_ref());
        Self {
            target: target.clone(),
            event,
            callback,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let callback = self.callback.as_ref().unchecked_ref();
        let _ = self
            .target
            .remove_event_listener_with_callback(self.event, callback);
    }
}
