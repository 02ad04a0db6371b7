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
    fn what_was_copied_along_is_ignored() {
        let ticket = sample();
        let text = ticket.to_string();
        let (head, tail) = text.split_at(70);
        for copied in [
            format!("  {text}\n"),
            format!("\"{text}\""),
            format!("‘{text}’,"),
            format!("<{text}>."),
            format!("{head}\n{tail}"),
            format!("> {head}\r\n> {tail}\r\n"),
            format!("https://a.example/tl1/?x=tl1#{text}"),
            format!("http://127.0.0.1:4001/#ticket={text}&y=1"),
            format!("The ticket is: {text}"),
        ] {
            assert_eq!(copied.parse::<Ticket>().as_ref(), Ok(&ticket), "{copied}");
        }
        assert!(refusal(&text[..60]).contains("copy the whole"));
    }

    #[test]
    fn what_a_dialler_may_send_early_is_told() {
        let plain = sample();
        assert!(!plain.is_resumable() && !plain.is_forwarded());
        assert_eq!(plain.incarnation(), None);
        let early = Ticket::checked(plain.peer, true, Vec::new(), Vec::new()).unwrap();
        let early = early.with_early(true, Some([7; 8]));
        assert!(early.is_resumable() && early.is_forwarded());
        assert_eq!(early.incarnation(), Some([7; 8]));
    }

    #[test]
    fn an_error_names_the_part_of_the_ticket() {
        let cases = [
            ("xyz", "tl1"),
            ("tl1!!", "base64url"),
            ("htl1AA", "tl1"),
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
    fn an_address_with_chosen_bytes_is_refused_by_name() {
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

    fn refusal(text: &str) -> String {
        let error = text.parse::<Ticket>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTicket);
        error.message().to_owned()
    }

    #[test]
    fn text_is_looked_at_up_to_its_bound() {
        let long = |length| format!("{PREFIX}{}", "!".repeat(length - PREFIX.len()));
        assert!(refusal(&long(MAX_TEXT)).contains("base64url"));
        assert!(refusal(&long(MAX_TEXT + 1)).contains("longer than 8192"));
    }

    #[test]
    fn lists_are_bounded() {
        let peer = Identity::generate().peer_id();
        let relays = |count| vec![format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}"); count];
        let addresses = |count| vec!["/ip4/192.0.2.1/tcp/1".to_owned(); count];
        for (of_relays, others) in [(MAX_ADDRESSES, 0), (0, MAX_ADDRESSES), (16, 16)] {
            let most = Ticket::from_parts(peer, relays(of_relays), addresses(others)).unwrap();
            assert_eq!(most.to_string().parse::<Ticket>().unwrap(), most);
            let more = Ticket::from_parts(peer, relays(of_relays), addresses(others + 1));
            assert!(more.unwrap_err().message().contains("more than 32"));
        }
        let mut ticket = sample();
        ticket.addresses = vec![ticket.addresses[0].clone(); MAX_ADDRESSES + 1];
        assert!(refusal(&ticket.to_string()).contains("address: there are more than 32"));
        let mapped = "192.0.2.1:9".parse().unwrap();
        let ticket = sample().with_mapped([mapped; MAX_MAPPED + 1]);
        assert_eq!(ticket.mapped_addrs(), [mapped; MAX_MAPPED]);
        assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
        let mut ticket = ticket;
        ticket.mapped.push(mapped);
        assert!(refusal(&ticket.to_string()).contains("mapped address: there are more than 4"));
    }

    #[test]
    fn addresses_are_bounded() {
        let long = |length: usize| {
            let path = |length| Protocol::Ws(format!("/{}", "a".repeat(length)).into());
            let start: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
            let rest = start.clone().with(path(400)).len() - 400;
            start.with(path(length - rest))
        };
        assert_eq!(long(MAX_ADDRESS_BYTES).len(), MAX_ADDRESS_BYTES);
        check_address(&long(MAX_ADDRESS_BYTES)).unwrap();
        let error = check_address(&long(MAX_ADDRESS_BYTES + 1)).unwrap_err();
        assert!(error.contains("over 512 bytes"), "{error}");
    }

    #[test]
    fn flags_of_later_versions_are_refused() {
        for bit in 0..8 {
            let flags: u8 = 1 << bit;
            let known = flags & (RESUMABLE | EARLY | FORWARDED) != 0;
            let why = refusal(&format!("{PREFIX}{}", Base64Url.encode([flags])));
            assert_eq!(why.contains("flag"), !known, "{flags}: {why}");
        }
    }

    #[test]
    fn relays_and_addresses_are_kept_apart() {
        let ticket = sample();
        let address: Multiaddr = "/ip4/192.0.2.7/udp/9/quic-v1".parse().unwrap();
        assert_eq!(ticket.direct_addrs(), std::slice::from_ref(&address));
        assert_eq!(ticket.addresses(), [address.to_string()]);
        assert_eq!(ticket.relays(), [ticket.relay_addrs()[0].to_string()]);
        assert_eq!(ticket.mapped_addrs().len(), 2);
        let relayed = ticket.clone().without_addresses();
        assert_eq!(relayed.relay_addrs(), ticket.relay_addrs());
        assert!(relayed.direct_addrs().is_empty() && relayed.mapped_addrs().is_empty());
    }

    #[test]
    fn a_relay_is_reached_without_another() {
        let peer = Identity::generate().peer_id();
        let relay = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}");
        let error = Ticket::from_parts(peer, [relay], []).unwrap_err();
        assert!(error.message().contains("through another"), "{error}");
    }

    #[test]
    fn a_log_shows_how_much_and_not_where() {
        let shown = format!("{:?}", sample());
        assert!(
            shown.contains("relays: 1, addresses: 1, mapped: 2"),
            "{shown}"
        );
        assert!(!shown.contains("192.0.2"), "{shown}");
    }

    #[test]
    fn json_holds_the_text() {
        let ticket = sample();
        let json = serde_json::to_value(&ticket).unwrap();
        assert_eq!(json, ticket.to_string());
        assert_eq!(serde_json::from_value::<Ticket>(json).unwrap(), ticket);
        assert!(serde_json::from_value::<Ticket>("tl1".into()).is_err());
    }

    #[test]
    fn bytes_behind_the_end_are_refused() {
        let text = sample().to_string();
        let mut bytes = Base64Url.decode(&text[PREFIX.len()..]).unwrap();
        bytes.push(0);
        let longer = format!("{PREFIX}{}", Base64Url.encode(&bytes));
        assert!(refusal(&longer).contains("left over"));
    }

    proptest! {
        #[test]
        fn never_panics_on_text(text in "\\PC{0,300}") {
            let _ = text.parse::<Ticket>();
        }

        #[test]
        fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = format!("{PREFIX}{}", Base64Url.encode(&bytes)).parse::<Ticket>();
        }

        #[test]
        fn a_cut_ticket_is_refused(cut in 0usize..200) {
            let text = sample().to_string();
            prop_assume!(cut < text.len());
            prop_assert!(text[..cut].parse::<Ticket>().is_err());
        }
    }
}
