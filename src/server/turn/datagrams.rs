//! Clients over UDP. A wildcard socket has many addresses, and an answer leaves from the one that
//! the client asked.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::{io::Interest, net::UdpSocket, time};

use super::{
    allocation::Reply,
    requests::{Client, Requests},
};

/// The size of the receive buffer. It holds one datagram, or several that the kernel has joined.
const RECEIVE_LEN: usize = 64 * 1024;

/// How many receive calls are made in a row before other tasks get a turn.
const BURST: usize = 64;

/// A socket that clients send to.
pub(super) struct Datagrams {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Datagrams {
    /// # Errors
    /// If the system does not tell at which address a datagram arrives.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self {
            state: UdpSocketState::new(UdpSockRef::from(&socket))?,
            local: socket.local_addr()?,
            socket,
        })
    }

    /// Sends `datagram` from the address `from` of the machine. If there is no room, it is lost.
    pub(super) fn send(&self, from: IpAddr, to: SocketAddr, datagram: &[u8]) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: (!from.is_unspecified()).then_some(from),
        };
        let sent = self.socket.try_io(Interest::WRITABLE, || {
            let socket = UdpSockRef::from(&self.socket);
            self.state.try_send(socket, &transmit)
        });
        if let Err(error) = sent {
            tracing::trace!(%error, "a TURN datagram is not sent");
        }
    }

    /// Passes each datagram that has arrived to `each`, with its source and the address where it
    /// arrived.
    fn receive(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(SocketAddr, SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let mut meta = [RecvMeta::default()];
        self.socket.try_io(Interest::READABLE, || {
            let socket = UdpSockRef::from(&self.socket);
            let mut buffers = [IoSliceMut::new(buffer)];
            self.state.recv(socket, &mut buffers, &mut meta)
        })?;
        let [meta] = meta;
        let ip = meta.dst_ip.unwrap_or(self.local.ip());
        let local = SocketAddr::new(ip, self.local.port());
        let run = buffer.get(..meta.len).unwrap_or_default();
        for datagram in run.chunks(meta.stride.max(1)) {
            each(meta.addr, local, datagram);
        }
        Ok(())
    }
}

/// Serves the datagrams that arrive at `socket`, until the future is dropped.
pub(super) async fn serve(socket: Arc<Datagrams>, requests: Arc<Requests>) {
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        if let Err(error) = socket.socket.readable().await {
            tracing::warn!(%error, "TURN socket");
            return;
        }
        for _ in 0..BURST {
            let received = socket.receive(&mut buffer, |address, local, datagram| {
                // Port 0 cannot be answered.
                if address.port() == 0 {
                    return;
                }
                let client = Client {
                    over_tcp: false,
                    local,
                    address,
                };
                let reply = Reply::Datagrams(socket.clone(), client);
                requests.receive(client, &reply, datagram);
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier answer is gone now. The pause keeps a lasting error
                // from keeping a core busy.
                Err(error) => {
                    tracing::debug!(%error, "TURN socket");
                    time::sleep(Duration::from_millis(1)).await;
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}
