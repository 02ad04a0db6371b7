//! DOM event listeners that end with their owner.

use wasm_bindgen::{JsCast, closure::Closure};
use web_sys::{Event, EventTarget};

/// A listener on an event target. Dropping it removes the listener.
///
/// So nothing can call into the wasm instance for an owner that no longer exists.
pub(crate) struct Listener {
    target: EventTarget,
    event: &'static str,
    callback: Closure<dyn FnMut(Event)>,
}

impl Listener {
    /// Calls `on_event` at every `event` of `target`.
    ///
    /// `E` is the interface of the events that the browser dispatches under that name.
    pub(crate) fn new<E: JsCast>(
        target: &EventTarget,
        event: &'static str,
        mut on_event: impl FnMut(E) + 'static,
    ) -> Self {
        let callback = Closure::new(move |event: Event| {
            // Unchecked, because an event of another window is an instance of that window's class. The
            // browser dispatches what the name says.
            on_event(event.unchecked_into());
        });
        // This cannot fail, because the method throws for no input.
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
