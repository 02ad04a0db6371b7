//! The browser backend: WebSocket, `RTCPeerConnection` and the page's event loop.
//!
//! JavaScript objects are not `Send`, which libp2p demands of everything, so they are wrapped in
//! `SendWrapper`; a page's wasm has one thread.

mod direct;
pub(crate) mod heap;
mod js;
mod listener;
pub(crate) mod offer;
mod platform;
mod rtc;
pub(crate) mod runtime;
pub(crate) mod stock;
pub(crate) mod transports;
mod value;
mod websocket;
mod websocket_address;

use libp2p::{PeerId, identity::Keypair};
use tokio::sync::mpsc;

use crate::{
    Config, Error,
    core::{birthday::Guessing, dial::Policy},
    rtc::{BackendError, Config as RtcConfig},
};

pub(crate) use self::rtc::Rtc;

/// What the transports of one peer share.
pub(crate) struct Net {
    pub(crate) rtc: Rtc,
}

impl Net {
    /// Never fails: where there is no WebRTC, each connection does, so that relays still work.
    pub(crate) fn open(
        _: &Config,
        rtc_config: &RtcConfig,
        _: &Keypair,
        _: mpsc::Sender<(PeerId, Guessing)>,
        _: &Policy,
    ) -> Result<Self, BackendError> {
        let rtc = Rtc::new(rtc_config)?;
        Ok(Self { rtc })
    }
}

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
