//! Why a `/webrtc` dial or listener failed.

use std::fmt;

use super::backend::BackendError;
use crate::core::signalling::SignallingError;

/// How far a negotiation had come.
///
/// ```
/// use throughline::rtc::{Error, Phase};
///
/// let error = Error::Timeout(Phase::Connectivity);
/// assert!(error.to_string().contains("checking connectivity"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// A signalling stream to the peer is being opened.
    Signalling,
    /// The offer or the answer has not arrived yet.
    Description,
    /// The descriptions were exchanged, and ICE and DTLS are under way.
    Connectivity,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signalling => "opening the signalling stream",
            Self::Description => "waiting for the peer's session description",
            Self::Connectivity => "checking connectivity",
        })
    }
}

/// Why a `/webrtc` dial or listener failed.
///
/// ```
/// use throughline::rtc::Error;
///
/// /// Whether the peer cannot speak WebRTC at all, so that trying again is of no use.
/// fn is_final(error: &Error) -> bool {
///     matches!(error, Error::Unsupported | Error::NoPeer)
/// }
/// # assert!(is_final(&Error::NoPeer));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The address does not name its destination with `/p2p`.
    NoPeer,
    /// There is no connection to the peer, and either the address names no circuit or dialling the
    /// circuit failed.
    Unreachable(String),
    /// The peer does not speak `/webrtc-signaling/0.0.1`.
    Unsupported,
    /// The signalling stream ended or failed before there was a connection.
    SignallingLost(String),
    /// The peer broke the signalling protocol.
    Signalling(SignallingError),
    /// ICE, DTLS or the platform failed.
    Backend(BackendError),
    /// The time ran out in this phase.
    Timeout(Phase),
    /// One of our own dials to the same peer took this connection over.
    Superseded,
    /// Too many offers came, and this answer had taken its time.
    Crowded,
    /// The behaviour that belongs to this transport is gone.
    Closed,
}

impl Error {
    /// Whether the peer has said that it takes no offer.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Signalling(SignallingError::Refused))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeer => f.write_str("the address does not end with /p2p/<peer>"),
            Self::Unreachable(why) => write!(f, "the peer cannot be reached for signalling: {why}"),
            Self::Unsupported => f.write_str("the peer does not speak WebRTC signalling"),
            Self::SignallingLost(why) => write!(f, "the signalling stream was lost: {why}"),
            Self::Signalling(error) => write!(f, "the signalling failed: {error}"),
            Self::Backend(error) => error.fmt(f),
            Self::Timeout(phase) => write!(f, "the time ran out while {phase}"),
            Self::Superseded => f.write_str("a dial to the same peer took the connection over"),
            Self::Crowded => f.write_str("there are too many offers to answer"),
            Self::Closed => f.write_str("the WebRTC behaviour is gone"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Signalling(error) => Some(error),
            Self::Backend(error) => Some(error),
            _ => None,
        }
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<SignallingError> for Error {
    fn from(error: SignallingError) -> Self {
        Self::Signalling(error)
    }
}
