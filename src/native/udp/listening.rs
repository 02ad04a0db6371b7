//! A libp2p listener on a bound socket, and the addresses that it reports.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
};

use futures::StreamExt as _;
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr,
    core::transport::{ListenerId, TransportEvent},
};

/// A listener. It reports the address that it is bound to, or those of the interfaces where it
/// listens on all of them.
pub(crate) struct Listening {
    pub(crate) id: ListenerId,
    pub(crate) bound: SocketAddr,
    /// The one address, until it is reported.
    unreported: Option<SocketAddr>,
    /// Reports the addresses of the interfaces, where the listener listens on all of them.
    interfaces: Option<IfWatcher>,
    /// The addresses of interfaces that were reported.
    ips: HashSet<IpAddr>,
}

impl Listening {
    /// Makes a listener at `bound`.
    ///
    /// # Errors
    /// Fails when the interfaces cannot be watched.
    pub(crate) fn new(id: ListenerId, bound: SocketAddr) -> io::Result<Self> {
        let (unreported, interfaces) = match bound.ip().is_unspecified() {
            true => (None, Some(IfWatcher::new()?)),
            false => (Some(bound), None),
        };
        Ok(Self {
            id,
            bound,
            unreported,
            interfaces,
            ips: HashSet::new(),
        })
    }

    /// Returns the next address that has come or gone, as `multiaddr` writes it.
    pub(crate) fn poll<U, E: From<io::Error>>(
        &mut self,
        cx: &mut Context<'_>,
        multiaddr: impl Fn(SocketAddr) -> Multiaddr,
    ) -> Poll<TransportEvent<U, E>> {
        let listener_id = self.id;
        if let Some(address) = self.unreported.take() {
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id,
                listen_addr: multiaddr(address),
            });
        }
        while let Some(watcher) = &mut self.interfaces
            && let Poll::Ready(event) = watcher.poll_next_unpin(cx)
        {
            let (ip, up) = match event {
                Some(Ok(IfEvent::Up(net))) => (net.addr(), true),
                Some(Ok(IfEvent::Down(net))) => (net.addr(), false),
                Some(Err(error)) => {
                    // The watcher tells nothing any more. Another one begins with all addresses.
                    self.interfaces = IfWatcher::new().ok();
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: error.into(),
                    });
                }
                None => {
                    self.interfaces = None;
                    break;
                }
            };
            let is_news = match up {
                true => self.ips.insert(ip),
                false => self.ips.remove(&ip),
            };
            if !is_news || ip.is_ipv4() != self.bound.is_ipv4() {
                continue;
            }
            let listen_addr = multiaddr(SocketAddr::new(ip, self.bound.port()));
            return Poll::Ready(match up {
                true => TransportEvent::NewAddress {
                    listener_id,
                    listen_addr,
                },
                false => TransportEvent::AddressExpired {
                    listener_id,
                    listen_addr,
                },
            });
        }
        Poll::Pending
    }
}
