//! Whom clients may reach through the server.
//!
//! Everything that passes is asked about here, and not only the request that permits it: whoever
//! writes a new way through the server cannot forget to ask.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
};

use futures::StreamExt as _;
use if_watch::{IfEvent, tokio::IfWatcher};

use crate::core::scope::{Scope, held, scope};

/// The addresses at which this server itself listens for datagrams.
///
/// A client that reached them would be relayed to the relay: each turn makes every datagram longer
/// and costs the server its work again, and the server would answer its own address.
#[derive(Debug, Default)]
pub(crate) struct Own {
    ports: HashSet<u16>,
    /// What the server is told of itself.
    ips: HashSet<IpAddr>,
    /// What the system says of the machine now.
    interfaces: RwLock<HashSet<IpAddr>>,
}

impl Own {
    /// The server has `ports` at `ips`, at every interface, and on loopback.
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

    /// Whether what is sent to `peer` ends at this server's own ports. Relayed addresses are none of
    /// them: two clients of one server reach each other.
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

    /// Follows the addresses of the machine, which come and go.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut watcher = match IfWatcher::new() {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::warn!(%error, "interfaces cannot be watched; TURN keeps clients off the announced addresses only");
                return;
            }
        };
        self.change(|ips| ips.extend(watcher.iter().map(|net| net.addr())));
        while let Some(event) = watcher.next().await {
            match event {
                Ok(IfEvent::Up(net)) => self.change(|ips| _ = ips.insert(net.addr())),
                Ok(IfEvent::Down(net)) => self.change(|ips| _ = ips.remove(&net.addr())),
                Err(error) => tracing::debug!(%error, "interface watcher"),
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<IpAddr>)) {
        let interfaces = self.interfaces.write();
        change(&mut interfaces.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Why a peer may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    /// Nobody is to be sent there.
    Scope,
    /// It is the server.
    Own,
}

impl Bar {
    /// The word that metrics and logs have for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Own => "own",
        }
    }
}

/// Whom clients may reach.
#[derive(Debug)]
pub(super) struct Reach {
    allow_private: bool,
    own: Arc<Own>,
}

impl Reach {
    pub(super) fn new(allow_private: bool, own: Arc<Own>) -> Self {
        Self { allow_private, own }
    }

    /// Why no client may reach any port of `ip`: nobody may be sent there, or, unless that is
    /// allowed, it has a meaning only in a network of the server's own (RFC 8656 section 21.1).
    pub(super) fn bars_ip(&self, ip: IpAddr) -> Option<Bar> {
        let barred = match scope(ip) {
            Scope::Global => false,
            Scope::Private | Scope::Loopback => !self.allow_private,
            Scope::Forbidden => true,
        };
        barred.then_some(Bar::Scope)
    }

    /// Why no datagram may pass to or from `peer`.
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
        own.change(|ips| _ = ips.insert([198, 51, 100, 7].into()));
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
