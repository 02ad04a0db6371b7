//! QUIC over the candidate pairs of ICE sessions: one endpoint for many of them, because each costs as
//! much memory as half an idle connection, but not for all, because each has its turn after all other
//! tasks, and takes in few datagrams then.
//!
//! To the endpoint every peer is at an address of its own that is nobody's, so that the pair below
//! may change without QUIC taking notice. What comes is told apart by the marks of connection ids, of
//! which each session has one: two sessions may have their addresses in common.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, ConnectError, Connecting, ConnectionError, Endpoint, Incoming, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use str0m::ice::StunMessage;
use tokio::{runtime, sync::Notify, task::AbortHandle, time};

use super::link::{Inbox, Outlet, Waiting, lock};
use crate::{
    core::quic::Tag,
    native::socket::{Receiver, Sockets},
};

/// Sessions that share an endpoint at most.
const TOGETHER: usize = 1;

/// Datagrams of a run that an endpoint takes at a time. It has room for 32 times as many.
const RECEIVE_SEGMENTS: usize = 1;

/// Connections of a peer's that wait to be answered; more are refused. An honest peer makes one.
const MAX_INCOMING: usize = 4;

/// How long a session's last datagrams can be sent: the connection's close is among them.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    /// The session for which connection ids are made.
    static MARK: Cell<Option<Tag>> = const { Cell::new(None) };
}

/// The mark of the ids that are made now, if they are made for a session.
pub(super) fn mark() -> Option<Tag> {
    MARK.get()
}

/// The endpoints there are: each for as long as a session has a link to it.
#[derive(Default)]
pub(super) struct Groups(Mutex<Vec<Weak<Group>>>);

impl Groups {
    /// The link of another session.
    ///
    /// # Errors
    /// Without randomness.
    pub(super) fn link(
        &self,
        sockets: &Sockets,
        server: &quinn::ServerConfig,
    ) -> io::Result<Arc<PairLink>> {
        let mut groups = lock(&self.0);
        groups.retain(|group| group.strong_count() > 0);
        let mut alive = groups.iter().filter_map(Weak::upgrade);
        let room = alive.find(|group| group.sessions() < TOGETHER);
        let group = match room {
            Some(group) => group,
            None => {
                let group = Group::new(sockets, server)?;
                groups.push(Arc::downgrade(&group));
                group
            }
        };
        group.link(sockets)
    }
}

/// An endpoint, and the sessions that share it.
struct Group {
    endpoint: Endpoint,
    pairs: Arc<Pairs>,
    accepting: AbortHandle,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Group {
    fn new(sockets: &Sockets, server: &quinn::ServerConfig) -> io::Result<Arc<Self>> {
        let pairs = Pairs::new(sockets.clone());
        let endpoint = super::endpoint(sockets, server, &pairs)?;
        let (accepting, takers) = (endpoint.clone(), pairs.clone());
        let accepting = tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                takers.hand_over(incoming);
            }
        });
        Ok(Arc::new(Self {
            endpoint,
            pairs,
            accepting: accepting.abort_handle(),
        }))
    }

    fn sessions(&self) -> usize {
        lock(&self.pairs.below).len()
    }

    fn link(self: &Arc<Self>, sockets: &Sockets) -> io::Result<Arc<PairLink>> {
        let mut tag = Tag::default();
        getrandom::fill(&mut tag).map_err(io::Error::other)?;
        let link = Arc::new(PairLink {
            group: self.clone(),
            below: self.pairs.add(),
            tag,
        });
        let to: Arc<dyn Receiver> = link.clone();
        sockets.route_tag(tag, &to);
        Ok(link)
    }
}

/// What an endpoint takes for its socket.
pub(super) struct Pairs {
    outlet: Arc<Outlet>,
    inbox: Inbox,
    below: Mutex<HashMap<SocketAddr, Arc<Below>>>,
    next: AtomicU64,
}

/// What lies below the connection of one session.
struct Below {
    /// Where the endpoint has its peer.
    peer: SocketAddr,
    /// The addresses in use, ours and the peer's, once they are known.
    pair: Mutex<Option<(SocketAddr, SocketAddr)>>,
    waiting: Waiting,
    incoming: Mutex<Incomings>,
    came: Notify,
}

/// Connections that the peer begins, until one of them is taken.
type Incomings = Option<VecDeque<Incoming>>;

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

