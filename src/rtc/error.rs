//! Why a `/webrtc` dial or listener failed.

use std::fmt;

use super::backend::BackendError;
use crate::core::signalling::SignallingError;

/// How far a negotiation had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Getting a signalling stream to the peer.
    Signalling,
    /// Waiting for the offer or the answer.
    Description,
    /// Descriptions exchanged; ICE and DTLS under way.
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The address has no `/p2p` part for its destination.
    NoPeer,
    /// There is no connection to the peer and the address names no circuit, or dialling the
    /// circuit failed.
    Unreachable(String),
    /// The peer does not speak `/webrtc-signaling/0.0.1`.
    Unsupported,
    /// The signalling stream ended or failed before a connection was up.
    SignallingLost(String),
    /// The peer broke the signalling protocol.
    Signalling(SignallingError),
    /// ICE, DTLS or the platform failed.
    Backend(BackendError),
    /// Out of time, and where.
    Timeout(Phase),
    /// A dial of our own to the same peer took this connection over.
    Superseded,
    /// The behaviour of this transport is gone.
    Closed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeer => f.write_str("address does not end with /p2p/<peer>"),
            Self::Unreachable(why) => write!(f, "no way to reach the peer for signalling: {why}"),
            Self::Unsupported => f.write_str("peer does not speak WebRTC signalling"),
            Self::SignallingLost(why) => write!(f, "signalling stream lost: {why}"),
            Self::Signalling(error) => write!(f, "signalling: {error}"),
            Self::Backend(error) => error.fmt(f),
            Self::Timeout(phase) => write!(f, "out of time while {phase}"),
            Self::Superseded => f.write_str("taken over by a dial to the same peer"),
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
