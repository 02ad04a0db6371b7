//! The record in which a peer says where it is, for a relay's directory.
//!
//! A record is a peer record of libp2p (RFC 0003) in a signed envelope (RFC 0002), so stock peers can
//! read it: the peer, a sequence number, its own addresses, and the addresses of circuits to it. Our own
//! fields have numbers from 101 on, which others skip. They say until when the record counts, and what a
//! ticket says besides addresses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::{
    address::{self, Route},
    offer::Incarnation,
    protobuf::{behind_length, skip_field, take_bytes, take_varint, varint},
};

/// What the signature is for, and the kind of the payload, as libp2p's other implementations have them.
pub(crate) const DOMAIN: &str = "libp2p-peer-record";
pub(crate) const PAYLOAD_TYPE: &[u8] = &[0x03, 0x01];

/// The longest envelope with a record, in bytes. A record with two relays has about 1,500.
pub(crate) const MAX_RECORD: usize = 4096;
/// How much of it is left for the envelope: a key, a signature, and what stands around them.
const ENVELOPE: usize = 256;

/// How long a record counts. A peer that crashed is found for as long, and every peer renews its record
/// twice in this time.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);

/// How far the clocks of two machines may differ. A relay refuses a record that is further off, so its
/// peer learns that its clock is wrong.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(300);

/// The most peers of which it is remembered which record was the newest.
const MAX_SEEN: usize = 1024;

/// The most addresses of a peer, with those of its relays. This is enough for two relays with every
/// transport and for some hosts. It bounds how many addresses a ticket or a record makes us dial.
pub(crate) const MAX_ADDRESSES: usize = 32;
/// The most mapped addresses of a peer: one for each address family and each NAT that it may be behind.
/// It also bounds how many unrequested datagrams a ticket or a record makes us send.
pub(crate) const MAX_MAPPED: usize = 4;

// PeerRecord { peer_id = 1, seq = 2, addresses = 3 }, AddressInfo { multiaddr = 1 }; ours are
// expires = 101, capabilities = 102, incarnation = 103, mapped = 104.
const PEER: u64 = 1 << 3 | 2;
const SEQ: u64 = 2 << 3;
const ADDRESSES: u64 = 3 << 3 | 2;
const MULTIADDR: u64 = 1 << 3 | 2;
const EXPIRES: u64 = 101 << 3;
const CAPABILITIES: u64 = 102 << 3;
const INCARNATION: u64 = 103 << 3 | 2;
const MAPPED: u64 = 104 << 3 | 2;

/// The peer speaks resumable streams.
const RESUMABLE: u64 = 1;
/// All relays of the record forward bytes before the peer has agreed.
const FORWARDED: u64 = 2;

/// Where a peer is, and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) peer: PeerId,
    /// The newer one of two records has the greater number.
    pub(crate) seq: u64,
    /// Until when the record counts, since the Unix epoch, by the peer's clock.
    pub(crate) expires: Duration,
    /// The addresses of relays that hold a reservation for the peer. Each ends in `/p2p/<relay>`.
    pub(crate) relays: Vec<Multiaddr>,
    pub(crate) addresses: Vec<Multiaddr>,
    pub(crate) resumable: bool,
    pub(crate) forwarded: bool,
    pub(crate) incarnation: Option<Incarnation>,
    /// The addresses that NATs give to the peer's socket.
    pub(crate) mapped: Vec<SocketAddr>,
}

