//! Concludes how a NAT behaves from the observations of STUN servers (RFC 4787, RFC 5780), and
//! predicts the ports that it will use next.

use std::net::SocketAddr;

use serde::Serialize;

/// The largest distance between two ports of one sequence. It is above 1 because others behind the
/// NAT take ports too. Two of 64,000 random ports are this close once in 2,000 cases.
const MAX_STEP: i32 = 16;

/// How many ports are predicted. Each check of a peer takes a port, and so do the checks to our own
/// candidates of this peer, its other traffic and its neighbours. Sixteen checks at 5 ms take one
/// short round trip.
pub(crate) const PREDICTIONS: usize = 16;

/// NATs do not use lower ports (RFC 4787 REQ-3).
const LOWEST_PORT: i32 = 1024;

/// When a NAT reuses the mapping of an internal address and port (RFC 4787 section 4.1).
///
/// ```no_run
/// use throughline::{NatMapping, NatReport};
///
/// /// Whether no hole can be punched from here to a peer whose NAT is of this kind too.
/// fn is_symmetric(nat: &NatReport) -> bool {
///     nat.mapping == NatMapping::AddressAndPortDependent
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NatMapping {
    /// Fewer than two STUN servers answered, or none was asked.
    #[default]
    Unknown,
    /// There is no NAT. The servers see the address of the interface.
    None,
    /// The NAT uses one external address for every destination, so a hole can be punched. If all
    /// servers have the same IP address, a NAT that distinguishes addresses but not ports, which is
    /// rare, looks the same.
    EndpointIndependent,
    /// The NAT uses one external address for each destination address.
    AddressDependent,
    /// The NAT uses one external address for each destination address and port (also called
    /// symmetric). Nobody can know the next one. If all servers have different IP addresses, the
    /// kind above, which is rare, looks the same.
    AddressAndPortDependent,
}

/// Whom a NAT lets in through a mapping (RFC 4787 section 5).
///
/// ```
/// use throughline::{NatFiltering, Report};
///
/// assert_eq!(Report::default().nat.filtering, NatFiltering::Unknown);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NatFiltering {
    /// No STUN server that can tell (RFC 5780) was asked, or its answer has not arrived yet.
    #[default]
    Unknown,
    /// The NAT lets everybody in.
    EndpointIndependent,
    /// The NAT lets in addresses to which something was sent. A server with one IP address cannot
    /// tell this from the kind above.
    AddressDependent,
    /// The NAT lets in addresses and ports to which something was sent.
    AddressAndPortDependent,
}

/// How a NAT picks external ports (RFC 4787 section 4.2.1).
///
/// ```
/// use throughline::{NatPorts, Report};
///
/// assert_eq!(Report::default().nat.ports, NatPorts::Unknown);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NatPorts {
    /// No STUN server answered.
    #[default]
    Unknown,
    /// The NAT uses the internal port.
    Preserved,
    /// The NAT uses the next port of a sequence, which can be guessed.
    Contiguous,
    /// The ports show no pattern.
    Random,
}

/// The observation of one STUN server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) server: SocketAddr,
    /// The local address of the request.
    pub(crate) local: SocketAddr,
    /// The source address that the server saw.
    pub(crate) mapped: SocketAddr,
    /// The number of the request, in the order in which requests were first sent. The NAT made the
    /// mappings in this order.
    pub(crate) order: u64,
}

/// The conclusion from the observations of one local address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) mapping: NatMapping,
    pub(crate) ports: NatPorts,
    /// The distance from one port of a sequence to the next. It is 0 when there is no sequence.
    pub(crate) step: i32,
    /// Whether all observations are those of one IP address. Then a NAT that distinguishes addresses
    /// looks endpoint-independent.
    pub(crate) one_server: bool,
}

