//! The description of a lab, as data.

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    error::{LabError, Result},
    link::{Link, PEER_ROUND_TRIP, RELAY_ROUND_TRIP},
    nat::{Nat, NatKind},
};

/// The most sites, and the most carriers, of a lab. Each has its own third byte of an address.
const MOST: usize = 200;

/// The names that the lab uses itself.
const RESERVED: [&str; 3] = ["internet", "relay", "other"];

/// A whole lab: an internet with two servers, and the sites around it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The networks of end users.
    #[serde(default)]
    pub sites: Vec<Site>,
    /// The carrier NATs that sites can be behind.
    #[serde(default)]
    pub carriers: Vec<CarrierNat>,
    /// The links of the two servers. Defaults to links as fast as the kernel.
    #[serde(default)]
    pub server_link: Option<Link>,
    /// Whether our server is no TURN server. Defaults to `false`.
    #[serde(default)]
    pub no_turn: bool,
}

/// One user's network: hosts on a LAN behind a router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The name of its first host. The other hosts are called `name2`, `name3`, and the router is
    /// called `name-router`.
    pub name: String,
    /// The router's policy.
    pub nat: Nat,
    /// How many hosts are on the LAN, 1 to 100. Defaults to 1.
    #[serde(default = "one")]
    pub hosts: usize,
    /// Whether hosts have IPv4. Defaults to `true`.
    #[serde(default = "yes")]
    pub ipv4: bool,
    /// Whether hosts have IPv6. It is behind a stateful firewall, unless the NAT kind is `none`.
    /// Defaults to `false`.
    #[serde(default)]
    pub ipv6: bool,
    /// Whether the router is a NAT64 with DNS64, by which hosts reach IPv4. Defaults to `false`.
    #[serde(default)]
    pub nat64: bool,
    /// The name of the carrier NAT that the site is behind. Defaults to none: the router is on the
    /// internet.
    #[serde(default)]
    pub carrier: Option<String>,
    /// The protocols by which hosts may ask the router for a mapping. Defaults to none.
    #[serde(default)]
    pub port_mapping: Option<PortMapping>,
    /// The link between the router and the internet. Defaults to a link as fast as the kernel,
    /// which cannot be changed later.
    #[serde(default)]
    pub link: Option<Link>,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

impl Site {
    /// Returns a site with one IPv4 host behind the given NAT.
    pub fn new(name: impl Into<String>, nat: impl Into<Nat>) -> Self {
        Self {
            name: name.into(),
            nat: nat.into(),
            hosts: 1,
            ipv4: true,
            ipv6: false,
            nat64: false,
            carrier: None,
            port_mapping: None,
            link: None,
        }
    }

    /// Puts `hosts` hosts on the LAN.
    pub fn hosts(self, hosts: usize) -> Self {
        Self { hosts, ..self }
    }

    /// Gives the hosts IPv6 besides IPv4.
    pub fn dual_stack(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// Gives the hosts IPv6 and no IPv4.
    pub fn ipv6_only(self) -> Self {
        Self {
            ipv4: false,
            ipv6: true,
            ..self
        }
    }

    /// Gives the hosts IPv6 alone, and makes the router a NAT64. Servers have IPv4 alone then.
    pub fn nat64(self) -> Self {
        Self {
            nat64: true,
            ..self.ipv6_only()
        }
    }

    /// Puts the site behind a carrier NAT of the lab.
    pub fn behind(self, carrier: impl Into<String>) -> Self {
        Self {
            carrier: Some(carrier.into()),
            ..self
        }
    }

    /// Lets hosts ask the router for mappings.
    pub fn port_mapping(self, port_mapping: PortMapping) -> Self {
        Self {
            port_mapping: Some(port_mapping),
            ..self
        }
    }

    /// Gives the site's uplink these conditions. They can be changed while the lab runs.
    pub fn link(self, link: Link) -> Self {
        Self {
            link: Some(link),
            ..self
        }
    }

    /// The name of host number `index`, counted from 0.
    pub(crate) fn host_name(&self, index: usize) -> String {
        if index == 0 {
            self.name.clone()
        } else {
            format!("{}{}", self.name, index + 1)
        }
    }

    /// The name of the router.
    pub(crate) fn router_name(&self) -> String {
        format!("{}-router", self.name)
    }
}

/// A carrier's NAT in front of home routers, with addresses of RFC 6598 between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarrierNat {
    /// The carrier's name.
    pub name: String,
    /// The carrier's policy.
    pub nat: Nat,
}

