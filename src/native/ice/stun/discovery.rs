//! Discovery with sockets that a NAT has not seen before: the filtering of the NAT (RFC 5780
//! section 4.4), and its next port.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{net::UdpSocket, time};

use super::{
    message::{self, Change, Response},
    retransmissions,
};
use crate::core::nat::{self, NatFiltering};

/// How often a request is sent whose answer a filter may swallow. This takes 1.4 s with the pauses
/// of [`retransmissions`]. A loss of 10 % hides the answer once in a thousand times.
const TRIES: usize = 3;

/// The longest answer that is read (RFC 8489 section 6.1).
const MAX_ANSWER: usize = 1280;

/// Returns the address that the NAT gives to a new socket, with the newest port of its sequence.
pub(crate) async fn newest_port(server: SocketAddr) -> Option<SocketAddr> {
    let socket = socket(server).await.ok()?;
    let from_server = |source| source == server;
    match ask(&socket, server, Change::default(), from_server).await? {
        Response::Success { mapped, .. } => Some(mapped),
        Response::Error(_) => None,
    }
}

/// Discovers the filtering of the NAT. `server` can answer from another port, and perhaps from
/// `other`, its other address and port.
pub(crate) async fn filtering(server: SocketAddr, other: Option<SocketAddr>) -> NatFiltering {
    let both = async {
        let change = Change {
            ip: true,
            port: true,
        };
        let other = other?;
        gets_in(server, change, |source| source == other).await
    };
    let port = gets_in(
        server,
        Change {
            ip: false,
            port: true,
        },
        |source| source.ip() == server.ip() && source.port() != server.port(),
    );
    let (both, port) = tokio::join!(both, port);
    nat::filtering(both, port)
}

/// Returns whether an answer from another source gets in, or `None` when the server sends none.
async fn gets_in(
    server: SocketAddr,
    change: Change,
    from: impl Fn(SocketAddr) -> bool,
) -> Option<bool> {
    let socket = socket(server).await.ok()?;
    // This makes the mapping, and shows that the filter and not the server causes a later silence.
    let from_server = |source| source == server;
    ask(&socket, server, Change::default(), from_server).await?;
    // An error response comes from the address that the request went to.
    let accepted = |source| source == server || from(source);
    match ask(&socket, server, change, accepted).await {
        Some(Response::Success { .. }) => Some(true),
        Some(Response::Error(_)) => None,
        None => Some(false),
    }
}

async fn socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).await
}

async fn ask(
    socket: &UdpSocket,
    server: SocketAddr,
    change: Change,
    accepted: impl Fn(SocketAddr) -> bool,
) -> Option<Response> {
    let (id, request) = message::request(change);
    for pause in retransmissions().take(TRIES) {
        // A failure to send is treated as a loss on the way.
        let _ = socket.send_to(&request, server).await;
        let answer = time::timeout(pause, async {
            let mut buffer = [0; MAX_ANSWER];
            loop {
                // The error belongs to an earlier sending. ICMP reported it.
                let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                match message::response(&buffer[..length]) {
                    Some((of, response)) if of == id && accepted(source) => return response,
                    _ => {}
                }
            }
        });
        if let Ok(response) = answer.await {
            return Some(response);
        }
    }
    None
}
