//! Ends the program in good order on SIGINT and SIGTERM, and when stdout is closed.

use std::io;

use throughline::Error;

use self::system::Signal;
use crate::{
    exit::{Caught, INTERRUPT, TERMINATE},
    output::{Output, io_error},
};

#[cfg_attr(unix, path = "signal/unix.rs")]
#[cfg_attr(windows, path = "signal/windows.rs")]
mod system;

/// Completes on the first SIGINT or SIGTERM after this call, or when stdout fails. Says which.
pub(crate) fn stopped(output: Output) -> Result<impl Future<Output = Error>, Error> {
    let signalled = signalled()?;
    Ok(async move {
        tokio::select! {
            caught = signalled => caught.error(),
            error = output.failed() => error,
        }
    })
}

/// Returns how a command ends that runs until somebody ends it. SIGTERM is how that is done, and
/// nobody need read its output.
pub(crate) fn ended(error: Error) -> Result<(), Error> {
    let caught = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    match caught {
        Some(&INTERRUPT) => Err(error),
        _ => Ok(()),
    }
}

/// How the program is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGTERM: what has begun may go on for a while.
    Gently,
    /// SIGINT.
    AtOnce,
    /// Nobody can read stdout any more.
    Unread,
}

impl Stop {
    /// Returns how the program ends.
    pub(crate) fn ended(self) -> Result<(), Error> {
        match self {
            Self::AtOnce => Err(INTERRUPT.error()),
            Self::Gently | Self::Unread => Ok(()),
        }
    }
}

/// Whatever ends a server.
pub(crate) struct Stops {
    terminate: Signal,
    interrupt: Signal,
    output: Output,
}

impl Stops {
    pub(crate) fn new(output: Output) -> Result<Self, Error> {
        Ok(Self {
            terminate: registered(system::terminate())?,
            interrupt: registered(system::interrupt())?,
            output,
        })
    }

    /// Completes when the program is to end, once for each signal.
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            () = self.terminate.next() => Stop::Gently,
            () = self.interrupt.next() => Stop::AtOnce,
            _ = self.output.failed() => Stop::Unread,
        }
    }
}

/// SIGHUP, where there is such a signal.
pub(crate) struct Hangups(Signal);

impl Hangups {
    pub(crate) fn new() -> Result<Self, Error> {
        registered(system::hangup()).map(Self)
    }

    /// Completes at each signal.
    pub(crate) async fn next(&mut self) {
        self.0.next().await;
    }
}

fn registered(signal: io::Result<Signal>) -> Result<Signal, Error> {
    signal.map_err(|error| io_error("signal handler", error))
}

fn signalled() -> Result<impl Future<Output = Caught>, Error> {
    let mut interrupt = registered(system::interrupt())?;
    let mut terminate = registered(system::terminate())?;
    Ok(async move {
        tokio::select! {
            () = interrupt.next() => INTERRUPT,
            () = terminate.next() => TERMINATE,
        }
    })
}
