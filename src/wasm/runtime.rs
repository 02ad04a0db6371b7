//! Tasks on the page's event loop.

use std::{future::Future, pin::Pin};

/// Runs `future` to its end as a task of the page's event loop.
///
/// It first runs after the current JavaScript task has yielded, never inside this call.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    // There is one type of task for all futures. Otherwise each type would add code for its own.
    let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
    wasm_bindgen_futures::spawn_local(future);
}
