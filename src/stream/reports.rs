//! What the event loop learns of a session's streams.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::mailbox::Via;
use crate::core::resume::StreamId;

/// A report of a pump to the event loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PumpEvent {
    /// The substream on `connection` has died while it carried the stream. The opener attaches
    /// another one, and the acceptor waits for it.
    Lost {
        session: SessionId,
        id: StreamId,
        connection: Via,
    },
    /// A stream sends bytes over `connection`, and none of the session's streams did since the
    /// [`Activity`] was last taken.
    Busy { session: SessionId, connection: Via },
    /// The stream has ended, well or badly, and so has its pump. The event loop can forget the
    /// handle.
    Done { session: SessionId, id: StreamId },
}

impl PumpEvent {
    /// The session whose stream it is.
    pub(crate) fn session(&self) -> SessionId {
        match self {
            Self::Lost { session, .. }
            | Self::Busy { session, .. }
            | Self::Done { session, .. } => *session,
        }
    }
}

/// Whether the streams of a session move bytes. The session probes its path more often meanwhile,
/// and knows that a path that brings bytes is alive.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    sent: AtomicBool,
    heard: AtomicU32,
}

impl Activity {
    /// Notes that bytes are sent. Returns whether they are the first ones since this was forgotten.
    pub(super) fn send(&self) -> bool {
        !self.sent.swap(true, Ordering::Relaxed)
    }

    /// Forgets that bytes were sent. The next ones bring [`PumpEvent::Busy`].
    pub(crate) fn forget_sent(&self) {
        self.sent.store(false, Ordering::Relaxed);
    }

    /// Notes that bytes have come in.
    pub(crate) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// How often bytes have come in. The count wraps around.
    pub(crate) fn heard(&self) -> u32 {
        self.heard.load(Ordering::Relaxed)
    }
}

/// The session of the event loop that a stream belongs to. It is never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(u64);

impl SessionId {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }
}
