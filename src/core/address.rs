//! Takes multiaddresses of relays, circuits and `/webrtc` apart, puts them together, and finds
//! faults in addresses that others have written.

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::scope::{Scope, scope};

/// The longest address that is accepted from others, in bytes. The longest in use (`/webrtc-direct` with
/// certificate hash and name) has about 200.
pub(crate) const MAX_ADDRESS_BYTES: usize = 512;

/// The kind of route that an address of a peer describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The address leads straight to the peer.
    Direct,
    /// The address leads through a circuit of a relay. The value is the relay's own address.
    Circuit(Multiaddr),
    /// The address asks for a WebRTC connection that is signalled over a circuit (libp2p
    /// `/webrtc`).
    WebRtc,
}

/// Returns the kind of route that `address` describes.
pub(crate) fn route(address: &Multiaddr) -> Route {
    if address.iter().any(|p| p == Protocol::WebRTC) {
        return Route::WebRtc;
    }
    match relay_part(address) {
        Some(relay) => Route::Circuit(relay),
        None => Route::Direct,
    }
}

/// Returns the relay's address within a circuit address: everything before `/p2p-circuit`.
pub(crate) fn relay_part(address: &Multiaddr) -> Option<Multiaddr> {
    let at = address.iter().position(|p| p == Protocol::P2pCircuit)?;
    Some(address.iter().take(at).collect())
}

/// Returns the relay and the peer of `…/p2p/<relay>/p2p-circuit/p2p/<peer>`.
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

/// Returns `<relay>/p2p-circuit`, the address for a reservation on a relay. The address of the
/// relay ends in `/p2p/<relay>`.
pub(crate) fn reservation(relay: &Multiaddr) -> Multiaddr {
    relay.clone().with(Protocol::P2pCircuit)
}

/// Returns `<relay>/p2p-circuit/p2p/<peer>`.
pub(crate) fn circuit(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    reservation(relay).with(Protocol::P2p(peer))
}

/// Returns `<relay>/p2p-circuit/webrtc/p2p/<peer>`.
pub(crate) fn webrtc(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    reservation(relay)
        .with(Protocol::WebRTC)
        .with(Protocol::P2p(peer))
}

/// Returns `address` with `/p2p/<peer>` at its end, or `None` if it names another peer there.
pub(crate) fn with_peer(address: &Multiaddr, peer: PeerId) -> Option<Multiaddr> {
    address.clone().with_p2p(peer).ok()
}

/// Returns the scope of the IP address in `address`, or `None` if it does not begin with one.
pub(crate) fn scope_of(address: &Multiaddr) -> Option<Scope> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(scope(ip.into())),
        Protocol::Ip6(ip) => Some(scope(ip.into())),
        _ => None,
    }
}

/// Returns what is wrong with `address`, or `None` if nothing is.
///
/// A binary multiaddress can hold any text as a name or a path, and transports write that text into
/// requests. So every address that somebody else has written is checked before it is used.
pub(crate) fn fault(address: &Multiaddr) -> Option<&'static str> {
    address.iter().enumerate().find_map(|(at, part)| {
        let sound = match &part {
            Protocol::Dns(name)
            | Protocol::Dns4(name)
            | Protocol::Dns6(name)
            | Protocol::Dnsaddr(name)
            | Protocol::Sni(name) => is_host_name(name),
            _ => true,
        };
        if !sound {
            return Some("one of its host names is not valid");
        }
        match part {
            Protocol::Ws(path) | Protocol::Wss(path) if !is_path(&path) => {
                Some("its path is not one of RFC 3986")
            }
            // The text of this part has no slash in front.
            Protocol::HttpPath(path) if !is_path_text(&path) => {
                Some("its path is not one of RFC 3986")
            }
            // Transports disagree about which of two hosts counts.
            Protocol::Ip4(_)
            | Protocol::Ip6(_)
            | Protocol::Dns(_)
            | Protocol::Dns4(_)
            | Protocol::Dns6(_)
            | Protocol::Dnsaddr(_)
                if at > 0 =>
            {
                Some("its host does not come first, or is not the only one")
            }
            _ => None,
        }
    })
}

/// Whether `path` has the form `path-absolute [ "?" query ]` (RFC 3986 sections 3.3 and 3.4).
pub(crate) fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.starts_with("//") && is_path_text(path)
}

/// Whether `text` has only `pchar`, `/` and `?` in it.
fn is_path_text(text: &str) -> bool {
    let escaped = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&b);
    text.bytes().all(is_part) && text.split('%').skip(1).all(escaped)
}

