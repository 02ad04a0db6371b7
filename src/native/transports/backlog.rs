//! Takes TCP connections out of the system's backlog, and ends those for which there is no place.
//!
//! Above this transport are five other transports, the swarm and its behaviours. If every refusal
//! passed through all of them, a flood from one address would slow down everybody.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use libp2p::{
    Multiaddr,
    core::transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
    tcp,
};

use super::tcp::Tcp;
use crate::{
    core::quota::Holder,
    native::behaviours::{forwarded::Forwarded, pool::Pool},
};

/// The number of connections that are ended in one turn. The swarm serves others between turns.
const MAX_ENDED: usize = 64;

type Upgrade = <Tcp as transport::Transport>::ListenerUpgrade;
type Dial = <Tcp as transport::Transport>::Dial;

/// libp2p's TCP transport. It checks the pool of handshakes before it passes a connection on.
pub(crate) struct Backlog {
    inner: Tcp,
    /// The pool from which [`Limits`](crate::native::behaviours::limits::Limits) takes places. The
    /// swarm takes the place in the same turn, so nobody else can take it in between.
    handshakes: Option<Pool>,
    forwarded: Forwarded,
}

impl Backlog {
    /// Creates the transport. Without a pool, it passes every connection to the swarm.
    pub(crate) fn new(inner: Tcp, handshakes: Option<Pool>, forwarded: Forwarded) -> Self {
        Self {
            inner,
            handshakes,
            forwarded,
        }
    }

    /// Whether the pool has no place for a connection from `remote`. The pool reports the refusal.
    fn refuses(&self, remote: &Multiaddr) -> bool {
        let holder = Holder {
            ip: self.forwarded.source(remote),
            peer: None,
        };
        let pool = self.handshakes.as_ref();
        pool.is_some_and(|pool| pool.look(holder).is_err())
    }
}

/// Resets the connection. An orderly close would leave its state in the kernel for a minute.
fn reset(upgrade: Upgrade) {
    if let Ok(stream) = upgrade.into_inner() {
        // An error says that the connection has ended already.
        let _ = socket2::SockRef::from(&stream.0).set_linger(Some(Duration::ZERO));
    }
}

impl transport::Transport for Backlog {
    type Output = tcp::tokio::TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        self.inner.dial(addr, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        for _ in 0..MAX_ENDED {
            match ready!(Pin::new(&mut self.inner).poll(cx)) {
                TransportEvent::Incoming {
                    upgrade,
                    send_back_addr,
                    ..
                } if self.refuses(&send_back_addr) => reset(upgrade),
                event => return Poll::Ready(event),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::{FutureExt as _, StreamExt as _};
    use libp2p::{Transport as _, multiaddr::Protocol};
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpSocket, TcpStream},
    };

    use super::*;
    use crate::{
        core::quota::Quota,
        native::behaviours::{
            limits::ip_of,
            pool::{Debug, Place},
        },
    };

    async fn connect(from: u8, port: u16) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, from), 0).into())
            .unwrap();
        let connecting = socket.connect((Ipv4Addr::LOCALHOST, port).into());
        connecting.await.unwrap()
    }

    #[tokio::test]
    async fn a_flood_ends_here_and_others_pass() {
        const SHARE: usize = 2;
        let quota = Quota {
            all: 8,
            per_address: SHARE,
            per_site: 8,
            per_peer: 8,
        };
        let pool = Pool::new("handshake", quota, &Debug);
        let mut backlog = Backlog::new(Tcp::new(), Some(pool.clone()), Forwarded::default());
        let any = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
        backlog.listen_on(ListenerId::next(), any).unwrap();
        let mut backlog = backlog.boxed();
        let address = backlog.next().await.unwrap().into_new_address().unwrap();
        let Some(Protocol::Tcp(port)) = address.iter().nth(1) else {
            panic!("{address}");
        };
        let mut flood = Vec::new();
        for _ in 0..MAX_ENDED * 2 {
            flood.push(connect(2, port).await);
        }
        let _honest = connect(3, port).await;
        // The test takes places as the swarm does.
        let mut held: Vec<Place> = Vec::new();
        let mut passed = Vec::new();
        while passed.len() <= SHARE {
            let (_, remote) = backlog.next().await.unwrap().into_incoming().unwrap();
            let ip = ip_of(&remote).unwrap();
            held.push(pool.take(ip).unwrap());
            passed.push(ip.to_string());
        }
        assert_eq!(passed, ["127.0.0.2", "127.0.0.2", "127.0.0.3"]);
        assert!(backlog.next().now_or_never().is_none());
        let mut last = flood.pop().unwrap();
        let ended = last.read(&mut [0]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
        held.truncate(1);
        let _again = connect(2, port).await;
        assert!(backlog.next().await.unwrap().into_incoming().is_some());
    }
}
