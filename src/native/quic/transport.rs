//! The `/quic-v1` transport.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        connection::Endpoint as Role,
        transport::{self, DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
    },
    multiaddr::Protocol,
};
use quinn::Endpoint;
use tokio::{runtime::Handle, sync::oneshot, time};

use super::{
    Admission, Quic, QuicConnection, QuicError, SERVER_NAME,
    admission::Answer,
    link::{EndpointSocket, Peers},
};
use crate::native::{
    behaviours::pool::Place,
    udp::{Listening, Receiver, any_source},
};

/// The pause between two datagrams to a peer that will dial this one, in milliseconds. The
/// datagrams make the NAT let the peer in. The pause is random between these bounds, so that two
/// peers that punch do not keep step (libp2p's DCUtR over QUIC).
const PUNCH_PAUSE: (u64, u64) = (10, 200);

/// The length of such a datagram. Its content is random and has no meaning.
const PUNCH_LEN: usize = 64;

/// The endpoint keeps a connection that has failed for three probe timeouts (RFC 9000 section 10.2). Each is three
/// times the first sample of the round trip (RFC 9002 section 6.2.1), which is as long as the handshake at most.
const DRAINING: u32 = 9;
/// The least time, if nobody has answered, and the most that the place is kept for.
const DRAINS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The most connections of others that are sent away in one turn, so that a flood leaves time to
/// the swarm.
const MAX_SENT_AWAY: usize = 64;

type Output = (PeerId, QuicConnection);
type Upgrade = BoxFuture<'static, Result<Output, QuicError>>;

/// Dials and listens on the one endpoint of [`Quic`].
///
/// A dial as listener (DCUtR) waits for the dial of the peer, and sends datagrams meanwhile.
pub(crate) struct QuicTransport {
    quic: Quic,
    endpoint: Endpoint,
    timeout: Duration,
    admission: Admission,
    accept: BoxFuture<'static, Option<quinn::Incoming>>,
    listeners: Vec<Listening>,
    events: VecDeque<TransportEvent<Upgrade, QuicError>>,
    expected: Expected,
    waker: Option<Waker>,
}

/// The dials that are waited for, by the address that each is expected from.
#[derive(Clone, Default)]
struct Expected(Arc<Mutex<HashMap<SocketAddr, oneshot::Sender<quinn::Connecting>>>>);

impl Expected {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, oneshot::Sender<quinn::Connecting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes an expected dial when the wait ends, however it ends.
struct Awaited(Expected, SocketAddr);

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut expected = self.0.lock();
        expected.retain(|address, sender| *address != self.1 || !sender.is_closed());
    }
}

/// The place of a handshake. The endpoint keeps a connection for a while whose handshake has failed, so its
/// place is free only after that.
struct Begun {
    place: Option<Place>,
    at: Instant,
}

impl Begun {
    fn new(place: Place) -> Self {
        Self {
            place: Some(place),
            at: Instant::now(),
        }
    }

    /// Frees the place.
    fn has_succeeded(mut self) {
        self.place = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let (least, most) = DRAINS;
            let draining = (self.at.elapsed() * DRAINING).clamp(least, most);
            runtime.spawn(async move {
                time::sleep(draining).await;
                drop(place);
            });
        }
    }
}

impl QuicTransport {
    /// Makes a transport that gives each dial and each answer at most `timeout`. Needs a Tokio
    /// runtime.
    ///
    /// # Errors
    /// Fails when the endpoint cannot be made.
    pub(crate) fn new(quic: Quic, admission: Admission, timeout: Duration) -> io::Result<Self> {
        let link = EndpointSocket::new(quic.0.sockets.clone(), Peers::Network);
        let endpoint = quic.endpoint(&link)?;
        let listener: Arc<dyn Receiver> = link;
        quic.0.sockets.route_quic_listener(&listener);
        Ok(Self {
            accept: accept(&endpoint),
            quic,
            endpoint,
            timeout,
            admission,
            listeners: Vec::new(),
            events: VecDeque::new(),
            expected: Expected::default(),
            waker: None,
        })
    }

