//! One UDP socket per address family, shared by everything that speaks over UDP.
//!
//! One socket is one NAT mapping to learn, to map and to keep alive. Datagrams are told apart by
//! their first byte (RFC 7983, RFC 9443) and their source: STUN requests by the username fragment
//! they are addressed to, STUN responses by transaction, DTLS by the address it comes from, QUIC by
//! the connection id it goes to. What TURN servers send and relay goes through their clients, and so
//! does what is sent from a relayed address.

use std::{
    collections::HashMap,
    fmt, io,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
    time::Instant,
};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use str0m::ice::StunMessage;
use tokio::{io::Interest, net::UdpSocket, task::AbortHandle};

use crate::core::quic::{Destination, FIRST_BYTE, Tag};

/// Kernel buffers asked for, both ways: a burst of several receive windows. The kernel may grant
/// less.
const SOCKET_BUFFER: usize = 4 << 20;

/// Room for one received datagram, or a run of them joined by the kernel.
const RECEIVE_LEN: usize = 64 * 1024;

/// Runs received in one call. They are of up to 64 datagrams each, and their memory is there for as
/// long as the socket is.
const RECEIVE_BATCH: usize = 8;

/// The most that the kernel takes in one call, however many datagrams it becomes.
const MAX_DATAGRAM: usize = 65_000;

/// A receiver of datagrams.
pub(crate) trait Receiver: Send + Sync + 'static {
    /// A datagram from `source` arrived at the local address `destination`.
    fn receive(&self, now: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]);

    /// All datagrams that arrived together were handed over: act on them.
    fn received_all(&self);

    /// Whether a STUN response with this content answers a request of the receiver.
    fn accepts(&self, message: &StunMessage<'_>) -> bool;

    /// A run of QUIC datagrams of `segment` bytes, the last one possibly shorter, that begins a
    /// connection. Returns whether the receiver takes connections from `source`.
    fn receive_quic(&self, _: SocketAddr, _: SocketAddr, _data: &[u8], _segment: usize) -> bool {
        false
    }
}

type Handle = Arc<dyn Receiver>;

/// A client of a TURN server, which carries datagrams of relayed addresses.
pub(crate) trait Carrier: Send + Sync + 'static {
    /// Sends datagrams from a relayed address to `destination`: `data` cut into pieces of
    /// `segment` bytes, the last one possibly shorter. Never waits: what finds no room is lost,
    /// as any datagram may be.
    fn carry(&self, destination: SocketAddr, data: &[u8], segment: usize);

    /// Takes what came from the server; `false` if it is none of the client's.
    fn take(&self, now: Instant, data: &[u8]) -> bool;
}

/// The shared sockets. Cheap to clone; the sockets close with the last clone.
#[derive(Clone)]
pub(crate) struct Sockets(Arc<Inner>);

struct Inner {
    v4: Option<Arc<Port>>,
    v6: Option<Arc<Port>>,
    /// Sockets besides the two, by their address.
    adopted: RwLock<HashMap<SocketAddr, Arc<Port>>>,
    routes: Arc<Mutex<Routes>>,
    readers: Vec<AbortHandle>,
}

/// A socket besides the shared ones. Dropping it closes it.
pub(crate) struct Adopted {
    sockets: Sockets,
    local: SocketAddr,
    reader: AbortHandle,
}

impl Adopted {
    /// Its address.
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

/// Where the sockets are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: SocketAddrV4,
    pub(crate) v6: SocketAddrV6,
}

impl Default for Addresses {
    /// All interfaces, on ports of the system's choice.
    fn default() -> Self {
        Self {
            v4: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            v6: SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0),
        }
    }
}

/// No particular address of our own, to send to `destination` from.
pub(crate) fn any_source(destination: SocketAddr) -> SocketAddr {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, 0)
}

/// One bound socket.
struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

/// Who gets what.
#[derive(Default)]
struct Routes {
    /// STUN requests, by the local username fragment they name.
    by_fragment: HashMap<String, Weak<dyn Receiver>>,
    /// Everything else, by source. Several receivers may wait for the same one.
    by_source: HashMap<SocketAddr, Vec<Weak<dyn Receiver>>>,
    /// STUN responses that no candidate pair waits for.
    stun_client: Option<Weak<dyn Receiver>>,
    /// QUIC, by the mark of its endpoint in the connection ids that it chose.
    by_tag: HashMap<Tag, Weak<dyn Receiver>>,
    /// QUIC connections that begin and are of no other receiver.
    quic_listener: Option<Weak<dyn Receiver>>,
    /// What comes from TURN servers, by the local port and their address. First bytes of channel data and of QUIC
    /// overlap, so the source decides (RFC 9443 section 3).
    by_server: HashMap<(u16, SocketAddr), Weak<dyn Carrier>>,
    /// Who carries what is sent from a relayed address.
    by_relayed: HashMap<SocketAddr, Weak<dyn Carrier>>,
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
    /// Binds a socket for each address family that the machine has, at `addresses`, on a port of
    /// the system's choice where that is 0. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When neither family can be bound, or not the port that was asked for.
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

