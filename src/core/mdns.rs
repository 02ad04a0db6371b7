//! Multicast DNS (RFC 6762) for the names that browsers give instead of their addresses
//! (draft-ietf-mmusic-mdns-ice-candidates): the question, and the addresses in an answer.

use std::net::IpAddr;

/// The most records that are read from one answer. An answer has one for each address, and a few
/// that nobody asked for.
const MAX_RECORDS: usize = 64;

/// The longest name (RFC 1035 section 2.3.4), without the length byte at its start and the zero at
/// its end.
const MAX_NAME: usize = 253;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
pub(super) const CLASS_IN: u16 = 1;

/// In a question, this bit asks for an answer to us alone (RFC 6762 section 5.4). In an answer, it
/// says that older records are void (section 10.2).
pub(super) const TOP_BIT: u16 = 1 << 15;

/// A name of the form `<uuid>.local`. Other names are not asked for, because a peer must not
/// explore our network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_lowercase();
        let uuid = name.strip_suffix(".local")?;
        let shaped = uuid.len() == 36
            && uuid.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        shaped.then_some(Self(name))
    }

    /// Returns the question for the IPv4 and IPv6 addresses of the name.
    pub(crate) fn question(&self) -> Vec<u8> {
        // RFC 6762 section 18.1: the id is 0.
        let mut out = vec![0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
        for kind in [TYPE_A, TYPE_AAAA] {
            self.write(&mut out);
            out.extend(kind.to_be_bytes());
            out.extend((CLASS_IN | TOP_BIT).to_be_bytes());
        }
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        for label in self.0.split('.') {
            out.extend(u8::try_from(label.len()));
            out.extend(label.as_bytes());
        }
        out.push(0);
    }

    /// Returns the addresses that `packet` gives for the name. There are none if the packet is not
    /// an answer. Addresses that were read before an error count.
    pub(crate) fn answers(&self, packet: &[u8]) -> Vec<IpAddr> {
        let own = records(packet).filter(|(owner, ..)| owner == self.0.as_bytes());
        let found = own.filter_map(|(_, kind, data)| match kind {
            TYPE_A => <[u8; 4]>::try_from(data).map(IpAddr::from).ok(),
            TYPE_AAAA => <[u8; 16]>::try_from(data).map(IpAddr::from).ok(),
            _ => None,
        });
        found.collect()
    }
}

/// Returns the records of an answer, each with its owner, its type and its data, at most 64. There are none
/// if the packet is not an answer.
pub(super) fn records(packet: &[u8]) -> impl Iterator<Item = (Vec<u8>, u16, &[u8])> {
    let first = first_record(packet);
    let (mut at, mut left) = first.unwrap_or_default();
    std::iter::from_fn(move || {
        while left > 0 {
            left -= 1;
            let (owner, end) = name(packet, at)?;
            let (kind, class) = (word(packet, end)?, word(packet, end + 2)? & !TOP_BIT);
            at = end + 10;
            let data = packet.get(at..at + usize::from(word(packet, end + 8)?))?;
            at += data.len();
            if class == CLASS_IN {
                return Some((owner, kind, data));
            }
        }
        None
    })
}

/// Returns where the records of an answer begin, and how many there are.
fn first_record(packet: &[u8]) -> Option<(usize, usize)> {
    if word(packet, 2)? & TOP_BIT == 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..word(packet, 4)? {
        at = name(packet, at)?.1 + 4;
    }
    let counts = [6, 8, 10].map(|at| word(packet, at).map_or(0, usize::from));
    Some((at, counts.iter().sum::<usize>().min(MAX_RECORDS)))
}

