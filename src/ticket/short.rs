//! Short tickets: who the peer is, and where it can be looked up. They fit on a business card.
//!
//! The text is `tl2` and base32 in any case, so that a QR code in upper case has the denser alphanumeric
//! mode. The bytes are: one of flags, the peer's Ed25519 key, and the relays. Another peer id stands as
//! a whole behind its length. A relay is one byte and what follows: the highest bit says that it is a
//! binary multiaddress and not the text that a user gives for a relay, and the others are its length.

use multiaddr::{Multiaddr, Protocol};
use multibase::Base::Base32Lower;

use super::{Reader, Ticket, invalid, relay_id};
use crate::{error::Error, identity::PeerId};

/// The prefix of a short ticket.
pub(super) const PREFIX: &str = "tl2";

/// The most relays in a short ticket.
const MAX_RELAYS: usize = 4;
/// How many relays a ticket keeps when it is made short.
const KEPT_RELAYS: usize = 2;
/// The longest relay in a short ticket, in bytes.
const MAX_RELAY: usize = 0x7f;
const IS_ADDRESS: u8 = 0x80;

/// The peer speaks resumable streams.
const RESUMABLE: u8 = 1;
/// The peer id is not an Ed25519 key.
const OTHER_ID: u8 = 2;

/// What stands in front of the key in the id of an Ed25519 key.
const ED25519: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl Ticket {
    /// Returns a short ticket: this peer's id, and the first two relays, each by the name that
    /// `name_of` has for it or by one address. Whoever has it looks the rest up at those relays.
    pub(crate) fn shortened(&self, name_of: impl Fn(&libp2p::PeerId) -> Option<String>) -> Self {
        let mut short = Self::from(self.peer);
        short.resumable = self.resumable;
        let mut known = Vec::new();
        for relay in self.relays.iter().filter_map(relay_id) {
            if known.contains(&relay) || known.len() >= KEPT_RELAYS {
                continue;
            }
            known.push(relay);
            let fits = |address: &&Multiaddr| address.len() <= MAX_RELAY;
            let of_relay = |address: &&Multiaddr| relay_id(address) == Some(relay);
            let all = self.relays.iter().filter(of_relay).filter(fits);
            match name_of(&relay).filter(|name| is_relay_text(name)) {
                Some(name) => short.names.push(name),
                None => short.relays.extend(all.min_by_key(|a| reach(a)).cloned()),
            }
        }
        short
    }

    pub(super) fn encode_short(&self) -> String {
        let id = self.peer.0.to_bytes();
        let key = id.strip_prefix(&ED25519);
        let flag = |flag: u8, set: bool| if set { flag } else { 0 };
        let resumable = flag(RESUMABLE, self.resumable);
        let mut bytes = vec![resumable | flag(OTHER_ID, key.is_none())];
        // A peer id has at most 42 bytes, and a relay at most `MAX_RELAY`.
        if key.is_none() {
            bytes.push(id.len() as u8);
        }
        bytes.extend_from_slice(key.unwrap_or(&id));
        for name in &self.names {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
        }
        for address in &self.relays {
            bytes.push(IS_ADDRESS | address.len() as u8);
            bytes.extend_from_slice(address.as_ref());
        }
        format!("{PREFIX}{}", Base32Lower.encode(&bytes))
    }

    /// Reads what follows the prefix, in lower case.
    pub(super) fn decode_short(encoded: &str) -> Result<Self, Error> {
        let bytes = Base32Lower.decode(encoded);
        let bytes = bytes.map_err(|_| invalid("the ticket is not base32, or was cut"))?;
        let mut reader = Reader(&bytes);
        let flags = reader.take(1, "flags")?[0];
        if flags & !(RESUMABLE | OTHER_ID) != 0 {
            return Err(invalid(
                "the ticket has a flag that this version does not know",
            ));
        }
        let id = if flags & OTHER_ID == 0 {
            [&ED25519, reader.take(32, "peer id")?].concat()
        } else {
            let length = reader.take(1, "peer id")?[0];
            reader.take(length.into(), "peer id")?.to_vec()
        };
        let peer = libp2p::PeerId::from_bytes(&id);
        let peer = PeerId(peer.map_err(|_| invalid("the peer id is malformed"))?);
        let (mut names, mut relays) = (Vec::new(), Vec::new());
        while !reader.0.is_empty() {
            let index = names.len() + relays.len();
            if index >= MAX_RELAYS {
                return Err(invalid(format!(
                    "a short ticket has more than {MAX_RELAYS} relays"
                )));
            }
            let malformed = || invalid(format!("relay {index} is malformed"));
            let head = reader.take(1, "relay")?[0];
            let relay = reader.take(usize::from(head & !IS_ADDRESS), "relay")?;
            if head & IS_ADDRESS != 0 {
                let address = Multiaddr::try_from(relay.to_vec());
                relays.push(address.map_err(|_| malformed())?);
            } else {
                let name = str::from_utf8(relay)
                    .ok()
                    .filter(|name| is_relay_text(name));
                names.push(name.ok_or_else(malformed)?.to_owned());
            }
        }
        let mut ticket = Self::checked(peer, flags & RESUMABLE != 0, relays, Vec::new())?;
        ticket.short = true;
        ticket.names = names;
        Ok(ticket)
    }
}

/// Leads to the peer with this id, which is looked up at the relays of the configuration.
impl From<PeerId> for Ticket {
    fn from(peer: PeerId) -> Self {
        Self {
            peer,
            short: true,
            names: Vec::new(),
            resumable: false,
            forwarded: false,
            incarnation: None,
            relays: Vec::new(),
            addresses: Vec::new(),
            mapped: Vec::new(),
        }
    }
}

