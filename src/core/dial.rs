//! Decides which addresses may be dialled when others name them.
//!
//! Tickets, relays, peers and servers name addresses, and whoever names an address aims the first
//! bytes that we send. A [`Policy`] decides by the [`Scope`] of the address:
//!
//! - A global address is dialled.
//! - A private address is dialled if the user allows it.
//! - An address of this machine is dialled if the user allows it and nobody else chooses the first
//!   bytes. QUIC, Noise over TCP and STUN begin with bytes of ours, and so does a WebSocket at `/`
//!   of an IP address. A path or a name is chosen by whoever wrote the address, and services of
//!   this machine might obey it.
//! - A forbidden address is never dialled.
//!
//! Addresses in the user's own configuration are trusted.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use multiaddr::{Multiaddr, Protocol};

use super::{
    address,
    scope::{Scope, scope},
};

/// The rules for what may be dialled.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    private: bool,
    trusted: Vec<Multiaddr>,
}

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barred {
    /// The address is malformed.
    Malformed(&'static str),
    /// The address leads to a place of this kind.
    Place(Scope),
    /// The address leads to this machine, with a name or a path that somebody else has chosen.
    Chosen,
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not dialled: ")?;
        f.write_str(match self {
            Self::Malformed(why) => why,
            Self::Place(Scope::Forbidden) => {
                "the address is link-local, multicast, reserved or for metadata"
            }
            Self::Place(Scope::Loopback) => {
                "the address is this machine's and dial_private is false"
            }
            Self::Place(_) => "the address is private and dial_private is false",
            Self::Chosen => "the address leads to this machine by a name or with a path",
        })
    }
}

impl std::error::Error for Barred {}

impl Policy {
    /// `private` allows private networks and this machine. `trusted` are the addresses that the
    /// user has named.
    pub(crate) fn new(private: bool, trusted: Vec<Multiaddr>) -> Self {
        Self { private, trusted }
    }

    /// Checks whether our datagrams, or a connection that begins with bytes of ours, may go to
    /// `to`.
    ///
    /// # Errors
    /// Returns [`Barred`] if they may not.
    pub(crate) fn allows(&self, to: SocketAddr) -> Result<(), Barred> {
        let place = scope(to.ip());
        let allowed = match place {
            Scope::Global => true,
            Scope::Private | Scope::Loopback => self.private,
            Scope::Forbidden => false,
        };
        if allowed || self.is_trusted(to) {
            return Ok(());
        }
        Err(Barred::Place(place))
    }

    /// Like [`allows`](Self::allows), for a connection whose first bytes contain the name that was
    /// resolved to `to`.
    ///
    /// # Errors
    /// Returns [`Barred`] if the connection may not be made.
    pub(crate) fn allows_named(&self, to: SocketAddr) -> Result<(), Barred> {
        self.allows(to)?;
        if scope(to.ip()) == Scope::Loopback && !self.is_trusted(to) {
            return Err(Barred::Chosen);
        }
        Ok(())
    }

    /// Checks whether `address` may be dialled, as far as this is known before its name is
    /// resolved.
    ///
    /// # Errors
    /// Returns [`Barred`] if it may not.
    pub(crate) fn check(&self, address: &Multiaddr) -> Result<(), Barred> {
        if self.trusted.contains(address) {
            return Ok(());
        }
        if let Some(why) = address::fault(address) {
            return Err(Barred::Malformed(why));
        }
        // Only the relay of a circuit is dialled, and its address was checked when it was dialled.
        if address::route(address) != address::Route::Direct {
            return Ok(());
        }
        // A browser connects to the certificate's name, not to the address before it.
        let certified = |part: Protocol<'_>| matches!(part, Protocol::Sni(n) if is_localhost(&n));
        if address.iter().any(certified) {
            return Err(Barred::Chosen);
        }
        let Some(to) = endpoint(address) else {
            return Ok(());
        };
        self.allows(to)?;
        if scope(to.ip()) == Scope::Loopback && is_chosen(address) {
            return Err(Barred::Chosen);
        }
        Ok(())
    }

    /// Whether the user has named `to`.
    pub(crate) fn is_trusted(&self, to: SocketAddr) -> bool {
        let mut trusted = self.trusted.iter().filter_map(endpoint);
        trusted.any(|trusted| trusted == to)
    }
}

/// Whether a server at `from` may send us to `to`. It may name places of its own scope or of a less
/// dangerous one.
///
/// A server on the internet must not send us into our own network, and no server may send us to a
/// forbidden place.
pub(crate) fn may_refer(from: IpAddr, to: IpAddr) -> bool {
    scope(to) != Scope::Forbidden && scope(to) <= scope(from)
}

