//! What Windows has in place of signals.

use std::{future, io};

use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};

/// Receives one kind of event.
pub(super) enum Signal {
    Interrupt(CtrlC, CtrlClose, CtrlShutdown),
    Terminate(CtrlBreak),
    Never,
}

/// Ctrl-C, the close of the console, and the shutdown of the system. Windows ends the program a few
/// seconds after the latter two, so there is no time for a gentle end.
pub(super) fn interrupt() -> io::Result<Signal> {
    Ok(Signal::Interrupt(
        windows::ctrl_c()?,
        windows::ctrl_close()?,
        windows::ctrl_shutdown()?,
    ))
}

/// Ctrl-Break, which one program can send to another.
pub(super) fn terminate() -> io::Result<Signal> {
    windows::ctrl_break().map(Signal::Terminate)
}

/// Nothing, because no event asks a service to read its settings again.
pub(super) fn hangup() -> io::Result<Signal> {
    Ok(Signal::Never)
}

impl Signal {
    /// Completes at each event.
    pub(super) async fn next(&mut self) {
        match self {
            Self::Interrupt(interrupt, close, shutdown) => tokio::select! {
                _ = interrupt.recv() => (),
                _ = close.recv() => (),
                _ = shutdown.recv() => (),
            },
            Self::Terminate(stop) => _ = stop.recv().await,
            Self::Never => future::pending().await,
        }
    }
}
