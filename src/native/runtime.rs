//! The executor of the native target: tokio. A task carries the spans that it was spawned in.
//!
//! `wasm/runtime.rs` has the same signatures, so the event loop needs no code for either target.

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Runs `future` to its end in the background.
///
/// The caller must be within a Tokio runtime. Every entry point of the native target is.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future.in_current_span());
}

/// Runs `future` as [`spawn`] does, and returns a handle to its task.
pub(crate) fn task<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(future.in_current_span())
}