/// Concludes how the NAT in front of a local address behaves. All of `seen` are observations of one
/// local address.
pub(crate) fn classify(seen: &[Observation]) -> Verdict {
    let mapping = mapping(seen);
    let step = match mapping {
        NatMapping::AddressDependent | NatMapping::AddressAndPortDependent => step(seen),
        _ => 0,
    };
    let ports = if seen.is_empty() {
        NatPorts::Unknown
    } else if seen.iter().all(|o| o.mapped.port() == o.local.port()) {
        NatPorts::Preserved
    } else if step != 0 {
        NatPorts::Contiguous
    } else {
        NatPorts::Random
    };
    let mut servers = seen.iter().map(|o| o.server.ip());
    let first = servers.next();
    Verdict {
        mapping,
        ports,
        step,
        one_server: servers.all(|server| Some(server) == first),
    }
}

/// Follows RFC 5780 section 4.3, with whatever servers there are.
fn mapping(seen: &[Observation]) -> NatMapping {
    if seen.is_empty() {
        return NatMapping::Unknown;
    }
    if seen.iter().all(|o| o.mapped == o.local) {
        return NatMapping::None;
    }
    let pairs = || {
        let later = |i: usize| seen.iter().skip(i + 1);
        let pairs = seen.iter().enumerate();
        pairs.flat_map(move |(i, a)| later(i).map(move |b| (a, b)))
    };
    // Two ports of one server show whether the port matters.
    let by_port = |(a, b): &(&Observation, &Observation)| {
        a.server.ip() == b.server.ip() && a.server.port() != b.server.port()
    };
    let differ = |(a, b): (&Observation, &Observation)| a.mapped != b.mapped;
    if pairs().filter(by_port).any(differ) {
        return NatMapping::AddressAndPortDependent;
    }
    if pairs().any(differ) {
        return match pairs().any(|pair| by_port(&pair)) {
            true => NatMapping::AddressDependent,
            false => NatMapping::AddressAndPortDependent,
        };
    }
    match pairs().any(|(a, b)| a.server != b.server) {
        true => NatMapping::EndpointIndependent,
        false => NatMapping::Unknown,
    }
}

/// Returns the step of the sequence that the ports form, or 0 if they form none. It is the greatest
/// step that divides every distance, because others may have taken the ports between.
fn step(seen: &[Observation]) -> i32 {
    let mut ordered: Vec<_> = seen.iter().map(|o| (o.order, o.mapped)).collect();
    ordered.sort_unstable_by_key(|(order, _)| *order);
    ordered.dedup_by_key(|(_, mapped)| *mapped);
    let one_ip = ordered.windows(2).all(|w| w[0].1.ip() == w[1].1.ip());
    let distances = ordered
        .windows(2)
        .map(|w| i32::from(w[1].1.port()) - i32::from(w[0].1.port()));
    let mut found: i32 = 0;
    for distance in distances {
        let same_way = found == 0 || distance.signum() == found.signum();
        if !one_ip || distance.abs() > MAX_STEP || !same_way {
            return 0;
        }
        found = distance.signum() * gcd(found.abs(), distance.abs());
    }
    found
}

fn gcd(a: i32, b: i32) -> i32 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

/// Returns the external addresses that follow `newest` in a sequence.
pub(crate) fn predict(newest: SocketAddr, step: i32) -> impl Iterator<Item = SocketAddr> {
    let count = if step == 0 { 0 } else { PREDICTIONS as i32 };
    (1..=count).filter_map(move |n| {
        let port = i32::from(newest.port()) + n * step;
        let port = u16::try_from(port).ok().filter(|_| port >= LOWEST_PORT)?;
        Some(SocketAddr::new(newest.ip(), port))
    })
}

