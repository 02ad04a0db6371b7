//! One UDP socket per address family, shared by everything that speaks over UDP.
//!
//! With one socket, only one NAT mapping must be learnt, forwarded and kept alive. Datagrams are
//! told apart by their first byte (RFC 7983, RFC 9443) and their source. A STUN request goes to the
//! receiver whose username fragment it names, to the listener for new clients, or else to the STUN and
//! TURN server. A STUN response goes to the receiver of its transaction, DTLS to the receiver for its
//! source, and QUIC to the endpoint in its connection id. TURN clients handle everything that TURN
//! servers send and relay, and everything that is sent from a relayed address.

mod listening;
mod port;
mod routes;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Instant,
};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use str0m::ice::StunMessage;
use tokio::{io::Interest, net::UdpSocket, sync::Notify, task::AbortHandle};

pub(crate) use self::listening::Listening;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::routes::demultiplex;
use self::{
    port::{Port, read},
    routes::Routes,
};
#[cfg(feature = "server")]
use super::inherited;
use super::{nat64::Nat64, runtime};

/// The most bytes that the kernel takes in one call, however many datagrams it makes of them.
const MAX_DATAGRAM: usize = 65_000;

/// A receiver of datagrams.
pub(crate) trait Receiver: Send + Sync + 'static {
    /// Handles a datagram of another protocol than QUIC, which arrived from `source` at the local
    /// address `destination`.
    fn receive(&self, _: Instant, _source: SocketAddr, _destination: SocketAddr, _data: &[u8]) {}

    /// Acts on the datagrams. All that arrived together were handed over.
    fn received_all(&self) {}

    /// Whether data of TURN channels is expected from `source` at the local address `destination`.
    fn has_channels(&self, _source: SocketAddr, _destination: SocketAddr) -> bool {
        false
    }

    /// Returns whether a STUN response with this content answers a request of the receiver.
    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        false
    }

    /// Handles a run of QUIC datagrams of `segment` bytes that begins a connection. The last one
    /// may be shorter. Returns whether the receiver takes connections from the source.
    fn receive_quic(&self, _: SocketAddr, _: SocketAddr, _data: &[u8], _segment: usize) -> bool {
        false
    }
}

type Handle = Arc<dyn Receiver>;

/// A client of a TURN server, which carries datagrams of relayed addresses.
pub(crate) trait TurnCarrier: Send + Sync + 'static {
    /// Sends datagrams from a relayed address to `destination`. `data` is cut into pieces of
    /// `segment` bytes, and the last one may be shorter. This never waits: a datagram that finds no
    /// room is lost, as any datagram may be.
    fn carry(&self, destination: SocketAddr, data: &[u8], segment: usize);

    /// Takes a datagram that came from the server. Returns `false` if it is not for the client.
    fn take(&self, now: Instant, data: &[u8]) -> bool;
}

/// The shared sockets. They are cheap to clone, and close when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Sockets(Arc<Inner>);

struct Inner {
    v4: Option<Arc<Port>>,
    v6: Option<Arc<Port>>,
    /// Further sockets, by their local address.
    adopted: RwLock<HashMap<SocketAddr, Arc<Port>>>,
    routes: Arc<Mutex<Routes>>,
    readers: Vec<AbortHandle>,
    /// Notified when the system refuses to send to an address.
    unreachable: Arc<Notify>,
    nat64: Nat64,
}

/// A further socket, besides the shared ones. Dropping it closes the socket.
pub(crate) struct Adopted {
    sockets: Sockets,
    local: SocketAddr,
    reader: AbortHandle,
}

impl Adopted {
    /// The local address of the socket.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        self.reader.abort();
        let mut adopted = self.sockets.0.adopted.write();
        let adopted = adopted.as_mut().unwrap_or_else(|error| error.get_mut());
        adopted.remove(&self.local);
    }
}

/// The addresses that the sockets are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: SocketAddrV4,
    pub(crate) v6: SocketAddrV6,
}

impl Default for Addresses {
    /// All interfaces, on ports that the system chooses.
    fn default() -> Self {
        Self {
            v4: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            v6: SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0),
        }
    }
}

