//! The pools of places that strangers can hold, and what becomes of refusals.
#![allow(dead_code, reason = "taken into use one by one")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{config::ServerConfig, metrics::Metrics, rate::RateLimiter};
use crate::core::quota::{Holder, Ledger, Quota, Refusal};

/// Requests for circuits and sealed offers that are read at once.
const REQUESTS: usize = 1024;
/// Addresses of peers that are dialled at once, to see whether they can be.
pub(crate) const DIAL_BACKS: usize = 64;
/// HTTP connections to the operator's own address: some scrapers and load balancers.
pub(crate) const ADMIN: usize = 32;

/// Every pool of a server. A clone shares them.
#[derive(Clone)]
pub(crate) struct Pools {
    /// Connections of peers whose handshake is under way.
    pub(crate) handshakes: Pool,
    /// Connections of peers.
    pub(crate) connections: Pool,
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
        Self {
            handshakes: pool("handshake", connections.pending as usize),
            connections: of_peers("connection", connections.established as usize, per_peer),
            requests: of_peers("request", REQUESTS, circuits_per_peer),
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

/// A pool. A clone shares it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    name: &'static str,
    quota: Quota,
    ledger: Mutex<Ledger>,
    refusals: Refusals,
}

impl Pool {
    /// A pool, called `name` in metrics and logs.
    pub(crate) fn new(name: &'static str, quota: Quota, refusals: &Refusals) -> Self {
        Self(Arc::new(Inner {
            name,
            quota,
            ledger: Mutex::default(),
            refusals: refusals.clone(),
        }))
    }

    /// Takes a place for `holder`, until it is dropped. A refusal is counted and logged.
    pub(crate) fn take(&self, holder: impl Into<Holder>) -> Result<Place, Refusal> {
        let holder = holder.into();
        let taken = self.lock().take(&self.0.quota, holder);
        match taken {
            Ok(()) => Ok(Place {
                pool: self.clone(),
                holder,
            }),
            Err(refusal) => {
                self.0.refusals.tell(self.0.name, refusal.name(), holder.ip);
                Err(refusal)
            }
        }
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().taken()
    }

    /// Whether no place is left for anybody.
    pub(crate) fn is_full(&self) -> bool {
        self.taken() >= self.0.quota.all
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A ledger is whole after every call.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a [`Pool`]. Dropping it gives the place back.
pub(crate) struct Place {
    pool: Pool,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.lock().give_back(self.holder);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::ServerConfig;

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