impl Pairs {
    fn new(sockets: Sockets) -> Arc<Self> {
        Arc::new(Self {
            outlet: Outlet::new(sockets),
            inbox: Inbox::default(),
            below: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// Makes room for another session.
    fn add(&self) -> Arc<Below> {
        // RFC 6666: addresses that are nobody's.
        let number = u128::from(self.next.fetch_add(1, Ordering::Relaxed));
        let ip = Ipv6Addr::from_bits(0x100 << 112 | number);
        let below = Arc::new(Below {
            peer: SocketAddr::new(ip.into(), 1),
            pair: Mutex::default(),
            waiting: Waiting::default(),
            incoming: Mutex::new(Some(VecDeque::new())),
            came: Notify::new(),
        });
        lock(&self.below).insert(below.peer, below.clone());
        below
    }

    fn forget(&self, peer: SocketAddr) {
        let below = lock(&self.below).remove(&peer);
        // Without the lock: connections that nobody took are refused now, by the endpoint, which may
        // be about to send.
        drop(below);
    }

    /// Hands a connection that a peer begins to the session that it is for.
    fn hand_over(&self, incoming: Incoming) {
        let below = lock(&self.below).get(&incoming.remote_address()).cloned();
        // One that finds no room is refused as it is dropped.
        if let Some(below) = below
            && let Some(waiting) = &mut *lock(&below.incoming)
            && waiting.len() < MAX_INCOMING
        {
            waiting.push_back(incoming);
            below.came.notify_one();
        }
    }
}

/// Ids that are made later than a connection have the endpoint's own mark. Quinn does not use them
/// while a path stays the same; for others the address tells the session.
impl Receiver for Pairs {
    fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, _: &[u8]) {}

    fn received_all(&self) {}

    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        false
    }

    fn receive_quic(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        let from = |below: &&Arc<Below>| lock(&below.pair).is_some_and(|(_, to)| to == source);
        let links = lock(&self.below);
        let below = links
            .values()
            .find(from)
            .or_else(|| links.values().next())
            .cloned();
        drop(links);
        if let Some(below) = &below {
            let ends = (below.peer, destination);
            self.inbox.push(ends, data, segment, &below.waiting);
        }
        below.is_some()
    }
}

impl AsyncUdpSocket for Pairs {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.outlet.poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let below = lock(&self.below).get(&transmit.destination).cloned();
        let pair = below.and_then(|below| *lock(&below.pair));
        match pair {
            Some((source, destination)) => self.outlet.try_send(source, destination, transmit),
            // Lost, as on any path that is not there.
            None => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inbox.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.outlet.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.outlet.max_segments()
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.outlet.may_fragment()
    }
}

/// One session's way to its endpoint. A second after it is dropped, its connection has no path.
pub(crate) struct PairLink {
    group: Arc<Group>,
    below: Arc<Below>,
    tag: Tag,
}

impl fmt::Debug for PairLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairLink").finish_non_exhaustive()
    }
}

impl PairLink {
    /// Uses the pair from now on.
    pub(crate) fn set_pair(&self, source: SocketAddr, destination: SocketAddr) {
        *lock(&self.below.pair) = Some((source, destination));
    }

    /// The pair in use.
    pub(crate) fn pair(&self) -> Option<(SocketAddr, SocketAddr)> {
        *lock(&self.below.pair)
    }

    /// Takes in what has arrived.
    pub(crate) fn push(&self, destination: SocketAddr, data: &[u8], stride: usize) {
        let ends = (self.below.peer, destination);
        let inbox = &self.group.pairs.inbox;
        inbox.push(ends, data, stride, &self.below.waiting);
    }

    /// Begins a connection to the peer.
    ///
    /// # Errors
    /// As [`Endpoint::connect_with`].
    pub(super) fn connect(
        &self,
        config: quinn::ClientConfig,
        name: &str,
    ) -> Result<Connecting, ConnectError> {
        let (endpoint, peer) = (&self.group.endpoint, self.below.peer);
        self.marked(|| endpoint.connect_with(config, peer, name))
    }

    /// Takes a connection that the peer begins.
    ///
    /// # Errors
    /// As [`Incoming::accept`].
    pub(super) fn accept(&self, incoming: Incoming) -> Result<Connecting, ConnectionError> {
        self.marked(|| incoming.accept())
    }

    /// Makes the ids of a connection within `begin`.
    fn marked<R>(&self, begin: impl FnOnce() -> R) -> R {
        MARK.set(Some(self.tag));
        let result = begin();
        MARK.set(None);
        result
    }

    /// The next connection that the peer begins.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn incoming(&self) -> Option<Incoming> {
        loop {
            if let Some(incoming) = lock(&self.below.incoming).as_mut()?.pop_front() {
                return Some(incoming);
            }
            self.below.came.notified().await;
        }
    }

    /// Refuses what the peer begins from now on.
    pub(super) fn refuse(&self) {
        let waiting = lock(&self.below.incoming).take();
        drop(waiting);
    }
}

/// Routed here by the mark in connection ids.
impl Receiver for PairLink {
    fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, _: &[u8]) {}

    fn received_all(&self) {}

    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        false
    }

    fn receive_quic(
        &self,
        _: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        self.push(destination, data, segment);
        true
    }
}

impl Drop for PairLink {
    fn drop(&mut self) {
        let (pairs, peer) = (&self.group.pairs, self.below.peer);
        match runtime::Handle::try_current() {
            Ok(runtime) => {
                // The sockets are there for as long as the endpoint has something to say.
                let pairs = Arc::downgrade(pairs);
                let forget = async move {
                    time::sleep(LINGER).await;
                    if let Some(pairs) = pairs.upgrade() {
                        pairs.forget(peer);
                    }
                };
                _ = runtime.spawn(forget);
            }
            Err(_) => pairs.forget(peer),
        }
    }
}
