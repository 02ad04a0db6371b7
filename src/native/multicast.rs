//! Sockets for multicast DNS (RFC 6762), which share its port with all other programs.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::ReadBuf, net::UdpSocket};

use crate::core::scope::{Scope, scope};

/// The IPv4 group of multicast DNS (RFC 6762 section 3).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// The IPv6 group of multicast DNS (RFC 6762 section 3).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// The port of multicast DNS (RFC 6762 section 3).
const PORT: u16 = 5353;

/// The largest packet (RFC 6762 section 17).
pub(super) const MAX_PACKET: usize = 9000;

/// How many errors of a socket are passed over at a time. A socket has one for each packet at most that it
/// has sent in vain.
const ERRORS: usize = 4;

/// A socket, and the group to which it speaks. A socket without a group only listens.
pub(super) struct Ear {
    pub(super) socket: UdpSocket,
    pub(super) group: Option<SocketAddr>,
    /// Whether it hears only what is for everybody, which no router passes on.
    pub(super) only_for_all: bool,
}

/// Makes the sockets that speak and listen in the networks in which the machine has the addresses `hosts`.
/// Networks where that cannot be are left out. Needs a Tokio runtime.
pub(super) fn open(hosts: &[IpAddr]) -> Vec<Ear> {
    let speaking = hosts.iter().map(|host| speaking(*host));
    let ears = speaking.chain([hearing_v4(hosts), hearing_v6(hosts)]);
    ears.filter_map(Result::ok).collect()
}

/// Sends `packet` to everybody in these networks.
pub(super) async fn tell(ears: &[Ear], packet: &[u8]) {
    for ear in ears {
        if let Some(group) = ear.group
            && let Err(error) = ear.socket.send_to(packet, group).await
        {
            tracing::trace!(%error, "a packet of mDNS cannot be sent to a network");
        }
    }
}

/// Sends `packet` from the port of multicast DNS to `to` alone (RFC 6762 section 6).
pub(super) fn reply(packet: &[u8], to: SocketAddr) -> io::Result<()> {
    let any = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = new(any)?;
    share(&socket)?;
    if to.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, PORT).into())?;
    // A socket that is connected takes no packet of others that is for another program.
    socket.connect(&to.into())?;
    socket.set_nonblocking(true)?;
    socket.send(packet).map(drop)
}

/// Makes a socket that speaks in the network of `host`.
fn speaking(host: IpAddr) -> io::Result<Ear> {
    let socket = new(host)?;
    let group = match host {
        IpAddr::V4(host) => {
            socket.set_multicast_if_v4(&host)?;
            // RFC 6762 section 11 asks for a TTL of 255.
            socket.set_multicast_ttl_v4(255)?;
            GROUP_V4.into()
        }
        // The system finds the interface of the address.
        IpAddr::V6(_) => {
            socket.set_multicast_hops_v6(255)?;
            GROUP_V6.into()
        }
    };
    socket.bind(&SocketAddr::new(host, 0).into())?;
    ear(socket, Some(SocketAddr::new(group, PORT)), false)
}

/// Makes a socket that hears what is for everybody, beside the sockets of other programs.
fn hearing_v4(hosts: &[IpAddr]) -> io::Result<Ear> {
    let socket = new(Ipv4Addr::UNSPECIFIED.into())?;
    share(&socket)?;
    // A socket that is bound to the group takes no datagram that is for another program alone.
    let group = match cfg!(windows) {
        true => Ipv4Addr::UNSPECIFIED,
        false => GROUP_V4,
    };
    socket.bind(&SocketAddr::new(group.into(), PORT).into())?;
    for host in hosts {
        if let IpAddr::V4(host) = host {
            // A network without multicast does not keep the others from being heard.
            let _ = socket.join_multicast_v4(&GROUP_V4, host);
        }
    }
    ear(socket, None, group == GROUP_V4)
}

fn hearing_v6(hosts: &[IpAddr]) -> io::Result<Ear> {
    if !hosts.iter().any(IpAddr::is_ipv6) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    let socket = new(Ipv6Addr::UNSPECIFIED.into())?;
    share(&socket)?;
    socket.set_only_v6(true)?;
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT).into())?;
    socket.join_multicast_v6(&GROUP_V6, 0)?;
    ear(socket, None, false)
}

fn new(host: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(host, 0));
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}

/// Shares the port with all other programs that speak multicast DNS (RFC 6762 section 15.1).
fn share(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    Ok(())
}

fn ear(socket: Socket, group: Option<SocketAddr>, only_for_all: bool) -> io::Result<Ear> {
    socket.set_nonblocking(true)?;
    Ok(Ear {
        socket: UdpSocket::from_std(socket.into())?,
        group,
        only_for_all,
    })
}

/// Waits for the next packet of the local network that one of the sockets hears, and returns its length and
/// where it has come from. Packets from elsewhere are dropped (RFC 6762 section 11).
pub(super) async fn heard(ears: &[Ear], buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        let (length, from, only_for_all) = next(ears, buffer).await;
        if only_for_all || is_near(from.ip()) {
            return (length, from);
        }
    }
}

/// Waits for the next packet, and also tells whether it certainly was for everybody in the network.
async fn next(ears: &[Ear], buffer: &mut [u8]) -> (usize, SocketAddr, bool) {
    poll_fn(|cx| {
        for ear in ears {
            let mut errors = 0;
            loop {
                let mut buffer = ReadBuf::new(buffer);
                match ear.socket.poll_recv_from(cx, &mut buffer) {
                    Poll::Ready(Ok(from)) => {
                        let length = buffer.filled().len();
                        return Poll::Ready((length, from, ear.only_for_all));
                    }
                    Poll::Ready(Err(_)) if errors < ERRORS => errors += 1,
                    Poll::Ready(Err(_)) => {
                        // The socket wakes nobody before it was found empty.
                        cx.waker().wake_by_ref();
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether an address can be in the local network: it is no global one.
pub(super) fn is_near(ip: IpAddr) -> bool {
    let is_link_local = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    is_link_local || [Scope::Private, Scope::Loopback].contains(&scope(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_is_not_global_is_near() {
        for (ip, near) in [
            ("192.168.1.9", true),
            ("fe80::1", true),
            ("127.0.0.1", true),
            ("203.0.113.9", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_near(ip.parse().unwrap()), near, "{ip}");
        }
    }

    #[tokio::test]
    async fn a_packet_is_heard_if_it_is_near() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (to, other) = (
            socket.local_addr().unwrap(),
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        );
        let ears = [Ear {
            socket,
            group: None,
            only_for_all: false,
        }];
        other.send_to(b"near", to).await.unwrap();
        let mut buffer = [0; 8];
        let heard = heard(&ears, &mut buffer).await;
        assert_eq!(heard, (4, other.local_addr().unwrap()));
    }
}
