//! The public API for JavaScript, with one class for each handle.
//!
//! The TypeScript of the package gives these classes their final shape (events, streams,
//! `AbortSignal` defaults), so their names start with `Raw`. Every method takes `&self` and returns
//! at once with a value or a promise. No borrow lasts until a promise settles, so calls may
//! overlap.

mod abort;
mod connection;
mod connector;
mod convert;
mod room;
mod stream;

#[cfg(not(panic = "immediate-abort"))]
use wasm_bindgen::prelude::wasm_bindgen;

/// Logs the message of a panic, which ends this wasm instance. The npm build has no messages
/// (wasm-pack.toml).
#[cfg(not(panic = "immediate-abort"))]
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| {
        let version = env!("CARGO_PKG_VERSION");
        let message = format!("throughline {version} has a bug and stops; please report: {panic}");
        web_sys::console::error_1(&message.into());
    }));
}
