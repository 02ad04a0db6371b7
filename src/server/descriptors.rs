//! Descriptors: how many the system grants, and how many the settings may need.
//!
//! A server without free descriptors can accept nobody, not even a health check. So all pools
//! shrink in proportion until the descriptors suffice. The share of a pool that one address may
//! hold shrinks with the pool.

use std::{
    error::Error as StdError,
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    config::{AccessMode, ServerConfig},
    pool,
};

/// The descriptors of the program itself (standard streams, timers, event queues, files that are
/// read, questions to an authority and for reputations), and of connections that are accepted only to be refused.
const RESERVE: u128 = 64;

/// The descriptors of the listeners on one host. Five services have at most two sockets each, and
/// three of them watch the interfaces.
const PER_HOST: u128 = 13;

/// The descriptors of an HTTP connection: its socket, and the file that it sends.
const PER_HTTP: u128 = 2;

/// The descriptors of an allocation, which has one or two relayed ports.
const PER_ALLOCATION: u128 = 2;

/// The fewest places that a pool shrinks to, so that one address can never hold all of them.
const LEAST: u128 = 8;

/// How long a server counts as short of descriptors after it failed to get one.
const RECENT: Duration = Duration::from_secs(5);

/// The pause between two log entries about failures to accept.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Returns how many descriptors the settings may need.
pub(crate) fn need(config: &ServerConfig) -> u128 {
    pooled(config) + fixed(config)
}

fn fixed(config: &ServerConfig) -> u128 {
    let hosts = config.hosts.len() as u128;
    let of_hook = match config.access.mode() {
        AccessMode::Hook => pool::HOOK,
        _ => 0,
    };
    RESERVE + (pool::ADMIN + pool::DIAL_BACKS + of_hook) as u128 + hosts * PER_HOST
}

/// Returns how many descriptors the pools may need. The sum cannot overflow, because each setting
/// has 64 bits at most.
fn pooled(config: &ServerConfig) -> u128 {
    let (connections, turn) = (&config.connections, &config.turn);
    let of_peers = u128::from(connections.established) + u128::from(connections.pending);
    let of_http = connections.http.get() as u128 * PER_HTTP;
    let of_turn = match turn.secret {
        Some(_) => turn.connections.get() as u128 + turn.allocations.get() as u128 * PER_ALLOCATION,
        None => 0,
    };
    of_peers + of_http + of_turn
}

/// Shrinks the pools of `config` so that `limit` descriptors are enough for them.
pub(crate) fn fit(config: &mut ServerConfig, limit: u64) {
    let left = u128::from(limit).saturating_sub(fixed(config));
    let pooled = pooled(config);
    if left >= pooled {
        return;
    }
    let share = |places: u128| (places * left / pooled).max(LEAST.min(places));
    // A share is never larger than its pool, so it fits the pool's type.
    let shrink = |places: &mut NonZeroUsize| {
        let share = usize::try_from(share(places.get() as u128));
        *places = share.ok().and_then(NonZeroUsize::new).unwrap_or(*places);
    };
    let connections = &mut config.connections;
    for places in [&mut connections.established, &mut connections.pending] {
        *places = u32::try_from(share((*places).into())).unwrap_or(*places);
    }
    shrink(&mut connections.http);
    shrink(&mut config.turn.connections);
    shrink(&mut config.turn.allocations);
}

/// Raises the limit of this process as far as the system lets it. Returns the limit, which is
/// `u64::MAX` if it cannot be read.
#[cfg(unix)]
pub(crate) fn raise_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
        rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft)
    })
}

/// Windows has no limit on sockets that a process could reach. The limit of its C library is for open
/// `FILE`s only.
#[cfg(not(unix))]
pub(crate) fn raise_limit() -> u64 {
    u64::MAX
}

/// Shrinks the pools of `config` to the descriptors that the system grants, and warns if it had to.
pub(crate) fn prepare(config: &mut ServerConfig) -> Descriptors {
    let (limit, need) = (raise_limit(), need(config));
    if u128::from(limit) < need {
        fit(config, limit);
        let (connections, turn) = (&config.connections, &config.turn);
        tracing::warn!(
            limit,
            need,
            connections = connections.established,
            handshakes = connections.pending,
            http = connections.http,
            turn_connections = turn.connections,
            turn_allocations = turn.allocations,
            "the system grants fewer descriptors than the settings may need, so the pools are \
             smaller than configured; raise the limit (`ulimit -n`, LimitNOFILE= of systemd, \
             --ulimit nofile= of docker) or lower connections.* and turn.*"
        );
    }
    Descriptors(Arc::new(Inner {
        limit,
        need,
        shortage: Mutex::default(),
    }))
}

/// Knows whether the server is short of descriptors. Clones share the state.
#[derive(Clone)]
pub(crate) struct Descriptors(Arc<Inner>);

struct Inner {
    limit: u64,
    need: u128,
    shortage: Mutex<Shortage>,
}

#[derive(Default)]
struct Shortage {
    last: Option<Instant>,
    logged: Option<Instant>,
}

