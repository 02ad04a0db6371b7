//! The exit statuses of the program. They are part of its contract, as the events are.

use std::fmt;

use throughline::{Error, ErrorKind};

/// The statuses, as the help and the manual list them.
pub(crate) const STATUSES: &[(&str, &str)] = &[
    (
        "0",
        "it is done; a server, a listener or a forward was ended by SIGTERM",
    ),
    (
        "1",
        "something else failed: a file, a socket, the other side's protocol",
    ),
    (
        "2",
        "the command line, a ticket, an address, a setting or a key is wrong",
    ),
    (
        "3",
        "a relay or the peer cannot be reached, or another peer answered",
    ),
    ("4", "a deadline passed, such as that of --wait-direct"),
    (
        "5",
        "the peer or a relay refused, or a limit or quota is reached",
    ),
    (
        "6",
        "the connection or the stream ended before the work was done",
    ),
    ("130", "Ctrl-C (SIGINT)"),
    ("143", "SIGTERM"),
];

/// The status for a wrong command line.
pub(crate) const USAGE: u8 = 2;

/// Returns the exit status for an error.
pub(crate) fn status(error: &Error) -> u8 {
    use ErrorKind as Kind;
    let source = std::error::Error::source(error);
    if let Some(Caught(number)) = source.and_then(|source| source.downcast_ref()) {
        return 128 + number;
    }
    match error.kind() {
        Kind::InvalidTicket
        | Kind::InvalidAddress
        | Kind::InvalidConfig
        | Kind::InvalidIdentity
        | Kind::InvalidProtocol => USAGE,
        Kind::NoRelay | Kind::Unreachable | Kind::WrongPeer => 3,
        Kind::Timeout => 4,
        Kind::ProtocolRefused | Kind::LimitExceeded | Kind::AccessDenied | Kind::QuotaExceeded => 5,
        Kind::StreamReset | Kind::ConnectionClosed | Kind::ConnectionLost => 6,
        _ => 1,
    }
}

/// The signal that has ended the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caught(pub(crate) u8);

/// SIGINT.
pub(crate) const INTERRUPT: Caught = Caught(2);
/// SIGTERM.
pub(crate) const TERMINATE: Caught = Caught(15);

impl Caught {
    /// Makes the error that ends the program.
    pub(crate) fn error(self) -> Error {
        Error::new(ErrorKind::Aborted, self.to_string()).with_source(self)
    }

    /// Whether `error` says that a signal has ended the program.
    pub(crate) fn is_cause(error: &Error) -> bool {
        std::error::Error::source(error).is_some_and(|source| source.is::<Self>())
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if *self == INTERRUPT {
            "SIGINT"
        } else {
            "SIGTERM"
        };
        write!(f, "{name} ended the program")
    }
}

impl std::error::Error for Caught {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_listed() {
        let listed = |status: u8| STATUSES.iter().any(|(text, _)| *text == status.to_string());
        for kind in ErrorKind::ALL {
            assert!(listed(status(&Error::new(*kind, ""))), "{kind}");
        }
        assert_eq!(status(&INTERRUPT.error()), 130);
        assert_eq!(status(&TERMINATE.error()), 143);
        assert!(listed(130) && listed(143));
    }
}
