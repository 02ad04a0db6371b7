//! The addresses and URLs that clients are told, made from the sockets that are bound.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr};

use super::{
    listeners::{self, bind_error},
    stun, swarm,
};
use crate::{
    core::{site::HTTPS_PORT, subject::Subject},
    error::Error,
    native::{transports::handed::Way, udp::Sockets},
};

/// Returns the addresses that UDP sockets are bound to.
pub(super) fn udp_addresses(sockets: &[Sockets]) -> Vec<SocketAddr> {
    sockets.iter().filter_map(Sockets::bound).collect()
}

/// Returns the IP addresses that others are told. A wildcard host stands for the addresses of the
/// interfaces, and `external` for those of its family.
pub(super) fn announced_ips(
    hosts: &[IpAddr],
    external: Option<IpAddr>,
    addresses: &[Multiaddr],
) -> Vec<IpAddr> {
    let is_inside = |host: &IpAddr| external.is_some_and(|ip| ip.is_ipv4() == host.is_ipv4());
    let specific = hosts.iter().copied();
    let specific = specific.filter(|host| !host.is_unspecified() && !is_inside(host));
    let mut ips: Vec<IpAddr> = specific
        .chain(addresses.iter().filter_map(swarm::ip_of))
        .collect();
    ips.sort();
    ips.dedup();
    ips
}

pub(super) fn stun_urls(bound: &[SocketAddr], ips: &[IpAddr]) -> Vec<String> {
    let reached = bound.iter().flat_map(|bound| reachable(*bound, ips));
    reached.map(|address| format!("stun:{address}")).collect()
}

/// Returns the layout of `hosts` with these STUN sockets. A wildcard socket says its address only if the
/// machine has a single address of its family.
pub(super) fn stun_layout(bound: &[SocketAddr], hosts: usize, ips: &[IpAddr]) -> stun::Layout {
    let address = |bound: &SocketAddr| {
        let mut reached = reachable(*bound, ips);
        reached.next().filter(|_| reached.next().is_none())
    };
    stun::Layout {
        addresses: bound.iter().map(address).collect(),
        ports: bound.len() / hosts.max(1),
    }
}

/// Returns the URLs of TURN over UDP, over TCP, and over TLS at the entrances.
pub(super) fn turn_urls(
    udp: &[SocketAddr],
    tcp: &[SocketAddr],
    subjects: &[Subject],
    entered: &[SocketAddr],
    ips: &[IpAddr],
) -> Vec<String> {
    let mut urls = Vec::new();
    let udp = udp.iter().map(|bound| (bound, ""));
    let tcp = tcp.iter().map(|bound| (bound, "?transport=tcp"));
    for (bound, query) in udp.chain(tcp) {
        urls.extend(reachable(*bound, ips).map(|address| format!("turn:{address}{query}")));
    }
    if let Some(port) = entered.first().map(SocketAddr::port) {
        let secured = subjects.iter().map(|subject| subject.at(port));
        urls.extend(secured.map(|at| format!("turns:{at}?transport=tcp")));
    }
    urls
}

/// Returns the addresses that TCP listeners are bound to.
pub(super) fn tcp_addresses(
    service: &str,
    listeners: &listeners::Bound,
) -> Result<Vec<SocketAddr>, Error> {
    let bound = listeners.iter().map(|(address, listener)| {
        let bound = listener.local_addr();
        bound.map_err(|source| bind_error(service, *address, source))
    });
    bound.collect()
}

/// Returns the addresses of WebSocket over TLS, for those whom the certificate is for. A name leads to
/// the hosts of both families, as far as the server has both.
pub(super) fn secured(subjects: &[Subject], entered: &[SocketAddr]) -> Vec<String> {
    let mut addresses = Vec::new();
    for subject in subjects {
        let of_hosts = entered.iter();
        let of_hosts = of_hosts.filter_map(|at| subject.tcp(at.is_ipv4(), at.port()));
        addresses.extend(of_hosts.map(|tcp| Way::TlsWebSocket.after(tcp).to_string()));
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Returns every UDP port of the server: those of its sockets, and those that lead to them from
/// elsewhere.
pub(super) fn udp_ports<'a>(
    listening: impl Iterator<Item = &'a Multiaddr>,
    bound: impl Iterator<Item = &'a SocketAddr>,
) -> Vec<u16> {
    let of_peers = listening.flat_map(|address| address.iter());
    let of_peers = of_peers.filter_map(|protocol| match protocol {
        multiaddr::Protocol::Udp(port) => Some(port),
        _ => None,
    });
    of_peers.chain(bound.map(SocketAddr::port)).collect()
}

pub(super) fn http_url(bound: &[SocketAddr], ips: &[IpAddr]) -> String {
    let mut reached = bound.iter().flat_map(|bound| reachable(*bound, ips));
    let address = reached.next();
    address.map_or_else(String::new, |address| format!("http://{address}"))
}

pub(super) fn https_url(subject: &Subject, entered: &[SocketAddr]) -> String {
    match entered.first().map(SocketAddr::port) {
        None | Some(HTTPS_PORT) => {
            let at = subject.at(HTTPS_PORT);
            format!("https://{}", at.trim_end_matches(":443"))
        }
        Some(port) => format!("https://{}", subject.at(port)),
    }
}

/// Returns the addresses at which a socket bound to `bound` is reached. If a NAT changes the bound one, it
/// is not among `ips`.
fn reachable(bound: SocketAddr, ips: &[IpAddr]) -> impl Iterator<Item = SocketAddr> {
    ips.iter()
        .filter(move |ip| {
            if bound.ip().is_unspecified() || !ips.contains(&bound.ip()) {
                ip.is_ipv4() == bound.is_ipv4()
            } else {
                **ip == bound.ip()
            }
        })
        .map(move |ip| SocketAddr::new(*ip, bound.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reached_at_the_interfaces_of_its_family() {
        let ips = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let at = |bound: &str| -> Vec<String> {
            reachable(bound.parse().unwrap(), &ips)
                .map(|address| address.to_string())
                .collect()
        };
        assert_eq!(at("0.0.0.0:7"), ["192.0.2.1:7"]);
        assert_eq!(at("[::]:7"), ["[2001:db8::1]:7"]);
        assert_eq!(at("192.0.2.1:7"), ["192.0.2.1:7"]);
        assert_eq!(at("10.0.0.1:7"), ["192.0.2.1:7"], "behind a NAT");
        let announced = ["/ip4/203.0.113.1/tcp/1".parse().unwrap()];
        let hosts = ["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let external: IpAddr = "203.0.113.1".parse().unwrap();
        let told = announced_ips(&hosts, Some(external), &announced);
        assert_eq!(told, [external, hosts[1]]);
    }
}
