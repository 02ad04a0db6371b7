//! The pools of places that strangers can hold, and what becomes of refusals.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::{config::ServerConfig, metrics::Metrics, rate::RateLimiter};
pub(crate) use crate::native::pool::{Place, Pool};
use crate::{
    core::quota::Quota,
    native::{limits::Limits, pool::Observer, quic::Admission},
};

/// Requests for circuits and sealed offers that are read at once.
const REQUESTS: usize = 1024;
/// Of these one peer's: as many circuits as a dialler of ours asks for at a time.
const REQUESTS_PER_PEER: usize = 64;
/// Addresses of peers that are dialled at once, to see whether they can be.
pub(crate) const DIAL_BACKS: usize = 64;
/// HTTP connections to the operator's own address: some scrapers and load balancers.
pub(crate) const ADMIN: usize = 32;

/// Every pool of a server. A clone shares them.
#[derive(Clone)]
pub(crate) struct Pools {
    /// Connections of peers whose handshake over TCP or WebSocket is under way.
    pub(crate) handshakes: Pool,
    /// Connections of peers.
    pub(crate) connections: Pool,
    /// Those two, and handshakes over WebRTC.
    pub(crate) limits: Limits,
    /// Handshakes over QUIC.
    pub(crate) quic: Admission,
    /// Requests for circuits and sealed offers that are being read.
    pub(crate) requests: Pool,
    /// Peers that hold a reservation.
    pub(crate) reservations: Pool,
    /// Circuits, counted for whoever dials.
    pub(crate) circuits: Pool,
    /// Sealed offers that are being carried.
    pub(crate) offers: Pool,
    /// Tests of AutoNAT under way.
    pub(crate) dial_backs: Pool,
    /// HTTP connections.
    pub(crate) http: Pool,
    /// HTTP connections to the operator's own address.
    pub(crate) admin: Pool,
    /// TCP connections of TURN clients.
    pub(crate) turn_connections: Pool,
    /// Relayed addresses of TURN clients.
    pub(crate) allocations: Pool,
    pub(crate) refusals: Refusals,
}

impl Pools {
    pub(crate) fn new(config: &ServerConfig, metrics: &Metrics) -> Self {
        let refusals = Refusals::new(metrics.clone(), config.log_addresses);
        let percent = config.connections.share_per_address;
        let pool = |name, all| Pool::new(name, Quota::shared(all, percent), &refusals);
        let of_peers = |name, all, per_peer| {
            let quota = Quota::shared(all, percent).per_peer(per_peer);
            Pool::new(name, quota, &refusals)
        };
        let (connections, relay) = (&config.connections, &config.relay);
        let per_peer = connections.per_peer as usize;
        let circuits_per_peer = relay.circuits_per_peer.get();
        let established = Quota::shared(connections.established as usize, percent);
        let handshakes = Quota::shared(connections.pending as usize, percent);
        let dials = connections.pending as usize;
        let limits = Limits::new(established.per_peer(per_peer), handshakes, dials, &refusals);
        Self {
            handshakes: limits.handshakes.clone(),
            connections: limits.connections.clone(),
            quic: Admission::new(handshakes, &refusals),
            limits,
            requests: of_peers("request", REQUESTS, REQUESTS_PER_PEER),
            reservations: pool("reservation", relay.reservations.get()),
            circuits: of_peers("circuit", relay.circuits.get(), circuits_per_peer),
            offers: of_peers("offer", relay.circuits.get(), circuits_per_peer),
            dial_backs: of_peers("dial_back", DIAL_BACKS, 1),
            http: pool("http", connections.http.get()),
            admin: pool("admin", ADMIN),
            turn_connections: pool("turn_connection", config.turn.connections.get()),
            allocations: pool("allocation", config.turn.relayed_addresses()),
            refusals,
        }
    }
}

/// Lines of the log that refusals to one address, and to all, may fill in a second.
const LINES_PER_ADDRESS: u32 = 2;
const LINES: u32 = 100;

/// Counts and logs what is refused.
#[derive(Clone)]
pub(crate) struct Refusals {
    pub(crate) metrics: Metrics,
    /// Whether the log may name addresses: they are personal data.
    addresses: bool,
    lines: Arc<Mutex<RateLimiter>>,
}

impl Refusals {
    pub(crate) fn new(metrics: Metrics, addresses: bool) -> Self {
        let lines = RateLimiter::new(LINES_PER_ADDRESS, LINES, Instant::now());
        Self {
            metrics,
            addresses,
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    /// Counts that something was refused to `ip`, and says so in one line of the log. A flood of
    /// refusals is counted whole and does not fill the disk.
    pub(crate) fn tell(&self, what: &'static str, reason: &'static str, ip: Option<IpAddr>) {
        self.metrics.refused(what, reason);
        let source = ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.allow(source, Instant::now()) {
            return;
        }
        match ip.filter(|_| self.addresses) {
            Some(address) => tracing::info!(%address, what, reason, "refused"),
            None => tracing::info!(what, reason, "refused"),
        }
    }
}

impl Observer for Refusals {
    fn refused(&self, what: &'static str, reason: &'static str, ip: Option<IpAddr>) {
        self.tell(what, reason, ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::quota::Refusal, server::config::ServerConfig};

    #[test]
    fn a_place_comes_back_and_a_refusal_is_counted() {
        let metrics = Metrics::new(&ServerConfig::default());
        let refusals = Refusals::new(metrics.clone(), false);
        let pool = Pool::new("http", Quota::shared(2, 10), &refusals);
        let [a, b] = [1, 2].map(|n| IpAddr::from([192, 0, 2, n]));
        let first = pool.take(a).unwrap();
        assert_eq!(pool.take(a).err(), Some(Refusal::Address));
        let second = pool.take(b).unwrap();
        assert!(pool.is_full());
        assert_eq!(
            pool.take(IpAddr::from([192, 0, 2, 3])).err(),
            Some(Refusal::Full)
        );
        drop(first);
        assert!(pool.take(a).is_ok());
        drop(second);
        assert_eq!(pool.taken(), 0);
        let text = metrics.encode().unwrap();
        for line in [
            r#"throughline_refused_total{what="http",reason="address"} 1"#,
            r#"throughline_refused_total{what="http",reason="full"} 1"#,
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