/// The port-mapping protocols that a router speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// UPnP-IGD with SSDP discovery.
    pub upnp: bool,
    /// NAT-PMP (RFC 6886) and PCP (RFC 6887).
    pub pcp: bool,
    /// Whether the router grants every mapping and forwards nothing.
    #[serde(default)]
    pub lies: bool,
}

impl PortMapping {
    /// All three protocols, by an honest router.
    pub const ALL: Self = Self {
        upnp: true,
        pcp: true,
        lies: false,
    };
    /// UPnP-IGD only.
    pub const UPNP: Self = Self {
        upnp: true,
        pcp: false,
        lies: false,
    };
    /// NAT-PMP and PCP only.
    pub const PCP: Self = Self {
        upnp: false,
        pcp: true,
        lies: false,
    };
    /// All three protocols, by a router that grants mappings and forwards nothing.
    pub const LYING: Self = Self {
        upnp: true,
        pcp: true,
        lies: true,
    };
}

impl Spec {
    /// Returns a lab with two peers, `a` and `b`, each behind its own router.
    pub fn pair(a: impl Into<Nat>, b: impl Into<Nat>) -> Self {
        Self {
            sites: vec![Site::new("a", a), Site::new("b", b)],
            ..Self::default()
        }
    }

    /// Adds a site.
    pub fn site(mut self, site: Site) -> Self {
        self.sites.push(site);
        self
    }

    /// Adds a carrier NAT.
    pub fn carrier(mut self, name: impl Into<String>, nat: impl Into<Nat>) -> Self {
        self.carriers.push(CarrierNat {
            name: name.into(),
            nat: nat.into(),
        });
        self
    }

    /// Keeps our server from being a TURN server.
    pub fn without_turn(self) -> Self {
        Self {
            no_turn: true,
            ..self
        }
    }

    /// Sets the delays for figures: [`RELAY_ROUND_TRIP`] from each peer to the relay, and
    /// [`PEER_ROUND_TRIP`] between peers.
    pub fn figure_delays(self) -> Self {
        self.round_trips(RELAY_ROUND_TRIP, PEER_ROUND_TRIP)
    }

