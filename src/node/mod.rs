//! The one event loop, compiled for both targets: it moves what libp2p reports to relays, sessions
//! and streams, and what handles ask for to libp2p.
//!
//! `connect` runs the race to each peer and chooses paths, `links` keeps relays and reservations, `opening` brings
//! streams to the path in use, and `early` those that do not wait for one; their state is in `session`, `relays` and `resumable`.

mod behaviour;
mod causes;
mod connect;
mod dials;
mod early;
mod engine;
mod links;
mod opening;
mod race;
mod relays;
mod session;
mod spares;
pub(crate) mod streams;
mod timers;

pub(crate) mod junction;
pub(crate) mod pump;
pub(crate) mod resumable;

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

pub(crate) use self::{behaviour::ping, engine::start, session::Incoming};
use crate::{
    backend::offer::Sealing, connection::Connection, error::Error, identity::PeerId,
    metrics::Metrics, report::Report, stream::Stream, ticket::Ticket,
};

/// What handles ask of the loop.
pub(crate) enum Command {
    Connect {
        ticket: Ticket,
        reply: oneshot::Sender<Result<Connection, Error>>,
    },
    /// Opens a stream on a connection that may not be there yet.
    OpenEarly {
        _sealing: Sealing,
        ticket: Ticket,
        protocol: String,
        reply: oneshot::Sender<Result<(Connection, Stream), Error>>,
    },
    /// A connect to this peer is no longer waited for.
    Abandoned {
        peer: PeerId,
    },
    Open {
        session: u64,
        protocol: String,
        reply: oneshot::Sender<Result<Stream, Error>>,
    },
    CloseSession {
        session: u64,
        reply: oneshot::Sender<()>,
    },
    /// Waits for the first reservation.
    Online {
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Report {
        reply: oneshot::Sender<Report>,
    },
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// What handles read without asking.
pub(crate) struct Shared {
    pub(crate) peer_id: PeerId,
    pub(crate) metrics: Metrics,
    ticket: Mutex<Ticket>,
}

impl Shared {
    pub(crate) fn ticket(&self) -> Ticket {
        // The value is replaced whole, so a panic elsewhere cannot have left half of one.
        self.ticket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_ticket(&self, ticket: Ticket) {
        *self.ticket.lock().unwrap_or_else(PoisonError::into_inner) = ticket;
    }
}
