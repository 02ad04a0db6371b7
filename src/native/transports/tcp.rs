//! TCP as a libp2p transport. It dials from its listening port where it can.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
    tcp::{self, tokio::TcpStream},
};

type Inner = tcp::tokio::Transport;
type Event = TransportEvent<<Inner as libp2p::Transport>::ListenerUpgrade, io::Error>;

/// libp2p's TCP, which also dials when another program has the listening port at some address.
///
/// To punch a hole, a dial must come from the listening port, so libp2p uses that port for every
/// dial. It binds the port at every address of the machine. The system refuses this while another
/// program has the port at any of these addresses. This transport then dials from a new port,
/// because most dials punch no hole.
pub(crate) struct Tcp(Inner);

impl Tcp {
    pub(crate) fn new() -> Self {
        Self(Inner::new(tcp::Config::new().nodelay(true)))
    }
}

impl libp2p::Transport for Tcp {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = <Inner as libp2p::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<TcpStream>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let dial = self.0.dial(address.clone(), options)?;
        let dialled = async move {
            match dial.await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tracing::debug!(%error, "the listening port cannot be dialled from");
                    let role = options.role;
                    let port_use = PortUse::New;
                    let again = Self::new().0.dial(address, DialOpts { role, port_use });
                    again.map_err(io::Error::other)?.await
                }
                dialled => dialled,
            }
        };
        Ok(dialled.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use futures::future::poll_fn;
    use libp2p::{Transport as _, core::Endpoint};
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{PATIENCE, free_ports};

    const REUSE: DialOpts = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::Reuse,
    };

    /// Returns a transport that listens at `address`, a listener to dial, and that listener's
    /// address.
    async fn ends(address: (Ipv4Addr, u16)) -> (Tcp, TcpListener, Multiaddr) {
        let mut tcp = Tcp::new();
        let (ip, port) = address;
        let listens = format!("/ip4/{ip}/tcp/{port}").parse().unwrap();
        tcp.listen_on(ListenerId::next(), listens).unwrap();
        poll_fn(|cx| Pin::new(&mut tcp).poll(cx)).await;
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = far.local_addr().unwrap().port();
        let dialled = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
        (tcp, far, dialled)
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_elsewhere_keeps_no_dial_back() {
        let port = free_ports();
        let _other = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
        let (mut tcp, far, dialled) = ends((Ipv4Addr::LOCALHOST, port)).await;
        let dial = tcp.dial(dialled, REUSE).unwrap();
        let stream = timeout(PATIENCE, dial).await.unwrap().unwrap();
        let from = far.accept().unwrap().1;
        assert_eq!(stream.0.local_addr().unwrap(), from);
        assert_ne!(from.port(), port);
    }

    #[tokio::test]
    async fn a_dial_comes_from_the_listening_port() {
        let port = free_ports();
        let (mut tcp, far, dialled) = ends((Ipv4Addr::LOCALHOST, port)).await;
        let dial = tcp.dial(dialled, REUSE).unwrap();
        let _stream = timeout(PATIENCE, dial).await.unwrap().unwrap();
        assert_eq!(far.accept().unwrap().1.port(), port);
    }
}