/// Concludes the filtering from a server's answers to requests that ask for another source (RFC
/// 5780 section 4.4). `both` says whether the answer from another IP address and port came, and is
/// `None` if the server has no other address. `port` says whether the answer from another port of
/// the same address came.
pub(crate) fn filtering(both: Option<bool>, port: Option<bool>) -> NatFiltering {
    match (both, port) {
        (Some(true), _) => NatFiltering::EndpointIndependent,
        (_, Some(true)) => NatFiltering::AddressDependent,
        (_, Some(false)) => NatFiltering::AddressAndPortDependent,
        (_, None) => NatFiltering::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOCAL: &str = "192.168.1.2:5000";

    /// Makes observations, in the order of sending, from pairs of server and mapped address.
    fn seen(all: &[(&str, &str)]) -> Vec<Observation> {
        let observation = |(order, (server, mapped)): (usize, &(&str, &str))| Observation {
            server: server.parse().unwrap(),
            local: LOCAL.parse().unwrap(),
            mapped: mapped.parse().unwrap(),
            order: order as u64,
        };
        all.iter().enumerate().map(observation).collect()
    }

    fn verdict(all: &[(&str, &str)]) -> (NatMapping, NatPorts, i32) {
        let verdict = classify(&seen(all));
        (verdict.mapping, verdict.ports, verdict.step)
    }

    #[test]
    fn every_mapping_is_classified() {
        use NatMapping as M;
        use NatPorts as P;
        assert_eq!(verdict(&[]), (M::Unknown, P::Unknown, 0));
        let no_nat = [("1.1.1.1:1", LOCAL)];
        assert_eq!(verdict(&no_nat), (M::None, P::Preserved, 0));
        let one = [("1.1.1.1:1", "9.9.9.9:5000")];
        assert_eq!(verdict(&one), (M::Unknown, P::Preserved, 0));
        let one_twice = [("1.1.1.1:1", "9.9.9.9:7"), ("1.1.1.1:1", "9.9.9.9:7")];
        assert_eq!(verdict(&one_twice), (M::Unknown, P::Random, 0));
        let cone = [("1.1.1.1:1", "9.9.9.9:7"), ("2.2.2.2:1", "9.9.9.9:7")];
        assert_eq!(verdict(&cone), (M::EndpointIndependent, P::Random, 0));
        let by_address = [
            ("1.1.1.1:1", "9.9.9.9:700"),
            ("1.1.1.1:2", "9.9.9.9:700"),
            ("2.2.2.2:1", "9.9.9.9:60000"),
        ];
        assert_eq!(verdict(&by_address), (M::AddressDependent, P::Random, 0));
        let by_port = [("1.1.1.1:1", "9.9.9.9:7"), ("1.1.1.1:2", "9.9.9.9:700")];
        assert_eq!(
            verdict(&by_port),
            (M::AddressAndPortDependent, P::Random, 0)
        );
        let two_addresses = [("1.1.1.1:1", "9.9.9.9:7"), ("2.2.2.2:1", "9.9.9.9:700")];
        assert_eq!(
            verdict(&two_addresses),
            (M::AddressAndPortDependent, P::Random, 0)
        );
    }

    #[test]
    fn it_is_known_whether_servers_of_several_addresses_have_seen_the_nat() {
        let one_server = |all: &[(&str, &str)]| classify(&seen(all)).one_server;
        assert!(one_server(&[("1.1.1.1:1", LOCAL), ("1.1.1.1:2", LOCAL)]));
        assert!(!one_server(&[("1.1.1.1:1", LOCAL), ("2.2.2.2:1", LOCAL)]));
    }

    #[test]
    fn sequences_are_found_up_to_the_largest_step() {
        let step = |ports: &[u16]| {
            let observation = |(i, port): (usize, &u16)| Observation {
                server: SocketAddr::new([1, 1, 1, 1].into(), 1 + i as u16),
                local: LOCAL.parse().unwrap(),
                mapped: SocketAddr::new([9, 9, 9, 9].into(), *port),
                order: i as u64,
            };
            let seen: Vec<_> = ports.iter().enumerate().map(observation).collect();
            let verdict = classify(&seen);
            assert_eq!(verdict.ports == NatPorts::Contiguous, verdict.step != 0);
            verdict.step
        };
        assert_eq!(step(&[40000, 40001]), 1);
        assert_eq!(step(&[40000, 40001, 40003]), 1);
        assert_eq!(step(&[40000, 40002, 40006]), 2);
        assert_eq!(step(&[40006, 40004, 40000]), -2);
        assert_eq!(step(&[40000, 40016]), 16);
        assert_eq!(step(&[40000, 40017]), 0);
        assert_eq!(step(&[40000, 40001, 40000]), 0);
        assert_eq!(step(&[65535, 1024]), 0);
        let two_ips = [("1.1.1.1:1", "9.9.9.8:4000"), ("1.1.1.1:2", "9.9.9.9:4001")];
        assert_eq!(verdict(&two_ips).2, 0);
        // A NAT with one mapping, whose external port is one above the internal one, is not a
        // sequence.
        let cone = [("1.1.1.1:1", "9.9.9.9:5001"), ("2.2.2.2:1", "9.9.9.9:5001")];
        assert_eq!(verdict(&cone).2, 0);
    }

    #[test]
    fn predictions_follow_the_step_and_stay_within_the_ports() {
        let ports = |newest: u16, step| -> Vec<u16> {
            let newest = SocketAddr::new([9, 9, 9, 9].into(), newest);
            predict(newest, step).map(|addr| addr.port()).collect()
        };
        assert_eq!(ports(40000, 1), (40001..=40016).collect::<Vec<_>>());
        assert_eq!(ports(40000, -2)[..2], [39998, 39996]);
        assert_eq!(ports(65533, 1), [65534, 65535]);
        assert_eq!(ports(1026, -1), [1025, 1024]);
        assert_eq!(ports(40000, 0), [0; 0]);
    }

    #[test]
    fn every_filtering_is_classified() {
        use NatFiltering as F;
        for (both, port, expected) in [
            (Some(true), None, F::EndpointIndependent),
            (Some(true), Some(true), F::EndpointIndependent),
            (Some(false), Some(true), F::AddressDependent),
            (Some(false), Some(false), F::AddressAndPortDependent),
            (Some(false), None, F::Unknown),
            (None, Some(true), F::AddressDependent),
            (None, Some(false), F::AddressAndPortDependent),
            (None, None, F::Unknown),
        ] {
            assert_eq!(filtering(both, port), expected, "{both:?} {port:?}");
        }
    }

    fn observation() -> impl Strategy<Value = Observation> {
        (0..3u8, 0..3u16, 0..3u8, any::<u16>(), any::<u64>()).prop_map(
            |(server, port, ip, mapped, order)| Observation {
                server: SocketAddr::new([1, 1, 1, server].into(), 1 + port),
                local: LOCAL.parse().unwrap(),
                mapped: SocketAddr::new([9, 9, 9, ip].into(), mapped),
                order,
            },
        )
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(
            mut seen in proptest::collection::vec(observation(), 0..6),
        ) {
            // The client numbers requests so that no two are equal.
            for (i, observation) in seen.iter_mut().enumerate() {
                observation.order = i as u64;
            }
            let verdict = classify(&seen);
            seen.reverse();
            prop_assert_eq!(classify(&seen), verdict);
        }

        #[test]
        fn a_sequence_is_found_and_continued(
            first in 2000u16..60000, step in prop_oneof![-8i32..=-1, 1i32..=8], n in 2usize..6,
        ) {
            let port = |i: usize| (i32::from(first) + step * i as i32) as u16;
            let seen: Vec<_> = (0..n).map(|i| Observation {
                server: SocketAddr::new([1, 1, 1, 1].into(), 1 + i as u16),
                local: LOCAL.parse().unwrap(),
                mapped: SocketAddr::new([9, 9, 9, 9].into(), port(i)),
                order: i as u64,
            }).collect();
            let verdict = classify(&seen);
            prop_assert_eq!(verdict.step, step);
            let next: Vec<_> = predict(seen[n - 1].mapped, verdict.step).collect();
            prop_assert_eq!(next[0].port(), port(n));
        }

        #[test]
        fn random_observations_never_panic(seen in proptest::collection::vec(observation(), 0..8)) {
            let verdict = classify(&seen);
            for addr in seen.iter().flat_map(|o| predict(o.mapped, verdict.step)) {
                prop_assert!(addr.port() >= 1024);
            }
        }
    }
}
