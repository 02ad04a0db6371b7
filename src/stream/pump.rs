//! The task that moves bytes between a resumable stream and the substream that carries it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::channel::mpsc::Sender;
use futures_timer::Delay;
use tokio::sync::oneshot;

use super::{
    junction::{Junction, keep},
    mailbox::{Attachment, Mailbox, Via},
    reports::PumpEvent,
    resumable::{StreamConfig, Substream, violation},
};
use crate::{
    core::{
        resume::{Decoder, MAX_FRAME, ProtocolError, Refusal, StreamId},
        seconds::Seconds,
    },
    error::{Error, ErrorKind},
};

/// How many bytes are read at a time, which is the length of the longest frame.
const READ_SIZE: usize = MAX_FRAME;

/// How many rounds of reading and writing the pump does before other tasks get their turn. They
/// move about 1 MiB in each direction.
const ROUNDS: usize = 16;

/// How long a stream waits for its first substream. A stream that the application has dropped waits
/// this long for each sign that the peer still takes its bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Drives one stream to its end. The caller spawns it.
///
/// # Drop
/// The stream fails with [`ErrorKind::ConnectionClosed`].
pub(crate) struct Pump<S> {
    id: StreamId,
    config: StreamConfig,
    junction: Arc<Junction>,
    mailbox: Arc<Mailbox<S>>,
    events: Sender<PumpEvent>,
    /// An event for which the event loop had no room yet.
    event: Option<PumpEvent>,
    /// The substream in use, which is read and written.
    current: Option<Attached<S>>,
    /// The previous substream, which is read until the current one has caught up.
    old: Option<Attached<S>>,
    began: bool,
    output: Output,
    timer: Option<(Wait, Delay)>,
    /// The sender is dropped when the stream has ended, well or badly.
    running: Option<oneshot::Sender<()>>,
}

/// A substream and the bytes that were read from it.
struct Attached<S> {
    substream: S,
    connection: Via,
    decoder: Decoder,
    /// The read buffer, allocated while bytes come in. Its first `filled` bytes are the beginning
    /// of a frame.
    input: Vec<u8>,
    filled: usize,
    read_ended: bool,
    write_closed: bool,
    /// Whether nothing is written yet, because the first flight waits for the application's first
    /// bytes.
    holding: bool,
}

/// Frames on their way to the current substream.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// The event that the timer waits for. The timer starts again when this changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The pump waits for the application's first bytes.
    FirstBytes,
    /// The pump waits for a substream.
    Substream,
    /// The pump waits until the peer acknowledges the last bytes.
    Acknowledgement { acked: u64 },
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There may be more to do at once.
    Moved,
    /// There is nothing to do until the waker is called.
    Waiting,
    /// The substream cannot be used any more.
    Lost,
}

impl<S: Substream> Pump<S> {
    pub(super) fn new(
        id: StreamId,
        junction: Arc<Junction>,
        mailbox: Arc<Mailbox<S>>,
        config: StreamConfig,
        events: Sender<PumpEvent>,
        running: oneshot::Sender<()>,
    ) -> Self {
        Self {
            id,
            config,
            junction,
            mailbox,
            events,
            event: None,
            current: None,
            old: None,
            began: false,
            output: Output::default(),
            timer: None,
            running: Some(running),
        }
    }

    /// Does one turn. `Err` means that the stream has failed. `Ok(Ready)` means that it is
    /// complete.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.junction.lock().keep_pump(cx);
        self.take_letters(cx)?;
        self.read_old(cx)?;
        let (mut read, mut written) = (Step::Moved, Step::Moved);
        for _ in 0..ROUNDS {
            if read == Step::Moved {
                read = self.read_current(cx)?;
            }
            // Frames that were read may need an answer.
            written = self.write_current(cx);
            if read != Step::Moved && written != Step::Moved {
                break;
            }
        }
        if read == Step::Moved || written == Step::Moved {
            cx.waker().wake_by_ref();
        }
        if self.poll_complete(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.close_old(cx);
        self.poll_event(cx);
        self.poll_timer(cx)
    }

    fn take_letters(&mut self, cx: &Context<'_>) -> Result<(), Error> {
        let (fail, attach) = {
            let mut letters = self.mailbox.lock();
            keep(&mut letters.pump, cx);
            (letters.fail.take(), letters.attach.take())
        };
        if let Some(error) = fail {
            return Err(error);
        }
        match attach {
            Some(attachment) => self.attach(attachment).map_err(violation),
            None => Ok(()),
        }
    }

