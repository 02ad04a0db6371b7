//! Relayed candidates: addresses on TURN servers (RFC 8656), for as long as a connection may need
//! them.
//!
//! Each server has a task that sleeps until a connection is tried. Then it allocates an address,
//! offers it, carries the datagrams that are sent from it, and gives it back some time after its
//! last use. UDP goes over the shared socket. TCP and TLS use a connection of their own.

mod allocation;
mod answers;
mod check;
mod demand;
mod failure;
pub(crate) mod frame;
mod queue;
mod stream;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::{
    net::UdpSocket,
    sync::{oneshot, watch},
    task::AbortHandle,
    time,
};

use self::allocation::{Allocation, Families};
pub(crate) use self::demand::Hold;
use self::demand::{Demand, Hosts, LastUse, released};
use self::failure::Failure;
use super::gather::{Gathered, LocalCandidate, Origin};
pub(crate) use crate::native::roots::Roots;
use crate::{
    core::{
        dial::{Policy, may_refer},
        server_url::{ServerTransport, ServerUrl, Service},
    },
    event::{Cause, Strategy},
    native::{
        runtime,
        udp::{Adopted, Sockets, TurnCarrier, any_source},
    },
    report::NatReport,
};

/// How long an allocation is kept after its last use. The next connection, or one that falls back
/// to TURN, has it at once. An idle peer holds nothing on a server.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// How long a server may take, from resolving its name to the allocation. Nothing waits for it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait, while an address is wanted, before asking a server again that gave none. A
/// server that loses an address is asked at once, but not twice within this time.
const RETRY: Duration = Duration::from_secs(10);

/// How long to wait at least, although another connection is tried or the network has changed.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The beginning of the reasons, which tells them from the reasons of other parts.
const SUBJECT: &str = "the TURN server: ";

/// A server and its credentials. `Debug` hides the credentials.
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

/// The last failure of each server, by its place. Those of the configuration come first.
struct Failures {
    last: Mutex<Vec<Option<(Cause, String)>>>,
    nat: Weak<watch::Sender<NatReport>>,
}

impl Failures {
    /// Makes a place for another server.
    fn another(&self) -> usize {
        let mut last = lock(&self.last);
        last.push(None);
        last.len() - 1
    }

    /// Records the failure of a server, or that it has none. TURN is hopeless when all servers
    /// fail.
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

type Live = Arc<Mutex<Vec<Weak<Allocation>>>>;

/// The allocations on all servers. Dropping this gives them back.
pub(crate) struct TurnRelays {
    demand: Arc<watch::Sender<Demand>>,
    live: Live,
    sockets: Sockets,
    roots: Roots,
    linger: Duration,
    /// This is weak, because connections to the servers end when the gatherer does.
    current: Weak<watch::Sender<Gathered>>,
    failures: Arc<Failures>,
    /// The servers that relays have given us access to, by the relay.
    given: Mutex<Vec<Given>>,
}

/// A server to which a relay has given us access.
struct Given {
    relay: PeerId,
    server: Arc<Mutex<Server>>,
    place: usize,
    task: AbortHandle,
}

/// The most servers of one relay. It has one over UDP and one over TCP, and may change both once while
/// allocations of the old ones last.
const MAX_GIVEN: usize = 4;

impl TurnRelays {
    /// Offers relayed addresses through `current` while there is a [`Hold`] and for `linger`
    /// longer. Tells `nat` when no server gives any. Needs a Tokio runtime.
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
        let this = Self {
            demand: Arc::new(watch::Sender::new(Demand::default())),
            live: Live::default(),
            sockets: sockets.clone(),
            roots: roots.clone(),
            linger,
            current: Arc::downgrade(current),
            failures: Arc::new(Failures {
                last: Mutex::new(vec![None; servers.len()]),
                nat: Arc::downgrade(nat),
            }),
            given: Mutex::default(),
        };
        for (place, server) in servers.into_iter().enumerate() {
            this.run(
                place,
                server.url.clone(),
                Arc::new(Mutex::new(server)),
                None,
            );
        }
        this
    }

    /// Uses `servers` from now on, to which `relay` gives access. A server that is known already gets
    /// new credentials, which its next allocation uses. A relay that names too many servers loses its
    /// oldest one. `policy` says which addresses a name may stand for.
    pub(super) fn give(&self, relay: PeerId, servers: Vec<Server>, policy: &Policy) {
        let mut given = lock(&self.given);
        for server in servers {
            tracing::debug!(%relay, url = %server.url, "a relay gives access to a TURN server");
            let of_relay = || given.iter().filter(|known| known.relay == relay);
            let known = of_relay().find(|known| lock(&known.server).url == server.url);
            if let Some(known) = known {
                *lock(&known.server) = server;
                continue;
            }
            let is_full = of_relay().count() >= MAX_GIVEN;
            let oldest = given
                .iter()
                .position(|known| is_full && known.relay == relay);
            let place = match oldest.map(|oldest| given.remove(oldest)) {
                Some(oldest) => {
                    oldest.task.abort();
                    self.demand.send_modify(|demand| demand.servers -= 1);
                    self.failures.set(oldest.place, None);
                    oldest.place
                }
                None => self.failures.another(),
            };
            let url = server.url.clone();
            let server = Arc::new(Mutex::new(server));
            let task = self.run(place, url, server.clone(), Some(policy.clone()));
            given.push(Given {
                relay,
                server,
                place,
                task,
            });
        }
    }

