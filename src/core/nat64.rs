//! IPv6 addresses that stand for IPv4 addresses where only a NAT64 leads to IPv4 (RFC 6146).
//!
//! Such a network has a prefix of its own. [`Prefix::found_in`] learns it from the answers for a name
//! that has only IPv4 addresses, which are known (RFC 7050). [`Prefix::synthesize`] then makes the IPv6
//! address by which an IPv4 address is reached (RFC 6052 section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::scope::{Scope, held, scope};

/// The name whose addresses tell the prefix (RFC 7050 section 8.2).
pub(crate) const NAME: &str = "ipv4only.arpa.";

/// The addresses of [`NAME`] (RFC 7050 section 8.1).
const KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The lengths that a prefix may have (RFC 6052 section 2.2).
const LENGTHS: [u32; 6] = [32, 40, 48, 56, 64, 96];

/// The bits 64 to 71 of an address, which are always zero (RFC 6052 section 2.2).
const RESERVED: u128 = 0xff << 56;

/// Prefixes that any network may use for its NAT64 (RFC 8215). No other address in them is reached.
const LOCAL_USE: (u128, u32) = (0x64_ff9b_0001 << 80, 48);

/// The prefix of a network's NAT64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    bits: u128,
    length: u32,
}

impl Prefix {
    /// Returns the prefix by which `answers` hold a known address. An answer that holds one in several
    /// places tells nothing (RFC 7050 section 3).
    pub(crate) fn found_in(answers: &[Ipv6Addr]) -> Option<Self> {
        answers.iter().find_map(|answer| {
            let all = LENGTHS.iter().map(|length| Self::of(*answer, *length));
            let mut holders = all.filter(|prefix| {
                let held = prefix.held(*answer);
                held.is_some_and(|held| KNOWN.contains(&held))
            });
            let only = holders.next().filter(|_| holders.next().is_none());
            only.filter(Self::is_possible)
        })
    }

    fn of(address: Ipv6Addr, length: u32) -> Self {
        let mask = u128::MAX << (128 - length);
        let bits = address.to_bits() & mask;
        Self { bits, length }
    }

    /// Whether a prefix leads anywhere, and not to this machine or to a group.
    fn is_possible(&self) -> bool {
        let (local, length) = LOCAL_USE;
        let is_local =
            self.length >= length && self.bits >> (128 - length) == local >> (128 - length);
        let v4 = Ipv4Addr::new(192, 0, 2, 1);
        let v6 = self.synthesize(v4);
        // An IPv4 address in the form of IPv6 (RFC 4291 section 2.5.5.2) is no IPv6 address, and 6to4 and Teredo
        // would lead to another one.
        let is_plain = v6.to_ipv4_mapped().is_none() && held(v6).all(|held| held == v4);
        is_local || is_plain && matches!(scope(v6.into()), Scope::Global | Scope::Private)
    }

    /// Returns the IPv6 address by which `ip` is reached.
    pub(crate) fn synthesize(&self, ip: Ipv4Addr) -> Ipv6Addr {
        // The address follows the prefix, and goes around the reserved bits.
        let straight = u128::from(ip.to_bits()) << 96 >> self.length;
        let held = match self.length {
            96 => straight,
            _ => {
                let high = straight & !(u128::MAX >> 64);
                let low = straight & (u128::MAX >> 64);
                high | low >> 8
            }
        };
        Ipv6Addr::from_bits(self.bits | held)
    }

    /// Returns the IPv4 address that `ip` stands for, if `ip` has this prefix.
    pub(crate) fn held(&self, ip: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = ip.to_bits();
        let within = Self::of(ip, self.length).bits == self.bits;
        if !within || self.length < 96 && bits & RESERVED != 0 {
            return None;
        }
        let straight = match self.length {
            96 => bits,
            _ => bits & !(u128::MAX >> 64) | (bits & (u128::MAX >> 72)) << 8,
        };
        Some(Ipv4Addr::from_bits((straight << self.length >> 96) as u32))
    }

