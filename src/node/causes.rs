//! Why a dial failed, as a name for metrics and programs and in words for people.

use std::{error::Error as StdError, io};

use libp2p::swarm::DialError;

use crate::{
    core::{circuit::CircuitError, dial::Barred},
    event::Cause,
    rtc::{self, BackendError, Phase},
};

/// What a dial's error says, without libp2p's nesting.
pub(super) fn explain(error: &DialError) -> (Cause, String) {
    match error {
        DialError::Transport(errors) => {
            let mut causes = Vec::new();
            let mut reasons: Vec<String> = Vec::new();
            for (address, error) in errors {
                tracing::debug!(%address, %error, "a dial failed");
                let (cause, reason) = innermost(error);
                causes.push(cause);
                if !reasons.contains(&reason) && reasons.len() < 4 {
                    reasons.push(reason);
                }
            }
            // Of several addresses, that which came furthest tells most.
            let cause = causes.iter().copied().min_by_key(|cause| rank(*cause));
            match cause {
                Some(cause) => (cause, reasons.join(", ")),
                None => no_address(),
            }
        }
        DialError::NoAddresses => no_address(),
        DialError::WrongPeerId { obtained, .. } => {
            let reason = format!("another peer answered: {obtained}");
            (Cause::WrongPeer, reason)
        }
        DialError::Denied { .. } => (Cause::Limit, "refused by a limit".to_owned()),
        DialError::Aborted => (Cause::Cancelled, "taken back".to_owned()),
        other => (Cause::Transport, other.to_string()),
    }
}

fn no_address() -> (Cause, String) {
    let reason = "no address of a kind that can be dialled here".to_owned();
    (Cause::NoAddress, reason)
}

fn rank(cause: Cause) -> u8 {
    match cause {
        Cause::NoAddress | Cause::Forbidden => 3,
        Cause::Unreachable => 2,
        Cause::Transport => 1,
        _ => 0,
    }
}

/// Follows an error to what it wraps. A boxed transport's error is an [`io::Error`] around the
/// transport's own, which [`source`](StdError::source) skips.
fn innermost(error: &(dyn StdError + 'static)) -> (Cause, String) {
    let mut known = None;
    let mut error = error;
    loop {
        known = known.or_else(|| recognised(error));
        let inner = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
        match inner {
            Some(inner) => error = inner,
            None => break,
        }
    }
    // libp2p's resolver has a list even of one.
    let listed = error.to_string();
    let reason = listed.trim_start_matches("Multiple dial errors occurred:");
    let reason = reason.replace("\n - ", " ").trim().to_owned();
    (known.unwrap_or_else(|| by_words(&reason)), reason)
}

fn recognised(error: &(dyn StdError + 'static)) -> Option<Cause> {
    if error.is::<Barred>() {
        return Some(Cause::Forbidden);
    }
    if let Some(error) = error.downcast_ref::<rtc::Error>() {
        return Some(of_ice(error));
    }
    if let Some(error) = error.downcast_ref::<CircuitError>() {
        return Some(match error {
            CircuitError::Limit => Cause::Limit,
            CircuitError::Denied | CircuitError::Unreachable => Cause::Refused,
            CircuitError::NoReservation => Cause::NoReservation,
            CircuitError::NoLink => Cause::RelayUnreachable,
            CircuitError::Refused(_) | CircuitError::Malformed(_) => Cause::Transport,
        });
    }
    match error.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::ConnectionRefused => Some(Cause::Refused),
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::AddrNotAvailable => Some(Cause::Unreachable),
        io::ErrorKind::TimedOut => Some(Cause::Timeout),
        _ => None,
    }
}

fn of_ice(error: &rtc::Error) -> Cause {
    match error {
        rtc::Error::NoPeer => Cause::NoAddress,
        rtc::Error::Unsupported => Cause::Unsupported,
        rtc::Error::Unreachable(_) | rtc::Error::SignallingLost(_) | rtc::Error::Signalling(_) => {
            Cause::Signalling
        }
        rtc::Error::Backend(BackendError::Ice) | rtc::Error::Timeout(Phase::Connectivity) => {
            Cause::NoPair
        }
        rtc::Error::Timeout(_) => Cause::Timeout,
        rtc::Error::Superseded => Cause::Cancelled,
        rtc::Error::Backend(_) | rtc::Error::Closed => Cause::Transport,
    }
}

/// Some transports' own types are hidden behind libp2p's generic ones.
fn by_words(reason: &str) -> Cause {
    let reason = reason.to_lowercase();
    if reason.contains("not dialled: over") {
        Cause::Limit
    } else if reason.contains("not dialled:") {
        Cause::Forbidden
    } else if reason.contains("timed out") || reason.contains("timeout") {
        Cause::Timeout
    } else if reason.contains("refused") {
        Cause::Refused
    } else if reason.contains("unreachable") {
        Cause::Unreachable
    } else if reason.contains("is not supported") || reason.contains("unsupported resolved address")
    {
        Cause::NoAddress
    } else {
        Cause::Transport
    }
}
