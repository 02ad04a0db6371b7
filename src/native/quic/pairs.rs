//! QUIC over the candidate pairs of ICE sessions.
//!
//! One endpoint serves many sessions, because each endpoint costs as much memory as half an idle
//! connection. One endpoint does not serve all sessions, because an endpoint runs after all other
//! tasks, and takes in few datagrams each time.
//!
//! To such an endpoint, all peers are at one address that belongs to nobody, so the pair below may
//! change unnoticed. Incoming datagrams are told apart by their connection ids. Outgoing datagrams
//! are sent on the [`Path`] of the task that sends them.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::channel::mpsc::{self, TrySendError};
use quinn::{ConnectError, Connecting, ConnectionError, Endpoint, Incoming};
use tokio::task::AbortHandle;

use super::{
    link::{DISCARD, EndpointSocket, PEER, Peers, lock},
    path::Path,
};
use crate::native::{runtime, udp::Sockets};

/// The most sessions that share an endpoint.
const TOGETHER: usize = 16;

/// The most connections of one peer that wait to be answered. More are refused. An honest peer
/// makes one.
const MAX_INCOMING: usize = 4;

/// The endpoints that exist. Each lives for as long as a session has a link to it.
#[derive(Default)]
pub(super) struct Groups(Mutex<Vec<Weak<Group>>>);

impl Groups {
    /// Makes the link of another session.
    ///
    /// # Errors
    /// Fails when the system has no randomness.
    pub(super) fn link(
        &self,
        sockets: &Sockets,
        server: &quinn::ServerConfig,
    ) -> io::Result<Arc<PairLink>> {
        let mut groups = lock(&self.0);
        groups.retain(|group| group.strong_count() > 0);
        let mut alive = groups.iter().filter_map(Weak::upgrade);
        let room = alive.find(|group| lock(&group.sessions.0).len() < TOGETHER);
        let group = match room {
            Some(group) => group,
            None => {
                let group = Group::new(sockets, server)?;
                groups.push(Arc::downgrade(&group));
                group
            }
        };
        Ok(Arc::new(PairLink::new(group)))
    }
}

/// An endpoint, and the sessions that share it.
struct Group {
    endpoint: Endpoint,
    link: Arc<EndpointSocket>,
    sessions: Arc<Sessions>,
    next: AtomicU64,
    accepting: AbortHandle,
}

/// The sessions that wait for a connection of their peer, by the local address that it comes to.
#[derive(Default)]
struct Sessions(Mutex<HashMap<IpAddr, mpsc::Sender<Incoming>>>);

impl Sessions {
    /// Hands a connection that a peer begins to its session.
    fn hand_over(&self, incoming: Incoming) {
        let mut sessions = lock(&self.0);
        let session = incoming.local_ip().and_then(|at| sessions.get_mut(&at));
        let refused = match session {
            Some(session) => session
                .try_send(incoming)
                .err()
                .map(TrySendError::into_inner),
            None => Some(incoming),
        };
        drop(sessions);
        // Dropping tells the endpoint, so the lock must not be held.
        drop(refused);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Group {
    fn new(sockets: &Sockets, server: &quinn::ServerConfig) -> io::Result<Arc<Self>> {
        let link = EndpointSocket::new(sockets.clone(), Peers::Paths);
        let endpoint = super::endpoint(sockets, server, &link, None)?;
        let sessions = Arc::new(Sessions::default());
        let (accepting, takers) = (endpoint.clone(), sessions.clone());
        let accepting = runtime::task(async move {
            while let Some(incoming) = accepting.accept().await {
                takers.hand_over(incoming);
            }
        });
        Ok(Arc::new(Self {
            endpoint,
            link,
            sessions,
            next: AtomicU64::default(),
            accepting: accepting.abort_handle(),
        }))
    }
}

/// The link from one session to its endpoint. The connection of the session keeps its path for as
/// long as it has something to send. Once this is dropped, further connections are not handed over.
pub(crate) struct PairLink {
    group: Arc<Group>,
    path: Arc<Path>,
    /// The local address that the peer's connections come to.
    at: IpAddr,
    incoming: Mutex<Option<mpsc::Receiver<Incoming>>>,
}

impl fmt::Debug for PairLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairLink").finish_non_exhaustive()
    }
}

impl PairLink {
    fn new(group: Arc<Group>) -> Self {
        let number = u128::from(group.next.fetch_add(1, Ordering::Relaxed));
        let at = Ipv6Addr::from_bits(DISCARD.to_bits() | number).into();
        // The sender adds room for one more.
        let (sender, incoming) = mpsc::channel(MAX_INCOMING - 1);
        lock(&group.sessions.0).insert(at, sender);
        Self {
            group,
            path: Arc::default(),
            at,
            incoming: Mutex::new(Some(incoming)),
        }
    }

    /// Uses this pair from now on.
    pub(crate) fn set_pair(&self, source: SocketAddr, destination: SocketAddr) {
        self.path.set(source, destination);
    }

    /// The pair in use.
    pub(crate) fn pair(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.path.get()
    }

    /// How many datagrams, or batches of them, were sent over it.
    pub(crate) fn sent(&self) -> u64 {
        self.path.sent()
    }

    /// Takes in datagrams of `stride` bytes that begin a connection.
    pub(crate) fn push(&self, source: SocketAddr, data: &[u8], stride: usize) {
        self.group.link.push(source, Some(self.at), data, stride);
    }

    /// Begins a connection to the peer.
    ///
    /// # Errors
    /// Fails as [`Endpoint::connect_with`] does.
    pub(super) fn connect(
        &self,
        config: quinn::ClientConfig,
        name: &str,
    ) -> Result<Connecting, ConnectError> {
        let endpoint = &self.group.endpoint;
        self.path
            .begin(|| endpoint.connect_with(config, PEER, name))
    }

    /// Accepts a connection that the peer begins.
    ///
    /// # Errors
    /// Fails as [`Incoming::accept`] does.
    pub(super) fn accept(&self, incoming: Incoming) -> Result<Connecting, ConnectionError> {
        self.path.begin(|| incoming.accept())
    }

    /// The connections that the peer begins. Only the first call returns them. When the receiver is
    /// dropped, they are refused.
    pub(super) fn incoming(&self) -> Option<mpsc::Receiver<Incoming>> {
        lock(&self.incoming).take()
    }
}

impl Drop for PairLink {
    fn drop(&mut self) {
        lock(&self.group.sessions.0).remove(&self.at);
    }
}
