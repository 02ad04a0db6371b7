//! The scope of an IP address: the one table that says where nobody may be sent.
//!
//! Strangers name addresses everywhere: in tickets, in candidates, in requests to TURN and AutoNAT
//! servers, and in answers of servers. Each of these places asks [`scope`] before it sends anything
//! to such an address. The table holds the IANA IPv4 and IPv6 Special-Purpose Address Registries
//! (RFC 6890, as of 2026), the multicast ranges of RFC 5771 and RFC 4291, and the addresses at
//! which clouds give their machines secrets.
//!
//! The documentation ranges (RFC 5737, RFC 3849, RFC 9637) count as global, because they belong to
//! nobody and test networks use them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The scope of an address, from the least to the most dangerous place to be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// Everybody on the internet can reach the address.
    Global,
    /// The address has a meaning within one private network (RFC 1918, RFC 4193, RFC 6598).
    Private,
    /// The address leads to this machine.
    Loopback,
    /// Nobody may ever be sent to the address: it is link-local, multicast, reserved or for
    /// metadata.
    Forbidden,
}

use Scope::{Forbidden, Global, Loopback, Private};

/// A prefix, its length, and the scope of the addresses in it. The longest prefix decides.
const V4: &[(Ipv4Addr, u32, Scope)] = &[
    (v4(0, 0, 0, 0), 0, Global),
    (v4(0, 0, 0, 0), 8, Forbidden),          // "this network", RFC 791
    (v4(10, 0, 0, 0), 8, Private),           // RFC 1918
    (v4(100, 64, 0, 0), 10, Private),        // shared address space, RFC 6598
    (v4(100, 100, 100, 200), 32, Forbidden), // metadata of a cloud, in shared space
    (v4(127, 0, 0, 0), 8, Loopback),         // RFC 1122
    (v4(168, 63, 129, 16), 32, Forbidden),   // metadata of a cloud, in global space
    (v4(169, 254, 0, 0), 16, Forbidden),     // link-local, RFC 3927; metadata of most clouds
    (v4(172, 16, 0, 0), 12, Private),        // RFC 1918
    (v4(192, 0, 0, 0), 24, Forbidden),       // IETF protocol assignments, RFC 6890
    (v4(192, 88, 99, 0), 24, Forbidden),     // 6to4 relay anycast, deprecated by RFC 7526
    (v4(192, 168, 0, 0), 16, Private),       // RFC 1918
    (v4(198, 18, 0, 0), 15, Forbidden),      // benchmarking, RFC 2544
    (v4(224, 0, 0, 0), 4, Forbidden),        // multicast, RFC 5771
    (v4(240, 0, 0, 0), 4, Forbidden),        // reserved, RFC 1112; limited broadcast, RFC 8190
];

const V6: &[(Ipv6Addr, u32, Scope)] = &[
    (v6([0; 8]), 0, Forbidden), // not assigned, RFC 4291 section 2.4
    (v6([0, 0, 0, 0, 0, 0, 0, 1]), 128, Loopback), // RFC 4291
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0]), 96, Global), // NAT64, RFC 6052
    // NAT64 of one network (RFC 8215). The position of the IPv4 address in it is not known.
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0]), 48, Forbidden),
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0]), 3, Global), // RFC 3587
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 23, Forbidden), // IETF protocol assignments, RFC 2928
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 32, Global), // Teredo, RFC 4380
    (v6([0x2001, 3, 0, 0, 0, 0, 0, 0]), 32, Global), // AMT, RFC 7450
    (v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0]), 48, Global), // AS112, RFC 7535
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0]), 16, Global), // 6to4, RFC 3056
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0]), 7, Private), // unique local, RFC 4193
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), 128, Forbidden), // metadata of a cloud
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), 128, Forbidden), // metadata of a cloud
];

/// The IPv6 prefixes whose addresses hold an IPv4 address: the prefix, its length, and the first
/// bit of the IPv4 address.
const HOLDS_V4: &[(Ipv6Addr, u32, u32)] = &[
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0]), 96, 96), // RFC 6052
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 32, 32),    // the Teredo server; the client is at the end
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0]), 16, 16),    // RFC 3056
];

