//! Asks the router to forward a port to this machine. It uses PCP (RFC 6887), NAT-PMP (RFC 6886) or
//! UPnP-IGD, in this order of preference.
//!
//! PCP and NAT-PMP ask the default gateway, and the `portmapper` crate implements them. UPnP asks
//! every machine of the local network, and the crate's UPnP client goes wherever the first answer
//! sends it. So UPnP is implemented here.
//!
//! The mapped address is offered to peers as a candidate like any other. It is used only if
//! connectivity checks of the peers arrive at it, so a router that lies causes no harm.

mod upnp;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join;
use portmapper::{Client, Config, Protocol};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time,
};

use self::upnp::{Gateway, Mapping};
use super::gather::{Gathered, LocalCandidate, Origin};
use crate::{
    core::scope::is_global,
    event::{Cause, Strategy},
    native::{runtime, udp::Sockets},
    report::{MappingProtocols, NatReport, PortMappingState},
};

/// The pause before a router that maps no ports is asked again. It may have been restarted or
/// reconfigured. After a change of the network, the router is asked at once.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// The longest time that the removal of the mapping may take. A mapping that is not removed ends
/// with its lease, within two hours. If the router grants no leases, the mapping stays until the
/// router restarts.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// The time that a removal request needs to reach the router of a home network. The client does not
/// tell when the request has arrived, so this module waits that long.
const RELEASE_TRAVEL: Duration = Duration::from_millis(100);

/// Keeps a mapping for the port of the shared IPv4 socket. Dropping it removes the mapping: a
/// separate task does so within [`RELEASE_TIMEOUT`].
pub(crate) struct PortMapping {
    task: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl PortMapping {
    /// Starts to ask for a mapping. Each search takes at most `timeout`, and with `None` there is
    /// no search. Needs a Tokio runtime.
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
            (stop, runtime::task(mapper.keep(stopped)))
        });
        Self {
            task: Mutex::new(task),
        }
    }

    /// Removes the mapping. Returns when the router has been told, or after [`RELEASE_TIMEOUT`].
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
    /// Holds one mapping in each network that this machine joins, one after the other, until
    /// `stopped`.
    async fn keep(self, mut stopped: oneshot::Receiver<()>) {
        let mut gathered = self.current.subscribe();
        loop {
            let hosts = tokio::select! {
                hosts = ready(&mut gathered) => hosts,
                _ = &mut stopped => return,
            };
            // `map` holds the mapping, and removes it when it ends or is dropped.
            tokio::select! {
                () = self.map(&hosts, &mut stopped) => return,
                () = changes(&mut gathered, &hosts) => {}
            }
        }
    }

    /// Gets a mapping and follows its changes until `stopped`.
    async fn map(&self, hosts: &[SocketAddr], stopped: &mut oneshot::Receiver<()>) {
        // A machine that has only public addresses has no NAT before it.
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
                enable_upnp: false,
                enable_pcp: true,
                enable_nat_pmp: true,
                protocol: Protocol::Udp,
            });
            let held = Held(Some(Holding::Client(client.clone())));
            let mut external = client.watch_external_address();
            tokio::select! {
                mapping = time::timeout(self.timeout, self.search(&client)) => {
                    if let Ok(Some(mapping)) = mapping {
                        match self.renew(hosts, mapping, stopped).await {
                            true => return,
                            false => continue,
                        }
                    }
                }
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

    /// Asks by all three protocols at once. Returns `None` when `client` has a mapping or no router
    /// maps ports. Otherwise returns a mapping by UPnP.
    async fn search(&self, client: &Client) -> Option<Mapping> {
        let (probe, gateway) = join(client.probe(), Gateway::search()).await;
        let (pcp, nat_pmp) = match probe {
            Ok(Ok(spoken)) => (spoken.pcp, spoken.nat_pmp),
            _ => (false, false),
        };
        self.nat.send_modify(|report| {
            report.protocols = MappingProtocols {
                upnp: gateway.is_some(),
                nat_pmp,
                pcp,
            };
        });
        if nat_pmp || pcp {
            client.update_local_port(self.port);
            let mut external = client.watch_external_address();
            let mapped = external.wait_for(Option::is_some);
            // If no mapping has come after this time, UPnP is asked for one.
            let patience = self.timeout / 2;
            if time::timeout(patience, mapped).await.is_ok() || gateway.is_none() {
                return None;
            }
        }
        gateway?.map(self.port).await
    }

    /// Renews a mapping by UPnP until a renewal fails. Returns whether it was `stopped` before
    /// that.
    async fn renew(
        &self,
        hosts: &[SocketAddr],
        mapping: Mapping,
        stopped: &mut oneshot::Receiver<()>,
    ) -> bool {
        let mapping = Arc::new(mapping);
        let held = Held(Some(Holding::Upnp(mapping.clone())));
        self.publish(hosts, Some(mapping.external()));
        let kept = async {
            loop {
                time::sleep(upnp::RENEWAL).await;
                if !mapping.renew().await {
                    break;
                }
            }
        };
        let stopped = tokio::select! {
            () = kept => false,
            _ = stopped => true,
        };
        self.publish(hosts, None);
        held.release().await;
        stopped
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

/// A holder of a mapping. Dropping it removes the mapping.
struct Held(Option<Holding>);

enum Holding {
    Client(Client),
    Upnp(Arc<Mapping>),
}

impl Held {
    async fn release(mut self) {
        if let Some(holding) = self.0.take() {
            holding.release().await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(holding), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(holding.release());
        }
    }
}

impl Holding {
    async fn release(self) {
        match self {
            Self::Client(client) => release(client).await,
            // A mapping that is not removed in time ends with its lease, if it has one.
            Self::Upnp(mapping) => {
                _ = time::timeout(RELEASE_TIMEOUT, mapping.remove()).await;
            }
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
    // An error means that nobody needs the answer any more.
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
        // Nobody needs the answer any more. `stopped` ends the mapping.
        std::future::pending().await
    }
}

/// The address of the interface from which packets to `destination` leave. Nothing is sent.
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
