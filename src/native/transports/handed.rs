//! Connections that another part of the program has accepted, as a libp2p transport.
//!
//! A server has one TCP port for every protocol, so it looks at the first bytes of a connection before
//! libp2p gets it.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use libp2p::{
    Multiaddr,
    core::transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use tokio::sync::mpsc;

use super::websocket;
use crate::{
    native::{
        behaviours::{forwarded::Forwarded, pool::Place},
        udp::Listening,
    },
    stream::BoxedStream,
};

/// How a peer came to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp,
    WebSocket,
    /// TCP within TLS. No peer announces such an address.
    Tls,
    TlsWebSocket,
}

impl Way {
    /// The address of `at` for this way.
    pub(crate) fn address(self, at: SocketAddr) -> Multiaddr {
        self.after(Multiaddr::from(at.ip()).with(Protocol::Tcp(at.port())))
    }

    /// Appends this way to the address of a TCP port.
    pub(crate) fn after(self, tcp: Multiaddr) -> Multiaddr {
        let socket = Protocol::Ws("/".into());
        match self {
            Self::Tcp => tcp,
            Self::WebSocket => tcp.with(socket),
            Self::Tls => tcp.with(Protocol::Tls),
            Self::TlsWebSocket => tcp.with(Protocol::Tls).with(socket),
        }
    }

    fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::TlsWebSocket)
    }
}

/// A connection for libp2p.
pub(crate) struct Arrival {
    pub(crate) stream: BoxedStream,
    pub(crate) way: Way,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The place of the handshake until now. The swarm takes the next one in the same turn.
    pub(crate) place: Place,
}

/// Where connections come from, and what libp2p tells others about it.
pub(crate) struct Arrivals {
    pub(crate) queue: mpsc::Receiver<Arrival>,
    /// The bound addresses of the listeners.
    pub(crate) bound: Vec<SocketAddr>,
    /// The ways that are announced.
    pub(crate) ways: Vec<Way>,
    pub(crate) forwarded: Forwarded,
}

