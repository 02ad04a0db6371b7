//! Relayed candidates: addresses on TURN servers (RFC 8656), while somebody may need them.
//!
//! Each server has a task that sleeps until a connection is tried, then allocates an address,
//! offers it, carries what is sent from it, and gives it back some time after it was needed last.
//! UDP goes over the shared socket, TCP and TLS over a connection of its own.

mod allocation;
mod check;
pub(crate) mod frame;
mod queue;
mod stream;
mod tls;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{oneshot, watch},
    time,
};

use self::allocation::{Allocation, Families};
pub(crate) use self::tls::Roots;
use super::{
    gather::{Gathered, LocalCandidate, Origin},
    socket::{Adopted, Carrier, Sockets, any_source},
};
use crate::{
    core::{
        dial::may_refer,
        server_url::{ServerUrl, Service, Transport},
    },
    event::{Cause, Strategy},
    report::NatReport,
};

/// How long an allocation is kept after it was needed last: the next connection, or one that
/// falls back, has it at once. An idle peer holds nothing on a server.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// How long a server may take, from its name to the allocation. Nothing waits for it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to leave a server alone that gave no address, while one is wanted.
const RETRY: Duration = Duration::from_secs(10);

/// What the reasons begin with, where they stand among those of others.
const SUBJECT: &str = "the TURN server: ";

/// A server and what it asks for. `Debug` hides the credentials.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: ServerUrl,
    pub(crate) username: String,
    pub(crate) credential: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.url).finish()
    }
}

/// Why a server gave no address, or took it back.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its name has no address that can be reached from here.
    Name,
    Connect(io::Error),
    Timeout,
    /// The last error it named (RFC 8656 section 19, RFC 8489 section 14.8).
    Refused(u16),
    /// It names another server to ask instead (RFC 8489 section 10).
    Elsewhere(SocketAddr),
    /// It stopped answering, closed the connection, or let the allocation expire.
    Lost,
    /// What it sends is not TURN.
    NotTurn,
    /// Another URL leads to the same server, over the same socket.
    Duplicate,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("its name has no usable address"),
            Self::Connect(error) => write!(f, "cannot be connected to: {error}"),
            Self::Timeout => f.write_str("it does not answer in time"),
            Self::Refused(401) => f.write_str("it refuses the credentials (401)"),
            Self::Refused(437) => f.write_str("it still holds an older allocation (437)"),
            Self::Refused(486) => f.write_str("the quota of the user is reached (486)"),
            Self::Refused(508) => f.write_str("it has no address left (508)"),
            Self::Refused(code) => write!(f, "it refuses with error {code}"),
            Self::Elsewhere(_) => f.write_str("it refers to another server (300)"),
            Self::Lost => f.write_str("the allocation is lost"),
            Self::NotTurn => f.write_str("it does not speak TURN"),
            Self::Duplicate => f.write_str("another URL leads to it"),
        }
    }
}

impl Failure {
    fn cause(&self) -> Cause {
        match self {
            Self::Name => Cause::NoAddress,
            Self::Connect(_) => Cause::Unreachable,
            Self::Timeout => Cause::Timeout,
            Self::Refused(_) | Self::Elsewhere(_) => Cause::Refused,
            Self::Lost | Self::NotTurn | Self::Duplicate => Cause::Transport,
        }
    }
}

/// What the servers, by their place, said last: why they give no address.
struct Failures {
    last: Mutex<Vec<Option<(Cause, String)>>>,
    nat: Weak<watch::Sender<NatReport>>,
}