    /// Binds one socket, for one address family. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    #[cfg(feature = "server")]
    pub(crate) fn bind_one(address: SocketAddr) -> io::Result<Self> {
        let port = Port::bind(address)?;
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
            .map(|port| tokio::spawn(read(port.clone(), routes.clone())).abort_handle())
            .collect();
        Self(Arc::new(Inner {
            v4,
            v6,
            adopted: RwLock::default(),
            routes,
            readers,
        }))
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

    /// Takes a connected socket in, to send from its address and receive at it as at the shared
    /// ones.
    ///
    /// # Errors
    /// When the system refuses what the shared sockets need.
    pub(crate) fn adopt(&self, socket: UdpSocket) -> io::Result<Adopted> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        let port = Arc::new(Port {
            socket,
            state,
            local,
        });
        let reader = tokio::spawn(read(port.clone(), self.0.routes.clone())).abort_handle();
        let mut adopted = self.0.adopted.write();
        let adopted = adopted.as_mut().unwrap_or_else(|error| error.get_mut());
        adopted.insert(local, port);
        Ok(Adopted {
            sockets: self.clone(),
            local,
            reader,
        })
    }

    /// Sends datagrams from the local or relayed address `source` to `destination`: `data` cut
    /// into pieces of `segment` bytes, the last one possibly shorter. Waits while the socket's
    /// buffer is full; a datagram the network refuses is lost, as any datagram may be.
    pub(crate) async fn send(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        mut data: &[u8],
        segment: usize,
    ) {
        let Some(port) = self.sender(source, destination) else {
            // Only a relay may have an address of this family.
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

    /// [`send`](Self::send) without waiting: what is left of `data` when the socket's buffer is
    /// full stays in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when something is left.
    pub(crate) fn try_send(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &mut &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let segment = segment.max(1);
        let carrier = self.routes().by_relayed.get(&source).map(Weak::upgrade);
        if let Some(carrier) = carrier {
            if let Some(carrier) = carrier {
                carrier.carry(destination, data, segment);
            }
            return Ok(());
        }
        let Some(port) = self.sender(source, destination) else {
            return Ok(());
        };
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
                Err(error) => tracing::trace!(%error, "datagram not sent"),
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

    /// Routes QUIC to connection ids with this mark.
    pub(crate) fn route_tag(&self, tag: Tag, to: &Handle) {
        let mut routes = self.routes();
        routes.by_tag.retain(|_, weak| weak.strong_count() > 0);
        routes.by_tag.insert(tag, Arc::downgrade(to));
    }

    /// Routes QUIC connections that begin and that nobody else takes.
    pub(crate) fn route_quic_listener(&self, to: &Handle) {
        self.routes().quic_listener = Some(Arc::downgrade(to));
    }

    /// Routes STUN requests for the local username fragment.
    pub(crate) fn route_fragment(&self, fragment: &str, to: &Handle) {
        let to = Arc::downgrade(to);
        self.routes().by_fragment.insert(fragment.to_owned(), to);
    }

    /// Routes what comes from `source`.
    pub(crate) fn route_source(&self, source: SocketAddr, to: &Handle) {
        let mut routes = self.routes();
        let all = routes.by_source.entry(source).or_default();
        all.retain(|weak| weak.strong_count() > 0);
        all.push(Arc::downgrade(to));
    }

    /// Routes STUN responses that no other receiver accepts.
    pub(crate) fn route_stun_client(&self, to: &Handle) {
        self.routes().stun_client = Some(Arc::downgrade(to));
    }

    /// Routes what comes to a local port from a TURN server to its client, first of all. `false`
    /// if it has one already: over one socket there can be no other (RFC 8656 section 5).
    pub(crate) fn route_server(
        &self,
        port: u16,
        server: SocketAddr,
        to: &Arc<dyn Carrier>,
    ) -> bool {
        let mut routes = self.routes();
        let taken = routes.by_server.get(&(port, server));
        if taken.is_some_and(|carrier| carrier.strong_count() > 0) {
            return false;
        }
        routes.by_server.insert((port, server), Arc::downgrade(to));
        true
    }

    /// Sends what comes from a relayed address through its TURN client.
    pub(crate) fn route_relayed(&self, relayed: SocketAddr, through: &Arc<dyn Carrier>) {
        let mut routes = self.routes();
        routes.by_relayed.insert(relayed, Arc::downgrade(through));
    }

    /// Undoes the routes of a TURN client.
    pub(crate) fn unroute_carrier(&self, carrier: &Weak<dyn Carrier>) {
        let mut routes = self.routes();
        routes.by_server.retain(|_, other| !other.ptr_eq(carrier));
        routes.by_relayed.retain(|_, other| !other.ptr_eq(carrier));
    }

    /// A datagram from `source` arrived at a relayed address.
    pub(crate) fn receive_relayed(
        &self,
        now: Instant,
        source: SocketAddr,
        relayed: SocketAddr,
        data: &[u8],
    ) {
        let mut touched = Vec::new();
        let one = (data, data.len().max(1));
        dispatch(&self.0.routes, now, source, relayed, one, &mut touched);
        for receiver in touched {
            receiver.received_all();
        }
    }

    /// Undoes the routes of a receiver.
    pub(crate) fn unroute(
        &self,
        fragment: &str,
        sources: impl IntoIterator<Item = SocketAddr>,
        receiver: &Handle,
    ) {
        let receiver = Arc::downgrade(receiver);
        let mut routes = self.routes();
        routes.by_fragment.remove(fragment);
        for source in sources {
            if let Some(all) = routes.by_source.get_mut(&source) {
                all.retain(|weak| !weak.ptr_eq(&receiver) && weak.strong_count() > 0);
                if all.is_empty() {
                    routes.by_source.remove(&source);
                }
            }
        }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        lock(&self.0.routes)
    }
}

fn lock(routes: &Mutex<Routes>) -> MutexGuard<'_, Routes> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            // The IPv4 socket has the same port.
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        // Less is slower, not wrong.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket.into())?;
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            state,
            local,
        })
    }
}

