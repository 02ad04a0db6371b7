//! A connection to one peer, over whichever path is best at the time.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Mutex, broadcast, mpsc, oneshot, watch};

use crate::{
    config::check_protocol,
    connector::closed,
    error::{Error, ErrorKind},
    event::{Attempt, Path, PathEvent, PathEvents},
    identity::PeerId,
    node::{Command, Incoming},
    stream::Stream,
};

/// A connection to one peer.
///
/// It outlives its paths: a relay circuit at first, then a direct path, perhaps the circuit again.
/// Streams between peers of this library move along. Cheap to clone; clones share the queue of
/// incoming streams.
///
/// # Drop
/// Streams go on after the last clone is dropped. A connection with neither clones nor streams is
/// closed after [`Config::idle_timeout`](crate::Config::idle_timeout).
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    peer: PeerId,
    session: u64,
    commands: mpsc::Sender<Command>,
    incoming: Mutex<mpsc::Receiver<Incoming>>,
    state: Arc<SessionState>,
}

/// What the node keeps up to date and handles read.
pub(crate) struct SessionState {
    path: watch::Sender<Option<Path>>,
    /// Behind a pointer, since there is room for all of them from the beginning.
    events: broadcast::Sender<Arc<PathEvent>>,
    attempts: StdMutex<Vec<Attempt>>,
    closed: watch::Sender<Option<ErrorKind>>,
}

/// Events kept for a slow reader; what is older is reported as `Lagged`.
const EVENT_BUFFER: usize = 32;
/// Attempts kept per connection: some dozen tries of every strategy.
const MAX_ATTEMPTS: usize = 64;

impl SessionState {
    pub(crate) fn new() -> Self {
        Self {
            path: watch::Sender::new(None),
            events: broadcast::Sender::new(EVENT_BUFFER),
            attempts: StdMutex::new(Vec::new()),
            closed: watch::Sender::new(None),
        }
    }

    pub(crate) fn path(&self) -> Option<Path> {
        self.path.borrow().clone()
    }

    pub(crate) fn set_path(&self, path: Option<Path>) {
        self.path.send_replace(path);
    }

    pub(crate) fn emit(&self, event: PathEvent) {
        if let PathEvent::Attempt(attempt) = &event {
            let mut attempts = self.attempts();
            if attempts.len() < MAX_ATTEMPTS {
                attempts.push(attempt.clone());
            }
        }
        // No receiver is not an error: nobody watches.
        let _ = self.events.send(Arc::new(event));
    }

    pub(crate) fn close(&self, kind: ErrorKind) {
        if self.closed.borrow().is_none() {
            self.closed.send_replace(Some(kind));
            self.set_path(None);
            self.emit(PathEvent::Closed {
                code: kind.code().to_owned(),
            });
        }
    }

    /// The list is only ever pushed to, so a panic elsewhere leaves it whole.
    pub(crate) fn attempts(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    pub(crate) fn new(
        peer: PeerId,
        session: u64,
        commands: mpsc::Sender<Command>,
        incoming: mpsc::Receiver<Incoming>,
        state: Arc<SessionState>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                peer,
                session,
                commands,
                incoming: Mutex::new(incoming),
                state,
            }),
        }
    }

    pub(crate) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.inner))
    }

    /// The peer at the other end, authenticated on every path.
    pub fn peer_id(&self) -> PeerId {
        self.inner.peer
    }

    /// The path in use, `None` while there is none.
    pub fn path(&self) -> Option<Path> {
        self.inner.state.path()
    }

    /// Every change of path and every attempt from now on. Several callers may listen; one that is
    /// slower than 32 events is told so by [`PathEvent::Lagged`]. Ends after [`PathEvent::Closed`].
    ///
    /// To miss nothing, subscribe first and then read [`path`](Self::path) and
    /// [`attempts`](Self::attempts).
    pub fn path_events(&self) -> PathEvents {
        let mut receiver = self.inner.state.events.subscribe();
        let ended = *self.inner.state.closed.borrow();
        PathEvents::new(futures::stream::unfold(
            (receiver_or_end(&mut receiver, ended), receiver),
            |(pending, mut receiver)| async move {
                let event = match pending {
                    Next::End => return None,
                    Next::Event(event) => event,
                    Next::Wait => match receiver.recv().await {
                        Ok(event) => Arc::unwrap_or_clone(event),
                        Err(broadcast::error::RecvError::Lagged(missed)) => {
                            PathEvent::Lagged { missed }
                        }
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                };
                let next = match event {
                    PathEvent::Closed { .. } => Next::End,
                    _ => Next::Wait,
                };
                Some((event, (next, receiver)))
            },
        ))
    }

    /// What was tried so far, in the order it ended; at most 64 entries.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.inner.state.attempts().clone()
    }

    /// Opens a stream for `protocol`, a name both applications agree on.
    ///
    /// Between peers of this library no round trip is spent: bytes written at once travel with the
    /// request. A peer that does not want the stream resets it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidProtocol`]; [`ErrorKind::ProtocolRefused`] by a stock libp2p peer that
    /// does not serve it; [`ErrorKind::LimitExceeded`] beyond
    /// [`Config::max_streams`](crate::Config::max_streams); [`ErrorKind::ConnectionClosed`];
    /// [`ErrorKind::ConnectionLost`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the stream.
    pub async fn open(&self, protocol: &str) -> Result<Stream, Error> {
        check_protocol(protocol)?;
        let (reply, answer) = oneshot::channel();
        self.inner
            .commands
            .send(Command::Open {
                session: self.inner.session,
                protocol: protocol.to_owned(),
                reply,
            })
            .await
            .map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The next stream that the peer opened, with its protocol's name; `None` once the connection
    /// is closed. When 64 streams wait, further ones are refused.
    ///
    /// # Cancel safety
    /// Cancel safe: no stream is lost.
    pub async fn accept_stream(&self) -> Option<(String, Stream)> {
        let mut incoming = self.inner.incoming.lock().await;
        incoming.recv().await.map(|stream| *stream)
    }

    /// Waits until the connection is closed and gives the reason:
    /// [`ErrorKind::ConnectionClosed`] if either side closed it, [`ErrorKind::ConnectionLost`] if
    /// no path came back in time.
    pub async fn closed(&self) -> ErrorKind {
        let mut closed = self.inner.state.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(kind) => kind.unwrap_or(ErrorKind::ConnectionClosed),
            Err(_) => ErrorKind::ConnectorClosed,
        }
    }

    /// Closes the connection and tells the peer. Idempotent. Streams that both ends have finished, or
    /// one has reset, end in good order first, in 2 s at most; what others have not sent is lost.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        let command = Command::CloseSession {
            session: self.inner.session,
            reply,
        };
        if self.inner.commands.send(command).await.is_ok() {
            let _ = answer.await;
        }
    }
}

/// What the node keeps of the handles it gave out.
pub(crate) struct WeakConnection(Weak<Inner>);

impl WeakConnection {
    /// A handle again, if any is left.
    pub(crate) fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(|inner| Connection { inner })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

enum Next {
    Event(PathEvent),
    Wait,
    End,
}

/// A subscription made after the close starts with its `Closed`.
fn receiver_or_end(
    receiver: &mut broadcast::Receiver<Arc<PathEvent>>,
    ended: Option<ErrorKind>,
) -> Next {
    match ended {
        Some(kind) if receiver.is_empty() => Next::Event(PathEvent::Closed {
            code: kind.code().to_owned(),
        }),
        _ => Next::Wait,
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.inner.peer)
            .field("path", &self.path().map(|p| p.kind))
            .finish_non_exhaustive()
    }
}
