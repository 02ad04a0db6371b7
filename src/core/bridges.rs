//! The networks between a machine and its own containers and virtual machines. Nobody else can reach
//! the machine there.

use std::net::Ipv4Addr;

use super::prefix::Prefix;

/// How the names of such interfaces begin on Linux.
const NAMES: [&str; 11] = [
    "docker", "br-", "virbr", "cni", "podman", "lxcbr", "lxdbr", "flannel", "cali", "vmnet",
    "vboxnet",
];

/// Reads these networks from the routes of Linux (`/proc/net/route`). Lines that are not understood
/// are left out.
pub(crate) fn networks(routes: &str) -> Vec<Prefix> {
    let networks = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (name, destination, mask) = (fields.first()?, fields.get(1)?, fields.get(7)?);
        let is_bridge = NAMES.iter().any(|begin| name.starts_with(begin));
        let bits = number(mask)?.to_bits().leading_ones();
        // A route to everywhere says nothing about where the interface is.
        let network = number(destination).filter(|_| is_bridge && bits > 0)?;
        Some(Prefix::of(network.into(), bits))
    });
    networks.collect()
}

/// Reads the bytes of an address as Linux writes them: as a number in the order of the machine.
fn number(text: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bridges_are_known_by_their_names() {
        let number = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let line = |name: &str, ip, mask| {
            let (ip, mask) = (number(ip), number(mask));
            format!("{name}\t{ip}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let routes = [
            String::from("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"),
            line("eth0", [0, 0, 0, 0], [0, 0, 0, 0]),
            line("eth0", [192, 0, 2, 0], [255, 255, 255, 0]),
            line("docker0", [172, 17, 0, 0], [255, 255, 0, 0]),
            line("br-5f1c", [0, 0, 0, 0], [0, 0, 0, 0]),
            String::from("docker1\tnonsense\n\n"),
        ]
        .concat();
        let found = networks(&routes);
        assert_eq!(found, ["172.17.0.0/16".parse().unwrap()]);
        assert!(found[0].contains([172, 17, 0, 1].into()));
        assert!(networks("").is_empty());
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "(docker0|[ -~]{0,9})([\t \n]{1,2}[0-9A-Fg]{0,9}){0,12}") {
            let _ = networks(&text);
        }
    }
}
