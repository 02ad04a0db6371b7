//! The counters of a server, in Prometheus' text format.
//!
//! No label ever holds an address or a peer id, because those are personal data. Each change is
//! also logged, except that of bytes, so that tests can wait for it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::config::ServerConfig;

/// The counters of one server. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Mutex<Registry>>,
    reservations: Gauge,
    reservation_requests: Family<Outcome, Counter>,
    circuits: Gauge,
    circuit_requests: Family<Outcome, Counter>,
    connections: Gauge,
    connection_attempts: Family<Outcome, Counter>,
    stun: Family<Outcome, Counter>,
    turn: Family<Outcome, Counter>,
    turn_allocations: Gauge,
    turn_relayed: Counter,
    http: Family<Outcome, Counter>,
    autonat: Family<Outcome, Counter>,
    refused: Family<Refused, Counter>,
    limits: Family<Resource, Gauge>,
    circuit_limit: Gauge,
    draining: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    what: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

impl Metrics {
    /// Makes the counters of a server with the limits of `config`.
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let mut registry = Registry::with_prefix("throughline");
        let metrics = Self {
            reservations: Gauge::default(),
            reservation_requests: Family::default(),
            circuits: Gauge::default(),
            circuit_requests: Family::default(),
            connections: Gauge::default(),
            connection_attempts: Family::default(),
            stun: Family::default(),
            turn: Family::default(),
            turn_allocations: Gauge::default(),
            turn_relayed: Counter::default(),
            http: Family::default(),
            autonat: Family::default(),
            refused: Family::default(),
            limits: Family::default(),
            circuit_limit: Gauge::default(),
            draining: Gauge::default(),
            registry: Arc::default(),
        };
        registry.register(
            "relay_reservations",
            "Peers that hold a reservation now",
            metrics.reservations.clone(),
        );
        registry.register(
            "relay_reservation_requests",
            "Reservation requests by outcome",
            metrics.reservation_requests.clone(),
        );
        registry.register(
            "relay_circuits",
            "Circuits open now",
            metrics.circuits.clone(),
        );
        registry.register(
            "relay_circuit_requests",
            "Circuit requests by outcome",
            metrics.circuit_requests.clone(),
        );
        registry.register(
            "connections",
            "Connections of peers held now",
            metrics.connections.clone(),
        );
        registry.register(
            "connection_attempts",
            "Incoming connections by outcome",
            metrics.connection_attempts.clone(),
        );
        registry.register(
            "stun_requests",
            "Datagrams at the STUN ports by outcome",
            metrics.stun.clone(),
        );
        registry.register(
            "turn_requests",
            "Requests to the TURN server by outcome",
            metrics.turn.clone(),
        );
        registry.register(
            "turn_allocations",
            "TURN allocations held now",
            metrics.turn_allocations.clone(),
        );
        registry.register_with_unit(
            "turn_relayed",
            "Data that the TURN server carried, both directions together",
            Unit::Bytes,
            metrics.turn_relayed.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests by outcome",
            metrics.http.clone(),
        );
        registry.register(
            "autonat_tests",
            "Requests of peers to be dialled by outcome",
            metrics.autonat.clone(),
        );
        registry.register(
            "refused",
            "What was refused to strangers, by what they asked for and by the limit that refused it",
            metrics.refused.clone(),
        );
        registry.register(
            "draining",
            "Whether the server is about to end and takes nothing new",
            metrics.draining.clone(),
        );
        registry.register(
            "limit",
            "Configured limits by resource",
            metrics.limits.clone(),
        );
        registry.register_with_unit(
            "relay_circuit_limit",
            "What one circuit may carry; 0 is no limit",
            Unit::Bytes,
            metrics.circuit_limit.clone(),
        );
        *metrics.lock() = registry;
        metrics.limits(config);
        metrics
    }

    /// The server is about to end.
    pub(crate) fn draining(&self) {
        set(&self.draining, "draining", 1);
    }

    /// Shows the limits of `config`.
    pub(crate) fn limits(&self, config: &ServerConfig) {
        for (resource, limit) in [
            ("reservations", config.relay.reservations.get() as i64),
            ("circuits", config.relay.circuits.get() as i64),
            (
                "circuits_per_peer",
                config.relay.circuits_per_peer.get() as i64,
            ),
            ("connections", i64::from(config.connections.established)),
            ("turn_allocations", config.turn.allocations.get() as i64),
        ] {
            self.limits.get_or_create(&Resource { resource }).set(limit);
        }
        let bytes = i64::try_from(config.relay.circuit_bytes);
        self.circuit_limit.set(bytes.unwrap_or(i64::MAX));
    }

    /// Lets other parts register their counters. The transports register their byte counters.
    pub(crate) fn with_registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.lock())
    }

    /// Returns all counters in the text format of OpenMetrics 1.0.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.lock())?;
        Ok(out)
    }

    pub(crate) fn reservation(&self, outcome: &'static str) {
        count(&self.reservation_requests, outcome);
    }

    pub(crate) fn reservations(&self, now: usize) {
        set(&self.reservations, "reservations", now);
    }

    pub(crate) fn circuit(&self, outcome: &'static str) {
        count(&self.circuit_requests, outcome);
    }

    pub(crate) fn circuits(&self, now: usize) {
        set(&self.circuits, "circuits", now);
    }

    pub(crate) fn connection(&self, outcome: &'static str) {
        count(&self.connection_attempts, outcome);
    }

    pub(crate) fn connections(&self, now: u32) {
        set(&self.connections, "connections", now as usize);
    }

    pub(crate) fn stun(&self, outcome: &'static str) {
        count(&self.stun, outcome);
    }

    pub(crate) fn turn(&self, outcome: &'static str) {
        count(&self.turn, outcome);
    }

    pub(crate) fn turn_allocations(&self, now: usize) {
        set(&self.turn_allocations, "turn_allocations", now);
    }

    pub(crate) fn turn_relayed(&self, bytes: usize) {
        self.turn_relayed.inc_by(bytes as u64);
    }

    pub(crate) fn http(&self, outcome: &'static str) {
        count(&self.http, outcome);
    }

    pub(crate) fn autonat(&self, outcome: &'static str) {
        count(&self.autonat, outcome);
    }

    pub(crate) fn refused(&self, what: &'static str, reason: &'static str) {
        self.refused.get_or_create(&Refused { what, reason }).inc();
        tracing::trace!(what, reason, "counted as refused");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        // A registry is consistent after every call, so a panic elsewhere does no harm.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(family: &Family<Outcome, Counter>, outcome: &'static str) {
    family.get_or_create(&Outcome { outcome }).inc();
    tracing::trace!(outcome, "counted");
}

fn set(gauge: &Gauge, name: &'static str, now: usize) {
    gauge.set(now as i64);
    tracing::trace!(name, now, "gauged");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_those_that_users_read() {
        let metrics = Metrics::new(&ServerConfig::default());
        metrics.reservations(3);
        metrics.circuit("accepted");
        metrics.circuit("denied");
        metrics.clone().circuit("accepted");
        metrics.stun("answered");
        let text = metrics.encode().unwrap();
        for line in [
            "throughline_relay_reservations 3",
            "throughline_relay_circuits 0",
            "throughline_relay_circuit_requests_total{outcome=\"accepted\"} 2",
            "throughline_relay_circuit_requests_total{outcome=\"denied\"} 1",
            "throughline_stun_requests_total{outcome=\"answered\"} 1",
            "throughline_limit{resource=\"circuits\"} 1024",
            "throughline_relay_circuit_limit_bytes 0",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
