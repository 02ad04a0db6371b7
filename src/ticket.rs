//! What one peer hands to another so that it can be reached.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use data_encoding::BASE64URL_NOPAD;
use multiaddr::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};

use crate::{
    core::{address, offer::Incarnation},
    error::{Error, ErrorKind},
    identity::PeerId,
};

/// Printed first, so that a ticket is recognised and its form can change.
const PREFIX: &str = "tl1";
/// Enough for two relays with every transport each, and some hosts; bounds what a ticket makes us dial.
pub(crate) const MAX_ADDRESSES: usize = 32;
/// One for each address family and NAT that a peer may be behind; also how many datagrams a ticket
/// makes us send unasked.
const MAX_MAPPED: usize = 4;
/// The longest multiaddress in use (`/webrtc-direct` with certificate hash and name) has about 200.
const MAX_ADDRESS_BYTES: usize = 512;
/// A bound for what is looked at: 32 addresses of ordinary length are below 4 KiB.
const MAX_TEXT: usize = 8192;

/// The peer speaks resumable streams.
const RESUMABLE: u8 = 1;
/// It takes sealed offers.
const EARLY: u8 = 2;
/// Its relays forward what is sent before it has agreed.
const FORWARDED: u8 = 4;

/// How to reach a peer: its id, addresses of relays where it holds a reservation, and addresses of
/// its own.
///
/// Printable and URL-safe: `tl1` followed by base64url. The id in it is what a connection is
/// authenticated against, so whoever can change a ticket can only make a connect fail.
/// Tickets are compared, hashed and printed whole; print them only where the peer wants to be
/// reached from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    peer: PeerId,
    /// The peer speaks this library's stream protocol, so that opening a stream needs no asking.
    resumable: bool,
    /// The relays forward what is sent before the peer has agreed.
    forwarded: bool,
    /// The run of the peer that sealed offers are for, if it takes any.
    incarnation: Option<Incarnation>,
    relays: Vec<Multiaddr>,
    addresses: Vec<Multiaddr>,
    /// What STUN servers see of the peer's UDP socket: not to be dialled, but a datagram from us
    /// there opens our NAT for the peer, before it has heard of us.
    mapped: Vec<SocketAddr>,
}

impl Ticket {
    /// The peer that this ticket leads to.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// The relays' addresses, each ending in `/p2p/<relay>`, as multiaddress text.
    pub fn relays(&self) -> Vec<String> {
        self.relays.iter().map(ToString::to_string).collect()
    }

    /// The peer's own addresses, as multiaddress text.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }

    /// A ticket from its parts, as multiaddress text, for a peer that has none of its own, such as
    /// a stock libp2p node. Relay addresses must end in `/p2p/<relay>`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTicket`] naming the address at fault, or the limit that is exceeded
    /// (32 addresses in all).
    pub fn from_parts<S: AsRef<str>>(
        peer: PeerId,
        relays: impl IntoIterator<Item = S>,
        addresses: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        let parse = |text: S| {
            let text = text.as_ref();
            text.parse::<Multiaddr>()
                .map_err(|e| invalid(format!("`{text}` is not a multiaddress: {e}")))
        };
        let relays = relays.into_iter().map(parse).collect::<Result<_, _>>()?;
        let addresses = addresses.into_iter().map(parse).collect::<Result<_, _>>()?;
        Self::checked(peer, false, relays, addresses)
    }

    /// The same ticket without the peer's own addresses: it leads through relays only.
    #[must_use]
    pub fn without_addresses(mut self) -> Self {
        self.addresses.clear();
        self.mapped.clear();
        self
    }

    pub(crate) fn checked(
        peer: PeerId,
        resumable: bool,
        relays: Vec<Multiaddr>,
        addresses: Vec<Multiaddr>,
    ) -> Result<Self, Error> {
        if relays.len() + addresses.len() > MAX_ADDRESSES {
            return Err(invalid(format!("more than {MAX_ADDRESSES} addresses")));
        }
        for (index, relay) in relays.iter().enumerate() {
            if relay.iter().any(|p| p == Protocol::P2pCircuit) {
                return Err(invalid(format!(
                    "relay {index} leads through another relay"
                )));
            }
            if relay_id(relay).is_none() {
                return Err(invalid(format!("relay {index} does not end in /p2p/<id>")));
            }
        }
        for address in relays.iter().chain(&addresses) {
            check_address(address).map_err(invalid)?;
        }
        Ok(Self {
            peer,
            resumable,
            forwarded: false,
            incarnation: None,
            relays,
            addresses,
            mapped: Vec::new(),
        })
    }