    /// Handles a connection that a peer has begun.
    fn incoming(&mut self, incoming: quinn::Incoming) {
        let remote = canonical(incoming.remote_address());
        let local = incoming.local_ip().map(|ip| ip.to_canonical());
        let takes = |listener: &&Listening| {
            let bound = listener.bound;
            let here = bound.ip().is_unspecified() || local.is_none_or(|ip| ip == bound.ip());
            bound.is_ipv4() == remote.is_ipv4() && here
        };
        let listener = self.listeners.iter().find(takes).map(|l| (l.id, l.bound));
        // An expected dial is accepted without admission, because this peer waits for it.
        let expected = self.expected.lock().remove(&remote);
        if let Some(dial) = expected.filter(|dial| !dial.is_closed()) {
            if let Some(connecting) = accepted(incoming) {
                // An error says that the wait has just ended.
                let _ = dial.send(connecting);
            }
            return;
        }
        let Some((id, bound)) = listener else {
            incoming.refuse();
            return;
        };
        let validated = incoming.remote_address_validated();
        let place = match self.admission.decide(remote.ip(), validated) {
            Answer::Accept(place) => place,
            Answer::Retry => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
                return;
            }
            Answer::Refuse => {
                incoming.refuse();
                return;
            }
        };
        let Some(connecting) = accepted(incoming) else {
            return;
        };
        let upgrade = within(self.timeout, handshake(self.quic.clone(), connecting));
        // It may be dropped before it is first polled.
        let begun = Begun::new(place);
        let upgrade = async move {
            let made = upgrade.await?;
            begun.has_succeeded();
            Ok(made)
        };
        self.events.push_back(TransportEvent::Incoming {
            listener_id: id,
            upgrade: upgrade.boxed(),
            local_addr: multiaddr(bound),
            send_back_addr: multiaddr(remote),
        });
    }

    /// Waits for the peer to dial, and opens the NAT for it meanwhile.
    fn dial_as_listener(&self, remote: SocketAddr, peer: PeerId) -> Upgrade {
        let (sender, receiver) = oneshot::channel();
        self.expected.lock().insert(remote, sender);
        let awaited = Awaited(self.expected.clone(), remote);
        let quic = self.quic.clone();
        let sockets = quic.0.sockets.clone();
        let punch = async move {
            loop {
                let mut datagram = [0; PUNCH_LEN];
                // Without randomness, zeros open the NAT as well.
                let _ = getrandom::fill(&mut datagram);
                let any = any_source(remote);
                sockets.send(any, remote, &datagram, PUNCH_LEN).await;
                let (least, most) = PUNCH_PAUSE;
                let random = getrandom::u64().unwrap_or_default() % (most - least);
                time::sleep(Duration::from_millis(least + random)).await;
            }
        };
        within(self.timeout, async move {
            let _awaited = awaited;
            let connecting = tokio::select! {
                connecting = receiver => connecting.map_err(|_| QuicError::Closed)?,
                () = punch => return Err(QuicError::Closed),
            };
            let connection = quic.authenticated(connecting.await?, Some(peer))?;
            Ok((peer, connection))
        })
        .boxed()
    }
}

fn accept(endpoint: &Endpoint) -> BoxFuture<'static, Option<quinn::Incoming>> {
    let endpoint = endpoint.clone();
    async move { endpoint.accept().await }.boxed()
}

fn accepted(incoming: quinn::Incoming) -> Option<quinn::Connecting> {
    let connecting = incoming.accept();
    connecting
        .inspect_err(|error| tracing::debug!(%error, "the QUIC connection was refused"))
        .ok()
}

async fn handshake(quic: Quic, connecting: quinn::Connecting) -> Result<Output, QuicError> {
    let connection = quic.authenticated(connecting.await?, None)?;
    Ok((connection.peer(), connection))
}