    /// Returns the address by which `to` is reached from a network with this prefix. Returns `None` if
    /// `to` is in the prefix and stands for an address that is not global, because only the NAT64's own
    /// network could be there.
    ///
    /// Private IPv4 addresses are not synthesized: they are those of another network.
    pub(crate) fn route(&self, to: SocketAddr) -> Option<SocketAddr> {
        let is_global = |ip: Ipv4Addr| scope(ip.into()) == Scope::Global;
        match to.ip().to_canonical() {
            IpAddr::V4(ip) if is_global(ip) => {
                Some(SocketAddr::new(self.synthesize(ip).into(), to.port()))
            }
            IpAddr::V4(_) => Some(to),
            IpAddr::V6(ip) => self.held(ip).is_none_or(is_global).then_some(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// The examples of RFC 6052 section 2.4 for 192.0.2.33.
    const EXAMPLES: [(&str, u32, &str); 6] = [
        ("2001:db8::", 32, "2001:db8:c000:221::"),
        ("2001:db8:100::", 40, "2001:db8:1c0:2:21::"),
        ("2001:db8:122::", 48, "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::", 56, "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::", 64, "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::", 96, "2001:db8:122:344::192.0.2.33"),
    ];

    #[test]
    fn addresses_are_those_of_the_specification() {
        let ip = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, length, expected) in EXAMPLES {
            let prefix = Prefix::of(v6(prefix), length);
            assert_eq!(prefix.synthesize(ip), v6(expected), "{length}");
            assert_eq!(prefix.held(v6(expected)), Some(ip), "{length}");
            let reserved = Ipv6Addr::from_bits(v6(expected).to_bits() | 1 << 56);
            assert_eq!(
                prefix.held(reserved),
                None,
                "{length}: the octet has to be 0"
            );
        }
    }

    #[test]
    fn the_longest_prefix_may_have_any_octet() {
        let prefix = Prefix::of(v6("2001:db8::aa00:0:0:0"), 96);
        let ip = Ipv4Addr::new(192, 0, 2, 33);
        assert_eq!(prefix.held(v6("2001:db8::aa00:0:192.0.2.33")), Some(ip));
    }

    #[test]
    fn the_prefix_is_where_a_known_address_is() {
        for (prefix, length, _) in EXAMPLES {
            let prefix = Prefix::of(v6(prefix), length);
            for known in KNOWN {
                let answers = [v6("2001:db8::1"), prefix.synthesize(known)];
                assert_eq!(Prefix::found_in(&answers), Some(prefix), "{length}");
            }
        }
        let found = |text: &str| Prefix::found_in(&[v6(text)]);
        assert!(found("64:ff9b::192.0.0.170").is_some());
        assert!(found("64:ff9b:1:c000:0:aa00::").is_some(), "local use");
        assert!(found("fd00::192.0.0.171").is_some());
        for nothing in [
            "64:ff9b::192.0.0.172",
            "::ffff:192.0.0.170",
            "::192.0.0.170",
            "fe80::192.0.0.170",
            "ff02::192.0.0.170",
            // 6to4 and Teredo.
            "2002:6464::192.0.0.170",
            "2001:0:6464::192.0.0.170",
            // In two places.
            "2001:db8:c000:aa::192.0.0.170",
        ] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn only_global_addresses_go_through_it() {
        let prefix = Prefix::of(v6("2001:db8:64::"), 96);
        let route = |text: &str| prefix.route(text.parse().unwrap());
        let to = |text: &str| Some(text.parse().unwrap());
        assert_eq!(route("192.0.2.1:7"), to("[2001:db8:64::c000:201]:7"));
        assert_eq!(
            route("[::ffff:192.0.2.1]:7"),
            to("[2001:db8:64::c000:201]:7")
        );
        assert_eq!(route("10.0.0.1:7"), to("10.0.0.1:7"));
        assert_eq!(route("127.0.0.1:7"), to("127.0.0.1:7"));
        assert_eq!(route("[2001:db8::1]:7"), to("[2001:db8::1]:7"));
        assert_eq!(
            route("[2001:db8:64::192.0.2.1]:7"),
            to("[2001:db8:64::c000:201]:7")
        );
        assert_eq!(route("[2001:db8:64::10.0.0.1]:7"), None);
        assert_eq!(route("[2001:db8:64::169.254.169.254]:7"), None);
    }

    proptest! {
        #[test]
        fn an_address_is_held_as_it_was_synthesized(bits: u128, length in 0..6usize, ip: u32) {
            let prefix = Prefix::of(Ipv6Addr::from_bits(bits & !RESERVED), LENGTHS[length]);
            let ip = Ipv4Addr::from_bits(ip);
            prop_assert_eq!(prefix.held(prefix.synthesize(ip)), Some(ip));
        }

        /// Nothing that is reached through the NAT64 stands for an address that is not global.
        #[test]
        fn nobody_is_aimed_at_the_network_behind_it(bits: u128, to: u128, length in 0..6usize, inside: bool) {
            let prefix = Prefix::of(Ipv6Addr::from_bits(bits & !RESERVED), LENGTHS[length]);
            let rest = u128::MAX >> prefix.length;
            let to = if inside { prefix.bits | to & rest } else { to };
            let routed = prefix.route(SocketAddr::new(Ipv6Addr::from_bits(to).into(), 1));
            if let Some(IpAddr::V6(routed)) = routed.map(|to| to.ip()) {
                prop_assert!(prefix.held(routed).is_none_or(|ip| scope(ip.into()) == Scope::Global));
            }
        }
    }
}
