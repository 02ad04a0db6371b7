//! NAT kinds as data, in the terms of RFC 4787.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// The idle time after which a NAT forgets a UDP mapping: 5 minutes, as RFC 4787 REQ-5 recommends.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The first external port of [`NatKind::SymmetricSequential`].
pub const SEQUENTIAL_FIRST_PORT: u16 = 40_000;

/// The number of mappings after which [`NatKind::SymmetricSequential`] starts again at its first
/// port.
pub const SEQUENTIAL_PORTS: u16 = 1_024;

/// How a router treats the packets that pass through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NatKind {
    /// No NAT and no filter: hosts have public addresses.
    None,
    /// Public addresses behind a stateful firewall. Only answers come in.
    Firewall,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address-and-port-dependent filtering. It survives port
    /// collisions.
    PortRestricted,
    /// Linux's usual `masquerade`. It is port-restricted until two hosts use one port.
    Masquerade,
    /// Endpoint-independent mapping that never keeps the port, address-and-port-dependent filtering.
    NonPreserving,
    /// A new random port for each remote address.
    AddressDependent,
    /// The next port for each remote endpoint, counting up from [`SEQUENTIAL_FIRST_PORT`].
    SymmetricSequential,
    /// A new random port for each remote endpoint.
    SymmetricRandom,
    /// All UDP is dropped, and TCP passes.
    UdpBlocked,
    /// Only TCP to port 443 passes.
    Tcp443,
}

impl NatKind {
    /// Every kind, from the friendliest to the most hostile.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::Firewall,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Masquerade,
        Self::NonPreserving,
        Self::AddressDependent,
        Self::SymmetricSequential,
        Self::SymmetricRandom,
        Self::UdpBlocked,
        Self::Tcp443,
    ];

    /// The name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Firewall => "firewall",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Masquerade => "masquerade",
            Self::NonPreserving => "non-preserving",
            Self::AddressDependent => "address-dependent",
            Self::SymmetricSequential => "symmetric-sequential",
            Self::SymmetricRandom => "symmetric-random",
            Self::UdpBlocked => "udp-blocked",
            Self::Tcp443 => "tcp443",
        }
    }

    /// Whether hosts behind it keep public addresses.
    pub const fn is_public(self) -> bool {
        matches!(self, Self::None | Self::Firewall)
    }

    /// Returns the behaviour of the kind in the terms of RFC 4787, or `None` if no UDP passes.
    pub const fn behaviour(self) -> Option<Behaviour> {
        use {Filtering as F, Mapping as M, Ports as P};
        let (mapping, filtering, ports) = match self {
            Self::None => (M::EndpointIndependent, F::EndpointIndependent, P::Preserved),
            Self::Firewall => (
                M::EndpointIndependent,
                F::AddressAndPortDependent,
                P::Preserved,
            ),
            Self::FullCone => (M::EndpointIndependent, F::EndpointIndependent, P::Preserved),
            Self::AddressRestricted => (M::EndpointIndependent, F::AddressDependent, P::Preserved),
            Self::PortRestricted | Self::Masquerade => (
                M::EndpointIndependent,
                F::AddressAndPortDependent,
                P::Preserved,
            ),
            Self::NonPreserving => (
                M::EndpointIndependent,
                F::AddressAndPortDependent,
                P::Random,
            ),
            Self::AddressDependent => (M::AddressDependent, F::AddressAndPortDependent, P::Random),
            Self::SymmetricSequential => (
                M::AddressAndPortDependent,
                F::AddressAndPortDependent,
                P::Sequential,
            ),
            Self::SymmetricRandom => (
                M::AddressAndPortDependent,
                F::AddressAndPortDependent,
                P::Random,
            ),
            Self::UdpBlocked | Self::Tcp443 => return None,
        };
        Some(Behaviour {
            mapping,
            filtering,
            ports,
        })
    }

    /// Whether the rule set keeps mappings in its own sets, besides the connection tracker.
    pub(crate) const fn has_maps(self) -> bool {
        self.can_hairpin() || matches!(self, Self::AddressDependent)
    }

    /// Whether hosts behind it can use its mappings too.
    pub(crate) const fn can_hairpin(self) -> bool {
        matches!(
            self,
            Self::FullCone | Self::AddressRestricted | Self::PortRestricted | Self::NonPreserving
        )
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NatKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
                format!("unknown NAT kind {name:?}; use one of {}", names.join(", "))
            })
    }
}

