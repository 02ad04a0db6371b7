//! Signed envelopes (RFC 0002 of libp2p): what a peer says of itself, wherever it comes from.
//!
//! A relay keeps envelopes and hands them out. It cannot make one, change one, or show one as another
//! peer's, because whoever reads one checks the signature against the peer's id.

use std::time::Duration;

use libp2p::{PeerId, core::SignedEnvelope, identity::Keypair};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::core::{
    record::{self, Record},
    room::{self, Member},
};

/// Returns the time since the Unix epoch.
pub(crate) fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

/// Signs a record. Returns `None` if the key cannot sign.
pub(crate) fn sign(key: &Keypair, record: &Record) -> Option<Vec<u8>> {
    seal(key, record::DOMAIN, record::PAYLOAD_TYPE, record.encode())
}

/// Returns the record in an envelope, if the record is its signer's own and counts at `now`.
pub(crate) fn open(envelope: &[u8], now: Duration) -> Option<Record> {
    let (signer, payload) = unseal(
        envelope,
        record::MAX_RECORD,
        record::DOMAIN,
        record::PAYLOAD_TYPE,
    )?;
    let record = Record::decode(&payload).filter(|record| record.peer == signer)?;
    record::is_fresh(record.expires, record::LIFETIME, now).then_some(record)
}

/// Signs what a member of a room says. Returns `None` if the key cannot sign.
pub(crate) fn sign_member(key: &Keypair, member: &Member) -> Option<Vec<u8>> {
    seal(key, room::DOMAIN, room::PAYLOAD_TYPE, member.encode())
}

/// Returns the record of a member of a room and its signer, if it counts at `now`.
pub(crate) fn open_member(envelope: &[u8], now: Duration) -> Option<(PeerId, Member)> {
    let (signer, payload) = unseal(envelope, room::MAX_MEMBER, room::DOMAIN, room::PAYLOAD_TYPE)?;
    let member = Member::decode(&payload)?;
    record::is_fresh(member.expires, room::LIFETIME, now).then_some((signer, member))
}

/// Signs any payload.
pub(crate) fn seal(key: &Keypair, domain: &str, kind: &[u8], payload: Vec<u8>) -> Option<Vec<u8>> {
    let envelope = SignedEnvelope::new(key, domain.to_owned(), kind.to_vec(), payload).ok()?;
    Some(envelope.into_protobuf_encoding())
}

/// Returns the signer and the payload of an envelope of at most `most` bytes.
pub(crate) fn unseal(
    envelope: &[u8],
    most: usize,
    domain: &str,
    kind: &[u8],
) -> Option<(PeerId, Vec<u8>)> {
    if envelope.len() > most {
        return None;
    }
    let envelope = SignedEnvelope::from_protobuf_encoding(envelope).ok()?;
    let opened = envelope.payload_and_signing_key(domain.to_owned(), kind);
    let (payload, signer) = opened.ok()?;
    Some((signer.to_peer_id(), payload.to_vec()))
}

#[cfg(test)]
mod tests {
    use libp2p::core::PeerRecord;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn record(key: &Keypair) -> Record {
        let relay = PeerId::random();
        let relay = format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{relay}");
        Record {
            peer: key.public().to_peer_id(),
            seq: 7,
            expires: NOW + record::LIFETIME,
            relays: vec![relay.parse().unwrap()],
            addresses: vec!["/ip4/192.0.2.7/udp/9/quic-v1".parse().unwrap()],
            resumable: true,
            forwarded: true,
            incarnation: Some([3; 8]),
            mapped: Vec::new(),
        }
    }

    #[test]
    fn what_was_signed_is_read_and_stock_peers_read_it_too() {
        let key = Keypair::generate_ed25519();
        let record = record(&key);
        let bytes = sign(&key, &record).unwrap();
        assert_eq!(open(&bytes, NOW), Some(record.clone()));
        let envelope = SignedEnvelope::from_protobuf_encoding(&bytes).unwrap();
        let theirs = PeerRecord::from_signed_envelope_interop(envelope).unwrap();
        assert_eq!((theirs.peer_id(), theirs.seq()), (record.peer, 7));
        let circuit = format!("{}/p2p-circuit", record.relays[0]);
        assert_eq!(theirs.addresses()[0].to_string(), circuit);
        assert_eq!(theirs.addresses()[1], record.addresses[0]);
    }

    #[test]
    fn a_changed_byte_another_signer_or_a_wrong_time_is_refused() {
        let key = Keypair::generate_ed25519();
        let bytes = sign(&key, &record(&key)).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(open(&changed, NOW), None, "byte {at}");
        }
        let other = Keypair::generate_ed25519();
        let forged = sign(&other, &record(&key)).unwrap();
        assert_eq!(open(&forged, NOW), None, "it is another peer's");
        let hour = Duration::from_secs(3600);
        assert_eq!(open(&bytes, NOW + hour), None, "it is over");
        assert_eq!(open(&bytes, NOW - hour), None, "it is from the future");
        // What libp2p itself signs for identify says nothing of its end.
        let theirs = PeerRecord::new_interop(&key, Vec::new()).unwrap();
        let theirs = theirs.into_signed_envelope().into_protobuf_encoding();
        assert_eq!(open(&theirs, NOW), None);
        let kind = record::PAYLOAD_TYPE;
        let payload = record(&key).encode();
        let elsewhere = seal(&key, "another domain", kind, payload).unwrap();
        assert_eq!(open(&elsewhere, NOW), None);
        assert_eq!(open(&vec![0; record::MAX_RECORD + 1], NOW), None);
    }

    #[test]
    fn a_members_record_is_no_record_of_a_peer_and_fits() {
        let key = Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let keys = room::RoomKeys::new("", "", "");
        let member = Member {
            topic: keys.topic,
            seq: u64::MAX,
            expires: NOW + room::LIFETIME,
            sealed: keys.seal(&peer, &[7; room::MAX_DATA], [1; room::SALT]),
        };
        let bytes = sign_member(&key, &member).unwrap();
        assert!(bytes.len() <= room::MAX_MEMBER, "{}", bytes.len());
        assert_eq!(open_member(&bytes, NOW), Some((peer, member.clone())));
        assert_eq!(open_member(&bytes, NOW + Duration::from_secs(3600)), None);
        assert_eq!(open(&bytes, NOW), None);
        let record = sign(&key, &record(&key)).unwrap();
        assert_eq!(open_member(&record, NOW), None);
    }
}
