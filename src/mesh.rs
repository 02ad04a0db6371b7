//! Full meshes: each member of a room is connected to every other.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    AsyncWriteExt as _, FutureExt as _, SinkExt as _, Stream, StreamExt as _,
    channel::{mpsc, oneshot},
    future::{BoxFuture, Either, join_all, pending, select},
    stream::{self, BoxStream, FuturesUnordered},
};
use futures_timer::Delay;

use crate::{
    arriving,
    backend::runtime,
    connection::Connection,
    connector::Connector,
    core::backoff::Backoff,
    error::{Error, ErrorKind},
    identity::PeerId,
    room::{Member, Room, RoomEvent, RoomOptions},
    stream::{RecvStream, SendStream, Stream as PeerStream},
};

/// The protocol of the stream between two members. Each message stands behind its length, which has four
/// bytes, the most significant first.
const PROTOCOL: &str = "throughline-mesh/1";
/// The most members of a mesh. Each sends everything to all others, so more would take a lot of a home's
/// upstream.
const MAX_MEMBERS: usize = 32;
/// The longest message.
const MAX_MESSAGE: usize = 64 * 1024;
/// How many messages wait for one member.
const QUEUE: usize = 16;
/// How many events wait for the application.
const EVENTS: usize = 64;
/// How long a member may take to take a message. Whoever takes nothing is left out, so that the others do
/// not wait for it.
const TAKES: Duration = Duration::from_secs(10);
/// How long a member that has opened the stream may take to be seen in the room. After that time, a member
/// that should have been dialled by the other one dials by itself.
const MEETS: Duration = Duration::from_secs(10);
/// The pauses after a failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A room in which each member is connected to every other, up to 32 of them. It sends a message to all with
/// one call. It is made by [`Mesh::join`].
///
/// The one with the lower id of two members dials the other. While the mesh exists, it takes the connections
/// that [`Connector::accept`] would return, and hands those on whose first stream is not for the mesh, as
/// [`MeshEvent::Stranger`]. Read the [events](Self::next) in a task of their own: while nobody reads them,
/// the members cannot send.
///
/// Pages have the same, as `throughline/mesh`, and meet programs there.
///
/// # Drop
/// When the last clone is dropped, the peer leaves the room and closes the streams to the members.
///
/// ```no_run
/// use throughline::{Connector, Error, Mesh, MeshEvent, RoomOptions};
///
/// async fn chat(me: &Connector, options: RoomOptions) -> Result<(), Error> {
///     let mesh = Mesh::join(me, "tea party", options).await?;
///     while let Some(event) = mesh.next().await {
///         match event {
///             MeshEvent::Joined(_) => mesh.broadcast(b"hello").await?,
///             MeshEvent::Message(from, text) => println!("{from}: {text:?}"),
///             _ => {}
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Mesh {
    room: Room,
    links: Links,
    events: Arc<futures::lock::Mutex<mpsc::Receiver<MeshEvent>>>,
    #[expect(dead_code, reason = "its drop ends the task")]
    running: Arc<oneshot::Sender<()>>,
}

/// What happens in a mesh.
///
/// ```
/// use throughline::MeshEvent;
///
/// fn tell(event: &MeshEvent) -> String {
///     match event {
///         MeshEvent::Joined(member) => format!("{} is here", member.id),
///         MeshEvent::Changed(member) => format!("{} shows {:?}", member.id, member.data),
///         MeshEvent::Left(peer) => format!("{peer} has gone"),
///         MeshEvent::Message(peer, bytes) => format!("{peer} says {bytes:?}"),
///         MeshEvent::Datagram(peer, bytes) => format!("{peer} sends {bytes:?}"),
///         MeshEvent::Stranger(other, _) => format!("{} wants something else", other.peer_id()),
///     }
/// }
/// ```
#[derive(Debug)]
pub enum MeshEvent {
    /// A member is connected.
    Joined(Member),
    /// A member that is connected shows something else in the room.
    Changed(Member),
    /// A member has left the room, or is no longer connected. If it is still there, it is connected again.
    Left(PeerId),
    /// A member has sent a message. The messages of one member come whole, once and in order.
    Message(PeerId, Vec<u8>),
    /// A member has sent a datagram.
    Datagram(PeerId, Vec<u8>),
    /// A peer has connected, and the first stream that it has opened is not for the mesh.
    Stranger(Connection, PeerStream),
}

