//! The browser backend: WebSocket, `RTCPeerConnection` and the page's event loop.
//!
//! JavaScript objects are not `Send`, which libp2p demands of everything, so they are wrapped in
//! `SendWrapper`; a page's wasm has one thread.

mod direct;
mod js;
mod listener;
mod platform;
mod rtc;
pub(crate) mod runtime;
pub(crate) mod stock;
pub(crate) mod transports;
mod value;
mod websocket;
mod websocket_address;

use crate::{Config, Error};

pub(crate) use self::rtc::Rtc;

/// Checks that this environment has what `config` asks for.
///
/// # Errors
/// [`ErrorKind::UnsupportedPlatform`](crate::ErrorKind::UnsupportedPlatform) in a worker, in
/// Node.js and wherever else something is missing;
/// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for STUN or TURN servers that
/// the browser refuses.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    platform::check()?;
    if config.direct {
        rtc::check(config)?;
    }
    Ok(())
}
