//! The addresses where the relay listens, and those that it announces.

use std::{collections::BTreeSet, net::IpAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use super::ip_of;
use crate::server::config::Layout;

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
}

impl Announcements {
    pub(in crate::server) fn new(configured: Vec<Multiaddr>) -> Self {
        Self {
            configured,
            bound: BTreeSet::new(),
        }
    }

    pub(in crate::server) fn current(&self) -> BTreeSet<Multiaddr> {
        let is_local = |address: &&Multiaddr| ip_of(address).is_none_or(is_local);
        let reachable: BTreeSet<_> = self.bound.iter().filter(|a| !is_local(a)).collect();
        let bound = if reachable.is_empty() {
            self.bound.iter().collect()
        } else {
            reachable
        };
        bound.into_iter().chain(&self.configured).cloned().collect()
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
        let mut announce = Announcements::new(vec!["/dns4/r.example/tcp/443/wss".parse().unwrap()]);
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
