//! Decides which address of a client an AutoNAT server may dial.
//!
//! A server that dials any address that a stranger names could be aimed at its own machine, at its
//! private network, or at others. So it dials only the client itself, at the IP address from which
//! the client came, and by the transports QUIC and TCP. Whatever the client makes the server send,
//! the client could have sent to that address itself. That is why the server needs no data from the
//! client first (`autonat/autonat-v2.md`, "Amplification Attack Prevention").

use std::net::{IpAddr, SocketAddr};

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::scope::{Scope, scope};

/// Lower ports belong to a machine's own services. Such a port is dialled only if the client came
/// from it.
const FIRST_PORT: u16 = 1024;

/// The facts about the server that matter when it dials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    /// Whether clients at private addresses, and on this machine, are served.
    pub(crate) allow_private: bool,
    /// The server's own listeners, with their bound addresses and the addresses that others see.
    pub(crate) sockets: Vec<SocketAddr>,
}

/// The target of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    ip: IpAddr,
    port: u16,
    quic: bool,
}

impl Server {
    /// Returns the first of `addresses` that may be dialled for `client`, and its index. `observed`
    /// is the address from which the client came.
    ///
    /// The returned address is built anew, so that nothing of the client's text stays in it.
    pub(crate) fn choose(
        &self,
        addresses: &[&[u8]],
        client: &PeerId,
        observed: &Multiaddr,
    ) -> Option<(usize, Multiaddr)> {
        let seen = Endpoint::of(observed, client).filter(|seen| self.serves(seen.ip))?;
        addresses.iter().enumerate().find_map(|(index, bytes)| {
            let address = Multiaddr::try_from(bytes.to_vec()).ok()?;
            let target = Endpoint::of(&address, client)?;
            let may = target.ip == seen.ip
                && (target.port >= FIRST_PORT || target == seen)
                && !self.is_own(&target);
            may.then(|| (index, target.address()))
        })
    }

    /// Whether clients at `ip` are served at all. The public addresses of this machine count like
    /// its loopback, because services behind a firewall may be open to connections from them.
    fn serves(&self, ip: IpAddr) -> bool {
        match scope(ip) {
            Scope::Forbidden => false,
            Scope::Global if !self.is_here(ip) => true,
            Scope::Global | Scope::Private | Scope::Loopback => self.allow_private,
        }
    }

    fn is_here(&self, ip: IpAddr) -> bool {
        let is = |socket: &SocketAddr| socket.ip().to_canonical() == ip;
        scope(ip) == Scope::Loopback || self.sockets.iter().any(is)
    }

    /// Whether `target` is one of our own listeners, at any address of this machine.
    fn is_own(&self, target: &Endpoint) -> bool {
        let mut sockets = self.sockets.iter();
        self.is_here(target.ip) && sockets.any(|socket| socket.port() == target.port)
    }
}

