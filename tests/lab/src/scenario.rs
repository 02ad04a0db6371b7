//! The situations of a matrix: two hosts, the network between them, and what theory allows.

use std::time::Duration;

use crate::{
    nat::{Nat, NatKind},
    spec::{PortMapping, Site, Spec},
    theory::{End, Peer, Theory, theory},
};

/// The peer that dials and the peer that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pairing {
    /// The peer that calls `connect`. It is behind the first NAT of a scenario.
    pub dialler: Peer,
    /// The peer that waits. It is behind the second NAT.
    pub listener: Peer,
}

impl Pairing {
    /// All four pairings.
    pub const ALL: [Self; 4] = [
        Self {
            dialler: Peer::Native,
            listener: Peer::Native,
        },
        Self {
            dialler: Peer::Browser,
            listener: Peer::Native,
        },
        Self {
            dialler: Peer::Native,
            listener: Peer::Browser,
        },
        Self {
            dialler: Peer::Browser,
            listener: Peer::Browser,
        },
    ];

    /// Whether no browser takes part.
    pub fn is_native(self) -> bool {
        self.dialler == Peer::Native && self.listener == Peer::Native
    }
}

impl std::fmt::Display for Pairing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}/{}", self.dialler, self.listener))
    }
}

/// One situation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// A text that says what the dialler is behind.
    pub a: String,
    /// A text that says what the listener is behind.
    pub b: String,
    /// The description of the lab.
    pub spec: Spec,
    /// The name of the dialler's host.
    pub a_host: String,
    /// The name of the listener's host.
    pub b_host: String,
    /// The two kinds, if the scenario is nothing but two kinds. A running lab can be changed into
    /// it then.
    pub kinds: Option<(NatKind, NatKind)>,
    ends: (Place, Place),
    /// The theory, if the kinds alone do not decide it.
    decided: Option<Theory>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    nat: NatKind,
    carrier: Option<NatKind>,
    mapped: bool,
}

impl From<NatKind> for Place {
    fn from(nat: NatKind) -> Self {
        Self {
            nat,
            carrier: None,
            mapped: false,
        }
    }
}

impl Scenario {
    /// Returns a scenario with two NAT kinds and nothing else.
    pub fn kinds(a: NatKind, b: NatKind) -> Self {
        let spec = Spec::pair(a, b).figure_delays();
        Self {
            kinds: Some((a, b)),
            ..Self::new(a.name(), b.name(), spec, a, b)
        }
    }

    fn new(a: &str, b: &str, spec: Spec, at_a: impl Into<Place>, at_b: impl Into<Place>) -> Self {
        Self {
            a: a.into(),
            b: b.into(),
            spec,
            a_host: "a".into(),
            b_host: "b".into(),
            kinds: None,
            ends: (at_a.into(), at_b.into()),
            decided: None,
        }
    }

    /// Returns what theory allows to these peers here.
    pub fn theory(&self, pairing: Pairing) -> Theory {
        let end = |place: Place, peer| End {
            peer,
            nat: place.nat,
            carrier: place.carrier,
            mapped: place.mapped,
        };
        self.decided.unwrap_or_else(|| {
            theory(
                end(self.ends.0, pairing.dialler),
                end(self.ends.1, pairing.listener),
            )
        })
    }

    /// Returns the most important scenarios, for every test run.
    pub fn short(pairing: Pairing) -> Vec<Self> {
        use NatKind::*;
        let mut pairs = vec![
            (PortRestricted, PortRestricted),
            (SymmetricRandom, FullCone),
            (SymmetricRandom, SymmetricRandom),
            (UdpBlocked, PortRestricted),
        ];
        if pairing.is_native() {
            pairs.extend([
                (None, Masquerade),
                (Firewall, NonPreserving),
                (AddressRestricted, AddressDependent),
                (PortRestricted, SymmetricSequential),
                (PortRestricted, SymmetricRandom),
                (Tcp443, PortRestricted),
            ]);
        } else {
            pairs.extend([(Tcp443, PortRestricted), (Masquerade, None)]);
        }
        let mut all: Vec<_> = pairs.into_iter().map(|(a, b)| Self::kinds(a, b)).collect();
        if pairing.is_native() {
            all.extend(Self::special());
        } else {
            all.push(Self::one_lan(false));
        }
        all
    }

    /// Returns scenarios with every kind and every kind, and the special ones.
    pub fn full(pairing: Pairing) -> Vec<Self> {
        let symmetric = pairing.dialler == pairing.listener;
        let mut all = Vec::new();
        for (i, a) in NatKind::ALL.into_iter().enumerate() {
            // The direction of the dial does not change what the NATs allow, so two peers of one
            // sort need only half of the pairs.
            let others = if symmetric {
                &NatKind::ALL[i..]
            } else {
                &NatKind::ALL[..]
            };
            all.extend(others.iter().map(|b| Self::kinds(a, *b)));
        }
        all.extend(Self::special());
        all
    }

