//! A port that the router forwards to us: by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP-IGD,
//! whichever it speaks, tried in that order.
//!
//! What the router says is offered to peers as a candidate like others. It is believed only as far
//! as their connectivity checks arrive, so a router that lies costs nothing.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use portmapper::{Client, Config, Protocol};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time,
};

use super::{
    gather::{Gathered, LocalCandidate, Origin},
    socket::Sockets,
};
use crate::{
    core::scope::is_global,
    event::{Cause, Strategy},
    report::{MappingProtocols, NatReport, PortMappingState},
};

/// A router that maps no ports is asked again after this: it may have been restarted or set up
/// otherwise. A change of the network asks at once.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// How long the mapping's removal may take. What is not removed ends with its lease, within two
/// hours.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the request for the removal is under way in a home network, after which it is not
/// waited for: the client does not tell.
const RELEASE_TRAVEL: Duration = Duration::from_millis(100);

/// Keeps a mapping of the shared IPv4 socket's port for as long as it lives. Dropping it removes
/// the mapping, which a task of its own does within [`RELEASE_TIMEOUT`].
pub(crate) struct PortMapping {
    task: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl PortMapping {
    /// Starts to ask, for `timeout` each time, unless it is `None`. Needs a Tokio runtime.
    pub(crate) fn start(
        sockets: &Sockets,
        timeout: Option<Duration>,
        current: Arc<watch::Sender<Gathered>>,
        nat: Arc<watch::Sender<NatReport>>,
    ) -> Self {
        let port = sockets
            .port(IpAddr::from([0, 0, 0, 0]))
            .and_then(NonZeroU16::new);
        let task = port.zip(timeout).map(|(port, timeout)| {
            let mapper = Mapper {
                port,
                timeout,
                current,
                nat,
            };
            mapper.tell(PortMappingState::Searching, None);
            let (stop, stopped) = oneshot::channel();
            (stop, tokio::spawn(mapper.keep(stopped)))
        });
        Self {
            task: Mutex::new(task),
        }
    }

    /// Removes the mapping; ends when the router has been told, or within [`RELEASE_TIMEOUT`].
    pub(crate) async fn close(&self) {
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((stop, task)) = task {
            drop(stop);
            let _ = task.await;
        }
    }
}

struct Mapper {
    port: NonZeroU16,
    timeout: Duration,
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
}

impl Mapper {
    /// Until `stopped`, over and over: one mapping in one network.
    async fn keep(self, mut stopped: oneshot::Receiver<()>) {
        let mut gathered = self.current.subscribe();
        loop {
            let hosts = tokio::select! {
                hosts = ready(&mut gathered) => hosts,
                _ = &mut stopped => return,
            };
            // The mapping lives in here, and is taken back when this ends.
            tokio::select! {
                () = self.map(&hosts, &mut stopped) => return,
                () = changes(&mut gathered, &hosts) => {}
            }
        }
    }

    /// Gets a mapping and follows what becomes of it, until `stopped`.
    async fn map(&self, hosts: &[SocketAddr], stopped: &mut oneshot::Receiver<()>) {
        // Nothing stands before a machine whose addresses are those of the internet.
        if !hosts.iter().any(|host| !is_global(host.ip())) {
            self.tell(PortMappingState::Off, None);
            let _ = stopped.await;
            return;
        }
        self.current
            .send_if_modified(|gathered| gathered.replace(Origin::PortMapping, &[]));
        self.tell(PortMappingState::Searching, None);
        loop {
            let client = Client::new(Config {
                enable_upnp: true,
                enable_pcp: true,
                enable_nat_pmp: true,
                protocol: Protocol::Udp,
            });
            let held = Held(Some(client.clone()));
            let mut external = client.watch_external_address();
            let search = async {
                // Without it only UPnP would be tried.
                if let Ok(Ok(spoken)) = client.probe().await {
                    self.nat.send_modify(|report| {
                        report.protocols = MappingProtocols {
                            upnp: spoken.upnp,
                            nat_pmp: spoken.nat_pmp,
                            pcp: spoken.pcp,
                        };
                    });
                    if spoken.upnp || spoken.nat_pmp || spoken.pcp {
                        client.update_local_port(self.port);
                        let _ = external.wait_for(Option::is_some).await;
                    }
                }
            };
            tokio::select! {
                _ = time::timeout(self.timeout, search) => {}
                _ = &mut *stopped => return held.release().await,
            }
            let mut pause = Box::pin(time::sleep(RETRY));
            loop {
                let mapped = external.borrow_and_update().map(SocketAddr::V4);
                self.publish(hosts, mapped);
                tokio::select! {
                    Ok(()) = external.changed() => {}
                    () = &mut pause, if mapped.is_none() => break,
                    _ = &mut *stopped => {
                        self.publish(hosts, None);
                        return held.release().await;
                    }
                }
                pause.as_mut().reset(time::Instant::now() + RETRY);
            }
        }
    }

