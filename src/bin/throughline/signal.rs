//! Ends the program in good order on SIGINT and SIGTERM, and when stdout is closed.

use throughline::{Error, ErrorKind};

use crate::output::{Output, io_error};

/// Completes on the first SIGINT or SIGTERM after this call, or when stdout fails. Says which.
pub(crate) fn stopped(output: Output) -> Result<impl Future<Output = Error>, Error> {
    let signalled = signalled()?;
    Ok(async move {
        tokio::select! {
            () = signalled => Error::new(ErrorKind::Aborted, "a signal stopped the program"),
            error = output.failed() => error,
        }
    })
}

#[cfg(unix)]
fn signalled() -> Result<impl Future<Output = ()>, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let register = |kind| signal(kind).map_err(|error| io_error("signal handler", error));
    let mut interrupt = register(SignalKind::interrupt())?;
    let mut terminate = register(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Completes on Ctrl-C.
#[cfg(not(unix))]
fn signalled() -> Result<impl Future<Output = ()>, Error> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}
