//! A connection to one peer. It uses the path that is best at the time.

use std::{
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use tokio::sync::{Mutex, broadcast, mpsc, oneshot, watch};
use web_time::Instant;

use crate::{
    backend::trace::{self, Span},
    config::check_protocol,
    datagrams::Queues,
    error::{Error, ErrorKind},
    event::{Attempt, Cause, Datagrams, Outcome, Path, PathEvent, PathEvents, PathKind, Strategy},
    identity::PeerId,
    metrics::Metrics,
    node::{Command, Incoming, closed},
    stream::{SessionId, Stream},
};

/// A connection to one peer.
///
/// It outlives its paths: the first often is a relay circuit, then comes a direct path, and perhaps
/// the circuit again. Streams between peers of this library move along. If a direct path carries nothing
/// for [`Config::circuit_idle_timeout`](crate::Config::circuit_idle_timeout), its circuit is closed unless
/// the peer is a page. It comes back when it is needed. A clone is cheap, and clones share the queue of incoming streams.
///
/// # Drop
/// Streams go on after the last clone is dropped. A connection without clones and streams is closed
/// after [`Config::idle_timeout`](crate::Config::idle_timeout).
///
/// ```no_run
/// use throughline::Connection;
///
/// /// Serves one peer until it is gone.
/// async fn serve(connection: Connection) {
///     while let Some((protocol, stream)) = connection.accept_stream().await {
///         match protocol.as_str() {
///             "chat/1" => drop(stream), // hand it to a task of its own
///             _ => stream.refuse(),
///         }
///     }
///     println!("{} is gone: {}", connection.peer_id(), connection.closed().await);
/// }
/// ```
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    peer: PeerId,
    session: SessionId,
    commands: mpsc::Sender<Command>,
    incoming: Mutex<mpsc::Receiver<Incoming>>,
    state: Arc<SessionState>,
}

/// The state of a session that the event loop updates and that handles read.
pub(crate) struct SessionState {
    path: watch::Sender<Option<Path>>,
    /// Each event is behind a pointer, because the channel allocates room for all events at once.
    events: broadcast::Sender<Arc<PathEvent>>,
    /// When the times of all attempts began.
    started: Instant,
    attempts: StdMutex<Attempts>,
    closed: watch::Sender<Option<ErrorKind>>,
    /// The datagrams are behind a pointer of their own, because lanes keep them without the rest of
    /// the state.
    pub(crate) datagrams: Arc<Queues>,
    /// The span of all log lines about this connection.
    pub(crate) span: Span,
}

/// The attempts of a session.
#[derive(Default)]
struct Attempts {
    /// Those that have ended, in the order of their ends.
    ended: Vec<Attempt>,
    /// Those that are under way, with their starts.
    under_way: Vec<(Strategy, Duration)>,
}

/// How many events are kept for a slow reader. Older events are reported as `Lagged`.
const EVENT_BUFFER: usize = 32;
/// How many attempts are kept for one connection. This is about ten tries of every strategy.
const MAX_ATTEMPTS: usize = 64;

impl SessionState {
    pub(crate) fn new(peer: &libp2p::PeerId, metrics: &Metrics) -> Self {
        Self {
            datagrams: Arc::new(Queues::new(metrics.dropped.clone())),
            path: watch::Sender::new(None),
            events: broadcast::Sender::new(EVENT_BUFFER),
            started: Instant::now(),
            attempts: StdMutex::default(),
            closed: watch::Sender::new(None),
            span: trace::connection(peer),
        }
    }

    pub(crate) fn path(&self) -> Option<Path> {
        self.path.borrow().clone()
    }

    pub(crate) fn set_path(&self, path: Option<Path>) {
        self.path.send_replace(path);
    }

    /// An attempt by this strategy has begun, so long after the session.
    pub(crate) fn began(&self, strategy: Strategy, at: Duration) {
        let under_way = &mut self.attempts().under_way;
        if under_way.len() < MAX_ATTEMPTS {
            under_way.push((strategy, at));
        }
    }

    pub(crate) fn emit(&self, event: PathEvent) {
        self.span.in_scope(|| trace::tell(&event));
        if let PathEvent::Attempt(attempt) = &event {
            let Attempts { ended, under_way } = &mut *self.attempts();
            let same = |(strategy, _): &(Strategy, _)| *strategy == attempt.strategy;
            if let Some(at) = under_way.iter().position(same) {
                under_way.remove(at);
            }
            if ended.len() < MAX_ATTEMPTS {
                ended.push(attempt.clone());
            }
        }
        // Without a receiver the send fails, which is fine.
        let _ = self.events.send(Arc::new(event));
    }

    pub(crate) fn close(&self, kind: ErrorKind) {
        if self.closed.borrow().is_none() {
            self.closed.send_replace(Some(kind));
            self.datagrams.close(kind);
            self.set_path(None);
            self.emit(PathEvent::Closed { kind });
        }
    }

