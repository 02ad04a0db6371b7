//! Which peers clients may reach through the server.
//!
//! The server asks here for every datagram, and not only for the request that permits a peer. So
//! new code that relays data cannot forget to ask.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    core::scope::{Scope, held, scope},
    native::interfaces,
};

/// The addresses at which this server itself listens for datagrams.
///
/// A client that reached them could make a loop through the server. Each turn would make the
/// datagram longer and cost the server its work again, and the server would answer its own address.
#[derive(Debug, Default)]
pub(crate) struct Own {
    ports: HashSet<u16>,
    /// The addresses that the server announces.
    ips: HashSet<IpAddr>,
    /// The addresses that the machine has now.
    interfaces: RwLock<HashSet<IpAddr>>,
}

impl Own {
    /// The server has `ports` at `ips`, on every interface, and on loopback.
    pub(crate) fn new(
        ports: impl IntoIterator<Item = u16>,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            ports: ports.into_iter().collect(),
            ips: ips.into_iter().collect(),
            interfaces: RwLock::default(),
        }
    }

    /// Whether a datagram to `peer` arrives at one of this server's own ports. Relayed addresses do
    /// not count, so two clients of one server can reach each other.
    fn contains(&self, peer: SocketAddr) -> bool {
        if !self.ports.contains(&peer.port()) {
            return false;
        }
        let ip = peer.ip().to_canonical();
        let held = match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(held(ip).map(IpAddr::V4)),
        };
        held.into_iter().flatten().chain([ip]).any(|ip| {
            let interfaces = self.interfaces.read();
            let interfaces = interfaces.unwrap_or_else(PoisonError::into_inner);
            ip.is_loopback() || self.ips.contains(&ip) || interfaces.contains(&ip)
        })
    }

    /// Follows the addresses of the machine as they come and go.
    pub(super) async fn watch(self: Arc<Self>) {
        interfaces::follow(|now| self.set(now)).await;
    }

    fn set(&self, now: &[IpAddr]) {
        let interfaces = self.interfaces.write();
        let mut interfaces = interfaces.unwrap_or_else(PoisonError::into_inner);
        *interfaces = now.iter().copied().collect();
    }
}

/// Why a peer may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    /// The scope of the address forbids it.
    Scope,
    /// The address is one of the server's own.
    Own,
}

impl Bar {
    /// Returns the word for it in metrics and logs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Own => "own",
        }
    }
}

/// Decides which peers clients may reach.
#[derive(Debug)]
pub(super) struct Reach {
    allow_private: bool,
    own: Arc<Own>,
}

impl Reach {
    pub(super) fn new(allow_private: bool, own: Arc<Own>) -> Self {
        Self { allow_private, own }
    }

    /// Returns why no client may reach any port of `ip`, or `None` if clients may. Some addresses
    /// are always forbidden. Private and loopback addresses, which mean something only in the
    /// server's own networks, are forbidden unless `allow_private` is set (RFC 8656 section 21.1).
    pub(super) fn bars_ip(&self, ip: IpAddr) -> Option<Bar> {
        let barred = match scope(ip) {
            Scope::Global => false,
            Scope::Private | Scope::Loopback => !self.allow_private,
            Scope::Forbidden => true,
        };
        barred.then_some(Bar::Scope)
    }

    /// Returns why no datagram may pass to or from `peer`, or `None` if it may.
    pub(super) fn bars(&self, peer: SocketAddr) -> Option<Bar> {
        let own = || self.own.contains(peer).then_some(Bar::Own);
        self.bars_ip(peer.ip()).or_else(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(allow_private: bool) -> Reach {
        let ips = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let own = Own::new([4001, 4005], ips);
        own.set(&[[198, 51, 100, 7].into()]);
        Reach::new(allow_private, Arc::new(own))
    }

    #[test]
    fn the_servers_own_networks_are_out_of_reach() {
        let bars = |ip: &str, private| reach(private).bars_ip(ip.parse().unwrap());
        for private in [
            "10.0.0.1",
            "127.0.0.1",
            "::1",
            "fd00::1",
            "64:ff9b::10.0.0.1",
            "::ffff:127.0.0.1",
            "2002:a00:1::1",
        ] {
            assert_eq!(bars(private, false), Some(Bar::Scope), "{private}");
            assert_eq!(bars(private, true), None, "{private}");
        }
        for forbidden in ["169.254.169.254", "224.0.0.1", "::", "2002:a9fe:a9fe::1"] {
            assert_eq!(bars(forbidden, true), Some(Bar::Scope), "{forbidden}");
        }
        for global in ["192.0.2.1", "100.128.0.1", "2001:db8::1"] {
            assert_eq!(bars(global, false), None, "{global}");
        }
    }

    #[test]
    fn the_servers_own_ports_are_out_of_reach_in_every_form() {
        let reach = reach(true);
        for own in [
            "192.0.2.1:4005",
            "192.0.2.1:4001",
            "[2001:db8::1]:4005",
            "198.51.100.7:4005",
            "127.0.0.1:4005",
            "127.9.9.9:4001",
            "[::1]:4005",
            "[::ffff:192.0.2.1]:4005",
            "[64:ff9b::192.0.2.1]:4005",
            "[2002:c000:201::1]:4005",
        ] {
            assert_eq!(reach.bars(own.parse().unwrap()), Some(Bar::Own), "{own}");
        }
        for other in [
            "192.0.2.1:49152",
            "192.0.2.2:4005",
            "127.0.0.1:49152",
            "[2001:db8::2]:4001",
        ] {
            assert_eq!(reach.bars(other.parse().unwrap()), None, "{other}");
        }
    }
}
