//! The one table of options: name, default, range, unit and meaning.
//!
//! [`Config::default`] and [`Config::validate`] come from this table. `make options` writes
//! `js/src/options.ts` and `docs/options.md` from it, and a test compares them with it.

use std::time::Duration;

use super::{Config, StartDelays, TurnServer};
use crate::{
    error::{Error, ErrorKind},
    event::Strategy,
};

/// Callers do not wait this long, because the race starts every strategy at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A strategy that needs longer than this has lost to another strategy long before.
const STRATEGY_TIMEOUT: Duration = Duration::from_secs(10);
/// The first path is as good a start as a better one, because streams move without loss.
const ACCEPTANCE_DELAY: Duration = Duration::ZERO;
/// RFC 8489 section 6.2.1 gives up after 39.5 s. ICE has no use for an answer after 5 s.
const STUN_TIMEOUT: Duration = Duration::from_secs(5);
/// Routers answer within 1 s or not at all. A mapping that comes later is still used.
const PORT_MAPPING_TIMEOUT: Duration = Duration::from_secs(5);
/// A relay that takes longer than this to be reached is worse than the next one.
const RELAY_TIMEOUT: Duration = Duration::from_secs(10);
/// In field studies, 97.6 % of the hole punches that succeed do so at the first try.
const UPGRADE_TRIES: u32 = 3;
/// The pause doubles at each try: 2 s, 4 s, 8 s.
const UPGRADE_BACKOFF: Duration = Duration::from_secs(2);
/// A machine that sleeps for a minute, or is in a tunnel, goes on. A peer that is gone for longer costs
/// only what its streams hold.
const RESUME_TIMEOUT: Duration = Duration::from_secs(120);
/// An idle path that has died is noticed within this time and `PROBE_TIMEOUT`. NAT mappings live
/// longer (RFC 4787 REQ-5 wants 2 min), so a probe also keeps them.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The wireless networks of our time repair a loss within half of this.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection without streams and handles is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most pauses of people and of requests are shorter. An idle circuit costs a relay memory and probes.
const CIRCUIT_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// 4 MiB in flight fill 400 Mbit/s at 80 ms and 1.6 Gbit/s at 20 ms. A stream may also hold this
/// much memory in each direction, but only if the reader is so far behind.
const STREAM_WINDOW: u32 = 4 << 20;
/// A dead relay costs a new dial. With two relays, the peer stays reachable meanwhile.
const RELAY_RESERVATIONS: usize = 2;
/// A stock relay grants this many circuits in all.
const MAX_CIRCUITS: usize = 16;
/// A test costs up to 100 kB and a dial by another machine, so it does not begin at once.
const AUTONAT_RETRY: Duration = Duration::from_secs(30);
/// With 256 open ports, 1,024 random probes find one of them with a probability of 98 %. They need
/// few of a NAT's entries.
const BIRTHDAY_SOCKETS: u16 = 256;
/// See `BIRTHDAY_SOCKETS`.
const BIRTHDAY_PROBES: u32 = 1024;
/// All probes take ten seconds. The packet rate is below that of a voice call in both directions.
const BIRTHDAY_RATE: u32 = 100;
/// Further connections are refused, so that nobody can make an idle peer hold unbounded state.
const MAX_CONNECTIONS: usize = 1024;
/// The limit is for one connection, both directions together.
const MAX_STREAMS: usize = 1024;

/// The values that an option may have. Both ends are included.
pub(crate) struct Range {
    pub(crate) name: &'static str,
    pub(crate) least: u64,
    pub(crate) most: u64,
    /// The unit. It is empty for a number that is no amount, such as a port.
    pub(crate) unit: &'static str,
}

impl Range {
    /// Checks a value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the name, the value, the range and the unit.
    pub(crate) fn check(&self, value: u64) -> Result<(), Error> {
        self.check_part("", value)
    }

    fn check_part(&self, part: &str, value: u64) -> Result<(), Error> {
        let Self {
            name,
            least,
            most,
            unit,
        } = self;
        if (*least..=*most).contains(&value) {
            return Ok(());
        }
        let space = if unit.is_empty() { "" } else { " " };
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("{name}{part}: {value} is not within {least} to {most}{space}{unit}"),
        ))
    }
}

/// The type of an option that has a range.
pub(crate) trait Ranged {
    fn check(&self, range: &Range) -> Result<(), Error>;
}