    /// With what a dialler may send before the peer has agreed: whether the relays forward it, and
    /// the run of the peer that sealed offers are for.
    pub(crate) fn with_early(mut self, forwarded: bool, incarnation: Option<Incarnation>) -> Self {
        self.forwarded = forwarded;
        self.incarnation = incarnation;
        self
    }

    pub(crate) fn is_forwarded(&self) -> bool {
        self.forwarded
    }

    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation
    }

    /// With the addresses that NATs give the peer's socket; the first few count.
    pub(crate) fn with_mapped(mut self, mapped: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.mapped = mapped.into_iter().take(MAX_MAPPED).collect();
        self
    }

    /// The addresses that NATs give the peer's socket.
    pub(crate) fn mapped_addrs(&self) -> &[SocketAddr] {
        &self.mapped
    }

    pub(crate) fn is_resumable(&self) -> bool {
        self.resumable
    }

    pub(crate) fn relay_addrs(&self) -> &[Multiaddr] {
        &self.relays
    }

    pub(crate) fn direct_addrs(&self) -> &[Multiaddr] {
        &self.addresses
    }
}

/// The relay that `address` ends at, if it ends in `/p2p/<relay>`.
pub(crate) fn relay_id(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Whether a ticket may hold `address`.
///
/// # Errors
/// What is wrong with it, with the address.
pub(crate) fn check_address(address: &Multiaddr) -> Result<(), String> {
    if address.len() > MAX_ADDRESS_BYTES {
        return Err(format!("an address is over {MAX_ADDRESS_BYTES} bytes"));
    }
    match address::fault(address) {
        // Its text may hold what a terminal obeys.
        Some(why) => Err(format!("`{}`: {why}", address.to_string().escape_debug())),
        None => Ok(()),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidTicket, message)
}

/// Layout before base64url: a byte of flags; the peer id; with `EARLY` the incarnation, 8 bytes;
/// relays; addresses; mapped addresses. Each list is a count byte, each item a two-byte big-endian
/// length and the item's binary form, which for a mapped address is the IP address and the port.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(256);
        let flag = |flag: u8, set: bool| if set { flag } else { 0 };
        let early = flag(EARLY, self.incarnation.is_some());
        let forwarded = flag(FORWARDED, self.forwarded);
        bytes.push(flag(RESUMABLE, self.resumable) | early | forwarded);
        // Lengths fit: `checked` bounds the addresses, a peer id has at most 42 bytes.
        let item = |bytes: &mut Vec<u8>, part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        item(&mut bytes, &self.peer.0.to_bytes());
        bytes.extend(self.incarnation.iter().flatten());
        for list in [&self.relays, &self.addresses] {
            bytes.push(list.len() as u8);
            for address in list {
                item(&mut bytes, address.as_ref());
            }
        }
        bytes.push(self.mapped.len() as u8);
        for address in &self.mapped {
            let mut part = match address.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            part.extend_from_slice(&address.port().to_be_bytes());
            item(&mut bytes, &part);
        }
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("peer", &self.peer)
            .field("resumable", &self.resumable)
            .field("relays", &self.relays.len())
            .field("addresses", &self.addresses.len())
            .field("mapped", &self.mapped.len())
            .finish()
    }
}

impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(invalid(format!("longer than {MAX_TEXT} characters")));
        }
        let encoded = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| invalid(format!("does not start with `{PREFIX}`")))?;
        let bytes = BASE64URL_NOPAD
            .decode(encoded.as_bytes())
            .map_err(|e| invalid(format!("not base64url at character {}", e.position)))?;
        let mut reader = Reader(&bytes);
        let flags = reader.take(1, "flags")?[0];
        if flags & !(RESUMABLE | EARLY | FORWARDED) != 0 {
            return Err(invalid("a flag that this version does not know"));
        }
        let peer = libp2p::PeerId::from_bytes(reader.item("peer id")?)
            .map_err(|_| invalid("the peer id is malformed"))?;
        let early = (flags & EARLY != 0).then(|| reader.incarnation());
        let incarnation = early.transpose()?;
        let relays = reader.addresses("relay")?;
        let addresses = reader.addresses("address")?;
        let mapped = reader.mapped()?;
        if !reader.0.is_empty() {
            return Err(invalid("bytes left over at the end"));
        }
        let ticket = Self::checked(PeerId(peer), flags & RESUMABLE != 0, relays, addresses)?;
        let ticket = ticket.with_mapped(mapped);
        Ok(ticket.with_early(flags & FORWARDED != 0, incarnation))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Error> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| invalid(format!("ends within the {what}")))?;
        self.0 = tail;
        Ok(head)
    }

    fn item(&mut self, what: &str) -> Result<&'a [u8], Error> {
        let length = self.take(2, what)?;
        self.take(
            usize::from(u16::from_be_bytes([length[0], length[1]])),
            what,
        )
    }

    fn incarnation(&mut self) -> Result<Incarnation, Error> {
        let mut incarnation = Incarnation::default();
        let bytes = self.take(incarnation.len(), "incarnation")?;
        incarnation.copy_from_slice(bytes);
        Ok(incarnation)
    }

    fn mapped(&mut self) -> Result<Vec<SocketAddr>, Error> {
        const WHAT: &str = "mapped address";
        let count = usize::from(self.take(1, WHAT)?[0]);
        if count > MAX_MAPPED {
            return Err(invalid(format!("more than {MAX_MAPPED} of {WHAT}")));
        }
        (0..count)
            .map(|index| {
                let item = self.item(WHAT)?;
                socket_addr(item).ok_or_else(|| invalid(format!("{WHAT} {index} is malformed")))
            })
            .collect()
    }

    fn addresses(&mut self, what: &str) -> Result<Vec<Multiaddr>, Error> {
        let count = usize::from(self.take(1, what)?[0]);
        if count > MAX_ADDRESSES {
            return Err(invalid(format!("more than {MAX_ADDRESSES} of {what}")));
        }
        (0..count)
            .map(|index| {
                Multiaddr::try_from(self.item(what)?.to_vec())
                    .map_err(|_| invalid(format!("{what} {index} is malformed")))
            })
            .collect()
    }
}

/// An IP address and a port, in network byte order.
fn socket_addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk()?;
    let ip = match ip.len() {
        4 => <[u8; 4]>::try_from(ip).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(ip).ok().map(IpAddr::from),
    };
    Some(SocketAddr::new(ip?, u16::from_be_bytes(*port)))
}

impl Serialize for Ticket {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ticket {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Identity;

    fn sample() -> Ticket {
        let relay = Identity::generate().peer_id();
        Ticket::from_parts(
            Identity::generate().peer_id(),
            [format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{relay}")],
            ["/ip4/192.0.2.7/udp/9/quic-v1".to_owned()],
        )
        .unwrap()
        .with_mapped(["203.0.113.5:7", "[2001:db8::1]:8"].map(|a| a.parse().unwrap()))
    }

    #[test]
    fn prints_url_safe_and_parses_back() {
        let mut resumable = sample();
        resumable.resumable = true;
        let early = [(true, None), (false, Some([7; 8])), (true, Some([8; 8]))];
        let early = early.map(|(forwarded, run)| resumable.clone().with_early(forwarded, run));
        for ticket in [sample(), resumable].into_iter().chain(early) {
            let text = ticket.to_string();
            assert!(
                text.chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            );
            assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
        }
    }

    #[test]
    fn errors_name_the_part() {
        let cases = [
            ("xyz", "tl1"),
            ("tl1!!", "base64url"),
            ("tl1AAAA", "peer id"),
        ];
        for (text, part) in cases {
            let error = text.parse::<Ticket>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTicket);
            assert!(error.message().contains(part), "{error}");
        }
        let peer = Identity::generate().peer_id();
        let error = Ticket::from_parts(peer, ["/ip4/192.0.2.1/tcp/1"], []).unwrap_err();
        assert!(error.message().contains("relay 0"), "{error}");
    }

    #[test]
    fn an_address_that_aims_is_refused_by_name() {
        let peer = Identity::generate().peer_id();
        for address in [
            "/ip4/192.0.2.1/tcp/1/x-parity-ws/%2Fa%0D%0AHost:%20b",
            "/dns4/a b/tcp/1/ws",
            "/ip4/192.0.2.1/tcp/1/ip4/127.0.0.1/tcp/6379/ws",
        ] {
            let error = Ticket::from_parts(peer, [], [address]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTicket);
            assert!(error.message().contains(address), "{error}");
            let mut aimed = sample();
            aimed.addresses.push(address.parse().unwrap());
            let error = aimed.to_string().parse::<Ticket>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTicket);
            assert!(error.message().contains(address), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_text(text in "\\PC{0,300}") {
            let _ = text.parse::<Ticket>();
        }

        #[test]
        fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)).parse::<Ticket>();
        }

        #[test]
        fn a_cut_ticket_is_refused(cut in 0usize..200) {
            let text = sample().to_string();
            prop_assume!(cut < text.len());
            prop_assert!(text[..cut].parse::<Ticket>().is_err());
        }
    }
}
