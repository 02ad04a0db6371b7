//! The limits of the relay.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{nonzero_u32, nonzero_usize};

/// Limits of the circuit relay v2.
///
/// A stock relay lets 128 KiB through in two minutes, which is enough for signalling only. These
/// defaults allow a circuit to carry data: a circuit is the path that always works, so it must be
/// usable.
///
/// ```
/// use std::num::NonZeroUsize;
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.relay.circuits_per_peer = NonZeroUsize::new(4).unwrap();
/// config.relay.circuit_bytes = 1 << 30; // a circuit carries a gibibyte at most
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RelayLimits {
    /// Peers that hold a reservation at once. Default 4096. Each reservation costs a connection.
    pub reservations: NonZeroUsize,
    /// Reservations that one peer holds at once. A further one ends the oldest. Default 4, which is
    /// enough for a machine in several networks.
    pub reservations_per_peer: NonZeroUsize,
    /// The term of a reservation in seconds, 180 to 86400. Clients of this library renew it after
    /// 100 seconds, whatever their clocks say, and other clients at three quarters of its term.
    /// Default 3600, the value of the relay specification.
    pub reservation_seconds: u64,
    /// Circuits that are open at once, of all peers together. Default 1024.
    pub circuits: NonZeroUsize,
    /// Circuits that are open at once from one dialling peer. Default 16.
    pub circuits_per_peer: NonZeroUsize,
    /// The longest life of a circuit in seconds, 0 to 4294967295. Default 86400, so that a
    /// forgotten circuit ends some day. 0 means the longest time that the protocol can express, 136
    /// years.
    pub circuit_seconds: u64,
    /// Bytes that one circuit may carry, in both directions together. Default 0: no limit.
    pub circuit_bytes: u64,
    /// Bytes of one circuit that may wait in the server, 262144 to 16777216. The limit applies to
    /// each direction and to each of both connections. In one round trip between the server and a
    /// peer, a circuit carries no more than this. Default 1048576: 84 Mbit/s at 100 ms and 840
    /// Mbit/s at 10 ms. With the default, each circuit whose receiver does not read takes up to 4
    /// MiB.
    pub circuit_window: u32,
    /// Reservations that one peer may ask for in a burst. One IP address may ask for twice as many.
    /// Each comes back after two seconds. Default 60.
    pub reservation_burst: NonZeroU32,
    /// Circuits that one peer may ask for in a burst. One IP address may ask for four times as
    /// many. One comes back after a second. Default 120, which is enough for a page that is
    /// reloaded again and again.
    pub circuit_burst: NonZeroU32,
}

const MAX_CIRCUIT_SECONDS: u64 = u32::MAX as u64;

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            reservations: nonzero_usize(4096),
            reservations_per_peer: nonzero_usize(4),
            reservation_seconds: 60 * 60,
            circuits: nonzero_usize(1024),
            circuits_per_peer: nonzero_usize(16),
            circuit_seconds: 24 * 60 * 60,
            circuit_bytes: 0,
            circuit_window: 1024 * 1024,
            reservation_burst: nonzero_u32(60),
            circuit_burst: nonzero_u32(120),
        }
    }
}

impl RelayLimits {
    /// Returns the longest life of a circuit.
    pub fn circuit_duration(&self) -> Duration {
        Duration::from_secs(match self.circuit_seconds {
            0 => MAX_CIRCUIT_SECONDS,
            seconds => seconds,
        })
    }
}
