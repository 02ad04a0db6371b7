//! Peers on the local network, by libp2p's discovery over multicast DNS (RFC 6762): the question for
//! peers, the answer of a peer, and what is believed of an answer.
//!
//! Whoever asks for `_p2p._udp.local` gets an answer from every libp2p peer in the network. What an
//! answer says is a hint: it leads to dials, and the peer at the other end has to prove its id.

use std::net::IpAddr;

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::{
    address::{self, Route},
    mdns::{CLASS_IN, TOP_BIT, name, records, word},
    scope::{Scope, scope},
};

/// The name of the service (libp2p's specification of discovery by mDNS).
const SERVICE: &str = "_p2p._udp.local";
/// What stands before an address in a TXT record (libp2p's specification of `dnsaddr`).
const DNSADDR: &[u8] = b"dnsaddr=";
/// The most addresses of one peer.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// The longest answer, so that it fits into one packet of an Ethernet (RFC 6762 section 17).
const MAX_ANSWER: usize = 1400;
/// How long others may keep an answer (RFC 6762 section 10), in seconds.
const TTL: u32 = 120;

const TYPE_PTR: u16 = 12;
const TYPE_TXT: u16 = 16;
const TYPE_ANY: u16 = 255;

/// Returns the question for all peers. It asks for answers to us alone, and some answer to everybody.
pub(crate) fn question() -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    write_name(SERVICE, &mut out);
    out.extend(TYPE_PTR.to_be_bytes());
    out.extend((CLASS_IN | TOP_BIT).to_be_bytes());
    out
}

/// Whether `packet` asks for peers, and if so, whether it asks for an answer to the asker alone.
pub(crate) fn asks(packet: &[u8]) -> Option<bool> {
    let is_answer = word(packet, 2)? & TOP_BIT != 0;
    let mut at = 12;
    for _ in 0..word(packet, 4)? {
        let (asked, end) = name(packet, at)?;
        let (kind, class) = (word(packet, end)?, word(packet, end + 2)?);
        let is_of_peers = asked == SERVICE.as_bytes() && [TYPE_PTR, TYPE_ANY].contains(&kind);
        if is_of_peers && class & !TOP_BIT == CLASS_IN && !is_answer {
            return Some(class & TOP_BIT != 0);
        }
        at = end + 4;
    }
    None
}

/// Returns the answer of `peer`, whose record has the name `label` of at most 63 letters and digits.
/// Addresses that do not fit any more are left out.
pub(crate) fn answer(label: &str, peer: PeerId, addresses: &[Multiaddr]) -> Vec<u8> {
    // RFC 6762 section 18: the id is 0, and the answer is authoritative.
    let mut out = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    write_name(SERVICE, &mut out);
    let mut record = vec![label.len() as u8];
    record.extend(label.as_bytes());
    // The service, which stands at the beginning.
    record.extend([0xc0, 12]);
    // The record of the service is shared by all peers, so nobody's is void.
    let own = write_record(TYPE_PTR, CLASS_IN, &record, &mut out) as u8;
    let mut texts = 0u16;
    for address in addresses.iter().take(MAX_ADDRESSES) {
        let Some(address) = address::with_peer(address, peer) else {
            continue;
        };
        let text = [DNSADDR, address.to_string().as_bytes()].concat();
        // A text has 255 bytes at most (RFC 1035 section 3.3).
        let Ok(length) = u8::try_from(text.len()) else {
            continue;
        };
        if out.len() + text.len() + 13 > MAX_ANSWER {
            break;
        }
        out.extend([0xc0, own]);
        write_record(
            TYPE_TXT,
            CLASS_IN,
            &[&[length], &text[..]].concat(),
            &mut out,
        );
        texts += 1;
    }
    out[10..12].copy_from_slice(&texts.to_be_bytes());
    out
}

/// Returns the addresses that an answer from `source` gives for peers that are `sought`, at most eight for
/// each. Only an address of a private network counts, or the address that the answer has come from, so that
/// nobody is led out of the local network.
pub(crate) fn answers(
    packet: &[u8],
    source: IpAddr,
    sought: impl Fn(&PeerId) -> bool,
) -> Vec<(PeerId, Multiaddr)> {
    let mut found: Vec<(PeerId, Multiaddr)> = Vec::new();
    let texts = records(packet).filter(|(_, kind, _)| *kind == TYPE_TXT);
    for text in texts.flat_map(|(_, _, data)| texts_of(data)) {
        if let Some((peer, address)) = address_of(text, source).filter(|(peer, _)| sought(peer))
            && found.iter().filter(|(of, _)| *of == peer).count() < MAX_ADDRESSES
        {
            found.push((peer, address));
        }
    }
    found
}

