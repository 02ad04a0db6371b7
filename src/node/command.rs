//! The commands that handles send to the event loop, and the state that they read directly.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{broadcast, oneshot, watch};

use crate::{
    attendance::Seat,
    connection::Connection,
    core::room::RoomKeys,
    error::{Error, ErrorKind},
    event::ConnectorEvent,
    identity::PeerId,
    metrics::Metrics,
    report::Report,
    status::Status,
    stream::{SessionId, Stream},
    ticket::Ticket,
};

/// A command of a handle to the loop.
pub(crate) enum Command {
    Connect {
        ticket: Ticket,
        reply: oneshot::Sender<Result<Connection, Error>>,
    },
    /// Opens a stream on a connection that may not exist yet.
    OpenEarly {
        ticket: Ticket,
        protocol: String,
        reply: oneshot::Sender<Result<(Connection, Stream), Error>>,
    },
    /// The caller of a connect to this peer no longer waits for it.
    Abandoned {
        peer: PeerId,
    },
    Open {
        session: SessionId,
        protocol: String,
        reply: oneshot::Sender<Result<Stream, Error>>,
    },
    CloseSession {
        session: SessionId,
        reply: oneshot::Sender<()>,
    },
    /// Waits for the first reservation.
    Online {
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// Begins to attend a room, and shows this data there.
    Join {
        keys: RoomKeys,
        data: Vec<u8>,
        reply: oneshot::Sender<Seat>,
    },
    Report {
        reply: oneshot::Sender<Report>,
    },
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// The state that handles read without a command.
pub(crate) struct Shared {
    pub(crate) peer_id: PeerId,
    pub(crate) metrics: Metrics,
    /// The events of the connector, as long as the loop runs.
    events: broadcast::WeakSender<ConnectorEvent>,
    pub(crate) status: watch::Receiver<Status>,
    ticket: Mutex<Ticket>,
}

impl Shared {
    pub(super) fn new(
        peer_id: PeerId,
        ticket: Ticket,
        events: broadcast::WeakSender<ConnectorEvent>,
        status: watch::Receiver<Status>,
    ) -> Self {
        Self {
            peer_id,
            metrics: Metrics::new(),
            events,
            status,
            ticket: Mutex::new(ticket),
        }
    }

    /// Subscribes to the events of the connector, unless the loop has ended.
    pub(crate) fn events(&self) -> Option<broadcast::Receiver<ConnectorEvent>> {
        Some(self.events.upgrade()?.subscribe())
    }

    pub(crate) fn ticket(&self) -> Ticket {
        // A ticket is only ever replaced as a whole, so a panic elsewhere cannot leave half of one.
        self.ticket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns whether the ticket is another one than before.
    pub(super) fn set_ticket(&self, ticket: Ticket) -> bool {
        let mut known = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *known != ticket;
        *known = ticket;
        tracing::debug!("the ticket is refreshed");
        is_new
    }
}

/// The error of a command that comes after the loop has ended.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::ConnectorClosed, "the connector is closed")
}