    /// Uses the servers of `relay` no longer. Allocations there end with their task.
    pub(super) fn forget(&self, relay: &PeerId) {
        lock(&self.given).retain(|known| {
            let kept = known.relay != *relay;
            if !kept {
                known.task.abort();
                self.demand.send_modify(|demand| demand.servers -= 1);
                self.failures.set(known.place, None);
            }
            kept
        });
    }

    fn run(
        &self,
        place: usize,
        url: ServerUrl,
        server: Arc<Mutex<Server>>,
        policy: Option<Policy>,
    ) -> AbortHandle {
        let task = Task {
            url,
            server,
            policy,
            place,
            failures: self.failures.clone(),
            sockets: self.sockets.clone(),
            roots: self.roots.clone(),
            linger: self.linger,
            current: self.current.clone(),
            used: Arc::default(),
            demand: self.demand.subscribe(),
            live: self.live.clone(),
        };
        self.demand.send_modify(|demand| demand.servers += 1);
        runtime::task(task.run()).abort_handle()
    }

    /// Returns a demand for relayed addresses, which is none at first. They arrive through the watch of
    /// the candidates.
    pub(super) fn demand(&self) -> Hold {
        Hold::new(&self.demand)
    }

    /// Asks for relayed addresses.
    pub(super) fn hold(&self) -> Hold {
        let mut hold = self.demand();
        hold.set(true);
        hold
    }
}

impl Drop for TurnRelays {
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

/// The task of one server.
struct Task {
    url: ServerUrl,
    /// The server with its credentials as of now.
    server: Arc<Mutex<Server>>,
    /// Which addresses the name may stand for, if a relay has named the server.
    policy: Option<Policy>,
    place: usize,
    failures: Arc<Failures>,
    sockets: Sockets,
    roots: Roots,
    linger: Duration,
    current: Weak<watch::Sender<Gathered>>,
    used: Arc<LastUse>,
    demand: watch::Receiver<Demand>,
    live: Live,
}

impl Task {
    async fn run(mut self) {
        let mut lost: Option<Instant> = None;
        loop {
            let wanted = self.demand.wait_for(|now| now.closed || now.holds > 0);
            if wanted.await.map_or(true, |now| now.closed) {
                return;
            }
            let Err(failure) = self.allocate().await else {
                continue;
            };
            let url = &self.url;
            tracing::debug!(transport = ?url.service, %failure, "no relayed address");
            if matches!(failure, Failure::Lost)
                && lost
                    .replace(Instant::now())
                    .is_none_or(|last| last.elapsed() >= RETRY)
            {
                continue;
            }
            let why = format!("{SUBJECT}{failure}");
            self.failures.set(self.place, Some((failure.cause(), why)));
            let _ = time::timeout(RETRY, self.reason_to_ask()).await;
            self.failures.set(self.place, None);
        }
    }

    /// Waits until nobody wants an address, or until there is a reason to ask the server again: a
    /// connection that begins, or another network.
    async fn reason_to_ask(&self) {
        let before = *self.demand.borrow();
        let mut hosts = Hosts::watch(&self.current);
        let (mut demand, mut unwanted) = (self.demand.clone(), self.demand.clone());
        let soon = async {
            time::sleep(RETRY_SOON).await;
            tokio::select! {
                _ = demand.wait_for(|now| now.begun != before.begun) => {}
                _ = hosts.changed() => {}
            }
        };
        tokio::select! {
            () = soon => {}
            _ = unwanted.wait_for(|now| now.closed || now.holds == 0) => {}
        }
    }

    /// Holds an allocation until nobody needs it. Tries one address of the server of each family.
    async fn allocate(&self) -> Result<(), Failure> {
        let mut released = pin!(self.released());
        let host = (self.url.host.as_str(), self.url.port);
        let found = tokio::select! {
            () = &mut released => return Ok(()),
            found = time::timeout(OPEN_TIMEOUT, tokio::net::lookup_host(host)) => found,
        };
        let mut found: Vec<SocketAddr> = match found {
            Ok(Ok(found)) => found.collect(),
            _ => Vec::new(),
        };
        // The relay chooses the port, so whoever owns its name may not choose any machine with it. An
        // address is that of the link.
        if let Some(policy) = &self.policy
            && host.0.parse::<IpAddr>().is_err()
        {
            found.retain(|to| policy.allows_named(*to).is_ok());
        }
        found = self.sockets.nat64().routes(found);
        // The system orders addresses by preference (RFC 6724).
        let first = found.first().copied();
        let other = |addr: &&SocketAddr| first.is_some_and(|f| f.is_ipv4() != addr.is_ipv4());
        let mut result = Err(Failure::Name);
        for addr in first.into_iter().chain(found.iter().find(other).copied()) {
            result = self.both_families(addr, false, &mut released).await;
            // Something else still holds the allocation of the shared socket (RFC 8656 section 7.4).
            if let Err(Failure::Refused(437)) = result
                && self.transport() == ServerTransport::Udp
            {
                result = self.both_families(addr, true, &mut released).await;
            }
            // A referral is followed once, so never in a circle. TLS still has to prove the same
            // name. A server that a relay has named refers nobody, because the user has not chosen it.
            if let Err(Failure::Elsewhere(other)) = result
                && self.policy.is_none()
                && may_refer(self.sockets.nat64().stands_for(addr.ip()), other.ip())
                && let Some(other) = self.sockets.nat64().route(other)
                && other != addr
            {
                result = self.both_families(other, false, &mut released).await;
            }
            if let Ok(()) | Err(Failure::Lost) = result {
                break;
            }
        }
        result
    }