pub(super) fn word(packet: &[u8], at: usize) -> Option<u16> {
    let bytes = packet.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// Reads the name at `at` (RFC 1035 section 4.1.4). Returns the name in lower case, and where it
/// ends. A pointer has to go backwards, and each round through pointers makes the name longer, so
/// reading always ends.
pub(super) fn name(packet: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::new();
    let mut end = None;
    loop {
        let length = *packet.get(at)?;
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = packet.get(at + 1..at + 1 + usize::from(length))?;
                if !name.is_empty() {
                    name.push(b'.');
                }
                name.extend(label.to_ascii_lowercase());
                if name.len() > MAX_NAME {
                    return None;
                }
                at += 1 + label.len();
            }
            0xc0.. => {
                let to = usize::from(length & 63) << 8 | usize::from(*packet.get(at + 1)?);
                end.get_or_insert(at + 2);
                if to >= at {
                    return None;
                }
                at = to;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const NAME: &str = "0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local";

    /// Makes an answer with these addresses, as a responder does.
    pub(crate) fn answer(name: &Name, addresses: &[IpAddr]) -> Vec<u8> {
        let mut out = vec![0, 0, 0x84, 0, 0, 0, 0, addresses.len() as u8, 0, 0, 0, 0];
        for (nth, address) in addresses.iter().enumerate() {
            match nth {
                0 => name.write(&mut out),
                // A pointer to the first name.
                _ => out.extend([0xc0, 12]),
            }
            let (kind, data) = match address {
                IpAddr::V4(ip) => (TYPE_A, ip.octets().to_vec()),
                IpAddr::V6(ip) => (TYPE_AAAA, ip.octets().to_vec()),
            };
            out.extend(kind.to_be_bytes());
            out.extend((CLASS_IN | TOP_BIT).to_be_bytes());
            out.extend(120u32.to_be_bytes());
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    #[test]
    fn only_a_uuid_under_local_is_asked_for() {
        assert!(Name::parse(NAME).is_some());
        assert_eq!(Name::parse(&NAME.to_uppercase()), Name::parse(NAME));
        for other in [
            "printer.local",
            "0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.example",
            "0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1",
            "x.0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local",
            "0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0bg.local",
            "0c8a7c2e01b1d-4e62-9a1e-2f5c5e6ad0b1.local",
            "",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_question_asks_for_both_families_and_a_unicast_answer() {
        let question = Name::parse(NAME).unwrap().question();
        assert_eq!(question[..12], [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question[12], 36);
        let (first, end) = name(&question, 12).unwrap();
        assert_eq!(first, NAME.as_bytes());
        assert_eq!(question[end..end + 4], [0, 1, 0x80, 1]);
        let (second, end) = name(&question, end + 4).unwrap();
        assert_eq!(second, NAME.as_bytes());
        assert_eq!(question[end..], [0, 28, 0x80, 1]);
    }

    #[test]
    fn a_name_has_253_bytes_at_most() {
        let packet = |last: u8| {
            let labels = [63, 63, 63, last]
                .map(|length| [vec![length], vec![b'a'; usize::from(length)]].concat());
            [labels.concat(), vec![0]].concat()
        };
        assert_eq!(name(&packet(61), 0).unwrap().0.len(), 253);
        assert_eq!(name(&packet(62), 0), None);
    }

    #[test]
    fn only_a_response_with_the_name_counts() {
        let ours = Name::parse(NAME).unwrap();
        let addresses = ["192.168.1.7", "fd00::7"].map(|text| text.parse().unwrap());
        let packet = answer(&ours, &addresses);
        assert_eq!(ours.answers(&packet), addresses);
        let other = Name::parse(&NAME.replace('b', "c")).unwrap();
        assert!(other.answers(&packet).is_empty());
        // The same records in a question do not count.
        let mut question = packet.clone();
        question[2] = 0;
        assert!(ours.answers(&question).is_empty());
        // The first record of a packet that is cut off counts.
        assert_eq!(ours.answers(&packet[..packet.len() - 1]), addresses[..1]);
    }

    #[test]
    fn a_name_that_points_to_itself_is_refused() {
        let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        packet.extend([1, b'a', 0xc0, 12]);
        assert_eq!(name(&packet, 12), None);
        packet[14..].copy_from_slice(&[0xc0, 14]);
        assert_eq!(name(&packet, 14), None);
    }

    proptest! {
        #[test]
        fn never_panics(packet in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Name::parse(NAME).unwrap().answers(&packet);
        }

        #[test]
        fn never_panics_on_a_damaged_answer(
            addresses in proptest::collection::vec(any::<IpAddr>(), 1..5),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let ours = Name::parse(NAME).unwrap();
            let mut packet = answer(&ours, &addresses);
            prop_assert_eq!(ours.answers(&packet), addresses);
            let at = at.index(packet.len());
            packet[at] = byte;
            let _ = ours.answers(&packet);
        }
    }
}
