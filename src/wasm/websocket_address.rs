//! Which multiaddrs name a WebSocket, and the URL of each.

use std::fmt;

use multiaddr::{Multiaddr, Protocol};

use crate::core::address;

/// The URL of a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url(String);

impl Url {
    /// The URL that `address` names, or `None` when it names something else.
    ///
    /// Accepted are `/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>` followed by `/ws`, `/wss`,
    /// `/tls/ws` or `/tls/sni/<name>/ws` and at most one `/p2p/<peer>`. Anything behind that,
    /// as in a circuit through this relay, belongs to another transport.
    pub(crate) fn from_multiaddr(address: &Multiaddr) -> Option<Self> {
        // A name or a path could change the meaning of the URL around it.
        if address::fault(address).is_some() {
            return None;
        }
        let mut parts = address.iter().peekable();
        let host = parts.next()?;
        let Protocol::Tcp(port) = parts.next()? else {
            return None;
        };
        let tls = parts.next_if(|part| *part == Protocol::Tls).is_some();
        let sni = match parts.next_if(|part| tls && matches!(part, Protocol::Sni(_))) {
            Some(Protocol::Sni(name)) => Some(name.into_owned()),
            _ => None,
        };
        let (scheme, path) = match parts.next()? {
            Protocol::Ws(path) if tls => ("wss", path),
            Protocol::Ws(path) => ("ws", path),
            Protocol::Wss(path) if !tls => ("wss", path),
            _ => return None,
        };
        parts.next_if(|part| matches!(part, Protocol::P2p(_)));
        if parts.next().is_some() {
            return None;
        }
        let host = match (sni, host) {
            // The certificate is checked against this name, so the browser has to see it.
            (
                Some(name),
                Protocol::Ip4(_)
                | Protocol::Ip6(_)
                | Protocol::Dns(_)
                | Protocol::Dns4(_)
                | Protocol::Dns6(_),
            ) => name,
            (None, Protocol::Ip4(ip)) => ip.to_string(),
            (None, Protocol::Ip6(ip)) => format!("[{ip}]"),
            (None, Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
                name.into_owned()
            }
            _ => return None,
        };
        let path = path.trim_start_matches('/');
        Some(Self(format!("{scheme}://{host}:{port}/{path}")))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn url(address: &str) -> Option<String> {
        let address = address.parse().expect("a multiaddr");
        Url::from_multiaddr(&address).map(|url| url.0)
    }

    #[wasm_bindgen_test]
    fn names_of_websockets() {
        for (address, expected) in [
            ("/ip4/127.0.0.1/tcp/80/ws", "ws://127.0.0.1:80/"),
            ("/ip6/::1/tcp/80/ws", "ws://[::1]:80/"),
            ("/dns/relay.example/tcp/443/wss", "wss://relay.example:443/"),
            (
                "/dns4/relay.example/tcp/443/tls/ws",
                "wss://relay.example:443/",
            ),
            (
                "/ip4/192.0.2.1/tcp/443/tls/sni/a.example/ws",
                "wss://a.example:443/",
            ),
            (
                "/dns6/relay.example/tcp/9/x-parity-ws/%2fpath",
                "ws://relay.example:9/path",
            ),
        ] {
            assert_eq!(url(address).as_deref(), Some(expected), "{address}");
            let with_peer = format!("{address}/p2p/{PEER}");
            assert_eq!(url(&with_peer).as_deref(), Some(expected), "{with_peer}");
        }
    }

    #[wasm_bindgen_test]
    fn leaves_the_rest_to_other_transports() {
        for address in [
            "/ip4/127.0.0.1/tcp/80",
            "/ip4/127.0.0.1/udp/80/quic-v1",
            "/ip4/127.0.0.1/udp/80/ws",
            "/ip4/127.0.0.1/tcp/80/tls",
            "/ip4/127.0.0.1/tcp/80/tls/wss",
            "/ip4/127.0.0.1/tcp/80/sni/a.example/ws",
            "/dnsaddr/relay.example/tcp/80/ws",
            "/ip4/127.0.0.1/tcp/80/ws/p2p-circuit",
            &format!("/ip4/127.0.0.1/tcp/80/ws/p2p/{PEER}/p2p-circuit"),
            &format!("/ip4/127.0.0.1/tcp/80/ws/p2p/{PEER}/p2p-circuit/webrtc/p2p/{PEER}"),
        ] {
            assert_eq!(url(address), None, "{address}");
        }
    }

    #[wasm_bindgen_test]
    fn a_name_cannot_redirect_the_dial() {
        for name in ["a/b", "user@b", "a:1", "a?b", "a#b", "a b", ""] {
            let address = Multiaddr::empty()
                .with(Protocol::Dns(name.into()))
                .with(Protocol::Tcp(1))
                .with(Protocol::Ws("/".into()));
            assert_eq!(Url::from_multiaddr(&address), None, "{name:?}");
        }
    }

    #[wasm_bindgen_test]
    fn any_name_and_port_stay_where_they_are() {
        proptest!(|(name in "[^\\x00]{0,20}", port: u16, tls: bool)| {
            let scheme = if tls { Protocol::Wss("/".into()) } else { Protocol::Ws("/".into()) };
            let address = Multiaddr::empty()
                .with(Protocol::Dns(name.as_str().into()))
                .with(Protocol::Tcp(port))
                .with(scheme);
            if let Some(url) = Url::from_multiaddr(&address) {
                let scheme = if tls { "wss" } else { "ws" };
                prop_assert_eq!(url.as_str(), format!("{scheme}://{name}:{port}/"));
            }
        });
    }
}
