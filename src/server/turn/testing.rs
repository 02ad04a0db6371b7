//! A server for the tests of the client.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpListener,
    task::{JoinHandle, yield_now},
};

use super::{Authority, Own, RelayAddresses, Setup, TurnCredentials, TurnServer};
use crate::{
    native::{ice::turn::Server, udp::Sockets},
    server::{
        ServerConfig,
        access::Access,
        metrics::Metrics,
        pool::Pools,
        settings::Settings,
        stun::{Layout, StunServer},
        udp::{Service, serve_udp},
    },
    testing::until,
};

/// A TURN server on loopback.
pub(crate) struct Turn {
    udp: SocketAddr,
    tcp: SocketAddr,
    user: TurnCredentials,
    metrics: Metrics,
    receivers: Vec<Arc<Service>>,
    task: JoinHandle<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Turn {
    pub(crate) async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    pub(crate) async fn start_at(ip: Ipv4Addr) -> Self {
        let ip = IpAddr::from(ip);
        Self::bind(SocketAddr::new(ip, 0), SocketAddr::new(ip, 0)).await
    }

    /// Ends the server and starts another one in its place, which knows the same users and no
    /// allocation.
    pub(crate) async fn restart(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.receivers.clear();
        *self = Self::bind(self.udp, self.tcp).await;
    }

    async fn bind(udp: SocketAddr, tcp: SocketAddr) -> Self {
        let ip = udp.ip();
        let tcp = TcpListener::bind(tcp).await.unwrap();
        // The tasks of an earlier server close its socket a moment after its end.
        let udp = loop {
            match Sockets::bind_one(udp) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => yield_now().await,
                bound => break bound.unwrap(),
            }
        };
        let addresses = (udp.bound().unwrap(), tcp.local_addr().unwrap());
        let authority = Arc::new(Authority::new("secret").unwrap());
        let user = authority.issue("ann", Duration::from_secs(60), SystemTime::now());
        let mut config = ServerConfig::default();
        config.turn.allow_private_peers = true;
        let metrics = Metrics::new(&config);
        let settings = Settings::fixed(config);
        let pools = Pools::new(&settings, &metrics);
        let setup = Setup {
            access: Access::open(&pools),
            authority,
            addresses: RelayAddresses::new(vec![ip], vec![], None),
            own: Arc::new(Own::new([addresses.0.port()], [ip])),
            pools,
            usage: crate::server::usage::Usage::default(),
            metrics: metrics.clone(),
        };
        let server = TurnServer::new(setup);
        let stun = StunServer::new(vec![], Layout::of_one(), &settings, metrics.clone());
        let receivers = serve_udp((vec![], Arc::new(stun)), (vec![udp], Some(server.clone())));
        let serve = server.serve(vec![tcp]);
        Self {
            udp: addresses.0,
            tcp: addresses.1,
            user,
            metrics,
            receivers,
            task: tokio::spawn(serve),
        }
    }

    pub(crate) fn server(&self, over_tcp: bool) -> Server {
        let bound = if over_tcp { self.tcp } else { self.udp };
        self.server_at(bound.ip(), over_tcp)
    }

    /// The server's entry in a client's configuration, for a client that reaches it at `ip`.
    pub(crate) fn server_at(&self, ip: IpAddr, over_tcp: bool) -> Server {
        let url = match over_tcp {
            true => format!("turn:{ip}:{}?transport=tcp", self.tcp.port()),
            false => format!("turn:{ip}:{}", self.udp.port()),
        };
        Server {
            url: url.parse().unwrap(),
            username: self.user.username.clone(),
            credential: self.user.credential.clone(),
        }
    }

    pub(crate) fn allocations(&self) -> usize {
        self.metric("throughline_turn_allocations ").unwrap()
    }

    /// Returns how many requests were granted.
    pub(crate) fn granted(&self) -> usize {
        let name = "throughline_turn_requests_total{outcome=\"granted\"} ";
        self.metric(name).unwrap_or_default()
    }

    fn metric(&self, name: &str) -> Option<usize> {
        let text = self.metrics.encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.parse().unwrap())
    }

    pub(crate) async fn wait_for_allocations(&self, count: usize) {
        until(|| self.allocations() == count).await;
    }
}
