//! Why a TURN server gave no address, or took it back.

use std::{fmt, io, net::SocketAddr};

use crate::event::Cause;

/// The reasons why a server gave no address, or took it back.
#[derive(Debug)]
pub(super) enum Failure {
    /// The name of the server has no address that can be reached from here.
    Name,
    Connect(io::Error),
    Timeout,
    /// The last error code of the server (RFC 8656 section 19, RFC 8489 section 14.8).
    Refused(u16),
    /// The server refers to another server (RFC 8489 section 10).
    Elsewhere(SocketAddr),
    /// The server closed the connection instead of an answer.
    Closed,
    /// The server gave an address and no longer holds it, or has stopped answering.
    Lost,
    /// The server sends bytes that are not TURN.
    NotTurn,
    /// Another URL leads to the same server, over the same socket.
    Duplicate,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("its name has no usable address"),
            Self::Connect(error) => write!(f, "cannot be connected to: {error}"),
            Self::Timeout => f.write_str("it does not answer in time"),
            Self::Refused(401) => f.write_str("it refuses the credentials (401)"),
            Self::Refused(437) => f.write_str("it still holds an older allocation (437)"),
            Self::Refused(486) => f.write_str("the quota of the user is reached (486)"),
            Self::Refused(508) => f.write_str("it has no address left (508)"),
            Self::Refused(code) => write!(f, "it refuses with error {code}"),
            Self::Elsewhere(_) => f.write_str("it refers to another server (300)"),
            Self::Closed => f.write_str("it closed the connection"),
            Self::Lost => f.write_str("the allocation is lost"),
            Self::NotTurn => f.write_str("it does not speak TURN"),
            Self::Duplicate => f.write_str("another URL leads to it"),
        }
    }
}

impl Failure {
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Name => Cause::NoAddress,
            Self::Connect(_) => Cause::Unreachable,
            Self::Timeout => Cause::Timeout,
            Self::Refused(_) | Self::Elsewhere(_) => Cause::Refused,
            Self::Closed | Self::Lost | Self::NotTurn | Self::Duplicate => Cause::Transport,
        }
    }
}
