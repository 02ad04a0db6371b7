//! The browser backend: WebSocket, `RTCPeerConnection` and the page's event loop.
//!
//! JavaScript objects are not `Send`, but libp2p demands `Send` everywhere. They are wrapped in
//! `SendWrapper`, because the wasm of a page has one thread.

pub(crate) mod behaviours;
mod direct;
#[cfg(feature = "js")]
mod js;
mod listener;
mod platform;
mod rtc;
pub(crate) mod runtime;
mod signals;
mod site;
pub(crate) mod trace;
pub(crate) mod transports;
mod value;
mod websocket;

use std::{
    future::Ready,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{Multiaddr, PeerId, identity::Keypair};

use crate::{
    Config, Error,
    core::{dial::Policy, plan::Late},
    webrtc::{BackendError, Config as RtcConfig},
};

pub(crate) use self::{rtc::Rtc, signals::Signals};

/// Whether this peer is in a page. Its user may close it at any time. No new data channel opens then, but
/// what is written to a WebSocket is still sent.
pub(crate) const IS_PAGE: bool = true;

/// The parts that the transports of one peer share.
pub(crate) struct Net {
    pub(crate) rtc: Rtc,
    pub(crate) sites: site::Asker,
    pub(crate) lan: Lan,
}

/// The local network, which a page cannot ask.
pub(crate) struct Lan;

impl Lan {
    pub(crate) fn is_on(&self) -> bool {
        false
    }

    pub(crate) fn show(&self, _: &[Multiaddr]) {}

    pub(crate) fn find(&self, _: PeerId) -> Option<Ready<Vec<Multiaddr>>> {
        None
    }
}

impl Net {
    /// Never fails. Without WebRTC, each connection fails on its own, so relays still work.
    pub(crate) fn open(
        config: &Config,
        rtc_config: &RtcConfig,
        _: &Keypair,
        policy: &Policy,
    ) -> Result<Self, BackendError> {
        let rtc = Rtc::new(rtc_config)?;
        if config.direct {
            rtc.prepare();
        }
        let sites = site::Asker(Arc::new(policy.clone()));
        Ok(Self {
            rtc,
            sites,
            lan: Lan,
        })
    }

    /// Never ready, because in a page no strategy joins ICE by itself.
    pub(crate) fn poll_late(&mut self, _: &mut Context<'_>) -> Poll<(PeerId, Late)> {
        Poll::Pending
    }

    /// Always `None`.
    pub(crate) fn take_late(&mut self) -> Option<(PeerId, Late)> {
        None
    }

    /// The browser learns of another network by itself.
    pub(crate) fn network_changed(&self) {}
}

/// Checks that this environment has everything that `config` needs.
///
/// # Errors
/// Fails with [`ErrorKind::UnsupportedPlatform`](crate::ErrorKind::UnsupportedPlatform) in a
/// worker without a bridge, in Node.js and wherever else something is missing, and with
/// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for STUN or TURN servers that the
/// browser refuses.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    platform::check()?;
    if config.direct {
        rtc::check(config)?;
    }
    Ok(())
}
