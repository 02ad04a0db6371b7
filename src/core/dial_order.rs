//! When each address of one peer is dialled, so that the best transport that works wins and none that
//! does not work holds others up (RFC 8305 sections 4 and 5).
//!
//! QUIC goes first, because it takes the fewest round trips. TCP, WebSocket and WebRTC follow one step
//! after the kind before them. In each kind, IPv6 goes first, IPv4 a step later, and further addresses
//! two steps later. Addresses in private networks, whose round trips are short, have steps of their own.

use std::time::Duration;

use multiaddr::{Multiaddr, Protocol};

use super::{
    address::{self, Route},
    scope::Scope,
};

/// The step between addresses on the internet. RFC 8305 section 5 recommends it.
const STEP: Duration = Duration::from_millis(250);
/// The step between addresses in private networks and on this machine.
const LOCAL_STEP: Duration = Duration::from_millis(30);

/// The transport of an address, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Quic,
    Tcp,
    WebSocket,
    Other,
}

/// Returns how long each of `addresses`, which are dialled together, waits for its turn.
pub(crate) fn pauses(addresses: &[Multiaddr]) -> Vec<Duration> {
    let known: Vec<_> = addresses.iter().map(sort).collect();
    let mut pauses = Vec::new();
    for (at, (is_local, kind, is_v6)) in known.iter().copied().enumerate() {
        // The kinds before this one that are there, whether IPv6 is there, and whether an earlier
        // address is the first of its family.
        let (mut before, mut has_v6, mut is_late) = ([0; 3], false, false);
        for (other, known) in known.iter().copied().enumerate() {
            if known.0 != is_local {
                continue;
            }
            if known.1 < kind {
                before[known.1 as usize] = 1;
            } else if known.1 == kind {
                has_v6 |= known.2;
                is_late |= other < at && known.2 == is_v6;
            }
        }
        let turn = match (is_late, is_v6) {
            (true, _) => 2,
            (false, true) => 0,
            // The other family has the first turn only if it has an address.
            (false, false) => u32::from(has_v6),
        };
        let step = if is_local { LOCAL_STEP } else { STEP };
        pauses.push(step * (before.iter().sum::<u32>() + turn));
    }
    pauses
}

/// Whether an address is in a private network, its transport, and whether it is one of IPv6.
fn sort(address: &Multiaddr) -> (bool, Kind, bool) {
    let has = |wanted: fn(&Protocol<'_>) -> bool| address.iter().any(|part| wanted(&part));
    let kind = match () {
        () if address::route(address) != Route::Direct => Kind::Other,
        () if has(|part| *part == Protocol::QuicV1) => Kind::Quic,
        () if has(|part| matches!(part, Protocol::Ws(_) | Protocol::Wss(_))) => Kind::WebSocket,
        () if has(|part| matches!(part, Protocol::Tcp(_))) => Kind::Tcp,
        () => Kind::Other,
    };
    let scope = address::scope_of(address);
    let is_local = scope.is_some_and(|scope| scope != Scope::Global);
    let is_v6 = has(|part| matches!(part, Protocol::Ip6(_) | Protocol::Dns6(_)));
    (is_local, kind, is_v6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(addresses: &[&str]) -> Vec<u128> {
        let addresses: Vec<Multiaddr> =
            addresses.iter().map(|text| text.parse().unwrap()).collect();
        pauses(&addresses).iter().map(Duration::as_millis).collect()
    }

    #[test]
    fn a_relay_is_dialled_by_one_transport_after_the_other() {
        let all = after(&[
            "/dns4/r.example/tcp/443/tls/ws",
            "/ip4/192.0.2.1/udp/443/quic-v1",
            "/ip4/192.0.2.1/udp/444/webrtc-direct",
            "/ip4/192.0.2.1/tcp/443",
        ]);
        assert_eq!(all, [500, 0, 750, 250]);
    }

    #[test]
    fn a_transport_that_is_not_there_takes_no_turn() {
        assert_eq!(after(&["/dns4/r.example/tcp/443/tls/ws"]), [0]);
        let page = after(&[
            "/ip4/192.0.2.1/udp/444/webrtc-direct",
            "/dns4/r.example/tcp/443/wss",
        ]);
        assert_eq!(page, [250, 0]);
        assert!(after(&[]).is_empty());
    }

    #[test]
    fn both_families_have_an_early_turn() {
        let all = after(&[
            "/ip4/192.0.2.1/udp/1/quic-v1",
            "/ip6/2001:db8::1/udp/1/quic-v1",
            "/ip6/2001:db8::2/udp/1/quic-v1",
            "/ip4/192.0.2.2/udp/1/quic-v1",
            "/ip6/2001:db8::1/tcp/1",
            "/ip4/192.0.2.1/tcp/1",
        ]);
        assert_eq!(all, [250, 0, 500, 500, 250, 500]);
    }

    #[test]
    fn the_local_network_waits_for_nobody() {
        let all = after(&[
            "/ip4/192.0.2.1/udp/1/quic-v1",
            "/ip4/10.0.0.1/udp/1/quic-v1",
            "/ip4/127.0.0.1/tcp/1/ws",
            "/ip4/10.0.0.1/tcp/1",
        ]);
        assert_eq!(all, [0, 0, 60, 30]);
    }

    #[test]
    fn a_circuit_starts_at_once() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let circuit = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}");
        assert_eq!(after(&[&circuit]), [0]);
        // The transport of its relay says nothing of its own.
        let through = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{peer}/p2p-circuit/p2p/{peer}");
        assert_eq!(after(&[&through, "/ip4/192.0.2.1/tcp/1"]), [250, 0]);
    }

    proptest! {
        #[test]
        fn the_last_comes_soon(ports in prop::collection::vec((any::<bool>(), 0u8..4, any::<u16>()), 0..40)) {
            let addresses: Vec<Multiaddr> = ports.into_iter().map(|(v6, kind, port)| {
                let host = if v6 { "/ip6/2001:db8::1" } else { "/ip4/192.0.2.1" };
                let rest = match kind {
                    0 => format!("udp/{port}/quic-v1"),
                    1 => format!("tcp/{port}"),
                    2 => format!("tcp/{port}/ws"),
                    _ => format!("udp/{port}/webrtc-direct"),
                };
                format!("{host}/{rest}").parse().unwrap()
            }).collect();
            let pauses = pauses(&addresses);
            prop_assert_eq!(pauses.len(), addresses.len());
            prop_assert!(addresses.is_empty() || pauses.contains(&Duration::ZERO));
            prop_assert!(pauses.iter().all(|pause| *pause <= STEP * 5));
        }
    }
}
