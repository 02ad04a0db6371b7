//! The stream between two members, and what the handles of a mesh share with its task.
//!
//! Whoever has the lower id opens the stream and writes its proof. The other one takes the stream by writing
//! its own. Then both send messages.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    AsyncWriteExt as _, StreamExt as _,
    future::{Either, pending, select},
};
use futures_timer::Delay;
use tokio::sync::{Notify, mpsc, watch};
use web_time::Instant;

use super::{MAX_MESSAGE, MeshEvent};
use crate::{
    arriving,
    connection::Connection,
    connector::Connector,
    core::mesh::{Inbox, MeshKey, News, PROOF},
    identity::PeerId,
    room::{Member, Room},
    stream::{RecvStream, SendStream, Stream as PeerStream},
};

/// The protocol of the stream between two members: the proof, then messages.
const PROTOCOL: &str = "throughline-mesh/1";
/// How many messages wait for one member.
const QUEUE: usize = 16;
/// How long a message may wait for a member. The others do not wait longer for it.
const TAKES: Duration = Duration::from_secs(10);
/// How long a member that has opened the stream may take to prove itself.
const PROVES: Duration = Duration::from_secs(10);
/// How long a member may take to answer. It waits for `MEETS` until it sees who asks.
const ANSWERS: Duration = Duration::from_secs(20);

/// A message behind its length.
pub(super) type Message = Arc<[u8]>;

/// What waits for one member, and since when.
#[derive(Clone)]
pub(super) struct Queue(mpsc::Sender<(Instant, Message)>);

impl Queue {
    /// Waits for room. Returns whether the member is connected.
    pub(super) async fn send(&self, message: Message) -> bool {
        let room = self.0.reserve().await;
        room.map(|room| room.send((Instant::now(), message)))
            .is_ok()
    }
}

struct Link {
    number: u64,
    queue: Queue,
    connection: Connection,
}

#[derive(Default)]
struct State {
    links: BTreeMap<PeerId, Link>,
    inbox: Inbox<PeerId>,
    strangers: VecDeque<(Connection, PeerStream)>,
    is_over: bool,
}

/// What the handles of a mesh share with its task.
pub(super) struct Shared {
    key: MeshKey,
    own: String,
    state: Mutex<State>,
    /// Tells that something can be read, or was.
    changed: watch::Sender<()>,
    /// Tells the task that there is room for what it holds back.
    freed: Notify,
}

