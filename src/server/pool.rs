//! The pools of places that strangers can hold, and the handling of refusals.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::{config::ServerConfig, metrics::Metrics, rate_limiter::RateLimiter};
pub(crate) use crate::native::behaviours::pool::{Place, Pool};
use crate::{
    core::quota::Quota,
    native::{
        behaviours::{forwarded::Forwarded, limits::Limits, pool::Observer},
        quic::Admission,
        transports::windows::{Sizes, Windows},
    },
};

/// The most requests for circuits and sealed offers that are read at once.
const REQUESTS: usize = 1024;
/// The most of these requests from one peer. Our own dialler asks for at most as many circuits at a
/// time.
const REQUESTS_PER_PEER: usize = 64;
/// The most addresses of peers that are dialled at once to test whether they can be reached.
pub(crate) const DIAL_BACKS: usize = 64;
/// The most questions that the operator's program is asked at once.
const HOOK: usize = 64;
/// The most of these questions about one peer.
const HOOK_PER_PEER: usize = 4;
/// The most HTTP connections to the operator's own address. This is enough for several scrapers and
/// load balancers.
pub(crate) const ADMIN: usize = 32;

/// Every pool of a server. Clones share them.
#[derive(Clone)]
pub(crate) struct Pools {
    /// Peers' connections over TCP or WebSocket whose handshake is under way.
    pub(crate) handshakes: Pool,
    /// Peers' connections.
    pub(crate) connections: Pool,
    /// The limits of `handshakes` and `connections`.
    pub(crate) limits: Limits,
    /// Handshakes over QUIC.
    pub(crate) quic: Admission,
    /// Handshakes over `/webrtc-direct`.
    pub(crate) webrtc: Pool,
    /// Requests for circuits and sealed offers that are being read.
    pub(crate) requests: Pool,
    /// Peers that hold a reservation.
    pub(crate) reservations: Pool,
    /// Circuits. Each counts for the peer that dials.
    pub(crate) circuits: Pool,
    /// Sealed offers that are being carried.
    pub(crate) offers: Pool,
    /// AutoNAT tests under way.
    pub(crate) dial_backs: Pool,
    /// Questions to the hook that are being asked.
    pub(crate) hook: Pool,
    /// Answers of the hook that are known.
    pub(crate) hook_answers: Pool,
    /// HTTP connections.
    pub(crate) http: Pool,
    /// HTTP connections to the operator's own address.
    pub(crate) admin: Pool,
    /// TCP connections of TURN clients.
    pub(crate) turn_connections: Pool,
    /// Relayed addresses of TURN clients.
    pub(crate) allocations: Pool,
    pub(crate) refusals: Refusals,
    /// The bounds on the unread bytes of each connection.
    pub(crate) windows: Windows,
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
        let mut limits = Limits::new(established.per_peer(per_peer), handshakes, dials, &refusals);
        // Validation of the configuration has already refused texts that are not prefixes.
        limits.forwarded = Forwarded::new(config.trusted_proxies().unwrap_or_default());
        Self {
            handshakes: limits.handshakes.clone(),
            connections: limits.connections.clone(),
            quic: Admission::new(handshakes, &refusals),
            webrtc: Pool::new("webrtc_handshake", handshakes, &refusals),
            limits,
            requests: of_peers("request", REQUESTS, REQUESTS_PER_PEER),
            reservations: pool("reservation", relay.reservations.get()),
            circuits: of_peers("circuit", relay.circuits.get(), circuits_per_peer),
            offers: of_peers("offer", relay.circuits.get(), circuits_per_peer),
            dial_backs: of_peers("dial_back", DIAL_BACKS, 1),
            hook: of_peers("hook", HOOK, HOOK_PER_PEER),
            hook_answers: pool("hook_answer", config.access.hook.answers.get()),
            http: pool("http", connections.http.get()),
            admin: pool("admin", ADMIN),
            turn_connections: pool("turn_connection", config.turn.connections.get()),
            allocations: pool("allocation", config.turn.relayed_addresses()),
            refusals,
            windows: Windows::new(Sizes {
                connection: connections.window,
                circuit: relay.circuit_window,
            }),
        }
    }
}

/// The most log lines per second about refusals to one address.
const LINES_PER_ADDRESS: u32 = 2;
/// The most log lines per second about refusals to all addresses.
const LINES: u32 = 100;

/// Counts and logs refusals.
#[derive(Clone)]
pub(crate) struct Refusals {
    pub(crate) metrics: Metrics,
    /// Whether the log may name addresses, which are personal data.
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

    /// Counts a refusal to `ip` and logs it in one line. Every refusal of a flood is counted, but
    /// the number of its log lines is limited, so it does not fill the disk.
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
