//! The entry to the library: a peer that connects to others, and to which others connect.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, broadcast, mpsc, oneshot};

#[cfg(doc)]
use crate::error::ErrorKind;
use crate::{
    attendance::Seat,
    backend::{trace, transports::LISTENS},
    config::{Config, RelayTokens, TurnServer, check_protocol},
    connection::Connection,
    core::{room::RoomKeys, site::RelayText},
    error::Error,
    event::{ConnectorEvent, ConnectorEvents},
    identity::{Identity, PeerId},
    node::{self, Command, Shared, closed},
    offer::is_sealable,
    report::Report,
    room::{Room, RoomOptions},
    status::{Status, StatusChanges},
    stream::Stream,
    ticket::Ticket,
};

/// One peer: an identity, its listeners and reservations, and its connections.
///
/// A clone is cheap, and every clone is the same peer.
///
/// # Drop
/// When the last clone and the last [`Connection`] are dropped, the peer stops: its reservations
/// end and its sockets close. [`Connector::close`] stops the peer at once and tells the other
/// peers.
///
/// ```no_run
/// use futures::{AsyncReadExt as _, AsyncWriteExt as _};
/// use throughline::{Connector, Error, Ticket};
///
/// async fn greet(relay: &str, ticket: &Ticket) -> Result<String, Error> {
///     let me = Connector::builder().relay(relay).bind().await?;
///     let (_connection, mut stream) = me.open(ticket, "greeting/1").await?;
///     stream.write_all(b"hello").await?;
///     stream.close().await?;
///     let mut answer = String::new();
///     stream.read_to_string(&mut answer).await?;
///     me.close().await;
///     Ok(answer)
/// }
/// ```
#[derive(Clone)]
pub struct Connector {
    commands: mpsc::Sender<Command>,
    incoming: Arc<Mutex<mpsc::Receiver<Connection>>>,
    shared: Arc<Shared>,
    /// Whoever has it takes the incoming connections for a mesh.
    meshes: Arc<Mutex<()>>,
}

impl Connector {
    /// Starts the configuration of a new peer.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the id of this peer.
    pub fn peer_id(&self) -> PeerId {
        self.shared.peer_id
    }

    /// Returns a ticket, by which others can reach this peer now. It has the relays that hold a
    /// reservation for this peer, and the peer's own addresses. It changes with the network, and
    /// [`status_changes`](Self::status_changes) tells when.
    ///
    /// If the peer keeps its identity, the ticket also leads to later runs of the peer. Nothing can
    /// be sealed for a later run, so a connect with an old ticket waits for a circuit first.
    pub fn ticket(&self) -> Ticket {
        self.shared.ticket()
    }

    /// Returns a ticket that is short enough for a business card or a QR code: this peer's id, and up to
    /// two of the relays that hold a reservation. It leads to this peer for as long as it uses one of
    /// these relays, and to later runs as well. Whoever has it looks the rest up at the relay, while it
    /// makes the circuit, so that takes no longer. If the relay is not one of `throughline serve`, or if
    /// [`Config::directory`] is `false`, the paths are found over the circuit, as with a stock peer.
    ///
    /// A relay that the user has configured by name stands by that name. Any other one stands by one of
    /// its addresses, so whoever cannot dial that address, such as a page that came over https, needs
    /// [`ticket`](Self::ticket), which has all of them.
    pub fn short_ticket(&self) -> Ticket {
        let relays = self.status().relays;
        let name_of = |peer: &libp2p::PeerId| {
            let mut named = relays.iter();
            let relay = named.find(|relay| relay.peer_id == peer.to_string())?;
            // Nobody asks a stranger's site without https, or one on this machine.
            let name = relay.name.clone()?;
            let site = name.parse().ok().and_then(RelayText::into_site)?;
            site.is_for_strangers().then_some(name)
        };
        self.shared.ticket().shortened(name_of)
    }

