//! The nftables rule sets that make the kernel behave as a NAT of some kind.

use std::net::Ipv4Addr;

use crate::nat::{Nat, NatKind, SEQUENTIAL_FIRST_PORT, SEQUENTIAL_PORTS};

/// Returns the complete rule set of a router with interfaces `wan` and `lan`, for `nft -f -`.
///
/// `wan` is the router's external address. The text begins with a flush, so loading it also
/// replaces a running NAT.
pub(crate) fn text(nat: &Nat, wan: Ipv4Addr) -> String {
    let post = match nat.kind {
        NatKind::None | NatKind::Firewall => String::new(),
        NatKind::Masquerade | NatKind::UdpBlocked | NatKind::Tcp443 => masquerade("masquerade"),
        NatKind::SymmetricRandom => masquerade("masquerade fully-random"),
        NatKind::SymmetricSequential => masquerade(&sequential()),
        NatKind::FullCone
        | NatKind::AddressRestricted
        | NatKind::PortRestricted
        | NatKind::NonPreserving
        | NatKind::AddressDependent => mapped(nat, wan),
    };
    format!(
        "flush ruleset\ntable ip lab {{\n{}{post}}}\ntable ip6 lab {{\n{}}}\n{}",
        filter(nat.kind, "icmp type echo-request accept", ""),
        // Neighbour discovery and path MTU discovery are part of IPv6 itself (RFC 4890 section 4.3.1).
        filter(
            nat.kind,
            "meta l4proto icmpv6 accept",
            "icmpv6 type { echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
        ),
        PORT_MAPPING_HOOKS,
    )
}

/// The chains for the rules of a port-mapping daemon. A lying router has the same chains, but
/// nothing jumps to them.
const PORT_MAPPING_HOOKS: &str = "table inet upnp {
  chain forward {}
  chain prerouting {}
  chain postrouting {}
  chain pre { type nat hook prerouting priority dstnat - 5; jump prerouting; }
  chain post { type nat hook postrouting priority srcnat - 5; jump postrouting; }
}
table inet upnp_unhooked {
  chain forward {}
  chain prerouting {}
  chain postrouting {}
}
";

fn filter(kind: NatKind, input: &str, forward: &str) -> String {
    let policy = if kind == NatKind::None {
        "accept"
    } else {
        "drop"
    };
    let (first, new) = match kind {
        NatKind::UdpBlocked => (
            "meta l4proto udp drop",
            "iifname \"lan\" oifname \"wan\" accept",
        ),
        NatKind::Tcp443 => (
            "",
            "iifname \"lan\" oifname \"wan\" tcp dport 443 accept\n    iifname \"lan\" oifname \"wan\" reject",
        ),
        _ => (
            "",
            "iifname \"lan\" oifname { \"wan\", \"nat64\" } accept\n    iifname \"nat64\" accept\n    ct status dnat accept",
        ),
    };
    // The input chain must drop packets that nobody asked for. Otherwise a peer's early packet to
    // the router makes a conntrack entry, which takes the port that our own packet is about to
    // need, and punching fails without a real reason.
    format!(
        "  chain input {{ type filter hook input priority filter; policy {policy};
    ct state established,related accept
    iifname {{ \"lan\", \"lo\" }} accept
    {input}
  }}
  chain forward {{ type filter hook forward priority filter; policy {policy};
    {first}
    ct state established,related accept
    {new}
    {forward}
  }}
"
    )
}

fn masquerade(udp: &str) -> String {
    format!(
        "  chain post {{ type nat hook postrouting priority srcnat;
    oifname \"wan\" meta l4proto udp {udp}
    oifname \"wan\" masquerade
  }}
"
    )
}

/// Returns a masquerade to sequential ports. It uses a map, because `numgen` with an offset writes
/// ports in the wrong byte order (nft 1.0.6 has steps of 256).
fn sequential() -> String {
    let ports: Vec<_> = (0..SEQUENTIAL_PORTS)
        .map(|i| format!("{i} : {}", SEQUENTIAL_FIRST_PORT + i))
        .collect();
    format!(
        "masquerade to :numgen inc mod {SEQUENTIAL_PORTS} map {{ {} }}",
        ports.join(", ")
    )
}

/// Returns rules that keep mappings in our own sets. Every outbound packet refreshes them (RFC 4787
/// REQ-6). `out` maps internal endpoints to external ones, `owner` is the reverse, and `sent` holds
/// the addresses that each port has sent to.
fn mapped(nat: &Nat, wan: Ipv4Addr) -> String {
    let by_address = nat.kind == NatKind::AddressDependent;
    let (key_type, key, original) = if by_address {
        (" . ipv4_addr", " . ip daddr", " . ct original ip daddr")
    } else {
        ("", "", "")
    };
    let allocate = match nat.kind {
        NatKind::NonPreserving | NatKind::AddressDependent => "masquerade fully-random",
        _ => "masquerade",
    };
    let admit = match nat.kind {
        NatKind::FullCone => "iifname \"wan\" meta l4proto udp dnat ip to udp dport map @owner",
        NatKind::AddressRestricted => {
            "iifname \"wan\" meta l4proto udp udp dport . ip saddr @sent dnat ip to udp dport map @owner"
        }
        // The connection tracker itself admits the exact remote endpoints.
        _ => "",
    };
    let (hair_pre, hair_post, hair_track) = if nat.hairpin {
        (
            format!("iifname \"lan\" ip daddr {wan} meta l4proto udp dnat ip to udp dport map @owner"),
            format!(
                "iifname \"lan\" oifname \"lan\" ct status dnat meta l4proto udp snat ip to ip saddr . udp sport{key} map @out
    iifname \"lan\" oifname \"lan\" ct status dnat meta l4proto udp snat ip to {wan}"
            ),
            "iifname \"lan\" oifname \"lan\" meta l4proto udp ct status snat ct direction original jump learn",
        )
    } else {
        (String::new(), String::new(), "")
    };
    let flags = format!(
        "flags dynamic,timeout; timeout {}s; size 65535;",
        nat.idle_timeout.as_secs().max(1)
    );
    // Each rule that concatenates a port needs `meta l4proto udp`, or nft cannot type the
    // expression.
    format!(
        "  map out {{ type ipv4_addr . inet_service{key_type} : ipv4_addr . inet_service; {flags} }}
  map owner {{ type inet_service : ipv4_addr . inet_service; {flags} }}
  set sent {{ type inet_service . ipv4_addr; {flags} }}
  chain pre {{ type nat hook prerouting priority dstnat;
    {admit}
    {hair_pre}
  }}
  chain post {{ type nat hook postrouting priority srcnat;
    oifname \"wan\" meta l4proto udp snat ip to ip saddr . udp sport{key} map @out
    oifname \"wan\" meta l4proto udp udp sport @owner masquerade fully-random
    oifname \"wan\" meta l4proto udp {allocate}
    oifname \"wan\" masquerade
    {hair_post}
  }}
  chain track {{ type filter hook postrouting priority srcnat + 10;
    oifname \"wan\" meta l4proto udp ct direction original jump learn
    {hair_track}
  }}
  chain learn {{
    meta l4proto udp update @out {{ ct original ip saddr . ct original proto-src{original} : ip saddr . udp sport }}
    meta l4proto udp update @owner {{ udp sport : ct original ip saddr . ct original proto-src }}
    meta l4proto udp update @sent {{ udp sport . ip daddr }}
  }}
"
    )
}