    /// Spreads delay over the links so that both round trips hold. Each site's link gets a quarter
    /// of `peers`, and the servers' links get the rest of half of `relay`. `peers` can be twice
    /// `relay` at most.
    pub fn round_trips(mut self, relay: Duration, peers: Duration) -> Self {
        let site = peers / 4;
        for s in &mut self.sites {
            s.link = Some(Link {
                delay: site,
                ..s.link.unwrap_or_default()
            });
        }
        self.server_link = Some(Link {
            delay: (relay / 2).saturating_sub(site),
            ..self.server_link.unwrap_or_default()
        });
        self
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`LabError::Spec`] that names the field.
    pub fn check(&self) -> Result<()> {
        let bad = |text: String| Err(LabError::Spec(text));
        if self.sites.len() > MOST || self.carriers.len() > MOST {
            return bad(format!("more than {MOST} sites or carriers"));
        }
        let mut names: HashSet<String> = RESERVED.map(str::to_owned).into();
        let mut taken = |name: String| !names.insert(name);
        for carrier in &self.carriers {
            check_nat(&carrier.name, &carrier.nat)?;
            if carrier.nat.kind == NatKind::None {
                return bad(format!(
                    "carrier {}: without NAT its private addresses would lead nowhere",
                    carrier.name
                ));
            }
            if carrier.name.is_empty() || taken(carrier.name.clone()) {
                return bad(format!("carrier name {:?} is empty or taken", carrier.name));
            }
        }
        for site in &self.sites {
            check_nat(&site.name, &site.nat)?;
            if site.name.is_empty()
                || taken(site.router_name())
                || (0..site.hosts).any(|i| taken(site.host_name(i)))
            {
                return bad(format!("site name {:?} is empty or taken", site.name));
            }
            if !(1..=100).contains(&site.hosts) {
                return bad(format!("site {}: hosts must be 1 to 100", site.name));
            }
            if !site.ipv4 && !site.ipv6 {
                return bad(format!("site {}: neither ipv4 nor ipv6", site.name));
            }
            if site.nat64 && !site.ipv6 {
                return bad(format!("site {}: a NAT64 without ipv6", site.name));
            }
            if let Some(carrier) = &site.carrier {
                if !self.carriers.iter().any(|c| c.name == *carrier) {
                    return bad(format!(
                        "site {}: there is no carrier {carrier:?}",
                        site.name
                    ));
                }
                if site.nat.kind.is_public() {
                    return bad(format!(
                        "site {}: public addresses cannot stand behind a carrier NAT",
                        site.name
                    ));
                }
                if site.link.is_some() {
                    return bad(format!(
                        "site {}: a link behind a carrier cannot be shaped",
                        site.name
                    ));
                }
            }
        }
        Ok(())
    }
}

fn check_nat(name: &str, nat: &Nat) -> Result<()> {
    let bad = |text: &str| Err(LabError::Spec(format!("{name}: {text}")));
    if nat.hairpin && !nat.kind.can_hairpin() {
        return bad("hairpin needs endpoint-independent mappings kept in maps");
    }
    if nat.idle_timeout < Duration::from_secs(1) {
        return bad("idle_timeout_s must be at least 1");
    }
    if nat
        .lifetime
        .is_some_and(|lifetime| lifetime < Duration::from_millis(100))
    {
        return bad("lifetime_s must be at least 0.1");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_contradiction() {
        let reject = |spec: Spec, word: &str| {
            let error = spec.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        let kind = NatKind::PortRestricted;
        reject(Spec::pair(kind, kind).site(Site::new("a", kind)), "taken");
        reject(Spec::default().site(Site::new("relay", kind)), "taken");
        reject(
            Spec::default().site(Site::new("a", kind).behind("isp")),
            "no carrier",
        );
        reject(
            Spec::default().site(Site::new(
                "a",
                Nat::from(NatKind::SymmetricRandom).with_hairpin(),
            )),
            "hairpin",
        );
        reject(Spec::default().site(Site::new("a", kind).hosts(0)), "hosts");
        reject(
            Spec::default().carrier("isp", NatKind::None),
            "lead nowhere",
        );
        let nat64 = Site::new("a", kind).nat64();
        let without = Site {
            ipv4: true,
            ipv6: false,
            ..nat64
        };
        reject(Spec::default().site(without), "NAT64");
        Spec::pair(kind, NatKind::None).check().unwrap();
    }

    #[test]
    fn figure_delays_add_up() {
        let spec = Spec::pair(NatKind::None, NatKind::None).figure_delays();
        let site = spec.sites[0].link.unwrap().delay;
        let server = spec.server_link.unwrap().delay;
        assert_eq!(4 * site, PEER_ROUND_TRIP);
        assert_eq!(2 * (site + server), RELAY_ROUND_TRIP);
    }

    #[test]
    fn a_description_in_json_may_leave_out_defaults() {
        let spec: Spec = serde_json::from_str(
            r#"{"sites":[{"name":"a","nat":{"kind":"port-restricted"},"link":{"delay_ms":20,"loss":0.01}}]}"#,
        )
        .unwrap();
        assert_eq!(spec.sites[0].link.unwrap().delay, Duration::from_millis(20));
        assert!(serde_json::from_str::<Spec>(r#"{"sights":[]}"#).is_err());
    }
}