impl Record {
    /// Encodes the record, as the payload of an envelope. The last addresses are left out if there are
    /// too many bytes of them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = field(PEER, &self.peer.to_bytes());
        number(SEQ, self.seq, &mut bytes);
        let mut own = Vec::new();
        number(EXPIRES, self.expires.as_secs(), &mut own);
        let flag = |flag, set| if set { flag } else { 0 };
        let resumable = flag(RESUMABLE, self.resumable);
        number(
            CAPABILITIES,
            resumable | flag(FORWARDED, self.forwarded),
            &mut own,
        );
        if let Some(incarnation) = &self.incarnation {
            own.extend(field(INCARNATION, incarnation));
        }
        for mapped in &self.mapped {
            own.extend(field(MAPPED, &socket_bytes(mapped)));
        }
        let circuits = self.relays.iter().map(address::reservation);
        for address in circuits.chain(self.addresses.iter().cloned()) {
            let info = field(ADDRESSES, &field(MULTIADDR, address.as_ref()));
            if bytes.len() + info.len() + own.len() <= MAX_RECORD - ENVELOPE {
                bytes.extend(info);
            }
        }
        bytes.extend(own);
        bytes
    }

    /// Reads the payload of an envelope. Addresses that cannot be read, and those beyond the bounds, are
    /// left out. Returns `None` if the payload is malformed, or if it does not say until when it counts.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let (mut peer, mut seq, mut expires) = (None, 0, None);
        let (mut capabilities, mut incarnation) = (0, None);
        let (mut relays, mut addresses, mut mapped) = (Vec::new(), Vec::new(), Vec::new());
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                PEER => peer = Some(PeerId::from_bytes(take_bytes(&mut rest)?).ok()?),
                SEQ => seq = take_varint(&mut rest)?,
                ADDRESSES => {
                    let address = multiaddr(take_bytes(&mut rest)?)?;
                    if relays.len() + addresses.len() < MAX_ADDRESSES {
                        match address.as_ref().map(address::route) {
                            Some(Route::Circuit(relay)) if ends_in_peer(&relay) => {
                                relays.push(relay);
                            }
                            Some(Route::Direct) => addresses.extend(address),
                            _ => {}
                        }
                    }
                }
                EXPIRES => expires = Some(take_varint(&mut rest)?),
                CAPABILITIES => capabilities = take_varint(&mut rest)?,
                INCARNATION => incarnation = Some(take_bytes(&mut rest)?.try_into().ok()?),
                MAPPED => {
                    let address = socket_addr(take_bytes(&mut rest)?);
                    if mapped.len() < MAX_MAPPED {
                        mapped.extend(address);
                    }
                }
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(Self {
            peer: peer?,
            seq,
            expires: Duration::from_secs(expires?),
            relays,
            addresses,
            resumable: capabilities & RESUMABLE != 0,
            forwarded: capabilities & FORWARDED != 0,
            incarnation,
            mapped,
        })
    }
}

/// Whether what counts until `expires`, and for `lifetime` in all, counts at `now`. All times are since
/// the Unix epoch, and the two clocks may differ by [`MAX_SKEW`].
pub(crate) fn is_fresh(expires: Duration, lifetime: Duration, now: Duration) -> bool {
    now <= expires.saturating_add(MAX_SKEW)
        && expires <= now.saturating_add(lifetime).saturating_add(MAX_SKEW)
}

/// Gives out sequence numbers. They follow the clock, so that those of a later run are greater, and never
/// go back.
#[derive(Debug, Default)]
pub(crate) struct Sequence(u64);

impl Sequence {
    /// Returns the next number at `now`, which is since the Unix epoch.
    pub(crate) fn next(&mut self, now: Duration) -> u64 {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.0 = self.0.saturating_add(1).max(millis);
        self.0
    }

    /// A relay says `now` that it knows a record with this number, so the next one is greater. A number that no
    /// clock could have made is not believed, because all later ones would have to be greater.
    pub(crate) fn pass(&mut self, known: u64, now: Duration) {
        let most = now.saturating_add(MAX_SKEW * 4).as_millis();
        if u128::from(known) <= most {
            self.0 = self.0.max(known);
        }
    }
}

/// What orders the records of one peer: the sequence number, and then until when the record counts.
pub(crate) type Number = (u64, Duration);

/// Remembers the newest records that were seen, so that nobody can bring an older one in their place that
/// still counts. Each is remembered until it is over.
#[derive(Default)]
pub(crate) struct Seen(Vec<(PeerId, Number)>);

impl Seen {
    /// Whether no newer record of `peer` was seen than this one, at `now`. Then this one was seen.
    pub(crate) fn admits(&mut self, peer: &PeerId, number: Number, now: Duration) -> bool {
        self.0
            .retain(|(_, (_, expires))| is_fresh(*expires, Duration::MAX, now));
        if let Some((_, newest)) = self.0.iter_mut().find(|(known, _)| known == peer) {
            let is_newest = number >= *newest;
            *newest = number.max(*newest);
            return is_newest;
        }
        if self.0.len() >= MAX_SEEN {
            // The one that was seen first is over first, as a rule.
            self.0.remove(0);
        }
        self.0.push((*peer, number));
        true
    }
}