/// Receives until the socket fails, which it does not, or the task is aborted.
async fn read(port: Arc<Port>, routes: Arc<Mutex<Routes>>) {
    let mut memory = vec![0; RECEIVE_BATCH * RECEIVE_LEN];
    let mut touched: Vec<Handle> = Vec::new();
    loop {
        if let Err(error) = port.socket.readable().await {
            tracing::warn!(%error, "UDP socket failed");
            return;
        }
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        let mut slices = memory.chunks_mut(RECEIVE_LEN);
        let mut buffers: [IoSliceMut<'_>; RECEIVE_BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        let received = port.socket.try_io(Interest::READABLE, || {
            let socket = UdpSockRef::from(&port.socket);
            port.state.recv(socket, &mut buffers, &mut metas)
        });
        let count = match received {
            Ok(count) => count,
            // An ICMP error of an earlier datagram, or nothing there after all.
            Err(_) => continue,
        };
        let now = Instant::now();
        for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
            let ip = meta.dst_ip.unwrap_or(port.local.ip());
            let destination = SocketAddr::new(ip, port.local.port());
            let server = lock(&routes)
                .by_server
                .get(&(port.local.port(), meta.addr))
                .cloned();
            let server = server.and_then(|carrier| carrier.upgrade());
            let (run, stride) = (&buffer[..meta.len], meta.stride.max(1));
            let Some(server) = server else {
                dispatch(
                    &routes,
                    now,
                    meta.addr,
                    destination,
                    (run, stride),
                    &mut touched,
                );
                continue;
            };
            for datagram in run.chunks(stride) {
                if !server.take(now, datagram) {
                    let one = (datagram, stride);
                    dispatch(&routes, now, meta.addr, destination, one, &mut touched);
                }
            }
        }
        for receiver in touched.drain(..) {
            receiver.received_all();
        }
        // A flood must not starve the tasks that work on what came.
        tokio::task::yield_now().await;
    }
}

/// Hands datagrams over: `run` cut into pieces of so many bytes, of one protocol.
fn dispatch(
    routes: &Mutex<Routes>,
    now: Instant,
    source: SocketAddr,
    destination: SocketAddr,
    (run, stride): (&[u8], usize),
    touched: &mut Vec<Handle>,
) {
    if run.first().is_some_and(|first| *first >= FIRST_BYTE) {
        deliver_quic(routes, source, destination, run, stride);
        return;
    }
    for datagram in run.chunks(stride) {
        deliver(routes, now, source, destination, datagram, touched);
    }
}

