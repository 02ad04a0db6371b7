//! Classifies a NAT. It is measured from behind with STUN (RFC 5780), without knowledge of its
//! rules.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

use crate::nat::{Filtering, Mapping, Ports};

/// The default port of STUN (RFC 8489 section 9.2).
pub const STUN_PORT: u16 = 3_478;

/// How long one question may stay without an answer before it counts as filtered.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAGIC_COOKIE: u32 = 0x2112_A442;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const OTHER_ADDRESS: u16 = 0x802c;
const CHANGE_IP: u32 = 4;
const CHANGE_PORT: u32 = 2;

/// The result of a classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// When the NAT reuses a mapping.
    pub mapping: Mapping,
    /// Whom the NAT lets in through a mapping.
    pub filtering: Filtering,
    /// How the NAT picks external ports.
    pub ports: Ports,
    /// Whether the host reaches itself by its external address. It is `None` if its mapping varies.
    pub hairpin: Option<bool>,
    /// The external endpoint that the server saw first.
    pub external: SocketAddr,
}

/// Classifies the NATs and firewalls between the calling host and an RFC 5780 server.
///
/// Returns `None` if the server does not answer over UDP at all. This takes one to two seconds, and
/// most of that is the wait for answers that filters drop.
///
/// # Errors
/// If a socket cannot be made, or the server has no second address.
pub async fn classify(server: SocketAddr) -> io::Result<Option<Report>> {
    let probe = Probe::new(server).await?;
    let Some(first) = probe.ask(server, 0).await? else {
        return Ok(None);
    };
    let other = first
        .other
        .ok_or_else(|| io::Error::other("the STUN server has no OTHER-ADDRESS"))?;

    // The mapping tests are those of RFC 5780 section 4.3.
    let second = SocketAddr::new(other.ip(), server.port());
    let at_second = probe.mapped(second).await?;
    let at_third = probe.mapped(other).await?;
    let mapping = if at_second == first.mapped {
        Mapping::EndpointIndependent
    } else if at_third == at_second {
        Mapping::AddressDependent
    } else {
        Mapping::AddressAndPortDependent
    };
    let ports = if first.mapped.port() == probe.socket.local_addr()?.port() {
        Ports::Preserved
    } else if mapping == Mapping::AddressAndPortDependent
        && at_second.port() == first.mapped.port().wrapping_add(1)
        && at_third.port() == at_second.port().wrapping_add(1)
    {
        Ports::Sequential
    } else {
        Ports::Random
    };

    // The filtering tests are those of RFC 5780 section 4.4. They use a socket that has never sent
    // to the other addresses.
    let fresh = Probe::new(server).await?;
    let filtering = if fresh.ask(server, CHANGE_IP | CHANGE_PORT).await?.is_some() {
        Filtering::EndpointIndependent
    } else if fresh.ask(server, CHANGE_PORT).await?.is_some() {
        Filtering::AddressDependent
    } else {
        Filtering::AddressAndPortDependent
    };

    let hairpin = if mapping == Mapping::EndpointIndependent {
        Some(hairpins(server, first.mapped, &probe).await?)
    } else {
        None
    };
    Ok(Some(Report {
        mapping,
        filtering,
        ports,
        hairpin,
        external: first.mapped,
    }))
}

/// Returns the external endpoint that `server` sees for `socket`, or `None` if it does not answer.
///
/// # Errors
/// If the socket cannot send.
pub async fn external(socket: &UdpSocket, server: SocketAddr) -> io::Result<Option<SocketAddr>> {
    Ok(ask(socket, server, 0).await?.map(|answer| answer.mapped))
}

