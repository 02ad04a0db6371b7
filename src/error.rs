//! The one error type. It is the same on both targets, and its [`code`](Error::code) is the same in
//! TypeScript.

use std::{error::Error as StdError, fmt, io, iter, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

use crate::event::{Attempt, Outcome};

/// What went wrong, what was tried and what to do about it.
///
/// Use [`kind`](Self::kind) in a `match`, [`code`](Self::code) in logs and for other languages, and
/// `Display` for people. `Display` names the field or the peer, and then each attempt that failed,
/// with the reason.
///
/// `==` compares all of this, the [`reset_code`](Self::reset_code) and
/// [`retry_after`](Self::retry_after). It does not compare the
/// [`source`](StdError::source), because errors of other libraries have no `==`.
///
/// ```
/// use throughline::{Error, ErrorKind, Ticket};
///
/// let error = "not a ticket".parse::<Ticket>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidTicket);
/// assert_eq!(error.code(), "invalid_ticket");
/// assert!(error.to_string().starts_with("invalid_ticket: "));
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    attempts: Vec<Attempt>,
    reset_code: Option<ResetCode>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The reason that an application gives when it cuts a stream short. It is a number whose meaning
/// the two applications agree on. It is 0 if the application gave no reason.
///
/// Pass it to [`Stream::reset`](crate::Stream::reset) or
/// [`RecvStream::stop`](crate::RecvStream::stop). The other end reads it from its error. Both
/// methods also take a `u32`.
///
/// ```
/// use std::io;
/// use throughline::ResetCode;
///
/// /// This application uses 7 for a full disk.
/// const DISK_FULL: ResetCode = ResetCode(7);
///
/// fn is_disk_full(error: &io::Error) -> bool {
///     ResetCode::of(error) == Some(DISK_FULL)
/// }
/// # assert!(!is_disk_full(&io::ErrorKind::ConnectionReset.into()));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResetCode(pub u32);

impl ResetCode {
    /// Returns the code in an error of a [`Stream`](crate::Stream). See [`Error::reset_code`].
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Error>()?.reset_code()
    }
}

impl From<u32> for ResetCode {
    fn from(code: u32) -> Self {
        Self(code)
    }
}

impl From<ResetCode> for u32 {
    fn from(code: ResetCode) -> Self {
        code.0
    }
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal,)*) => {
        /// The kinds of [`Error`]. Each has a stable [`code`](ErrorKind::code).
        ///
        /// ```
        /// use throughline::{Error, ErrorKind};
        ///
        /// /// Whether the same call may succeed later.
        /// fn is_transient(error: &Error) -> bool {
        ///     matches!(
        ///         error.kind(),
        ///         ErrorKind::NoRelay | ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::LimitExceeded
        ///     )
        /// }
        ///
        /// assert!(!is_transient(&"x".parse::<throughline::Ticket>().unwrap_err()));
        /// assert_eq!(ErrorKind::Unreachable.code(), "unreachable");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[doc = $doc])* $name,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// Returns the stable snake-case name of this kind. It is the same in Rust, JSON and
            /// TypeScript.
            pub fn code(self) -> &'static str {
                match self {
                    $(ErrorKind::$name => $code,)*
                }
            }
        }
    };
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

kinds! {
    /// A ticket does not parse. The message names the part. Ask the peer for a fresh ticket.
    InvalidTicket = "invalid_ticket",
    /// A multiaddress, URL or socket address does not parse, or has the wrong form for its place.
    InvalidAddress = "invalid_address",
    /// An option is unknown, of the wrong type or out of range. The message names the option.
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
    /// Another peer answered than the one that the ticket names. Nothing was sent to it.
    WrongPeer = "wrong_peer",
    /// A deadline passed. The message names it. If it was one for a path, [`Error::attempts`] says why
    /// there is none.
    Timeout = "timeout",
    /// The peer is a stock libp2p peer, or an old one of this library, and cannot do this.
    Unsupported = "unsupported",
    /// The peer does not serve the requested protocol.
    ProtocolRefused = "protocol_refused",
    /// A limit on this side or the peer's was reached. The message names it.
    LimitExceeded = "limit_exceeded",
    /// The relays do not admit this peer. Check [`Config::relay_tokens`](crate::Config::relay_tokens).
    AccessDenied = "access_denied",
    /// A quota at the relays is used up. [`Error::retry_after`] says when it begins anew.
    QuotaExceeded = "quota_exceeded",
    /// The stream was reset by the peer, or by [`Stream::reset`](crate::Stream::reset).
    StreamReset = "stream_reset",
    /// Either side closed the connection, and its streams are gone.
    ConnectionClosed = "connection_closed",
    /// Every path was lost, and none came back within the resume timeout.
    ConnectionLost = "connection_lost",
    /// The [`Connector`](crate::Connector) was closed.
    ConnectorClosed = "connector_closed",
    /// The caller cancelled the operation.
    Aborted = "aborted",
    /// This platform has no WebRTC (a worker, Node.js, an insecure context).
    UnsupportedPlatform = "unsupported_platform",
    /// The operating system refused something, such as a socket or a file. The source has its
    /// error.
    Io = "io",
    /// A bug in this library. Please report it.
    Internal = "internal",
}

