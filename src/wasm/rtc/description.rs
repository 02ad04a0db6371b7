//! The descriptions that a page makes: when the browser is given one, and when the peer is.

use std::{cell::RefCell, rc::Rc, time::Duration};

use futures::{channel::oneshot, future::select};
use futures_timer::Delay;
use js_sys::Promise;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{RtcPeerConnection, RtcSdpType, RtcSessionDescriptionInit};

use super::connection::Shared;
use crate::{
    core::sdp::{self, Description},
    wasm::value,
    webrtc::backend::{BackendError, PeerEvent, SpareTurn},
};

/// How long an offer waits for the candidates of a browser that has gathered before. They come within some
/// 20 ms, unless the STUN servers have not answered yet. Without them, the peer's checks begin a
/// round trip through the relay later.
const CANDIDATES_PATIENCE: Duration = Duration::from_millis(80);

/// How the candidates come to the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidates {
    /// In the description, because nothing follows a sealed offer until its answer is there.
    Within,
    /// After an answer, from what the browser has gathered before.
    Gathered,
    /// After the description.
    Later,
}

/// Waits for the local description in `made`, reports it, and sets it. Candidates must follow the
/// report, or be in it, so the order matters. The peer is asked to leave TURN out as `spare` says.
pub(super) async fn describe(
    connection: RtcPeerConnection,
    shared: Rc<RefCell<Shared>>,
    made: Promise,
    spare: Option<SpareTurn>,
    candidates: Candidates,
) -> Result<(), BackendError> {
    let made: RtcSessionDescriptionInit =
        wait(made).await.map_err(BackendError::Io)?.unchecked_into();
    let mut sdp = made.get_sdp().unwrap_or_default();
    if candidates == Candidates::Within {
        let (tell, told) = oneshot::channel();
        {
            let mut shared = shared.borrow_mut();
            (shared.within, shared.reflexive) = (true, Some(tell));
        }
        set_local(&connection, &made).await?;
        select(told, Delay::new(CANDIDATES_PATIENCE)).await;
        shared.borrow_mut().within = false;
        if let Some(whole) = connection.local_description() {
            sdp = whole.sdp();
        }
    }
    if let Some(spare) = spare
        && let Ok(own) = Description::parse(&sdp)
    {
        sdp.push_str(&sdp::no_turn(&own.ufrag, spare == SpareTurn::Late));
    }
    shared.borrow_mut().emit(PeerEvent::Description(sdp));
    if candidates == Candidates::Gathered {
        // Chromium forgets what it has gathered when it is given an answer, but not at a provisional
        // one. A browser that knows none of these gathers anew.
        let first = description(RtcSdpType::Pranswer, &made.get_sdp().unwrap_or_default());
        let _ = set_local(&connection, &first).await;
    }
    match candidates {
        Candidates::Within => Ok(()),
        _ => set_local(&connection, &made).await,
    }
}

async fn set_local(
    connection: &RtcPeerConnection,
    made: &RtcSessionDescriptionInit,
) -> Result<(), BackendError> {
    let set = wait(connection.set_local_description(made)).await;
    set.map(drop).map_err(BackendError::Io)
}

pub(super) async fn wait(promise: Promise) -> Result<JsValue, String> {
    JsFuture::from(promise)
        .await
        .map_err(|error| value::describe_error(&error))
}

pub(super) fn description(kind: RtcSdpType, sdp: &str) -> RtcSessionDescriptionInit {
    let description = RtcSessionDescriptionInit::new(kind);
    description.set_sdp(sdp);
    description
}
