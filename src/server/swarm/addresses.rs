//! The addresses where the relay listens, and those that it announces.

use std::{collections::BTreeSet, net::IpAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use super::ip_of;
use crate::{core::prefix::Prefix, native::interfaces, server::config::Layout};

/// Returns the addresses of QUIC, TCP and `/webrtc-direct` on the first port. In a layout of five ports,
/// `/webrtc-direct` is on the next port, where WebSocket has a port of its own too.
pub(in crate::server) fn listen_addresses(
    hosts: &[IpAddr],
    port: u16,
    layout: Layout,
) -> Vec<Multiaddr> {
    hosts
        .iter()
        .flat_map(|ip| {
            let host = Multiaddr::from(*ip);
            let direct = match layout {
                Layout::Five => next(port),
                Layout::One => port,
            };
            let websocket = host
                .clone()
                .with(Protocol::Tcp(next(port)))
                .with(Protocol::Ws("/".into()));
            let of_all = [
                host.clone()
                    .with(Protocol::Udp(port))
                    .with(Protocol::QuicV1),
                host.clone().with(Protocol::Tcp(port)),
                host.with(Protocol::Udp(direct))
                    .with(Protocol::WebRTCDirect),
            ];
            let of_five = (layout == Layout::Five).then_some(websocket);
            of_all.into_iter().chain(of_five)
        })
        .collect()
}

fn next(port: u16) -> u16 {
    if port == 0 { 0 } else { port.saturating_add(1) }
}

/// The addresses to announce: all configured addresses, and the bound addresses that others can
/// reach. If others can reach none, all bound addresses are announced.
pub(in crate::server) struct Announcements {
    pub(in crate::server) configured: Vec<Multiaddr>,
    pub(in crate::server) bound: BTreeSet<Multiaddr>,
    /// The networks that lead to nobody else.
    bridges: Vec<Prefix>,
    /// What stands for the bound addresses of its family, because a one-to-one NAT is before them.
    external: Option<IpAddr>,
}

impl Announcements {
    pub(in crate::server) fn new(configured: Vec<Multiaddr>, external: Option<IpAddr>) -> Self {
        Self {
            configured,
            bound: BTreeSet::new(),
            bridges: interfaces::bridges(),
            external,
        }
    }

    /// Whether an address of this machine is not announced, because it leads to containers only.
    fn is_of_bridge(&self, address: &Multiaddr) -> bool {
        let ip = ip_of(address);
        ip.is_some_and(|ip| self.bridges.iter().any(|prefix| prefix.contains(ip)))
    }

    /// Returns the addresses of this machine that are not announced for that reason.
    pub(in crate::server) fn hidden(&self) -> BTreeSet<IpAddr> {
        let current: BTreeSet<_> = self.current().iter().filter_map(ip_of).collect();
        let hidden = self.bound.iter().filter(|one| self.is_of_bridge(one));
        let hidden = hidden.filter_map(ip_of);
        hidden.filter(|ip| !current.contains(ip)).collect()
    }

    /// Replaces the IP address by the external one.
    fn translated(&self, address: &Multiaddr) -> Multiaddr {
        let is_inside = |ip: &IpAddr| ip_of(address).is_some_and(|of| of.is_ipv4() == ip.is_ipv4());
        let Some(external) = self.external.filter(is_inside) else {
            return address.clone();
        };
        let rest = address.iter().skip(1);
        rest.fold(Multiaddr::from(external), Multiaddr::with)
    }

    pub(in crate::server) fn current(&self) -> BTreeSet<Multiaddr> {
        let is_local = |address: &&Multiaddr| {
            ip_of(address).is_none_or(is_local) || self.is_of_bridge(address)
        };
        let reachable: BTreeSet<_> = self.bound.iter().filter(|a| !is_local(a)).collect();
        let bound = if reachable.is_empty() {
            self.bound.iter().collect()
        } else {
            reachable
        };
        let bound = bound.into_iter().map(|address| self.translated(address));
        bound.chain(self.configured.iter().cloned()).collect()
    }
}

/// Returns whether `ip` is a loopback or link-local address, which other machines cannot use.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The order of the printed addresses. QUIC is first because it connects fastest, and TCP follows.
pub(in crate::server) fn preference(address: &Multiaddr) -> u8 {
    match address.iter().nth(2) {
        Some(Protocol::QuicV1) => 0,
        Some(Protocol::P2p(_)) | None => 1,
        Some(Protocol::Ws(_)) => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn announcements(configured: &[&str], external: Option<&str>) -> Announcements {
        let configured = configured.iter().map(|text| text.parse().unwrap());
        let external = external.map(|ip| ip.parse().unwrap());
        let mut announce = Announcements::new(configured.collect(), external);
        announce.bridges = vec!["172.17.0.0/16".parse().unwrap()];
        announce
    }

    #[test]
    fn a_bridge_is_announced_only_where_nothing_else_is_there() {
        let mut announce = announcements(&[], None);
        announce.bound = addresses(&["/ip4/127.0.0.1/tcp/1", "/ip4/172.17.0.1/tcp/1"]);
        assert_eq!(announce.current(), announce.bound);
        assert!(announce.hidden().is_empty());
        announce.bound.extend(addresses(&["/ip4/10.0.0.5/tcp/1"]));
        assert_eq!(announce.current(), addresses(&["/ip4/10.0.0.5/tcp/1"]));
        let hidden = announce.hidden();
        assert_eq!(hidden, ["172.17.0.1".parse().unwrap()].into());
    }

    #[test]
    fn an_external_address_stands_for_those_of_its_family() {
        let mut announce = announcements(&["/ip4/198.51.100.1/tcp/9"], Some("203.0.113.1"));
        announce.bound = addresses(&[
            "/ip4/10.0.0.5/udp/1/quic-v1",
            "/ip4/10.1.0.5/udp/1/quic-v1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
        ]);
        let expected = addresses(&[
            "/ip4/203.0.113.1/udp/1/quic-v1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
            "/ip4/198.51.100.1/tcp/9",
        ]);
        assert_eq!(announce.current(), expected);
    }

    #[test]
    fn ports_follow_the_base() {
        let one = [
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/127.0.0.1/udp/4001/webrtc-direct",
        ];
        let five = [
            one[0],
            one[1],
            "/ip4/127.0.0.1/udp/4002/webrtc-direct",
            "/ip4/127.0.0.1/tcp/4002/ws",
        ];
        for (layout, expected) in [(Layout::One, &one[..]), (Layout::Five, &five[..])] {
            let texts: Vec<_> = listen_addresses(&["127.0.0.1".parse().unwrap()], 4001, layout)
                .iter()
                .map(Multiaddr::to_string)
                .collect();
            assert_eq!(texts, expected);
        }
        let ephemeral = listen_addresses(&["::".parse().unwrap()], 0, Layout::Five);
        assert!(ephemeral.iter().all(|a| a.to_string().contains("/0")));
    }

    #[test]
    fn loopback_is_announced_only_where_nothing_else_is_there() {
        let mut announce = announcements(&["/dns4/r.example/tcp/443/wss"], None);
        announce.bound = addresses(&["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"]);
        assert_eq!(
            announce.current(),
            addresses(&[
                "/ip4/127.0.0.1/tcp/1",
                "/ip6/::1/tcp/1",
                "/dns4/r.example/tcp/443/wss"
            ])
        );
        announce
            .bound
            .extend(addresses(&["/ip4/192.0.2.1/tcp/1", "/ip6/fe80::1/tcp/1"]));
        assert_eq!(
            announce.current(),
            addresses(&["/ip4/192.0.2.1/tcp/1", "/dns4/r.example/tcp/443/wss"])
        );
    }
}
