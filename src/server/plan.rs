//! What a server would do with its settings, without doing it.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use libp2p::{Multiaddr, multiaddr::Protocol};

use super::{
    CERTIFICATE_FILE, IDENTITY_FILE, Layout, ServerConfig, certificate,
    metrics::Metrics,
    start::check_folders,
    swarm::addresses::{Announcements, listen_addresses, preference},
    tls::Tls,
    urls::secured,
};
use crate::{
    error::{Error, ErrorKind},
    identity::{Identity, PeerId},
    native::{interfaces, secret, transports::handed::Way},
};

/// What a [`Server`](super::Server) would do with its settings.
///
/// ```no_run
/// # async fn run() {
/// use throughline::server::{Plan, ServerConfig};
///
/// let plan = Plan::of(&ServerConfig::default()).await;
/// for bind in &plan.binds {
///     println!("{} at {} {}", bind.service, bind.protocol, bind.address);
/// }
/// assert!(plan.faults.is_empty());
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The peer id of the relay, if the data directory holds its identity already.
    pub peer_id: Option<PeerId>,
    /// The sockets that would be bound.
    pub binds: Vec<Bind>,
    /// The addresses that would be announced, best first. They end in `/p2p/` and the peer id if that
    /// is known. An address of `/webrtc-direct` has a hash if the certificate is there already.
    pub announces: Vec<String>,
    /// Why the server would not start. There may be reasons that only a start shows, such as a port
    /// that is taken.
    pub faults: Vec<Error>,
}

/// A socket that would be bound.
///
/// ```no_run
/// # async fn run() {
/// use throughline::server::{Bind, Plan, ServerConfig};
///
/// let plan = Plan::of(&ServerConfig::default()).await;
/// let is_udp = |bind: &&Bind| bind.protocol == "udp";
/// for bind in plan.binds.iter().filter(is_udp) {
///     println!("open UDP port {} in the firewall", bind.address.port());
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bind {
    /// The service at the socket.
    pub service: &'static str,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// The address. With port 0, the system chooses the port.
    pub address: SocketAddr,
}

/// The services at each host in a layout of five ports: the name, the protocol and the distance from the
/// first port. In a layout of one port, those over UDP are at the first port too, and TCP has one.
const SERVICES: [(&str, &str, u16); 8] = [
    ("quic", "udp", 0),
    ("tcp", "tcp", 0),
    ("websocket", "tcp", 1),
    ("webrtc-direct", "udp", 1),
    ("http", "tcp", 2),
    ("stun", "udp", 2),
    ("turn", "udp", 4),
    ("turn", "tcp", 4),
];

impl Plan {
    /// Says what a server would do with `config`. It reads the data directory, binds nothing and
    /// writes nothing.
    ///
    /// It must be called within a tokio runtime. With a wildcard among the hosts, it takes half a
    /// second to learn the addresses of the interfaces.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn of(config: &ServerConfig) -> Self {
        let mut faults = config.faults();
        faults.extend(check_folders(config).err());
        let kept = Kept::read(config.data.as_deref(), &mut faults);
        let tls = Tls::new(config, &Metrics::new(config));
        let tls = tls.unwrap_or_else(|fault| {
            faults.push(fault);
            None
        });
        let announces = announces(config, &kept, tls.as_ref()).await;
        Self {
            peer_id: kept.identity.map(|identity| identity.peer_id()),
            binds: binds(config),
            announces: announces.iter().map(Multiaddr::to_string).collect(),
            faults,
        }
    }
}

fn binds(config: &ServerConfig) -> Vec<Bind> {
    let mut binds = Vec::new();
    for host in &config.hosts {
        for (service, protocol, distance) in SERVICES {
            let is_apart = protocol == "tcp" && distance > 0;
            if service == "turn" && config.turn.secret.is_none()
                || is_apart && config.layout == Layout::One
            {
                continue;
            }
            let port = match (config.port, config.layout) {
                (0, _) => 0,
                (first, Layout::One) => first,
                (first, Layout::Five) => first.saturating_add(distance),
            };
            binds.push(Bind {
                service,
                protocol,
                address: SocketAddr::new(*host, port),
            });
        }
    }
    let alternate = config.stun_alternate().into_iter();
    binds.extend(alternate.flat_map(|port| {
        config.hosts.iter().map(move |host| Bind {
            service: "stun",
            protocol: "udp",
            address: SocketAddr::new(*host, port),
        })
    }));
    binds.extend(config.http.admin.map(|address| Bind {
        service: "admin",
        protocol: "tcp",
        address,
    }));
    binds
}

/// What a data directory keeps for the next start.
struct Kept {
    identity: Option<Identity>,
    certificate: Option<Multiaddr>,
}

