//! Asks the local network for the address behind a browser's `<uuid>.local` name, by multicast DNS
//! (RFC 6762).
//!
//! A responder may answer to the asker alone or to everybody. Browsers answer to everybody, so this
//! module hears both. The identity of the responder is not proved. ICE checks prove whether the
//! address works.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::ReadBuf, net::UdpSocket, time};

use crate::core::mdns::Name;

/// The IPv4 group of multicast DNS (RFC 6762 section 3).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// The IPv6 group of multicast DNS (RFC 6762 section 3).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// The port of multicast DNS (RFC 6762 section 3).
const PORT: u16 = 5353;

/// How often a name is asked for. A responder answers within 120 ms (RFC 6762 section 6).
const ASKS: usize = 3;
/// The pause between two questions, which must be at least this long (RFC 6762 section 5.2).
const PAUSE: Duration = Duration::from_secs(1);

/// The most addresses that are taken of one name: one of each family, and those that a second
/// network adds.
const MAX_ADDRESSES: usize = 4;

/// The largest packet (RFC 6762 section 17).
const MAX_PACKET: usize = 9000;

/// A socket, and the address that it asks. A socket that does not ask only listens.
struct Ear {
    socket: UdpSocket,
    asks: Option<SocketAddr>,
}

/// Resolves `name` in the networks in which the machine has the addresses `hosts`. Returns no
/// address if nobody answers within 3 s. Needs a Tokio runtime.
///
/// # Cancel safety
/// Dropping the future ends the resolution.
pub(crate) async fn resolve(name: &Name, hosts: &[IpAddr]) -> Vec<IpAddr> {
    let asking = hosts.iter().map(|host| asking(*host));
    let ears = asking.chain([hearing_v4(hosts), hearing_v6(hosts)]);
    // Networks that cannot be asked or heard are left out.
    ask(name, ears.filter_map(Result::ok).collect()).await
}

async fn ask(name: &Name, ears: Vec<Ear>) -> Vec<IpAddr> {
    let question = name.question();
    let mut buffer = vec![0; MAX_PACKET];
    for _ in 0..ASKS {
        for ear in &ears {
            if let Some(group) = ear.asks
                && let Err(error) = ear.socket.send_to(&question, group).await
            {
                tracing::trace!(%error, "the question for a name cannot be sent to a network");
            }
        }
        let pause = time::sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                length = heard(&ears, &mut buffer) => {
                    let mut found = name.answers(&buffer[..length]);
                    found.retain(|ip| !ip.is_unspecified() && !ip.is_multicast());
                    found.truncate(MAX_ADDRESSES);
                    if !found.is_empty() {
                        return found;
                    }
                }
            }
        }
    }
    Vec::new()
}

/// Makes a socket that asks in the network of `host`.
fn asking(host: IpAddr) -> io::Result<Ear> {
    let socket = open(host)?;
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
    ear(socket, Some(SocketAddr::new(group, PORT)))
}

/// Makes a socket that hears answers to everybody, beside the sockets of other programs.
fn hearing_v4(hosts: &[IpAddr]) -> io::Result<Ear> {
    let socket = open(Ipv4Addr::UNSPECIFIED.into())?;
    share(&socket)?;
    // A socket that is bound to the group takes no datagram that is for another program alone.
    let group = match cfg!(windows) {
        true => Ipv4Addr::UNSPECIFIED,
        false => GROUP_V4,
    };
    socket.bind(&SocketAddr::new(group.into(), PORT).into())?;
    for host in hosts {
        if let IpAddr::V4(host) = host {
            socket.join_multicast_v4(&GROUP_V4, host)?;
        }
    }
    ear(socket, None)
}

fn hearing_v6(hosts: &[IpAddr]) -> io::Result<Ear> {
    if !hosts.iter().any(IpAddr::is_ipv6) {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    let socket = open(Ipv6Addr::UNSPECIFIED.into())?;
    share(&socket)?;
    socket.set_only_v6(true)?;
    socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT).into())?;
    socket.join_multicast_v6(&GROUP_V6, 0)?;
    ear(socket, None)
}

fn open(host: IpAddr) -> io::Result<Socket> {
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

fn ear(socket: Socket, asks: Option<SocketAddr>) -> io::Result<Ear> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket.into())?;
    Ok(Ear { socket, asks })
}

/// Waits for the next packet that one of the sockets hears, and returns its length.
async fn heard(ears: &[Ear], buffer: &mut [u8]) -> usize {
    poll_fn(|cx| {
        for ear in ears {
            let mut buffer = ReadBuf::new(buffer);
            if let Poll::Ready(Ok(_)) = ear.socket.poll_recv_from(cx, &mut buffer) {
                return Poll::Ready(buffer.filled().len());
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mdns::tests::{NAME, answer};

    #[tokio::test]
    async fn the_address_is_taken_from_the_answer_for_the_name() {
        let responder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let ours = Ear {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            asks: Some(responder.local_addr().unwrap()),
        };
        let name = Name::parse(NAME).unwrap();
        let other = Name::parse(&NAME.replace('0', "1")).unwrap();
        let address = "192.168.1.7".parse().unwrap();
        let answering = async {
            let mut asked = vec![0; MAX_PACKET];
            let (length, from) = responder.recv_from(&mut asked).await.unwrap();
            assert_eq!(asked[..length], name.question());
            let nowhere = answer(&name, &["0.0.0.0".parse().unwrap()]);
            let elsewhere = answer(&other, &["192.168.1.8".parse().unwrap()]);
            for said in [
                &[7; 12][..],
                &nowhere,
                &elsewhere,
                &answer(&name, &[address]),
            ] {
                responder.send_to(said, from).await.unwrap();
            }
        };
        let (found, ()) = tokio::join!(ask(&name, vec![ours]), answering);
        assert_eq!(found, [address]);
    }
}
