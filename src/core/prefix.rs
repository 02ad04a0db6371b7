//! Prefixes of IP addresses, such as `10.0.0.0/8` (RFC 4632 section 3.1, RFC 4291 section 2.3), and
//! the clients that proxies name.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    network: IpAddr,
    bits: u32,
}

/// The error for a text that is not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoPrefix;

impl FromStr for Prefix {
    type Err = NoPrefix;

    /// Reads an address, or an address with a slash and a length.
    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let network: IpAddr = ip.parse().map_err(|_| NoPrefix)?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().map_err(|_| NoPrefix)?,
            None => most,
        };
        match bits <= most {
            true => Ok(Self { network, bits }),
            false => Err(NoPrefix),
        }
    }
}

impl Prefix {
    /// The addresses that begin with the first `bits` of `network`, which are at most all of them.
    pub(crate) fn of(network: IpAddr, bits: u32) -> Self {
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = bits.min(most);
        Self { network, bits }
    }

    /// Returns whether `ip` begins with these bits. An IPv4-mapped IPv6 address counts as IPv4.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let differing = match (self.network, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.bits
    }
}

/// Returns the client of a request that comes from the address `from`. `forwarded` has the values
/// of `X-Forwarded-For` in their order.
///
/// Each proxy appends the address that it sees. So the last address that is not a trusted proxy is
/// the client. The client may have written anything before it.
pub(crate) fn client<'a>(
    from: IpAddr,
    trusted: &[Prefix],
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
) -> IpAddr {
    let is_proxy = |ip: IpAddr| trusted.iter().any(|prefix| prefix.contains(ip));
    let mut client = from.to_canonical();
    let entries = forwarded.rev().flat_map(|value| value.rsplit(','));
    for entry in entries {
        if !is_proxy(client) {
            break;
        }
        match address(entry.trim()) {
            Some(ip) => client = ip.to_canonical(),
            // The addresses before an unreadable entry cannot be trusted.
            None => break,
        }
    }
    client
}

/// Reads an address. Some proxies write it with a port.
fn address(entry: &str) -> Option<IpAddr> {
    let ip = entry.parse().ok();
    let bare = || entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    ip.or_else(bare).or_else(with_port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_read_and_hold_what_begins_alike() {
        let holds = |prefix: &str, text: &str| prefix.parse::<Prefix>().unwrap().contains(ip(text));
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("10.1.2.3/8", "10.0.0.1"), "the rest is not looked at");
        assert!(holds("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(holds("192.0.2.1", "192.0.2.1") && !holds("192.0.2.1", "192.0.2.0"));
        assert!(
            holds("2001:db8::/32", "2001:db8:ffff::1") && !holds("2001:db8::/32", "2001:db9::")
        );
        assert!(holds("0.0.0.0/0", "203.0.113.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "::1"));
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "/8",
            "a",
            "10.0.0.0/-1",
        ] {
            assert_eq!(wrong.parse::<Prefix>(), Err(NoPrefix), "{wrong}");
        }
    }

    #[test]
    fn the_last_that_is_no_proxy_is_the_client() {
        let trusted = ["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"].map(|p| p.parse().unwrap());
        let of = |from: &str, values: &[&str]| {
            client(ip(from), &trusted, values.iter().copied()).to_string()
        };
        // A header that does not come from a trusted proxy is ignored.
        assert_eq!(of("203.0.113.9", &["192.0.2.1"]), "203.0.113.9");
        assert_eq!(of("127.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(of("127.0.0.1", &["192.0.2.66, 192.0.2.1"]), "192.0.2.1");
        assert_eq!(
            of("127.0.0.1", &["192.0.2.66", "192.0.2.1,10.1.1.1"]),
            "192.0.2.1"
        );
        assert_eq!(of("::ffff:127.0.0.1", &["[2001:db9::1]:80"]), "2001:db9::1");
        assert_eq!(of("127.0.0.1", &["192.0.2.1:8080"]), "192.0.2.1");
        assert_eq!(of("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(of("127.0.0.1", &["10.0.0.7"]), "10.0.0.7");
        assert_eq!(of("127.0.0.1", &["192.0.2.1, unknown"]), "127.0.0.1");
    }

    proptest! {
        #[test]
        fn whoever_comes_from_elsewhere_is_taken_for_itself(values in prop::collection::vec(".*", 0..4)) {
            let trusted = ["127.0.0.1".parse().unwrap()];
            let from = ip("203.0.113.9");
            let values = values.iter().map(String::as_str);
            prop_assert_eq!(client(from, &trusted, values), from);
        }
    }
}