    fn publish(&self, hosts: &[SocketAddr], mapped: Option<SocketAddr>) {
        let usable = mapped.filter(|mapped| is_global(mapped.ip()));
        let candidate = usable.and_then(|addr| {
            let base = towards(addr).map(|ip| SocketAddr::new(ip, self.port.get()));
            let base = base.filter(|base| hosts.contains(base));
            Some(LocalCandidate {
                origin: Origin::PortMapping,
                addr,
                base: base.or_else(|| hosts.iter().find(|host| host.is_ipv4()).copied())?,
            })
        });
        let state = match (mapped, candidate) {
            (None, _) => PortMappingState::Unavailable,
            (Some(_), None) => PortMappingState::Useless,
            (Some(_), Some(_)) => PortMappingState::Mapped,
        };
        self.current.send_if_modified(|gathered| {
            gathered.replace(Origin::PortMapping, candidate.as_slice())
        });
        self.tell(state, candidate.map(|candidate| candidate.addr));
    }

    fn tell(&self, state: PortMappingState, mapped: Option<SocketAddr>) {
        let mapped = mapped.map(|addr| addr.to_string());
        let why = match state {
            PortMappingState::Unavailable => Some("no router maps ports"),
            PortMappingState::Useless => Some("another NAT stands before the router"),
            _ => None,
        };
        let why = why.map(|why| (Cause::NoGateway, why.to_owned()));
        self.nat.send_if_modified(|report| {
            let changed = report.set_hopeless(Strategy::Upnp, why)
                || report.port_mapping != state
                || report.mapped != mapped;
            report.port_mapping = state;
            report.mapped = mapped;
            changed
        });
    }
}

/// A client that may hold a mapping, which is removed when this ends.
struct Held(Option<Client>);

impl Held {
    async fn release(mut self) {
        if let Some(client) = self.0.take() {
            release(client).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(client), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(release(client));
        }
    }
}

async fn release(client: Client) {
    let mut external = client.watch_external_address();
    if external.borrow().is_none() {
        return;
    }
    client.deactivate();
    let gone = time::timeout(RELEASE_TIMEOUT, external.wait_for(Option::is_none)).await;
    let gone = gone.is_ok_and(|gone| gone.is_ok());
    if gone {
        time::sleep(RELEASE_TRAVEL).await;
    }
}

/// The IPv4 addresses of the interfaces, once they are known.
async fn ready(gathered: &mut watch::Receiver<Gathered>) -> Vec<SocketAddr> {
    let ready = gathered.wait_for(|gathered| gathered.ready).await;
    // Nobody is left to be told when there is an error.
    ready.map_or_else(|_| Vec::new(), |gathered| hosts(&gathered))
}

/// The IPv4 addresses of the interfaces.
fn hosts(gathered: &Gathered) -> Vec<SocketAddr> {
    let hosts = gathered.of(Origin::Interface).map(|host| host.addr);
    hosts.filter(SocketAddr::is_ipv4).collect()
}

async fn changes(gathered: &mut watch::Receiver<Gathered>, hosts: &[SocketAddr]) {
    let differ = |gathered: &Gathered| self::hosts(gathered) != hosts;
    if gathered.wait_for(differ).await.is_err() {
        // Nobody is left to be told; the mapping's end is told by other means.
        std::future::pending().await
    }
}

/// The interface address that packets to `destination` leave from. Nothing is sent.
fn towards(destination: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(destination).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapper() -> Mapper {
        Mapper {
            port: NonZeroU16::new(4000).unwrap(),
            timeout: Duration::from_secs(1),
            current: Arc::default(),
            nat: Arc::default(),
        }
    }

    #[test]
    fn only_a_public_address_is_offered() {
        let mapper = mapper();
        let hosts = ["192.168.1.2:4000".parse().unwrap()];
        for (mapped, state) in [
            (None, PortMappingState::Unavailable),
            (Some("10.1.2.3:9"), PortMappingState::Useless),
            (Some("100.64.1.1:9"), PortMappingState::Useless),
            (Some("203.0.113.1:9"), PortMappingState::Mapped),
            (None, PortMappingState::Unavailable),
        ] {
            mapper.publish(&hosts, mapped.map(|text| text.parse().unwrap()));
            let report = mapper.nat.borrow().clone();
            assert_eq!(report.port_mapping, state, "{mapped:?}");
            let hopeless = state != PortMappingState::Mapped;
            assert_eq!(report.hopeless.len(), usize::from(hopeless), "{mapped:?}");
            let offered = mapper.current.borrow().candidates.clone();
            let offers = state == PortMappingState::Mapped;
            assert_eq!(offered.len(), usize::from(offers), "{mapped:?}");
            assert_eq!(report.mapped.is_some(), offers);
            if let [offered] = offered[..] {
                assert_eq!((offered.base, offered.addr.port()), (hosts[0], 9));
            }
        }
    }

    #[tokio::test]
    async fn without_a_nat_nobody_is_asked() {
        let mapper = mapper();
        let current = mapper.current.clone();
        let mut nat = mapper.nat.subscribe();
        mapper.tell(PortMappingState::Searching, None);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(mapper.keep(stopped));
        current.send_modify(|gathered| {
            let host: SocketAddr = "203.0.113.5:4000".parse().unwrap();
            gathered.ready = true;
            gathered.candidates.push(LocalCandidate {
                origin: Origin::Interface,
                addr: host,
                base: host,
            });
        });
        nat.wait_for(|report| report.port_mapping == PortMappingState::Off)
            .await
            .unwrap();
        drop(stop);
        task.await.unwrap();
    }
}
