//! Tickets. A peer gives its ticket to another peer, which then can reach it.

mod short;

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use multiaddr::{Multiaddr, Protocol};
use multibase::Base::Base64Url;
use serde::{Deserialize, Serialize};

use crate::{
    core::{
        address::{self, MAX_ADDRESS_BYTES},
        offer::Incarnation,
        record::{MAX_ADDRESSES, MAX_MAPPED, Record, socket_addr, socket_bytes},
    },
    error::{Error, ErrorKind},
    identity::PeerId,
};

/// The prefix makes a ticket easy to recognise, and allows for other forms later.
const PREFIX: &str = "tl1";
/// The longest text that is parsed. 32 addresses of ordinary length take less than 4 KiB.
const MAX_TEXT: usize = 8192;

/// The peer speaks resumable streams.
const RESUMABLE: u8 = 1;
/// The peer takes sealed offers.
const EARLY: u8 = 2;
/// The peer's relays forward bytes before the peer has agreed.
const FORWARDED: u8 = 4;

/// A ticket says how to reach a peer. It has the peer's id, the addresses of relays on which the
/// peer holds a reservation, and the peer's own addresses.
///
/// The text is printable and URL-safe: `tl1` followed by base64url. A short ticket, of
/// [`Connector::short_ticket`](crate::Connector::short_ticket), is `tl2` followed by base32, and has only
/// the peer's id and where to look it up. A bare peer id is a ticket as well. Every path is authenticated
/// against the id in the ticket, so whoever can change a ticket can make a connect fail, but cannot
/// take the peer's place. `Display` prints the whole ticket. Show it only to those who may reach
/// the peer.
///
/// ```
/// use throughline::{Identity, Ticket};
///
/// let peer = Identity::generate().peer_id();
/// let ticket = Ticket::from_parts(peer, [], ["/ip4/192.0.2.7/udp/4001/quic-v1"])?;
/// let text = ticket.to_string(); // fits into a URL and a QR code
/// assert!(text.starts_with("tl1"));
/// assert_eq!(text.parse::<Ticket>()?, ticket);
/// let link = format!("https://example.org/#{text}");
/// assert_eq!(link.parse::<Ticket>()?, ticket);
/// assert_eq!(peer.to_string().parse::<Ticket>()?, Ticket::from(peer));
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    peer: PeerId,
    /// Whether it is a short ticket, which names relays at most.
    short: bool,
    /// The relays of a short ticket that are not named by an address, as users name them.
    names: Vec<String>,
    /// Whether the peer speaks this library's stream protocol. If so, a stream opens without
    /// asking.
    resumable: bool,
    /// Whether the relays forward bytes before the peer has agreed.
    forwarded: bool,
    /// The run of the peer that sealed offers are for. It is `None` if the peer takes no sealed
    /// offers.
    incarnation: Option<Incarnation>,
    relays: Vec<Multiaddr>,
    addresses: Vec<Multiaddr>,
    /// The addresses of the peer's UDP socket as STUN servers see them. They are not dialled. A
    /// datagram to one of them opens our own NAT for the peer, before the peer knows of us.
    mapped: Vec<SocketAddr>,
}

impl Ticket {
    /// Returns the id of the peer that this ticket leads to.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Returns the addresses of the relays as multiaddress text. Each ends in `/p2p/<relay>`. A short
    /// ticket may have names of relays in their place, such as `relay.example.org`.
    pub fn relays(&self) -> Vec<String> {
        let addresses = self.relays.iter().map(ToString::to_string);
        self.names.iter().cloned().chain(addresses).collect()
    }

    /// Returns the peer's own addresses as multiaddress text.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }

    /// Makes a ticket from a peer id and addresses, as multiaddress text. Use it for a peer that
    /// makes no tickets, such as a stock libp2p node. Addresses of relays must end in
    /// `/p2p/<relay>`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTicket`] if an address is wrong, or if there are more than 32 addresses
    /// in all. The message names the address or the limit.
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

    /// Returns the same ticket without the peer's own addresses, so that it leads only through
    /// relays.
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
            return Err(invalid(format!(
                "the ticket has more than {MAX_ADDRESSES} addresses"
            )));
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
            resumable,
            relays,
            addresses,
            short: false,
            ..Self::from(peer)
        })
    }

    /// Adds what a dialler needs to send bytes before the peer has agreed: whether the relays
    /// forward them, and the run of the peer that sealed offers are for.
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

    /// Adds the addresses that NATs give to the peer's socket. Only the first `MAX_MAPPED` are
    /// kept.
    pub(crate) fn with_mapped(mut self, mapped: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.mapped = mapped.into_iter().take(MAX_MAPPED).collect();
        self
    }

    /// Returns the addresses that NATs give to the peer's socket.
    pub(crate) fn mapped_addrs(&self) -> &[SocketAddr] {
        &self.mapped
    }

    /// Returns what the ticket says as a record of its peer.
    pub(crate) fn to_record(&self, seq: u64, expires: Duration) -> Record {
        Record {
            peer: self.peer.0,
            seq,
            expires,
            relays: self.relays.clone(),
            addresses: self.addresses.clone(),
            resumable: self.resumable,
            forwarded: self.forwarded,
            incarnation: self.incarnation,
            mapped: self.mapped.clone(),
        }
    }

    /// Returns what a record says.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTicket`] if no ticket may hold one of its addresses.
    pub(crate) fn from_record(record: Record) -> Result<Self, Error> {
        let (relays, addresses) = (record.relays, record.addresses);
        let ticket = Self::checked(PeerId(record.peer), record.resumable, relays, addresses)?;
        let ticket = ticket.with_mapped(record.mapped);
        Ok(ticket.with_early(record.forwarded, record.incarnation))
    }

    pub(crate) fn is_resumable(&self) -> bool {
        self.resumable
    }

    pub(crate) fn relay_addrs(&self) -> &[Multiaddr] {
        &self.relays
    }

    /// Returns the relays that are named as users name them.
    pub(crate) fn relay_names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn direct_addrs(&self) -> &[Multiaddr] {
        &self.addresses
    }
}

