//! Finds the clients of connections that come through reverse proxies, from what the proxies say.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::Multiaddr;

use super::limits::ip_of;
use crate::core::prefix::{Prefix, client};

/// The trusted proxies, and the clients of the WebSockets that come through them. Clones share
/// both.
#[derive(Clone, Default)]
pub(crate) struct Forwarded(Arc<Inner>);

#[derive(Default)]
struct Inner {
    trusted: Vec<Prefix>,
    /// The clients, by the remote address of the connection.
    clients: Mutex<HashMap<Multiaddr, IpAddr>>,
}

impl Forwarded {
    /// Trusts the proxies in `trusted`.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn new(trusted: Vec<Prefix>) -> Self {
        Self(Arc::new(Inner {
            trusted,
            clients: Mutex::default(),
        }))
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        self.0.trusted.iter().any(|prefix| prefix.contains(ip))
    }

    /// Whether a connection from `remote` comes through a proxy.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn is_proxy(&self, remote: &Multiaddr) -> bool {
        ip_of(remote).is_some_and(|ip| self.trusts(ip))
    }

    /// Returns the address that a connection from `remote` counts for. It is `None` until a trusted
    /// proxy has named the client.
    pub(crate) fn source(&self, remote: &Multiaddr) -> Option<IpAddr> {
        let ip = ip_of(remote)?;
        match self.trusts(ip) {
            true => self.clients().get(remote).copied(),
            false => Some(ip),
        }
    }

    /// Records the client that the `X-Forwarded-For` values of a WebSocket from `remote` name.
    /// Dropping the [`Noted`] removes the record.
    pub(crate) fn note<'a>(
        &self,
        remote: &Multiaddr,
        values: impl DoubleEndedIterator<Item = &'a str>,
    ) -> Option<Noted> {
        let ip = ip_of(remote).filter(|ip| self.trusts(*ip))?;
        let client = client(ip, &self.0.trusted, values);
        self.clients().insert(remote.clone(), client);
        Some(Noted {
            forwarded: self.clone(),
            remote: remote.clone(),
        })
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Multiaddr, IpAddr>> {
        // The map is whole after every call.
        self.0
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the record of one connection's client.
pub(crate) struct Noted {
    forwarded: Forwarded,
    remote: Multiaddr,
}

impl fmt::Debug for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noted").finish_non_exhaustive()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.forwarded.clients().remove(&self.remote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_says_whose_a_connection_is() {
        let forwarded = Forwarded::new(vec!["127.0.0.0/8".parse().unwrap()]);
        let remote = |text: &str| text.parse::<Multiaddr>().unwrap();
        let (proxied, direct) = (
            remote("/ip4/127.0.0.1/tcp/1/ws"),
            remote("/ip4/192.0.2.9/tcp/1/ws"),
        );
        assert!(forwarded.is_proxy(&proxied) && !forwarded.is_proxy(&direct));
        assert_eq!(forwarded.source(&proxied), None);
        let noted = forwarded.note(&proxied, ["198.51.100.1, 192.0.2.1"].into_iter());
        assert!(noted.is_some());
        let client = forwarded.source(&proxied).unwrap();
        assert_eq!(client.to_string(), "192.0.2.1");
        // The header of an untrusted sender is ignored.
        assert!(forwarded.note(&direct, ["192.0.2.1"].into_iter()).is_none());
        assert_eq!(forwarded.source(&direct).unwrap().to_string(), "192.0.2.9");
        drop(noted);
        assert_eq!(forwarded.source(&proxied), None);
        assert!(forwarded.clients().is_empty());
    }
}
