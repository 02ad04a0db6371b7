//! Local candidates: addresses of interfaces, and what STUN servers see of them.
//!
//! Both are found once for all connections, on the socket that carries them, and kept current,
//! so that an offer carries them at once.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use if_watch::{IfEvent, tokio::IfWatcher};
use str0m::ice::StunMessage;
use stun_types::{
    attribute::XorMappedAddress,
    message::{BINDING, Message, MessageClass, MessageType, MessageWriteVec, TransactionId},
    prelude::MessageWrite,
};
use tokio::{sync::watch, task::AbortHandle, time};

use super::{
    socket::{Receiver, Sockets},
    turn::{Hold, LINGER, Relays, Roots, Server},
};
use crate::core::candidate::CandidateKind;

/// How often each STUN server is asked again: the shortest NAT mapping timeouts in the field are
/// 30 s, and a mapping that has changed must be seen before a peer is told of the old one.
const REFRESH: Duration = Duration::from_secs(20);

/// First retransmission of a STUN request (RFC 8489 section 6.2.1 recommends 500 ms, which on a
/// lost packet would be most of a connection's set-up).
const STUN_RTO: Duration = Duration::from_millis(200);

/// Most interface addresses offered; a host with more has virtual ones that nobody can reach.
const MAX_HOSTS: usize = 8;

/// A local address to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LocalCandidate {
    pub(crate) kind: CandidateKind,
    /// What peers are told.
    pub(crate) addr: SocketAddr,
    /// Where datagrams are sent from.
    pub(crate) base: SocketAddr,
}

/// What is known now. The first value that is `ready` has the addresses of the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gathered {
    pub(crate) ready: bool,
    pub(crate) candidates: Vec<LocalCandidate>,
}

/// Keeps the local candidates current for as long as it lives.
pub(crate) struct Gatherer {
    current: Arc<watch::Sender<Gathered>>,
    /// Kept: the routes know it only weakly.
    _client: Arc<StunClient>,
    relays: Relays,
    tasks: [AbortHandle; 2],
}

impl fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gatherer").finish_non_exhaustive()
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Gatherer {
    /// Starts to gather. `servers` are `host:port` of STUN servers. Needs a Tokio runtime.
    pub(crate) fn start(
        sockets: Sockets,
        servers: Vec<String>,
        timeout: Duration,
        (turn, roots): (Vec<Server>, &Roots),
    ) -> Self {
        let sender = Arc::new(watch::Sender::new(Gathered::default()));
        let client = Arc::<StunClient>::default();
        let handle: Arc<dyn Receiver> = client.clone();
        sockets.route_stun_client(&handle);
        let relays = Relays::start(&sockets, turn, roots, LINGER, &sender);
        let hosts = watch_interfaces(sockets.clone(), sender.clone());
        let ask = ask_servers(sockets, servers, timeout, client.clone(), sender.clone());
        Self {
            current: sender,
            _client: client,
            relays,
            tasks: [
                tokio::spawn(hosts).abort_handle(),
                tokio::spawn(ask).abort_handle(),
            ],
        }
    }

    /// Asks for relayed candidates, which cost a server something, for as long as it lives. A
    /// connection holds one until it has a path that does without.
    pub(crate) fn relays(&self) -> Hold {
        self.relays.hold()
    }

    /// The candidates, now and as they change.
    pub(crate) fn watch(&self) -> watch::Receiver<Gathered> {
        self.current.subscribe()
    }
}

