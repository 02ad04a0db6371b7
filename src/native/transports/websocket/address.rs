//! Reads the multiaddresses of WebSockets, for dialling and listening.

use futures_rustls::rustls::pki_types::ServerName;
use libp2p::multiaddr::{Multiaddr, Protocol};

use super::handshake::Target;
use crate::core::websocket_address::WebSocketAddress;

/// How to reach a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    /// The address that the transport below dials.
    pub(super) inner: Multiaddr,
    pub(super) target: Target,
    /// The name that the certificate must prove, if there is TLS.
    pub(super) tls: Option<ServerName<'static>>,
}

impl Dial {
    /// Returns how to reach `address`, or `None` if it is not the address of a WebSocket.
    pub(super) fn parse(address: &Multiaddr) -> Option<Self> {
        let parsed = WebSocketAddress::parse(address)?;
        let target = Target::new(&parsed);
        let tls = match parsed.tls {
            Some(name) => Some(ServerName::try_from(name).ok()?),
            None => None,
        };
        let is_below = |part: &Protocol<'_>| {
            !matches!(
                part,
                Protocol::Tls | Protocol::Sni(_) | Protocol::Ws(_) | Protocol::Wss(_)
            )
        };
        Some(Self {
            inner: address.iter().filter(is_below).collect(),
            target,
            tls,
        })
    }
}

/// Returns the address at which the transport below listens for `address`, and the rest of
/// `address`: `/ws` with a path.
pub(super) fn listener(address: &Multiaddr) -> Option<(Multiaddr, Protocol<'static>)> {
    let mut inner = address.clone();
    let suffix = inner.pop()?;
    let is_plain = !inner.iter().any(|part| part == Protocol::Tls);
    (is_plain && matches!(suffix, Protocol::Ws(_))).then_some((inner, suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn dial(address: &str) -> Option<Dial> {
        Dial::parse(&address.parse().unwrap())
    }

    #[test]
    fn websockets() {
        for (address, inner, tls) in [
            ("/ip4/192.0.2.1/tcp/80/ws", "/ip4/192.0.2.1/tcp/80", None),
            (
                "/dns4/r.example/tcp/443/wss",
                "/dns4/r.example/tcp/443",
                Some("r.example"),
            ),
            ("/ip6/::1/tcp/1/tls/ws", "/ip6/::1/tcp/1", Some("::1")),
            (
                "/ip4/192.0.2.1/tcp/1/tls/sni/r.example/ws",
                "/ip4/192.0.2.1/tcp/1",
                Some("r.example"),
            ),
        ] {
            let tls = tls.map(|name| ServerName::try_from(name).unwrap());
            for peer in ["", PEER] {
                let dialled = dial(&format!("{address}{peer}")).unwrap();
                let expected: Multiaddr = format!("{inner}{peer}").parse().unwrap();
                assert_eq!((dialled.inner, dialled.tls), (expected, tls.clone()));
            }
        }
        assert_eq!(dial("/ip4/192.0.2.1/tcp/1"), None);
    }

    #[test]
    fn listeners() {
        let listener = |address: &str| listener(&address.parse().unwrap());
        let plain = "/ip4/0.0.0.0/tcp/1".parse().unwrap();
        let suffix = Protocol::Ws("/".into());
        assert_eq!(listener("/ip4/0.0.0.0/tcp/1/ws"), Some((plain, suffix)));
        for address in [
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/0.0.0.0/tcp/1/wss",
            "/ip4/0.0.0.0/tcp/1/tls/ws",
        ] {
            assert_eq!(listener(address), None, "{address}");
        }
    }
}