/// Returns at most eight of the addresses that several answers have given for one peer, `all` in the order
/// in which they came with the source of each. Each source has an equal share, so that whoever answers
/// first with much does not keep the peer itself from being found.
pub(crate) fn shares(all: Vec<(IpAddr, Multiaddr)>) -> Vec<Multiaddr> {
    let mut turns: Vec<(usize, Multiaddr)> = Vec::new();
    for (at, (source, address)) in all.iter().enumerate() {
        let before = all[..at].iter().filter(|(other, _)| other == source);
        turns.push((before.count(), address.clone()));
    }
    // The first address of each source comes before the second of any.
    turns.sort_by_key(|(turn, _)| *turn);
    let addresses = turns.into_iter().map(|(_, address)| address);
    addresses.take(MAX_ADDRESSES).collect()
}

/// The texts of a TXT record.
fn texts_of(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first()?;
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        data = rest;
        Some(text)
    })
}

fn address_of(text: &[u8], source: IpAddr) -> Option<(PeerId, Multiaddr)> {
    let text = std::str::from_utf8(text.strip_prefix(DNSADDR)?).ok()?;
    let mut address: Multiaddr = text.parse().ok()?;
    let Some(Protocol::P2p(peer)) = address.pop() else {
        return None;
    };
    let near = |ip| scope(ip) == Scope::Private || ip == source.to_canonical();
    let is_near = host(&address).is_some_and(near);
    let is_sound = address::route(&address) == Route::Direct && address::fault(&address).is_none();
    (is_near && is_sound).then_some((peer, address))
}

/// Returns the IP address where an address leads.
pub(crate) fn host(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}

fn write_name(name: &str, out: &mut Vec<u8>) {
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
}

