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
    reports: Reports,
}

enum Reports {
    /// The one address, until it was reported.
    One(Option<SocketAddr>),
    /// The watcher, if it works, and the addresses that were reported.
    Interfaces(Option<IfWatcher>, HashSet<IpAddr>),
}

impl Listening {
    /// Makes a listener at `bound`.
    ///
    /// # Errors
    /// Fails when the interfaces cannot be watched.
    pub(crate) fn new(id: ListenerId, bound: SocketAddr) -> io::Result<Self> {
        let reports = match bound.ip().is_unspecified() {
            true => Reports::Interfaces(Some(IfWatcher::new()?), HashSet::new()),
            false => Reports::One(Some(bound)),
        };
        Ok(Self { id, bound, reports })
    }

    /// Returns the next address that has come or gone, as `multiaddr` writes it.
    pub(crate) fn poll<U, E: From<io::Error>>(
        &mut self,
        cx: &mut Context<'_>,
        multiaddr: impl Fn(SocketAddr) -> Multiaddr,
    ) -> Poll<TransportEvent<U, E>> {
        let listener_id = self.id;
        let (interfaces, known) = match &mut self.reports {
            Reports::One(address) => {
                return address.take().map_or(Poll::Pending, |address| {
                    Poll::Ready(TransportEvent::NewAddress {
                        listener_id,
                        listen_addr: multiaddr(address),
                    })
                });
            }
            Reports::Interfaces(interfaces, known) => (interfaces, known),
        };
        while let Some(watcher) = interfaces
            && let Poll::Ready(event) = watcher.poll_next_unpin(cx)
        {
            let (ip, up) = match event {
                Some(Ok(IfEvent::Up(net))) => (net.addr(), true),
                Some(Ok(IfEvent::Down(net))) => (net.addr(), false),
                Some(Err(error)) => {
                    // The watcher tells nothing any more. Another one begins with all addresses.
                    *interfaces = IfWatcher::new().ok();
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: error.into(),
                    });
                }
                None => {
                    *interfaces = None;
                    break;
                }
            };
            let is_news = match up {
                true => known.insert(ip),
                false => known.remove(&ip),
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
