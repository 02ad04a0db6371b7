//! The task of a mesh: it dials members, greets who connects, and makes links.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    channel::oneshot,
    future::{AbortHandle, BoxFuture, abortable, select},
    stream::{self, BoxStream, FuturesUnordered},
};
use futures_timer::Delay;
use tokio::sync::OwnedMutexGuard;
use web_time::Instant;

use super::link::Shared;
use crate::{
    connection::Connection,
    connector::Connector,
    core::mesh::{Greets, MAX_MEMBERS, Roster},
    identity::PeerId,
    node::random,
    room::{Room, RoomEvent},
    stream::Stream as PeerStream,
};

/// How long a member that has opened the stream may take to be seen in the room, and a stranger to open a
/// stream. After that time, a member that should have been dialled by the other one dials by itself.
const MEETS: Duration = Duration::from_secs(10);
/// How many strangers wait for the application before no more connections are taken.
const STRANGERS: usize = 16;
/// How long the members may take to take what still waits for them when this peer leaves.
const FAREWELL: Duration = Duration::from_secs(20);

/// What something that the task has begun came to.
enum Done {
    /// The pause before an attempt is over.
    Due(PeerId, u64),
    /// What an attempt came to: a connection, and the stream if this peer dials.
    Reached(PeerId, u64, Option<(Connection, Option<PeerStream>)>),
    /// The first stream of a connection, and whether it is for this mesh.
    Greeted(u64, Connection, Option<(PeerStream, bool)>),
    /// A connection with a stranger had to have its first stream by now.
    Overdue(PeerId, u64),
    /// A peer that has opened the stream with this number had to be linked by now.
    Late(PeerId, u64),
    /// The link with this number has ended.
    Ended(PeerId, u64),
}

enum Input {
    Change(RoomEvent),
    Incoming(Connection),
    Done(Done),
    Freed,
    Over,
}

/// What keeps the mesh.
pub(super) struct Keeper {
    room: Room,
    shared: Arc<Shared>,
    changes: BoxStream<'static, RoomEvent>,
    incoming: BoxStream<'static, Connection>,
    freed: BoxStream<'static, ()>,
    began: Instant,
    roster: Roster<PeerId>,
    greets: Greets<PeerId>,
    /// What ends an attempt.
    attempts: HashMap<PeerId, AbortHandle>,
    /// What ends a greet and its deadline.
    greeting: HashMap<u64, [AbortHandle; 2]>,
    /// Those that have opened the stream, and cannot be linked yet.
    early: HashMap<PeerId, (u64, Connection, PeerStream)>,
    streams: u64,
    /// Those whose attempt is held back until their end is read.
    held_back: HashMap<PeerId, u64>,
    work: FuturesUnordered<BoxFuture<'static, Option<Done>>>,
    links: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Keeper {
    pub(super) fn new(connector: &Connector, room: &Room, shared: Arc<Shared>) -> Self {
        let incoming = stream::unfold(connector.clone(), |connector| async move {
            let connection = connector.accept().await?;
            Some((connection, connector))
        });
        let freed = stream::unfold(shared.clone(), |shared| async move {
            shared.freed().await;
            Some(((), shared))
        });
        Self {
            room: room.clone(),
            shared,
            changes: room.events().boxed(),
            incoming: incoming.boxed(),
            freed: freed.boxed(),
            began: Instant::now(),
            roster: Roster::new(),
            greets: Greets::new(),
            attempts: HashMap::new(),
            greeting: HashMap::new(),
            early: HashMap::new(),
            streams: 0,
            held_back: HashMap::new(),
            work: FuturesUnordered::new(),
            links: FuturesUnordered::new(),
        }
    }

    /// Keeps the mesh until this peer has left the room, or the last handle is gone. `turn` lets no other mesh
    /// take this one's connections.
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>, turn: OwnedMutexGuard<()>) {
        loop {
            match poll_fn(|cx| self.poll_input(&mut stop, cx)).await {
                Input::Change(change) => self.on_change(change),
                Input::Incoming(connection) => self.greet(connection),
                Input::Done(done) => self.on_done(done),
                Input::Freed => self.settle_all(),
                Input::Over => break,
            }
        }
        self.shared.end();
        let links = std::mem::take(&mut self.links);
        // This leaves the room, and begins and takes nothing more.
        drop(self);
        drop(turn);
        let farewells = Box::pin(links.for_each(|_| async {}));
        select(farewells, Delay::new(FAREWELL)).await;
    }

