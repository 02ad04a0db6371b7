//! The executor of the native target: tokio.
//!
//! `wasm/runtime.rs` has the same signatures, so that the event loop names neither.

/// Runs `future` to its end in the background.
///
/// Must be called within a tokio runtime, which every entry point of the native target is.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}
