//! Whom a certificate is for: a name of the DNS, or an IP address (RFC 8738).

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    str::FromStr,
};

use multiaddr::{Multiaddr, Protocol};

use super::{
    address::is_host_name,
    scope::{Scope, scope},
    websocket_address::authority,
};

/// One name or address in a certificate. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    Name(String),
    Ip(IpAddr),
}

/// Why a text is no subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidSubject;

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let is_usable = scope(ip) != Scope::Forbidden;
            return is_usable.then_some(Self::Ip(ip)).ok_or(InvalidSubject);
        }
        // A challenge over TLS proves nothing of a wildcard (RFC 8555 section 8.4 leaves it to the
        // DNS), and `is_host_name` has none.
        match is_host_name(text) && !text.ends_with('.') {
            true => Ok(Self::Name(text.to_ascii_lowercase())),
            false => Err(InvalidSubject),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Subject {
    /// The server name by which an authority asks for the certificate of a challenge. An address is
    /// asked for by its name in the reverse zone (RFC 8738 section 6).
    pub(crate) fn challenged_as(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Ip(IpAddr::V4(ip)) => {
                let [a, b, c, d] = ip.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            Self::Ip(IpAddr::V6(ip)) => {
                let mut name = String::new();
                for byte in ip.octets().iter().rev() {
                    // Writing to a string does not fail.
                    let _ = write!(name, "{:x}.{:x}.", byte & 15, byte >> 4);
                }
                name + "ip6.arpa"
            }
        }
    }

    /// The address of the TCP port at this subject, for peers of one IP family. Returns `None` if the
    /// subject is an address of the other family.
    pub(crate) fn tcp(&self, is_ipv4: bool, port: u16) -> Option<Multiaddr> {
        let host = match self {
            Self::Name(name) if is_ipv4 => Protocol::Dns4(name.into()),
            Self::Name(name) => Protocol::Dns6(name.into()),
            Self::Ip(ip) if ip.is_ipv4() == is_ipv4 => (*ip).into(),
            Self::Ip(_) => return None,
        };
        Some(Multiaddr::from(host).with(Protocol::Tcp(port)))
    }

    /// The subject with a port, as URLs have it.
    pub(crate) fn at(&self, port: u16) -> String {
        authority(&self.to_string(), port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(text: &str) -> Subject {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert_eq!(
            subject("Relay.example"),
            Subject::Name("relay.example".into())
        );
        assert_eq!(subject("192.0.2.1").to_string(), "192.0.2.1");
        for bad in [
            "",
            "*.example",
            "a b",
            "relay.example.",
            "1.2.3",
            "0.0.0.0",
            "https://x",
        ] {
            assert_eq!(bad.parse::<Subject>(), Err(InvalidSubject), "{bad}");
        }
    }

    #[test]
    fn an_address_is_challenged_by_its_reverse_name() {
        assert_eq!(subject("relay.example").challenged_as(), "relay.example");
        assert_eq!(
            subject("192.0.2.1").challenged_as(),
            "1.2.0.192.in-addr.arpa"
        );
        assert_eq!(
            subject("2001:db8::1").challenged_as(),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
    }

    #[test]
    fn a_subject_is_announced_to_the_families_that_reach_it() {
        let told = |text: &str, is_ipv4| {
            let address = subject(text).tcp(is_ipv4, 443);
            address.map(|address| address.to_string())
        };
        assert_eq!(told("r.example", true).unwrap(), "/dns4/r.example/tcp/443");
        assert_eq!(told("r.example", false).unwrap(), "/dns6/r.example/tcp/443");
        assert_eq!(told("192.0.2.1", true).unwrap(), "/ip4/192.0.2.1/tcp/443");
        assert_eq!(told("192.0.2.1", false), None);
        assert_eq!(subject("2001:db8::1").at(443), "[2001:db8::1]:443");
    }
}
