//! What is counted of a fleet.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::server::metrics::Metrics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The counters of a server's part of its fleet. Each change is logged, so that tests can wait for it.
pub(super) struct FleetMetrics {
    up: Gauge,
    sisters: Gauge,
    waiting: Gauge,
    writes: Family<Outcome, Counter>,
    look_ups: Family<Outcome, Counter>,
    unsound: Counter,
    refused: Gauge,
}

impl FleetMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let fleet = Self {
            up: Gauge::default(),
            sisters: Gauge::default(),
            waiting: Gauge::default(),
            writes: Family::default(),
            look_ups: Family::default(),
            unsound: Counter::default(),
            refused: Gauge::default(),
        };
        metrics.with_registry(|registry| {
            registry.register(
                "fleet_up",
                "Whether the other servers of the fleet can be told something now",
                fleet.up.clone(),
            );
            registry.register(
                "fleet_relays",
                "Other servers of the fleet that have said something lately",
                fleet.sisters.clone(),
            );
            registry.register(
                "fleet_waiting",
                "Changes that the fleet has yet to be told",
                fleet.waiting.clone(),
            );
            registry.register(
                "fleet_writes",
                "Changes that the fleet was told by outcome",
                fleet.writes.clone(),
            );
            registry.register(
                "fleet_lookups",
                "Look-ups of peers that are elsewhere by outcome",
                fleet.look_ups.clone(),
            );
            registry.register(
                "fleet_unsound",
                "Values in the fleet that no server of it would have written",
                fleet.unsound.clone(),
            );
            registry.register(
                "fleet_revoked_refused",
                "Tokens that the fleet has revoked and that count on here, because there are too many",
                fleet.refused.clone(),
            );
        });
        fleet
    }

    pub(super) fn up(&self, is_up: bool) {
        self.up.set(is_up.into());
        tracing::trace!(is_up, "gauged the fleet");
    }

    pub(super) fn sisters(&self, now: usize) {
        self.sisters.set(now as i64);
        tracing::trace!(now, "gauged the servers of the fleet");
    }

    pub(super) fn waiting(&self, now: usize) {
        self.waiting.set(now as i64);
        tracing::trace!(now, "gauged what the fleet has yet to be told");
    }

    pub(super) fn written(&self, outcome: &'static str) {
        self.writes.get_or_create(&Outcome { outcome }).inc();
        tracing::trace!(outcome, "counted a write to the fleet");
    }

    pub(super) fn looked_up(&self, outcome: &'static str) {
        self.look_ups.get_or_create(&Outcome { outcome }).inc();
        tracing::trace!(outcome, "counted a look-up in the fleet");
    }

    pub(super) fn unsound(&self) {
        self.unsound.inc();
        tracing::trace!("counted an unsound value");
    }

    pub(super) fn refused(&self, now: usize) {
        self.refused.set(now as i64);
        tracing::trace!(now, "gauged the revoked tokens that count on");
    }

    pub(super) fn heard(&self) {
        tracing::trace!("heard of a member of a room");
    }
}
