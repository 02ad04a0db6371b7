//! Where the handles of a resumable stream and its pump meet: the state machine behind a lock that is
//! held for no longer than one copy, and the wakers of those who wait for it.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{
    core::resume::{Closed, Resume},
    error::{Error, ErrorKind},
};

/// One resumable stream, shared by its reading handle, its writing handle and its pump.
pub(crate) struct Junction(Mutex<State>);

pub(crate) struct State {
    pub(crate) resume: Resume,
    failure: Option<Error>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    pump: Option<Waker>,
    /// The pump has sent everything there was: whoever adds something wakes it.
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

    /// The state machine is left whole by whatever panics while it is locked.
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

    /// The pump sends at once whatever it is given, so there is nothing to do but to tell of errors.
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

    pub(crate) fn reset(&self, code: u32) {
        let mut state = self.lock();
        state.resume.reset(code.into());
        state.wake_handles();
        state.wake_pump();
    }

    pub(crate) fn drop_reader(&self) {
        let mut state = self.lock();
        state.reader_gone = true;
        state.resume.stop();
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
    /// Whether the application holds neither half any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reader_gone && self.writer_gone
    }

    /// Ends the stream for the application. The first failure stays.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.repeated());
        self.wake_handles();
    }

    /// At the beginning of each turn of the pump, so that nothing that happens during it is missed.
    pub(crate) fn keep_pump(&mut self, cx: &Context<'_>) {
        keep(&mut self.pump, cx);
    }

    /// Takes what is to be sent next. If that is nothing, the pump is woken when there is something.
    pub(crate) fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        self.resume.poll_transmit(out);
        self.idle = out.is_empty();
    }

    /// After frames have come in: wakes the handles that can go on.
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

    /// A pump that is still busy with the substream looks again by itself.
    fn wake_idle_pump(&mut self) {
        if self.idle && self.resume.has_output() {
            self.wake_pump();
        }
    }

    fn failure(&self) -> Option<io::Error> {
        Some(self.failure.as_ref()?.repeated().into())
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
    let message = match closed {
        Closed::Finished => {
            return io::Error::new(io::ErrorKind::BrokenPipe, "the stream was closed here");
        }
        Closed::Stopped => "the peer reads no more".to_owned(),
        Closed::Reset {
            code,
            by_peer: true,
        } => format!("the peer reset the stream, code {code}"),
        Closed::Reset { code, .. } => format!("the stream was reset here, code {code}"),
    };
    Error::new(ErrorKind::StreamReset, message).into()
}