    /// Returns the attempts that have ended.
    pub(crate) fn ended_attempts(&self) -> Vec<Attempt> {
        self.attempts().ended.clone()
    }

    /// Each change is one step, so a panic elsewhere leaves the lists whole.
    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the attempts that have failed, and as failed those that are still without an answer.
    fn failures(&self) -> Vec<Attempt> {
        let now = self.started.elapsed();
        let Attempts { ended, under_way } = &*self.attempts();
        let failed = ended.iter().filter(|a| a.outcome == Outcome::Failed);
        let waiting = under_way.iter().map(|(strategy, started)| {
            let waited = now.saturating_sub(*started).as_millis();
            let reason = format!("no answer within {waited} ms");
            Attempt {
                strategy: *strategy,
                outcome: Outcome::Failed,
                started: *started,
                ended: now.max(*started),
                cause: Some(Cause::Timeout),
                reason: Some(Cause::Timeout.explain(&reason)),
            }
        });
        failed.cloned().chain(waiting).collect()
    }
}

impl Connection {
    pub(crate) fn new(
        peer: PeerId,
        session: SessionId,
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

    /// Returns the id of the peer at the other end. Every path is authenticated against it.
    pub fn peer_id(&self) -> PeerId {
        self.inner.peer
    }

    /// Returns the path in use, or `None` while there is no path.
    pub fn path(&self) -> Option<Path> {
        self.inner.state.path()
    }

    /// Returns a stream of every change of path and every attempt from now on. It ends after
    /// [`PathEvent::Closed`]. Several callers may listen. A caller that is more than 32 events
    /// behind gets [`PathEvent::Lagged`].
    ///
    /// To miss nothing, subscribe first, and then read [`path`](Self::path) and
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

    /// Returns the attempts that have ended so far, in the order of their ends. At most the first
    /// 64 are kept.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.inner.state.ended_attempts()
    }

    /// Waits until the path in use is direct, and returns it.
    ///
    /// # Errors
    /// - [`ErrorKind::Timeout`] if that takes longer than `within`. [`Error::attempts`] says why: it
    ///   has the attempts that have failed, and those that have had no answer yet.
    /// - [`ErrorKind::ConnectionClosed`] or [`ErrorKind::ConnectionLost`] if the connection ends.
    ///
    /// # Cancel safety
    /// This is cancel safe: it changes nothing.
    pub async fn wait_direct(&self, within: Duration) -> Result<Path, Error> {
        let state = &self.inner.state;
        let mut paths = state.path.subscribe();
        let is_direct =
            |path: &Option<Path>| path.as_ref().is_some_and(|p| p.kind == PathKind::Direct);
        let direct = async {
            let path = paths.wait_for(is_direct).await.ok()?;
            path.clone()
        };
        // An event of the end follows each change of path, and ends the wait.
        let mut events = self.path_events();
        let ended = async {
            loop {
                match events.next().await {
                    Some(PathEvent::Closed { kind }) => return kind,
                    Some(_) => {}
                    None => return ErrorKind::ConnectionClosed,
                }
            }
        };
        futures::pin_mut!(direct, ended);
        let first = select(select(direct, ended), Delay::new(within)).await;
        let why = match first {
            Either::Left((Either::Left((Some(path), _)), _)) => return Ok(path),
            Either::Left((Either::Right((kind, _)), _)) => {
                return Err(Error::new(
                    kind,
                    "the connection ended before there was a direct path",
                ));
            }
            Either::Left((Either::Left((None, _)), _)) => return Err(closed()),
            Either::Right(_) => format!("no direct path within {} ms", within.as_millis()),
        };
        Err(Error::new(ErrorKind::Timeout, why).with_attempts(state.failures()))
    }

