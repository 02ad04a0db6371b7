//! How the event loop reaches the pump of a stream: by letters, of which the pump takes the newest.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;

use super::junction::Junction;
use crate::{
    core::resume::{Header, StreamId},
    error::{Error, ErrorKind},
};

/// The connection of a substream, or `None` for a sealed stream through a relay.
pub(crate) type Via = Option<ConnectionId>;

/// The event loop's end of a stream. Dropping it closes the stream.
pub(crate) struct PumpHandle<S> {
    id: StreamId,
    junction: Arc<Junction>,
    mailbox: Arc<Mailbox<S>>,
    /// The pump drops the sender when the stream has ended.
    running: oneshot::Receiver<()>,
}

/// At most one letter of each kind. A newer letter replaces one that the pump has not taken yet.
pub(super) struct Mailbox<S>(Mutex<Letters<S>>);

pub(super) struct Letters<S> {
    pub(super) attach: Option<Attachment<S>>,
    pub(super) fail: Option<Error>,
    pub(super) pump: Option<Waker>,
}

/// A substream, and who opened it.
pub(super) struct Attachment<S> {
    pub(super) substream: S,
    pub(super) connection: Via,
    /// The header that the opener has sent on the substream, or `None` if we are the opener.
    pub(super) header: Option<Header>,
}

impl<S> Mailbox<S> {
    pub(super) fn new(attach: Option<Attachment<S>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Letters {
            attach,
            fail: None,
            pump: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Letters<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> PumpHandle<S> {
    pub(super) fn new(
        id: StreamId,
        junction: Arc<Junction>,
        mailbox: Arc<Mailbox<S>>,
        running: oneshot::Receiver<()>,
    ) -> Self {
        Self {
            id,
            junction,
            mailbox,
            running,
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// Opener: moves the stream to `substream`, which was newly opened on `connection`. Bytes that
    /// still arrive on the old substream are accepted.
    pub(crate) fn attach(&self, substream: S, connection: Via) {
        self.post(|letters| {
            letters.attach = Some(Attachment {
                substream,
                connection,
                header: None,
            });
        });
    }

    /// Acceptor: moves the stream to `substream`, which came in on `connection` with `header`.
    pub(crate) fn resume(&self, header: Header, substream: S, connection: Via) {
        self.post(|letters| {
            letters.attach = Some(Attachment {
                substream,
                connection,
                header: Some(header),
            });
        });
    }

    /// Ends the stream with `error`.
    pub(crate) fn fail(&self, error: Error) {
        self.post(|letters| {
            letters.fail.get_or_insert(error);
        });
    }

    /// Whether neither end has anything to add, so that the stream ends by itself as soon as both
    /// ends know.
    pub(crate) fn is_ending(&self) -> bool {
        self.junction.lock().resume.is_ending()
    }

    /// Waits until the stream has ended. Dropping the future closes the stream.
    pub(crate) async fn ended(mut self) {
        let _ = (&mut self.running).await;
    }

    fn post(&self, write: impl FnOnce(&mut Letters<S>)) {
        let mut letters = self.mailbox.lock();
        write(&mut letters);
        let pump = letters.pump.take();
        drop(letters);
        if let Some(pump) = pump {
            pump.wake();
        }
    }
}

impl<S> Drop for PumpHandle<S> {
    fn drop(&mut self) {
        self.fail(Error::new(
            ErrorKind::ConnectionClosed,
            "the connection was closed",
        ));
    }
}
