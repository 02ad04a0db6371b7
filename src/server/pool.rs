//! The pools of places that strangers can hold, and the handling of refusals.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use super::{
    config::ServerConfig, fairness::Fairness, metrics::Metrics, rate_limiter::RateLimiter,
    reputation::Reputation, settings::Settings,
};
pub(crate) use crate::native::behaviours::pool::{Place, Pool};
use crate::{
    core::{
        quota::Quota,
        room::{MAX_MEMBERS, MAX_ROOMS},
    },
    native::{
        behaviours::{
            forwarded::Forwarded,
            limits::Limits,
            pool::{Observer, Quotas},
        },
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
pub(crate) const HOOK: usize = 64;
/// The most of these questions about one peer.
const HOOK_PER_PEER: usize = 4;
/// The most HTTP connections to the operator's own address. This is enough for several scrapers and
/// load balancers.
pub(crate) const ADMIN: usize = 32;

/// Every pool of a server. Clones share them.
#[derive(Clone)]
pub(crate) struct Pools {
    /// Where the sizes of the pools, and all other limits, come from.
    pub(crate) settings: Settings,
    /// Peers' connections over TCP or WebSocket whose handshake is under way, and TCP connections of
    /// which it is not known yet what their client speaks.
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
    /// Records of peers in the directory.
    pub(crate) records: Pool,
    /// Members of rooms. Each counts for its peer once for each room.
    pub(crate) members: Pool,
    /// Members of rooms that are at other servers of the fleet.
    pub(crate) elsewhere: Pool,
    /// How many members of a room may be at other servers. Each room has a pool of its own.
    pub(crate) seats_elsewhere: Quotas,
    /// How many members a room has. Each room has a pool of its own.
    pub(crate) seats: Quotas,
    /// Streams over which rooms are attended. A member that comes again may have two for a while.
    pub(crate) attending: Pool,
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
    /// The rate of everything that is carried.
    pub(crate) fairness: Fairness,
    /// What is thought of peers.
    pub(crate) reputation: Reputation,
    /// The bounds on the unread bytes of each connection.
    pub(crate) windows: Windows,
}

impl Pools {
    /// Makes pools whose sizes follow `settings`.
    pub(crate) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let refusals = Refusals::new(metrics.clone(), settings.clone());
        let places = |all: fn(&ServerConfig) -> usize| {
            let settings = settings.clone();
            Quotas::new(move || {
                let config = settings.now();
                Quota::shared(all(&config), config.connections.share_per_address)
            })
        };
        let each = |all, per_peer: fn(&ServerConfig) -> usize| {
            let settings = settings.clone();
            places(all).map(move |quota| quota.per_peer(per_peer(&settings.now())))
        };
        let pool = |name, quotas: Quotas| Pool::new(name, quotas, &refusals);
        // What begins later than a drain would be cut off by its end.
        let until_drain = |quotas: Quotas| {
            let settings = settings.clone();
            quotas.map(move |quota| match settings.is_draining() {
                true => Quota { all: 0, ..quota },
                false => quota,
            })
        };
        let circuits = || {
            let per_peer = |config: &ServerConfig| config.relay.circuits_per_peer.get();
            until_drain(each(|config| config.relay.circuits.get(), per_peer))
        };
        // The records of peers that went without a word are kept for some minutes.
        let kept = |config: &ServerConfig| config.relay.reservations.get().saturating_mul(4);
        let handshakes = places(|config| config.connections.pending as usize);
        let established = each(
            |config| config.connections.established as usize,
            |config| config.connections.per_peer as usize,
        );
        let dials = handshakes.map(|all| Quota::shared(all.all, 100));
        let mut limits = Limits::new(established, handshakes.clone(), dials, &refusals);
        let config = settings.now();
        // Validation of the configuration has already refused texts that are not prefixes.
        limits.forwarded = Forwarded::new(config.trusted_proxies().unwrap_or_default());
        Self {
            handshakes: limits.handshakes.clone(),
            connections: limits.connections.clone(),
            quic: Admission::new(handshakes.clone(), &refusals),
            webrtc: pool("webrtc_handshake", handshakes),
            limits,
            requests: pool("request", each(|_| REQUESTS, |_| REQUESTS_PER_PEER)),
            reservations: pool(
                "reservation",
                until_drain(places(|config| config.relay.reservations.get())),
            ),
            circuits: pool("circuit", circuits()),
            offers: pool("offer", circuits()),
            records: pool("record", places(kept)),
            members: pool("member", each(kept, |_| MAX_ROOMS)),
            elsewhere: pool("member_elsewhere", each(kept, |_| MAX_ROOMS)),
            // A quarter is left for those that are here, whose addresses are known. What another server names
            // has no address, so each server has a share. Who could lie about the server could lie about all.
            seats_elsewhere: Quota::shared(MAX_MEMBERS * 3 / 4, 100)
                .per_peer(MAX_MEMBERS / 2)
                .into(),
            seats: each(|_| MAX_MEMBERS, |_| 1),
            attending: pool("attending", each(kept, |_| 2 * MAX_ROOMS)),
            dial_backs: pool("dial_back", each(|_| DIAL_BACKS, |_| 1)),
            hook: pool("hook", each(|_| HOOK, |_| HOOK_PER_PEER)),
            hook_answers: pool(
                "hook_answer",
                places(|config| config.access.hook.answers.get()),
            ),
            http: pool("http", places(|config| config.connections.http.get())),
            admin: pool("admin", places(|_| ADMIN)),
            turn_connections: pool(
                "turn_connection",
                places(|config| config.turn.connections.get()),
            ),
            allocations: pool(
                "allocation",
                until_drain(places(|config| config.turn.relayed_addresses())),
            ),
            refusals,
            fairness: Fairness::new(config.traffic.total),
            reputation: Reputation::new(settings, metrics),
            windows: Windows::new(Sizes {
                connection: config.connections.window,
                circuit: config.relay.circuit_window,
            }),
            settings: settings.clone(),
        }
    }
}

impl Pools {
    /// Returns what makes the places of one room.
    pub(crate) fn rooms(&self) -> impl Fn() -> Pool + Send + Sync + use<> {
        let (seats, refusals) = (self.seats.clone(), self.refusals.clone());
        move || Pool::new("room", seats.clone(), &refusals)
    }

    /// Returns what makes the places of the members of one room that are at other servers.
    pub(crate) fn rooms_elsewhere(&self) -> impl Fn() -> Pool + Send + Sync + use<> {
        let (seats, refusals) = (self.seats_elsewhere.clone(), self.refusals.clone());
        move || Pool::new("room_elsewhere", seats.clone(), &refusals)
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
    settings: Settings,
    lines: Arc<Mutex<RateLimiter>>,
}

impl Refusals {
    pub(crate) fn new(metrics: Metrics, settings: Settings) -> Self {
        let lines = RateLimiter::new(LINES_PER_ADDRESS, LINES, Instant::now());
        Self {
            metrics,
            settings,
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
        // Addresses are personal data.
        match ip.filter(|_| self.settings.now().log_addresses) {
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
    fn a_reload_changes_pools_that_are_in_use_and_a_drain_closes_those_of_new_things() {
        let mut config = ServerConfig::default();
        config.connections.share_per_address = 100;
        let metrics = Metrics::new(&config);
        let (changes, settings) = Settings::new(config.clone());
        let pools = Pools::new(&settings, &metrics);
        let ip = IpAddr::from([192, 0, 2, 1]);
        let held: Vec<_> = (0..3)
            .map(|_| pools.reservations.take(ip).unwrap())
            .collect();
        config.relay.reservations = 2.try_into().unwrap();
        config.connections.share_per_address = 50;
        changes.take(&config);
        assert_eq!(pools.reservations.take(ip).err(), Some(Refusal::Address));
        let other = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(pools.reservations.take(other).err(), Some(Refusal::Full));
        assert_eq!(pools.reservations.taken(), 3, "nothing is taken back");
        drop(held);
        let _held = pools.reservations.take(ip).unwrap();
        changes.drain();
        for pool in [
            &pools.reservations,
            &pools.circuits,
            &pools.offers,
            &pools.allocations,
        ] {
            assert_eq!(pool.take(other).err(), Some(Refusal::Full));
        }
        assert!(pools.connections.take(other).is_ok());
    }

    #[test]
    fn a_place_comes_back_and_a_refusal_is_counted() {
        let metrics = Metrics::new(&ServerConfig::default());
        let refusals = Refusals::new(metrics.clone(), Settings::fixed(ServerConfig::default()));
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
