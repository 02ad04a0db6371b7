//! The hard side of the birthday method: many sockets towards one address of the peer, of which the
//! NAT gives each a port of its own. One that the peer's probes meet becomes a local candidate.

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use str0m::ice::StunMessage;
use tokio::{io::ReadBuf, net::UdpSocket, time};

use super::connection::Shared;
use crate::{
    core::birthday::Effort,
    native::socket::{Receiver as _, Sockets},
};

/// The NAT's filter lets the peer in for as long as it remembers what was sent: 30 s is the least
/// in use (RFC 4787 REQ-5 wants 2 min), and a datagram may be lost.
const REFRESH: Duration = Duration::from_secs(5);

/// Time for the last probes to arrive and be answered.
const GRACE: Duration = Duration::from_secs(2);

/// Sockets that one session takes over at most: one is enough, several can be met at once.
const MAX_MET: usize = 4;

/// Datagrams that matter are connectivity checks.
const MAX_DATAGRAM: usize = 1500;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Burst {
    /// The peer's address as a STUN server sees it.
    pub(super) target: SocketAddr,
    pub(super) effort: Effort,
}

/// Opens the sockets, and hands those that are met to the session. Ends when a pair is nominated or
/// the peer's probes are through; dropping it closes the sockets that nobody has met.
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
                // One after the other, and over again: the first ones first.
                if open.len() < burst.effort.sockets as usize {
                    match connected(burst.target).await {
                        Ok(socket) => open.push(socket),
                        // The limit of descriptors: what is open will have to do.
                        Err(error) => tracing::debug!(%error, "no further socket"),
                    }
                    next = open.len().saturating_sub(1);
                }
                let check = match shared.guess_check() {
                    Some(check) => check,
                    None => return,
                };
                if let Some(socket) = open.get(next) {
                    // Lost, as any datagram may be.
                    let _ = socket.try_send(&check);
                }
                next = (next + 1) % open.len().max(1);
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
                    Err(error) => tracing::debug!(%error, "a socket is lost"),
                }
            }
        }
    }
}

/// A socket that hears from `target` alone.
async fn connected(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// Which socket has received how much.
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