/// Writes what follows the name of a record. Returns where its data is.
fn write_record(kind: u16, class: u16, data: &[u8], out: &mut Vec<u8>) -> usize {
    out.extend(kind.to_be_bytes());
    out.extend(class.to_be_bytes());
    out.extend(TTL.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out.len() - data.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "0123456789abcdef0123456789abcdef";

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn found(packet: &[u8], peer: &PeerId, source: IpAddr) -> Vec<Multiaddr> {
        let found = answers(packet, source, |sought| sought == peer);
        assert!(found.iter().all(|(of, _)| of == peer));
        found.into_iter().map(|(_, address)| address).collect()
    }

    #[test]
    fn a_question_is_recognised_and_an_answer_is_none() {
        let mut asked = question();
        assert_eq!(asks(&asked), Some(true));
        let class = asked.len() - 2;
        asked[class] = 0;
        assert_eq!(asks(&asked), Some(false), "to everybody");
        asked[13] ^= 1;
        assert_eq!(asks(&asked), None, "another service");
        let peer = PeerId::random();
        assert_eq!(asks(&answer(LABEL, peer, &[])), None);
        // The same question within an answer.
        let mut answered = question();
        answered[2] = 0x84;
        assert_eq!(asks(&answered), None);
        // One of several questions.
        let mut many = question();
        many[5] = 2;
        let printers = many[12..].to_vec();
        many[13] = b'x';
        many.extend(printers);
        assert_eq!(asks(&many), Some(true));
    }

    #[test]
    fn an_answer_is_read_as_it_was_written_by_whoever_seeks_its_peer() {
        let [peer, other] = [(); 2].map(|()| PeerId::random());
        let addresses = [
            "/ip4/192.168.1.7/udp/9/quic-v1",
            "/ip4/192.168.1.7/tcp/9",
            "/ip6/fd00::7/udp/9/quic-v1",
        ];
        let addresses = addresses.map(address);
        let packet = answer(LABEL, peer, &addresses);
        let source = ip("192.168.1.7");
        assert_eq!(found(&packet, &peer, source), addresses);
        assert!(found(&packet, &other, source).is_empty());
        let (owner, end) = name(&packet, 12).unwrap();
        assert_eq!(owner, SERVICE.as_bytes());
        let (record, _) = name(&packet, end + 10).unwrap();
        assert_eq!(record, format!("{LABEL}.{SERVICE}").into_bytes());
        let owners = records(&packet).map(|(owner, kind, _)| (owner, kind));
        assert_eq!(owners.last(), Some((record, TYPE_TXT)));
    }

    #[test]
    fn only_what_is_near_is_believed() {
        let peer = PeerId::random();
        let believed = |text: &str, source: &str| {
            let packet = answer(LABEL, peer, &[address(text)]);
            !found(&packet, &peer, ip(source)).is_empty()
        };
        let source = "203.0.113.5";
        for near in [
            "/ip4/10.0.0.7/tcp/9",
            "/ip6/fd00::7/tcp/9",
            "/ip4/203.0.113.5/tcp/9",
        ] {
            assert!(believed(near, source), "{near}");
        }
        let relay = PeerId::random();
        for far in [
            "/ip4/203.0.113.6/tcp/9",
            "/ip4/127.0.0.1/tcp/9",
            "/ip4/169.254.169.254/tcp/80",
            "/dns4/host.example/tcp/9",
            "/ip6/2001:db8::1/tcp/9",
            &format!("/ip4/10.0.0.7/tcp/9/p2p/{relay}/p2p-circuit"),
        ] {
            assert!(!believed(far, source), "{far}");
        }
        assert!(
            believed("/ip4/127.0.0.1/tcp/9", "127.0.0.1"),
            "on one machine"
        );
    }

    #[test]
    fn an_answer_is_bounded_however_it_was_made() {
        let peer = PeerId::random();
        let many: Vec<_> = (1..100)
            .map(|n| address(&format!("/ip4/192.168.1.{n}/udp/12345/quic-v1")))
            .collect();
        let packet = answer(LABEL, peer, &many);
        assert!(packet.len() <= MAX_ANSWER, "{}", packet.len());
        assert_eq!(
            found(&packet, &peer, ip("192.168.1.1")),
            many[..MAX_ADDRESSES]
        );
        // A text can repeat an address as often as it fits.
        let text = format!("dnsaddr=/ip4/10.0.0.1/tcp/1/p2p/{peer}");
        let text = [&[text.len() as u8], text.as_bytes()].concat();
        let mut flood = packet[..12].to_vec();
        (flood[7], flood[11]) = (1, 0);
        write_name("x", &mut flood);
        write_record(TYPE_TXT, CLASS_IN, &text.repeat(50), &mut flood);
        let found = found(&flood, &peer, ip("10.0.0.1"));
        assert_eq!(found.len(), MAX_ADDRESSES);
    }

    #[test]
    fn whoever_answers_first_does_not_keep_the_peer_from_being_found() {
        let from = |source: &str, count: u8| {
            let source = ip(source);
            let IpAddr::V4(v4) = source else {
                panic!("{source} is IPv4")
            };
            (1..=count).map(move |port| {
                let address = Multiaddr::from(v4).with(Protocol::Tcp(port.into()));
                (source, address)
            })
        };
        let alone = shares(from("10.0.0.1", 9).collect());
        assert_eq!(alone.len(), MAX_ADDRESSES);
        let all = from("10.0.0.1", 8).chain(from("10.0.0.2", 1));
        let shared = shares(all.collect());
        assert_eq!(shared.len(), MAX_ADDRESSES);
        assert_eq!(shared[1], address("/ip4/10.0.0.2/tcp/1"));
        assert_eq!(shared[2], address("/ip4/10.0.0.1/tcp/2"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(packet in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = asks(&packet);
            let _ = answers(&packet, [127, 0, 0, 1].into(), |_| true);
        }

        #[test]
        fn a_damaged_answer_never_panics(at in any::<prop::sample::Index>(), byte: u8) {
            let peer = PeerId::random();
            let mut packet = answer(LABEL, peer, &[address("/ip4/10.0.0.1/tcp/1")]);
            let at = at.index(packet.len());
            packet[at] = byte;
            let _ = asks(&packet);
            let _ = answers(&packet, [10, 0, 0, 1].into(), |_| true);
        }
    }
}
