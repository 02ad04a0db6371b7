//! A connection that is made before it is needed, so that its addresses are known by then.
//!
//! The browser gathers candidates for it at once (the candidate pool, RFC 8829, section 3.5.4). It
//! asks STUN servers only, because an allocation of TURN would be held for as long as nobody uses it.

use std::{sync::Arc, time::Duration};

use futures::{channel::oneshot, future::select};
use futures_timer::Delay;
use js_sys::Reflect;
use send_wrapper::SendWrapper;
use web_sys::RtcPeerConnection;

use super::{Rtc, Servers, configuration, make};
use crate::wasm::{runtime, value};

/// How long after a connection was made the next spare one is. Until then, the page is busy with
/// the first.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

/// How long a spare connection is kept. The browser asks its STUN servers every 10 s, so that NATs
/// keep its port, and a page that nobody uses should become quiet.
const LIFE: Duration = Duration::from_secs(600);

/// The setting for how many transports the browser gathers candidates beforehand.
const POOL: &str = "iceCandidatePoolSize";

/// A connection that was not used yet. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Spare {
    connection: SendWrapper<RtcPeerConnection>,
    /// The version of the STUN servers that it asks.
    pub(super) version: u64,
    used: bool,
    /// Dropping it ends the wait for the end of the life of the spare connection.
    held: Option<oneshot::Sender<()>>,
}

impl Spare {
    /// Returns `None` where the browser gathers nothing beforehand, as Firefox does.
    fn new(servers: &Servers) -> Option<Self> {
        let wanted = configuration(servers.chosen(false));
        Reflect::set(&wanted, &POOL.into(), &1.into()).ok()?;
        let connection = make(&wanted).ok()?;
        let pools = value::get(&connection, "getConfiguration").is_some()
            && value::get(&connection.get_configuration(), POOL).is_some_and(|size| size == 1);
        let spare = Self {
            connection: SendWrapper::new(connection),
            version: servers.version,
            used: false,
            held: None,
        };
        pools.then_some(spare)
    }

    pub(super) fn take(mut self) -> RtcPeerConnection {
        self.used = true;
        RtcPeerConnection::clone(&self.connection)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if !self.used {
            self.connection.close();
        }
    }
}

/// Makes the spare connection of `rtc` after `pause`, or keeps the one that it has for longer.
pub(super) fn prepare(rtc: &Rtc, pause: Duration) {
    let call = {
        let mut servers = rtc.servers();
        if servers.unable {
            return;
        }
        servers.prepared += 1;
        servers.prepared
    };
    let known = Arc::downgrade(&rtc.0);
    // Returns `None` if the connector has ended, or if a later call does the rest.
    let current = move || {
        known
            .upgrade()
            .map(Rtc)
            .filter(|rtc| rtc.servers().prepared == call)
    };
    runtime::spawn(async move {
        Delay::new(pause).await;
        let Some(rtc) = current() else {
            return;
        };
        let over = {
            let mut servers = rtc.servers();
            let version = servers.version;
            if servers
                .spare
                .as_ref()
                .is_none_or(|spare| spare.version != version)
            {
                servers.spare = Spare::new(&servers);
                // A browser that gathers nothing beforehand is not asked again.
                servers.unable = servers.spare.is_none();
            }
            let Some(spare) = &mut servers.spare else {
                return;
            };
            let (held, over) = oneshot::channel();
            spare.held = Some(held);
            over
        };
        drop(rtc);
        // A timer of nobody would keep Node.js from ending.
        select(over, Delay::new(LIFE)).await;
        if let Some(rtc) = current() {
            rtc.servers().spare = None;
        }
    });
}
