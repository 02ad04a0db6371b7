//! Multiaddresses of relays, circuits and `/webrtc`, taken apart and put together.

use multiaddr::{Multiaddr, PeerId, Protocol};

/// What an address of a peer leads through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Straight to the peer.
    Direct,
    /// Through a circuit of this relay, whose own address comes with it.
    Circuit(Multiaddr),
    /// A WebRTC connection signalled over a circuit (libp2p `/webrtc`).
    WebRtc,
}

/// Tells what `address` leads through.
pub(crate) fn route(address: &Multiaddr) -> Route {
    if address.iter().any(|p| p == Protocol::WebRTC) {
        return Route::WebRtc;
    }
    match relay_part(address) {
        Some(relay) => Route::Circuit(relay),
        None => Route::Direct,
    }
}

/// The relay's address within a circuit address: all that stands before `/p2p-circuit`.
pub(crate) fn relay_part(address: &Multiaddr) -> Option<Multiaddr> {
    let at = address.iter().position(|p| p == Protocol::P2pCircuit)?;
    Some(address.iter().take(at).collect())
}

/// The relay and the peer of `…/p2p/<relay>/p2p-circuit/p2p/<peer>`.
pub(crate) fn circuit_ends(address: &Multiaddr) -> Option<(PeerId, PeerId)> {
    let mut parts = address.iter().skip_while(|p| *p != Protocol::P2pCircuit);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(Protocol::P2p(peer)), None) => {
            let relay = relay_part(address)?;
            match relay.iter().last() {
                Some(Protocol::P2p(relay)) => Some((relay, peer)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// `<relay>/p2p-circuit`, to reserve on a relay whose address ends in `/p2p/<relay>`.
pub(crate) fn reservation(relay: &Multiaddr) -> Multiaddr {
    relay.clone().with(Protocol::P2pCircuit)
}

/// `<relay>/p2p-circuit/p2p/<peer>`.
pub(crate) fn circuit(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    reservation(relay).with(Protocol::P2p(peer))
}

/// `<relay>/p2p-circuit/webrtc/p2p/<peer>`.
pub(crate) fn webrtc(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    reservation(relay)
        .with(Protocol::WebRTC)
        .with(Protocol::P2p(peer))
}

/// `address` ending in `/p2p/<peer>`; `None` if it names another peer there.
pub(crate) fn with_peer(address: &Multiaddr, peer: PeerId) -> Option<Multiaddr> {
    address.clone().with_p2p(peer).ok()
}

/// Whether `address` means nothing without the interface it was seen on (RFC 4007 section 6).
pub(crate) fn is_link_local(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_link_local(),
        Some(Protocol::Ip6(ip)) => ip.is_unicast_link_local(),
        _ => false,
    }
}

/// Whether only this machine can reach `address`.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: &str =
        "/ip4/192.0.2.1/tcp/4002/ws/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

    #[test]
    fn puts_together_what_it_takes_apart() {
        let relay: Multiaddr = RELAY.parse().unwrap();
        let peer: PeerId = PEER.parse().unwrap();
        let Some(Protocol::P2p(relay_id)) = relay.iter().last() else {
            panic!("{relay} has no peer id");
        };
        let circuit = circuit(&relay, peer);
        assert_eq!(
            circuit.to_string(),
            format!("{RELAY}/p2p-circuit/p2p/{PEER}")
        );
        assert_eq!(route(&circuit), Route::Circuit(relay.clone()));
        assert_eq!(circuit_ends(&circuit), Some((relay_id, peer)));
        assert_eq!(circuit_ends(&reservation(&relay)), None);
        assert_eq!(circuit_ends(&webrtc(&relay, peer)), None);
        assert_eq!(circuit_ends(&relay), None);
        assert_eq!(route(&webrtc(&relay, peer)), Route::WebRtc);
        assert_eq!(route(&relay), Route::Direct);
        assert_eq!(with_peer(&relay, peer), None);
        assert!(!is_loopback(&relay));
        assert!(is_loopback(&"/ip6/::1/udp/1".parse().unwrap()));
        assert!(is_link_local(&"/ip6/fe80::1/udp/1".parse().unwrap()));
        assert!(!is_link_local(&relay));
    }
}