impl Kept {
    fn read(data: Option<&Path>, faults: &mut Vec<Error>) -> Self {
        let mut kept = Self {
            identity: None,
            certificate: None,
        };
        let Some(data) = data else {
            return kept;
        };
        if let Err(fault) = secret::check_directory(data) {
            faults.push(Error::new(ErrorKind::Io, fault.describe(data)));
        }
        let (identity, certificate) = (data.join(IDENTITY_FILE), data.join(CERTIFICATE_FILE));
        // A file that is there is only read.
        if identity.exists() {
            match Identity::load_or_create(identity) {
                Ok(identity) => kept.identity = Some(identity),
                Err(fault) => faults.push(fault),
            }
        }
        if certificate.exists() {
            match certificate::load_or_create(&certificate) {
                Ok(certificate) => {
                    let hash = Protocol::Certhash(certificate.hash());
                    kept.certificate = Some(Multiaddr::empty().with(hash));
                }
                Err(fault) => faults.push(fault),
            }
        }
        kept
    }
}

/// Returns the addresses that a relay would announce. A wildcard stands for the addresses of the
/// interfaces.
async fn announces(config: &ServerConfig, kept: &Kept, tls: Option<&Tls>) -> Vec<Multiaddr> {
    let interfaces = match config.hosts.iter().any(IpAddr::is_unspecified) {
        true => interfaces::now().await,
        false => Vec::new(),
    };
    let stands_for = |host: &IpAddr| match host.is_unspecified() {
        true => interfaces
            .iter()
            .filter(|ip| ip.is_ipv4() == host.is_ipv4())
            .copied()
            .collect(),
        false => vec![*host],
    };
    let ips: Vec<IpAddr> = config.hosts.iter().flat_map(stands_for).collect();
    let entered: Vec<_> = ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, config.port))
        .collect();
    let secured = secured(tls.map_or(&[], Tls::subjects), &entered);
    let secured = secured.iter().filter_map(|address| address.parse().ok());
    let configured = config.announced().unwrap_or_default();
    let mut announced = Announcements::new(
        configured.into_iter().chain(secured).collect(),
        config.external_ip,
    );
    for address in listen_addresses(&ips, config.port, config.layout) {
        let is_direct = address.iter().any(|part| part == Protocol::WebRTCDirect);
        let hash = kept.certificate.iter().filter(|_| is_direct).flatten();
        announced
            .bound
            .insert(hash.fold(address.clone(), Multiaddr::with));
        // WebSocket is at the port of TCP then.
        let is_tcp = matches!(address.iter().nth(1), Some(Protocol::Tcp(_)));
        if is_tcp && config.layout == Layout::One {
            announced.bound.insert(Way::WebSocket.after(address));
        }
    }
    let peer = kept.identity.as_ref().map(|identity| identity.peer_id().0);
    let mut addresses: Vec<_> = announced.current().into_iter().collect();
    if let Some(peer) = peer {
        for address in &mut addresses {
            *address = (*address)
                .clone()
                .with_p2p(peer)
                .unwrap_or_else(|same| same);
        }
    }
    addresses.sort_by_key(preference);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{server::Server, testing::free_ports};

    #[tokio::test]
    async fn a_server_does_what_was_planned() {
        let home = tempfile::tempdir().unwrap();
        let mut config = ServerConfig {
            hosts: vec!["127.0.0.1".parse().unwrap()],
            port: free_ports(),
            data: Some(home.path().join("data")),
            announce: vec!["/dns4/relay.example/tcp/443/wss".into()],
            ..ServerConfig::default()
        };
        config.turn.secret = Some("secret".into());
        let before = Plan::of(&config).await;
        assert!(before.faults.is_empty() && before.peer_id.is_none());
        assert!(
            !config.data.as_ref().unwrap().exists(),
            "nothing is written"
        );
        let server = Server::start(config.clone()).await.unwrap();
        let plan = Plan::of(&config).await;
        assert_eq!(plan.peer_id, Some(server.peer_id()));
        assert_eq!(plan.announces, server.addresses());
        for bind in &plan.binds {
            let taken = match bind.protocol {
                "udp" => std::net::UdpSocket::bind(bind.address).is_err(),
                _ => std::net::TcpListener::bind(bind.address).is_err(),
            };
            assert!(taken, "{bind:?}");
        }
        server.shutdown().await;
    }

    #[tokio::test]
    async fn every_fault_is_named() {
        let mut config = ServerConfig::default();
        config.connections.per_peer = 0;
        config.relay.reservation_seconds = 1;
        config.turn.first_port = 9;
        config.turn.last_port = 8;
        config.http.www = Some("/no/such/folder".into());
        config.announce = vec!["x".into()];
        let faults = Plan::of(&config).await.faults;
        let faults: Vec<_> = faults.iter().map(Error::message).collect();
        for (fault, name) in faults.iter().zip([
            "relay.reservation_seconds",
            "connections.per_peer",
            "turn.first_port",
            "announce",
            "http.www",
        ]) {
            assert!(fault.starts_with(name), "{faults:?}");
        }
        assert_eq!(faults.len(), 5);
    }
}