    /// Connects to the peer that `ticket` names and returns on the first authenticated path.
    ///
    /// All ways that the ticket and the configuration allow are tried at once, except that the
    /// second and later relays start a little later. Attempts that lose are cancelled. The first
    /// path usually is a relay circuit. The connector then looks for a better path in the
    /// background, and [`Connection::path_events`] reports it. If there is a connection to the peer
    /// already, that connection is returned.
    ///
    /// Beside that, the peer is looked up at the relays of the ticket and at those of the configuration. So
    /// a peer that has moved since is found, and [`Ticket::from`] a peer id is enough for a peer that uses
    /// one of our relays.
    ///
    /// # Errors
    /// - [`ErrorKind::NoRelay`] if the ticket names no relay and no address, and no relay is configured.
    /// - [`ErrorKind::Unreachable`], with every attempt, if no path came up within
    ///   [`Config::connect_timeout`].
    /// - [`ErrorKind::WrongPeer`] if another peer answered.
    /// - [`ErrorKind::LimitExceeded`] beyond [`Config::max_connections`], and if a limit closes
    ///   every way to the peer.
    /// - [`ErrorKind::AccessDenied`] or [`ErrorKind::QuotaExceeded`] if that is so at every relay.
    /// - [`ErrorKind::ConnectorClosed`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the connect. Its attempts are cancelled, unless another connect
    /// to the same peer waits for them.
    pub async fn connect(&self, ticket: &Ticket) -> Result<Connection, Error> {
        let span = trace::connection(&ticket.peer_id().0);
        span.in_scope(|| tracing::info!("connecting"));
        let mut abandoned = Abandoned {
            commands: &self.commands,
            peer: Some(ticket.peer_id()),
        };
        let (reply, answer) = oneshot::channel();
        self.command(Command::Connect {
            ticket: ticket.clone(),
            reply,
        })
        .await?;
        let answer = answer.await.unwrap_or_else(|_| Err(closed()));
        abandoned.peer = None;
        span.in_scope(|| match &answer {
            Ok(_) => tracing::info!("connected"),
            Err(error) => tracing::info!(code = error.code(), "not connected"),
        });
        answer
    }

    /// Opens a stream for `protocol` to the peer that `ticket` names, and does not wait for a path.
    ///
    /// The bytes that are written at once are *early data*: they travel beside the requests that
    /// make the connection. The first answer is back after one round trip through the relay, where
    /// [`connect`](Self::connect) and [`Connection::open`] take two. Early data needs a link to a
    /// relay of `throughline serve` that both peers use, and a ticket of the peer's present run. At
    /// most 32 KiB go before the peer's first answer. If early data is not possible, the same
    /// stream goes over the first path, and only takes longer.
    ///
    /// The connection is made as by [`connect`](Self::connect). [`Connection::path`] is `None`
    /// until there is a path.
    ///
    /// # Security
    /// Early data is sealed for the peer's identity key and signed with this peer's key. The relay
    /// cannot read it. Nobody else can write it, not even whoever has stolen the peer's key. The
    /// peer takes it once. The run of the peer that has seen it refuses a copy, however clocks
    /// jump, and so does every later run.
    ///
    /// Early data lacks two things that a path gives. It has no forward secrecy: whoever records it
    /// and later steals the *peer's* identity key can read it. And whoever carries it can hold it
    /// back for up to four minutes, and for longer if the peer's clock is wrong, before the peer
    /// takes it. Everything after the peer's first answer, and all of [`connect`](Self::connect),
    /// is protected by keys that exist once. [`Stream::is_early`] tells the peer that a stream
    /// began with early data.
    ///
    /// # Errors
    /// The call fails at once with:
    /// - [`ErrorKind::InvalidProtocol`].
    /// - [`ErrorKind::InvalidTicket`] if the ticket is this peer's own.
    /// - [`ErrorKind::LimitExceeded`] beyond [`Config::max_connections`] or
    ///   [`Config::max_streams`].
    /// - [`ErrorKind::ConnectorClosed`].
    /// - All errors of [`connect`](Self::connect) if the peer is a stock libp2p peer, because the
    ///   call then waits for the connection.
    ///
    /// Otherwise, if `connect` would fail, the stream fails with the same error.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the stream. The attempts to connect go on until
    /// [`Config::connect_timeout`].
    pub async fn open(
        &self,
        ticket: &Ticket,
        protocol: &str,
    ) -> Result<(Connection, Stream), Error> {
        check_protocol(protocol)?;
        if !is_sealable(&ticket.peer_id().0) || !ticket.is_resumable() {
            let connection = self.connect(ticket).await?;
            let stream = connection.open(protocol).await?;
            return Ok((connection, stream));
        }
        let span = trace::connection(&ticket.peer_id().0);
        span.in_scope(|| tracing::info!(protocol, "opening a stream without waiting for a path"));
        let (reply, answer) = oneshot::channel();
        self.command(Command::OpenEarly {
            ticket: ticket.clone(),
            protocol: protocol.to_owned(),
            reply,
        })
        .await?;
        answer.await.map_err(|_| closed())?
    }

