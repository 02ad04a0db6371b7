//! `/webrtc` multiaddresses.

use libp2p::{
    PeerId,
    multiaddr::{Multiaddr, Protocol},
};

/// The destination of a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) peer: PeerId,
    /// The address to dial for signalling, or `None` if only an existing connection can be used.
    pub(crate) circuit: Option<Multiaddr>,
}

/// Why an address cannot be dialled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotATarget {
    /// The address belongs to another transport.
    Foreign,
    /// The address is a `/webrtc` address that does not name its destination with `/p2p`.
    NoPeer,
}

/// Reads `<relay>/p2p/R/p2p-circuit/webrtc/p2p/B` or `/webrtc/p2p/B`. The circuit is the address
/// without its `webrtc` components.
pub(crate) fn parse_target(addr: &Multiaddr) -> Result<Target, NotATarget> {
    if !addr.iter().any(|p| p == Protocol::WebRTC) {
        return Err(NotATarget::Foreign);
    }
    let Some(Protocol::P2p(peer)) = addr.iter().last() else {
        return Err(NotATarget::NoPeer);
    };
    let circuit: Multiaddr = addr.iter().filter(|p| *p != Protocol::WebRTC).collect();
    let relayed = is_circuit(&circuit);
    if !relayed && circuit.iter().count() > 1 {
        return Err(NotATarget::Foreign);
    }
    Ok(Target {
        peer,
        circuit: relayed.then_some(circuit),
    })
}

/// Reads `/webrtc` or `<circuit>/webrtc`. Returns the circuit that the listener is for, where
/// `None` means all circuits.
pub(crate) fn parse_listener(addr: &Multiaddr) -> Option<Option<Multiaddr>> {
    let mut rest = addr.clone();
    if rest.pop() != Some(Protocol::WebRTC) {
        return None;
    }
    if rest.is_empty() {
        return Some(None);
    }
    is_circuit(&rest).then_some(Some(rest))
}

/// Returns the `/webrtc` address that belongs to an external address of a circuit (`X/p2p-circuit`,
/// with or without the local peer id at its end). Returns `None` for any other address.
pub(crate) fn advertised(listen: &Multiaddr) -> Option<Multiaddr> {
    let mut addr: Multiaddr = listen.clone();
    if let Some(Protocol::P2p(_)) = addr.iter().last() {
        addr.pop();
    }
    (addr.iter().last() == Some(Protocol::P2pCircuit)).then(|| addr.with(Protocol::WebRTC))
}

/// Whether the address goes through a relay.
pub(crate) fn is_circuit(addr: &Multiaddr) -> bool {
    addr.iter().any(|p| p == Protocol::P2pCircuit)
}

/// Returns the address of the answering side, in the form that js-libp2p uses. It cannot be
/// dialled.
pub(crate) fn label(peer: PeerId) -> Multiaddr {
    Multiaddr::empty()
        .with(Protocol::WebRTC)
        .with(Protocol::P2p(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: &str =
        "/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const PEER: &str = "12D3KooWNvSZnPi3RrhrTwEY4LuuBeB6K6facKUCJcyWG1aoDd2p";

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_names_its_circuit() {
        let target = parse_target(&addr(&format!("{RELAY}/p2p-circuit/webrtc/p2p/{PEER}")));
        assert_eq!(
            target,
            Ok(Target {
                peer: PEER.parse().unwrap(),
                circuit: Some(addr(&format!("{RELAY}/p2p-circuit/p2p/{PEER}"))),
            })
        );
        let target = parse_target(&addr(&format!("/webrtc/p2p/{PEER}"))).unwrap();
        assert_eq!(target.circuit, None);
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in [
            format!("{RELAY}/p2p-circuit/p2p/{PEER}"),
            RELAY.to_owned(),
            format!("/ip4/192.0.2.1/udp/1/webrtc-direct/p2p/{PEER}"),
            format!("/ip4/192.0.2.1/udp/1/webrtc/p2p/{PEER}"),
        ] {
            assert_eq!(parse_target(&addr(&text)), Err(NotATarget::Foreign));
        }
        assert_eq!(
            parse_target(&addr(&format!("{RELAY}/p2p-circuit/webrtc"))),
            Err(NotATarget::NoPeer)
        );
    }

    #[test]
    fn listeners_take_all_circuits_or_one() {
        assert_eq!(parse_listener(&addr("/webrtc")), Some(None));
        let circuit = format!("{RELAY}/p2p-circuit");
        assert_eq!(
            parse_listener(&addr(&format!("{circuit}/webrtc"))),
            Some(Some(addr(&circuit)))
        );
        assert_eq!(parse_listener(&addr(&circuit)), None);
        assert_eq!(parse_listener(&addr("/ip4/192.0.2.1/udp/1/webrtc")), None);
    }

    #[test]
    fn circuits_are_advertised() {
        let expected = addr(&format!("{RELAY}/p2p-circuit/webrtc"));
        for listen in [
            format!("{RELAY}/p2p-circuit"),
            format!("{RELAY}/p2p-circuit/p2p/{PEER}"),
        ] {
            assert_eq!(advertised(&addr(&listen)), Some(expected.clone()));
        }
        assert_eq!(advertised(&expected), None);
        assert_eq!(advertised(&addr("/ip4/192.0.2.1/udp/1/quic-v1")), None);
    }
}
