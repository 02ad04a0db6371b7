//! Full meshes: each member of a room is connected to every other.
//!
//! `link` is the stream between two members, `keeper` the task that makes the links, and `core::mesh` decides.

mod keeper;
mod link;

use std::{fmt, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    channel::oneshot,
    future::{Either, join_all, select},
    stream,
};
use futures_timer::Delay;

use self::{
    keeper::Keeper,
    link::{Message, Shared},
};
use crate::{
    backend::runtime,
    connection::Connection,
    connector::Connector,
    core::mesh::{MAX_MEMBERS, MeshKey},
    error::{Error, ErrorKind},
    identity::PeerId,
    room::{Member, Room, RoomOptions},
    stream::Stream as PeerStream,
};

/// The longest message.
const MAX_MESSAGE: usize = 64 * 1024;
/// How long a mesh may take to end that this peer has left.
const ENDS: Duration = Duration::from_secs(1);

/// A room in which each member is connected to every other, up to 32 of them. It sends a message to all with
/// one call. It is made by [`Mesh::join`].
///
/// The one with the lower id of two members dials the other. Both prove that they know the room's name and
/// secret before one counts as connected. Two that fail to meet try again, ever less often, at least twice a
/// minute.
///
/// While the mesh exists, it takes the connections that [`Connector::accept`] would return, and hands those on
/// whose first stream is not for a mesh, as [`MeshEvent::Stranger`]. A peer that is no member and opens no
/// stream for 10 s is let go. So are peers beyond 32 that have not opened one yet. A connector is in one mesh
/// at a time.
///
/// Read the [events](Self::next) in a task of their own: while nobody reads them, the members cannot send,
/// and whoever has gone is not connected again.
///
/// Pages have the same, as `throughline/mesh`, and meet programs there.
///
/// # Drop
/// When the last clone is dropped, the peer leaves the room. It does the same as [`leave`](Self::leave).
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
    shared: Arc<Shared>,
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
    /// A member has left the room, or is no longer connected. It is the last event of that member, after the
    /// messages that came whole. If it is still there, it is connected again once this is read.
    Left(PeerId),
    /// A member has sent a message. From when it is connected until it has left, the messages of one member
    /// come whole, once and in order. What it had not sent by then is lost.
    Message(PeerId, Vec<u8>),
    /// A member has sent a datagram.
    Datagram(PeerId, Vec<u8>),
    /// A peer has connected, and the first stream that it has opened is not for a mesh. It may be a member
    /// that is not connected yet.
    Stranger(Connection, PeerStream),
}

impl Mesh {
    /// Enters a room as [`Connector::join`] does, and connects to everybody there.
    ///
    /// # Errors
    /// Those of [`Connector::join`], and [`ErrorKind::LimitExceeded`] if 32 members are there, or if the
    /// connector is in another mesh. That is found out after a second, because one that was left just now may
    /// not have ended yet.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the room.
    pub async fn join(
        connector: &Connector,
        name: &str,
        options: RoomOptions,
    ) -> Result<Self, Error> {
        let turn = Box::pin(connector.mesh_turn());
        let Either::Left((turn, _)) = select(turn, Delay::new(ENDS)).await else {
            let why =
                "a connector is in one mesh at a time: take another connector for another mesh";
            return Err(Error::new(ErrorKind::LimitExceeded, why));
        };
        let key = MeshKey::new(&options.application, name, &options.secret);
        let room = connector.join(name, options).await?;
        if room.members().len() >= MAX_MEMBERS {
            let full = format!("a mesh has {MAX_MEMBERS} members at most");
            return Err(Error::new(ErrorKind::LimitExceeded, full));
        }
        let shared = Arc::new(Shared::new(connector, key));
        let (running, stop) = oneshot::channel();
        let keeper = Keeper::new(connector, &room, shared.clone());
        runtime::spawn(keeper.run(stop, turn));
        Ok(Self {
            room,
            shared,
            running: Arc::new(running),
        })
    }

    /// Waits for the next event. Clones share one queue. Returns `None` when this peer has left the room, or
    /// is closed. What was not read by then is dropped.
    ///
    /// Of each member, 4 messages wait, and up to 12 datagrams besides. What it shows waits once, as it is
    /// now. A member that has come and gone without a message is not told.
    ///
    /// # Cancel safety
    /// This is cancel safe: no event is lost.
    pub async fn next(&self) -> Option<MeshEvent> {
        self.shared.next().await
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
        self.shared.peers()
    }

    /// Returns the connection with a member, for streams of the application's own.
    pub fn connection(&self, peer: PeerId) -> Option<Connection> {
        self.shared.connection(peer)
    }

    /// Returns the room.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Sends a message of at most 64 KiB to every member that is connected. It waits while 16 messages wait
    /// for one of them. A member for which a message has waited for 10 s is disconnected, even if it takes
    /// some. So one that is slow holds the others up for 10 s at most.
    ///
    /// # Errors
    /// [`ErrorKind::LimitExceeded`] if the message is too long.
    ///
    /// # Cancel safety
    /// Dropping the future while it waits leaves out those members for which there was no room yet.
    pub async fn broadcast(&self, message: &[u8]) -> Result<(), Error> {
        let message = checked(message)?;
        let queues = self.shared.queues();
        let sends = queues.iter().map(|queue| queue.send(message.clone()));
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
        match self.shared.queue(peer) {
            Some(queue) => Ok(queue.send(message).await),
            None => Ok(false),
        }
    }

    /// Sends a datagram to every member that is connected, as [`Connection::send_datagram`] does to one. It
    /// waits for nothing, and may be lost. One of 1,120 bytes fits on every path, and a longer one goes only
    /// where it fits.
    pub fn send_datagram(&self, datagram: &[u8]) {
        self.shared.send_datagram(datagram);
    }

    /// Leaves the room. The others see that at once, and [`next`](Self::next) returns `None`. Messages that
    /// wait for members are still sent, for 20 s at most, and then the streams are closed. Connections stay as
    /// long as somebody has a handle.
    pub fn leave(&self) {
        self.room.leave();
        self.shared.end();
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("peers", &self.peers())
            .finish_non_exhaustive()
    }
}

/// Returns a message as it stands on a stream: behind its length, which has four bytes, the most significant
/// first.
fn checked(message: &[u8]) -> Result<Message, Error> {
    if message.len() > MAX_MESSAGE {
        let long = format!("a message to a mesh has {MAX_MESSAGE} bytes at most");
        return Err(Error::new(ErrorKind::LimitExceeded, long));
    }
    let length = (message.len() as u32).to_be_bytes();
    Ok([&length, message].concat().into())
}
