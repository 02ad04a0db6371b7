//! The IP addresses of relayed addresses.

use std::net::IpAddr;

use crate::core::scope::scope;

/// The addresses on which a server can relay.
#[derive(Debug)]
pub(crate) struct RelayAddresses {
    hosts: Vec<IpAddr>,
    /// The addresses that others are told, best first.
    announced: Vec<IpAddr>,
    external: Option<IpAddr>,
}

/// One address on which to relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelayAddress {
    /// The address that the socket is bound to.
    pub(super) bound: IpAddr,
    /// The address that the client is told.
    pub(super) told: IpAddr,
}

impl RelayAddresses {
    /// The server listens on `hosts`. Others are told `announced`, or `external` if a one-to-one
    /// NAT stands before the server.
    pub(crate) fn new(
        hosts: Vec<IpAddr>,
        mut announced: Vec<IpAddr>,
        external: Option<IpAddr>,
    ) -> Self {
        announced.sort_by_key(|ip| scope(*ip));
        Self {
            hosts,
            announced,
            external,
        }
    }

    /// Returns every address that a client may be told as a relayed one.
    pub(crate) fn told(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.announced.iter().chain(&self.external);
        all.chain(&self.hosts).copied()
    }

    /// Returns the address to relay on in one family, for a client that asked at `asked`. It is
    /// `asked` if possible, because that interface leads to the client and probably to its peers.
    ///
    /// A client that asks at loopback is on this machine, and is most often a proxy. Its own
    /// clients are elsewhere, so the best announced address is told.
    pub(super) fn of(&self, asked: IpAddr, v4: bool) -> Option<RelayAddress> {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == v4;
        let asked = Some(asked).filter(|ip| ip.is_ipv4() == v4 && !ip.is_unspecified());
        let bound = asked.filter(|ip| self.hosts.contains(ip));
        let bound = bound.or_else(|| self.hosts.iter().find(of_family).copied())?;
        if let Some(told) = self.external.filter(|ip| ip.is_ipv4() == v4) {
            return Some(RelayAddress { bound, told });
        }
        let told = match bound.is_unspecified() {
            false => bound,
            true => {
                let best = self.announced.iter().find(of_family).copied();
                let remote = asked.filter(|ip| !ip.is_loopback());
                remote.or(best).or(asked)?
            }
        };
        Some(RelayAddress { bound: told, told })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "172.17.0.1";
    const PUBLIC: &str = "203.0.113.77";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Returns the bound and the told address for a client that asked at `asked`.
    fn of(
        hosts: &[&str],
        asked: &str,
        v4: bool,
        external: Option<&str>,
    ) -> Option<(IpAddr, IpAddr)> {
        let hosts = hosts.iter().map(|host| ip(host)).collect();
        let announced = vec![ip(DOCKER), ip(PUBLIC), ip("2001:db8::1")];
        let addresses = RelayAddresses::new(hosts, announced, external.map(ip));
        let of = addresses.of(ip(asked), v4)?;
        Some((of.bound, of.told))
    }

    #[test]
    fn a_client_is_told_the_interface_that_it_asked() {
        for asked in [PUBLIC, DOCKER, "2001:db8::9"].map(ip) {
            let told = of(
                &["0.0.0.0", "::"],
                &asked.to_string(),
                asked.is_ipv4(),
                None,
            );
            assert_eq!(told, Some((asked, asked)));
        }
        let hosts = ["192.0.2.1", "192.0.2.2"];
        for host in hosts {
            assert_eq!(of(&hosts, host, true, None), Some((ip(host), ip(host))));
        }
    }

    #[test]
    fn a_client_at_loopback_or_of_the_other_family_is_told_the_best_address() {
        let public = Some((ip(PUBLIC), ip(PUBLIC)));
        assert_eq!(of(&["0.0.0.0"], "127.0.0.1", true, None), public);
        assert_eq!(of(&["0.0.0.0", "::"], "2001:db8::1", true, None), public);
        assert_eq!(of(&["0.0.0.0"], PUBLIC, false, None), None);
        let alone = RelayAddresses::new(vec![ip("0.0.0.0")], vec![], None);
        let two = alone.of(ip("127.0.0.2"), true).unwrap();
        assert_eq!(two.told, ip("127.0.0.2"));
        assert_eq!(alone.of(ip("0.0.0.0"), true), None);
    }

    #[test]
    fn an_external_address_is_told_in_its_family_only() {
        let external = Some("198.51.100.1");
        let told = ip("198.51.100.1");
        let any = ip("0.0.0.0");
        assert_eq!(of(&["0.0.0.0"], DOCKER, true, external), Some((any, told)));
        let host = ip("192.0.2.1");
        assert_eq!(
            of(&["192.0.2.1"], "192.0.2.1", true, external),
            Some((host, told))
        );
        let v6 = ip("2001:db8::1");
        assert_eq!(of(&["::"], "2001:db8::1", false, external), Some((v6, v6)));
    }
}
