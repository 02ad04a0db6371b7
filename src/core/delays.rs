//! When each strategy starts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Strategy;

/// By then, ordinary checks that can succeed have succeeded. The many sockets are for checks that
/// cannot succeed.
pub(crate) const BIRTHDAY_START: Duration = Duration::from_secs(1);

/// By then, ordinary checks that can succeed have succeeded. A relayed address costs its server.
pub(crate) const TURN_START: Duration = Duration::from_secs(1);

/// How long each strategy waits before it starts.
///
/// The delays of `direct` and `circuit_relay` begin with the call to connect. The others begin when
/// the strategy can be signalled, over a circuit or by a sealed offer. In TOML, JSON and JavaScript
/// this is an object of whole milliseconds, and a delay that is left out keeps its default.
///
/// `stun` and `upnp` share one negotiation, which begins after the shorter of their delays. `turn` and
/// `birthday` join it after their own, which begin when the peer has answered, and only if it has not
/// succeeded by then. TURN also waits until no ports are guessed any more. A browser asks TURN servers only
/// at the beginning of a negotiation, so a page begins another one for them, two seconds later.
///
/// ```
/// use std::time::Duration;
/// use throughline::{Config, Strategy};
///
/// let mut config = Config::default();
/// // TURN costs its operator, so the other strategies get three seconds first.
/// config.start_delays.turn = Duration::from_secs(3);
/// assert_eq!(config.start_delays.of(Strategy::Turn).as_millis(), 3_000);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct StartDelays {
    /// The peer's own addresses. Defaults to 0.
    #[serde(with = "millis")]
    pub direct: Duration,
    /// Hole punching. Defaults to 0.
    #[serde(with = "millis")]
    pub stun: Duration,
    /// Mapped ports. Defaults to 0.
    #[serde(with = "millis")]
    pub upnp: Duration,
    /// Relay circuits. Defaults to 0. When a sealed offer may make circuits unnecessary, the
    /// connector opens them one at a time, and up to four at a time while they turn out to be
    /// needed. The pauses between them grow with the time that they take. A circuit waits for 5 to
    /// 7.4 s at most while there is no other path.
    #[serde(with = "millis")]
    pub circuit_relay: Duration,
    /// TURN servers. Defaults to 1 s, so that servers are asked only when no direct path came up. A
    /// circuit carries the traffic meanwhile.
    #[serde(with = "millis")]
    pub turn: Duration,
    /// Many ports against symmetric NATs. Defaults to 1 s, so that ordinary hole punching comes
    /// first.
    #[serde(with = "millis")]
    pub birthday: Duration,
}

impl Default for StartDelays {
    fn default() -> Self {
        Self {
            direct: Duration::ZERO,
            stun: Duration::ZERO,
            upnp: Duration::ZERO,
            circuit_relay: Duration::ZERO,
            turn: TURN_START,
            birthday: BIRTHDAY_START,
        }
    }
}

impl StartDelays {
    /// Returns the delay of one strategy.
    pub fn of(&self, strategy: Strategy) -> Duration {
        match strategy {
            Strategy::Direct => self.direct,
            Strategy::Stun => self.stun,
            Strategy::Upnp => self.upnp,
            Strategy::CircuitRelay => self.circuit_relay,
            Strategy::Turn => self.turn,
            Strategy::Birthday => self.birthday,
        }
    }
}

/// Durations as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}