impl Mesh {
    /// Enters a room as [`Connector::join`] does, and connects to everybody there.
    ///
    /// # Errors
    /// Those of [`Connector::join`], and [`ErrorKind::LimitExceeded`] if 32 members are there.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the room.
    pub async fn join(
        connector: &Connector,
        name: &str,
        options: RoomOptions,
    ) -> Result<Self, Error> {
        let room = connector.join(name, options).await?;
        if room.members().len() >= MAX_MEMBERS {
            let full = format!("a mesh has {MAX_MEMBERS} members at most");
            return Err(Error::new(ErrorKind::LimitExceeded, full));
        }
        let links = Links::default();
        let (events, read) = mpsc::channel(EVENTS);
        let (running, stop) = oneshot::channel();
        runtime::spawn(Task::new(connector, &room, links.clone(), events).run(stop));
        Ok(Self {
            room,
            links,
            events: Arc::new(futures::lock::Mutex::new(read)),
            running: Arc::new(running),
        })
    }

    /// Waits for the next event. Clones share one queue. Returns `None` when this peer has left the room, or
    /// is closed.
    ///
    /// # Cancel safety
    /// This is cancel safe: no event is lost.
    pub async fn next(&self) -> Option<MeshEvent> {
        self.events.lock().await.next().await
    }

    /// Returns the events that [`next`](Self::next) returns, as a stream. It keeps the mesh.
    pub fn events(&self) -> impl Stream<Item = MeshEvent> + Send + Unpin + use<> {
        let events = stream::unfold(self.clone(), |mesh| async move {
            let event = mesh.next().await?;
            Some((event, mesh))
        });
        events.boxed()
    }

    /// Returns the ids of the members that are connected, in their order.
    pub fn peers(&self) -> Vec<PeerId> {
        self.links.lock().keys().copied().collect()
    }

    /// Returns the connection with a member, for streams of the application's own.
    pub fn connection(&self, peer: PeerId) -> Option<Connection> {
        let links = self.links.lock();
        links.get(&peer).map(|link| link.connection.clone())
    }

    /// Returns the room.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Sends a message of at most 64 KiB to every member that is connected. It waits while 16 messages wait
    /// for one of them. A member that takes nothing for 10 s is disconnected.
    ///
    /// # Errors
    /// [`ErrorKind::LimitExceeded`] if the message is too long.
    ///
    /// # Cancel safety
    /// Dropping the future while it waits leaves out those members for which there was no room yet.
    pub async fn broadcast(&self, message: &[u8]) -> Result<(), Error> {
        let message = checked(message)?;
        let queues: Vec<_> = {
            let links = self.links.lock();
            links.values().map(|link| link.queue.clone()).collect()
        };
        let sends = queues.into_iter().map(|mut queue| {
            let message = message.clone();
            // Who has gone gets nothing.
            async move { _ = queue.send(message).await }
        });
        join_all(sends).await;
        Ok(())
    }

    /// Sends a message to one member, as [`broadcast`](Self::broadcast) does to all. Returns whether the
    /// member is connected.
    ///
    /// # Errors
    /// [`ErrorKind::LimitExceeded`] if the message is too long.
    ///
    /// # Cancel safety
    /// Dropping the future while it waits sends nothing.
    pub async fn send(&self, peer: PeerId, message: &[u8]) -> Result<bool, Error> {
        let message = checked(message)?;
        let queue = {
            let links = self.links.lock();
            links.get(&peer).map(|link| link.queue.clone())
        };
        match queue {
            Some(mut queue) => Ok(queue.send(message).await.is_ok()),
            None => Ok(false),
        }
    }