    fn attach(&mut self, attachment: Attachment<S>) -> Result<(), ProtocolError> {
        let is_stale = {
            let resume = &mut self.junction.lock().resume;
            match &attachment.header {
                None => {
                    resume.attach();
                    false
                }
                Some(header) => !resume.attach_from(header)?,
            }
        };
        if is_stale {
            return Ok(());
        }
        let mut link = Attached::new(attachment.substream, attachment.connection);
        // A sealed stream can send a second time only after the peer's answer.
        link.holding = attachment.header.is_none() && attachment.connection.is_none();
        if let Some(previous) = self.current.replace(link) {
            self.old = Some(previous);
        }
        self.output = Output::default();
        // A loss that the event loop has not been told of is settled by the new substream.
        if let Some(PumpEvent::Busy { .. }) = self.event.take() {
            self.config.activity.forget_sent();
        }
        self.began = true;
        Ok(())
    }

    fn read_old(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            let Some(link) = &mut self.old else {
                return Ok(());
            };
            match link.read(&self.junction, cx)? {
                Step::Moved => {}
                Step::Waiting => return Ok(()),
                Step::Lost => self.old = None,
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn read_current(&mut self, cx: &mut Context<'_>) -> Result<Step, Error> {
        let Some(link) = &mut self.current else {
            return Ok(Step::Waiting);
        };
        let received = || self.junction.lock().resume.received();
        let before = if self.old.is_some() { received() } else { 0 };
        let step = link.read(&self.junction, cx)?;
        if self.old.is_some() && received() > before {
            // The new substream has caught up with the old one.
            self.old = None;
        }
        match step {
            Step::Moved => self.config.activity.hear(),
            Step::Lost => self.lose_current(),
            Step::Waiting => {}
        }
        Ok(step)
    }

    fn write_current(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(link) = &mut self.current else {
            return Step::Waiting;
        };
        link.holding = link.holding && self.junction.lock().is_silent();
        if link.holding {
            return Step::Waiting;
        }
        let step = self
            .output
            .write(&self.junction, &mut link.substream, cx)
            .unwrap_or(Step::Lost);
        match step {
            Step::Moved => {
                let connection = link.connection;
                if self.event.is_none() && self.config.activity.send() {
                    let session = self.config.session;
                    self.event = Some(PumpEvent::Busy {
                        session,
                        connection,
                    });
                }
            }
            Step::Lost => self.lose_current(),
            Step::Waiting => {}
        }
        step
    }

    fn lose_current(&mut self) {
        if let Some(link) = self.current.take() {
            self.junction.lock().resume.detach();
            self.output = Output::default();
            self.event = Some(PumpEvent::Lost {
                session: self.config.session,
                id: self.id,
                connection: link.connection,
            });
        }
    }

    /// Once both ends have everything, closes the substream and waits for the peer to do the same.
    /// Only then is it certain that the last acknowledgement has arrived.
    fn poll_complete(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.junction.lock().resume.is_complete() {
            return Poll::Pending;
        }
        let Some(link) = &mut self.current else {
            return if self.began {
                Poll::Pending
            } else {
                // The stream was reset before the peer heard of it.
                Poll::Ready(())
            };
        };
        if !self.output.is_empty() {
            return Poll::Pending;
        }
        ready!(link.poll_close(cx));
        if link.read_ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Closes the old substream once the peer has stopped writing on it. The peer might take an
    /// earlier close for the death of the substream.
    fn close_old(&mut self, cx: &mut Context<'_>) {
        if let Some(link) = &mut self.old
            && self.junction.lock().resume.is_answered()
        {
            let _ = link.poll_close(cx);
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) {
        if self.event.is_some()
            && let Poll::Ready(room) = self.events.poll_ready(cx)
            && let Some(event) = self.event.take()
            && room.is_ok()
        {
            // There is room. An event loop that is gone has dropped the handle as well.
            let _ = self.events.start_send(event);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let (complete, wait) = {
            let state = self.junction.lock();
            let complete = state.resume.is_complete();
            let acked = state.resume.acked();
            let wait = if self.current.is_none() {
                Some(Wait::Substream)
            } else if self.current.as_ref().is_some_and(|link| link.holding) {
                Some(Wait::FirstBytes)
            } else if complete || state.is_abandoned() {
                Some(Wait::Acknowledgement { acked })
            } else {
                None
            };
            (complete, wait)
        };
        let Some(wait) = wait else {
            self.timer = None;
            return Poll::Pending;
        };
        let patience = match wait {
            Wait::FirstBytes => self.config.first_bytes,
            Wait::Substream if self.began => self.config.resume_timeout,
            _ => PATIENCE,
        };
        let (_, timer) = match &mut self.timer {
            Some(timer) if timer.0 == wait => timer,
            timer => timer.insert((wait, Delay::new(patience))),
        };
        ready!(Pin::new(timer).poll(cx));
        if complete {
            return Poll::Ready(Ok(()));
        }
        let seconds = Seconds(patience);
        Poll::Ready(Err(match wait {
            Wait::FirstBytes => {
                if let Some(link) = &mut self.current {
                    link.holding = false;
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Wait::Substream => Error::new(
                ErrorKind::ConnectionLost,
                format!("no path came back within {seconds} s"),
            ),
            Wait::Acknowledgement { .. } => Error::new(
                ErrorKind::Timeout,
                format!("the peer has acknowledged nothing for {seconds} s"),
            ),
        }))
    }
}

impl<S: Substream> Future for Pump<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.running.is_some() {
            let result = ready!(this.turn(cx));
            if let Err(error) = result {
                tracing::debug!(stream = ?this.id, %error, "a stream failed");
                this.junction.lock().fail(&error);
            }
            this.running = None;
            this.current = None;
            this.old = None;
            this.event = Some(PumpEvent::Done {
                session: this.config.session,
                id: this.id,
            });
        }
        this.poll_event(cx);
        if this.event.is_some() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl<S> Drop for Pump<S> {
    fn drop(&mut self) {
        if self.running.is_some() {
            let error = Error::new(ErrorKind::ConnectionClosed, "the connection was closed");
            self.junction.lock().fail(&error);
        }
    }
}

impl<S: Substream> Attached<S> {
    fn new(substream: S, connection: Via) -> Self {
        Self {
            substream,
            connection,
            decoder: Decoder::default(),
            input: Vec::new(),
            filled: 0,
            read_ended: false,
            write_closed: false,
            holding: false,
        }
    }

    /// Reads once and handles the frames that were read.
    fn read(&mut self, junction: &Junction, cx: &mut Context<'_>) -> Result<Step, Error> {
        if self.read_ended {
            return Ok(Step::Waiting);
        }
        if self.input.is_empty() {
            self.input = vec![0; READ_SIZE];
        }
        let free = &mut self.input[self.filled..];
        let count = match Pin::new(&mut self.substream).poll_read(cx, free) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(_)) => return Ok(Step::Lost),
            Poll::Pending => {
                if self.filled == 0 {
                    // An idle stream holds no memory.
                    self.input = Vec::new();
                }
                return Ok(Step::Waiting);
            }
        };
        let mut state = junction.lock();
        if count == 0 {
            self.read_ended = state.resume.is_complete();
            return Ok(if self.read_ended {
                Step::Waiting
            } else {
                Step::Lost
            });
        }
        let filled = self.filled + count;
        let mut input = &self.input[..filled];
        while let Some(frame) = self.decoder.decode(&mut input).map_err(violation)? {
            state.resume.handle_frame(frame).map_err(violation)?;
        }
        state.wake_ready();
        if let Some(refusal) = state.resume.refusal()
            && !state.resume.is_complete()
        {
            return Err(refused(refusal));
        }
        drop(state);
        self.filled = input.len();
        self.input.copy_within(filled - self.filled..filled, 0);
        Ok(Step::Moved)
    }

    /// Closes the writing half. An error counts as closed, because nobody reads there any more.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.write_closed {
            let _ = ready!(Pin::new(&mut self.substream).poll_close(cx));
            self.write_closed = true;
        }
        Poll::Ready(())
    }
}

impl Output {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len() && !self.unflushed
    }

    /// Writes one batch, or flushes if there is nothing to write.
    fn write<S: Substream>(
        &mut self,
        junction: &Junction,
        substream: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<Step> {
        let mut substream = Pin::new(substream);
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
            junction.lock().poll_transmit(&mut self.bytes);
        }
        while self.written < self.bytes.len() {
            match substream
                .as_mut()
                .poll_write(cx, &self.bytes[self.written..])?
            {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => self.written += count,
                Poll::Pending => return Ok(Step::Waiting),
            }
            self.unflushed = true;
        }
        if !self.bytes.is_empty() {
            return Ok(Step::Moved);
        }
        // An idle stream holds no memory.
        self.bytes = Vec::new();
        if self.unflushed && substream.poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(Step::Waiting)
    }
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::UnknownProtocol => Error::new(
            ErrorKind::ProtocolRefused,
            "the peer does not serve this protocol",
        ),
        Refusal::TooManyStreams => {
            Error::new(ErrorKind::LimitExceeded, "the peer allows no more streams")
        }
        Refusal::UnknownStream => Error::new(
            ErrorKind::ConnectionLost,
            "the peer no longer has the stream",
        ),
        Refusal::Other(code) => Error::new(
            ErrorKind::ProtocolRefused,
            format!("the peer refused the stream, code {code}"),
        ),
    }
}

#[cfg(test)]
mod duplex;
#[cfg(test)]
mod tests;
