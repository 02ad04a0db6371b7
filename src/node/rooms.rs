//! The rooms that this peer is in, and its streams to relays for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use libp2p::{PeerId, Stream as Substream, StreamProtocol};

use super::{
    effect::Effect,
    engine::{Internal, Node},
    network::Purpose,
    timers::Timer,
};
use crate::{
    attendance::{Attendance, attend},
    core::{
        directory::PROTOCOL,
        room::{LIFETIME, MAX_ROOMS, RoomKeys, Source},
    },
    error::ErrorKind,
};

/// The pause before a relay is asked again whose stream has ended.
const AGAIN: Duration = Duration::from_secs(2);

/// The name of a room within this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RoomId(u64);

/// All rooms that this peer is in.
#[derive(Default)]
pub(super) struct Rooms {
    joined: HashMap<RoomId, Joined>,
    rooms: u64,
    streams: u64,
}

struct Joined {
    /// The handles and the streams keep it.
    room: Arc<Attendance>,
    /// The newest stream to each relay that has one.
    streams: HashMap<PeerId, u64>,
}

/// Who waits for a change in a room learns that there is none any more.
impl Drop for Rooms {
    fn drop(&mut self) {
        self.leave_all();
    }
}

impl Rooms {
    pub(super) fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    pub(super) fn leave_all(&self) {
        for joined in self.joined.values() {
            joined.room.leave();
        }
    }

    fn get(&self, id: RoomId) -> Option<&Arc<Attendance>> {
        self.joined.get(&id).map(|joined| &joined.room)
    }
}

impl Node {
    /// Begins to attend a room over every relay that has a directory and holds a reservation.
    pub(super) fn join(&mut self, keys: RoomKeys, data: &[u8]) -> Arc<Attendance> {
        let room = Arc::new(Attendance::new(self.key.clone(), keys, data));
        self.rooms.joined.retain(|_, joined| !joined.room.is_over());
        if self.rooms.joined.len() >= MAX_ROOMS {
            let why = format!("a peer is in {MAX_ROOMS} rooms at most");
            room.refuse(ErrorKind::LimitExceeded, &why);
            return room;
        }
        self.rooms.rooms += 1;
        let id = RoomId(self.rooms.rooms);
        let joined = Joined {
            room: room.clone(),
            streams: HashMap::new(),
        };
        self.rooms.joined.insert(id, joined);
        for relay in self.relays.directories() {
            self.attend(id, relay);
        }
        let patience = self.config.relay_timeout;
        let deadline = Timer::JoinDeadline(id);
        self.effects.push(Effect::After(patience, deadline));
        room
    }

    /// The time for a relay to let us into a room is over.
    pub(super) fn on_join_deadline(&mut self, id: RoomId) {
        if let Some(room) = self.rooms.get(id)
            && !room.settle_refused()
        {
            let why = "no relay that has rooms holds a reservation";
            room.refuse(ErrorKind::NoRelay, why);
        }
    }

    /// The directory of a relay can be used, so rooms are attended there.
    pub(super) fn attend_all(&mut self, relay: PeerId) {
        let rooms: Vec<_> = self.rooms.joined.keys().copied().collect();
        for id in rooms {
            self.attend(id, relay);
        }
    }

    /// Attends a room over a relay, unless that is done.
    pub(super) fn attend(&mut self, id: RoomId, relay: PeerId) {
        let link = self.relays.directory(&relay);
        let joined = self.rooms.joined.get_mut(&id);
        let joined = joined.filter(|joined| !joined.room.is_over());
        let (Some(connection), Some(joined)) = (link, joined) else {
            return;
        };
        if joined.streams.contains_key(&relay) {
            return;
        }
        self.rooms.streams += 1;
        let number = self.rooms.streams;
        joined.streams.insert(relay, number);
        self.effects.push(Effect::Open {
            peer: relay,
            connection,
            protocol: StreamProtocol::new(PROTOCOL),
            purpose: Purpose::Attend(id, Source { relay, number }),
        });
    }

    /// The request for a stream over which a room is attended has been answered.
    pub(super) fn attend_over(&mut self, id: RoomId, source: Source, stream: Option<Substream>) {
        let (Some(stream), Some(room)) = (stream, self.rooms.get(id).cloned()) else {
            return self.on_attended(id, source);
        };
        let report = self.outbox.internal.clone();
        let task = async move {
            attend(stream, room, source).await;
            let _ = report.send(Internal::Attended(id, source)).await;
        };
        self.effects.push(Effect::Spawn(task.boxed()));
    }

    /// A stream over which a room was attended has ended. Whom only this relay has shown counts until
    /// its record would be over.
    pub(super) fn on_attended(&mut self, id: RoomId, source: Source) {
        let Some(joined) = self.rooms.joined.get_mut(&id) else {
            return;
        };
        if joined.streams.get(&source.relay) == Some(&source.number) {
            joined.streams.remove(&source.relay);
        }
        // While another relay may let us in, the refusal of one says nothing.
        if joined.streams.is_empty() {
            joined.room.settle_refused();
        }
        if joined.room.is_over() {
            if joined.streams.is_empty() {
                self.rooms.joined.remove(&id);
            }
            return;
        }
        let effects = &mut self.effects;
        effects.push(Effect::After(AGAIN, Timer::Attend(id, source.relay)));
        effects.push(Effect::After(LIFETIME, Timer::Unseen(id, source)));
    }

    /// A relay has shown nobody for as long as a record counts.
    pub(super) fn on_unseen(&mut self, id: RoomId, source: Source) {
        if let Some(room) = self.rooms.get(id) {
            room.settle(&source.relay, source.number + 1);
        }
    }
}
