//! Checks of what this JavaScript environment has, and messages for what is missing.

use js_sys::global;
use wasm_bindgen::JsValue;

use super::value;
use crate::{Error, ErrorKind};

/// Returns an error that says why there is no WebRTC here, and what to change.
pub(crate) fn without_webrtc() -> Error {
    let global = JsValue::from(global());
    let why = if value::get(&global, "WorkerGlobalScope").is_some() {
        "browsers have no RTCPeerConnection in workers: attach by throughline/bridge, \
         or set `direct: false` to use relays only"
    } else if value::get(&global, "document").is_none() {
        return without_browser();
    } else if !value::is_true(&global, "isSecureContext") {
        "this browser has no RTCPeerConnection in an insecure context: serve the page over https \
         or from localhost"
    } else {
        "this browser has no RTCPeerConnection, or it is switched off: allow WebRTC, or set \
         `direct: false` to use relays only"
    };
    Error::new(ErrorKind::UnsupportedPlatform, why)
}

fn without_browser() -> Error {
    Error::new(
        ErrorKind::UnsupportedPlatform,
        "this is neither a page nor a worker: outside of browsers (Node.js, Deno, Bun) use the \
         native program or crate",
    )
}

/// Checks for everything that even a connection through a relay needs.
///
/// # Errors
/// Fails with [`ErrorKind::UnsupportedPlatform`]. The error names what is missing.
pub(crate) fn check() -> Result<(), Error> {
    let global = JsValue::from(global());
    let has = |name| value::get(&global, name).is_some();
    if !has("document") && !has("WorkerGlobalScope") {
        return Err(without_browser());
    }
    let crypto = value::get(&global, "crypto");
    let missing = if !has("WebSocket") {
        "WebSocket"
    } else if crypto.is_none_or(|crypto| value::get(&crypto, "getRandomValues").is_none()) {
        "crypto.getRandomValues"
    } else {
        return Ok(());
    };
    let message = format!("there is no {missing} here; use a current browser");
    Err(Error::new(ErrorKind::UnsupportedPlatform, message))
}