impl Endpoint {
    /// Reads `/ip4|ip6/…/udp/…/quic-v1` or `/ip4|ip6/…/tcp/…`, with or without `/p2p/` of the
    /// client at its end. Every other form is refused: names, WebSocket and circuits.
    fn of(address: &Multiaddr, client: &PeerId) -> Option<Self> {
        let mut parts = address.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::V4(ip),
            Protocol::Ip6(ip) => IpAddr::V6(ip).to_canonical(),
            _ => return None,
        };
        let (port, quic) = match parts.next()? {
            Protocol::Tcp(port) => (port, false),
            Protocol::Udp(port) if parts.next()? == Protocol::QuicV1 => (port, true),
            _ => return None,
        };
        let end = match parts.next() {
            Some(Protocol::P2p(peer)) if peer == *client => parts.next(),
            end => end,
        };
        end.is_none().then_some(Self { ip, port, quic })
    }

    fn address(&self) -> Multiaddr {
        let host = Multiaddr::from(self.ip);
        match self.quic {
            true => host.with(Protocol::Udp(self.port)).with(Protocol::QuicV1),
            false => host.with(Protocol::Tcp(self.port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client() -> PeerId {
        let text = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";
        text.parse().unwrap()
    }

    fn chosen(server: &Server, observed: &str, asked: &[&str]) -> Option<(usize, String)> {
        let bytes = asked.iter().map(|text| {
            let address: Multiaddr = text.parse().unwrap();
            address.to_vec()
        });
        let bytes: Vec<_> = bytes.collect();
        let bytes: Vec<_> = bytes.iter().map(Vec::as_slice).collect();
        let chosen = server.choose(&bytes, &client(), &observed.parse().unwrap());
        chosen.map(|(index, address)| (index, address.to_string()))
    }

    fn may(server: &Server, observed: &str, asked: &str) -> bool {
        chosen(server, observed, &[asked]).is_some()
    }

    const SEEN: &str = "/ip4/198.51.100.7/udp/443/quic-v1";

    #[test]
    fn the_first_address_that_may_be_dialled_is_chosen() {
        let asked = [
            "/ip4/198.51.100.8/tcp/4001",
            "/dns4/example.org/tcp/4001",
            "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5",
            "/ip4/198.51.100.7/udp/4001/quic-v1",
        ];
        let first = Some((2, "/ip4/198.51.100.7/tcp/4001".into()));
        assert_eq!(chosen(&Server::default(), SEEN, &asked), first);
        let last = Some((0, "/ip4/198.51.100.7/udp/4001/quic-v1".into()));
        assert_eq!(chosen(&Server::default(), SEEN, &asked[3..]), last);
        assert_eq!(chosen(&Server::default(), SEEN, &asked[..2]), None);
        assert_eq!(chosen(&Server::default(), SEEN, &[]), None);
    }

    #[test]
    fn only_quic_and_tcp_at_the_clients_address_are_dialled() {
        let server = Server {
            allow_private: true,
            ..Server::default()
        };
        for asked in [
            "/ip4/198.51.100.8/tcp/4001",
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/10.0.0.1/tcp/4001",
            "/ip4/169.254.169.254/tcp/4001",
            "/ip6/2001:db8::1/tcp/4001",
            "/ip6/64:ff9b::198.51.100.7/tcp/4001",
            "/dns4/example.org/tcp/4001",
            "/dns/example.org/udp/4001/quic-v1",
            "/dnsaddr/example.org",
            "/ip4/198.51.100.7",
            "/ip4/198.51.100.7/tcp/4001/ws",
            "/ip4/198.51.100.7/tcp/4001/tls/ws",
            "/ip4/198.51.100.7/tcp/4001/wss",
            "/ip4/198.51.100.7/tcp/4001/http",
            "/ip4/198.51.100.7/udp/4001",
            "/ip4/198.51.100.7/udp/4001/quic",
            "/ip4/198.51.100.7/udp/4001/webrtc-direct",
            "/ip4/198.51.100.7/udp/4001/quic-v1/webtransport",
            "/ip4/198.51.100.7/udp/4001/quic-v1/quic-v1",
            "/ip4/198.51.100.7/tcp/4001/quic-v1",
            "/ip4/198.51.100.7/tcp/4001/tcp/4002",
            "/ip4/198.51.100.7/tcp/4001/p2p-circuit",
            "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
            "/ip4/198.51.100.7/tcp/4001/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5/p2p-circuit",
        ] {
            assert!(!may(&server, SEEN, asked), "{asked}");
        }
        let mapped = "/ip6/::ffff:198.51.100.7/tcp/4001";
        assert!(may(&server, SEEN, mapped));
        assert!(may(&server, mapped, "/ip4/198.51.100.7/tcp/4001"));
        let v6 = "/ip6/2001:db8::1/tcp/4001";
        assert!(may(&server, v6, "/ip6/2001:db8::1/udp/9999/quic-v1"));
        assert!(!may(&server, v6, "/ip6/2001:db8::2/udp/9999/quic-v1"));
    }

    /// There may be a proxy in front of a client that comes by WebSocket.
    #[test]
    fn clients_that_come_by_other_transports_are_not_served() {
        for observed in [
            "/ip4/198.51.100.7/tcp/443/ws",
            "/ip4/198.51.100.7/udp/443/webrtc-direct",
            "/dns4/example.org/tcp/443",
        ] {
            let asked = "/ip4/198.51.100.7/tcp/4001";
            assert!(!may(&Server::default(), observed, asked), "{observed}");
        }
    }

    #[test]
    fn a_low_port_is_dialled_only_if_the_client_came_from_it() {
        let at = |port: u16| {
            may(
                &Server::default(),
                SEEN,
                &format!("/ip4/198.51.100.7/udp/{port}/quic-v1"),
            )
        };
        assert!(!at(0) && !at(1) && !at(442) && at(443) && !at(1023));
        assert!(at(1024) && at(u16::MAX));
        assert!(!may(&Server::default(), SEEN, "/ip4/198.51.100.7/tcp/443"));
    }

    #[test]
    fn private_clients_are_served_if_the_operator_allows_it() {
        let allowing = Server {
            allow_private: true,
            ..Server::default()
        };
        for (host, private) in [
            ("ip4/198.51.100.7", Some(false)),
            ("ip6/2001:db8::1", Some(false)),
            ("ip4/10.0.0.1", Some(true)),
            ("ip4/100.64.0.1", Some(true)),
            ("ip4/127.0.0.1", Some(true)),
            ("ip6/::ffff:127.0.0.1", Some(true)),
            ("ip6/fd00::1", Some(true)),
            ("ip6/::1", Some(true)),
            ("ip6/64:ff9b::10.0.0.1", Some(true)),
            ("ip6/fe80::1", None),
            ("ip4/0.0.0.0", None),
            ("ip4/169.254.169.254", None),
            ("ip4/100.100.100.200", None),
            ("ip6/fd00:ec2::254", None),
            ("ip6/64:ff9b::169.254.169.254", None),
        ] {
            let address = format!("/{host}/tcp/4001");
            let served = [&Server::default(), &allowing].map(|s| may(s, &address, &address));
            let expected = [private == Some(false), private.is_some()];
            assert_eq!(served, expected, "{host}");
        }
    }

    /// A client that uses a TURN server on the same machine comes from an address of the machine.
    #[test]
    fn addresses_of_this_machine_count_as_loopback_and_its_listeners_are_never_dialled() {
        let sockets = [
            "198.51.100.7:4001",
            "0.0.0.0:4003",
            "[::ffff:198.51.100.9]:0",
        ];
        let mut server = Server {
            allow_private: false,
            sockets: sockets.map(|text| text.parse().unwrap()).to_vec(),
        };
        let other = "/ip4/198.51.100.7/tcp/9999";
        assert!(!may(&server, SEEN, other));
        let mapped = "/ip4/198.51.100.9/tcp/9999";
        assert!(!may(&server, mapped, mapped));
        server.allow_private = true;
        assert!(may(&server, SEEN, other) && may(&server, mapped, mapped));
        for port in [4001, 4003] {
            for host in ["198.51.100.7", "127.0.0.1", "127.0.0.2"] {
                let own = format!("/ip4/{host}/tcp/{port}");
                assert!(!may(&server, &format!("/ip4/{host}/tcp/9"), &own), "{own}");
            }
            let elsewhere = format!("/ip4/203.0.113.1/tcp/{port}");
            assert!(may(&server, "/ip4/203.0.113.1/tcp/9", &elsewhere));
        }
    }

    proptest! {
        /// Nobody but the client is dialled, whatever is asked for.
        #[test]
        fn nobody_else_is_dialled(
            seen: [u8; 4],
            asked in prop::collection::vec((any::<[u8; 4]>(), any::<bool>(), any::<u16>(), 0u8..4), 0..8),
            noise in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let observed = Multiaddr::from(IpAddr::from(seen)).with(Protocol::Tcp(5000));
            let addresses = asked.iter().map(|(ip, same, port, kind)| {
                let host = Multiaddr::from(IpAddr::from(if *same { seen } else { *ip }));
                match kind {
                    0 => host.with(Protocol::Tcp(*port)),
                    1 => host.with(Protocol::Udp(*port)).with(Protocol::QuicV1),
                    2 => host.with(Protocol::Tcp(*port)).with(Protocol::Ws("/\r\n".into())),
                    _ => host.with(Protocol::Udp(*port)).with(Protocol::WebRTCDirect),
                }.to_vec()
            });
            let addresses: Vec<_> = addresses.chain([noise]).collect();
            let addresses: Vec<_> = addresses.iter().map(Vec::as_slice).collect();
            let server = Server::default();
            if let Some((index, address)) = server.choose(&addresses, &client(), &observed) {
                let target = Endpoint::of(&address, &client()).unwrap();
                prop_assert_eq!(target.ip, IpAddr::from(seen));
                prop_assert_eq!(scope(target.ip), Scope::Global);
                prop_assert!(target.port >= FIRST_PORT);
                prop_assert_eq!(address.to_vec(), addresses[index]);
            }
        }
    }
}
