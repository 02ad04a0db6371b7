//! The one entry: a peer that connects to others and can be connected to.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{
    backend::{offer, transports::LISTENS},
    config::{Config, TurnServer, check_protocol},
    connection::Connection,
    error::{Error, ErrorKind},
    identity::{Identity, PeerId},
    node::{self, Command, Shared},
    report::Report,
    stream::Stream,
    ticket::Ticket,
};

/// One peer: an identity, its listeners and reservations, and its connections.
///
/// Cheap to clone; every clone is the same peer.
///
/// # Drop
/// When the last clone and the last [`Connection`] are dropped, the peer stops: its reservations
/// end and its sockets close. [`Connector::close`] does so at once and tells the peers.
#[derive(Clone)]
pub struct Connector {
    commands: mpsc::Sender<Command>,
    incoming: Arc<Mutex<mpsc::Receiver<Connection>>>,
    shared: Arc<Shared>,
}

impl Connector {
    /// Starts the configuration of a new peer.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Who this peer is.
    pub fn peer_id(&self) -> PeerId {
        self.shared.peer_id
    }

    /// How to reach this peer as of now: the relays that hold a reservation for it, and its own
    /// addresses. Ask anew after the network changed. With an identity that is kept, a ticket also
    /// leads to later runs of this peer; nothing is sealed for those by it, so that a connect waits
    /// for a circuit first.
    pub fn ticket(&self) -> Ticket {
        self.shared.ticket()
    }

    /// Connects to the peer that `ticket` names and returns on the first authenticated path.
    ///
    /// Every way that the ticket and the configuration allow is tried at once, relays after the
    /// first a little later, and losers are taken back. The first path usually is a relay circuit;
    /// a better one is sought in the background and reported by [`Connection::path_events`]. If
    /// there is a connection to the peer already, it is returned.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] with every attempt when nothing came up within
    /// [`Config::connect_timeout`]; [`ErrorKind::WrongPeer`] when somebody else answered;
    /// [`ErrorKind::LimitExceeded`] beyond [`Config::max_connections`], and when every way to the
    /// peer is closed by a limit;
    /// [`ErrorKind::ConnectorClosed`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the connect; its attempts are cancelled unless another connect
    /// to the same peer waits for them.
    pub async fn connect(&self, ticket: &Ticket) -> Result<Connection, Error> {
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
        let answer = answer.await;
        abandoned.peer = None;
        answer.map_err(|_| closed())?
    }

    /// Opens a stream for `protocol` to the peer that `ticket` names, and does not wait for a path.
    ///
    /// What is written to the stream at once travels beside the requests that bring the connection
    /// about, so that the first answer is back after one round trip through the relay, where
    /// [`connect`](Self::connect) and [`Connection::open`] take two. Early data needs the link to
    /// a relay of `throughline serve` that both peers have, and the ticket of the peer's present
    /// run; at most 32 KiB go before the peer's first word. Without it the same stream goes over
    /// the first path, and nobody notices but by the time it takes. A page sends none: there this
    /// is [`connect`](Self::connect) and [`Connection::open`] in one call.
    ///
    /// The connection is sought as by [`connect`](Self::connect); until there is a path,
    /// [`Connection::path`] is `None`.
    ///
    /// # Security
    /// Early data is what is written before the peer's first word. It is sealed for the peer's
    /// identity key and signed by this peer's: the relay cannot read it, and nobody else can write
    /// it, not even whoever has stolen the peer's key. The peer takes it once. A copy is refused
    /// by the run of the peer that has seen it, however clocks jump, and by every later run. Two
    /// things that a path gives are missing. Early data has no forward secrecy: whoever records it
    /// and later steals the *peer's* identity key can read it. And whoever carries it can hold it
    /// back for up to four minutes, and for longer if the peer's clock is wrong, before the peer
    /// takes it. Everything after the peer's first word, and all of [`connect`](Self::connect), is
    /// protected by keys that exist once. The peer sees by [`Stream::is_early`] that a stream
    /// began with early data.
    ///
    /// # Errors
    /// At once: [`ErrorKind::InvalidProtocol`]; [`ErrorKind::InvalidTicket`] for this peer's own;
    /// [`ErrorKind::LimitExceeded`] beyond [`Config::max_connections`] or
    /// [`Config::max_streams`]; [`ErrorKind::ConnectorClosed`]; and all of
    /// [`connect`](Self::connect) for a stock libp2p peer, which is waited for. What `connect`
    /// would fail with otherwise, the stream fails with.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the stream; what has been begun of the connection goes on
    /// until [`Config::connect_timeout`].
    pub async fn open(
        &self,
        ticket: &Ticket,
        protocol: &str,
    ) -> Result<(Connection, Stream), Error> {
        check_protocol(protocol)?;
        let sealing = offer::sealing(&ticket.peer_id().0).filter(|_| ticket.is_resumable());
        let Some(sealing) = sealing else {
            let connection = self.connect(ticket).await?;
            let stream = connection.open(protocol).await?;
            return Ok((connection, stream));
        };
        let (reply, answer) = oneshot::channel();
        self.command(Command::OpenEarly {
            _sealing: sealing,
            ticket: ticket.clone(),
            protocol: protocol.to_owned(),
            reply,
        })
        .await?;
        answer.await.map_err(|_| closed())?
    }

