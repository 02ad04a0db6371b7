//! The addresses of the machine's interfaces.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::watch;

use super::{Gathered, LocalCandidate, Origin};
use crate::native::{interfaces, udp::Sockets};

/// The most interface addresses that are offered. A host with more has virtual ones that nobody can
/// reach.
const MAX_HOSTS: usize = 8;

/// Adds or removes host candidates as interfaces come and go.
pub(super) async fn watch(sockets: Sockets, current: Arc<watch::Sender<Gathered>>) {
    interfaces::follow(|ips| publish(&sockets, &current, ips)).await;
}

fn publish(sockets: &Sockets, current: &watch::Sender<Gathered>, ips: &[IpAddr]) {
    let usable: Vec<IpAddr> = ips.iter().copied().filter(is_usable).collect();
    // A machine without a network can still talk to itself.
    let loopback = ips.iter().copied().filter(IpAddr::is_loopback);
    let hosts: Vec<IpAddr> = match usable.is_empty() {
        true => loopback.collect(),
        false => usable,
    };
    let hosts: Vec<_> = hosts
        .into_iter()
        .take(MAX_HOSTS)
        .filter_map(|ip| {
            let addr = SocketAddr::new(ip, sockets.port(ip)?);
            Some(LocalCandidate {
                origin: Origin::Interface,
                addr,
                base: addr,
            })
        })
        .collect();
    current.send_if_modified(|gathered| {
        let changed = gathered.replace(Origin::Interface, &hosts);
        !std::mem::replace(&mut gathered.ready, true) || changed
    });
}

/// Returns whether peers elsewhere may reach the address. RFC 8445 section 5.1.1.1 leaves out
/// loopback and link-local addresses.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}