/// Finds who waits for a datagram. What nobody waits for is dropped.
fn deliver(
    routes: &Mutex<Routes>,
    now: Instant,
    source: SocketAddr,
    destination: SocketAddr,
    datagram: &[u8],
    touched: &mut Vec<Handle>,
) {
    // The receivers are called without the lock: they may change routes.
    let mut found: [Option<Handle>; 4] = Default::default();
    match datagram.first() {
        // STUN
        Some(0..=3) => {
            let parsed = StunMessage::parse(datagram);
            let routes = lock(routes);
            let Ok(message) = parsed else {
                // Servers that ask for no credentials do not sign their answers, which the ICE
                // agent's parser refuses. The client knows its own transactions.
                let client = routes.stun_client.as_ref().and_then(Weak::upgrade);
                drop(routes);
                if let Some(client) = client {
                    client.receive(now, source, destination, datagram);
                }
                return;
            };
            if message.is_binding_request() {
                let fragment = message.split_username().map(|(ours, _)| ours);
                found[0] = fragment
                    .and_then(|fragment| routes.by_fragment.get(fragment))
                    .and_then(Weak::upgrade);
            } else {
                let waiting = routes.by_source.get(&source).into_iter().flatten();
                let client = routes.stun_client.iter();
                let waiting: Vec<_> = waiting.chain(client).filter_map(Weak::upgrade).collect();
                drop(routes);
                found[0] = waiting
                    .into_iter()
                    .find(|receiver| receiver.accepts(&message));
            }
        }
        // DTLS. Two connections over one pair of addresses cannot be told apart, but each
        // discards the records it cannot decrypt.
        Some(20..=63) => {
            let routes = lock(routes);
            let waiting = routes.by_source.get(&source).into_iter().flatten();
            for (slot, receiver) in found.iter_mut().zip(waiting.filter_map(Weak::upgrade)) {
                *slot = Some(receiver);
            }
        }
        _ => {}
    }
    for receiver in found.into_iter().flatten() {
        receiver.receive(now, source, destination, datagram);
        let last = touched.last();
        if !last.is_some_and(|last| Arc::ptr_eq(last, &receiver)) {
            touched.push(receiver);
        }
    }
}

/// Hands a run of QUIC datagrams over, in as few pieces as there are endpoints in it.
fn deliver_quic(
    routes: &Mutex<Routes>,
    source: SocketAddr,
    destination: SocketAddr,
    run: &[u8],
    stride: usize,
) {
    let mut rest = run;
    while let Some(first) = rest.chunks(stride).next() {
        let to = Destination::of(first);
        let same = rest
            .chunks(stride)
            .take_while(|datagram| Destination::of(datagram) == to);
        let (piece, after) = rest.split_at(same.map(<[u8]>::len).sum());
        rest = after;
        let Some(to) = to else {
            continue;
        };
        let routes = lock(routes);
        let tagged = to.tag.and_then(|tag| routes.by_tag.get(&tag)?.upgrade());
        let mut receivers: Vec<Handle> = Vec::from_iter(tagged);
        if receivers.is_empty() {
            if to.may_begin {
                let waiting = routes.by_source.get(&source).into_iter().flatten();
                receivers.extend(waiting.filter_map(Weak::upgrade));
            }
            receivers.extend(routes.quic_listener.as_ref().and_then(Weak::upgrade));
        }
        // The receivers are called without the lock: they may change routes.
        drop(routes);
        for receiver in receivers {
            if receiver.receive_quic(source, destination, piece, stride) {
                break;
            }
        }
    }
}

/// Routes `run`, cut into datagrams of `stride` bytes, to receivers of every kind; gives how many
/// times one was handed something. For the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn demultiplex(source: SocketAddr, fragment: &str, run: &[u8], stride: usize) -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counter {
        calls: AtomicUsize,
        bytes: AtomicUsize,
    }

    impl Counter {
        fn count(&self, data: &[u8]) {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(data.len(), Ordering::Relaxed);
        }
    }

    impl Receiver for Counter {
        fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, data: &[u8]) {
            self.count(data);
        }

        fn received_all(&self) {}

        fn accepts(&self, message: &StunMessage<'_>) -> bool {
            message.is_successful_binding_response()
        }

        fn receive_quic(&self, _: SocketAddr, _: SocketAddr, data: &[u8], segment: usize) -> bool {
            assert!(!data.is_empty() && segment > 0);
            self.count(data);
            // As one that takes no connection of this peer.
            data.len().is_multiple_of(2)
        }
    }

    let counter = Arc::new(Counter::default());
    let handle: Handle = counter.clone();
    let to = || Arc::downgrade(&handle);
    let mut routes = Routes::default();
    routes.by_fragment.insert(fragment.to_owned(), to());
    routes.by_source.insert(source, vec![to(), to()]);
    routes.stun_client = Some(to());
    routes.by_tag.insert(Tag::default(), to());
    routes.quic_listener = Some(to());
    let mut touched = Vec::new();
    let now = Instant::now();
    let stride = stride.max(1);
    dispatch(
        &Mutex::new(routes),
        now,
        source,
        source,
        (run, stride),
        &mut touched,
    );
    // Two that wait for the source, and the listener.
    assert!(counter.bytes.load(Ordering::Relaxed) <= 3 * run.len());
    counter.calls.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