fn ends_in_peer(address: &Multiaddr) -> bool {
    matches!(address.iter().last(), Some(Protocol::P2p(_)))
}

/// Returns the address in an `AddressInfo`, if there is one that can be read.
fn multiaddr(mut info: &[u8]) -> Option<Option<Multiaddr>> {
    let mut address = None;
    while !info.is_empty() {
        match take_varint(&mut info)? {
            MULTIADDR => address = Multiaddr::try_from(take_bytes(&mut info)?.to_vec()).ok(),
            tag => skip_field(tag, &mut info)?,
        }
    }
    Some(address)
}

/// Encodes a length-delimited field with any number.
pub(super) fn field(tag: u64, value: &[u8]) -> Vec<u8> {
    [varint(tag), behind_length(value)].concat()
}

pub(super) fn number(tag: u64, value: u64, bytes: &mut Vec<u8>) {
    bytes.extend(varint(tag));
    bytes.extend(varint(value));
}

/// An IP address and a port, in network byte order.
pub(crate) fn socket_addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk()?;
    let ip = match ip.len() {
        4 => <[u8; 4]>::try_from(ip).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(ip).ok().map(IpAddr::from),
    };
    Some(SocketAddr::new(ip?, u16::from_be_bytes(*port)))
}

/// See [`socket_addr`].
pub(crate) fn socket_bytes(address: &SocketAddr) -> Vec<u8> {
    let mut bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&address.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Record {
        let relay = PeerId::random();
        let relay = format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{relay}");
        Record {
            peer: PeerId::random(),
            seq: 7,
            expires: Duration::from_secs(1_800_000_000),
            relays: vec![relay.parse().unwrap()],
            addresses: vec!["/ip4/192.0.2.7/udp/9/quic-v1".parse().unwrap()],
            resumable: true,
            forwarded: true,
            incarnation: Some([3; 8]),
            mapped: ["203.0.113.5:7", "[2001:db8::1]:8"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = sample();
        assert_eq!(Record::decode(&record.encode()), Some(record.clone()));
        let plain = Record {
            relays: Vec::new(),
            addresses: Vec::new(),
            resumable: false,
            forwarded: false,
            incarnation: None,
            mapped: Vec::new(),
            ..record
        };
        assert_eq!(Record::decode(&plain.encode()), Some(plain));
    }

    #[test]
    fn a_record_has_the_bytes_that_others_read() {
        let record = Record {
            expires: Duration::from_secs(100),
            relays: Vec::new(),
            addresses: vec!["/ip4/192.0.2.7/tcp/9".parse().unwrap()],
            mapped: vec!["203.0.113.5:7".parse().unwrap()],
            ..sample()
        };
        let peer = record.peer.to_bytes();
        let expected = [
            &[0x0a, peer.len() as u8],
            &peer[..],
            &[0x10, 7],
            &[0x1a, 10, 0x0a, 8, 4, 192, 0, 2, 7, 6, 0, 9],
            &[0xa8, 6, 100],
            &[0xb0, 6, 3],
            &[0xba, 6, 8, 3, 3, 3, 3, 3, 3, 3, 3],
            &[0xc2, 6, 6, 203, 0, 113, 5, 0, 7],
        ];
        assert_eq!(record.encode(), expected.concat());
    }

    #[test]
    fn without_an_end_it_is_no_record_of_ours() {
        let peer = PeerId::random();
        let theirs = [field(PEER, &peer.to_bytes()), vec![16, 1]].concat();
        assert_eq!(Record::decode(&theirs), None);
        let mut ours = theirs;
        number(EXPIRES, 9, &mut ours);
        let record = Record::decode(&ours).unwrap();
        assert_eq!((record.peer, record.expires.as_secs()), (peer, 9));
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let mut record = sample();
        record.addresses = vec![record.addresses[0].clone(); MAX_ADDRESSES + 5];
        record.mapped = vec![record.mapped[0]; MAX_MAPPED + 1];
        let read = Record::decode(&record.encode()).unwrap();
        assert_eq!(read.relays.len() + read.addresses.len(), MAX_ADDRESSES);
        assert_eq!(read.mapped.len(), MAX_MAPPED);
        // Addresses of eight bytes, of which each takes twelve, fill the record.
        record.addresses = vec!["/ip4/192.0.2.7/tcp/9".parse().unwrap(); MAX_RECORD / 8];
        let room = MAX_RECORD - ENVELOPE - record.encode().len();
        assert!(room < 12, "{room}");
        let path = format!("/ip4/192.0.2.7/tcp/9/x-parity-ws/%2F{}", "a".repeat(300));
        record.addresses = vec![path.parse().unwrap(); MAX_ADDRESSES];
        let bytes = record.encode();
        assert!(bytes.len() <= MAX_RECORD - ENVELOPE, "{}", bytes.len());
        let read = Record::decode(&bytes).unwrap();
        assert!(!read.addresses.is_empty() && read.incarnation == Some([3; 8]));
    }

    #[test]
    fn a_circuit_needs_its_relay() {
        let mut record = sample();
        record.relays = vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()];
        assert_eq!(Record::decode(&record.encode()).unwrap().relays, []);
    }

    #[test]
    fn time_ends_a_record_in_both_directions() {
        let at = Duration::from_secs;
        let (now, life) = (at(10_000), at(30));
        let fresh = |expires| is_fresh(at(expires), life, now);
        assert!(fresh(10_000) && fresh(10_030));
        assert!(fresh(10_000 - 300) && !fresh(10_000 - 301));
        assert!(fresh(10_000 + 330) && !fresh(10_000 + 331));
        assert!(!is_fresh(Duration::MAX, life, now));
    }

    #[test]
    fn sequence_numbers_follow_the_clock_and_never_go_back() {
        let mut sequence = Sequence::default();
        let at = Duration::from_millis;
        assert_eq!(sequence.next(at(100)), 100);
        assert_eq!(sequence.next(at(100)), 101);
        assert_eq!(sequence.next(at(50)), 102);
        let now = Duration::from_secs(1);
        sequence.pass(u64::MAX, now);
        sequence.pass(900, now);
        sequence.pass(1, now);
        assert_eq!(sequence.next(at(200)), 901);
        assert_eq!(sequence.next(at(2000)), 2000);
    }

    #[test]
    fn an_older_record_does_not_count_until_the_newer_one_is_over() {
        let [peer, other] = [(); 2].map(|()| PeerId::random());
        let (at, mut seen) = (Duration::from_secs, Seen::default());
        let newest = (5, at(1000));
        assert!(seen.admits(&peer, newest, at(700)));
        assert!(seen.admits(&peer, newest, at(701)), "it is shown again");
        assert!(!seen.admits(&peer, (4, at(1000)), at(702)));
        assert!(!seen.admits(&peer, (4, at(2000)), at(702)), "the number");
        assert!(!seen.admits(&peer, (5, at(999)), at(702)), "the end");
        assert!(seen.admits(&other, (1, at(1000)), at(702)));
        assert!(
            !seen.admits(&peer, (4, at(1000)), at(1300)),
            "by the clocks"
        );
        assert!(seen.admits(&peer, (4, at(1000)), at(1301)), "it is over");
    }

    #[test]
    fn what_is_remembered_of_records_is_bounded() {
        let (now, number) = (Duration::from_secs(700), (9, Duration::from_secs(1000)));
        let mut seen = Seen::default();
        let peers: Vec<_> = (0..=MAX_SEEN).map(|_| PeerId::random()).collect();
        for peer in &peers {
            assert!(seen.admits(peer, number, now));
        }
        assert_eq!(seen.0.len(), MAX_SEEN);
        let older = (8, number.1);
        assert!(!seen.admits(&peers[1], older, now));
        assert!(seen.admits(&peers[0], older, now), "it was forgotten");
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Record::decode(&bytes);
        }

        #[test]
        fn cut_or_changed_bytes_never_panic(
            cut in 0usize..200, at in 0usize..200, byte: u8,
        ) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = Record::decode(&bytes);
        }
    }
}
