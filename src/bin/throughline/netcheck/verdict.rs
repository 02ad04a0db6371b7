//! The one sentence that says who can reach this machine, and how.

use std::net::IpAddr;

use throughline::{NatMapping, NatPorts, NatReport, PortMappingState, RelayReport, Report};

/// What the verdict follows from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// How many relays are configured.
    pub(crate) relays: usize,
    /// How many of them hold a reservation.
    pub(crate) reserved: usize,
    /// Whether direct paths are allowed.
    pub(crate) direct: bool,
    /// Whether a relay has reached an address of this machine by a dial of its own.
    pub(crate) confirmed: bool,
    /// Whether the router says that it forwards a port.
    pub(crate) mapped: bool,
    /// Whether this machine listens at a public address.
    pub(crate) public: bool,
    /// Whether one of the configured STUN servers answers, or `None` if none is configured.
    pub(crate) stun: Option<bool>,
    pub(crate) mapping: NatMapping,
    pub(crate) ports: NatPorts,
}

/// Who can reach this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) sentence: String,
    /// Whether anybody outside of this network can.
    pub(crate) reachable: bool,
}

impl Facts {
    pub(crate) fn of(report: &Report, direct: bool) -> Self {
        let nat = &report.nat;
        let answers = |nat: &NatReport| nat.stun.iter().any(|server| server.mapped.is_some());
        Self {
            relays: report.relays.len(),
            reserved: report.relays.iter().filter(|relay| relay.reserved).count(),
            direct,
            confirmed: !report.confirmed.is_empty(),
            mapped: nat.port_mapping == PortMappingState::Mapped,
            public: report.listening.iter().any(|address| is_public(address)),
            stun: (!nat.stun.is_empty()).then(|| answers(nat)),
            mapping: nat.mapping,
            ports: nat.ports,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let open = self.open();
        let sentence = match (self.reserved > 0, open) {
            (true, Some(how)) => {
                format!(
                    "Every peer can reach this machine: directly{how}, and else through a relay."
                )
            }
            (true, None) => {
                let (most, others) = self.punched();
                format!("Every peer can reach this machine: {most}{others}.")
            }
            (false, Some(how)) => format!(
                "Peers can reach this machine directly{how}, and no relay helps those who cannot."
            ),
            (false, None) => {
                let why = match self.relays {
                    0 => "no relay is configured",
                    _ => "no relay holds a reservation",
                };
                format!("Nobody outside of this network can reach this machine: {why}.")
            }
        };
        Verdict {
            sentence,
            reachable: self.reserved > 0 || open.is_some(),
        }
    }

    /// Returns how peers reach an address of this machine without any help, if they do.
    fn open(&self) -> Option<&'static str> {
        match self {
            Self { direct: false, .. } => None,
            Self {
                confirmed: true, ..
            } => Some(", as a relay has tried"),
            Self { mapped: true, .. } => Some(" if the router forwards as it says"),
            Self { public: true, .. } => Some(" unless a firewall is in the way"),
            _ => None,
        }
    }

    /// Returns who comes directly with the help of a relay, and how the others come.
    fn punched(&self) -> (&'static str, &'static str) {
        const OTHERS: &str = ", the others through a relay";
        match (self.mapping, self.ports, self.stun) {
            _ if !self.direct => ("through a relay only, because direct paths are off", ""),
            (NatMapping::None, ..) => ("directly where no firewall is in the way", OTHERS),
            (NatMapping::EndpointIndependent, ..) => ("most directly by hole punching", OTHERS),
            (_, NatPorts::Contiguous, _) => ("most directly by guessing the next port", OTHERS),
            (NatMapping::AddressDependent | NatMapping::AddressAndPortDependent, ..) => (
                "directly if no NAT or an open one is in front of them",
                OTHERS,
            ),
            (.., None) => (
                "through a relay",
                "; whether also directly is not known, because no STUN server is configured",
            ),
            (.., Some(true)) => (
                "through a relay",
                ", and probably also directly; a second STUN server would tell",
            ),
            (.., Some(false)) => (
                "through a relay only",
                ", because no STUN server answers: UDP may be blocked",
            ),
        }
    }
}

/// Whether a relay cannot be used: it was not reached, or it grants no reservation.
pub(crate) fn is_dead(relay: &RelayReport) -> bool {
    !relay.reserved
}

/// Whether a multiaddress begins with an IP address that the internet routes.
fn is_public(address: &str) -> bool {
    let ip = address.split('/').nth(2).and_then(|ip| ip.parse().ok());
    !address.contains("/p2p-circuit") && ip.is_some_and(is_routed)
}

/// Leaves out the addresses of RFC 1918, 3927, 4193, 4291 and 6598.
fn is_routed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            let special = ip.is_private() || ip.is_loopback() || ip.is_link_local();
            !(special || shared || ip.is_unspecified() || ip.is_documentation())
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            relays: 2,
            reserved: 1,
            direct: true,
            stun: Some(true),
            ..Facts::default()
        }
    }

    #[track_caller]
    fn says(facts: &Facts, reachable: bool, words: &str) {
        let verdict = facts.verdict();
        assert!(verdict.sentence.contains(words), "{}", verdict.sentence);
        assert_eq!(verdict.reachable, reachable);
        assert!(!verdict.sentence.contains('\n') && verdict.sentence.ends_with('.'));
    }

    #[test]
    fn with_a_relay_everybody_comes() {
        let of = |mapping, ports| Facts {
            mapping,
            ports,
            ..facts()
        };
        use NatMapping as M;
        for (mapping, ports, words) in [
            (
                M::EndpointIndependent,
                NatPorts::Preserved,
                "hole punching, the others through a relay",
            ),
            (
                M::AddressDependent,
                NatPorts::Contiguous,
                "guessing the next port",
            ),
            (M::AddressAndPortDependent, NatPorts::Random, "an open one"),
            (M::None, NatPorts::Preserved, "no firewall"),
            (
                M::Unknown,
                NatPorts::Unknown,
                "a second STUN server would tell",
            ),
        ] {
            says(&of(mapping, ports), true, words);
        }
        says(
            &Facts {
                stun: None,
                ..facts()
            },
            true,
            "no STUN server is configured",
        );
        says(
            &Facts {
                stun: Some(false),
                ..facts()
            },
            true,
            "UDP may be blocked",
        );
        says(
            &Facts {
                direct: false,
                public: true,
                ..facts()
            },
            true,
            "direct paths are off",
        );
        says(
            &Facts {
                confirmed: true,
                ..facts()
            },
            true,
            "directly, as a relay has tried, and else",
        );
    }

    #[test]
    fn without_a_relay_only_an_open_address_helps() {
        let alone = Facts {
            reserved: 0,
            ..facts()
        };
        says(&alone, false, "no relay holds a reservation");
        says(
            &Facts {
                relays: 0,
                ..alone.clone()
            },
            false,
            "no relay is configured",
        );
        says(
            &Facts {
                public: true,
                ..alone.clone()
            },
            true,
            "unless a firewall",
        );
        says(
            &Facts {
                mapped: true,
                ..alone
            },
            true,
            "if the router forwards",
        );
    }

    #[test]
    fn public_addresses_are_those_that_the_internet_routes() {
        for public in ["/ip4/8.8.8.8/udp/1/quic-v1", "/ip6/2a00::1/tcp/1"] {
            assert!(is_public(public), "{public}");
        }
        for other in [
            "/ip4/192.168.0.1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/dns/a.example/tcp/1",
            "/ip4/8.8.8.8/udp/1/quic-v1/p2p/x/p2p-circuit",
        ] {
            assert!(!is_public(other), "{other}");
        }
    }
}
