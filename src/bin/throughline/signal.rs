//! Ends the program in good order on SIGINT and SIGTERM, and when stdout is closed.

use throughline::Error;

use crate::{
    exit::{Caught, INTERRUPT, TERMINATE},
    output::{Output, io_error},
};

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
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    output: Output,
}

impl Stops {
    pub(crate) fn new(output: Output) -> Result<Self, Error> {
        Ok(Self {
            #[cfg(unix)]
            terminate: register(tokio::signal::unix::SignalKind::terminate())?,
            #[cfg(unix)]
            interrupt: register(tokio::signal::unix::SignalKind::interrupt())?,
            output,
        })
    }

    /// Completes when the program is to end, once for each signal.
    pub(crate) async fn next(&mut self) -> Stop {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => Stop::Gently,
            _ = self.interrupt.recv() => Stop::AtOnce,
            _ = self.output.failed() => Stop::Unread,
        }
        #[cfg(not(unix))]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => Stop::AtOnce,
            _ = self.output.failed() => Stop::Unread,
        }
    }
}

/// SIGHUP, where there is such a signal.
pub(crate) struct Hangups(#[cfg(unix)] tokio::signal::unix::Signal);

impl Hangups {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self(
            #[cfg(unix)]
            register(tokio::signal::unix::SignalKind::hangup())?,
        ))
    }

    /// Completes at each signal.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        let _ = self.0.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

#[cfg(unix)]
fn register(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    tokio::signal::unix::signal(kind).map_err(|error| io_error("signal handler", error))
}

#[cfg(unix)]
fn signalled() -> Result<impl Future<Output = Caught>, Error> {
    use tokio::signal::unix::SignalKind;
    let mut interrupt = register(SignalKind::interrupt())?;
    let mut terminate = register(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => INTERRUPT,
            _ = terminate.recv() => TERMINATE,
        }
    })
}

/// Completes on Ctrl-C.
#[cfg(not(unix))]
fn signalled() -> Result<impl Future<Output = Caught>, Error> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
        INTERRUPT
    })
}