    /// Sends a datagram to every member that is connected, as [`Connection::send_datagram`] does to one. It
    /// waits for nothing, and may be lost. One of 1,120 bytes fits on every path, and a longer one goes only
    /// where it fits.
    pub fn send_datagram(&self, datagram: &[u8]) {
        for link in self.links.lock().values() {
            // It is lost for this member.
            let _ = link.connection.send_datagram(datagram);
        }
    }

    /// Leaves the room. The others see that at once, and the streams to the members are closed.
    pub fn leave(&self) {
        self.room.leave();
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("peers", &self.peers())
            .finish_non_exhaustive()
    }
}

type Message = Arc<[u8]>;

/// Returns a message as it stands on a stream.
fn checked(message: &[u8]) -> Result<Message, Error> {
    if message.len() > MAX_MESSAGE {
        let long = format!("a message to a mesh has {MAX_MESSAGE} bytes at most");
        return Err(Error::new(ErrorKind::LimitExceeded, long));
    }
    let length = (message.len() as u32).to_be_bytes();
    Ok([&length, message].concat().into())
}

/// A member that is connected.
struct Link {
    number: u64,
    queue: mpsc::Sender<Message>,
    connection: Connection,
}

/// The members that are connected, in the order of their ids.
#[derive(Clone, Default)]
struct Links(Arc<Mutex<BTreeMap<PeerId, Link>>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Link>> {
        // Each change is done when the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the link with a member.
    fn is(&self, peer: PeerId, number: u64) -> bool {
        let links = self.lock();
        links.get(&peer).is_some_and(|link| link.number == number)
    }
}

/// A member of the room.
struct Known {
    member: Member,
    backoff: Backoff,
}

/// What something that the task has begun came to.
enum Done {
    /// A member was dialled. If this peer is the one that dials, there is a stream with it.
    Reached(PeerId, Option<(Connection, Option<PeerStream>)>),
    /// A peer that has connected has opened its first stream, or none.
    Greeted(Connection, Option<PeerStream>),
    /// A peer that has opened the stream was to be seen in the room by now.
    Late(PeerId),
    /// The link with this number has ended.
    Ended(PeerId, u64),
}

enum Input {
    Change(RoomEvent),
    Incoming(Connection),
    Done(Done),
    Over,
}

/// What keeps the mesh: it dials, greets, and moves the messages.
struct Task {
    /// The id as text, which two members compare. A page has no other form.
    own: String,
    room: Room,
    changes: BoxStream<'static, RoomEvent>,
    incoming: BoxStream<'static, Connection>,
    members: HashMap<PeerId, Known>,
    /// Those whose first stream is awaited, and over how many connections.
    greeted: HashMap<PeerId, usize>,
    /// Those that have opened the stream and are not seen in the room yet.
    early: HashMap<PeerId, (Connection, PeerStream)>,
    links: Links,
    made: u64,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    events: mpsc::Sender<MeshEvent>,
    /// Events for which there was no room yet.
    untold: VecDeque<MeshEvent>,
}

impl Task {
    fn new(
        connector: &Connector,
        room: &Room,
        links: Links,
        events: mpsc::Sender<MeshEvent>,
    ) -> Self {
        let incoming = stream::unfold(connector.clone(), |connector| async move {
            let connection = connector.accept().await?;
            Some((connection, connector))
        });
        Self {
            own: connector.peer_id().to_string(),
            room: room.clone(),
            changes: room.events().boxed(),
            incoming: incoming.boxed(),
            members: HashMap::new(),
            greeted: HashMap::new(),
            early: HashMap::new(),
            links,
            made: 0,
            work: FuturesUnordered::new(),
            events,
            untold: VecDeque::new(),
        }
    }

    /// Keeps the mesh until this peer has left the room, or the last handle is gone.
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            match poll_fn(|cx| self.poll_input(&mut stop, cx)).await {
                Input::Change(change) => self.on_change(change),
                Input::Incoming(connection) => self.greet(connection),
                Input::Done(done) => self.on_done(done),
                Input::Over => break,
            }
        }
        self.links.lock().clear();
    }

    fn poll_input(
        &mut self,
        stop: &mut oneshot::Receiver<()>,
        cx: &mut Context<'_>,
    ) -> Poll<Input> {
        while !self.untold.is_empty() {
            match self.events.poll_ready(cx) {
                Poll::Ready(Ok(())) => {
                    // There is room, and it is told to nobody if no handle is left.
                    if let Some(event) = self.untold.pop_front() {
                        let _ = self.events.start_send(event);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Input::Over),
                Poll::Pending => break,
            }
        }
        if Pin::new(stop).poll(cx).is_ready() {
            return Poll::Ready(Input::Over);
        }
        if let Poll::Ready(Some(done)) = self.work.poll_next_unpin(cx) {
            return Poll::Ready(Input::Done(done));
        }
        if self.untold.len() >= EVENTS {
            return Poll::Pending;
        }
        if let Poll::Ready(change) = self.changes.poll_next_unpin(cx) {
            return Poll::Ready(change.map_or(Input::Over, Input::Change));
        }
        let incoming = self.incoming.poll_next_unpin(cx);
        incoming.map(|connection| connection.map_or(Input::Over, Input::Incoming))
    }

    fn on_change(&mut self, change: RoomEvent) {
        match change {
            RoomEvent::Joined(_) => self.admit(),
            RoomEvent::Changed(member) => {
                let is_linked = self.links.lock().contains_key(&member.id);
                if let Some(known) = self.members.get_mut(&member.id) {
                    known.member = member.clone();
                    if is_linked {
                        self.untold.push_back(MeshEvent::Changed(member));
                    }
                }
            }
            RoomEvent::Left(peer) => {
                self.members.remove(&peer);
                self.part(peer);
                self.admit();
            }
        }
    }

    /// Takes those into the mesh for whom there is room.
    fn admit(&mut self) {
        for member in self.room.members() {
            let peer = member.id;
            if self.members.contains_key(&peer) || self.members.len() >= MAX_MEMBERS - 1 {
                continue;
            }
            let (first, most) = AGAIN;
            let backoff = Backoff::new(first, most);
            self.members.insert(peer, Known { member, backoff });
            if let Some((connection, stream)) = self.early.remove(&peer) {
                self.link(connection, stream);
            } else {
                let pause = match self.dials(peer) {
                    true => Duration::ZERO,
                    false => MEETS,
                };
                self.seek(peer, pause);
            }
        }
    }

    /// Whether this peer is the one of the two that dials.
    fn dials(&self, peer: PeerId) -> bool {
        self.own < peer.to_string()
    }

    /// Connects to a member after a pause. The one that dials opens the stream.
    fn seek(&self, peer: PeerId, pause: Duration) {
        let (room, dials) = (self.room.clone(), self.dials(peer));
        let sought = async move {
            Delay::new(pause).await;
            let connection = room.connect(peer).await.ok()?;
            let stream = match dials {
                true => Some(connection.open(PROTOCOL).await.ok()?),
                false => None,
            };
            Some((connection, stream))
        };
        let reached = sought.map(move |found| Done::Reached(peer, found));
        self.work.push(reached.boxed());
    }

    /// Seeks a member again, after a pause.
    fn seek_again(&mut self, peer: PeerId) {
        let is_linked = self.links.lock().contains_key(&peer);
        if let Some(known) = self.members.get_mut(&peer).filter(|_| !is_linked) {
            let pause = known.backoff.fail(0.5);
            self.seek(peer, pause);
        }
    }

    /// Waits for the first stream that the other end of a connection opens.
    fn greet(&mut self, connection: Connection) {
        *self.greeted.entry(connection.peer_id()).or_default() += 1;
        let greeted = async move {
            let stream = connection.accept_stream().await;
            Done::Greeted(connection, stream.map(|(_, stream)| stream))
        };
        self.work.push(greeted.boxed());
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Reached(peer, None) => self.seek_again(peer),
            Done::Reached(_, Some((connection, Some(stream)))) => self.link(connection, stream),
            Done::Reached(peer, Some((connection, None))) => {
                let is_linked = self.links.lock().contains_key(&peer);
                let is_awaited = is_linked || self.greeted.contains_key(&peer);
                if self.members.contains_key(&peer) && !is_awaited {
                    self.greet(connection);
                }
            }
            Done::Greeted(connection, stream) => {
                let peer = connection.peer_id();
                match self.greeted.get_mut(&peer) {
                    Some(others) if *others > 1 => *others -= 1,
                    _ => _ = self.greeted.remove(&peer),
                }
                match stream {
                    None => self.seek_again(peer),
                    Some(stream) if stream.protocol() != PROTOCOL => {
                        let stranger = MeshEvent::Stranger(connection, stream);
                        self.untold.push_back(stranger);
                    }
                    Some(stream) if self.members.contains_key(&peer) => {
                        self.link(connection, stream);
                    }
                    Some(stream) if self.early.len() < MAX_MEMBERS => {
                        self.early.insert(peer, (connection, stream));
                        let late = Delay::new(MEETS).map(move |()| Done::Late(peer));
                        self.work.push(late.boxed());
                    }
                    Some(stream) => {
                        stream.refuse();
                        self.greet(connection);
                    }
                }
            }
            Done::Late(peer) => {
                if let Some((connection, stream)) = self.early.remove(&peer) {
                    stream.refuse();
                    self.greet(connection);
                }
            }
            Done::Ended(peer, number) => {
                if self.links.is(peer, number) {
                    self.part(peer);
                    self.seek_again(peer);
                }
            }
        }
    }

    /// There is a stream with a member.
    fn link(&mut self, connection: Connection, stream: PeerStream) {
        let peer = connection.peer_id();
        let Some(known) = self.members.get_mut(&peer) else {
            return;
        };
        known.backoff.reset();
        self.made += 1;
        let (queue, messages) = mpsc::channel(QUEUE);
        let link = Link {
            number: self.made,
            queue,
            connection: connection.clone(),
        };
        if self.links.lock().insert(peer, link).is_none() {
            let joined = MeshEvent::Joined(known.member.clone());
            self.untold.push_back(joined);
        }
        let (number, events) = (self.made, self.events.clone());
        let carried = carry(connection, stream, messages, events);
        let ended = carried.map(move |()| Done::Ended(peer, number));
        self.work.push(ended.boxed());
    }

    /// A member is no longer connected.
    fn part(&mut self, peer: PeerId) {
        if self.links.lock().remove(&peer).is_some() {
            self.untold.push_back(MeshEvent::Left(peer));
        }
    }
}