    /// Allocates addresses of both families. If the server cannot give both in one allocation, this
    /// makes a second one. Over UDP, `apart` asks for a socket of its own.
    async fn both_families(
        &self,
        addr: SocketAddr,
        apart: bool,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        let (missing, is_missing) = oneshot::channel();
        let mut first = pin!(self.allocate_at(addr, Families::Both(missing), apart, released));
        let mut second = pin!(async {
            if is_missing.await.is_ok() {
                let mut released = pin!(self.released());
                // A server gives one allocation to each socket (RFC 8656 section 5).
                let ended = self.allocate_at(addr, Families::V6, true, &mut released);
                if let Err(failure) = ended.await {
                    tracing::debug!(%failure, "no relayed IPv6 address");
                }
            }
        });
        tokio::select! {
            ended = &mut first => {
                if ended.is_ok() {
                    // The second allocation is given back as well.
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
        apart: bool,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        match self.transport() {
            ServerTransport::Udp => self.over_udp(addr, families, apart, released).await,
            _ => self.over_stream(addr, families, released).await,
        }
    }

    async fn over_udp(
        &self,
        addr: SocketAddr,
        families: Families,
        apart: bool,
        released: &mut Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Failure> {
        let own = match apart {
            false => None,
            true => Some(self.another_socket(addr).await.map_err(Failure::Connect)?),
        };
        let shared = self.sockets.port(addr.ip()).ok_or(Failure::Name)?;
        let (source, port) = match &own {
            Some(own) => (own.local(), own.local().port()),
            None => (any_source(addr), shared),
        };
        let ends = (source, addr);
        let (server, sockets) = (&lock(&self.server).clone(), &self.sockets);
        let allocation = Allocation::over_udp(server, ends, sockets, families, &self.used);
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
        let tls = (self.transport() == ServerTransport::Tls).then_some(&self.roots);
        let opened = stream::open(addr, &self.url.host, tls);
        let stream = tokio::select! {
            () = &mut *released => return Ok(()),
            opened = time::timeout(OPEN_TIMEOUT, opened) => opened,
        };
        let (stream, local) = stream
            .map_err(|_| Failure::Timeout)?
            .map_err(Failure::Connect)?;
        let (server, sockets) = (&lock(&self.server).clone(), &self.sockets);
        let ends = (local, addr);
        let allocation = Allocation::over_stream(server, ends, sockets, families, &self.used);
        let offer = self.offer(addr, &allocation);
        tokio::select! {
            ended = allocation.drive(OPEN_TIMEOUT, released, &offer) => ended,
            failure = stream::carry(stream, &allocation) => Err(match allocation.was_given() {
                true => Failure::Lost,
                false => failure,
            }),
        }
    }

    /// Waits until an allocation is to be given back.
    fn released(&self) -> impl Future<Output = ()> + use<> {
        released(self.demand.clone(), self.used.clone(), self.linger)
    }

    fn transport(&self) -> ServerTransport {
        match self.url.service {
            Service::Turn(transport) => transport,
            _ => ServerTransport::Udp,
        }
    }

    fn offer(&self, server: SocketAddr, allocation: &Arc<Allocation>) -> Offer {
        let mut live = lock(&self.live);
        live.retain(|other| other.strong_count() > 0);
        live.push(Arc::downgrade(allocation));
        Offer {
            server: self.sockets.nat64().stands_for(server.ip()),
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

/// The relayed addresses of an allocation, offered as candidates. Dropping this withdraws them.
pub(super) struct Offer {
    server: IpAddr,
    carrier: Arc<dyn TurnCarrier>,
    transport: ServerTransport,
    sockets: Sockets,
    current: Weak<watch::Sender<Gathered>>,
    relayed: Mutex<Vec<LocalCandidate>>,
}

impl Offer {
    /// Offers a relayed address.
    fn add(&self, relayed: SocketAddr) {
        let current = self.current.upgrade();
        let taken = |of: &Gathered| of.candidates.iter().any(|known| known.base == relayed);
        // Peers send to this address, and everything that is sent from it goes to the server.
        if !may_refer(self.server, relayed.ip())
            || current.as_ref().is_some_and(|of| taken(&of.borrow()))
        {
            tracing::debug!("a TURN server gave an address that cannot be its own");
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

    /// Withdraws all addresses.
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
