//! Rooms: peers that find each other by a name.

use std::{fmt, sync::Arc};

use futures::{Stream, StreamExt as _, stream};

#[cfg(doc)]
use crate::config::Config;
use crate::{
    attendance::Seat,
    connection::Connection,
    connector::Connector,
    core::room::{Change, MAX_DATA, RoomKeys},
    error::{Error, ErrorKind},
    identity::PeerId,
    ticket::Ticket,
};

/// A room that this peer is in, with the others that are there. It is made by [`Connector::join`].
///
/// Clones are the same member of the room.
///
/// # Drop
/// When the last clone is dropped, the peer leaves the room.
///
/// ```no_run
/// use futures::StreamExt as _;
/// use throughline::{Connector, Error, RoomEvent, RoomOptions};
///
/// async fn meet(me: &Connector, options: RoomOptions) -> Result<(), Error> {
///     let room = me.join("tea party", options).await?;
///     let mut events = room.events();
///     while let Some(event) = events.next().await {
///         if let RoomEvent::Joined(member) = event {
///             let _connection = room.connect(member.id).await?;
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Room {
    connector: Connector,
    seat: Arc<Seat>,
}

/// How a room is entered. The peers of one room give the same name, secret and application.
///
/// ```
/// use throughline::RoomOptions;
///
/// let mut options = RoomOptions::default();
/// options.secret = "5f0c8a63".into(); // whoever knows it can enter and see the others
/// options.data = b"Ada".to_vec();
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomOptions {
    /// The name of the application, so that others' rooms of the same name are other rooms. Defaults to
    /// an empty text.
    pub application: String,
    /// Who knows it can enter the room, see who is there, and read what they show. Relays do not learn
    /// it, but they can try guesses, so a secret of 16 random bytes or more keeps them out. Without a
    /// secret, the name takes its place. Defaults to an empty text.
    pub secret: String,
    /// What this member shows the others, at most 1,024 bytes. Defaults to nothing.
    pub data: Vec<u8>,
}

/// The secret is not shown.
impl fmt::Debug for RoomOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomOptions")
            .field("application", &self.application)
            .field("data", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Another peer in a room.
///
/// ```no_run
/// # fn show(room: &throughline::Room) {
/// for member in room.members() {
///     println!("{}: {} bytes", member.id, member.data.len());
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The peer, which has signed this.
    pub id: PeerId,
    /// What it shows.
    pub data: Vec<u8>,
}

/// A change in a room. Changes of one member that come faster than they are read become one.
///
/// ```
/// use throughline::RoomEvent;
///
/// fn tell(event: &RoomEvent) -> String {
///     match event {
///         RoomEvent::Joined(member) => format!("{} is here", member.id),
///         RoomEvent::Changed(member) => format!("{} shows {:?}", member.id, member.data),
///         RoomEvent::Left(peer) => format!("{peer} has gone"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomEvent {
    /// A peer has come, or was there before this one.
    Joined(Member),
    /// A member shows something else.
    Changed(Member),
    /// A member has left, or has not been heard of for 30 s.
    Left(PeerId),
}

impl Room {
    pub(crate) async fn join(
        connector: Connector,
        name: &str,
        options: RoomOptions,
    ) -> Result<Self, Error> {
        check_data(&options.data)?;
        let keys = RoomKeys::new(&options.application, name, &options.secret);
        let seat = Arc::new(connector.attend(keys, options.data).await?);
        seat.0.joined().await?;
        Ok(Self { connector, seat })
    }

    /// Returns the others that are in the room now, in no order.
    pub fn members(&self) -> Vec<Member> {
        let members = self.seat.0.members().into_iter();
        members.map(|(peer, data)| member(peer, data)).collect()
    }

    /// Waits for the next change in the room. The first ones tell who was there before. Clones share one
    /// queue. Returns `None` when this peer has left the room, or is closed.
    ///
    /// # Cancel safety
    /// This is cancel safe: no change is lost.
    pub async fn next(&self) -> Option<RoomEvent> {
        Some(match self.seat.0.next().await? {
            Change::Joined(peer, data) => RoomEvent::Joined(member(peer, data)),
            Change::Changed(peer, data) => RoomEvent::Changed(member(peer, data)),
            Change::Left(peer) => RoomEvent::Left(PeerId(peer)),
        })
    }

    /// Returns the changes that [`next`](Self::next) returns, as a stream. It keeps the peer in the room.
    pub fn events(&self) -> impl Stream<Item = RoomEvent> + Send + Unpin + use<> {
        let events = stream::unfold(self.clone(), |room| async move {
            let event = room.next().await?;
            Some((event, room))
        });
        events.boxed()
    }

    /// Shows the others something else from now on, at most 1,024 bytes. If it changes more often than
    /// twice a second for long, the others see some of the values.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if there is too much of it.
    pub fn show(&self, data: &[u8]) -> Result<(), Error> {
        check_data(data)?;
        self.seat.0.show(data);
        Ok(())
    }

    /// Connects to a member, as [`Connector::connect`] does with a peer's id.
    ///
    /// # Errors
    /// Those of [`Connector::connect`].
    ///
    /// # Cancel safety
    /// That of [`Connector::connect`].
    pub async fn connect(&self, member: PeerId) -> Result<Connection, Error> {
        self.connector.connect(&Ticket::from(member)).await
    }

    /// Leaves the room. The others see that at once. Connections to members stay.
    pub fn leave(&self) {
        self.seat.0.leave();
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("members", &self.members().len())
            .finish_non_exhaustive()
    }
}

fn member(peer: libp2p::PeerId, data: Vec<u8>) -> Member {
    Member {
        id: PeerId(peer),
        data,
    }
}

fn check_data(data: &[u8]) -> Result<(), Error> {
    if data.len() > MAX_DATA {
        let message = format!("data: a member of a room shows {MAX_DATA} bytes at most");
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    }
    Ok(())
}