/// Returns the socket address of `address`, if it is known without resolving a name.
pub(crate) fn endpoint(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        // RFC 6761 section 6.3: this name always means this machine.
        Protocol::Dns(name) | Protocol::Dns4(name) if is_localhost(&name) => {
            Ipv4Addr::LOCALHOST.into()
        }
        Protocol::Dns6(name) if is_localhost(&name) => Ipv6Addr::LOCALHOST.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// Whether a name always means this machine (RFC 6761 section 6.3).
pub(crate) fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let top = name.rsplit('.').next().unwrap_or(name);
    top.eq_ignore_ascii_case("localhost")
}

/// Whether a dial of `address` begins with bytes that the address's author has chosen.
fn is_chosen(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ws(path) | Protocol::Wss(path) => path != "/",
        Protocol::HttpPath(_) | Protocol::Sni(_) => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(private: bool, address: &str) -> Result<(), Barred> {
        Policy::new(private, Vec::new()).check(&address.parse().unwrap())
    }

    const FORBIDDEN: Result<(), Barred> = Err(Barred::Place(Scope::Forbidden));
    const PRIVATE: Result<(), Barred> = Err(Barred::Place(Scope::Private));
    const LOOPBACK: Result<(), Barred> = Err(Barred::Place(Scope::Loopback));
    const CHOSEN: Result<(), Barred> = Err(Barred::Chosen);

    #[test]
    fn a_name_leads_somewhere_once_it_is_resolved() {
        let endpoint = |address: &str| endpoint(&address.parse().unwrap());
        let v4 = Some("127.0.0.1:1".parse().unwrap());
        let v6 = Some("[::1]:1".parse().unwrap());
        for (address, expected) in [
            ("/dns/localhost/tcp/1", v4),
            ("/dns4/a.LocalHost./udp/1", v4),
            ("/dns6/localhost/tcp/1", v6),
            ("/ip6/::1/udp/1/quic-v1", v6),
            ("/dns/a.example/tcp/1", None),
            ("/dns4/localhost.example/tcp/1", None),
            ("/dns6/a.example/tcp/1", None),
            ("/ip4/127.0.0.1", None),
        ] {
            assert_eq!(endpoint(address), expected, "{address}");
        }
    }

    #[test]
    fn each_address_is_checked_with_and_without_private_dials() {
        for (address, with, without) in [
            ("/ip4/192.0.2.1/tcp/80", Ok(()), Ok(())),
            ("/ip4/192.0.2.1/tcp/80/x-parity-ws/%2fa", Ok(()), Ok(())),
            ("/dns/a.example/tcp/80/x-parity-ws/%2fa", Ok(()), Ok(())),
            ("/ip4/10.0.0.1/udp/1/quic-v1", Ok(()), PRIVATE),
            ("/ip4/10.0.0.1/tcp/80/x-parity-ws/%2fa", Ok(()), PRIVATE),
            ("/ip6/fd00::1/tcp/1", Ok(()), PRIVATE),
            ("/ip4/127.0.0.1/tcp/1", Ok(()), LOOPBACK),
            ("/ip4/127.0.0.1/udp/1/quic-v1", Ok(()), LOOPBACK),
            ("/ip4/127.0.0.1/tcp/80/ws", Ok(()), LOOPBACK),
            ("/ip4/127.0.0.1/tcp/80/wss", Ok(()), LOOPBACK),
            ("/ip6/::1/tcp/80/tls/ws", Ok(()), LOOPBACK),
            ("/ip6/::ffff:127.0.0.1/tcp/80/ws", Ok(()), LOOPBACK),
            ("/dns4/localhost/tcp/80/ws", Ok(()), LOOPBACK),
            ("/dns6/a.LOCALHOST./tcp/80/ws", Ok(()), LOOPBACK),
            ("/ip4/127.0.0.1/tcp/80/x-parity-ws/%2fa", CHOSEN, LOOPBACK),
            (
                "/ip4/127.0.0.1/tcp/80/x-parity-ws/%2f%3fa",
                CHOSEN,
                LOOPBACK,
            ),
            ("/dns/localhost/tcp/80/x-parity-wss/%2fa", CHOSEN, LOOPBACK),
            ("/ip6/::1/tcp/80/tls/sni/a.example/ws", CHOSEN, LOOPBACK),
            ("/ip4/192.0.2.1/tcp/1/tls/sni/localhost/ws", CHOSEN, CHOSEN),
            ("/ip4/169.254.169.254/tcp/80/ws", FORBIDDEN, FORBIDDEN),
            ("/ip4/0.0.0.0/tcp/80", FORBIDDEN, FORBIDDEN),
            ("/ip6/::/udp/1/quic-v1", FORBIDDEN, FORBIDDEN),
            ("/ip4/224.0.0.1/udp/1/quic-v1", FORBIDDEN, FORBIDDEN),
            ("/ip6/64:ff9b::a9fe:a9fe/tcp/80", FORBIDDEN, FORBIDDEN),
        ] {
            assert_eq!(check(true, address), with, "{address}");
            assert_eq!(check(false, address), without, "{address}");
        }
    }

    #[test]
    fn a_second_host_in_an_address_is_refused() {
        for address in [
            "/ip4/192.0.2.1/ip4/127.0.0.1/tcp/80",
            "/ip4/192.0.2.1/tcp/1/ip4/127.0.0.1/tcp/80/ws",
            "/ip4/192.0.2.1/tcp/1/dns4/a.example/tcp/80",
            "/ip6zone/x/ip6/2001:db8::1/tcp/1",
        ] {
            let barred = check(true, address).unwrap_err();
            assert!(matches!(barred, Barred::Malformed(_)), "{address}");
        }
    }

    #[test]
    fn addresses_that_the_user_named_are_trusted() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let named = format!("/ip4/127.0.0.1/tcp/80/x-parity-ws/%2fa/p2p/{peer}");
        let policy = Policy::new(false, vec![named.parse().unwrap()]);
        assert_eq!(policy.check(&named.parse().unwrap()), Ok(()));
        let to = |text: &str| text.parse().unwrap();
        assert_eq!(policy.allows(to("127.0.0.1:80")), Ok(()));
        assert_eq!(policy.allows_named(to("127.0.0.1:80")), Ok(()));
        assert_eq!(policy.allows(to("127.0.0.1:81")), LOOPBACK);
        let other: Multiaddr = "/ip4/127.0.0.1/tcp/80/x-parity-ws/%2fb".parse().unwrap();
        assert_eq!(policy.check(&other), CHOSEN);
    }

    #[test]
    fn a_connection_that_sends_a_name_may_not_reach_this_machine() {
        let policy = Policy::new(true, Vec::new());
        let to = |text: &str| text.parse().unwrap();
        assert_eq!(policy.allows(to("[::1]:80")), Ok(()));
        assert_eq!(policy.allows_named(to("[::1]:80")), CHOSEN);
        assert_eq!(policy.allows_named(to("10.0.0.1:80")), Ok(()));
        assert_eq!(policy.allows_named(to("169.254.0.1:80")), FORBIDDEN);
    }

    #[test]
    fn referrals_never_lead_to_a_more_dangerous_scope() {
        let refers = |from: &str, to: &str| may_refer(from.parse().unwrap(), to.parse().unwrap());
        assert!(refers("192.0.2.1", "192.0.2.2"));
        assert!(!refers("192.0.2.1", "10.0.0.1"));
        assert!(!refers("192.0.2.1", "127.0.0.1"));
        assert!(refers("10.0.0.1", "192.168.0.1"));
        assert!(refers("10.0.0.1", "192.0.2.1"));
        assert!(!refers("10.0.0.1", "127.0.0.1"));
        assert!(refers("127.0.0.1", "127.0.0.1"));
        assert!(!refers("127.0.0.1", "169.254.169.254"));
    }

    proptest! {
        /// No address that passes leads to a forbidden place, whatever its parts are.
        #[test]
        fn no_combination_of_parts_leads_to_a_forbidden_place(
            parts in prop::collection::vec(0usize..9, 0..6),
            ip: IpAddr,
            private: bool,
        ) {
            let address: Multiaddr = parts.into_iter().map(|part| match part {
                0 => ip.into(),
                1 => Protocol::Ip4(Ipv4Addr::new(169, 254, 169, 254)),
                2 => Protocol::Ip4(Ipv4Addr::new(192, 0, 2, 1)),
                3 => Protocol::Tcp(80),
                4 => Protocol::Udp(80),
                5 => Protocol::Dns("a.example".into()),
                6 => Protocol::Ws("/".into()),
                7 => Protocol::Ws("/a".into()),
                _ => Protocol::Tls,
            }).collect();
            if Policy::new(private, Vec::new()).check(&address).is_ok() && endpoint(&address).is_some() {
                for part in &address {
                    let ip = match part {
                        Protocol::Ip4(ip) => IpAddr::from(ip),
                        Protocol::Ip6(ip) => IpAddr::from(ip),
                        _ => continue,
                    };
                    prop_assert!(scope(ip) != Scope::Forbidden);
                    prop_assert!(private || scope(ip) == Scope::Global);
                }
            }
        }
    }
}
