//! How a description becomes commands: the namespaces, cables, addresses, routes and rules of a
//! lab.
//!
//! The addresses are ordinary unicast addresses, because port-mapping daemons and address filters
//! rightly refuse the documentation ranges. No interface leads out of the lab, so they harm nobody.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    link::Link,
    nat::{Nat, NatKind},
    rules,
    spec::{Site, Spec},
};

/// Everything that `Lab::up` has to make, in order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<Node>,
    pub(crate) cables: Vec<Cable>,
}

/// One namespace.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// The lines for `ip -batch`.
    pub(crate) commands: Vec<String>,
    /// The text for `nft -f`. It is empty for hosts.
    pub(crate) rules: String,
    pub(crate) nat: Option<Nat>,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// One link between two namespaces.
#[derive(Debug)]
pub(crate) struct Cable {
    /// The name of the node whose uplink it is. It is `None` inside a site.
    pub(crate) name: Option<String>,
    pub(crate) ends: [(usize, String); 2],
    /// The conditions. They are `None` for a bare virtual cable.
    pub(crate) link: Option<Link>,
}

/// The two addresses of the relay host. RFC 5780 needs both.
pub(crate) const RELAY: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 1, 0, 2), Ipv4Addr::new(11, 1, 0, 3)];
pub(crate) const RELAY6: [Ipv6Addr; 2] = [v6(0, 1, 2), v6(0, 1, 3)];

const fn v6(kind: u16, index: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2610, 0x1ab, kind, index, 0, 0, 0, host)
}

/// Returns the address of a router or a carrier on the internet.
fn wan(net: u8, index: u8) -> Ipv4Addr {
    Ipv4Addr::new(11, net, index, 2)
}

/// Returns the first three bytes of a site's LAN.
pub(crate) fn lan(index: u8, kind: NatKind) -> [u8; 3] {
    if kind.is_public() {
        [11, 3, index]
    } else {
        [192, 168, index]
    }
}

/// Returns the IPv6 address of a site's router on its LAN.
pub(crate) const fn lan6(index: u16) -> Ipv6Addr {
    v6(3, index, 1)
}

/// Returns the address `host` of the LAN `net`.
pub(crate) fn at(net: [u8; 3], host: u8) -> Ipv4Addr {
    Ipv4Addr::new(net[0], net[1], net[2], host)
}

/// Returns the last byte of the address of a site's host number `index`.
pub(crate) fn host_byte(index: usize) -> u8 {
    10 + index as u8
}

const INTERNET: usize = 0;

impl Plan {
    pub(crate) fn new(spec: &Spec) -> Self {
        let mut plan = Self::default();
        plan.node("internet");
        // Packets to private networks disappear without an answer, as in the real internet.
        for private in [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "169.254.0.0/16",
        ] {
            plan.nodes[INTERNET]
                .commands
                .push(format!("route add blackhole {private}"));
        }
        for (index, name) in [(0, "relay"), (1, "other")] {
            let server = plan.node(name);
            plan.uplink(
                server,
                "eth0",
                name,
                [11, 1, index],
                (0, u16::from(index) + 1),
                spec.server_link,
            );
            if index == 0 {
                let [_, second] = RELAY;
                let [_, second6] = RELAY6;
                plan.run(
                    server,
                    [
                        format!("addr add {second}/24 dev eth0"),
                        format!("addr add {second6}/64 dev eth0 nodad"),
                    ],
                );
            }
        }
        for (carrier, index) in spec.carriers.iter().zip(1..) {
            plan.carrier(&carrier.name, carrier.nat, index);
        }
        for (site, index) in spec.sites.iter().zip(1..) {
            plan.site(site, index, spec);
        }
        plan
    }

