//! The counters of a server, in Prometheus' text format.
//!
//! No label ever holds an address or a peer id, because those are personal data. Each change is
//! also logged, except that of bytes, so that tests can wait for it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::config::ServerConfig;

const SECONDS_A_DAY: f64 = 24.0 * 60.0 * 60.0;

/// The counters of one server. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Mutex<Registry>>,
    reservations: Gauge,
    reservation_requests: Family<Outcome, Counter>,
    records: Gauge,
    members: Gauge,
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
    usage: Family<Outcome, Counter>,
    reputation_decisions: Family<Outcome, Counter>,
    reputation_syncs: Family<Outcome, Counter>,
    reputation_age: Gauge<f64, AtomicU64>,
    tls_handshakes: Family<Outcome, Counter>,
    certificate_orders: Family<Outcome, Counter>,
    /// The certificate that is served, if there is one.
    certificate: Arc<Mutex<Option<Expiry>>>,
    refused: Family<Refused, Counter>,
    limits: Family<Resource, Gauge>,
    circuit_limit: Gauge,
    draining: Gauge,
}

/// When the certificate expires. The metric is there only with a certificate.
struct Expiry {
    /// Since the Unix epoch.
    until: Duration,
    days: Gauge<f64, AtomicU64>,
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
            records: Gauge::default(),
            members: Gauge::default(),
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
            usage: Family::default(),
            reputation_decisions: Family::default(),
            reputation_syncs: Family::default(),
            reputation_age: Gauge::default(),
            tls_handshakes: Family::default(),
            certificate_orders: Family::default(),
            certificate: Arc::default(),
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
            "directory_records",
            "Peers whose record is known now",
            metrics.records.clone(),
        );
        registry.register(
            "room_members",
            "Members of rooms now",
            metrics.members.clone(),
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
            "usage_batches",
            "Batches of the record of what peers take by outcome",
            metrics.usage.clone(),
        );
        registry.register(
            "reputation_decisions",
            "Requests of peers that were treated in another way than usual, by outcome",
            metrics.reputation_decisions.clone(),
        );
        registry.register(
            "reputation_syncs",
            "Questions to the source of reputations by outcome",
            metrics.reputation_syncs.clone(),
        );
        registry.register(
            "reputation_age_seconds",
            "Seconds since the source of reputations has confirmed the scores",
            metrics.reputation_age.clone(),
        );
        registry.register(
            "tls_handshakes",
            "TLS handshakes at the one TCP port by outcome",
            metrics.tls_handshakes.clone(),
        );
        registry.register(
            "tls_certificate_orders",
            "Certificates that were ordered from the authority by outcome",
            metrics.certificate_orders.clone(),
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
        self.count_days();
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

    pub(crate) fn directory(&self, records: usize, members: usize) {
        set(&self.records, "records", records);
        set(&self.members, "members", members);
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

    pub(crate) fn usage(&self, outcome: &'static str) {
        count(&self.usage, outcome);
    }

    pub(crate) fn reputation(&self, outcome: &'static str) {
        count(&self.reputation_decisions, outcome);
    }

    pub(crate) fn reputation_sync(&self, outcome: &'static str) {
        count(&self.reputation_syncs, outcome);
    }

    pub(crate) fn reputation_age(&self, age: Duration) {
        self.reputation_age.set(age.as_secs_f64());
    }

    pub(crate) fn tls_handshake(&self, outcome: &'static str) {
        count(&self.tls_handshakes, outcome);
    }

    pub(crate) fn certificate_order(&self, outcome: &'static str) {
        count(&self.certificate_orders, outcome);
    }

    /// A certificate is served that is valid `until` this time since the Unix epoch.
    pub(crate) fn certificate(&self, until: Duration) {
        let certificate = self.certificate.lock();
        let mut certificate = certificate.unwrap_or_else(PoisonError::into_inner);
        let days = match certificate.take() {
            Some(Expiry { days, .. }) => days,
            None => {
                let days = Gauge::default();
                let help = "Days until the certificate that is served expires";
                self.lock()
                    .register("tls_certificate_days", help, days.clone());
                days
            }
        };
        *certificate = Some(Expiry { until, days });
    }

    fn count_days(&self) {
        let certificate = self.certificate.lock();
        if let Some(expiry) = &*certificate.unwrap_or_else(PoisonError::into_inner) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let left = expiry.until.as_secs_f64() - now.unwrap_or_default().as_secs_f64();
            expiry.days.set(left / SECONDS_A_DAY);
        }
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
        metrics.directory(4, 5);
        metrics.circuit("accepted");
        metrics.circuit("denied");
        metrics.clone().circuit("accepted");
        metrics.stun("answered");
        let text = metrics.encode().unwrap();
        for line in [
            "throughline_relay_reservations 3",
            "throughline_relay_circuits 0",
            "throughline_directory_records 4",
            "throughline_room_members 5",
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
