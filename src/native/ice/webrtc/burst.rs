//! The hard side of the birthday method. It opens many sockets towards one address of the peer, and
//! the NAT gives each a port of its own. A socket that the peer's probes meet becomes a local
//! candidate.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use str0m::ice::StunMessage;
use tokio::{io::ReadBuf, net::UdpSocket, time};

use super::connection::Shared;
use crate::{
    core::birthday::Effort,
    native::udp::{Receiver as _, Sockets, any_source},
};

/// How often each socket sends. The NAT's filter lets the peer in for as long as it remembers the
/// last datagram. The least time in use is 30 s (RFC 4787 REQ-5 wants 2 min), and a datagram may be
/// lost.
const REFRESH: Duration = Duration::from_secs(5);

/// The time for the last probes to arrive and be answered.
const GRACE: Duration = Duration::from_secs(2);

/// The most sockets that one session takes over. One is enough, but several can be met at once.
const MAX_MET: usize = 4;

/// The longest datagram that is read. Only connectivity checks matter.
const MAX_DATAGRAM: usize = 1500;

/// The work that a session asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Burst {
    /// The peer's address, as a STUN server sees it.
    pub(super) target: SocketAddr,
    pub(super) effort: Effort,
}

/// Opens the sockets, and hands those that are met to the session. Ends when a pair is nominated or
/// when the peer's probes are over. Dropping the future closes the sockets that nobody has met.
pub(super) async fn run(burst: Burst, shared: Arc<Shared>, sockets: Sockets) {
    let end = Instant::now() + burst.effort.duration() + GRACE;
    let mut open: Vec<UdpSocket> = Vec::new();
    let mut met = 0;
    let pause = Duration::from_secs(1) / burst.effort.rate.max(1);
    let mut tick = time::interval(pause.min(REFRESH / burst.effort.sockets.max(1)));
    let mut next = 0;
    let mut buffer = [0; MAX_DATAGRAM];
    while Instant::now() < end && met < MAX_MET {
        tokio::select! {
            _ = tick.tick() => {
                let Some(check) = shared.guess_check() else {
                    return;
                };
                // The sockets are opened one after the other, and then used again in the same
                // order.
                if open.len() < burst.effort.sockets as usize {
                    match opened(burst.target, &check) {
                        Ok(socket) => {
                            open.push(socket);
                            continue;
                        }
                        // The limit of descriptors is reached, so the open sockets have to suffice.
                        Err(error) => tracing::debug!(%error, "no further socket can be opened"),
                    }
                }
                next %= open.len().max(1);
                if let Some(socket) = open.get(next) {
                    // A check may be lost, as any datagram.
                    let _ = socket.try_send(&check);
                }
                next += 1;
            }
            (index, len) = received(&open, &mut buffer) => {
                let data = &buffer[..len];
                let authentic = StunMessage::parse(data)
                    .is_ok_and(|message| message.is_binding_request() && shared.accepts(&message));
                if !authentic {
                    continue;
                }
                let socket = open.swap_remove(index);
                match sockets.adopt(socket) {
                    Ok(adopted) => {
                        met += 1;
                        let local = adopted.local();
                        shared.adopt(adopted);
                        shared.receive(Instant::now(), burst.target, local, data);
                        shared.received_all();
                    }
                    Err(error) => tracing::debug!(%error, "a socket that was met is lost"),
                }
            }
        }
    }
}

/// Makes a socket that receives from `target` alone, and sends it a check.
///
/// Tokio sends nothing until the system has told it that the socket may send. That is later, and without
/// the first check the NAT has no port for the socket until its second turn.
fn opened(target: SocketAddr, check: &[u8]) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(any_source(target))?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    // A check may be lost, as any datagram.
    let _ = socket.send(check);
    UdpSocket::from_std(socket)
}

/// Waits for a datagram. Returns the index of its socket and its length.
async fn received(open: &[UdpSocket], buffer: &mut [u8]) -> (usize, usize) {
    poll_fn(|cx| {
        for (index, socket) in open.iter().enumerate() {
            let mut buffer = ReadBuf::new(buffer);
            if let Poll::Ready(Ok(())) = socket.poll_recv(cx, &mut buffer) {
                return Poll::Ready((index, buffer.filled().len()));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::testing::PATIENCE;

    #[tokio::test]
    async fn a_socket_opens_the_nat_as_soon_as_it_is_made() {
        let peer = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = opened(peer.local_addr().unwrap(), b"check").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"check");
        assert_eq!(from.port(), socket.local_addr().unwrap().port());
    }
}