/// When a NAT reuses the mapping of an internal endpoint (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// The NAT reuses a mapping for every destination.
    EndpointIndependent,
    /// The NAT reuses a mapping for destinations with the same address.
    AddressDependent,
    /// The NAT never reuses a mapping.
    AddressAndPortDependent,
}

/// Whom a NAT lets in through a mapping (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// The NAT lets in everybody.
    EndpointIndependent,
    /// The NAT lets in addresses that the internal endpoint has sent to.
    AddressDependent,
    /// The NAT lets in endpoints that the internal endpoint has sent to.
    AddressAndPortDependent,
}

/// How a NAT picks external ports (RFC 4787 section 4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// The NAT keeps the internal port if that is free.
    Preserved,
    /// The NAT takes the next port of a sequence.
    Sequential,
    /// The NAT takes any port.
    Random,
}

/// The three answers that decide whether a hole can be punched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behaviour {
    /// When the NAT reuses a mapping.
    pub mapping: Mapping,
    /// Whom the NAT lets in through a mapping.
    pub filtering: Filtering,
    /// How the NAT picks external ports.
    pub ports: Ports,
}

impl Behaviour {
    /// Returns what two NATs in a row look like from outside. For each answer, the stricter one
    /// counts.
    pub fn behind(self, outer: Self) -> Self {
        Self {
            mapping: self.mapping.max(outer.mapping),
            filtering: self.filtering.max(outer.filtering),
            // The outer NAT chooses the ports, unless it preserves those of the inner NAT.
            ports: if outer.ports == Ports::Preserved {
                self.ports
            } else {
                outer.ports
            },
        }
    }
}

/// A router's whole policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// The kind of NAT.
    pub kind: NatKind,
    /// Whether hosts behind it reach each other by their external addresses (RFC 4787 REQ-9).
    ///
    /// This works only for kinds that keep endpoint-independent maps. Defaults to `false`, as on
    /// most home routers.
    #[serde(default)]
    pub hairpin: bool,
    /// After how many seconds without outbound traffic a UDP mapping is forgotten, at least 1.
    ///
    /// Defaults to [`DEFAULT_IDLE_TIMEOUT`].
    #[serde(
        default = "default_idle",
        with = "crate::units::seconds",
        rename = "idle_timeout_s"
    )]
    pub idle_timeout: Duration,
    /// After how much time every UDP mapping is forgotten, however busy it is, again and again.
    /// Defaults to never.
    #[serde(
        default,
        with = "crate::units::optional_seconds",
        rename = "lifetime_s"
    )]
    pub lifetime: Option<Duration>,
}

fn default_idle() -> Duration {
    DEFAULT_IDLE_TIMEOUT
}

impl From<NatKind> for Nat {
    fn from(kind: NatKind) -> Self {
        Self {
            kind,
            hairpin: false,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            lifetime: None,
        }
    }
}

impl Nat {
    /// Lets hosts behind the NAT reach each other by their external addresses.
    pub fn with_hairpin(self) -> Self {
        Self {
            hairpin: true,
            ..self
        }
    }

    /// Forgets idle mappings after `timeout` (whole seconds, at least 1).
    pub fn with_idle_timeout(self, timeout: Duration) -> Self {
        Self {
            idle_timeout: timeout,
            ..self
        }
    }

    /// Forgets every mapping each time `lifetime` has passed.
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self {
            lifetime: Some(lifetime),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for kind in NatKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!(
            "cone"
                .parse::<NatKind>()
                .unwrap_err()
                .contains("port-restricted")
        );
    }

    #[test]
    fn two_nats_in_a_row_are_as_strict_as_the_stricter_one() {
        let cone = NatKind::FullCone.behaviour().unwrap();
        let random = NatKind::SymmetricRandom.behaviour().unwrap();
        let restricted = NatKind::PortRestricted.behaviour().unwrap();
        assert_eq!(cone.behind(random), random);
        assert_eq!(random.behind(cone), random);
        assert_eq!(cone.behind(restricted), restricted);
    }

    #[test]
    fn a_nat_reads_back_from_json() {
        let nat: Nat = serde_json::from_str(r#"{"kind":"full-cone","idle_timeout_s":2}"#).unwrap();
        assert_eq!(
            nat,
            Nat::from(NatKind::FullCone).with_idle_timeout(Duration::from_secs(2))
        );
        let text = serde_json::to_string(&nat).unwrap();
        assert_eq!(serde_json::from_str::<Nat>(&text).unwrap(), nat);
    }
}
