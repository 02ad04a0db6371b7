//! The line in the log about each connection that has ended.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionError, ConnectionId},
};

use super::traffic::{Carried, Traffic};
use crate::server::{rate_limiter::RateLimiter, settings::Settings};

/// The most lines per second. A flood of connections does not fill the disk.
const LINES: u32 = 100;

/// The connections that are open.
pub(super) struct Journal {
    pub(super) traffic: Traffic,
    settings: Settings,
    open: HashMap<ConnectionId, Open>,
    lines: RateLimiter,
    /// How many lines are missing since the last one.
    missing: u64,
}

struct Open {
    since: Instant,
    from: Multiaddr,
    carried: Option<Arc<Carried>>,
}

impl Journal {
    pub(super) fn new(traffic: Traffic, settings: Settings) -> Self {
        Self {
            traffic,
            settings,
            open: HashMap::new(),
            lines: RateLimiter::new(LINES, LINES, Instant::now()),
            missing: 0,
        }
    }

    pub(super) fn connected(&mut self, id: ConnectionId, from: &Multiaddr) {
        let open = Open {
            since: Instant::now(),
            from: from.clone(),
            carried: self.traffic.of(from),
        };
        self.open.insert(id, open);
    }

    /// Logs the end of a connection. Without a cause, this server has closed it.
    pub(super) fn closed(
        &mut self,
        peer: &PeerId,
        id: ConnectionId,
        cause: Option<&ConnectionError>,
    ) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let now = Instant::now();
        if !self.lines.allow(IpAddr::V4(Ipv4Addr::UNSPECIFIED), now) {
            self.missing += 1;
            return;
        }
        let seconds = now.saturating_duration_since(open.since).as_secs_f64();
        let (received, sent) = match &open.carried {
            Some(carried) => (carried.received(), carried.sent()),
            None => (0, 0),
        };
        let reason = match cause {
            None => String::from("closed by the server"),
            Some(ConnectionError::KeepAliveTimeout) => String::from("idle"),
            Some(ConnectionError::IO(error)) => error.to_string(),
        };
        // Addresses are personal data.
        let address = self.settings.now().log_addresses.then_some(open.from);
        let address = address.as_ref().map(tracing::field::display);
        let missing = std::mem::take(&mut self.missing);
        tracing::info!(
            %peer, address, received, sent, seconds, reason, missing, "a connection ended"
        );
    }
}
