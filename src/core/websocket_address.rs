//! Reads the multiaddresses of WebSockets.

use std::fmt;

use multiaddr::{Multiaddr, Protocol};

use super::address::{is_host_name, is_path};

/// How to reach a WebSocket. Each part can be written into a URL or a request as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WebSocketAddress {
    /// A name or an address. An IPv6 address has no brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The name or the address that the certificate must be for, if there is TLS.
    pub(crate) tls: Option<String>,
    /// The path, which begins with a slash.
    pub(crate) path: String,
}

impl WebSocketAddress {
    /// Reads `address`. Returns `None` if it is not the address of a WebSocket.
    ///
    /// The address is `/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>`, followed by `/ws`, `/wss`,
    /// `/tls/ws` or `/tls/sni/<name>/ws` and at most one `/p2p/<peer>`. If more follows, as in a
    /// circuit through this relay, the address belongs to another transport.
    pub(crate) fn parse(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter().peekable();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => ip.to_string(),
            Protocol::Ip6(ip) => ip.to_string(),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => host_name(&name)?,
            _ => return None,
        };
        let Protocol::Tcp(port) = parts.next()? else {
            return None;
        };
        let has_tls = parts.next_if_eq(&Protocol::Tls).is_some();
        let sni = match parts.next_if(|part| has_tls && matches!(part, Protocol::Sni(_))) {
            Some(Protocol::Sni(name)) => Some(host_name(&name)?),
            _ => None,
        };
        let (path, has_tls) = match parts.next()? {
            Protocol::Ws(path) => (path, has_tls),
            Protocol::Wss(path) if !has_tls => (path, true),
            _ => return None,
        };
        parts.next_if(|part| matches!(part, Protocol::P2p(_)));
        if parts.next().is_some() {
            return None;
        }
        // Multiaddresses may leave out the slash with which a path begins.
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{path}");
        is_path(&path).then(|| Self {
            tls: has_tls.then(|| sni.unwrap_or_else(|| host.clone())),
            host,
            port,
            path,
        })
    }
}

/// Writes the URL that a browser opens. The browser checks the certificate against the host in the
/// URL, so with TLS the host is the certificate's name.
impl fmt::Display for WebSocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host) = match &self.tls {
            Some(name) => ("wss", name),
            None => ("ws", &self.host),
        };
        let authority = authority(host, self.port);
        write!(f, "{scheme}://{authority}{}", self.path)
    }
}