impl Descriptors {
    /// Shrinks the pools of `config` so that what the system has granted is enough for them.
    pub(crate) fn fit(&self, config: &mut ServerConfig) {
        fit(config, self.0.limit);
    }

    /// For listeners whose pools were not shrunk to a limit.
    pub(crate) fn unlimited() -> Self {
        Self(Arc::new(Inner {
            limit: u64::MAX,
            need: 0,
            shortage: Mutex::default(),
        }))
    }

    /// A listener of `service` could not accept. Logs that, but not more often than [`LOG_EVERY`].
    pub(crate) fn failed(&self, service: &'static str, error: &(dyn StdError + 'static)) {
        let now = Instant::now();
        let shortage = &self.0.shortage;
        let mut shortage = shortage.lock().unwrap_or_else(PoisonError::into_inner);
        let short = is_shortage(error);
        if short {
            shortage.last = Some(now);
        }
        let recent = |time: Instant| now.saturating_duration_since(time) < LOG_EVERY;
        if shortage.logged.is_some_and(recent) {
            return;
        }
        shortage.logged = Some(now);
        let (limit, need) = (self.0.limit, self.0.need);
        match short {
            true => tracing::warn!(service, limit, need, "no descriptor is left to accept with"),
            false => tracing::warn!(service, %error, "cannot accept"),
        }
    }

    /// Whether a descriptor was missing a short time ago.
    pub(crate) fn are_short(&self) -> bool {
        let shortage = &self.0.shortage;
        let shortage = shortage.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |time: Instant| time.elapsed() < RECENT;
        shortage.last.is_some_and(recent)
    }
}

/// EMFILE and ENFILE, whose numbers are the same on every Unix, and WSAEMFILE.
const NO_DESCRIPTOR: [i32; 3] = [24, 23, 10_024];

/// Whether `error` or one of its sources says that no descriptor is left.
fn is_shortage(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let code = error.raw_os_error();
            if code.is_some_and(|code| NO_DESCRIPTOR.contains(&code)) {
                return true;
            }
            // The source of a wrapping error is the source of the inner error, not the inner error
            // itself.
            if error.get_ref().is_some_and(|inner| is_shortage(inner)) {
                return true;
            }
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> ServerConfig {
        let mut config = ServerConfig::default();
        config.turn.secret = Some("secret".into());
        config
    }

    #[test]
    fn the_descriptors_that_settings_need_are_counted() {
        let all = need(&config());
        assert_eq!(
            all,
            8192 + 512 + 2 * 256 + 1024 + 2 * 1024 + 64 + 64 + 32 + 13
        );
        let mut without = config();
        without.turn.secret = None;
        assert_eq!(need(&without), all - 3 * 1024);
        without.connections.established = u32::MAX;
        without.connections.http = NonZeroUsize::MAX;
        assert!(
            need(&without) > u128::from(u64::MAX),
            "the sum does not overflow"
        );
    }

    #[test]
    fn pools_that_fit_stay_as_they_are() {
        let mut fitted = config();
        fit(&mut fitted, need(&config()).try_into().unwrap());
        assert_eq!(fitted, config());
    }

    #[test]
    fn a_small_limit_shrinks_the_pools() {
        let mut fitted = config();
        fit(&mut fitted, 256);
        let connections = &fitted.connections;
        assert!((LEAST as u32..100).contains(&connections.established));
        assert_eq!(connections.pending, LEAST as u32);
        assert_eq!(connections.http.get() as u128, LEAST);
        fitted.validate().unwrap();
    }

    proptest! {
        /// The pools fit any limit above the need of the smallest pools.
        #[test]
        fn the_pools_fit(
            limit in 300u64..20_000,
            established: u32,
            pending: u32,
            http in 1usize..,
            allocations in 1usize..,
        ) {
            let mut fitted = config();
            fitted.connections.established = established.max(1);
            fitted.connections.pending = pending.max(1);
            fitted.connections.http = NonZeroUsize::new(http).unwrap();
            fitted.turn.allocations = NonZeroUsize::new(allocations).unwrap();
            fit(&mut fitted, limit);
            // A pool at its smallest size may take eight or sixteen descriptors too many.
            prop_assert!(need(&fitted) <= u128::from(limit) + 7 * LEAST);
            fitted.validate().unwrap();
        }
    }

    #[test]
    fn a_shortage_is_found_inside_wrapped_errors() {
        let shortage = || io::Error::from_raw_os_error(24);
        assert!(is_shortage(&shortage()));
        assert!(is_shortage(&io::Error::other(shortage())));
        assert!(is_shortage(&io::Error::other(io::Error::other(shortage()))));
        assert!(!is_shortage(&io::Error::from_raw_os_error(13)));
        let descriptors = Descriptors::unlimited();
        descriptors.failed("http", &io::Error::from_raw_os_error(13));
        assert!(!descriptors.are_short());
        descriptors.failed("http", &io::Error::other(shortage()));
        assert!(descriptors.are_short());
    }
}