macro_rules! ranged {
    ($($value:ty: $number:expr;)*) => {
        $(impl $crate::config::options::Ranged for $value {
            fn check(&self, range: &Range) -> Result<(), Error> {
                let number: fn(&Self) -> u64 = $number;
                range.check(number(self))
            }
        })*
    };
}
#[allow(unused_imports, reason = "the table of the server's options needs it")]
pub(crate) use ranged;

ranged! {
    Duration: |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Vec<String>: |list| list.len() as u64;
    Vec<TurnServer>: |list| list.len() as u64;
    u16: |number| (*number).into();
    u32: |number| (*number).into();
    usize: |number| *number as u64;
}

impl Ranged for StartDelays {
    fn check(&self, range: &Range) -> Result<(), Error> {
        for strategy in Strategy::ALL {
            let delay = u64::try_from(self.of(*strategy).as_millis()).unwrap_or(u64::MAX);
            if delay > range.most {
                return range.check_part(&format!(".{strategy}"), delay);
            }
        }
        Ok(())
    }
}

/// Where an option has an effect.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Everywhere,
    /// The option has an effect in programs. A page ignores it.
    Native,
    /// The option has an effect in programs. A page has another option for it.
    Apart,
}

/// One row of the table, for the documentation.
#[cfg(test)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) ranges: &'static [Range],
    pub(crate) place: Place,
    pub(crate) meaning: &'static str,
}

/// Each row has the form: field "name in TOML" = default, range "unit", place, meaning.
macro_rules! options {
    ($(
        $field:ident $name:literal = $default:expr,
        $($least:literal..=$most:literal $unit:literal,)?
        $(and $other:ident: $other_least:literal..=$other_most:literal $other_unit:literal,)?
        [$place:ident], $meaning:literal;
    )*) => {
        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        $($(pub(super) const $other: Range = Range {
            name: $name,
            least: $other_least,
            most: $other_most,
            unit: $other_unit,
        };)?)*

        impl Config {
            pub(super) fn check_ranges(&self) -> Result<(), Error> {
                $($(self.$field.check(&Range {
                    name: $name,
                    least: $least,
                    most: $most,
                    unit: $unit,
                })?;)?)*
                Ok(())
            }
        }

        #[cfg(test)]
        pub(crate) const OPTIONS: &[Row] = &[$(Row {
            name: $name,
            ranges: &[
                $(Range { name: $name, least: $least, most: $most, unit: $unit },)?
                $($other,)?
            ],
            place: Place::$place,
            meaning: $meaning,
        },)*];
    };
}