    fn poll_input(
        &mut self,
        stop: &mut oneshot::Receiver<()>,
        cx: &mut Context<'_>,
    ) -> Poll<Input> {
        if Pin::new(stop).poll(cx).is_ready() {
            return Poll::Ready(Input::Over);
        }
        if let Poll::Ready(change) = self.changes.poll_next_unpin(cx) {
            return Poll::Ready(change.map_or(Input::Over, Input::Change));
        }
        if let Poll::Ready(Some(done)) = self.links.poll_next_unpin(cx) {
            return Poll::Ready(Input::Done(done));
        }
        while let Poll::Ready(Some(done)) = self.work.poll_next_unpin(cx) {
            if let Some(done) = done {
                return Poll::Ready(Input::Done(done));
            }
        }
        if let Poll::Ready(Some(())) = self.freed.poll_next_unpin(cx) {
            return Poll::Ready(Input::Freed);
        }
        if self.shared.strangers() >= STRANGERS {
            return Poll::Pending;
        }
        let incoming = self.incoming.poll_next_unpin(cx);
        incoming.map(|connection| connection.map_or(Input::Over, Input::Incoming))
    }

    fn on_change(&mut self, change: RoomEvent) {
        match change {
            RoomEvent::Joined(_) => self.admit(),
            RoomEvent::Changed(member) => self.shared.show(member),
            RoomEvent::Left(peer) => {
                self.roster.remove(peer);
                self.forget_attempt(peer);
                self.end_greets(peer);
                if let Some((_, _, stream)) = self.early.remove(&peer) {
                    stream.refuse();
                }
                self.shared.part(peer);
                self.admit();
            }
        }
    }

    /// Takes those into the mesh for whom there is room.
    fn admit(&mut self) {
        for member in self.room.members() {
            let peer = member.id;
            if !self.roster.admit(peer) {
                continue;
            }
            if let Some(attempt) = self.roster.seek(peer) {
                let pause = match self.shared.dials(peer) {
                    true => Duration::ZERO,
                    false => MEETS,
                };
                self.pause(peer, attempt, pause);
            }
            self.settle(peer);
        }
    }

    /// Begins a part of an attempt. It ends what the attempt was before.
    fn begin(&mut self, peer: PeerId, part: impl Future<Output = Done> + Send + 'static) {
        self.forget_attempt(peer);
        let (part, handle) = abortable(part);
        self.attempts.insert(peer, handle);
        self.work.push(part.map(Result::ok).boxed());
    }

    fn forget_attempt(&mut self, peer: PeerId) {
        self.held_back.remove(&peer);
        if let Some(attempt) = self.attempts.remove(&peer) {
            attempt.abort();
        }
    }

    fn pause(&mut self, peer: PeerId, attempt: u64, pause: Duration) {
        let due = Delay::new(pause).map(move |()| Done::Due(peer, attempt));
        self.begin(peer, due);
    }

    fn again(&mut self, peer: PeerId, next: Option<(u64, Duration)>) {
        if let Some((attempt, pause)) = next {
            self.pause(peer, attempt, pause);
        }
    }

    fn reach(&mut self, peer: PeerId, attempt: u64) {
        let (room, shared) = (self.room.clone(), self.shared.clone());
        let reached = async move {
            let found = shared.reach(room, peer).await;
            Done::Reached(peer, attempt, found)
        };
        self.begin(peer, reached);
    }

    /// Waits for the first stream that the other end of a connection opens. Beyond the limits, the connection
    /// is let go.
    fn greet(&mut self, connection: Connection) {
        let peer = connection.peer_id();
        let is_member = |peer| self.roster.contains(peer);
        let Some(number) = self.greets.begin(peer, is_member) else {
            return;
        };
        let shared = self.shared.clone();
        let (greeted, handle) = abortable(async move {
            let found = shared.greet(&connection).await;
            Done::Greeted(number, connection, found)
        });
        self.work.push(greeted.map(Result::ok).boxed());
        let overdue = Delay::new(MEETS).map(move |()| Done::Overdue(peer, number));
        let (overdue, deadline) = abortable(overdue);
        self.work.push(overdue.map(Result::ok).boxed());
        self.greeting.insert(number, [handle, deadline]);
    }

    fn end_greet(&mut self, number: u64) {
        self.greets.end(number);
        let greeting = self.greeting.remove(&number).into_iter().flatten();
        greeting.for_each(|part| part.abort());
    }

