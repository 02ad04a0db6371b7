//! The other servers of the fleet, as they say of themselves.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, identity::Keypair};

use crate::{
    core::{
        drain::MAX_RELAYS,
        fleet::{DOMAIN, MAX_VALUE, Newest, PAYLOAD_TYPE, STATUS_LIFETIME, Status},
        record,
    },
    envelope,
    ticket::relay_id,
};

/// How many servers are known.
const MOST: usize = 256;

/// The other servers that have said something lately. Clones share them.
#[derive(Clone)]
pub(in crate::server) struct Sisters(Arc<Inner>);

struct Inner {
    known: Mutex<Newest<Sister>>,
    turn: AtomicUsize,
}

struct Sister {
    peer: PeerId,
    status: Status,
    until: Instant,
}

impl Default for Sisters {
    fn default() -> Self {
        Self(Arc::new(Inner {
            known: Mutex::new(Newest::new(MOST)),
            turn: AtomicUsize::new(0),
        }))
    }
}

/// Signs what this server says of itself. Returns `None` if the key cannot sign.
pub(super) fn sign(key: &Keypair, status: &Status) -> Option<Vec<u8>> {
    envelope::seal(key, DOMAIN, PAYLOAD_TYPE, status.encode())
}

impl Sisters {
    fn lock(&self) -> MutexGuard<'_, Newest<Sister>> {
        // The map is consistent after every call.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the store has of `peer`. Returns whether that is sound: its own, and of this time.
    pub(super) fn hear(&self, peer: PeerId, bytes: &[u8], age: Duration, now: Instant) -> bool {
        let opened = envelope::unseal(bytes, MAX_VALUE, DOMAIN, PAYLOAD_TYPE);
        let payload = opened.filter(|(signer, _)| *signer == peer);
        let status = payload.and_then(|(_, payload)| Status::decode(&payload, peer));
        let said = |status: &Status| Duration::from_millis(status.seq);
        let is_fresh = |status: &Status| {
            let expires = said(status).saturating_add(STATUS_LIFETIME);
            record::is_fresh(expires, STATUS_LIFETIME, envelope::now())
        };
        let Some(status) = status.filter(is_fresh) else {
            return false;
        };
        let mut sisters = self.lock();
        let is_newer = |known: &Sister| known.status.seq < status.seq;
        if sisters.get(&peer).is_none_or(is_newer) {
            let until = now.checked_sub(age).unwrap_or(now) + STATUS_LIFETIME;
            let sister = Sister {
                peer,
                status,
                until,
            };
            sisters.insert(peer, sister);
        }
        true
    }

    /// Whether this server has said that it is about to end.
    fn is_draining(&self, peer: &PeerId, now: Instant) -> bool {
        let sisters = self.lock();
        let sister = sisters.get(peer).filter(|sister| now < sister.until);
        sister.is_some_and(|sister| sister.status.draining)
    }

    /// Returns those of the `configured` addresses whose servers go on, or else addresses of other servers
    /// that do. Each call begins with another one of those.
    pub(in crate::server) fn successors(
        &self,
        mut configured: Vec<Multiaddr>,
        now: Instant,
    ) -> Vec<Multiaddr> {
        configured.retain(|address| {
            let relay = relay_id(address);
            !relay.is_some_and(|relay| self.is_draining(&relay, now))
        });
        match configured.is_empty() {
            true => self.others(self.0.turn.fetch_add(1, Ordering::Relaxed), now),
            false => configured,
        }
    }

    /// Returns addresses of servers that go on. Each `turn` begins with another server, so that clients
    /// do not all move to the same.
    fn others(&self, turn: usize, now: Instant) -> Vec<Multiaddr> {
        let sisters = self.lock();
        let on = |sister: &&Sister| now < sister.until && !sister.status.draining;
        let mut sisters: Vec<_> = sisters.values().filter(on).collect();
        if sisters.is_empty() {
            return Vec::new();
        }
        sisters.sort_by_key(|sister| sister.peer);
        let first = turn % sisters.len();
        sisters.rotate_left(first);
        let addresses = sisters.iter().flat_map(|sister| &sister.status.addresses);
        addresses.take(MAX_RELAYS).cloned().collect()
    }

    /// Forgets whom nothing was heard of. Returns how many are left.
    pub(super) fn sweep(&self, now: Instant) -> usize {
        let mut sisters = self.lock();
        sisters.retain(|sister| now < sister.until);
        sisters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(key: &Keypair, later: u64, draining: bool) -> (PeerId, Vec<u8>) {
        let peer = key.public().to_peer_id();
        let at = |port| {
            format!("/ip4/192.0.2.1/tcp/{port}/p2p/{peer}")
                .parse()
                .unwrap()
        };
        let seq = envelope::now().as_millis() as u64 + later;
        let status = Status {
            seq,
            draining,
            addresses: vec![at(1), at(2)],
        };
        (peer, sign(key, &status).unwrap())
    }

    #[test]
    fn a_server_that_drains_is_left_out_and_each_client_hears_of_another_first() {
        let (sisters, mut now) = (Sisters::default(), Instant::now());
        assert_eq!(sisters.others(3, now), []);
        let keys = [(); 3].map(|()| Keypair::generate_ed25519());
        for key in &keys {
            let (peer, bytes) = status(key, 0, false);
            assert!(sisters.hear(peer, &bytes, Duration::ZERO, now));
        }
        let (first, second) = (sisters.others(0, now), sisters.others(1, now));
        assert_eq!((first.len(), &first[2..]), (MAX_RELAYS, &second[..2]));
        let (peer, bytes) = status(&keys[0], 1, true);
        sisters.hear(peer, &bytes, Duration::ZERO, now);
        assert!(sisters.is_draining(&peer, now));
        let left = sisters.others(0, now);
        assert!(
            left.iter()
                .all(|address| !address.to_string().contains(&peer.to_string()))
        );
        let to = |peer: PeerId| -> Multiaddr {
            format!("/dns4/a.example.org/tcp/443/p2p/{peer}")
                .parse()
                .unwrap()
        };
        let goes_on = to(keys[1].public().to_peer_id());
        let named = sisters.successors(vec![to(peer), goes_on.clone()], now);
        assert_eq!(named, [goes_on]);
        let instead = [(); 2].map(|()| sisters.successors(vec![to(peer)], now));
        assert_eq!(
            instead[0][..2],
            instead[1][2..],
            "they begin with each in turn"
        );
        assert_eq!(instead[0].len(), 4);
        now += STATUS_LIFETIME;
        assert!(!sisters.is_draining(&peer, now));
        assert_eq!(
            (sisters.others(0, now), sisters.sweep(now)),
            (Vec::new(), 0)
        );
    }

    #[test]
    fn nobody_speaks_for_another_server_or_says_again_what_is_over() {
        let (sisters, now) = (Sisters::default(), Instant::now());
        let [key, liar] = [(); 2].map(|()| Keypair::generate_ed25519());
        let (peer, newest) = status(&key, 10, true);
        assert!(sisters.hear(peer, &newest, Duration::ZERO, now));
        let (_, forged) = status(&liar, 20, false);
        assert!(!sisters.hear(peer, &forged, Duration::ZERO, now));
        let (_, older) = status(&key, 0, false);
        sisters.hear(peer, &older, Duration::ZERO, now);
        assert!(sisters.is_draining(&peer, now));
        let hour = 3_600_000;
        assert!(!sisters.hear(peer, &status(&key, hour, false).1, Duration::ZERO, now));
        assert!(!sisters.hear(peer, &[0; 9], Duration::ZERO, now));
    }
}