/// Adds or removes host candidates as interfaces come and go.
async fn watch_interfaces(sockets: Sockets, sender: Arc<watch::Sender<Gathered>>) {
    let mut watcher = match IfWatcher::new() {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "interfaces cannot be watched; no host candidates");
            sender.send_modify(|gathered| gathered.ready = true);
            return;
        }
    };
    let mut ips: Vec<IpAddr> = watcher.iter().map(|net| net.addr()).collect();
    loop {
        publish_hosts(&sockets, &sender, &ips);
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

fn publish_hosts(sockets: &Sockets, sender: &watch::Sender<Gathered>, ips: &[IpAddr]) {
    let usable: Vec<IpAddr> = ips.iter().copied().filter(is_usable).collect();
    // A machine without a network talks to itself.
    let loopback = ips.iter().copied().filter(IpAddr::is_loopback);
    let hosts: Vec<IpAddr> = match usable.is_empty() {
        true => loopback.collect(),
        false => usable,
    };
    let hosts = hosts.into_iter().take(MAX_HOSTS).filter_map(|ip| {
        let addr = SocketAddr::new(ip, sockets.port(ip)?);
        Some(LocalCandidate {
            kind: CandidateKind::Host,
            addr,
            base: addr,
        })
    });
    sender.send_if_modified(|gathered| {
        let mut candidates: Vec<_> = hosts.collect();
        let bases: Vec<_> = candidates.iter().map(|host| host.base).collect();
        let others = gathered.candidates.iter().filter(|other| match other.kind {
            CandidateKind::Host => false,
            CandidateKind::Relayed => true,
            _ => bases.contains(&other.base),
        });
        candidates.extend(others.copied());
        let next = Gathered {
            ready: true,
            candidates,
        };
        let changed = *gathered != next;
        *gathered = next;
        changed
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

/// Asks every server, over and over, and keeps the mapping alive by that.
async fn ask_servers(
    sockets: Sockets,
    servers: Vec<String>,
    timeout: Duration,
    client: Arc<StunClient>,
    sender: Arc<watch::Sender<Gathered>>,
) {
    if servers.is_empty() {
        return;
    }
    let mut tick = time::interval(REFRESH);
    loop {
        tick.tick().await;
        let asked = servers.iter().map(|server| async {
            match time::timeout(timeout, client.ask(&sockets, server)).await {
                Ok(Some(found)) => publish_reflexive(&sender, found),
                Ok(None) => tracing::debug!("STUN server has no usable address"),
                Err(_) => tracing::debug!("STUN server does not answer"),
            }
        });
        futures::future::join_all(asked).await;
    }
}

fn publish_reflexive(sender: &watch::Sender<Gathered>, (addr, base): (SocketAddr, SocketAddr)) {
    sender.send_if_modified(|gathered| {
        let found = LocalCandidate {
            kind: CandidateKind::ServerReflexive,
            addr,
            base,
        };
        // No NAT there, or nothing new.
        if addr == base || gathered.candidates.contains(&found) {
            return false;
        }
        gathered.candidates.push(found);
        true
    });
}

/// STUN binding requests on the shared socket.
#[derive(Default)]
struct StunClient {
    pending: Mutex<HashMap<TransactionId, Answer>>,
}

type Answer = tokio::sync::oneshot::Sender<(SocketAddr, SocketAddr)>;

impl StunClient {
    fn pending(&self) -> MutexGuard<'_, HashMap<TransactionId, Answer>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapped address and the local one it belongs to, over the first family that answers.
    /// Retransmits until dropped.
    async fn ask(&self, sockets: &Sockets, server: &str) -> Option<(SocketAddr, SocketAddr)> {
        let addrs: Vec<SocketAddr> = tokio::net::lookup_host(server).await.ok()?.collect();
        let v4 = addrs.iter().find(|addr| addr.is_ipv4());
        let v6 = addrs.iter().find(|addr| addr.is_ipv6());
        let mut asked: futures::stream::FuturesUnordered<_> = v4
            .into_iter()
            .chain(v6)
            .filter(|addr| sockets.port(addr.ip()).is_some())
            .map(|addr| self.ask_address(sockets, *addr))
            .collect();
        asked.next().await.flatten()
    }

    async fn ask_address(
        &self,
        sockets: &Sockets,
        server: SocketAddr,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let id = TransactionId::generate();
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let request = Message::builder(kind, id, MessageWriteVec::new()).finish();
        let (sender, mut receiver) = tokio::sync::oneshot::channel();
        self.pending().insert(id, sender);
        let _cleanup = Forget { client: self, id };
        let mut rto = STUN_RTO;
        loop {
            let source = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            sockets.send(source, server, &request, request.len()).await;
            match time::timeout(rto, &mut receiver).await {
                Ok(answer) => return answer.ok(),
                Err(_) => rto *= 2,
            }
        }
    }
}

/// Forgets a transaction when its request ends, however it ends.
struct Forget<'a> {
    client: &'a StunClient,
    id: TransactionId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.client.pending().remove(&self.id);
    }
}

impl Receiver for StunClient {
    fn receive(&self, _: Instant, _: SocketAddr, destination: SocketAddr, data: &[u8]) {
        let Ok(message) = Message::from_bytes(data) else {
            return;
        };
        let mapped = match message.attribute::<XorMappedAddress>() {
            Ok(attribute) => attribute.addr(message.transaction_id()),
            Err(_) => return,
        };
        if let Some(answer) = self.pending().remove(&message.transaction_id()) {
            let _ = answer.send((mapped, destination));
        }
    }

    fn received_all(&self) {}

    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        // Checked by transaction in `receive`.
        true
    }
}
