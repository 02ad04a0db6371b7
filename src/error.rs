//! The one error type, the same on both targets and, by its [`code`](Error::code), in TypeScript.

use std::{error::Error as StdError, fmt};

use crate::event::{Attempt, Outcome};

/// What went wrong, what was tried and what to do about it.
///
/// [`kind`](Self::kind) is for `match`, [`code`](Self::code) for logs and other languages,
/// `Display` for people: it names the field or the peer concerned, then each attempt with why it
/// lost.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    attempts: Vec<Attempt>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal,)*) => {
        /// The kinds of [`Error`]. Each has a stable [`code`](ErrorKind::code).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[doc = $doc])* $name,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The stable, snake-case name of this kind, the same in Rust, JSON and TypeScript.
            pub fn code(self) -> &'static str {
                match self {
                    $(ErrorKind::$name => $code,)*
                }
            }
        }
    };
}

kinds! {
    /// A ticket does not parse. The message names the part. Ask the peer for a fresh one.
    InvalidTicket = "invalid_ticket",
    /// A multiaddress, URL or socket address does not parse or has the wrong form for its place.
    InvalidAddress = "invalid_address",
    /// A configuration value is unknown, of the wrong type or out of range. The message names it.
    InvalidConfig = "invalid_config",
    /// An identity file or key is malformed, or others can read it.
    InvalidIdentity = "invalid_identity",
    /// A protocol name is empty, too long or has control characters.
    InvalidProtocol = "invalid_protocol",
    /// The peer or the network sent something that its protocol forbids.
    ProtocolViolation = "protocol_violation",
    /// No configured relay could be reached, or none granted a reservation.
    NoRelay = "no_relay",
    /// No path to the peer came up. [`Error::attempts`] lists every attempt.
    Unreachable = "unreachable",
    /// The peer that answered is not the one the ticket names. Nothing was sent to it.
    WrongPeer = "wrong_peer",
    /// A deadline of the configuration passed. The message says which.
    Timeout = "timeout",
    /// The peer does not serve the protocol that was asked for.
    ProtocolRefused = "protocol_refused",
    /// A limit, ours or the peer's, was reached. The message says which.
    LimitExceeded = "limit_exceeded",
    /// The stream was reset by the peer, or by [`Stream::reset`](crate::Stream::reset).
    StreamReset = "stream_reset",
    /// The connection was closed by either side; its streams are gone.
    ConnectionClosed = "connection_closed",
    /// Every path was lost and none came back within the resume timeout.
    ConnectionLost = "connection_lost",
    /// The [`Connector`](crate::Connector) was closed.
    ConnectorClosed = "connector_closed",
    /// The caller cancelled the operation.
    Aborted = "aborted",
    /// This platform lacks what is needed (a worker, Node without WebRTC, an insecure context).
    UnsupportedPlatform = "unsupported_platform",
    /// The operating system refused something: a socket, a file. The source has its words.
    Io = "io",
    /// A bug in this library. Please report it.
    Internal = "internal",
}

impl Error {
    /// An error of `kind` whose `message` says what was wrong and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            attempts: Vec::new(),
            source: None,
        }
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what was tried.
    pub fn with_attempts(mut self, attempts: Vec<Attempt>) -> Self {
        self.attempts = attempts;
        self
    }

    /// What went wrong, for `match`.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What went wrong, as a stable snake-case name.
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// The same again, without its source.
    pub(crate) fn repeated(&self) -> Self {
        Self::new(self.kind, self.message.clone()).with_attempts(self.attempts.clone())
    }

    /// The message alone, without the code and the attempts.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Everything that was tried, in the order it started. Empty unless a connect failed.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message)?;
        for attempt in &self.attempts {
            if attempt.outcome == Outcome::Failed {
                let reason = attempt.reason.as_deref().unwrap_or("no reason given");
                write!(
                    f,
                    "; {} after {} ms: {reason}",
                    attempt.strategy.as_str(),
                    attempt.ended.saturating_sub(attempt.started).as_millis()
                )?;
            }
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// So that a stream's error reaches callers of `AsyncRead` and `AsyncWrite` whole: downcast
/// [`std::io::Error::get_ref`] to get it back.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind {
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::StreamReset => Io::ConnectionReset,
            ErrorKind::ConnectionClosed
            | ErrorKind::ConnectionLost
            | ErrorKind::ConnectorClosed => Io::ConnectionAborted,
            ErrorKind::ProtocolViolation => Io::InvalidData,
            ErrorKind::UnsupportedPlatform => Io::Unsupported,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(other) => Self::new(ErrorKind::Io, other.to_string()).with_source(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;
    use crate::event::Strategy;

    #[test]
    fn codes_are_unique_snake_case() {
        let codes: HashSet<_> = ErrorKind::ALL.iter().map(|k| k.code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(
            codes
                .iter()
                .all(|c| c.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        );
    }

    #[test]
    fn display_lists_failed_attempts() {
        let attempt = Attempt {
            strategy: Strategy::Stun,
            outcome: Outcome::Failed,
            started: Duration::from_millis(5),
            ended: Duration::from_millis(45),
            cause: Some(crate::Cause::NoPair),
            reason: Some("no pair".into()),
        };
        let error =
            Error::new(ErrorKind::Unreachable, "no path to the peer").with_attempts(vec![attempt]);
        assert_eq!(
            error.to_string(),
            "unreachable: no path to the peer; stun after 40 ms: no pair"
        );
    }

    #[test]
    fn survives_io_error() {
        let io: std::io::Error = Error::new(ErrorKind::StreamReset, "code 7").into();
        assert_eq!(io.kind(), std::io::ErrorKind::ConnectionReset);
        let back = Error::from(io);
        assert_eq!(back.kind(), ErrorKind::StreamReset);
    }
}
