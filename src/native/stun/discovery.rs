//! What only a socket that a NAT has not seen before can find out: whom it lets in (RFC 5780
//! section 4.4), and which port comes next.

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

/// How often a question is sent whose answer a filter may swallow: 1.4 s with the pauses of
/// [`retransmissions`], and a loss of 10 % hides the answer once in a thousand times.
const TRIES: usize = 3;

/// The longest answer read (RFC 8489 section 6.1).
const MAX_ANSWER: usize = 1280;

/// Where the NAT maps a new socket: the newest port of its sequence.
pub(crate) async fn newest_port(server: SocketAddr) -> Option<SocketAddr> {
    let socket = socket(server).await.ok()?;
    let from_server = |source| source == server;
    match ask(&socket, server, Change::default(), from_server).await? {
        Response::Success { mapped, .. } => Some(mapped),
        Response::Error(_) => None,
    }
}

/// Whom the NAT lets in, by a server that can answer from other ports and perhaps from `other`, its
/// other address and port.
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

/// Whether an answer from another source gets in; `None` when the server sends none.
async fn gets_in(
    server: SocketAddr,
    change: Change,
    from: impl Fn(SocketAddr) -> bool,
) -> Option<bool> {
    let socket = socket(server).await.ok()?;
    // Makes the mapping, and shows that silence is the filter's.
    let from_server = |source| source == server;
    ask(&socket, server, Change::default(), from_server).await?;
    // A refusal comes from where the request went.
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
        // Lost is lost, here or on the way.
        let _ = socket.send_to(&request, server).await;
        let answer = time::timeout(pause, async {
            let mut buffer = [0; MAX_ANSWER];
            loop {
                // An error is that of an earlier sending, which ICMP told of.
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