/// Whether `text` may be what a user gives for a relay: a name, an address with a port, or a URL.
fn is_relay_text(text: &str) -> bool {
    let is_sound = |b: u8| b.is_ascii_alphanumeric() || b"-._:/[]".contains(&b);
    (1..=MAX_RELAY).contains(&text.len()) && text.bytes().all(is_sound) && !text.starts_with('/')
}

/// Returns how few peers an address of a relay serves. Pages and programs can dial a WebSocket, and a page
/// that came over https only a secure one.
fn reach(address: &Multiaddr) -> u8 {
    let has = |wanted: fn(&Protocol<'_>) -> bool| address.iter().any(|part| wanted(&part));
    match () {
        () if has(|part| matches!(part, Protocol::Wss(_) | Protocol::Tls)) => 0,
        () if has(|part| matches!(part, Protocol::Ws(_))) => 1,
        () => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ErrorKind, Identity};

    fn peer() -> PeerId {
        Identity::generate().peer_id()
    }

    fn named(name: &str) -> Ticket {
        let relay = peer();
        let full = Ticket::from_parts(
            peer(),
            [format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{relay}")],
            ["/ip4/192.0.2.7/udp/9/quic-v1".to_owned()],
        );
        let mut full = full.unwrap();
        full.resumable = true;
        full.shortened(|_| Some(name.to_owned()))
    }

    /// The characters of a QR code of version 5 with the lowest level of correction (ISO/IEC 18004).
    const VERSION_5: usize = 154;

    #[test]
    fn a_ticket_with_a_named_relay_fits_on_a_card() {
        let ticket = named("relay.example.org");
        let text = ticket.to_string();
        assert!(text.starts_with("tl2") && text.len() < 100, "{text}");
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
        assert_eq!(ticket.relays(), ["relay.example.org"]);
        assert!(ticket.addresses().is_empty() && ticket.is_resumable());
        let upper = text.to_uppercase();
        assert_eq!(upper.parse::<Ticket>().unwrap(), ticket, "a QR code");
        let link = format!("https://page.example/room?x=1#{text}");
        assert_eq!(link.parse::<Ticket>().unwrap(), ticket, "a link");
    }

    #[test]
    fn a_relay_without_a_name_stands_by_one_address_that_most_can_dial() {
        let relay = peer();
        let at = |way: &str| format!("/ip4/192.0.2.1/{way}/p2p/{relay}");
        let ways = ["udp/4001/quic-v1", "tcp/4001", "tcp/4001/ws"].map(at);
        let full = Ticket::from_parts(peer(), ways.clone(), []).unwrap();
        let short = full.shortened(|_| None);
        assert_eq!(short.relays(), ways[2..]);
        let text = short.to_string();
        assert!(text.len() <= VERSION_5, "{}", text.len());
        assert_eq!(text.parse::<Ticket>().unwrap(), short);
    }

    #[test]
    fn a_short_ticket_has_two_relays_and_no_long_one() {
        let relays: Vec<_> = (1..4)
            .map(|n| format!("/ip4/192.0.2.{n}/tcp/1/p2p/{}", peer()))
            .collect();
        let full = Ticket::from_parts(peer(), relays.clone(), vec![]).unwrap();
        assert_eq!(full.shortened(|_| None).relays(), relays[..2]);
        let long = format!(
            "/dns4/{}.example/tcp/1/p2p/{}",
            ["a".repeat(60), "b".repeat(60)].join("."),
            peer()
        );
        let full = Ticket::from_parts(peer(), [long], []).unwrap();
        assert!(full.shortened(|_| None).relays().is_empty());
        let odd = full.shortened(|_| Some("two words".to_owned()));
        assert!(odd.relays().is_empty());
    }

    #[test]
    fn a_bare_id_is_a_ticket_too() {
        let peer = peer();
        let bare: Ticket = peer.to_string().parse().unwrap();
        assert_eq!(bare, Ticket::from(peer));
        assert!(!bare.is_resumable() && bare.relays().is_empty());
        assert_eq!(bare.to_string().parse::<Ticket>().unwrap(), bare);
        // An RSA key is hashed.
        let hashed = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        let other: Ticket = hashed.parse().unwrap();
        assert_eq!(other.peer_id().to_string(), hashed);
        assert_eq!(other.to_string().parse::<Ticket>().unwrap(), other);
    }

    #[test]
    fn an_error_names_the_part() {
        let id = peer().0.to_bytes();
        let encode = |bytes: &[u8]| format!("{PREFIX}{}", Base32Lower.encode(bytes));
        let with = |relays: &[u8]| encode(&[&[0], &id[6..], relays].concat());
        let five = [2, b'a', b'b'].repeat(MAX_RELAYS + 1);
        let nowhere = Multiaddr::from(std::net::Ipv4Addr::LOCALHOST);
        let nowhere = [&[IS_ADDRESS | 5], nowhere.as_ref()].concat();
        for (text, part) in [
            ("tl2!".to_owned(), "base32"),
            (encode(&[]), "flags"),
            (encode(&[4]), "flag"),
            (encode(&[0, 1, 2]), "peer id"),
            (encode(&[2, 3, 1, 2, 3]), "peer id"),
            (with(&[9, 1]), "within the relay"),
            (with(&[0]), "relay 0"),
            (with(&[2, b'a', b'\n']), "relay 0"),
            (with(&[IS_ADDRESS | 1, 0xff]), "relay 0"),
            (with(&nowhere), "/p2p/"),
            (with(&five), "more than 4"),
        ] {
            let error = text.parse::<Ticket>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTicket);
            assert!(error.message().contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = format!("{PREFIX}{}", Base32Lower.encode(&bytes));
            if let Ok(ticket) = text.parse::<Ticket>() {
                prop_assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
            }
        }
    }
}
