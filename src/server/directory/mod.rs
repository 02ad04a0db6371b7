//! Where peers are, and who is in which room.
//!
//! What a server has to know of peers that may be at another server stands behind one trait,
//! [`Directory`]. `memory` is the directory of a server that is alone. That of a server of a fleet
//! ([`fleet`](super::fleet)) has one of these for the peers that are here.

mod attendance;
mod memory;

use std::{sync::Arc, time::Instant};

use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::watch;

pub(super) use self::{
    attendance::{Paid, attend},
    memory::Memory,
};
use super::pool::{Place, Pool};
use crate::{
    core::{
        directory::{Refusal, Topic},
        quota,
    },
    envelope,
};

/// An envelope, as it came from its peer.
pub(super) type Envelope = Arc<[u8]>;

/// Takes the place of something new. What replaces something keeps its place.
pub(super) type Take<'a> = &'a dyn Fn() -> Result<Place, quota::Refusal>;

/// Takes the places of a new member: one among those of its room, one among all members, and whichever else
/// it needs.
pub(super) type Seat<'a> = &'a dyn Fn(&Pool) -> Result<Vec<Place>, quota::Refusal>;

/// A record that is sound, and that is its peer's own.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) peer: PeerId,
    pub(super) seq: u64,
    pub(super) envelope: Envelope,
}

impl Entry {
    /// Checks the record that `peer` leaves.
    ///
    /// # Errors
    /// [`Refusal::Unsound`] if it is not the peer's own, is malformed, or is from another time.
    pub(super) fn record(peer: PeerId, envelope: Vec<u8>) -> Result<Self, Refusal> {
        let record = envelope::open(&envelope, envelope::now());
        let record = record.filter(|record| record.peer == peer);
        Ok(Self {
            peer,
            seq: record.ok_or(Refusal::Unsound)?.seq,
            envelope: envelope.into(),
        })
    }

    /// Checks the record of `peer` for the room `topic`, and returns it with what the peer shows there.
    ///
    /// # Errors
    /// [`Refusal::Unsound`] if it is not the peer's own, is malformed, or is for another room or time.
    pub(super) fn member(
        peer: PeerId,
        topic: &Topic,
        envelope: Vec<u8>,
    ) -> Result<(Self, Vec<u8>), Refusal> {
        let opened = envelope::open_member(&envelope, envelope::now());
        let opened = opened.filter(|(signer, member)| *signer == peer && member.topic == *topic);
        let (_, member) = opened.ok_or(Refusal::Unsound)?;
        let entry = Self {
            peer,
            seq: member.seq,
            envelope: envelope.into(),
        };
        Ok((entry, member.sealed))
    }
}

/// What has changed in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Present(Envelope),
    Left(PeerId),
}

/// What servers know of peers. All methods return at once, except for a look-up, which may ask others.
pub(super) trait Directory: Send + Sync {
    /// Keeps the record of a peer at `now`, in the place of an older one.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if a newer one is known, or [`Refusal::Limit`].
    fn put(&self, entry: Entry, now: Instant, place: Take<'_>) -> Result<(), Refusal>;

    /// Returns the record of a peer, if there is one that is not over. `is_here` says whether the peer has a
    /// reservation at this server. Of any other peer, another server may know more.
    fn find(
        &self,
        peer: &PeerId,
        is_here: bool,
        now: Instant,
    ) -> BoxFuture<'static, Option<Envelope>>;

    /// Forgets the record of a peer, which also leaves all rooms.
    fn forget(&self, peer: &PeerId, now: Instant);

    /// Puts a peer into a room, or renews that. `shown` is what it shows: another value is a change.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if a newer record is known, or [`Refusal::Limit`].
    fn join(
        &self,
        topic: &Topic,
        entry: Entry,
        shown: Vec<u8>,
        now: Instant,
        seat: Seat<'_>,
    ) -> Result<(), Refusal>;

    /// Takes a peer out of a room.
    fn leave(&self, topic: &Topic, peer: &PeerId, now: Instant);

    /// Returns what tells of changes in a room. Its value is the number of the last change.
    fn watch(&self, topic: &Topic) -> watch::Receiver<u64>;

    /// Returns how many members are in a room.
    fn size(&self, topic: &Topic) -> usize;

    /// Returns the first changes in a room after the one with the number `after`, with their numbers, at
    /// most `most`. Each member has one change at a time, its newest. After 0, there are the members.
    /// Returns `None` if some of those that have left since are forgotten.
    fn changes(&self, topic: &Topic, after: u64, most: usize) -> Option<Vec<(u64, Change)>>;

    /// Forgets what is over at `now`.
    fn sweep(&self, now: Instant);
}