/// Returns the scope of `ip`. An IPv6 address that holds an IPv4 address is at least as dangerous
/// as that.
pub(crate) fn scope(ip: IpAddr) -> Scope {
    match ip.to_canonical() {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            let within = |prefix: Ipv6Addr, length| is_within(bits, prefix.to_bits(), 128, length);
            let rows = V6.iter().filter(|row| within(row.0, row.1));
            let own = rows.max_by_key(|row| row.1).map_or(Forbidden, |row| row.2);
            held(ip).map(scope_v4).fold(own, Scope::max)
        }
    }
}

/// Returns the IPv4 addresses that an IPv6 address holds. Traffic to the IPv6 address may end at
/// them.
pub(crate) fn held(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = ip.to_bits();
    let within = move |prefix: Ipv6Addr, length| is_within(bits, prefix.to_bits(), 128, length);
    let holders = HOLDS_V4.iter().filter(move |row| within(row.0, row.1));
    let held = holders.map(move |row| Ipv4Addr::from_bits((bits >> (96 - row.2)) as u32));
    let teredo = within(v6([0x2001, 0, 0, 0, 0, 0, 0, 0]), 32);
    // RFC 4380 section 4: the client's address with every bit inverted.
    let client = teredo.then(|| Ipv4Addr::from_bits(!(bits as u32)));
    held.chain(client)
}

/// Whether everybody on the internet can reach `ip`.
pub(crate) fn is_global(ip: IpAddr) -> bool {
    scope(ip) == Global
}

fn scope_v4(ip: Ipv4Addr) -> Scope {
    let bits = u128::from(ip.to_bits());
    let rows = V4.iter().filter(|row| {
        let prefix = u128::from(row.0.to_bits());
        is_within(bits, prefix, 32, row.1)
    });
    rows.max_by_key(|row| row.1).map_or(Forbidden, |row| row.2)
}

