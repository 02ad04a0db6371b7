//! One bound socket, and what it receives.

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

/// Kernel buffers asked for, both ways: a burst of several receive windows. The kernel may grant
/// less.
const SOCKET_BUFFER: usize = 4 << 20;

/// Room for one received datagram, or a run of them joined by the kernel.
const RECEIVE_LEN: usize = 64 * 1024;

/// Runs received in one call. They are of up to 64 datagrams each, and their memory is there for as
/// long as the socket is.
const RECEIVE_BATCH: usize = 8;

/// Calls in a row, one to two milliseconds. Between two turns every other task that is ready has
/// one, and where those are thousands, as on a busy relay, the kernel's buffer must last until then.
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
pub(super) async fn read(port: Arc<Port>, routes: Arc<Mutex<Routes>>) {
    let mut memory = vec![0; RECEIVE_BATCH * RECEIVE_LEN];
    let mut touched: Vec<Handle> = Vec::new();
    loop {
        if let Err(error) = port.socket.readable().await {
            tracing::warn!(%error, "UDP socket failed");
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
            // Nothing there any more, or an ICMP error of an earlier datagram.
            let Ok(count) = received else {
                break;
            };
            let runs = metas.iter().zip(&buffers).take(count);
            take(&port, &routes, runs, &mut touched);
            for receiver in touched.drain(..) {
                receiver.received_all();
            }
        }
        // A flood must not starve the tasks that work on what came.
        tokio::task::yield_now().await;
    }
}

/// Hands over what arrived together.
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
        let Some(server) = server else {
            dispatch(routes, now, meta.addr, destination, (run, stride), touched);
            continue;
        };
        for datagram in run.chunks(stride) {
            if !server.take(now, datagram) {
                let one = (datagram, stride);
                dispatch(routes, now, meta.addr, destination, one, touched);
            }
        }
    }
}
