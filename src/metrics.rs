//! Counters and gauges, the same on both targets. Each changes where the counted thing happens.

use std::time::Duration;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::event::{Cause, PathKind, Strategy};

/// The labels of a metric. Their values are only names, because addresses and peer ids are personal
/// data and have no bound.
///
/// All families share this type, because each type adds its own tables to the wasm.
type Labels = Vec<(&'static str, &'static str)>;

fn by_strategy(strategy: Strategy) -> Labels {
    vec![("strategy", strategy.as_str())]
}

/// Counts datagrams that were dropped here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dropped(Family<Labels, Counter>);

impl Dropped {
    /// A datagram was not sent.
    pub(crate) fn sent(&self) {
        self.count("sent");
    }

    /// A datagram was received, and nobody took it in time.
    pub(crate) fn received(&self) {
        self.count("received");
    }

    fn count(&self, direction: &'static str) {
        self.0.get_or_create(&vec![("direction", direction)]).inc();
    }
}

pub(crate) struct Metrics {
    registry: Registry,
    attempts: Family<Labels, Counter>,
    successes: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    connect_seconds: Family<Labels, Histogram>,
    current: Family<Labels, Gauge>,
    moves: Family<Labels, Counter>,
    pub(crate) dropped: Dropped,
    pub(crate) connections: Gauge,
    pub(crate) streams: Gauge,
    pub(crate) reservations: Gauge,
    pub(crate) confirmed: Gauge,
}

/// The buckets reach from loopback (1 ms) to the time when a user gives up (30 s).
const CONNECT_BUCKETS: [f64; 13] = [
    0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 10.0, 30.0,
];

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let connect_seconds =
            Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(CONNECT_BUCKETS));
        let metrics = Self {
            attempts: Family::default(),
            successes: Family::default(),
            failures: Family::default(),
            connect_seconds,
            current: Family::default(),
            moves: Family::default(),
            dropped: Dropped::default(),
            connections: Gauge::default(),
            streams: Gauge::default(),
            reservations: Gauge::default(),
            confirmed: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "nat_traversal_attempts",
            "Attempts started, by strategy",
            metrics.attempts.clone(),
        );
        registry.register(
            "nat_traversal_successes",
            "Attempts that gave an authenticated path, by strategy",
            metrics.successes.clone(),
        );
        registry.register(
            "nat_traversal_failures",
            "Attempts that failed or were cancelled, by strategy and reason",
            metrics.failures.clone(),
        );
        registry.register(
            "nat_traversal_connect_seconds",
            "Time from the start of a successful attempt to its path, by strategy",
            metrics.connect_seconds.clone(),
        );
        registry.register(
            "nat_traversal_current_method",
            "Connections that use a path of this strategy now",
            metrics.current.clone(),
        );
        registry.register(
            "throughline_path_moves",
            "Moves of a connection's traffic to a path of this kind",
            metrics.moves.clone(),
        );
        registry.register(
            "throughline_datagrams_dropped",
            "Datagrams that were dropped here because too many waited, by direction",
            metrics.dropped.0.clone(),
        );
        registry.register(
            "throughline_connections",
            "Connections to peers that are open now",
            metrics.connections.clone(),
        );
        registry.register(
            "throughline_streams",
            "Resumable streams that are open now",
            metrics.streams.clone(),
        );
        registry.register(
            "throughline_reservations",
            "Relays that hold a reservation for this peer now",
            metrics.reservations.clone(),
        );
        registry.register(
            "throughline_confirmed_addresses",
            "Addresses of this peer that an AutoNAT server has dialled",
            metrics.confirmed.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }

    pub(crate) fn attempt_started(&self, strategy: Strategy) {
        self.attempts.get_or_create(&by_strategy(strategy)).inc();
    }

    pub(crate) fn attempt_succeeded(&self, strategy: Strategy, took: Duration) {
        self.successes.get_or_create(&by_strategy(strategy)).inc();
        self.connect_seconds
            .get_or_create(&by_strategy(strategy))
            .observe(took.as_secs_f64());
    }

    pub(crate) fn attempt_failed(&self, strategy: Strategy, cause: Cause) {
        let labels = vec![("strategy", strategy.as_str()), ("reason", cause.as_str())];
        self.failures.get_or_create(&labels).inc();
    }

    /// Counts that traffic of one connection moved from a path by `from` to a path by `to`.
    pub(crate) fn path_changed(&self, from: Option<Strategy>, to: Option<(PathKind, Strategy)>) {
        if let Some(strategy) = from {
            self.current.get_or_create(&by_strategy(strategy)).dec();
        }
        if let Some((path, strategy)) = to {
            self.current.get_or_create(&by_strategy(strategy)).inc();
            self.moves
                .get_or_create(&vec![("path", path.as_str())])
                .inc();
        }
    }

    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_names_are_there_after_an_attempt() {
        let metrics = Metrics::new();
        metrics.attempt_started(Strategy::Stun);
        metrics.attempt_succeeded(Strategy::Stun, Duration::from_millis(120));
        metrics.attempt_failed(Strategy::Turn, Cause::Timeout);
        metrics.path_changed(None, Some((PathKind::Direct, Strategy::Stun)));
        let text = metrics.encode();
        for line in [
            "nat_traversal_attempts_total{strategy=\"stun\"} 1",
            "nat_traversal_successes_total{strategy=\"stun\"} 1",
            "nat_traversal_failures_total{strategy=\"turn\",reason=\"timeout\"} 1",
            "nat_traversal_current_method{strategy=\"stun\"} 1",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