    /// The next connection that another peer made to this one; `None` once the connector is
    /// closed. One that the peer began by [`open`](Self::open) may have a stream before it has a
    /// path, which [`Stream::is_early`] tells. Clones share one queue; when 64 connections wait, further ones are refused.
    ///
    /// # Cancel safety
    /// Cancel safe: no connection is lost.
    pub async fn accept(&self) -> Option<Connection> {
        self.incoming.lock().await.recv().await
    }

    /// What this peer knows about its relays, addresses and connections.
    ///
    /// # Errors
    /// [`ErrorKind::ConnectorClosed`].
    pub async fn report(&self) -> Result<Report, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Report { reply }).await?;
        answer.await.map_err(|_| closed())
    }

    /// Counters and gauges in the OpenMetrics text format. Labels hold names only, never an
    /// address or a peer id.
    pub fn metrics(&self) -> String {
        self.shared.metrics.encode()
    }

    /// Closes every connection, tells the peers, and stops. Idempotent. Bytes that a stream has
    /// not sent are lost: finish streams first.
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

/// Tells the node when a connect is dropped.
struct Abandoned<'a> {
    commands: &'a mpsc::Sender<Command>,
    peer: Option<PeerId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            // In a queue that is full, the connect ends by its deadline.
            let _ = self.commands.try_send(Command::Abandoned { peer });
        }
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::ConnectorClosed, "the connector is closed")
}

/// Configures a [`Connector`]. Every setter has its meaning, unit, range and default at the field
/// of [`Config`] that it sets.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    identity: Option<Identity>,
    config: Config,
}

impl Builder {
    /// Who to be. Defaults to a fresh identity.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Replaces the whole configuration.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Adds one address of a relay; see [`Config::relays`].
    pub fn relay(mut self, address: impl Into<String>) -> Self {
        self.config.relays.push(address.into());
        self
    }

    /// Adds a STUN server; see [`Config::stun`].
    pub fn stun(mut self, url: impl Into<String>) -> Self {
        self.config.stun.push(url.into());
        self
    }

    /// Adds a TURN server; see [`Config::turn`].
    pub fn turn(mut self, server: TurnServer) -> Self {
        self.config.turn.push(server);
        self
    }

    /// Adds an address to listen on; see [`Config::listen`].
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.config.listen.push(address.into());
        self
    }

    /// Adds a protocol that stock libp2p peers may open; see [`Config::protocols`].
    pub fn protocol(mut self, name: impl Into<String>) -> Self {
        self.config.protocols.push(name.into());
        self
    }

    /// Whether to hold reservations; see [`Config::reserve`].
    pub fn reserve(mut self, reserve: bool) -> Self {
        self.config.reserve = reserve;
        self
    }

    /// Starts the peer. With relays configured and [`Config::reserve`] set, returns once the first
    /// of them holds a reservation, so that [`Connector::ticket`] is complete; the others follow
    /// in the background, and are kept, renewed and replaced from then on. With that set and no
    /// relay, a native peer returns once it knows an address that it listens at, or after a second.
    ///
    /// On native targets it must be called within a tokio runtime.
    ///
    /// # Errors
    /// Before anything is sent: [`ErrorKind::InvalidConfig`], [`ErrorKind::InvalidAddress`],
    /// [`ErrorKind::UnsupportedPlatform`]. Then [`ErrorKind::Io`] if a socket cannot be had, and
    /// [`ErrorKind::NoRelay`] if no relay grants a reservation within [`Config::relay_timeout`].
    ///
    /// # Cancel safety
    /// Dropping the future stops the peer.
    pub async fn bind(self) -> Result<Connector, Error> {
        self.config.validate()?;
        let identity = self.identity.unwrap_or_else(Identity::generate);
        let wait = self.config.reserve && (LISTENS || !self.config.relays.is_empty());
        let (commands, incoming, shared) = node::start(identity, self.config)?;
        let connector = Connector {
            commands,
            incoming: Arc::new(Mutex::new(incoming)),
            shared,
        };
        if wait {
            let (reply, answer) = oneshot::channel();
            connector.command(Command::Online { reply }).await?;
            answer.await.map_err(|_| closed())??;
        }
        Ok(connector)
    }
}
