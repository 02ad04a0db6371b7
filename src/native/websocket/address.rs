//! Which multiaddrs name a WebSocket.

use std::net::IpAddr;

use futures_rustls::rustls::pki_types::ServerName;
use libp2p::multiaddr::{Multiaddr, Protocol};

use super::handshake::Target;

/// How to reach a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    /// What the transport below dials.
    pub(super) inner: Multiaddr,
    pub(super) target: Target,
    /// Whom TLS has to prove, if there is TLS.
    pub(super) tls: Option<ServerName<'static>>,
}

impl Dial {
    /// Accepted are `/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>` followed by `/ws`, `/wss`,
    /// `/tls/ws` or `/tls/sni/<name>/ws` and at most one `/p2p/<peer>`. Names and paths must be fit
    /// for a request, because it is written from them.
    pub(super) fn parse(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter().peekable();
        let first = parts.next()?;
        let host = match &first {
            Protocol::Ip4(ip) => ServerName::from(IpAddr::from(*ip)),
            Protocol::Ip6(ip) => ServerName::from(IpAddr::from(*ip)),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => server_name(name)?,
            _ => return None,
        };
        let Protocol::Tcp(port) = parts.next()? else {
            return None;
        };
        let has_tls = parts.next_if_eq(&Protocol::Tls).is_some();
        let sni = match parts.next_if(|part| has_tls && matches!(part, Protocol::Sni(_))) {
            Some(Protocol::Sni(name)) => Some(server_name(&name)?),
            _ => None,
        };
        let (path, has_tls) = match parts.next()? {
            Protocol::Ws(path) => (path, has_tls),
            Protocol::Wss(path) if !has_tls => (path, true),
            _ => return None,
        };
        let peer = parts.next_if(|part| matches!(part, Protocol::P2p(_)));
        if parts.next().is_some() {
            return None;
        }
        let target = Target::new(&host, port, &path)?;
        let inner = [first, Protocol::Tcp(port)]
            .into_iter()
            .chain(peer)
            .collect();
        Some(Self {
            inner,
            target,
            tls: has_tls.then(|| sni.unwrap_or(host)),
        })
    }
}

fn server_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).ok()
}

/// Where the transport below listens for `address`, and what stands behind that: `/ws` with a path.
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
        for (address, host, port, path, tls, inner) in [
            (
                "/ip4/192.0.2.1/tcp/80/ws",
                "192.0.2.1",
                80,
                "/",
                None,
                "/ip4/192.0.2.1/tcp/80",
            ),
            ("/ip6/::1/tcp/1/ws", "::1", 1, "/", None, "/ip6/::1/tcp/1"),
            (
                "/dns/r.example/tcp/1/ws",
                "r.example",
                1,
                "/",
                None,
                "/dns/r.example/tcp/1",
            ),
            (
                "/dns4/r.example/tcp/443/wss",
                "r.example",
                443,
                "/",
                Some("r.example"),
                "/dns4/r.example/tcp/443",
            ),
            (
                "/dns6/r.example/tcp/443/tls/ws",
                "r.example",
                443,
                "/",
                Some("r.example"),
                "/dns6/r.example/tcp/443",
            ),
            (
                "/ip4/192.0.2.1/tcp/1/tls/ws",
                "192.0.2.1",
                1,
                "/",
                Some("192.0.2.1"),
                "/ip4/192.0.2.1/tcp/1",
            ),
            (
                "/ip4/192.0.2.1/tcp/1/tls/sni/r.example/ws",
                "192.0.2.1",
                1,
                "/",
                Some("r.example"),
                "/ip4/192.0.2.1/tcp/1",
            ),
            (
                "/dns4/r.example/tcp/1/x-parity-ws/a%2Fb",
                "r.example",
                1,
                "/a/b",
                None,
                "/dns4/r.example/tcp/1",
            ),
            (
                "/dns4/r.example/tcp/1/x-parity-wss/%2Fa",
                "r.example",
                1,
                "/a",
                Some("r.example"),
                "/dns4/r.example/tcp/1",
            ),
        ] {
            let host = ServerName::try_from(host).unwrap();
            let expected = |inner: String| Dial {
                inner: inner.parse().unwrap(),
                target: Target::new(&host, port, path).unwrap(),
                tls: tls.map(|name: &str| ServerName::try_from(name).unwrap()),
            };
            assert_eq!(dial(address), Some(expected(inner.into())), "{address}");
            let dialled = dial(&format!("{address}{PEER}"));
            assert_eq!(
                dialled,
                Some(expected(format!("{inner}{PEER}"))),
                "{address}"
            );
        }
    }

    #[test]
    fn other_addresses() {
        for address in [
            "",
            "/ip4/192.0.2.1/tcp/1",
            "/ip4/192.0.2.1/udp/1/quic-v1",
            "/ip4/192.0.2.1/tcp/1/tls",
            "/ip4/192.0.2.1/tcp/1/tls/wss",
            "/ip4/192.0.2.1/tcp/1/tls/sni/r.example",
            "/ip4/192.0.2.1/tcp/1/ws/p2p-circuit",
            "/dnsaddr/r.example/tcp/1/ws",
            "/dns4/r.ex ample/tcp/1/ws",
            "/dns4/r.example/tcp/1/tls/sni/a b/ws",
            "/ip4/127.0.0.1/tcp/1/x-parity-ws/%20HTTP%2F1.1%0D%0AX",
            "/ip4/127.0.0.1/tcp/1/x-parity-ws/%0A",
            "/ip4/127.0.0.1/tcp/1/x-parity-ws/%23a",
        ] {
            assert_eq!(dial(address), None, "{address}");
        }
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
