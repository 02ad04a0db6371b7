//! The buckets in which a fleet shares what it knows, and their keys.

use std::time::Duration;

use data_encoding::HEXLOWER;
use libp2p::PeerId;

use crate::core::{
    directory::Topic,
    fleet::{self, STATUS_LIFETIME},
    lease, record, room,
};

/// How long a row of usage is kept after it has changed for the last time.
const USAGE_LIFETIME: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// How long the leases of a quota are kept. No period is longer.
const QUOTAS_LIFETIME: Duration = Duration::from_secs(32 * 24 * 60 * 60);

/// Where the changes of the buckets are published, as `throughline.BUCKET.KEY`.
pub(super) const PUSHED: &str = "throughline";

/// A bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bucket {
    /// The records of peers, by peer.
    Peers,
    /// The records of members of rooms, by topic and peer.
    Rooms,
    /// What the servers of the fleet say of themselves, by server.
    Relays,
    /// The tokens that do not count any more, by their ids in hexadecimal.
    Revoked,
    /// What peers took, by server, day, token and peer.
    Usage,
    /// The leases of quotas, by whose quota it is.
    Quotas,
}

impl Bucket {
    pub(super) const ALL: [Self; 6] = [
        Self::Peers,
        Self::Rooms,
        Self::Relays,
        Self::Revoked,
        Self::Usage,
        Self::Quotas,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Rooms => "rooms",
            Self::Relays => "relays",
            Self::Revoked => "revoked",
            Self::Usage => "usage",
            Self::Quotas => "quotas",
        }
    }

    /// The name that the bucket has in NATS.
    pub(super) fn full(self) -> String {
        format!("{PUSHED}_{}", self.name())
    }

    /// How long a value is kept, or zero for ever.
    pub(super) fn age(self) -> Duration {
        match self {
            Self::Peers => record::LIFETIME,
            Self::Rooms => room::LIFETIME,
            Self::Relays => STATUS_LIFETIME,
            Self::Revoked => Duration::ZERO,
            Self::Usage => USAGE_LIFETIME,
            Self::Quotas => QUOTAS_LIFETIME,
        }
    }

    /// The longest value.
    pub(super) fn max_value(self) -> usize {
        match self {
            Self::Quotas => lease::MAX_VALUE,
            _ => fleet::MAX_VALUE,
        }
    }

    /// The most values that are read at a time, with those that were deleted.
    pub(super) fn most(self) -> u64 {
        match self {
            Self::Rooms => 2 * room::MAX_MEMBERS as u64,
            Self::Usage => 100_000_000,
            // More than count anywhere, so a server sees that there are too many.
            Self::Revoked => 262_144,
            _ => 65_536,
        }
    }
}

/// A key of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// The record of a peer.
    Peer(PeerId),
    /// The record of a member of a room.
    Member(PeerId, Topic),
}

impl Key {
    /// How long a value counts.
    pub(super) fn lifetime(&self) -> Duration {
        match self {
            Self::Peer(_) => record::LIFETIME,
            Self::Member(..) => room::LIFETIME,
        }
    }
}

impl From<&Key> for Bucket {
    fn from(key: &Key) -> Self {
        match key {
            Key::Peer(_) => Self::Peers,
            Key::Member(..) => Self::Rooms,
        }
    }
}

/// The name that a key has in its bucket.
pub(super) fn name(key: &Key) -> String {
    match key {
        Key::Peer(peer) => peer.to_string(),
        Key::Member(peer, topic) => format!("{}.{peer}", HEXLOWER.encode(topic)),
    }
}

/// What has to be done with a key. Either fails if its revision is not the one that is named; 0 is that
/// of a key that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Put(Vec<u8>, u64),
    Delete(u64),
}

/// What the store has for a key.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) revision: u64,
    /// None if the key was deleted.
    pub(super) value: Option<Vec<u8>>,
    /// How long ago it was written.
    pub(super) age: Duration,
}