    /// Returns scenarios with carriers, one LAN, port mapping, IPv6 and short-lived mappings.
    pub fn special() -> Vec<Self> {
        use NatKind::*;
        let figures = |spec: Spec| spec.figure_delays();
        let site = |name: &str, nat: NatKind| Site::new(name, nat);
        let mapped = |offers: PortMapping| {
            let home = Place {
                mapped: !offers.lies,
                ..SymmetricRandom.into()
            };
            (
                figures(
                    Spec::default()
                        .site(site("a", SymmetricRandom).port_mapping(offers))
                        .site(site("b", SymmetricRandom)),
                ),
                home,
            )
        };
        // Links behind a carrier cannot be shaped, so the other site has the delay there.
        let home = |name: &str| site(name, PortRestricted).behind("isp");
        let carrier = |kind: NatKind| {
            let mut spec = figures(
                Spec::default()
                    .site(site("b", PortRestricted))
                    .carrier("isp", kind),
            );
            spec.sites.insert(0, home("a"));
            (
                spec,
                Place {
                    carrier: Some(kind),
                    ..PortRestricted.into()
                },
            )
        };
        let both_homes = |carrier: Nat| {
            Spec::default()
                .carrier("isp", carrier)
                .site(home("a"))
                .site(home("b"))
        };
        let (upnp, upnp_home) = mapped(PortMapping::UPNP);
        let (pcp, pcp_home) = mapped(PortMapping::PCP);
        let (liar, liar_home) = mapped(PortMapping::LYING);
        let (cgnat, cgnat_home) = carrier(PortRestricted);
        let (hard_cgnat, hard_home) = carrier(SymmetricRandom);
        let short = Nat::from(PortRestricted).with_idle_timeout(Duration::from_secs(2));
        let fleeting = Nat::from(PortRestricted).with_lifetime(Duration::from_secs(3));
        let six = Spec::default().site(site("a", PortRestricted).ipv6_only());
        vec![
            Self::one_lan(false),
            Self::one_lan(true),
            Self::new(
                "port-restricted behind carrier port-restricted",
                "port-restricted",
                cgnat,
                cgnat_home,
                PortRestricted,
            ),
            Self::new(
                "port-restricted behind carrier symmetric",
                "port-restricted",
                hard_cgnat,
                hard_home,
                PortRestricted,
            ),
            Self {
                decided: Some(Theory::Relay),
                ..Self::new(
                    "home behind a carrier",
                    "same carrier, no hairpin",
                    both_homes(PortRestricted.into()),
                    PortRestricted,
                    PortRestricted,
                )
            },
            Self::new(
                "home behind a carrier",
                "same carrier, hairpin",
                both_homes(Nat::from(PortRestricted).with_hairpin()),
                PortRestricted,
                PortRestricted,
            ),
            Self::new(
                "symmetric-random with UPnP",
                "symmetric-random",
                upnp,
                upnp_home,
                SymmetricRandom,
            ),
            Self::new(
                "symmetric-random with PCP",
                "symmetric-random",
                pcp,
                pcp_home,
                SymmetricRandom,
            ),
            Self::new(
                "symmetric-random with lying UPnP",
                "symmetric-random",
                liar,
                liar_home,
                SymmetricRandom,
            ),
            Self::new(
                "mappings idle 2 s",
                "port-restricted",
                figures(Spec::pair(short, PortRestricted)),
                PortRestricted,
                PortRestricted,
            ),
            Self::new(
                "mappings live 3 s",
                "port-restricted",
                figures(Spec::pair(fleeting, PortRestricted)),
                PortRestricted,
                PortRestricted,
            ),
            Self::new(
                "IPv6 behind a firewall",
                "IPv6 behind a firewall",
                figures(six.clone().site(site("b", PortRestricted).ipv6_only())),
                Firewall,
                Firewall,
            ),
            Self {
                decided: Some(Theory::Direct),
                ..Self::new(
                    "dual stack, symmetric-random",
                    "dual stack, symmetric-random",
                    figures(
                        Spec::default()
                            .site(site("a", SymmetricRandom).dual_stack())
                            .site(site("b", SymmetricRandom).dual_stack()),
                    ),
                    SymmetricRandom,
                    SymmetricRandom,
                )
            },
            Self {
                decided: Some(Theory::Relay),
                ..Self::new(
                    "IPv6 only",
                    "IPv4 only",
                    figures(six.site(site("b", PortRestricted))),
                    Firewall,
                    PortRestricted,
                )
            },
            Self::new(
                "IPv6 and NAT64",
                "IPv4 only",
                figures(
                    Spec::default()
                        .site(site("a", PortRestricted).nat64())
                        .site(site("b", PortRestricted)),
                ),
                PortRestricted,
                PortRestricted,
            ),
        ]
    }

    fn one_lan(hairpin: bool) -> Self {
        let nat = Nat {
            hairpin,
            ..NatKind::PortRestricted.into()
        };
        let spec = Spec::default()
            .site(Site::new("a", nat).hosts(2))
            .figure_delays();
        let with = if hairpin {
            "same LAN, hairpin"
        } else {
            "same LAN, no hairpin"
        };
        Self {
            b_host: "a2".into(),
            decided: Some(Theory::Direct),
            ..Self::new(
                "port-restricted",
                with,
                spec,
                NatKind::PortRestricted,
                NatKind::PortRestricted,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_describes_a_lab_with_its_hosts() {
        for pairing in Pairing::ALL {
            for scenario in Scenario::full(pairing)
                .into_iter()
                .chain(Scenario::short(pairing))
            {
                scenario.spec.check().unwrap();
                for host in [&scenario.a_host, &scenario.b_host] {
                    assert!(
                        scenario
                            .spec
                            .sites
                            .iter()
                            .any(|site| (0..site.hosts).any(|i| site.host_name(i) == *host))
                    );
                }
            }
        }
        assert_eq!(
            Scenario::full(Pairing::ALL[0]).len(),
            12 * 13 / 2 + Scenario::special().len()
        );
    }
}