    /// Enters the room `name`, where peers find each other without tickets. It returns once a relay has let
    /// this peer in and has shown who is there. The relays are those that hold a reservation, so peers meet
    /// that share at least one relay of `throughline serve`.
    ///
    /// A room has at most 1,024 members, and a peer is in at most 64 rooms. The relay knows a room by a hash
    /// of application, name and secret. It sees which peers are in it and when, but neither its name nor
    /// what they show.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidConfig`] if [`RoomOptions::data`] is too long, or if this machine's clock is
    ///   wrong by more than five minutes.
    /// - [`ErrorKind::NoRelay`] if no relay with rooms holds a reservation within
    ///   [`Config::relay_timeout`].
    /// - [`ErrorKind::LimitExceeded`] if the room or the relay is full, or beyond 64 rooms.
    /// - [`ErrorKind::AccessDenied`] if the relay does not admit this peer.
    /// - [`ErrorKind::ConnectorClosed`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the room.
    pub async fn join(&self, name: &str, options: RoomOptions) -> Result<Room, Error> {
        Room::join(self.clone(), name, options).await
    }

    pub(crate) async fn attend(&self, keys: RoomKeys, data: Vec<u8>) -> Result<Seat, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Join { keys, data, reply }).await?;
        answer.await.map_err(|_| closed())
    }

    /// Waits until this connector is in no mesh.
    pub(crate) async fn mesh_turn(&self) -> OwnedMutexGuard<()> {
        self.meshes.clone().lock_owned().await
    }

    /// Waits for the next connection that another peer makes to this one. Returns `None` once the
    /// connector is closed. If the peer called [`open`](Self::open), the connection may have a
    /// stream before it has a path, and [`Stream::is_early`] tells so. Clones share one queue. When
    /// 64 connections wait, further connections are refused.
    ///
    /// # Cancel safety
    /// This is cancel safe: no connection is lost.
    pub async fn accept(&self) -> Option<Connection> {
        self.incoming.lock().await.recv().await
    }

    /// Reports what this peer knows about its relays, addresses and connections.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectorClosed`].
    ///
    /// # Cancel safety
    /// This is cancel safe: it changes nothing.
    pub async fn report(&self) -> Result<Report, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Report { reply }).await?;
        answer.await.map_err(|_| closed())
    }

    /// Returns a stream of what concerns no single connection, from now on: what a relay says about
    /// this peer's quota. It ends when the connector is closed. Several callers may listen. A caller
    /// that is more than 16 events behind gets [`ConnectorEvent::Lagged`].
    pub fn events(&self) -> ConnectorEvents {
        let receiver = self.shared.events();
        ConnectorEvents::new(futures::stream::unfold(receiver, |receiver| async move {
            let mut receiver = receiver?;
            let event = match receiver.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    ConnectorEvent::Lagged { missed }
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((event, Some(receiver)))
        }))
    }

    /// Returns whether others can reach this peer now and why not, with the relays, the ticket and the
    /// network as they are. It is the last value of [`status_changes`](Self::status_changes).
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Returns the present status, and then each new one. Measuring a round trip anew is no news.
    pub fn status_changes(&self) -> StatusChanges {
        StatusChanges::new(self.shared.status.clone())
    }

    /// Returns counters and gauges in the OpenMetrics text format. Labels hold only names, never an
    /// address or a peer id.
    pub fn metrics(&self) -> String {
        self.shared.metrics.encode()
    }

    /// Closes every connection, tells the peers, and stops. A second call has no effect. Bytes that
    /// a stream has not sent are lost, so finish streams first.
    ///
    /// # Cancel safety
    /// Dropping the future only ends the wait, and the close goes on. A future that was never
    /// polled closes nothing. Neither does a future that still waits behind other calls.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.command(Command::Shutdown { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| closed())
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("peer_id", &self.shared.peer_id)
            .finish_non_exhaustive()
    }
}

/// Tells the event loop when a connect is dropped.
struct Abandoned<'a> {
    commands: &'a mpsc::Sender<Command>,
    peer: Option<PeerId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            // If the queue is full, the connect ends by its deadline.
            let _ = self.commands.try_send(Command::Abandoned { peer });
        }
    }
}

