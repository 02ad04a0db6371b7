//! Explains why a dial failed: by a name for metrics and programs, and in words for people.

use std::{error::Error as StdError, io};

use libp2p::{TransportError, swarm::DialError};

use crate::{
    core::{circuit::CircuitError, dial::Barred},
    error::{chain, innermost},
    event::Cause,
    swarm::dials::WRONG_PEER,
    webrtc::{self, BackendError, Phase},
};

/// Returns the cause and the reason of a dial's error, without libp2p's nesting.
pub(crate) fn explain(error: &DialError) -> (Cause, String) {
    match error {
        DialError::Transport(errors) => {
            let mut causes = Vec::new();
            let mut reasons: Vec<String> = Vec::new();
            for (address, error) in errors {
                tracing::debug!(%address, %error, "a dial failed");
                // An address that this target does not know says nothing about the peer.
                if matches!(error, TransportError::MultiaddrNotSupported(_)) {
                    continue;
                }
                let (cause, reason) = cause_and_reason(error);
                causes.push(cause);
                if !reasons.contains(&reason) && reasons.len() < 4 {
                    reasons.push(reason);
                }
            }
            // Of several addresses, the one whose dial came furthest says most.
            let cause = causes.iter().copied().min_by_key(|cause| rank(*cause));
            match cause {
                Some(cause) => (cause, reasons.join(", ")),
                None => no_address(),
            }
        }
        DialError::NoAddresses => no_address(),
        DialError::Denied { .. } => (Cause::Limit, "a limit refused the connection".to_owned()),
        DialError::Aborted => (Cause::Cancelled, "the dial was taken back".to_owned()),
        DialError::WrongPeerId { .. } | DialError::LocalPeerId { .. } => {
            (Cause::WrongPeer, WRONG_PEER.to_owned())
        }
        DialError::DialPeerConditionFalse(_) => {
            (Cause::Cancelled, "there is such a connection".to_owned())
        }
    }
}

fn no_address() -> (Cause, String) {
    let reason = "there is no address that can be dialled from here".to_owned();
    (Cause::NoAddress, reason)
}

fn rank(cause: Cause) -> u8 {
    match cause {
        Cause::NoAddress | Cause::Forbidden => 3,
        Cause::Unreachable => 2,
        Cause::Transport | Cause::WrongPeer => 1,
        _ => 0,
    }
}

fn cause_and_reason(error: &(dyn StdError + 'static)) -> (Cause, String) {
    let reason = innermost(error);
    let known = chain(error).find_map(recognised);
    (known.unwrap_or_else(|| by_words(&reason)), reason)
}

fn recognised(error: &(dyn StdError + 'static)) -> Option<Cause> {
    if error.is::<Barred>() {
        return Some(Cause::Forbidden);
    }
    if let Some(error) = error.downcast_ref::<webrtc::Error>() {
        return Some(of_ice(error));
    }
    if let Some(error) = error.downcast_ref::<CircuitError>() {
        return Some(match error {
            CircuitError::Limit => Cause::Limit,
            CircuitError::Denied => Cause::Denied,
            CircuitError::Quota => Cause::Quota,
            CircuitError::Unreachable => Cause::Refused,
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

fn of_ice(error: &webrtc::Error) -> Cause {
    match error {
        error if error.is_refusal() => Cause::Refused,
        webrtc::Error::NoPeer => Cause::NoAddress,
        webrtc::Error::Unsupported => Cause::Unsupported,
        webrtc::Error::Unreachable(_)
        | webrtc::Error::SignallingLost(_)
        | webrtc::Error::Signalling(_) => Cause::Signalling,
        webrtc::Error::Backend(BackendError::Ice) | webrtc::Error::Timeout(Phase::Connectivity) => {
            Cause::NoPair
        }
        webrtc::Error::Timeout(_) => Cause::Timeout,
        webrtc::Error::Superseded | webrtc::Error::Crowded => Cause::Cancelled,
        webrtc::Error::Backend(_) | webrtc::Error::Closed => Cause::Transport,
    }
}

/// Recognises a cause by the words of the reason. Some transports' own errors are hidden inside
/// libp2p's generic ones.
fn by_words(reason: &str) -> Cause {
    let reason = reason.to_lowercase();
    if reason.contains(WRONG_PEER) {
        Cause::WrongPeer
    } else if reason.contains("not dialled: over") {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_targets_are_left_out() {
        let foreign = |text: &str| {
            let address: libp2p::Multiaddr = text.parse().unwrap();
            (
                address.clone(),
                TransportError::MultiaddrNotSupported(address),
            )
        };
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let address = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let other = || foreign("/ip4/192.0.2.1/udp/1/webrtc-direct");
        let errors = vec![other(), (address, TransportError::Other(refused))];
        let (cause, reason) = explain(&DialError::Transport(errors));
        assert_eq!(
            (cause, reason.as_str()),
            (Cause::Refused, "connection refused")
        );
        assert_eq!(explain(&DialError::Transport(vec![other()])), no_address());
    }
}