/// Whether `name` is a host name (RFC 1123 section 2.1). Underscores are allowed, because many
/// names have them.
///
/// A name that ends in a number is refused, because some implementations read it as an IPv4 address
/// (URL standard section 3.5), in forms such as `127.1` and `0x7f000001`. An address has to be
/// written as `/ip4` or `/ip6`.
pub(super) fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let number = match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => last.bytes().all(|b| b.is_ascii_digit()),
    };
    name.len() <= 253 && name.split('.').all(is_label) && !number
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RELAY: &str =
        "/ip4/192.0.2.1/tcp/4002/ws/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

    #[test]
    fn addresses_are_built_and_taken_apart_the_same_way() {
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
        assert_eq!(scope_of(&relay), Some(Scope::Global));
        let scope_of = |text: &str| scope_of(&text.parse().unwrap());
        assert_eq!(scope_of("/ip6/::1/udp/1"), Some(Scope::Loopback));
        assert_eq!(scope_of("/ip6/fe80::1/udp/1"), Some(Scope::Forbidden));
        assert_eq!(scope_of("/dns/a/udp/1"), None);
    }

    fn with(part: Protocol<'_>) -> Multiaddr {
        "/ip4/192.0.2.1/tcp/80"
            .parse::<Multiaddr>()
            .unwrap()
            .with(part)
    }

    #[test]
    fn only_paths_of_rfc_3986_pass() {
        for path in [
            "/",
            "/a",
            "/a/b/",
            "/a//b",
            "/a?b=c&d=/?",
            "/%0d%0a",
            "/-._~!$&'()*+,;=:@",
        ] {
            assert_eq!(fault(&with(Protocol::Ws(path.into()))), None, "{path}");
            assert_eq!(fault(&with(Protocol::Wss(path.into()))), None, "{path}");
        }
        for path in [
            "", "a", "//a", "/ ", "/\r\n", "/\n", "/\0", "/\t", "/\u{e9}", "/#", "/\"", "/<",
            "/\\", "/^", "/`", "/{", "/|", "/[", "/\x7f", "/%", "/%0", "/%0g", "/%g0",
        ] {
            assert!(
                fault(&with(Protocol::Ws(path.into()))).is_some(),
                "{path:?}"
            );
            assert!(
                fault(&with(Protocol::Wss(path.into()))).is_some(),
                "{path:?}"
            );
        }
        assert_eq!(fault(&with(Protocol::HttpPath("a/b".into()))), None);
        assert!(fault(&with(Protocol::HttpPath("a\r\n".into()))).is_some());
    }

    #[test]
    fn only_host_names_pass() {
        let label = "a".repeat(63);
        let long = [&label[..61], &label, &label, &label]
            .map(str::to_owned)
            .join(".");
        for name in [
            "a",
            "a.example",
            "a.example.",
            "3com",
            "_x.example",
            "xn--a.1a",
            "0xg",
            &label,
            &long,
        ] {
            let address = Multiaddr::from(Protocol::Dns(name.to_owned().into()));
            assert_eq!(fault(&address), None, "{name}");
        }
        let longer = format!("{long}a");
        let label = format!("{label}a");
        for name in [
            "",
            ".",
            "a..b",
            ".a",
            "-a",
            "a-.b",
            "a b",
            "a\r\n",
            "a:1",
            "a/b",
            "a@b",
            "a?b",
            "\u{e9}",
            "1",
            "127.1",
            "127.0.0.1",
            "a.0x7f",
            "0x7f000001",
            "0X",
            "1.",
            &label,
            &longer,
        ] {
            let parts = [
                Protocol::Dns,
                Protocol::Dns4,
                Protocol::Dns6,
                Protocol::Dnsaddr,
            ];
            for part in parts {
                assert!(fault(&part(name.into()).into()).is_some(), "{name:?}");
            }
            assert!(
                fault(&with(Protocol::Sni(name.into()))).is_some(),
                "{name:?}"
            );
        }
    }

    proptest! {
        /// Text that passes can be written into a request as it is.
        #[test]
        fn text_that_passes_has_only_allowed_bytes(text in "[/a%0-9.?# \r\n\\-]{0,8}|.{0,12}", bytes: Vec<u8>) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                let is_sound = |part: Protocol<'_>| fault(&with(part)).is_none();
                let visible = |more: &str| {
                    text.bytes().all(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b))
                };
                if is_sound(Protocol::Ws(text.as_str().into())) {
                    prop_assert!(text.starts_with('/'));
                    prop_assert!(visible("-._~%!$&'()*+,;=:@/?"));
                }
                if is_sound(Protocol::Sni(text.as_str().into())) {
                    prop_assert!(visible("-._"));
                    prop_assert!(text.parse::<std::net::IpAddr>().is_err());
                }
            }
        }

        /// No bytes make the check panic.
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(address) = Multiaddr::try_from(bytes) {
                let _ = fault(&address);
            }
        }
    }
}
