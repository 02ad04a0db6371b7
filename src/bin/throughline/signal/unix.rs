//! The signals of Unix.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// Receives one kind of signal.
pub(super) struct Signal(unix::Signal);

/// SIGINT, which a terminal sends on Ctrl-C.
pub(super) fn interrupt() -> io::Result<Signal> {
    unix::signal(SignalKind::interrupt()).map(Signal)
}

/// SIGTERM, with which systems end their services.
pub(super) fn terminate() -> io::Result<Signal> {
    unix::signal(SignalKind::terminate()).map(Signal)
}

/// SIGHUP, by which a service reads its settings again.
pub(super) fn hangup() -> io::Result<Signal> {
    unix::signal(SignalKind::hangup()).map(Signal)
}

impl Signal {
    /// Completes at each signal.
    pub(super) async fn next(&mut self) {
        self.0.recv().await;
    }
}