    fn end_greets(&mut self, peer: PeerId) {
        for number in self.greets.of(peer) {
            self.end_greet(number);
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Due(peer, attempt) if self.roster.is_sought(peer, attempt) => {
                match self.shared.can_link(peer) {
                    true => self.reach(peer, attempt),
                    false => _ = self.held_back.insert(peer, attempt),
                }
            }
            Done::Reached(peer, attempt, found) if self.roster.is_sought(peer, attempt) => {
                self.on_reached(peer, attempt, found);
            }
            // What was begun before the member left, or was linked, counts no more.
            Done::Due(..) | Done::Reached(..) => {}
            Done::Greeted(number, connection, found) => {
                self.end_greet(number);
                self.on_greeted(connection, found);
            }
            Done::Overdue(peer, number) => {
                if !self.roster.contains(peer) {
                    self.end_greet(number);
                }
            }
            Done::Late(peer, number) => {
                let early = self.early.get(&peer);
                if early.is_some_and(|(early, ..)| *early == number)
                    && let Some((_, connection, stream)) = self.early.remove(&peer)
                {
                    stream.refuse();
                    self.greet(connection);
                }
            }
            Done::Ended(peer, number) => self.part(peer, number),
        }
    }

    fn on_reached(
        &mut self,
        peer: PeerId,
        attempt: u64,
        found: Option<(Connection, Option<PeerStream>)>,
    ) {
        match found {
            Some((connection, Some(mut stream))) => {
                if self.shared.can_link(peer) {
                    self.link(connection, stream);
                    return;
                }
                stream.reset(0);
            }
            Some((connection, None)) => {
                self.roster.meet(peer);
                if self.greets.of(peer).is_empty() {
                    self.greet(connection);
                }
                return;
            }
            None => {}
        }
        let next = self.roster.fail(peer, attempt, random());
        self.again(peer, next);
    }

    fn on_greeted(&mut self, connection: Connection, found: Option<(PeerStream, bool)>) {
        let peer = connection.peer_id();
        match found {
            Some((stream, true)) => {
                // The member has made a new stream, so it has given the old one up.
                if let Some(number) = self.roster.linked(peer) {
                    self.part(peer, number);
                }
                if self.early.len() >= 2 * MAX_MEMBERS {
                    stream.refuse();
                    return;
                }
                self.streams += 1;
                let number = self.streams;
                self.early.insert(peer, (number, connection, stream));
                if !self.settle(peer) {
                    let late = Delay::new(MEETS).map(move |()| Some(Done::Late(peer, number)));
                    self.work.push(late.boxed());
                }
                return;
            }
            Some((stream, false)) => self.shared.tell_stranger(connection, stream),
            None => {}
        }
        if self.greets.of(peer).is_empty() {
            let next = self.roster.miss(peer, random());
            self.again(peer, next);
        }
    }

    /// Links a member that has opened the stream, or goes on with its attempt, if that can be told. Returns
    /// whether it is linked.
    fn settle(&mut self, peer: PeerId) -> bool {
        if !self.roster.contains(peer) || !self.shared.can_link(peer) {
            return false;
        }
        if let Some((_, connection, stream)) = self.early.remove(&peer) {
            return self.link(connection, stream);
        }
        if let Some(attempt) = self.held_back.remove(&peer) {
            self.reach(peer, attempt);
        }
        false
    }

    fn settle_all(&mut self) {
        let waiting = self.early.keys().chain(self.held_back.keys());
        let waiting: Vec<_> = waiting.copied().collect();
        for peer in waiting {
            self.settle(peer);
        }
    }

    /// There is a stream with a member, on which both have proved themselves or will do so at once.
    fn link(&mut self, connection: Connection, stream: PeerStream) -> bool {
        let peer = connection.peer_id();
        let members = self.room.members();
        let member = members.into_iter().find(|member| member.id == peer);
        // If it has just left the room, the room will say so.
        let Some(member) = member else {
            stream.refuse();
            return false;
        };
        let Some(number) = self.roster.link(peer, self.began.elapsed()) else {
            return false;
        };
        self.forget_attempt(peer);
        // From now on, the streams that the member opens are the application's.
        self.end_greets(peer);
        let messages = self.shared.link(member, number, connection.clone());
        let shared = self.shared.clone();
        let carried = async move {
            shared.carry(number, connection, stream, messages).await;
            Done::Ended(peer, number)
        };
        self.links.push(carried.boxed());
        true
    }

    /// A link has ended. The member is sought again if it is still there.
    fn part(&mut self, peer: PeerId, number: u64) {
        let now = self.began.elapsed();
        if let Some(next) = self.roster.unlink(peer, number, now, random()) {
            self.shared.part(peer);
            self.again(peer, Some(next));
        }
    }
}
