//! A libp2p listener on a bound socket, and the addresses that it reports.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr,
    core::transport::{ListenerId, TransportEvent},
};

use crate::native::interfaces;

/// A listener. It reports the address that it is bound to, or those of the interfaces where it
/// listens on all of them.
pub(crate) struct Listening {
    pub(crate) id: ListenerId,
    pub(crate) bound: SocketAddr,
    /// The one address, until it is reported.
    unreported: Option<SocketAddr>,
    /// The addresses of the interfaces, where the listener listens on all of them.
    interfaces: Option<Interfaces>,
    /// The addresses of interfaces that were reported.
    ips: HashSet<IpAddr>,
}

impl Listening {
    /// Makes a listener at `bound`.
    pub(crate) fn new(id: ListenerId, bound: SocketAddr) -> Self {
        let everywhere = bound.ip().is_unspecified();
        Self {
            id,
            bound,
            unreported: (!everywhere).then_some(bound),
            interfaces: everywhere.then(|| Interfaces::new(interfaces::follow)),
            ips: HashSet::new(),
        }
    }

    /// Returns the next address that has come or gone, as `multiaddr` writes it.
    pub(crate) fn poll<U, E>(
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
        let Some(interfaces) = &mut self.interfaces else {
            return Poll::Pending;
        };
        let mut now = interfaces.poll(cx);
        now.retain(|ip| ip.is_ipv4() == self.bound.is_ipv4());
        let port = self.bound.port();
        let listen_addr = |ip| multiaddr(SocketAddr::new(ip, port));
        // An address that is gone is told first, so that at no moment more addresses are known than
        // the machine has.
        if let Some(ip) = self.ips.iter().find(|ip| !now.contains(ip)).copied() {
            self.ips.remove(&ip);
            return Poll::Ready(TransportEvent::AddressExpired {
                listener_id,
                listen_addr: listen_addr(ip),
            });
        }
        if let Some(ip) = now.into_iter().find(|ip| !self.ips.contains(ip)) {
            self.ips.insert(ip);
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id,
                listen_addr: listen_addr(ip),
            });
        }
        Poll::Pending
    }
}

/// The addresses of this machine's interfaces, as they are now.
struct Interfaces {
    /// Moves on as the addresses change, and never ends.
    follow: BoxFuture<'static, ()>,
    now: Arc<Mutex<Vec<IpAddr>>>,
}

impl Interfaces {
    /// Keeps what `follow` tells.
    fn new<F: Future<Output = ()> + Send + 'static>(
        follow: impl FnOnce(Box<dyn FnMut(&[IpAddr]) + Send>) -> F,
    ) -> Self {
        let now = Arc::<Mutex<Vec<IpAddr>>>::default();
        let told = now.clone();
        let tell = move |ips: &[IpAddr]| *lock(&told) = ips.to_vec();
        Self {
            follow: follow(Box::new(tell)).fuse().boxed(),
            now,
        }
    }

    /// Returns the addresses. The task is woken when they change.
    fn poll(&mut self, cx: &mut Context<'_>) -> Vec<IpAddr> {
        let _ = self.follow.poll_unpin(cx);
        lock(&self.now).clone()
    }
}

fn lock(ips: &Mutex<Vec<IpAddr>>) -> MutexGuard<'_, Vec<IpAddr>> {
    ips.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use libp2p::multiaddr::Protocol;
    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::testing::PATIENCE;

    #[tokio::test]
    async fn an_address_that_vanished_unseen_expires() {
        let lists: [&[&str]; 3] = [
            &["10.0.0.1", "10.0.0.2"],
            &["::1"],
            &["10.0.0.2", "10.0.0.3"],
        ];
        let (next, mut told) = mpsc::unbounded_channel::<Vec<IpAddr>>();
        let mut listening = Listening {
            interfaces: Some(Interfaces::new(|mut tell| async move {
                while let Some(list) = told.recv().await {
                    tell(&list);
                }
            })),
            ..Listening::new(ListenerId::next(), "0.0.0.0:7".parse().unwrap())
        };
        let named = |at: SocketAddr| Multiaddr::from(at.ip()).with(Protocol::Udp(at.port()));
        let mut cx = Context::from_waker(Waker::noop());
        let mut events = Vec::new();
        for list in lists {
            let ips: Vec<IpAddr> = list.iter().map(|ip| ip.parse().unwrap()).collect();
            next.send(ips).unwrap();
            while let Poll::Ready(event) = listening.poll::<(), ()>(&mut cx, named) {
                events.push(match event {
                    TransportEvent::NewAddress { listen_addr, .. } => format!("+{listen_addr}"),
                    TransportEvent::AddressExpired { listen_addr, .. } => format!("-{listen_addr}"),
                    _ => panic!("an event of another kind"),
                });
            }
        }
        assert_eq!(events.len(), 6, "{events:?}");
        assert_eq!(events[4], "+/ip4/10.0.0.2/udp/7");
    }

    #[tokio::test]
    async fn the_addresses_of_this_machine_are_reported() {
        let mut interfaces = Interfaces::new(interfaces::follow);
        let found = poll_fn(|cx| match interfaces.poll(cx) {
            none if none.is_empty() => Poll::Pending,
            some => Poll::Ready(some),
        });
        let found = timeout(PATIENCE, found).await.unwrap();
        assert!(found.iter().any(IpAddr::is_loopback), "{found:?}");
    }
}