/// Configures a [`Connector`]. Each setter sets one field of [`Config`], which documents the
/// meaning, unit, range and default.
///
/// ```no_run
/// use throughline::{Connector, Error, Identity};
///
/// async fn server(secret: &str, relay: &str) -> Result<Connector, Error> {
///     Connector::builder()
///         .identity(Identity::from_secret(secret)?)
///         .relay(relay)
///         .listen("/ip4/0.0.0.0/udp/4001/quic-v1")
///         .bind()
///         .await
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    identity: Option<Identity>,
    config: Config,
}

impl Builder {
    /// Sets the identity of the peer. Defaults to a fresh identity.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Replaces the whole configuration.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Adds a relay, such as `relay.example.org`. One address says everything: see
    /// [`Config::relays`] for its forms.
    pub fn relay(mut self, relay: impl Into<String>) -> Self {
        self.config.relays.push(relay.into());
        self
    }

    /// Sets the token for relays that admit only its holders. See [`Config::relay_tokens`].
    pub fn relay_tokens(mut self, tokens: impl Into<RelayTokens>) -> Self {
        self.config.relay_tokens = Some(tokens.into());
        self
    }

    /// Adds a STUN server. See [`Config::stun`].
    pub fn stun(mut self, url: impl Into<String>) -> Self {
        self.config.stun.push(url.into());
        self
    }

    /// Adds a TURN server. See [`Config::turn`].
    pub fn turn(mut self, server: TurnServer) -> Self {
        self.config.turn.push(server);
        self
    }

    /// Adds an address to listen on. See [`Config::listen`].
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.config.listen.push(address.into());
        self
    }

    /// Adds a protocol for which stock libp2p peers may open streams. See [`Config::protocols`].
    pub fn protocol(mut self, name: impl Into<String>) -> Self {
        self.config.protocols.push(name.into());
        self
    }

    /// Sets whether to hold reservations. See [`Config::reserve`].
    pub fn reserve(mut self, reserve: bool) -> Self {
        self.config.reserve = reserve;
        self
    }

    /// Starts the peer. If relays are configured and [`Config::reserve`] is set, it returns once
    /// the first relay holds a reservation, so that [`Connector::ticket`] is complete. The other
    /// reservations follow in the background. From then on, reservations are kept, renewed and
    /// replaced. If [`Config::reserve`] is set without a relay, a native peer returns once it knows
    /// an address that it listens at, or after a second.
    ///
    /// On native targets it must be called within a tokio runtime.
    ///
    /// # Errors
    /// - Before anything is sent: [`ErrorKind::InvalidConfig`], [`ErrorKind::InvalidAddress`] or
    ///   [`ErrorKind::UnsupportedPlatform`].
    /// - [`ErrorKind::Io`] if the system gives no socket.
    /// - [`ErrorKind::NoRelay`] if no relay grants a reservation within [`Config::relay_timeout`]. The
    ///   message says of each why, with the URL that was asked.
    /// - [`ErrorKind::LimitExceeded`] if every relay refuses because it has no room.
    /// - [`ErrorKind::AccessDenied`] if the relays do not admit this peer.
    /// - [`ErrorKind::QuotaExceeded`] if its quota at the relays is used up.
    ///
    /// # Cancel safety
    /// Dropping the future stops the peer.
    pub async fn bind(self) -> Result<Connector, Error> {
        let wait = self.config.reserve && (LISTENS || !self.config.relays.is_empty());
        let connector = self.start()?;
        if wait {
            let (reply, answer) = oneshot::channel();
            connector.command(Command::Online { reply }).await?;
            answer.await.map_err(|_| closed())??;
        }
        Ok(connector)
    }

    /// Starts the peer as [`bind`](Self::bind) does, but waits for nothing. The ticket has no relay until
    /// the first of them holds a reservation, and a relay that cannot be reached is no error: it is asked
    /// again and again. [`Connector::report`] says how it is. Use it for a program that may start without
    /// a network.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind) that come before anything is sent, and [`ErrorKind::Io`].
    pub fn start(self) -> Result<Connector, Error> {
        self.config.validate()?;
        let identity = self.identity.unwrap_or_else(Identity::generate);
        // The loop and its tasks take the span along.
        let span = trace::peer(&identity.peer_id().0);
        let (commands, incoming, shared) = span.in_scope(|| node::start(identity, self.config))?;
        Ok(Connector {
            commands,
            incoming: Arc::new(Mutex::new(incoming)),
            shared,
            meshes: Arc::default(),
        })
    }
}