impl Error {
    /// Makes an error of `kind`. The `message` says what went wrong and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            attempts: Vec::new(),
            reset_code: None,
            retry_after: None,
            source: None,
        }
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Adds the attempts that were made.
    pub fn with_attempts(mut self, attempts: Vec<Attempt>) -> Self {
        self.attempts = attempts;
        self
    }

    /// Adds the reason that the application gave for a reset.
    pub(crate) fn with_reset_code(mut self, code: ResetCode) -> Self {
        self.reset_code = Some(code);
        self
    }

    /// Adds how long the same call would fail again.
    pub(crate) fn with_retry_after(mut self, time: Option<Duration>) -> Self {
        self.retry_after = time;
        self
    }

    /// Returns the kind of error, for use in a `match`.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the stable snake-case name of the kind.
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// Returns the message without the code and the attempts.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns all attempts, in the order of their starts. It is empty unless a connect
    /// failed, or [`Connection::wait_direct`](crate::Connection::wait_direct) found no direct path.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Returns the reason that the application gave for [`ErrorKind::StreamReset`]. It is `None`
    /// for every other kind. It is also `None` if a stock libp2p peer reset the stream, because
    /// such a peer sends no code.
    pub fn reset_code(&self) -> Option<ResetCode> {
        self.reset_code
    }

    /// Returns how long a quota stays used up, counted from this error, for
    /// [`ErrorKind::QuotaExceeded`]. It is `None` for every other kind, and if the relay did not
    /// say.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        let parts = |e: &Self| (e.kind, e.reset_code, e.retry_after);
        parts(self) == parts(other)
            && self.message == other.message
            && self.attempts == other.attempts
    }
}

impl Eq for Error {}

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

/// Wraps the error for callers of `AsyncRead` and `AsyncWrite`. `Error::from` gets the whole
/// error back, and [`ResetCode::of`] gets the code of a reset.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Io;
        let kind = match error.kind {
            ErrorKind::Timeout => Io::TimedOut,
            ErrorKind::StreamReset => Io::ConnectionReset,
            ErrorKind::ConnectionClosed
            | ErrorKind::ConnectionLost
            | ErrorKind::ConnectorClosed => Io::ConnectionAborted,
            ErrorKind::ProtocolViolation => Io::InvalidData,
            ErrorKind::Unsupported | ErrorKind::UnsupportedPlatform => Io::Unsupported,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}

/// Takes the [`Error`] out of an error of a stream. Any other error becomes [`ErrorKind::Io`], with
/// that error as its source.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(other) => Self::new(ErrorKind::Io, other.to_string()).with_source(other),
        }
    }
}

/// Returns an error, what it wraps, what that wraps, and so on. An [`io::Error`] is followed to the
/// error inside it, which [`source`](StdError::source) skips.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&error| {
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

/// Returns the words of the last error of the [`chain`], which is the reason. What wraps it says
/// only where it happened.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let last = chain(error).last().unwrap_or(error);
    last.to_string().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
    fn an_error_survives_the_way_through_an_io_error() {
        let error = Error::new(ErrorKind::StreamReset, "cut").with_reset_code(ResetCode(7));
        let io = io::Error::from(error.clone());
        assert_eq!(io.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(ResetCode::of(&io), Some(ResetCode(7)));
        assert_eq!(Error::from(io), error);
        let other = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(ResetCode::of(&other), None);
    }

    #[test]
    fn the_reason_of_an_error_is_inside_io_errors() {
        let inner = io::Error::other(Error::new(ErrorKind::Io, "wrapped").with_source("EMFILE"));
        let error = io::Error::other(inner);
        assert_eq!(chain(&error).count(), 4);
        assert_eq!(innermost(&error), "EMFILE");
    }

    #[test]
    fn equality_ignores_the_source() {
        let error = Error::new(ErrorKind::Io, "no socket");
        assert_eq!(error.clone().with_source("EMFILE"), error);
        assert_ne!(Error::new(ErrorKind::Timeout, "no socket"), error);
        assert_ne!(Error::new(ErrorKind::Io, "no file"), error);
        assert_ne!(error.clone().with_reset_code(ResetCode(0)), error);
    }
}