    /// Opens a stream for `protocol`, which is a name that both applications agree on.
    ///
    /// Between peers of this library this costs no round trip, because bytes that are written at
    /// once travel with the request. A peer that does not serve the protocol refuses the stream
    /// later, with [`Stream::refuse`].
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidProtocol`].
    /// - [`ErrorKind::ProtocolRefused`] if the peer is a stock libp2p peer that does not serve the
    ///   protocol.
    /// - [`ErrorKind::LimitExceeded`] beyond [`Config::max_streams`](crate::Config::max_streams).
    /// - [`ErrorKind::ConnectionClosed`] or [`ErrorKind::ConnectionLost`].
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

    /// Waits for the next stream that the peer opens, and returns it with the name of its protocol.
    /// Returns `None` once the connection is closed. Streams that wait count among all streams, whose
    /// number [`Config::max_streams`](crate::Config::max_streams) limits.
    ///
    /// # Cancel safety
    /// This is cancel safe: no stream is lost.
    pub async fn accept_stream(&self) -> Option<(String, Stream)> {
        let mut incoming = self.inner.incoming.lock().await;
        incoming.recv().await.map(|stream| *stream)
    }

    /// Sends a datagram over the path in use. It waits for nothing: neither for the network, nor for
    /// streams.
    ///
    /// A datagram may be lost, and datagrams may arrive in another order. None arrives twice. Between
    /// programs they are datagrams of QUIC (RFC 9221), and with a page they go over a data channel
    /// that repeats nothing. A circuit carries them in a stream of their own, so there they wait for
    /// what the relay has lost.
    ///
    /// While more datagrams are sent than the path takes, or while there is no path, up to 256 wait.
    /// Then each new one takes the place of the oldest, and the counter
    /// `throughline_datagrams_dropped` goes up.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`] if the peer is a stock libp2p peer. It takes a round trip after
    ///   the first path until this is known, and what was sent before is dropped.
    /// - [`ErrorKind::LimitExceeded`] beyond [`max_datagram_size`](Self::max_datagram_size).
    /// - [`ErrorKind::ConnectionClosed`] or [`ErrorKind::ConnectionLost`].
    ///
    /// ```no_run
    /// # async fn play(connection: throughline::Connection) -> Result<(), throughline::Error> {
    /// use futures::StreamExt as _;
    ///
    /// connection.send_datagram(b"x=3 y=4")?;
    /// let mut datagrams = connection.datagrams();
    /// while let Some(datagram) = datagrams.next().await {
    ///     println!("the peer is at {}", String::from_utf8_lossy(&datagram));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn send_datagram(&self, datagram: &[u8]) -> Result<(), Error> {
        self.inner.state.datagrams.send(datagram)
    }

    /// Returns the datagrams of the peer, from any path. The stream ends once the connection is closed
    /// and everything is read. Clones and streams share one queue of 256 datagrams. When it is full,
    /// each new one takes the place of the oldest.
    pub fn datagrams(&self) -> Datagrams {
        let state = self.inner.state.clone();
        Datagrams::new(futures::stream::unfold(state, |state| async {
            Some((state.datagrams.receive().await?, state))
        }))
    }

    /// Returns the most bytes of a datagram that the path in use carries. It is at least 1,120, so a
    /// datagram of that size fits on every path. It is `None` while there is no path, and if the peer
    /// takes no datagrams. [`PathEvent::Changed`] and [`PathEvent::DatagramSize`] tell of changes.
    pub fn max_datagram_size(&self) -> Option<usize> {
        self.path()?.max_datagram_size
    }

    /// Waits until the connection is closed, and returns the reason. It is
    /// [`ErrorKind::ConnectionClosed`] if either side closed the connection, and
    /// [`ErrorKind::ConnectionLost`] if no path came back in time.
    ///
    /// # Cancel safety
    /// This is cancel safe: it changes nothing. It can be called again, also after the close.
    pub async fn closed(&self) -> ErrorKind {
        let mut closed = self.inner.state.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(kind) => kind.unwrap_or(ErrorKind::ConnectionClosed),
            Err(_) => ErrorKind::ConnectorClosed,
        }
    }

    /// Closes the connection and tells the peer. A second call has no effect. Streams that both
    /// ends have finished, or that one end has reset, first end in good order, within 2 s. Bytes
    /// that other streams have not sent are lost.
    ///
    /// # Cancel safety
    /// Dropping the future only ends the wait, and the close goes on. A future that was never
    /// polled closes nothing. Neither does a future that still waits behind other calls.
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

/// The event loop's reference to the handles that it gave out.
pub(crate) struct WeakConnection(Weak<Inner>);

impl WeakConnection {
    /// Returns a handle, if any handle is left.
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

/// A subscription that begins after the close starts with `Closed`.
fn receiver_or_end(
    receiver: &mut broadcast::Receiver<Arc<PathEvent>>,
    ended: Option<ErrorKind>,
) -> Next {
    match ended {
        Some(kind) if receiver.is_empty() => Next::Event(PathEvent::Closed { kind }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_without_an_answer_are_failures_until_they_end() {
        let state = SessionState::new(&libp2p::PeerId::random(), &Metrics::new());
        let (stun, at) = (Strategy::Stun, Duration::ZERO);
        state.began(stun, at);
        state.began(Strategy::Direct, at);
        let ended = |strategy, outcome| Attempt {
            strategy,
            outcome,
            started: at,
            ended: at,
            cause: None,
            reason: None,
        };
        let direct = ended(Strategy::Direct, Outcome::Failed);
        state.emit(PathEvent::Attempt(direct.clone()));
        let failures = state.failures();
        assert_eq!(failures[0], direct);
        let waits = &failures[1];
        assert_eq!((waits.strategy, waits.cause), (stun, Some(Cause::Timeout)));
        let reason = waits.reason.as_deref().unwrap();
        assert!(reason.starts_with("no answer within "), "{reason}");
        state.emit(PathEvent::Attempt(ended(stun, Outcome::Cancelled)));
        assert_eq!(state.failures(), [direct]);
    }
}
