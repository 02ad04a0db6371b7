//! The machine's own addresses.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::StreamExt as _;
use if_watch::{IfEvent, tokio::IfWatcher};
use tokio::sync::watch;

use super::{Gathered, LocalCandidate, Origin};
use crate::native::socket::Sockets;

/// Most interface addresses offered; a host with more has virtual ones that nobody can reach.
const MAX_HOSTS: usize = 8;

/// Adds or removes host candidates as interfaces come and go.
pub(super) async fn watch(sockets: Sockets, current: Arc<watch::Sender<Gathered>>) {
    let mut watcher = match IfWatcher::new() {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "interfaces cannot be watched; no host candidates");
            current.send_modify(|gathered| gathered.ready = true);
            return;
        }
    };
    let mut ips: Vec<IpAddr> = watcher.iter().map(|net| net.addr()).collect();
    loop {
        publish(&sockets, &current, &ips);
        match watcher.next().await {
            Some(Ok(IfEvent::Up(net))) => {
                if !ips.contains(&net.addr()) {
                    ips.push(net.addr());
                }
            }
            Some(Ok(IfEvent::Down(net))) => ips.retain(|ip| *ip != net.addr()),
            Some(Err(error)) => tracing::debug!(%error, "interface watcher"),
            None => return,
        }
    }
}

fn publish(sockets: &Sockets, current: &watch::Sender<Gathered>, ips: &[IpAddr]) {
    let usable: Vec<IpAddr> = ips.iter().copied().filter(is_usable).collect();
    // A machine without a network talks to itself.
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

/// Whether peers elsewhere may reach it: RFC 8445 section 5.1.1.1 leaves out loopback and
/// link-local addresses.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}