    /// Returns the number of the node called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    fn node(&mut self, name: impl Into<String>) -> usize {
        let commands = vec!["link set lo up".to_owned()];
        self.nodes.push(Node {
            name: name.into(),
            commands,
            rules: String::new(),
            nat: None,
            ipv4: None,
            ipv6: None,
        });
        self.nodes.len() - 1
    }

    fn run(&mut self, node: usize, commands: impl IntoIterator<Item = String>) {
        self.nodes[node].commands.extend(commands);
    }

    /// Connects `node` with the internet over the network `net`.0/24 and its IPv6 companion.
    fn uplink(
        &mut self,
        node: usize,
        device: &str,
        name: &str,
        net: [u8; 3],
        net6: (u16, u16),
        link: Option<Link>,
    ) {
        let number = self.cables.len();
        let core = format!("up{number}");
        self.cables.push(Cable {
            name: Some(name.to_owned()),
            ends: [(node, device.to_owned()), (INTERNET, core.clone())],
            link,
        });
        let near = (at(net, 2), v6(net6.0, net6.1, 2));
        let far = (at(net, 1), v6(net6.0, net6.1, 1));
        for (node, device, side, (ip, ip6), (peer, peer6)) in [
            (node, device, 1, near, far),
            (INTERNET, &core, 2, far, near),
        ] {
            let mac = |side: u8| format!("02:00:00:00:{number:02x}:{side:02x}");
            self.run(
                node,
                [
                    format!("link set {device} address {}", mac(side)),
                    format!("addr add {ip}/24 dev {device}"),
                    format!("addr add {ip6}/64 dev {device} nodad"),
                    format!("link set {device} up"),
                    // Neighbours are known in advance, so that no first packet waits for address
                    // resolution.
                    format!(
                        "neigh replace {peer} lladdr {} dev {device} nud permanent",
                        mac(3 - side)
                    ),
                    format!(
                        "neigh replace {peer6} lladdr {} dev {device} nud permanent",
                        mac(3 - side)
                    ),
                ],
            );
        }
        self.run(
            node,
            [
                format!("route add default via {}", far.0),
                format!("route add ::/0 via {}", far.1),
            ],
        );
        self.nodes[node].ipv4 = Some(near.0);
        self.nodes[node].ipv6 = Some(near.1);
    }

    fn carrier(&mut self, name: &str, nat: Nat, index: u8) {
        let node = self.node(name);
        let index6 = u16::from(index);
        self.uplink(node, "wan", name, [11, 4, index], (4, index6), None);
        self.run(
            node,
            [
                "link add lan type bridge forward_delay 0".to_owned(),
                format!("addr add 100.64.{index}.1/24 dev lan"),
                format!("addr add {}/64 dev lan nodad", v6(5, index6, 1)),
                "link set lan up".to_owned(),
            ],
        );
        self.nodes[node].rules = rules::text(&nat, wan(4, index));
        self.nodes[node].nat = Some(nat);
    }

    fn site(&mut self, site: &Site, index: u8, spec: &Spec) {
        let router = self.node(site.router_name());
        let index6 = u16::from(index);
        let carrier = site
            .carrier
            .as_ref()
            .and_then(|name| (1..).zip(&spec.carriers).find(|(_, c)| c.name == *name));
        let (external, via6) = match carrier {
            None => {
                self.uplink(
                    router,
                    "wan",
                    &site.name,
                    [11, 2, index],
                    (2, index6),
                    site.link,
                );
                let via = wan(2, index);
                self.run(
                    INTERNET,
                    [format!(
                        "route add {}/24 via {via}",
                        at(lan(index, NatKind::None), 0)
                    )],
                );
                (via, v6(2, index6, 2))
            }
            Some((number, carrier)) => self.home_uplink(router, index, number, &carrier.name),
        };
        if site.ipv6 {
            self.run(
                INTERNET,
                [format!("route add {}/64 via {via6}", v6(3, index6, 0))],
            );
        }

        let net = lan(index, site.nat.kind);
        self.run(
            router,
            ["link add lan type bridge forward_delay 0".to_owned()],
        );
        if site.ipv4 {
            self.run(router, [format!("addr add {}/24 dev lan", at(net, 1))]);
        }
        if site.ipv6 {
            self.run(
                router,
                [format!("addr add {}/64 dev lan nodad", lan6(index6))],
            );
        }
        self.run(router, ["link set lan up".to_owned()]);
        self.nodes[router].rules = rules::text(&site.nat, external);
        self.nodes[router].nat = Some(site.nat);

        for number in 0..site.hosts {
            let host = self.node(site.host_name(number));
            let port = format!("h{number}");
            self.cables.push(Cable {
                name: None,
                ends: [(host, "eth0".to_owned()), (router, port.clone())],
                link: None,
            });
            self.run(
                router,
                [
                    format!("link set {port} master lan"),
                    format!("link set {port} up"),
                ],
            );
            self.run(host, ["link set eth0 up".to_owned()]);
            if site.ipv4 {
                let ip = at(net, host_byte(number));
                self.run(
                    host,
                    [
                        format!("addr add {ip}/24 dev eth0"),
                        format!("route add default via {}", at(net, 1)),
                    ],
                );
                self.nodes[host].ipv4 = Some(ip);
            }
            if site.ipv6 {
                let ip = v6(3, index6, host_byte(number).into());
                self.run(
                    host,
                    [
                        format!("addr add {ip}/64 dev eth0 nodad"),
                        format!("route add ::/0 via {}", lan6(index6)),
                    ],
                );
                self.nodes[host].ipv6 = Some(ip);
            }
        }
    }

    /// Puts a home router on a carrier's inner network. Returns the router's external address and the hop by which
    /// the internet reaches its IPv6 network.
    fn home_uplink(
        &mut self,
        router: usize,
        index: u8,
        carrier: u8,
        carrier_name: &str,
    ) -> (Ipv4Addr, Ipv6Addr) {
        let index6 = u16::from(index);
        let carrier6 = u16::from(carrier);
        let (Some(isp), port) = (self.find(carrier_name), format!("c{index}")) else {
            unreachable!("Spec::check has seen the carrier, and carriers come before sites")
        };
        self.cables.push(Cable {
            name: None,
            ends: [(router, "wan".to_owned()), (isp, port.clone())],
            link: None,
        });
        let (ip, ip6) = (
            Ipv4Addr::new(100, 64, carrier, 10 + index),
            v6(5, carrier6, 10 + index6),
        );
        self.run(
            isp,
            [
                format!("link set {port} master lan"),
                format!("link set {port} up"),
                format!("route add {}/64 via {ip6}", v6(3, index6, 0)),
            ],
        );
        self.run(
            router,
            [
                format!("addr add {ip}/24 dev wan"),
                format!("addr add {ip6}/64 dev wan nodad"),
                "link set wan up".to_owned(),
                format!("route add default via 100.64.{carrier}.1"),
                format!("route add ::/0 via {}", v6(5, carrier6, 1)),
            ],
        );
        self.nodes[router].ipv4 = Some(ip);
        self.nodes[router].ipv6 = Some(ip6);
        (ip, v6(4, carrier6, 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_needs_seven_namespaces() {
        let plan = Plan::new(&Spec::pair(NatKind::PortRestricted, NatKind::None));
        let names: Vec<_> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "internet", "relay", "other", "a-router", "a", "b-router", "b"
            ]
        );
        let address = |name| {
            plan.nodes[plan.find(name).unwrap()]
                .ipv4
                .unwrap()
                .to_string()
        };
        assert_eq!(address("a"), "192.168.1.10");
        assert_eq!(address("b"), "11.3.2.10");
        assert_eq!(address("relay"), RELAY[0].to_string());
    }
}
