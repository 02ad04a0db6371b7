//! Resumable streams: a [`Stream`] for the application, a [`Pump`] for the caller to spawn, and a
//! [`PumpHandle`] that takes one substream after the other.
//!
//! The opener's event loop opens a substream for [`PROTOCOL`](crate::core::resume::PROTOCOL) on the
//! best path and calls [`PumpHandle::attach`]. It does so again whenever a better path is up, and
//! whenever the pump reports [`PumpEvent::Lost`]. The acceptor's event loop reads the [`Header`] of
//! each incoming substream. It calls [`accept`] if the stream is new, [`PumpHandle::resume`] if it
//! has the stream, and [`refuse`] otherwise. A stream belongs to one peer, so its id is looked up
//! only among the streams of that peer.

use std::{io, sync::Arc, time::Duration};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _, channel::mpsc::Sender};
use tokio::sync::oneshot;

use super::{
    Activity, Pump, PumpEvent, PumpHandle, SessionId, Stream, Via,
    junction::Junction,
    mailbox::{Attachment, Mailbox},
};
use crate::{
    arriving,
    core::resume::{
        Header, MAX_HEADER, ProtocolError, Refusal, Request, Resume, StreamFrame, StreamId,
    },
    error::{Error, ErrorKind},
};

/// Whatever can carry a resumable stream for a while.
pub(crate) trait Substream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Substream for S {}

/// The settings that each end chooses for itself.
#[derive(Debug, Clone)]
pub(crate) struct StreamConfig {
    /// The session that the stream belongs to.
    pub(crate) session: SessionId,
    /// Where the stream notes that its bytes move.
    pub(crate) activity: Arc<Activity>,
    /// How long a sealed stream waits for the application's first bytes before it sends its header.
    pub(crate) first_bytes: Duration,
    /// The most bytes that are held in each direction.
    pub(crate) window: u32,
    /// How long a stream waits for another substream before it fails.
    pub(crate) resume_timeout: Duration,
}

/// Begins a stream. It can be written at once. The bytes are sent when the handle gets a substream.
pub(crate) fn open<S: Substream>(
    protocol: &str,
    config: StreamConfig,
    events: Sender<PumpEvent>,
) -> Result<(Stream, PumpHandle<S>, Pump<S>), Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| {
        Error::new(ErrorKind::Io, "no random numbers are available").with_source(e.to_string())
    })?;
    let id = StreamId(id);
    let resume = Resume::opener(id, protocol.to_owned(), config.window.into());
    Ok(start(id, protocol, resume, None, config, events))
}

/// Accepts the stream that `header` announces. The header was read from `substream`.
///
/// # Errors
/// [`ErrorKind::ProtocolViolation`] if the header is not an OPEN, or if its window is too small.
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
    let handle = PumpHandle::new(id, junction, mailbox, running);
    (stream, handle, pump)
}

/// Reads the header of an incoming substream, and no byte after it. The caller limits the time.
///
/// # Errors
/// [`ErrorKind::ProtocolViolation`] if the header is malformed, and [`ErrorKind::Io`] if the
/// substream dies first.
pub(crate) async fn read_header<S: AsyncRead + Unpin>(substream: &mut S) -> Result<Header, Error> {
    let header = arriving::read_message(substream, MAX_HEADER).await;
    let header = header.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => violation(ProtocolError::Field("length")),
        _ => error.into(),
    })?;
    Header::decode(&header).map_err(violation)
}

/// Tells the opener that its `header` is refused. The caller limits the time.
pub(crate) async fn refuse<S: AsyncWrite + Unpin>(
    mut substream: S,
    header: &Header,
    refusal: Refusal,
) -> Result<(), Error> {
    let mut out = Vec::new();
    let epoch = header.epoch;
    StreamFrame::Refuse { epoch, refusal }.encode(&mut out);
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