fn is_within(address: u128, prefix: u128, width: u32, length: u32) -> bool {
    (address ^ prefix).checked_shr(width - length).unwrap_or(0) == 0
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_the_internet_reaches_is_global() {
        for (text, expected) in [
            ("198.18.0.1", false),
            ("8.8.8.8", true),
            ("10.0.0.1", false),
            ("127.0.0.1", false),
            ("2606:4700::1", true),
            ("fd00::1", false),
        ] {
            assert_eq!(is_global(text.parse().unwrap()), expected, "{text}");
        }
    }

    /// Checks every entry of the registries at both of its ends and just outside.
    #[test]
    fn every_entry_is_checked_at_both_ends() {
        for (text, expected) in [
            ("0.0.0.0", Forbidden),
            ("0.255.255.255", Forbidden),
            ("1.0.0.0", Global),
            ("9.255.255.255", Global),
            ("10.0.0.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Global),
            ("100.63.255.255", Global),
            ("100.64.0.0", Private),
            ("100.100.100.199", Private),
            ("100.100.100.200", Forbidden),
            ("100.100.100.201", Private),
            ("100.127.255.255", Private),
            ("100.128.0.0", Global),
            ("126.255.255.255", Global),
            ("127.0.0.0", Loopback),
            ("127.255.255.255", Loopback),
            ("128.0.0.0", Global),
            ("168.63.129.15", Global),
            ("168.63.129.16", Forbidden),
            ("168.63.129.17", Global),
            ("169.253.255.255", Global),
            ("169.254.0.0", Forbidden),
            ("169.254.169.254", Forbidden),
            ("169.254.255.255", Forbidden),
            ("169.255.0.0", Global),
            ("172.15.255.255", Global),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Global),
            ("191.255.255.255", Global),
            ("192.0.0.0", Forbidden),
            ("192.0.0.192", Forbidden),
            ("192.0.0.255", Forbidden),
            ("192.0.1.0", Global),
            ("192.0.2.1", Global),
            ("192.31.196.1", Global),
            ("192.52.193.1", Global),
            ("192.88.98.255", Global),
            ("192.88.99.0", Forbidden),
            ("192.88.99.255", Forbidden),
            ("192.88.100.0", Global),
            ("192.167.255.255", Global),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Global),
            ("192.175.48.1", Global),
            ("198.17.255.255", Global),
            ("198.18.0.0", Forbidden),
            ("198.19.255.255", Forbidden),
            ("198.20.0.0", Global),
            ("198.51.100.1", Global),
            ("203.0.113.1", Global),
            ("223.255.255.255", Global),
            ("224.0.0.0", Forbidden),
            ("239.255.255.255", Forbidden),
            ("240.0.0.0", Forbidden),
            ("255.255.255.255", Forbidden),
            ("::", Forbidden),
            ("::1", Loopback),
            ("::2", Forbidden),
            ("::127.0.0.1", Forbidden),
            ("::8.8.8.8", Forbidden),
            ("::ffff:8.8.8.8", Global),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:169.254.169.254", Forbidden),
            ("::ffff:0:127.0.0.1", Forbidden),
            ("64:ff9a:ffff::", Forbidden),
            ("64:ff9b::8.8.8.8", Global),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b::127.0.0.1", Loopback),
            ("64:ff9b::169.254.169.254", Forbidden),
            ("64:ff9b::1:8.8.8.8", Forbidden),
            ("64:ff9b:1:808:8:800::", Forbidden),
            ("64:ff9b:2::", Forbidden),
            ("100::1", Forbidden),
            ("100:0:0:1::1", Forbidden),
            ("1fff:ffff::", Forbidden),
            ("2000::", Global),
            ("2001:0:808:808:0:0:f7f7:f7f7", Global),
            ("2001:0:a00:1:0:0:f7f7:f7f7", Private), // the server is 10.0.0.1
            ("2001:0:808:808:0:0:80ff:fffe", Loopback), // the client is 127.0.0.1
            ("2001:0:808:808:0:0:5601:5601", Forbidden), // the client is 169.254.169.254
            ("2001:1::1", Forbidden),
            ("2001:2::1", Forbidden),
            ("2001:3::1", Global),
            ("2001:4:111::1", Forbidden),
            ("2001:4:112::1", Global),
            ("2001:10::1", Forbidden),
            ("2001:20::1", Forbidden),
            ("2001:30::1", Forbidden),
            ("2001:1ff:ffff::", Forbidden),
            ("2001:200::", Global),
            ("2001:db8::1", Global),
            ("2002:808:808::1", Global),
            ("2002:a00:1::1", Private),
            ("2002:7f00:1::1", Loopback),
            ("2002:a9fe:a9fe::1", Forbidden),
            ("2620:4f:8000::1", Global),
            ("3fff::1", Global),
            ("4000::", Forbidden),
            ("5f00::1", Forbidden),
            ("fbff::", Forbidden),
            ("fc00::", Private),
            ("fd00:ec2::253", Private),
            ("fd00:ec2::254", Forbidden),
            ("fd20:ce::254", Forbidden),
            ("fdff:ffff::", Private),
            ("fe00::", Forbidden),
            ("fe80::1", Forbidden),
            ("febf::1", Forbidden),
            ("fec0::1", Forbidden),
            ("feff::1", Forbidden),
            ("ff00::1", Forbidden),
            ("ff02::1", Forbidden),
        ] {
            assert_eq!(scope(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn prefixes_have_no_bits_beyond_their_length() {
        for (prefix, length, _) in V4 {
            assert_eq!(prefix.to_bits().checked_shl(*length).unwrap_or(0), 0);
        }
        let holders = HOLDS_V4.iter().map(|row| (row.0, row.1));
        for (prefix, length) in V6.iter().map(|row| (row.0, row.1)).chain(holders) {
            assert_eq!(prefix.to_bits().checked_shl(length).unwrap_or(0), 0);
        }
    }

    proptest! {
        /// No way of writing an IPv4 address in an IPv6 address makes it less dangerous.
        #[test]
        fn no_form_is_less_dangerous_than_the_address_it_holds(bits: u32, rest: u64) {
            let v4 = Ipv4Addr::from_bits(bits);
            let wide = u128::from(bits);
            let forms = [
                wide,
                0xffff << 32 | wide,
                0x64_ff9b << 96 | wide,
                0x64_ff9b_0001 << 80 | wide,
                0x2002 << 112 | wide << 80 | u128::from(rest),
                0x2001_0000 << 96 | wide << 64 | u128::from(rest),
                0x2001_0000 << 96 | 0x0808_0808 << 64 | u128::from(!bits),
            ];
            for form in forms {
                let form = Ipv6Addr::from_bits(form);
                prop_assert!(scope(form.into()) >= scope(v4.into()), "{form}");
            }
        }
    }
}
