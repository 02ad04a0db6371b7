//! Learns whether only a NAT64 leads from this machine to IPv4, and by which prefix.
//!
//! A network of phones often has IPv6 alone. There, names lead to IPv4 servers by DNS64, but an IPv4
//! address leads nowhere unless its reader makes the IPv6 address that stands for it. Peers have no
//! names, so their addresses are always read in this way.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time,
};

use super::transports::names::Names;
use crate::core::nat64::{NAME, Prefix};

/// How long name servers may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first pause if there is no answer, or none with a prefix. A network that has no way out yet may say
/// of all names that they do not exist. Each further pause is twice as long, up to [`REFRESH`].
const SHORTEST: Duration = Duration::from_secs(1);
/// How long a prefix is believed without asking again.
const REFRESH: Duration = Duration::from_secs(30 * 60);

/// How IPv4 addresses are reached from this machine. Clones share it. Without [`keep`](Self::keep),
/// they are reached as they are.
#[derive(Clone, Default)]
pub(crate) struct Nat64(Arc<Inner>);

#[derive(Default)]
struct Inner {
    prefix: watch::Sender<Option<Prefix>>,
    doubted: Notify,
}

impl Nat64 {
    /// Returns the address by which `to` is reached from here. Returns `None` if `to` may not be sent to
    /// (see [`Prefix::route`]).
    pub(crate) fn route(&self, to: SocketAddr) -> Option<SocketAddr> {
        match &*self.0.prefix.borrow() {
            Some(prefix) => prefix.route(to),
            None => Some(to),
        }
    }

    /// Returns the addresses by which a host with the addresses `all` is reached from here.
    pub(crate) fn routes(&self, all: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        all.into_iter().filter_map(|to| self.route(to)).collect()
    }

    /// Returns the IPv4 address for which `ip` stands, or `ip` itself.
    pub(crate) fn stands_for(&self, ip: IpAddr) -> IpAddr {
        let prefix = *self.0.prefix.borrow();
        let held = match ip {
            IpAddr::V6(ip) => prefix.and_then(|prefix| prefix.held(ip)),
            IpAddr::V4(_) => None,
        };
        held.map_or(ip, IpAddr::V4)
    }

    /// Returns a watch that changes when addresses are reached in another way.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Prefix>> {
        self.0.prefix.subscribe()
    }

    /// Tells that this machine may be in another network.
    pub(crate) fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Keeps the prefix current. It never ends.
    pub(crate) async fn keep(self, names: Names) {
        let mut pause = SHORTEST;
        loop {
            let next = match self.learn(&names).await {
                Ok(found) => {
                    self.set(found);
                    pause = SHORTEST;
                    found.map(|_| REFRESH)
                }
                // A prefix that is known stays.
                Err(why) => {
                    tracing::debug!(%why, "no prefix of a NAT64 is found");
                    let now = pause;
                    pause = (pause * 2).min(REFRESH);
                    Some(now)
                }
            };
            let due = async {
                match next {
                    Some(next) => time::sleep(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.doubted.notified() => {
                    pause = SHORTEST;
                    if !needs_nat64() {
                        self.set(None);
                    }
                }
            }
        }
    }

    /// Returns the prefix, or `None` if IPv4 is reached without one.
    async fn learn(&self, names: &Names) -> Result<Option<Prefix>, String> {
        if !needs_nat64() {
            return Ok(None);
        }
        let answers = time::timeout(PATIENCE, names.look_up_v6(NAME)).await;
        let answers = answers.map_err(|_| "the name servers are silent".to_owned())?;
        let answers = answers.map_err(|error| error.to_string())?;
        let found = Prefix::found_in(&answers);
        found
            .map(Some)
            .ok_or_else(|| "the name servers tell none".to_owned())
    }

    pub(crate) fn set(&self, prefix: Option<Prefix>) {
        self.0.prefix.send_if_modified(|known| {
            let changes = *known != prefix;
            *known = prefix;
            changes
        });
    }
}

/// Whether this machine has a way to the internet by IPv6, and none by IPv4.
fn needs_nat64() -> bool {
    // A socket for UDP sends nothing when it is connected. The addresses are for documentation.
    let leads = |from: SocketAddr, to: SocketAddr| {
        UdpSocket::bind(from).is_ok_and(|socket| socket.connect(to).is_ok())
    };
    let v4 = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 1));
    let v6 = (
        Ipv6Addr::UNSPECIFIED,
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    );
    !leads((v4.0, 0).into(), (v4.1, 9).into()) && leads((v6.0, 0).into(), (v6.1, 9).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_as_the_one_that_it_stands_for() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let nat64 = Nat64::default();
        let plain = ip("fd00::192.0.2.1");
        assert_eq!(nat64.stands_for(plain), plain);
        nat64.set(Prefix::found_in(&["fd00::192.0.0.170".parse().unwrap()]));
        // The form of its address is private. Whoever has it is on the internet, and may refer nobody to private
        // addresses.
        assert_eq!(nat64.stands_for(plain), ip("192.0.2.1"));
    }
}
