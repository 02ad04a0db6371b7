//! The place where the handles of a resumable stream and its pump meet. It holds the state machine
//! behind a lock, and the wakers of the tasks that wait for it. The lock is held no longer than one
//! copy takes.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{
    core::resume::{Closed, REFUSED, Resume},
    error::{Error, ErrorKind, ResetCode},
};

/// One resumable stream, shared by its reading handle, its writing handle and its pump.
pub(crate) struct Junction(Mutex<State>);

pub(crate) struct State {
    pub(crate) resume: Resume,
    failure: Option<Error>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    pump: Option<Waker>,
    /// Whether the pump has sent everything, so that whoever adds something must wake it.
    idle: bool,
    reader_gone: bool,
    writer_gone: bool,
}

impl Junction {
    pub(crate) fn new(resume: Resume) -> Self {
        Self(Mutex::new(State {
            resume,
            failure: None,
            reader: None,
            writer: None,
            pump: None,
            idle: false,
            reader_gone: false,
            writer_gone: false,
        }))
    }

    /// Locks the state. A panic while the lock is held does not leave the state machine half
    /// changed, so poisoning is ignored.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        match state.resume.read(out) {
            Ok(Some(count)) => {
                state.wake_idle_pump();
                Poll::Ready(Ok(count))
            }
            Ok(None) => match state.failure() {
                Some(error) => Poll::Ready(Err(error)),
                None => {
                    keep(&mut state.reader, cx);
                    Poll::Pending
                }
            },
            Err(closed) => Poll::Ready(Err(closed_error(closed))),
        }
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        if let Some(error) = state.failure() {
            return Poll::Ready(Err(error));
        }
        match state.resume.write(bytes) {
            Ok(0) if !bytes.is_empty() => {
                keep(&mut state.writer, cx);
                Poll::Pending
            }
            Ok(count) => {
                state.wake_idle_pump();
                Poll::Ready(Ok(count))
            }
            Err(closed) => Poll::Ready(Err(closed_error(closed))),
        }
    }

    /// Reports errors. There is nothing to flush, because the pump sends everything at once.
    pub(crate) fn poll_flush(&self) -> Poll<io::Result<()>> {
        let state = self.lock();
        Poll::Ready(match (state.resume.is_finished(), state.failure()) {
            (Err(closed), _) => Err(closed_error(closed)),
            (Ok(false), Some(error)) => Err(error),
            _ => Ok(()),
        })
    }

    pub(crate) fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        state.resume.finish();
        match (state.resume.is_finished(), state.failure()) {
            (Ok(true), _) => Poll::Ready(Ok(())),
            (Err(closed), _) => Poll::Ready(Err(closed_error(closed))),
            (Ok(false), Some(error)) => Poll::Ready(Err(error)),
            (Ok(false), None) => {
                state.wake_idle_pump();
                keep(&mut state.writer, cx);
                Poll::Pending
            }
        }
    }

    pub(crate) fn reset(&self, code: ResetCode) {
        self.reset_with(code.0.into());
    }

    /// The application does not serve the stream's protocol.
    pub(crate) fn refuse(&self) {
        self.reset_with(REFUSED);
    }

    fn reset_with(&self, code: u64) {
        let mut state = self.lock();
        state.resume.reset(code);
        state.wake_handles();
        state.wake_pump();
    }

    /// The peer's writes fail with `code`. The first call counts.
    pub(crate) fn stop(&self, code: ResetCode) {
        let mut state = self.lock();
        state.resume.stop(code.0.into());
        state.wake_pump();
    }

    pub(crate) fn drop_reader(&self) {
        let mut state = self.lock();
        state.reader_gone = true;
        state.resume.stop(0);
        state.wake_pump();
    }

    pub(crate) fn drop_writer(&self) {
        let mut state = self.lock();
        state.writer_gone = true;
        state.resume.finish();
        state.wake_pump();
    }
}

impl State {
    /// Whether the application has dropped both halves.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reader_gone && self.writer_gone
    }

    /// Ends the stream for the application. The first failure is kept.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.clone());
        self.wake_handles();
    }

    /// Registers the pump's waker. The pump calls this at the beginning of each turn, so that it
    /// misses nothing that happens during the turn.
    pub(crate) fn keep_pump(&mut self, cx: &Context<'_>) {
        keep(&mut self.pump, cx);
    }

    /// Takes what has to be sent next. If this is nothing, the pump is woken when there is
    /// something.
    pub(crate) fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        self.resume.poll_transmit(out);
        self.idle = out.is_empty();
    }

    /// Whether the application has said nothing yet. If so, the pump is woken when it does.
    pub(crate) fn is_silent(&mut self) -> bool {
        let silent = self.resume.has_only_header();
        self.idle |= silent;
        silent
    }

    /// Wakes the handles that can go on, after frames have come in.
    pub(crate) fn wake_ready(&mut self) {
        if self.resume.is_readable() {
            wake(&mut self.reader);
        }
        if self.resume.is_writable() {
            wake(&mut self.writer);
        }
    }

    fn wake_handles(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    fn wake_pump(&mut self) {
        self.idle = false;
        wake(&mut self.pump);
    }

    /// Wakes the pump if it is idle. A pump that is still busy with the substream looks for output
    /// by itself.
    fn wake_idle_pump(&mut self) {
        if self.idle && self.resume.has_output() {
            self.wake_pump();
        }
    }

    fn failure(&self) -> Option<io::Error> {
        Some(self.failure.clone()?.into())
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

pub(crate) fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

fn closed_error(closed: Closed) -> io::Error {
    let (code, message) = match closed {
        Closed::Finished => {
            return io::Error::new(io::ErrorKind::BrokenPipe, "the stream was closed here");
        }
        Closed::Reset {
            code: REFUSED,
            by_peer,
        } => {
            let message = match by_peer {
                true => "the peer does not serve this protocol",
                false => "the stream was refused here",
            };
            return Error::new(ErrorKind::ProtocolRefused, message).into();
        }
        Closed::Stopped { code } => (code, "the peer reads no more"),
        Closed::Reset {
            code,
            by_peer: true,
        } => (code, "the peer reset the stream"),
        Closed::Reset { code, .. } => (code, "the stream was reset here"),
    };
    // An application's code has 32 bits. The frame has room for more.
    let code = ResetCode(u32::try_from(code).unwrap_or(u32::MAX));
    Error::new(ErrorKind::StreamReset, format!("{message}, code {code}"))
        .with_reset_code(code)
        .into()
}
