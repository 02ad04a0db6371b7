//! Resumable streams as the event loop sees them: a [`Stream`] for the application, a [`Pump`] to be
//! spawned, and a [`PumpHandle`] that is given one substream after the other.
//!
//! The opener's loop opens a substream for [`PROTOCOL`](crate::core::resume::PROTOCOL) on the best
//! path and calls [`PumpHandle::attach`]; again whenever a better path is up, and whenever the pump
//! tells [`PumpEvent::Lost`]. The acceptor's loop reads the [`Header`] of each incoming substream and
//! calls [`accept`] if the stream is new, [`PumpHandle::resume`] if it has the stream, [`refuse`]
//! otherwise. A stream belongs to one peer: look its id up among that peer's only.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, channel::mpsc::Sender,
};
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;

use super::{junction::Junction, pump::Pump};
use crate::{
    arriving,
    core::resume::{Frame, Header, MAX_HEADER, ProtocolError, Refusal, Request, Resume, StreamId},
    error::{Error, ErrorKind},
    stream::Stream,
};

/// What carries a resumable stream for a while.
pub(crate) trait Substream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Substream for S {}

/// The connection that a substream belongs to; `None` for a sealed stream through a relay.
pub(crate) type Via = Option<ConnectionId>;

/// What both ends choose for themselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamConfig {
    /// Bytes held at most in each direction.
    pub(crate) window: u32,
    /// How long a stream waits for another substream before it fails.
    pub(crate) resume_timeout: Duration,
}

/// What a pump tells the event loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PumpEvent {
    /// The substream on `connection` has died under the stream. The opener attaches another one; the
    /// acceptor waits for it.
    Lost { id: StreamId, connection: Via },
    /// The stream has ended, well or badly, and its pump too. Forget the handle.
    Done { id: StreamId },
}

/// The event loop's end of a stream. Dropping it closes the stream.
pub(crate) struct PumpHandle<S> {
    id: StreamId,
    junction: Arc<Junction>,
    mailbox: Arc<Mailbox<S>>,
    /// Fails when the stream has ended.
    running: oneshot::Receiver<()>,
}

/// One letter of each kind: what is newer replaces what the pump has not yet taken.
pub(super) struct Mailbox<S>(Mutex<Letters<S>>);

pub(super) struct Letters<S> {
    pub(super) attach: Option<Attachment<S>>,
    pub(super) fail: Option<Error>,
    pub(super) pump: Option<Waker>,
}

/// A substream and how it came about.
pub(super) struct Attachment<S> {
    pub(super) substream: S,
    pub(super) connection: Via,
    /// What the opener has sent on it; `None` if that is us.
    pub(super) header: Option<Header>,
}

impl<S> Mailbox<S> {
    fn new(attach: Option<Attachment<S>>) -> Arc<Self> {
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
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// Opener: moves the stream to `substream`, newly opened on `connection`. What the old one still
    /// brings is taken.
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

    /// Whether neither end has anything to add, and the stream ends by itself as soon as both know.
    pub(crate) fn is_ending(&self) -> bool {
        self.junction.lock().resume.is_ending()
    }

    /// Waits until the stream has ended. Dropping this closes the stream.
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

/// Begins a stream. It can be written at once and is sent when the handle is given a substream.
pub(crate) fn open<S: Substream>(
    protocol: &str,
    config: StreamConfig,
    events: Sender<PumpEvent>,
) -> Result<(Stream, PumpHandle<S>, Pump<S>), Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| Error::new(ErrorKind::Io, "no random numbers").with_source(e.to_string()))?;
    let id = StreamId(id);
    let resume = Resume::opener(id, protocol.to_owned(), config.window.into());
    Ok(start(id, protocol, resume, None, config, events))
}

/// Takes the stream that `header`, read from `substream`, announces.
///
/// # Errors
/// [`ErrorKind::ProtocolViolation`] if it is not an OPEN or asks for too small a window.
pub(crate) fn accept<S: Substream>(
    header: Header,
    substream: S,
    connection: Via,
    config: StreamConfig,
    events: Sender<PumpEvent>,
) -> Result<(Stream, PumpHandle<S>, Pump<S>), Error> {
    let Request::Open { protocol, .. } = &header.request else {
        return Err(violation(ProtocolError::Role));
    };
    let protocol = protocol.clone();
    let resume = Resume::acceptor(&header, config.window.into()).map_err(violation)?;
    let id = header.id;
    let attachment = Attachment {
        substream,
        connection,
        header: Some(header),
    };
    let attach = Some(attachment);
    let (stream, handle, pump) = start(id, &protocol, resume, attach, config, events);
    let stream = if connection.is_none() {
        stream.early()
    } else {
        stream
    };
    Ok((stream, handle, pump))
}

fn start<S: Substream>(
    id: StreamId,
    protocol: &str,
    resume: Resume,
    attach: Option<Attachment<S>>,
    config: StreamConfig,
    events: Sender<PumpEvent>,
) -> (Stream, PumpHandle<S>, Pump<S>) {
    let junction = Arc::new(Junction::new(resume));
    let mailbox = Mailbox::new(attach);
    let (sender, running) = oneshot::channel();
    let pump = Pump::new(
        id,
        junction.clone(),
        mailbox.clone(),
        config,
        events,
        sender,
    );
    let stream = Stream::resumable(protocol, junction.clone());
    let handle = PumpHandle {
        id,
        junction,
        mailbox,
        running,
    };
    (stream, handle, pump)
}

/// Reads the header of an incoming substream, and nothing behind it. The caller bounds the time.
///
/// # Errors
/// [`ErrorKind::ProtocolViolation`]; [`ErrorKind::Io`] if the substream dies first.
pub(crate) async fn read_header<S: AsyncRead + Unpin>(substream: &mut S) -> Result<Header, Error> {
    // Two bytes of varint cover MAX_HEADER.
    let mut length = 0;
    for shift in [0, 7] {
        let mut byte = [0];
        substream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        if shift == 7 {
            return Err(violation(ProtocolError::Field("length")));
        }
    }
    if length > MAX_HEADER {
        return Err(violation(ProtocolError::Length(length as u64)));
    }
    let header = arriving::read(substream, length).await?;
    Header::decode(&header).map_err(violation)
}

/// Tells the opener that `header` is answered with no. The caller bounds the time.
pub(crate) async fn refuse<S: AsyncWrite + Unpin>(
    mut substream: S,
    header: &Header,
    refusal: Refusal,
) -> Result<(), Error> {
    let mut out = Vec::new();
    let epoch = header.epoch;
    Frame::Refuse { epoch, refusal }.encode(&mut out);
    substream.write_all(&out).await?;
    substream.close().await?;
    Ok(())
}

pub(super) fn violation(error: ProtocolError) -> Error {
    Error::new(
        ErrorKind::ProtocolViolation,
        format!("the peer broke the stream protocol: {error}"),
    )
    .with_source(error)
}
