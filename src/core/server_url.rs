//! URLs of STUN servers (RFC 7064) and TURN servers (RFC 7065).

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// The default port (RFC 8489 section 18.6, RFC 8656 section 19).
const PORT: u16 = 3478;
/// The default port over TLS (from the same sections).
const TLS_PORT: u16 = 5349;

/// The longest host name in the DNS.
const MAX_HOST: usize = 253;

/// The protocol that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Stun,
    /// STUN over TLS.
    Stuns,
    Turn(ServerTransport),
}

/// How a TURN server is reached, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ServerTransport {
    Udp,
    Tcp,
    Tls,
    /// DTLS over UDP.
    Dtls,
}

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    pub(crate) service: Service,
    /// A name or an address. An IPv6 address has no brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidUrl {
    Scheme,
    Host,
    Port,
    Transport,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "must begin with stun:, stuns:, turn: or turns:",
            Self::Host => "must name a host: a name, an IPv4 address, or an IPv6 address in []",
            Self::Port => "must have a port from 1 to 65535, or no port",
            Self::Transport => {
                "may end only in ?transport=udp or ?transport=tcp, and only after turn: or turns:"
            }
        })
    }
}

impl std::error::Error for InvalidUrl {}

impl FromStr for ServerUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = url.split_once(':').ok_or(InvalidUrl::Scheme)?;
        // A scheme may be written in capitals (RFC 3986 section 3.1).
        let scheme = scheme.to_ascii_lowercase();
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        // RFC 7065 section 3.2, the table of transports.
        let service = match (scheme.as_str(), query) {
            ("stun", None) => Service::Stun,
            ("stuns", None) => Service::Stuns,
            ("turn", None | Some("transport=udp")) => Service::Turn(ServerTransport::Udp),
            ("turn", Some("transport=tcp")) => Service::Turn(ServerTransport::Tcp),
            ("turns", None | Some("transport=tcp")) => Service::Turn(ServerTransport::Tls),
            ("turns", Some("transport=udp")) => Service::Turn(ServerTransport::Dtls),
            ("stun" | "stuns" | "turn" | "turns", Some(_)) => return Err(InvalidUrl::Transport),
            _ => return Err(InvalidUrl::Scheme),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or(InvalidUrl::Host)?;
                host.parse::<Ipv6Addr>().map_err(|_| InvalidUrl::Host)?;
                match port.strip_prefix(':') {
                    None if !port.is_empty() => return Err(InvalidUrl::Host),
                    port => (host, port),
                }
            }
            None => {
                let (host, port) = match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                };
                let of_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                if host.is_empty() || host.len() > MAX_HOST || !host.chars().all(of_a_name) {
                    return Err(InvalidUrl::Host);
                }
                (host, port)
            }
        };
        let port = match port {
            None if scheme.ends_with('s') => TLS_PORT,
            None => PORT,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(InvalidUrl::Port)?,
            Some(_) => return Err(InvalidUrl::Port),
        };
        Ok(Self {
            service,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, query) = match self.service {
            Service::Stun => ("stun", ""),
            Service::Stuns => ("stuns", ""),
            Service::Turn(ServerTransport::Udp) => ("turn", ""),
            Service::Turn(ServerTransport::Tcp) => ("turn", "?transport=tcp"),
            Service::Turn(ServerTransport::Tls) => ("turns", ""),
            Service::Turn(ServerTransport::Dtls) => ("turns", "?transport=udp"),
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}:[{}]:{}{query}", self.host, self.port),
            false => write!(f, "{scheme}:{}:{}{query}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_like_those_in_the_rfcs_are_parsed() {
        let parse = |url: &str| {
            let url: ServerUrl = url.parse().unwrap();
            (url.service, url.host, url.port)
        };
        let (udp, tcp, tls) = (
            Service::Turn(ServerTransport::Udp),
            Service::Turn(ServerTransport::Tcp),
            Service::Turn(ServerTransport::Tls),
        );
        assert_eq!(
            parse("stun:a.example"),
            (Service::Stun, "a.example".into(), 3478)
        );
        assert_eq!(parse("stun:[::1]"), (Service::Stun, "::1".into(), 3478));
        assert_eq!(parse("stun:[::1]:9"), (Service::Stun, "::1".into(), 9));
        assert_eq!(parse("stuns:a"), (Service::Stuns, "a".into(), 5349));
        assert_eq!(parse("turn:192.0.2.1:99"), (udp, "192.0.2.1".into(), 99));
        assert_eq!(parse("turn:a?transport=udp"), (udp, "a".into(), 3478));
        assert_eq!(parse("turn:a:80?transport=tcp"), (tcp, "a".into(), 80));
        assert_eq!(parse("turns:a"), (tls, "a".into(), 5349));
        assert_eq!(
            parse("turns:[::1]:443?transport=tcp"),
            (tls, "::1".into(), 443)
        );
        assert_eq!(parse("STUN:a"), (Service::Stun, "a".into(), 3478));
        assert_eq!(parse("Turns:a"), (tls, "a".into(), 5349));
        let dtls = Service::Turn(ServerTransport::Dtls);
        assert_eq!(parse("turns:a?transport=udp"), (dtls, "a".into(), 5349));
    }

    #[test]
    fn names_are_as_long_as_the_dns_has_them() {
        let named = |length| format!("stun:{}", "a".repeat(length)).parse::<ServerUrl>();
        assert_eq!(named(MAX_HOST).unwrap().host.len(), 253);
        assert_eq!(named(MAX_HOST + 1), Err(InvalidUrl::Host));
    }

    #[test]
    fn invalid_urls_are_refused_with_the_reason() {
        for (url, why) in [
            ("192.0.2.1", InvalidUrl::Scheme),
            ("http:a", InvalidUrl::Scheme),
            ("stun:", InvalidUrl::Host),
            ("stun://a", InvalidUrl::Host),
            ("stun:::1", InvalidUrl::Host),
            ("turn:[::1", InvalidUrl::Host),
            ("turn:[a]", InvalidUrl::Host),
            ("turn:[::1]9", InvalidUrl::Host),
            ("turn:user@a", InvalidUrl::Host),
            ("stun:a:b", InvalidUrl::Port),
            ("stun:a:0", InvalidUrl::Port),
            ("stun:a:", InvalidUrl::Port),
            ("stun:a:+1", InvalidUrl::Port),
            ("turn:a:65536", InvalidUrl::Port),
            ("turn:a?transport=sctp", InvalidUrl::Transport),
            ("turn:a?", InvalidUrl::Transport),
            ("stun:a?transport=udp", InvalidUrl::Transport),
        ] {
            assert_eq!(url.parse::<ServerUrl>(), Err(why), "{url}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_url_is_written_back(
            url in "(stuns?|turns?):([a-z0-9.\\-\\[\\]:]{0,12})(:[0-9]{0,6})?(\\?transport=(udp|tcp|x))?"
        ) {
            if let Ok(parsed) = url.parse::<ServerUrl>() {
                prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            let _ = text.parse::<ServerUrl>();
        }

        #[test]
        fn every_address_and_port_is_taken(addr: std::net::SocketAddr, tcp: bool) {
            prop_assume!(addr.port() != 0);
            let query = if tcp { "?transport=tcp" } else { "" };
            let parsed: ServerUrl = format!("turn:{}:{}{query}", match addr.ip() {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            }, addr.port()).parse().unwrap();
            prop_assert_eq!(parsed.port, addr.port());
            prop_assert_eq!(parsed.host.parse(), Ok(addr.ip()));
        }
    }
}