/// Whether a datagram from a second socket to `external` arrives at `target` (RFC 5780 section
/// 4.5).
async fn hairpins(server: SocketAddr, external: SocketAddr, target: &Probe) -> io::Result<bool> {
    let sender = Probe::new(server).await?;
    if sender.ask(server, 0).await?.is_none() {
        return Ok(false);
    }
    let mut buffer = [0; 64];
    // If the NAT filters by port, the target must have sent to the sender first, as in hole
    // punching.
    for _ in 0..2 {
        sender.socket.send_to(b"hairpin", external).await?;
        if let Ok(Ok((7, _))) =
            timeout(ANSWER_WITHIN / 2, target.socket.recv_from(&mut buffer)).await
        {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Probe {
    socket: UdpSocket,
}

struct Answer {
    mapped: SocketAddr,
    other: Option<SocketAddr>,
}

impl Probe {
    async fn new(server: SocketAddr) -> io::Result<Self> {
        let any = if server.is_ipv6() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        Ok(Self {
            socket: UdpSocket::bind((any, 0)).await?,
        })
    }

    async fn ask(&self, to: SocketAddr, change: u32) -> io::Result<Option<Answer>> {
        ask(&self.socket, to, change).await
    }

    async fn mapped(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        let answer = self.ask(to, 0).await?;
        answer
            .map(|answer| answer.mapped)
            .ok_or_else(|| io::Error::other(format!("{to} stopped answering")))
    }
}

/// Asks up to twice: a first packet may be lost to a server that has just started.
async fn ask(socket: &UdpSocket, to: SocketAddr, change: u32) -> io::Result<Option<Answer>> {
    for attempt in 0..2 {
        let transaction = transaction(attempt);
        match socket.send_to(&request(transaction, change), to).await {
            // The router refuses, which counts as silence.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::HostUnreachable | io::ErrorKind::ConnectionRefused
                ) =>
            {
                continue;
            }
            sent => sent?,
        };
        let answer = async {
            let mut buffer = [0; 1_500];
            loop {
                let (length, _) = socket.recv_from(&mut buffer).await?;
                if let Some(answer) = parse(&buffer[..length], transaction) {
                    return io::Result::Ok(answer);
                }
            }
        };
        if let Ok(Ok(answer)) = timeout(ANSWER_WITHIN, answer).await {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

/// Returns a transaction id that is unique for each question. A lab needs no random ids.
fn transaction(attempt: u32) -> [u8; 12] {
    use std::sync::atomic::{AtomicU64, Ordering};

    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 12];
    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    id[8..].copy_from_slice(&attempt.to_be_bytes());
    id
}

fn request(transaction: [u8; 12], change: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(28);
    message.extend_from_slice(&BINDING_REQUEST.to_be_bytes());
    message.extend_from_slice(&(if change == 0 { 0u16 } else { 8 }).to_be_bytes());
    message.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
    message.extend_from_slice(&transaction);
    if change != 0 {
        message.extend_from_slice(&CHANGE_REQUEST.to_be_bytes());
        message.extend_from_slice(&4u16.to_be_bytes());
        message.extend_from_slice(&change.to_be_bytes());
    }
    message
}

fn parse(message: &[u8], transaction: [u8; 12]) -> Option<Answer> {
    let (header, mut attributes) = message.split_at_checked(20)?;
    if header[..2] != BINDING_SUCCESS.to_be_bytes() || header[8..] != transaction {
        return None;
    }
    let (mut mapped, mut other) = (None, None);
    while let Some((head, rest)) = attributes.split_at_checked(4) {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..length)?;
        match kind {
            XOR_MAPPED_ADDRESS => mapped = address(value, &header[4..20]),
            OTHER_ADDRESS => other = address(value, &[0; 16]),
            _ => {}
        }
        // Values are padded to four bytes (RFC 8489 section 14).
        attributes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Answer {
        mapped: mapped?,
        other,
    })
}

/// Reads an address attribute. `mask` is the cookie and transaction id for a XORed address, and
/// zeros for another.
fn address(value: &[u8], mask: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([value.get(2)? ^ mask[0], value.get(3)? ^ mask[1]]);
    let ip: Vec<u8> = value
        .get(4..)?
        .iter()
        .zip(mask)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    let ip: IpAddr = match value.get(1)? {
        1 => <[u8; 4]>::try_from(ip).ok()?.into(),
        2 => <[u8; 16]>::try_from(ip).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_ipv4_answer_of_rfc_5769() {
        // This is section 2.2, without integrity and fingerprint.
        let message =
            b"\x01\x01\x00\x1c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
            \x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\
            \x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let id = message[8..20].try_into().unwrap();
        assert_eq!(
            parse(message, id).unwrap().mapped,
            "192.0.2.1:32853".parse().unwrap()
        );
        assert!(parse(message, [0; 12]).is_none());
        assert!(parse(&message[..30], id).is_none());
    }
}