async fn within<T>(
    limit: Duration,
    what: impl Future<Output = Result<T, QuicError>>,
) -> Result<T, QuicError> {
    time::timeout(limit, what)
        .await
        .unwrap_or(Err(QuicError::Timeout))
}

impl transport::Transport for QuicTransport {
    type Output = Output;
    type Error = QuicError;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let Some((wanted, _)) = socket_addr(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        // The sockets are bound already, at the addresses that the configuration names.
        let Some(local) = self.quic.0.sockets.local(wanted.ip()) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let fits = (wanted.port() == 0 || wanted.port() == local.port())
            && (wanted.ip() == local.ip() || local.ip().is_unspecified());
        if !fits {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        let bound = SocketAddr::new(wanted.ip(), local.port());
        self.listeners.push(Listening::new(id, bound));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|listener| listener.id != id);
        let removed = self.listeners.len() < before;
        if removed {
            self.events.push_back(TransportEvent::ListenerClosed {
                listener_id: id,
                reason: Ok(()),
            });
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        removed
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let (remote, peer) = match socket_addr(&addr) {
            Some((remote, peer)) if remote.port() != 0 && !remote.ip().is_unspecified() => {
                (remote, peer)
            }
            _ => return Err(TransportError::MultiaddrNotSupported(addr)),
        };
        // A dial cannot have a new port here, and cannot use a family that has no socket.
        let new_port = (opts.role, opts.port_use) == (Role::Dialer, PortUse::New);
        if new_port || self.quic.0.sockets.local(remote.ip()).is_none() {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        if (opts.role, opts.port_use) == (Role::Listener, PortUse::New) {
            let Some(peer) = peer else {
                return Err(TransportError::MultiaddrNotSupported(addr));
            };
            return Ok(self.dial_as_listener(remote, peer));
        }
        let (endpoint, quic) = (self.endpoint.clone(), self.quic.clone());
        let dial = async move {
            let client = quic.0.client.clone();
            let connecting = endpoint.connect_with(client, remote, SERVER_NAME)?;
            handshake(quic, connecting).await
        };
        Ok(within(self.timeout, dial).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        for _ in 0..MAX_SENT_AWAY {
            if let Some(event) = this.events.pop_front() {
                return Poll::Ready(event);
            }
            for listener in &mut this.listeners {
                if let Poll::Ready(event) = listener.poll(cx, multiaddr) {
                    return Poll::Ready(event);
                }
            }
            match this.accept.poll_unpin(cx) {
                Poll::Ready(Some(incoming)) => {
                    this.accept = accept(&this.endpoint);
                    this.incoming(incoming);
                }
                Poll::Ready(None) => {
                    this.accept = futures::future::pending().boxed();
                }
                Poll::Pending => {
                    this.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Converts an IPv4 address in IPv6 form to its IPv4 form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip())
        .with(Protocol::Udp(address.port()))
        .with(Protocol::QuicV1)
}

/// Reads `/ip4|ip6/…/udp/…/quic-v1[/p2p/…]`.
pub(crate) fn socket_addr(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else {
        return None;
    };
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) => return None,
    };
    parts
        .next()
        .is_none()
        .then_some((SocketAddr::new(ip, port), peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let peer = PeerId::random();
        let read = |text: &str| socket_addr(&text.parse().unwrap());
        let v4 = "192.0.2.1:7".parse().unwrap();
        assert_eq!(read("/ip4/192.0.2.1/udp/7/quic-v1"), Some((v4, None)));
        let with_peer = format!("/ip4/192.0.2.1/udp/7/quic-v1/p2p/{peer}");
        assert_eq!(read(&with_peer), Some((v4, Some(peer))));
        for other in [
            "/ip4/192.0.2.1/tcp/7",
            "/ip4/192.0.2.1/udp/7",
            "/ip4/192.0.2.1/udp/7/quic-v1/webtransport",
            "/dns/a.example/udp/7/quic-v1",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(multiaddr(v4).to_string(), "/ip4/192.0.2.1/udp/7/quic-v1");
    }
}