/// Moves messages and datagrams until the stream has ended, or the member is left out.
async fn carry(
    connection: Connection,
    stream: PeerStream,
    messages: mpsc::Receiver<Message>,
    events: mpsc::Sender<MeshEvent>,
) {
    let peer = connection.peer_id();
    let (send, recv) = stream.split();
    let told = Box::pin(tell(send, messages));
    let heard = Box::pin(hear(recv, peer, events.clone()));
    let arrive = Box::pin(receive(connection, peer, events));
    select(select(told, heard), arrive).await;
}

async fn tell(mut stream: SendStream, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.next().await {
        let sent = stream.write_all(&message);
        match select(sent, Delay::new(TAKES)).await {
            Either::Left((Ok(()), _)) => {}
            _ => return,
        }
    }
    let _ = stream.close().await;
}

async fn hear(mut stream: RecvStream, peer: PeerId, mut events: mpsc::Sender<MeshEvent>) {
    while let Ok(length) = arriving::read(&mut stream, 4).await {
        let length = length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if length > MAX_MESSAGE {
            return;
        }
        let Ok(message) = arriving::read(&mut stream, length).await else {
            return;
        };
        if events
            .send(MeshEvent::Message(peer, message))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn receive(connection: Connection, peer: PeerId, mut events: mpsc::Sender<MeshEvent>) {
    let mut datagrams = connection.datagrams();
    while let Some(datagram) = datagrams.next().await {
        // While nobody reads, datagrams are lost.
        let _ = events.try_send(MeshEvent::Datagram(peer, datagram));
    }
    pending::<()>().await;
}