/// Returns `host` and `port` as URLs and requests have them (RFC 3986 section 3.2).
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn host_name(name: &str) -> Option<String> {
    is_host_name(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn parse(address: &str) -> Option<WebSocketAddress> {
        WebSocketAddress::parse(&address.parse().unwrap())
    }

    #[test]
    fn names_of_websockets() {
        for (address, host, port, tls, path, url) in [
            (
                "/ip4/192.0.2.1/tcp/80/ws",
                "192.0.2.1",
                80,
                None,
                "/",
                "ws://192.0.2.1:80/",
            ),
            ("/ip6/::1/tcp/1/ws", "::1", 1, None, "/", "ws://[::1]:1/"),
            (
                "/dns/r.example/tcp/1/ws",
                "r.example",
                1,
                None,
                "/",
                "ws://r.example:1/",
            ),
            (
                "/dns4/r.example/tcp/443/wss",
                "r.example",
                443,
                Some("r.example"),
                "/",
                "wss://r.example:443/",
            ),
            (
                "/dns6/r.example/tcp/443/tls/ws",
                "r.example",
                443,
                Some("r.example"),
                "/",
                "wss://r.example:443/",
            ),
            (
                "/ip6/::1/tcp/1/tls/ws",
                "::1",
                1,
                Some("::1"),
                "/",
                "wss://[::1]:1/",
            ),
            (
                "/ip4/192.0.2.1/tcp/1/tls/sni/r.example/ws",
                "192.0.2.1",
                1,
                Some("r.example"),
                "/",
                "wss://r.example:1/",
            ),
            (
                "/dns4/r.example/tcp/1/x-parity-ws/a%2Fb",
                "r.example",
                1,
                None,
                "/a/b",
                "ws://r.example:1/a/b",
            ),
            (
                "/dns4/r.example/tcp/1/x-parity-wss/%2Fa",
                "r.example",
                1,
                Some("r.example"),
                "/a",
                "wss://r.example:1/a",
            ),
        ] {
            let expected = WebSocketAddress {
                host: host.to_owned(),
                port,
                tls: tls.map(str::to_owned),
                path: path.to_owned(),
            };
            assert_eq!(expected.to_string(), url);
            assert_eq!(parse(address), Some(expected.clone()), "{address}");
            let with_peer = format!("{address}/p2p/{PEER}");
            assert_eq!(parse(&with_peer), Some(expected), "{with_peer}");
        }
    }

    #[test]
    fn leaves_the_rest_to_other_transports() {
        for address in [
            "",
            "/ip4/192.0.2.1/tcp/1",
            "/ip4/192.0.2.1/udp/1/quic-v1",
            "/ip4/192.0.2.1/udp/1/ws",
            "/ip4/192.0.2.1/tcp/1/tls",
            "/ip4/192.0.2.1/tcp/1/tls/wss",
            "/ip4/192.0.2.1/tcp/1/tls/sni/r.example",
            "/ip4/192.0.2.1/tcp/1/sni/r.example/ws",
            "/dnsaddr/r.example/tcp/1/ws",
            "/ip4/192.0.2.1/tcp/1/ws/p2p-circuit",
            &format!("/ip4/192.0.2.1/tcp/1/ws/p2p/{PEER}/p2p-circuit"),
            &format!("/ip4/192.0.2.1/tcp/1/ws/p2p/{PEER}/p2p-circuit/webrtc/p2p/{PEER}"),
        ] {
            assert_eq!(parse(address), None, "{address}");
        }
    }

    #[test]
    fn a_name_or_a_path_cannot_redirect_the_dial() {
        let address = |name: &str, path: &str| {
            Multiaddr::empty()
                .with(Protocol::Dns(name.to_owned().into()))
                .with(Protocol::Tcp(1))
                .with(Protocol::Ws(path.to_owned().into()))
        };
        assert!(WebSocketAddress::parse(&address("a", "/")).is_some());
        for name in ["a/b", "user@b", "a:1", "a?b", "a#b", "a b", ""] {
            assert_eq!(
                WebSocketAddress::parse(&address(name, "/")),
                None,
                "{name:?}"
            );
            let sni = Multiaddr::empty()
                .with(Protocol::Dns("a".into()))
                .with(Protocol::Tcp(1))
                .with(Protocol::Tls)
                .with(Protocol::Sni(name.into()))
                .with(Protocol::Ws("/".into()));
            assert_eq!(WebSocketAddress::parse(&sni), None, "{name:?}");
        }
        for path in ["//b", " HTTP/1.1\r\nX", "\n", "#a", "/%2", "a b"] {
            assert_eq!(
                WebSocketAddress::parse(&address("a", path)),
                None,
                "{path:?}"
            );
        }
    }

    proptest! {
        /// Every part of the URL is where it was in the address, and no part ends early.
        #[test]
        fn any_name_and_port_and_path_stay_where_they_are(
            name in "[a-z.]{0,8}|[^\\x00]{0,20}",
            path in "(/?[a-z?]{0,3}){0,3}|.{0,20}",
            port: u16,
            has_tls: bool,
        ) {
            let path = path.as_str();
            let suffix = match has_tls {
                true => Protocol::Wss(path.into()),
                false => Protocol::Ws(path.into()),
            };
            let address = Multiaddr::empty()
                .with(Protocol::Dns(name.as_str().into()))
                .with(Protocol::Tcp(port))
                .with(suffix);
            if let Some(parsed) = WebSocketAddress::parse(&address) {
                let scheme = if has_tls { "wss" } else { "ws" };
                let slash = if path.starts_with('/') { "" } else { "/" };
                let url = format!("{scheme}://{name}:{port}{slash}{path}");
                prop_assert_eq!(parsed.to_string(), url.as_str());
                prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)));
                prop_assert!(path.bytes().all(|b| b.is_ascii_graphic() && b != b'#'));
            }
        }

        #[test]
        fn any_address_stays_where_it_is(ip: std::net::IpAddr, port: u16, has_tls: bool) {
            let suffix = if has_tls { Protocol::Wss("/".into()) } else { Protocol::Ws("/".into()) };
            let address = Multiaddr::from(ip).with(Protocol::Tcp(port)).with(suffix);
            let parsed = WebSocketAddress::parse(&address).unwrap();
            let scheme = if has_tls { "wss" } else { "ws" };
            let host = std::net::SocketAddr::new(ip, port);
            prop_assert_eq!(parsed.to_string(), format!("{scheme}://{host}/"));
        }

        #[test]
        fn no_multiaddress_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(address) = Multiaddr::try_from(bytes) {
                let _ = WebSocketAddress::parse(&address);
            }
        }
    }
}
