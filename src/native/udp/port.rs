//! One bound socket, and the task that reads it.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    Handle,
    routes::{Routes, dispatch, lock},
};

/// The size of the kernel buffers that is requested, in both directions. It is enough for a burst
/// of several receive windows. The kernel may grant less.
const SOCKET_BUFFER: usize = 4 << 20;

/// The size of the buffer for one received datagram, or for a run of datagrams that the kernel
/// joined.
const RECEIVE_LEN: usize = 64 * 1024;

/// The runs that are received in one call. Each has up to 64 datagrams. Their memory is held for as
/// long as the socket is open.
const RECEIVE_BATCH: usize = 8;

/// The receive calls in a row before other tasks run. They take one to two milliseconds. Between
/// two such turns, every other ready task runs once. On a busy relay these are thousands, and the
/// kernel's buffer must last until the next turn.
const TURN: usize = 64;

/// One bound socket.
pub(super) struct Port {
    pub(super) socket: UdpSocket,
    pub(super) state: UdpSocketState,
    pub(super) local: SocketAddr,
}

impl Port {
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            // The IPv4 socket has the same port.
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Self::over(socket)
    }

    /// Uses a socket that is bound and does not block.
    pub(super) fn over(socket: Socket) -> io::Result<Self> {
        // Smaller buffers are slower, but not wrong.
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

/// Receives until the task is aborted. A failure of the socket, which is not expected, ends it too.
pub(super) async fn read(port: Arc<Port>, routes: Arc<Mutex<Routes>>) {
    let mut memory = vec![0; RECEIVE_BATCH * RECEIVE_LEN];
    let mut touched: Vec<Handle> = Vec::new();
    loop {
        if let Err(error) = port.socket.readable().await {
            tracing::warn!(%error, "the UDP socket failed");
            return;
        }
        for _ in 0..TURN {
            let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
            let mut slices = memory.chunks_mut(RECEIVE_LEN);
            let mut buffers: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
            let received = port.socket.try_io(Interest::READABLE, || {
                let socket = UdpSockRef::from(&port.socket);
                port.state.recv(socket, &mut buffers, &mut metas)
            });
            // Nothing is left, or this is the ICMP error of an earlier datagram.
            let Ok(count) = received else {
                break;
            };
            let runs = metas.iter().zip(&buffers).take(count);
            take(&port, &routes, runs, &mut touched);
            for receiver in touched.drain(..) {
                receiver.received_all();
            }
        }
        // A flood must not starve the tasks that process the datagrams.
        tokio::task::yield_now().await;
    }
}

/// Hands over the datagrams that arrived together.
fn take<'a>(
    port: &Port,
    routes: &Mutex<Routes>,
    runs: impl Iterator<Item = (&'a RecvMeta, &'a IoSliceMut<'a>)>,
    touched: &mut Vec<Handle>,
) {
    let now = Instant::now();
    for (meta, buffer) in runs {
        let ip = meta.dst_ip.unwrap_or(port.local.ip());
        let destination = SocketAddr::new(ip, port.local.port());
        let server = lock(routes)
            .by_server
            .get(&(port.local.port(), meta.addr))
            .cloned();
        let server = server.and_then(|carrier| carrier.upgrade());
        let (run, stride) = (&buffer[..meta.len], meta.stride.max(1));
        // A TURN server may speak QUIC from the same port.
        let is_turn = |datagram: &[u8]| lock(routes).may_be_turn(datagram);
        let server = server.filter(|_| run.chunks(stride).any(is_turn));
        let Some(server) = server else {
            dispatch(routes, now, meta.addr, destination, (run, stride), touched);
            continue;
        };
        for datagram in run.chunks(stride) {
            if !is_turn(datagram) || !server.take(now, datagram) {
                let one = (datagram, stride);
                dispatch(routes, now, meta.addr, destination, one, touched);
            }
        }
    }
}