/// The unspecified address, for sending to `destination` from any local address.
pub(crate) fn any_source(destination: SocketAddr) -> SocketAddr {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, 0)
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets")
            .field("v4", &self.0.v4.as_ref().map(|port| port.local.port()))
            .field("v6", &self.0.v6.as_ref().map(|port| port.local.port()))
            .finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

impl Sockets {
    /// Binds a socket at `addresses` for each address family that the machine has. The system
    /// chooses the port where it is 0. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Fails when neither family can be bound, or when a requested port cannot be bound.
    pub(crate) fn bind(addresses: Addresses) -> io::Result<Self> {
        let v4 = Port::bind(addresses.v4.into());
        let v6 = Port::bind(addresses.v6.into());
        match (v4, v6) {
            (Err(error), _) if addresses.v4.port() != 0 => Err(error),
            (_, Err(error)) if addresses.v6.port() != 0 => Err(error),
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self::over(v4.ok(), v6.ok())),
        }
    }

    /// Binds one socket, for one address family, or takes the one that was passed on to the program.
    /// Needs a Tokio runtime.
    ///
    /// # Errors
    /// Fails when the address cannot be bound.
    #[cfg(feature = "server")]
    pub(crate) fn bind_one(address: SocketAddr) -> io::Result<Self> {
        let port = match inherited::take(address, socket2::Type::DGRAM) {
            Some(socket) => Port::over(socket)?,
            None => Port::bind(address)?,
        };
        Ok(match address {
            SocketAddr::V4(_) => Self::over(Some(port), None),
            SocketAddr::V6(_) => Self::over(None, Some(port)),
        })
    }

    fn over(v4: Option<Port>, v6: Option<Port>) -> Self {
        let (v4, v6) = (v4.map(Arc::new), v6.map(Arc::new));
        let routes = Arc::<Mutex<Routes>>::default();
        let readers = v4
            .iter()
            .chain(&v6)
            .map(|port| runtime::task(read(port.clone(), routes.clone())).abort_handle())
            .collect();
        Self(Arc::new(Inner {
            v4,
            v6,
            adopted: RwLock::default(),
            routes,
            readers,
            unreachable: Arc::default(),
            nat64: Nat64::default(),
        }))
    }

    /// How IPv4 addresses are reached. Whoever names a destination asks it, because answers come from the
    /// address that is sent to.
    pub(crate) fn nat64(&self) -> &Nat64 {
        &self.0.nat64
    }

    /// Returns a notice that comes when the system cannot send to an address, such as one that a
    /// path has used. No event says when it can send again.
    pub(crate) fn unreachable(&self) -> Arc<Notify> {
        self.0.unreachable.clone()
    }

    /// The address of the socket that [`bind_one`](Self::bind_one) has bound.
    #[cfg(feature = "server")]
    pub(crate) fn bound(&self) -> Option<SocketAddr> {
        let mut ports = self.0.v4.iter().chain(&self.0.v6);
        ports.next().map(|port| port.local)
    }

    /// The local port for addresses of the family of `ip`.
    pub(crate) fn port(&self, ip: IpAddr) -> Option<u16> {
        self.of(ip).map(|port| port.local.port())
    }

    /// The address that the socket of the family of `ip` is bound to.
    pub(crate) fn local(&self, ip: IpAddr) -> Option<SocketAddr> {
        self.of(ip).map(|port| port.local)
    }

    fn of(&self, ip: IpAddr) -> Option<&Arc<Port>> {
        match ip {
            IpAddr::V4(_) => self.0.v4.as_ref(),
            IpAddr::V6(_) => self.0.v6.as_ref(),
        }
    }

    /// The socket that sends from `source` to `destination`.
    fn sender(&self, source: SocketAddr, destination: SocketAddr) -> Option<Arc<Port>> {
        let adopted = self.0.adopted.read();
        let adopted = adopted.unwrap_or_else(PoisonError::into_inner);
        let own = adopted.get(&source);
        own.or_else(|| self.of(destination.ip())).cloned()
    }

    /// Adds a connected socket, so that datagrams are sent from its address and received at it as
    /// at the shared sockets.
    ///
    /// # Errors
    /// Fails when the system refuses the options that the shared sockets need.
    pub(crate) fn adopt(&self, socket: UdpSocket) -> io::Result<Adopted> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        let port = Arc::new(Port {
            socket,
            state,
            local,
        });
        let reader = runtime::task(read(port.clone(), self.0.routes.clone())).abort_handle();
        let mut adopted = self.0.adopted.write();
        let adopted = adopted.as_mut().unwrap_or_else(|error| error.get_mut());
        adopted.insert(local, port);
        Ok(Adopted {
            sockets: self.clone(),
            local,
            reader,
        })
    }

    /// Sends datagrams from the local or relayed address `source` to `destination`. `data` is cut
    /// into pieces of `segment` bytes, and the last one may be shorter. Waits while the buffer of
    /// the socket is full. A datagram that the network refuses is lost, as any datagram may be.
    pub(crate) async fn send(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        mut data: &[u8],
        segment: usize,
    ) {
        let Some(port) = self.sender(source, destination) else {
            // There is no socket of this family, but a TURN client may have a relayed address of
            // it.
            let _ = self.try_send(source, destination, &mut data, segment);
            return;
        };
        while self
            .try_send(source, destination, &mut data, segment)
            .is_err()
        {
            if port.socket.writable().await.is_err() {
                return;
            }
        }
    }

    /// Sends as [`send`](Self::send) does, without waiting. When the buffer of the socket is full,
    /// the unsent rest stays in `data`.
    ///
    /// # Errors
    /// Fails with [`io::ErrorKind::WouldBlock`] when something is left.
    pub(crate) fn try_send(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &mut &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let carrier = self.routes().by_relayed.get(&source).map(Weak::upgrade);
        if let Some(carrier) = carrier {
            if let Some(carrier) = carrier {
                carrier.carry(destination, data, segment);
            }
            return Ok(());
        }
        match self.sender(source, destination) {
            Some(port) => self.send_from(&port, source, destination, data, segment),
            None => Ok(()),
        }
    }

    /// Sends a datagram from the local address `source` of a server, without waiting. If there is no room,
    /// it is lost.
    #[cfg(feature = "server")]
    pub(crate) fn answer(&self, source: SocketAddr, destination: SocketAddr, datagram: &[u8]) {
        if let Some(port) = self.of(destination.ip()) {
            let mut data = datagram;
            let _ = self.send_from(port, source, destination, &mut data, datagram.len());
        }
    }

    fn send_from(
        &self,
        port: &Port,
        source: SocketAddr,
        destination: SocketAddr,
        data: &mut &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let segment = segment.max(1);
        let joined = port.state.max_gso_segments().min(MAX_DATAGRAM / segment);
        let most = joined.max(1) * segment;
        while !data.is_empty() {
            let (run, rest) = data.split_at(data.len().min(most));
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: run,
                segment_size: (run.len() > segment).then_some(segment),
                src_ip: (!source.ip().is_unspecified()).then_some(source.ip()),
            };
            let sent = port.socket.try_io(Interest::WRITABLE, || {
                port.state
                    .try_send(UdpSockRef::from(&port.socket), &transmit)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    tracing::trace!(%error, "datagram not sent");
                    if is_unreachable(error.kind()) {
                        self.0.unreachable.notify_one();
                    }
                }
                Ok(()) => {}
            }
            *data = rest;
        }
        Ok(())
    }

    /// Waits until a datagram for the family of `ip` can be sent.
    pub(crate) fn writable(
        &self,
        ip: IpAddr,
    ) -> impl Future<Output = io::Result<()>> + Send + Sync + use<> {
        let port = self.of(ip).cloned();
        async move {
            match port {
                Some(port) => port.socket.writable().await,
                None => Ok(()),
            }
        }
    }

    /// How many datagrams the kernel takes in one call.
    pub(crate) fn max_segments(&self) -> usize {
        let all = [&self.0.v4, &self.0.v6].into_iter().flatten();
        all.map(|port| port.state.max_gso_segments())
            .min()
            .unwrap_or(1)
    }

    /// Whether the system may cut datagrams into fragments.
    pub(crate) fn may_fragment(&self) -> bool {
        let mut all = [&self.0.v4, &self.0.v6].into_iter().flatten();
        all.any(|port| port.state.may_fragment())
    }
}

/// Whether the system has no way to an address: no route, no neighbour, or not the source that was
/// asked for.
fn is_unreachable(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(
        kind,
        AddrNotAvailable | HostUnreachable | NetworkDown | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests;