options! {
    relays "relays" = Vec::new(), 0..=64 "texts", and RELAYS: 0..=16 "relays", [Everywhere],
        "The relays through which others can reach this peer: names, URLs, or multiaddresses that end in `/p2p/<id>`.";
    reserve "reserve" = true, [Everywhere],
        "Whether to hold reservations on relays, so that others can reach this peer through them.";
    relay_reservations "relay_reservations" = RELAY_RESERVATIONS, 1..=16 "relays", [Everywhere],
        "On how many relays to hold a reservation at a time.";
    relay_tokens "relay_tokens" = None, [Everywhere],
        "The token for relays that admit only its holders. A page can give a function that fetches one.";
    stun "stun" = Vec::new(), 0..=16 "servers", [Apart],
        "The STUN servers to ask, as `stun:host[:port]`. Without any, those that the relays name.";
    turn "turn" = Vec::new(), 0..=16 "servers", [Apart],
        "The TURN servers to use, each with `url`, `username` and `credential`. Without any, those that the relays name.";
    turn_ca "turn_ca" = None, [Native],
        "A PEM file of certificate authorities to trust for `turns:`, in addition to the public ones.";
    relay_ca "relay_ca" = None, [Native],
        "A PEM file of certificate authorities to trust for relays over TLS, in addition to the public ones.";
    listen "listen" = Vec::new(), 0..=16 "addresses", [Native],
        "The addresses to listen on. Without any, QUIC and TCP listen on every interface.";
    protocols "protocols" = Vec::new(), 0..=256 "protocols", [Everywhere],
        "The protocols for which stock libp2p peers may open streams.";
    direct "direct" = true, [Everywhere],
        "Whether to try for paths other than the relay.";
    dial_private "dial_private" = true, [Everywhere],
        "Whether to dial addresses in private networks and on this machine when others name them.";
    connect_timeout "connect_timeout_ms" = CONNECT_TIMEOUT, 100..=600_000 "ms", [Everywhere],
        "The longest time that a connect may take.";
    strategy_timeout "strategy_timeout_ms" = STRATEGY_TIMEOUT, 100..=600_000 "ms", [Everywhere],
        "The longest time that one attempt by one strategy may take.";
    start_delays "start_delays_ms" = StartDelays::default(), 0..=60_000 "ms", [Everywhere],
        "How long each strategy waits before it starts, by the strategy's name.";
    acceptance_delay "acceptance_delay_ms" = ACCEPTANCE_DELAY, 0..=60_000 "ms", [Everywhere],
        "How long a connect holds back a path that is not direct while a direct path may still come.";
    relay_timeout "relay_timeout_ms" = RELAY_TIMEOUT, 100..=600_000 "ms", [Everywhere],
        "The longest time that a relay may take to be reached and to grant a reservation.";
    stun_timeout "stun_timeout_ms" = STUN_TIMEOUT, 100..=60_000 "ms", [Everywhere],
        "The longest time that a STUN server may take to answer.";
    port_mapping "port_mapping" = true, [Everywhere],
        "Whether a native peer asks its router to forward a port. A page has no port to forward.";
    port_mapping_timeout "port_mapping_timeout_ms" = PORT_MAPPING_TIMEOUT, 100..=60_000 "ms", [Everywhere],
        "The longest time that the router may take to answer a native peer.";
    upgrade_tries "upgrade_tries" = UPGRADE_TRIES, 0..=100 "tries", [Everywhere],
        "How often a failed strategy for a direct path is repeated until it is only repeated once a minute.";
    upgrade_backoff "upgrade_backoff_ms" = UPGRADE_BACKOFF, 10..=600_000 "ms", [Everywhere],
        "The pause before a failed strategy is first repeated. It doubles each time.";
    resume_timeout "resume_timeout_ms" = RESUME_TIMEOUT, 0..=3_600_000 "ms", [Everywhere],
        "How long streams wait for a path after the last one is lost.";
    probe_interval "probe_interval_ms" = PROBE_INTERVAL, 250..=600_000 "ms", [Everywhere],
        "The pause between two probes of a path that carries nothing.";
    probe_timeout "probe_timeout_ms" = PROBE_TIMEOUT, 100..=60_000 "ms", [Everywhere],
        "The shortest time after which a path that leaves a probe unanswered is suspect.";
    idle_timeout "idle_timeout_ms" = IDLE_TIMEOUT, 0..=3_600_000 "ms", [Everywhere],
        "How long a connection without streams and handles stays open.";
    circuit_idle_timeout "circuit_idle_timeout_ms" = CIRCUIT_IDLE_TIMEOUT, 1_000..=86_400_000 "ms", [Everywhere],
        "How long a direct path may carry nothing until the circuit beside it is closed.";
    stream_window "stream_window" = STREAM_WINDOW, 65_536..=67_108_864 "bytes", [Everywhere],
        "How many bytes may be in flight on one stream in one direction.";
    max_circuits "max_circuits" = MAX_CIRCUITS, 1..=1_024 "circuits", [Everywhere],
        "How many circuits this peer has open through relays at a time.";
    autonat_retry "autonat_retry_ms" = AUTONAT_RETRY, 1_000..=3_600_000 "ms", [Native],
        "How long an address of this peer waits for its first test by an AutoNAT server.";
    directory "directory" = true, [Everywhere],
        "Whether relays may tell those who know this peer's id where it is.";
    mdns "mdns" = true, [Native],
        "Whether to ask the local network for the addresses that pages hide behind mDNS names.";
    lan_discovery "lan_discovery" = false, [Native],
        "Whether peers in the local network find this peer by its id, and it them, without any relay.";
    birthday "birthday" = true, [Native],
        "Whether the birthday method probes many ports of symmetric NATs when nothing else works.";
    birthday_sockets "birthday_sockets" = BIRTHDAY_SOCKETS, 1..=1_024 "sockets", [Native],
        "How many sockets the birthday method opens on the side of the symmetric NAT.";
    birthday_probes "birthday_probes" = BIRTHDAY_PROBES, 1..=65_536 "probes", [Native],
        "How many probes the birthday method sends from the other side at most.";
    birthday_rate "birthday_rate" = BIRTHDAY_RATE, 1..=10_000 "probes/s", [Native],
        "How many probes the birthday method sends per second.";
    max_connections "max_connections" = MAX_CONNECTIONS, 1..=65_536 "connections", [Everywhere],
        "How many connections are open at a time, in and out.";
    max_streams "max_streams" = MAX_STREAMS, 1..=65_536 "streams", [Everywhere],
        "How many streams are open at a time on one connection. A page has 480 at most, and 120 in Firefox.";
}