/// The transport. It dials nobody.
pub(crate) struct Handed {
    arrivals: Arrivals,
    listeners: Vec<Listening>,
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

type Upgrade = BoxFuture<'static, io::Result<BoxedStream>>;
type Event = TransportEvent<Upgrade, io::Error>;

impl Handed {
    pub(crate) fn new(arrivals: Arrivals) -> Self {
        Self {
            arrivals,
            listeners: Vec::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Tells of one interface's address in every way that is announced.
    fn tell(&mut self, event: TransportEvent<(), ()>) {
        for way in &self.arrivals.ways {
            self.events.extend(match &event {
                TransportEvent::NewAddress {
                    listener_id,
                    listen_addr,
                } => Some(TransportEvent::NewAddress {
                    listener_id: *listener_id,
                    listen_addr: way.after(listen_addr.clone()),
                }),
                TransportEvent::AddressExpired {
                    listener_id,
                    listen_addr,
                } => Some(TransportEvent::AddressExpired {
                    listener_id: *listener_id,
                    listen_addr: way.after(listen_addr.clone()),
                }),
                _ => None,
            });
        }
    }

    /// Passes an arrival on to the swarm, if libp2p listens where it came in.
    fn pass(&self, arrival: Arrival) -> Option<Event> {
        let Arrival {
            stream,
            way,
            local,
            remote,
            place,
        } = arrival;
        let takes = |listener: &&Listening| {
            let bound = listener.bound;
            let is_there = bound.ip() == local.ip()
                || bound.ip().is_unspecified() && bound.is_ipv4() == local.is_ipv4();
            is_there && bound.port() == local.port()
        };
        let listener_id = self.listeners.iter().find(takes)?.id;
        let send_back_addr = way.address(remote);
        let upgrade = match way.is_websocket() {
            true => {
                let (from, forwarded) = (send_back_addr.clone(), self.arrivals.forwarded.clone());
                websocket::accept(stream, from, forwarded).boxed()
            }
            false => ready(Ok(stream)).boxed(),
        };
        drop(place);
        Some(TransportEvent::Incoming {
            listener_id,
            upgrade,
            local_addr: way.address(local),
            send_back_addr,
        })
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The IP address and the TCP port of `address`, if it names nothing else.
fn tcp(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else {
        return None;
    };
    parts.next().is_none().then(|| SocketAddr::new(ip, port))
}

impl transport::Transport for Handed {
    type Output = BoxedStream;
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = BoxFuture<'static, io::Result<BoxedStream>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        // The listeners are bound already.
        let fits = |wanted: SocketAddr, bound: &SocketAddr| {
            wanted.ip() == bound.ip() && [0, bound.port()].contains(&wanted.port())
        };
        let bound = tcp(&address).and_then(|wanted| {
            let bound = self.arrivals.bound.iter();
            bound.copied().find(|bound| fits(wanted, bound))
        });
        let Some(bound) = bound else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        self.listeners.push(Listening::new(id, bound));
        self.wake();
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
            self.wake();
        }
        removed
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.events.pop_front() {
                return Poll::Ready(event);
            }
            let mut listeners = this.listeners.iter_mut();
            let news =
                listeners.find_map(
                    |listener| match listener.poll(cx, |at| Way::Tcp.address(at)) {
                        Poll::Ready(event) => Some(event),
                        Poll::Pending => None,
                    },
                );
            if let Some(news) = news {
                this.tell(news);
                continue;
            }
            match this.arrivals.queue.poll_recv(cx) {
                Poll::Ready(Some(arrival)) => {
                    if let Some(event) = this.pass(arrival) {
                        return Poll::Ready(event);
                    }
                }
                // `None` says that the listeners are gone, as they are when the server ends.
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, io::Cursor};
    use libp2p::{Transport as _, core::Endpoint, core::transport::PortUse};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        core::quota::Quota,
        native::behaviours::{
            limits::ip_of,
            pool::{Debug, Pool},
        },
        testing::PATIENCE,
    };

    #[tokio::test]
    async fn what_others_accepted_comes_in_where_libp2p_listens() {
        let pool = Pool::new("handshake", Quota::shared(8, 100), &Debug);
        let local: SocketAddr = "127.0.0.1:7".parse().unwrap();
        let remote: SocketAddr = "127.0.0.2:8".parse().unwrap();
        let (queue, arrivals) = mpsc::channel(4);
        let mut handed = Handed::new(Arrivals {
            queue: arrivals,
            bound: vec![local],
            ways: vec![Way::Tcp, Way::WebSocket],
            forwarded: Forwarded::default(),
        });
        let listen = |handed: &mut Handed, address: &str| {
            handed.listen_on(ListenerId::next(), address.parse().unwrap())
        };
        for other in [
            "/ip4/127.0.0.1/tcp/9",
            "/ip4/127.0.0.1/tcp/7/ws",
            "/ip4/127.0.0.1/udp/7",
        ] {
            assert!(listen(&mut handed, other).is_err(), "{other}");
        }
        listen(&mut handed, "/ip4/127.0.0.1/tcp/0").unwrap();
        let nobody = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let dialled = handed.dial("/ip4/127.0.0.1/tcp/7".parse().unwrap(), nobody);
        assert!(dialled.is_err());
        let mut handed = handed.boxed();
        for expected in ["/ip4/127.0.0.1/tcp/7", "/ip4/127.0.0.1/tcp/7/ws"] {
            let told = handed.next().await.unwrap().into_new_address().unwrap();
            assert_eq!(told.to_string(), expected);
        }
        let arrival = |local| Arrival {
            stream: Box::pin(Cursor::new(Vec::new())),
            way: Way::TlsWebSocket,
            local,
            remote,
            place: pool.take(remote.ip()).unwrap(),
        };
        let elsewhere = "127.0.0.9:7".parse().unwrap();
        for local in [elsewhere, local] {
            assert!(queue.send(arrival(local)).await.is_ok());
        }
        let event = timeout(PATIENCE, handed.next()).await.unwrap().unwrap();
        let (_, from) = event.into_incoming().unwrap();
        assert_eq!(from.to_string(), "/ip4/127.0.0.2/tcp/8/tls/ws");
        assert_eq!(ip_of(&from), Some(remote.ip()));
        assert_eq!(pool.taken(), 0, "the swarm takes the next place");
    }
}