impl Failures {
    /// Takes in what a server said. There is no hope once all of them fail.
    fn set(&self, place: usize, failure: Option<(Cause, String)>) {
        let mut last = lock(&self.last);
        last[place] = failure;
        let first = last.iter().cloned().collect::<Option<Vec<_>>>();
        let why = first.and_then(|all| all.into_iter().next());
        if let Some(nat) = self.nat.upgrade() {
            nat.send_if_modified(|report| report.set_hopeless(Strategy::Turn, why));
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Demand {
    holds: usize,
    closed: bool,
}

type Live = Arc<Mutex<Vec<Weak<Allocation>>>>;

/// The allocations on all servers. Dropping it gives them back.
pub(crate) struct Relays {
    demand: Arc<watch::Sender<Demand>>,
    live: Live,
}

/// Wants relayed addresses for as long as it lives.
pub(crate) struct Hold(Arc<watch::Sender<Demand>>);

impl Relays {
    /// Offers relayed addresses through `current` while there is a [`Hold`], and `linger` longer,
    /// and tells `nat` when no server gives any. Needs a Tokio runtime.
    pub(super) fn start(
        sockets: &Sockets,
        servers: Vec<Server>,
        roots: &Roots,
        linger: Duration,
        (current, nat): (
            &Arc<watch::Sender<Gathered>>,
            &Arc<watch::Sender<NatReport>>,
        ),
    ) -> Self {
        let failures = Arc::new(Failures {
            last: Mutex::new(vec![None; servers.len()]),
            nat: Arc::downgrade(nat),
        });
        let demand = Arc::new(watch::Sender::new(Demand::default()));
        let live = Live::default();
        for (place, server) in servers.into_iter().enumerate() {
            let task = Task {
                server,
                place,
                failures: failures.clone(),
                sockets: sockets.clone(),
                roots: roots.clone(),
                linger,
                current: Arc::downgrade(current),
                demand: demand.subscribe(),
                live: live.clone(),
            };
            tokio::spawn(task.run());
        }
        Self { demand, live }
    }

    /// Asks for relayed addresses. They come through the watch of the candidates.
    pub(super) fn hold(&self) -> Hold {
        self.demand.send_modify(|demand| demand.holds += 1);
        Hold(self.demand.clone())
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        // The program may end before its tasks are polled again.
        for allocation in lock(&self.live).drain(..) {
            if let Some(allocation) = allocation.upgrade() {
                allocation.delete();
            }
        }
        self.demand.send_modify(|demand| demand.closed = true);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.send_modify(|demand| demand.holds -= 1);
    }
}

/// One server.
struct Task {
    server: Server,
    place: usize,
    failures: Arc<Failures>,
    sockets: Sockets,
    roots: Roots,
    linger: Duration,
    /// Weak: connections end when the gatherer does.
    current: Weak<watch::Sender<Gathered>>,
    demand: watch::Receiver<Demand>,
    live: Live,
}

impl Task {
    async fn run(mut self) {
        loop {
            let wanted = self.demand.wait_for(|now| now.closed || now.holds > 0);
            if wanted.await.map_or(true, |now| now.closed) {
                return;
            }
            if let Err(failure) = self.allocate().await {
                let url = &self.server.url;
                tracing::debug!(transport = ?url.service, %failure, "no relayed address");
                let why = format!("{SUBJECT}{failure}");
                self.failures.set(self.place, Some((failure.cause(), why)));
                let unwanted = self.demand.wait_for(|now| now.closed || now.holds == 0);
                let _ = time::timeout(RETRY, unwanted).await;
                self.failures.set(self.place, None);
            }
        }
    }

    /// Holds an allocation until nobody needs it; tries an address of each family.
    async fn allocate(&self) -> Result<(), Failure> {
        let mut released = pin!(released(self.demand.clone(), self.linger));
        let host = (self.server.url.host.as_str(), self.server.url.port);
        let found = tokio::select! {
            () = &mut released => return Ok(()),
            found = time::timeout(OPEN_TIMEOUT, tokio::net::lookup_host(host)) => found,
        };
        let found: Vec<SocketAddr> = match found {
            Ok(Ok(found)) => found.collect(),
            _ => Vec::new(),
        };
        // The system's order is that of preference (RFC 6724).
        let first = found.first().copied();
        let other = |addr: &&SocketAddr| first.is_some_and(|f| f.is_ipv4() != addr.is_ipv4());
        let mut result = Err(Failure::Name);
        for addr in first.into_iter().chain(found.iter().find(other).copied()) {
            result = self.both_families(addr, &mut released).await;
            // Once, so never in a circle. The name that TLS has to prove stays.
            if let Err(Failure::Elsewhere(other)) = result
                && other != addr
                && may_refer(addr.ip(), other.ip())
            {
                result = self.both_families(other, &mut released).await;
            }
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Addresses of both families, by a second allocation if the server does not know how to give
    /// both in one.
    async fn both_families(
        &self,
        addr: SocketAddr,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        let (missing, is_missing) = oneshot::channel();
        let mut first = pin!(self.allocate_at(addr, Families::Both(missing), released));
        let mut second = pin!(async {
            if is_missing.await.is_ok() {
                let mut released = pin!(self::released(self.demand.clone(), self.linger));
                let ended = self.allocate_at(addr, Families::V6, &mut released);
                if let Err(failure) = ended.await {
                    tracing::debug!(%failure, "no relayed IPv6 address");
                }
            }
        });
        tokio::select! {
            ended = &mut first => {
                if ended.is_ok() {
                    // It is given back as well.
                    second.await;
                }
                ended
            }
            () = &mut second => first.await,
        }
    }

    async fn allocate_at(
        &self,
        addr: SocketAddr,
        families: Families,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        match self.transport() {
            Transport::Udp => self.over_udp(addr, families, released).await,
            _ => self.over_stream(addr, families, released).await,
        }
    }

    async fn over_udp(
        &self,
        addr: SocketAddr,
        families: Families,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        // A server gives one allocation to each socket (RFC 8656 section 5).
        let own = match families {
            Families::Both(_) => None,
            Families::V6 => Some(self.another_socket(addr).await.map_err(Failure::Connect)?),
        };
        let shared = self.sockets.port(addr.ip()).ok_or(Failure::Name)?;
        let (source, port) = match &own {
            Some(own) => (own.local(), own.local().port()),
            None => (any_source(addr), shared),
        };
        let ends = (source, addr);
        let allocation = Allocation::over_udp(&self.server, ends, &self.sockets, families);
        let offer = self.offer(addr, &allocation);
        if !self.sockets.route_server(port, addr, &offer.carrier) {
            return Err(Failure::Duplicate);
        }
        allocation.drive(OPEN_TIMEOUT, released, &offer).await
    }

    async fn another_socket(&self, addr: SocketAddr) -> io::Result<Adopted> {
        let socket = UdpSocket::bind(any_source(addr)).await?;
        socket.connect(addr).await?;
        self.sockets.adopt(socket)
    }

    async fn over_stream(
        &self,
        addr: SocketAddr,
        families: Families,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        let tls = (self.transport() == Transport::Tls).then_some(&self.roots);
        let opened = stream::open(addr, &self.server.url.host, tls);
        let stream = tokio::select! {
            () = &mut *released => return Ok(()),
            opened = time::timeout(OPEN_TIMEOUT, opened) => opened,
        };
        let stream = stream
            .map_err(|_| Failure::Timeout)?
            .map_err(Failure::Connect)?;
        let allocation = Allocation::over_stream(&self.server, addr, &self.sockets, families);
        let offer = self.offer(addr, &allocation);
        tokio::select! {
            ended = allocation.drive(OPEN_TIMEOUT, released, &offer) => ended,
            failure = stream::carry(stream, &allocation) => Err(failure),
        }
    }

    fn transport(&self) -> Transport {
        match self.server.url.service {
            Service::Turn(transport) => transport,
            _ => Transport::Udp,
        }
    }

    fn offer(&self, server: SocketAddr, allocation: &Arc<Allocation>) -> Offer {
        let mut live = lock(&self.live);
        live.retain(|other| other.strong_count() > 0);
        live.push(Arc::downgrade(allocation));
        Offer {
            server: server.ip(),
            carrier: allocation.clone(),
            transport: self.transport(),
            sockets: self.sockets.clone(),
            current: self.current.clone(),
            relayed: Mutex::default(),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until nobody has needed an address for `linger`, or ever will.
async fn released(mut demand: watch::Receiver<Demand>, linger: Duration) {
    loop {
        let unneeded = demand.wait_for(|now| now.closed || now.holds == 0);
        if unneeded.await.map_or(true, |now| now.closed) {
            return;
        }
        let needed = demand.wait_for(|now| now.closed || now.holds > 0);
        match time::timeout(linger, needed).await {
            Ok(Ok(now)) if !now.closed => {}
            _ => return,
        }
    }
}

/// The relayed addresses of an allocation as candidates. Dropping it takes them back.
pub(super) struct Offer {
    server: IpAddr,
    carrier: Arc<dyn Carrier>,
    transport: Transport,
    sockets: Sockets,
    current: Weak<watch::Sender<Gathered>>,
    relayed: Mutex<Vec<LocalCandidate>>,
}

impl Offer {
    /// Offers a relayed address.
    fn add(&self, relayed: SocketAddr) {
        let current = self.current.upgrade();
        let taken = |of: &Gathered| of.candidates.iter().any(|known| known.base == relayed);
        // Peers are sent there, and all that we send from there goes to the server.
        if !may_refer(self.server, relayed.ip())
            || current.as_ref().is_some_and(|of| taken(&of.borrow()))
        {
            tracing::debug!("a TURN server gives an address that cannot be one of its own");
            return;
        }
        let candidate = LocalCandidate {
            origin: Origin::Turn(self.transport),
            addr: relayed,
            base: relayed,
        };
        self.sockets.route_relayed(relayed, &self.carrier);
        lock(&self.relayed).push(candidate);
        if let Some(current) = current {
            current.send_modify(|gathered| gathered.candidates.push(candidate));
        }
    }

    /// Takes all back.
    fn withdraw(&self) {
        let relayed = std::mem::take(&mut *lock(&self.relayed));
        if let (Some(current), false) = (self.current.upgrade(), relayed.is_empty()) {
            current.send_modify(|gathered| gathered.candidates.retain(|c| !relayed.contains(c)));
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.withdraw();
        self.sockets.unroute_carrier(&Arc::downgrade(&self.carrier));
    }
}

#[cfg(all(test, feature = "server"))]
mod tests;