/// Returns the id of the relay if `address` ends in `/p2p/<relay>`.
pub(crate) fn relay_id(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// Checks whether a ticket may hold `address`.
///
/// # Errors
/// The error names the address and says what is wrong with it.
pub(crate) fn check_address(address: &Multiaddr) -> Result<(), String> {
    if address.len() > MAX_ADDRESS_BYTES {
        return Err(format!("an address is over {MAX_ADDRESS_BYTES} bytes"));
    }
    match address::fault(address) {
        // The text of an address may hold control characters for a terminal.
        Some(why) => Err(format!("`{}`: {why}", address.to_string().escape_debug())),
        None => Ok(()),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidTicket, message)
}

/// The bytes before base64url, of a ticket that is not short, are: a byte of flags, the peer id, the
/// incarnation (8 bytes, only with `EARLY`), the relays, the addresses, and the mapped addresses. A list
/// begins with a byte that counts its items. An item is a two-byte big-endian length and the item's
/// binary form. The binary form of a mapped address is the IP address and the port.
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.short {
            return f.write_str(&self.encode_short());
        }
        let mut bytes = Vec::with_capacity(256);
        let flag = |flag: u8, set: bool| if set { flag } else { 0 };
        let early = flag(EARLY, self.incarnation.is_some());
        let forwarded = flag(FORWARDED, self.forwarded);
        bytes.push(flag(RESUMABLE, self.resumable) | early | forwarded);
        // The lengths fit, because `checked` bounds the addresses and a peer id has at most 42
        // bytes.
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
            item(&mut bytes, &socket_bytes(address));
        }
        write!(f, "{PREFIX}{}", Base64Url.encode(&bytes))
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

/// Parses the text of a ticket, or a peer id. What was copied along is ignored: white space and line breaks,
/// the marks of a quoted mail, quotes, and a link around the ticket. A text that is neither is
/// [`ErrorKind::InvalidTicket`], and the message names the part that is wrong.
impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_TEXT {
            return Err(invalid(format!(
                "the ticket is longer than {MAX_TEXT} characters"
            )));
        }
        let text = joined(text);
        let Some(encoded) = encoded(&text, PREFIX) else {
            if let Some(short) = encoded(&text.to_ascii_lowercase(), short::PREFIX) {
                return Self::decode_short(&short);
            }
            let id = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            return id.parse::<PeerId>().map(Self::from).map_err(|_| {
                let prefixes = format!("`{PREFIX}` or `{}`", short::PREFIX);
                invalid(format!(
                    "no peer id, and no ticket with {prefixes} in front"
                ))
            });
        };
        let bytes = Base64Url.decode(&encoded).map_err(|_| {
            let is_digit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            match encoded.chars().position(|c| !is_digit(c)) {
                Some(at) => invalid(format!("the ticket is not base64url at character {at}")),
                // Every text has a right length, so only a part of one has not.
                None => {
                    invalid("the ticket is no whole base64url; it was cut, so copy the whole of it")
                }
            }
        })?;
        let mut reader = Reader(&bytes);
        let flags = reader.take(1, "flags")?[0];
        if flags & !(RESUMABLE | EARLY | FORWARDED) != 0 {
            return Err(invalid(
                "the ticket has a flag that this version does not know",
            ));
        }
        let peer = libp2p::PeerId::from_bytes(reader.item("peer id")?)
            .map_err(|_| invalid("the peer id is malformed"))?;
        let early = (flags & EARLY != 0).then(|| reader.incarnation());
        let incarnation = early.transpose()?;
        let relays = reader.addresses("relay")?;
        let addresses = reader.addresses("address")?;
        let mapped = reader.mapped()?;
        if !reader.0.is_empty() {
            return Err(invalid("the ticket has bytes left over at the end"));
        }
        let ticket = Self::checked(PeerId(peer), flags & RESUMABLE != 0, relays, addresses)?;
        let ticket = ticket.with_mapped(mapped);
        Ok(ticket.with_early(flags & FORWARDED != 0, incarnation))
    }
}

/// Returns `text` without white space, line breaks, and the marks at the beginning of a line that a mail
/// quotes.
fn joined(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.trim_start_matches(|c: char| ">|".contains(c) || c.is_whitespace()));
    lines
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect()
}

/// Returns what follows the `prefix` of the ticket in `text`.
fn encoded(text: &str, prefix: &str) -> Option<String> {
    let of_a_ticket = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let starts = text.match_indices(prefix).map(|(at, _)| at);
    let start = starts
        .filter(|at| !text[..*at].ends_with(of_a_ticket))
        .last()?;
    let rest = &text[start + prefix.len()..];
    let end = rest.find(|c| "\"'`’”»<>()[]{}&#?.,;:".contains(c));
    Some(rest[..end.unwrap_or(rest.len())].to_owned())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| {
            invalid(format!(
                "the ticket ends within the {what}; it was cut, so copy the whole of it"
            ))
        })?;
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
            return Err(invalid(format!("{WHAT}: there are more than {MAX_MAPPED}")));
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
            return Err(invalid(format!(
                "{what}: there are more than {MAX_ADDRESSES}"
            )));
        }
        (0..count)
            .map(|index| {
                Multiaddr::try_from(self.item(what)?.to_vec())
                    .map_err(|_| invalid(format!("{what} {index} is malformed")))
            })
            .collect()
    }
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
mod tests;