impl Shared {
    pub(super) fn new(connector: &Connector, key: MeshKey) -> Self {
        Self {
            key,
            // Two members compare their ids as text, because a page has no other form.
            own: connector.peer_id().to_string(),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            freed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is done when the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.send_replace(());
        changed
    }

    /// Waits until `look` returns something.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            // The sender is here.
            let _ = changed.changed().await;
        }
    }

    pub(super) async fn next(&self) -> Option<MeshEvent> {
        let event = self
            .until(|state| match state.is_over {
                true => Some(None),
                false => state.next().map(Some),
            })
            .await;
        self.changed.send_replace(());
        if matches!(event, Some(MeshEvent::Left(_) | MeshEvent::Stranger(..))) {
            self.freed.notify_one();
        }
        event
    }

    /// Waits until what the task holds back may find room.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.lock().links.keys().copied().collect()
    }

    pub(super) fn connection(&self, peer: PeerId) -> Option<Connection> {
        let state = self.lock();
        state.links.get(&peer).map(|link| link.connection.clone())
    }

    pub(super) fn queue(&self, peer: PeerId) -> Option<Queue> {
        let state = self.lock();
        state.links.get(&peer).map(|link| link.queue.clone())
    }

    pub(super) fn queues(&self) -> Vec<Queue> {
        let state = self.lock();
        state
            .links
            .values()
            .map(|link| link.queue.clone())
            .collect()
    }

    pub(super) fn send_datagram(&self, datagram: &[u8]) {
        for link in self.lock().links.values() {
            // It is lost for this member.
            let _ = link.connection.send_datagram(datagram);
        }
    }

    /// This peer has left, or the connector is closed.
    pub(super) fn end(&self) {
        self.change(|state| {
            *state = State {
                is_over: true,
                ..State::default()
            };
        });
    }

    /// Whether a link with this member can be told.
    pub(super) fn can_link(&self, peer: PeerId) -> bool {
        let state = self.lock();
        !state.is_over && state.inbox.can_open(peer)
    }

    /// There is a stream with a member. Returns what is to be sent to it.
    pub(super) fn link(
        &self,
        member: Member,
        number: u64,
        connection: Connection,
    ) -> mpsc::Receiver<(Instant, Message)> {
        let (queue, messages) = mpsc::channel(QUEUE);
        let link = Link {
            number,
            queue: Queue(queue),
            connection,
        };
        self.change(|state| {
            if !state.is_over {
                state.links.insert(member.id, link);
                state.inbox.open(member.id, number, member.data);
            }
        });
        messages
    }

    /// A member shows something else.
    pub(super) fn show(&self, member: Member) {
        self.change(|state| state.inbox.show(member.id, member.data));
    }

    /// A member is no longer connected.
    pub(super) fn part(&self, peer: PeerId) {
        self.change(|state| {
            if state.links.remove(&peer).is_some() {
                state.inbox.close(peer);
            }
        });
    }

    fn is_linked(&self, peer: PeerId, number: u64) -> bool {
        let state = self.lock();
        let link = state.links.get(&peer);
        link.is_some_and(|link| link.number == number)
    }

    /// A peer wants something else.
    pub(super) fn tell_stranger(&self, connection: Connection, stream: PeerStream) {
        self.change(|state| {
            if !state.is_over {
                state.strangers.push_back((connection, stream));
            }
        });
    }

    /// Returns how many strangers nobody has read of.
    pub(super) fn strangers(&self) -> usize {
        self.lock().strangers.len()
    }

    /// Whether this peer is the one of the two that dials.
    pub(super) fn dials(&self, peer: PeerId) -> bool {
        self.own < peer.to_string()
    }

    fn proof_for(&self, peer: PeerId) -> [u8; PROOF] {
        self.key.proof(&self.own, &peer.to_string())
    }

    /// Whether the peer writes its proof in time.
    async fn hears_proof(&self, stream: &mut PeerStream, peer: PeerId, within: Duration) -> bool {
        let read = Box::pin(arriving::read(stream, PROOF));
        match select(read, Delay::new(within)).await {
            Either::Left((Ok(bytes), _)) => self.key.is_proof(&peer.to_string(), &self.own, &bytes),
            _ => false,
        }
    }

    /// Connects to a member. The one that dials opens the stream, and waits until the other takes it.
    pub(super) async fn reach(
        &self,
        room: Room,
        peer: PeerId,
    ) -> Option<(Connection, Option<PeerStream>)> {
        let connection = room.connect(peer).await.ok()?;
        if !self.dials(peer) {
            return Some((connection, None));
        }
        let mut stream = connection.open(PROTOCOL).await.ok()?;
        // The window of a new stream takes this at once.
        stream.write_all(&self.proof_for(peer)).await.ok()?;
        if self.hears_proof(&mut stream, peer, ANSWERS).await {
            return Some((connection, Some(stream)));
        }
        // Otherwise the other one could still take it.
        stream.reset(0);
        None
    }

    /// Waits for the first stream that the other end of a connection opens. Returns whether it is for this
    /// mesh. Streams for another mesh are refused.
    pub(super) async fn greet(&self, connection: &Connection) -> Option<(PeerStream, bool)> {
        loop {
            let (protocol, mut stream) = connection.accept_stream().await?;
            if protocol != PROTOCOL {
                return Some((stream, false));
            }
            let peer = connection.peer_id();
            if !self.dials(peer) && self.hears_proof(&mut stream, peer, PROVES).await {
                return Some((stream, true));
            }
            stream.refuse();
        }
    }

    /// Moves messages and datagrams until the stream has ended, or the member is left out. If this peer parts,
    /// what waits for the member is still sent.
    pub(super) async fn carry(
        &self,
        number: u64,
        connection: Connection,
        stream: PeerStream,
        messages: mpsc::Receiver<(Instant, Message)>,
    ) {
        let peer = connection.peer_id();
        let (send, recv) = stream.split();
        let takes = (!self.dials(peer)).then(|| self.proof_for(peer));
        let told = Box::pin(tell(send, takes, messages));
        let heard = Box::pin(self.hear(recv, peer, number));
        let arrive = Box::pin(self.receive(connection, peer, number));
        match select(told, select(heard, arrive)).await {
            Either::Right((_, told)) if !self.is_linked(peer, number) => told.await,
            _ => {}
        }
    }

    async fn hear(&self, mut stream: RecvStream, peer: PeerId, number: u64) {
        // A length alone costs nothing, because memory is taken for what has arrived.
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
            let mut message = Some(message);
            let put = |state: &mut State| match state.inbox.has_room(peer, number) {
                None => Some(false),
                Some(true) => {
                    state.inbox.put(peer, message.take()?);
                    Some(true)
                }
                Some(false) => None,
            };
            if !self.until(put).await {
                return;
            }
            self.changed.send_replace(());
        }
    }

    async fn receive(&self, connection: Connection, peer: PeerId, number: u64) {
        let mut datagrams = connection.datagrams();
        drop(connection);
        while let Some(datagram) = datagrams.next().await {
            self.change(|state| state.inbox.put_datagram(peer, number, datagram));
        }
        pending::<()>().await;
    }
}

impl State {
    fn next(&mut self) -> Option<MeshEvent> {
        if let Some((connection, stream)) = self.strangers.pop_front() {
            return Some(MeshEvent::Stranger(connection, stream));
        }
        Some(match self.inbox.next()? {
            News::Joined(id, data) => MeshEvent::Joined(Member { id, data }),
            News::Changed(id, data) => MeshEvent::Changed(Member { id, data }),
            News::Message(peer, message) => MeshEvent::Message(peer, message),
            News::Datagram(peer, datagram) => MeshEvent::Datagram(peer, datagram),
            News::Left(peer) => MeshEvent::Left(peer),
        })
    }
}

/// Sends what waits for a member until this peer parts from it, or a message has waited too long.
async fn tell(
    mut stream: SendStream,
    takes: Option<[u8; PROOF]>,
    mut messages: mpsc::Receiver<(Instant, Message)>,
) {
    if let Some(proof) = takes
        && !is_sent(&mut stream, &proof, TAKES).await
    {
        return;
    }
    while let Some((since, message)) = messages.recv().await {
        let left = TAKES.saturating_sub(since.elapsed());
        if !is_sent(&mut stream, &message, left).await {
            return;
        }
    }
    // What the member does not take is dropped.
    let _ = select(stream.close(), Delay::new(TAKES)).await;
}

async fn is_sent(stream: &mut SendStream, bytes: &[u8], within: Duration) -> bool {
    let is_sent = matches!(
        select(stream.write_all(bytes), Delay::new(within)).await,
        Either::Left((Ok(()), _))
    );
    if !is_sent {
        // A part of a message is of no use.
        stream.reset(0);
    }
    is_sent
}
