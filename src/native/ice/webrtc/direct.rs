//! Listens for `/webrtc-direct`: clients that know the server's address and the hash of its
//! certificate, and need no signalling. All clients of a listener share one UDP port.
//!
//! The first check of a client has the credentials of both sides in its user name. A session is made
//! only when the check is authentic and the source has a place for another handshake. Everything else
//! is dropped without a trace.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
        upgrade::OutboundConnectionUpgrade as _,
    },
    identity::Keypair,
    multiaddr::Protocol,
};
use multiaddr::multihash::Multihash;
use str0m::{config::DtlsCert, ice::StunMessage};
use tokio::{
    sync::{mpsc, watch},
    time,
};

pub(crate) use super::association::Buffers;
use super::{
    connection::{Network, PeerConnection},
    identity::Identity,
    session::IceSession,
};
use crate::{
    core::{
        scope::{Scope, scope},
        webrtc_direct::{self, Credentials},
    },
    native::{
        behaviours::pool::{Place, Pool},
        ice::gather::{Gathered, LocalCandidate, Origin},
        udp::{Listening, Receiver, Sockets},
    },
    report::NatReport,
    webrtc::{
        BackendError, FinAck,
        backend::{PeerConnection as _, PeerEvent},
        direct::{self, DirectConnection, DirectError, Secured},
    },
};

/// How long a client may leave the server's check unanswered. Browsers repeat their own checks several
/// times a second, so that a client behind a lossy link begins anew before it has noticed.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// Beyond so many local addresses, those that no session uses are forgotten. A machine may answer at a
/// whole prefix.
const MAX_ADDRESSES: usize = 64;

type Output = (PeerId, DirectConnection<PeerConnection>);
type Upgrade = BoxFuture<'static, Result<Output, DirectError>>;

impl From<io::Error> for DirectError {
    fn from(error: io::Error) -> Self {
        Self::Connection(BackendError::Io(error.to_string()))
    }
}

/// The certificate of a server.
pub(crate) struct Certificate {
    identity: Arc<Identity>,
    hash: Multihash<64>,
}

impl Certificate {
    /// Takes a certificate and its private key, in DER. The key must be one of ECDSA, or handshakes
    /// panic. Returns `None` if the certificate has no hash.
    pub(crate) fn new(certificate: Vec<u8>, private_key: Vec<u8>) -> Option<Self> {
        let identity = Identity::of(DtlsCert {
            certificate,
            private_key,
        });
        let fingerprint = identity.fingerprint(&identity.certificate.certificate);
        let hash = webrtc_direct::multihash(&fingerprint)?;
        Some(Self {
            identity: Arc::new(identity),
            hash,
        })
    }

    /// The hash of the certificate, which addresses have.
    pub(crate) fn hash(&self) -> Multihash<64> {
        self.hash
    }
}

/// The bounds on the clients of a server.
#[derive(Clone)]
pub(crate) struct Bounds {
    /// The pool that bounds the handshakes under way.
    pub(crate) handshakes: Pool,
    pub(crate) buffers: Buffers,
    /// How long a handshake may take.
    pub(crate) timeout: Duration,
}

/// Listens for `/webrtc-direct`. It dials nobody.
pub(crate) struct DirectTransport {
    keypair: Keypair,
    certificate: Certificate,
    bounds: Bounds,
    /// The sockets to listen at.
    sockets: Vec<Sockets>,
    listeners: Vec<(Listening, Arc<Door>)>,
    /// The clients that have come. The pool of handshakes bounds their number.
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    arrived: mpsc::UnboundedSender<Arrival>,
    closed: VecDeque<ListenerId>,
    waker: Option<Waker>,
}

/// A client whose first check was authentic.
struct Arrival {
    listener: ListenerId,
    source: SocketAddr,
    destination: SocketAddr,
    connection: PeerConnection,
    is_v2: bool,
    place: Place,
}

/// The receiver of STUN requests of clients that have no session yet.
struct Door {
    listener: ListenerId,
    sockets: Sockets,
    identity: Arc<Identity>,
    bounds: Bounds,
    /// The local addresses that clients have used, each as the only candidate of their sessions.
    candidates: Mutex<HashMap<SocketAddr, watch::Sender<Gathered>>>,
    nat: watch::Receiver<NatReport>,
    arrived: mpsc::UnboundedSender<Arrival>,
}

impl Door {
    /// The facts about the network for a client that has come to a local address.
    fn network(&self, destination: SocketAddr) -> Network {
        let mut known = self
            .candidates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ADDRESSES {
            known.retain(|_, candidates| candidates.receiver_count() > 0);
        }
        let candidates = known.entry(destination).or_insert_with(|| {
            let candidate = LocalCandidate {
                origin: Origin::Interface,
                addr: destination,
                base: destination,
            };
            let gathered = Gathered {
                ready: true,
                candidates: vec![candidate],
            };
            watch::channel(gathered).0
        });
        Network {
            candidates: candidates.subscribe(),
            nat: self.nat.clone(),
            relays: None,
            mdns: false,
        }
    }

    /// Reads the credentials of a check. Returns `None` if they are of another protocol or the check
    /// was not made with them.
    fn credentials(&self, check: &[u8]) -> Option<Credentials> {
        let message = StunMessage::parse(check).ok()?;
        let (server, client) = message.split_username()?;
        let credentials = Credentials::read(server, client)?;
        let hmac = self.identity.crypto.sha1_hmac_provider;
        let authentic = message.verify(credentials.server.as_bytes(), |key, payloads| {
            hmac.sha1_hmac(key, payloads)
        });
        (authentic && message.is_binding_request()).then_some(credentials)
    }
}

impl Receiver for Door {
    fn receive(&self, now: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        if scope(source.ip()) == Scope::Forbidden {
            return;
        }
        let Some(credentials) = self.credentials(data) else {
            return;
        };
        let Ok(place) = self.bounds.handshakes.take(source.ip()) else {
            return;
        };
        let mut session = IceSession::new(self.identity.clone(), None, now);
        let is_v2 = credentials.is_v2;
        session.serve(credentials, self.bounds.buffers);
        let network = self.network(destination);
        session.set_local_candidates(&network.candidates.borrow().candidates);
        let sockets = self.sockets.clone();
        let connection = PeerConnection::start(session, sockets, network, None, None);
        connection.receive(now, source, destination, data);
        // An error says that the transport is gone, and with it the connection.
        let _ = self.arrived.send(Arrival {
            listener: self.listener,
            source,
            destination,
            connection,
            is_v2,
            place,
        });
    }
}

impl DirectTransport {
    /// Makes a transport that can listen at `sockets`.
    pub(crate) fn new(
        keypair: Keypair,
        certificate: Certificate,
        bounds: Bounds,
        sockets: Vec<Sockets>,
    ) -> Self {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        Self {
            keypair,
            certificate,
            bounds,
            sockets,
            listeners: Vec::new(),
            arrivals,
            arrived,
            closed: VecDeque::new(),
            waker: None,
        }
    }

    /// Listens at the socket with this address. Returns whether there is one.
    fn listen(&mut self, id: ListenerId, address: SocketAddr) -> bool {
        let fits = |sockets: &&Sockets| {
            let bound = sockets.bound();
            bound.is_some_and(|at| {
                at.ip() == address.ip() && [0, at.port()].contains(&address.port())
            })
        };
        let Some(sockets) = self.sockets.iter().find(fits) else {
            return false;
        };
        let bound = sockets.local(address.ip()).unwrap_or(address);
        let listening = Listening::new(id, bound);
        let door = Arc::new(Door {
            listener: id,
            sockets: sockets.clone(),
            identity: self.certificate.identity.clone(),
            bounds: self.bounds.clone(),
            candidates: Mutex::default(),
            nat: watch::channel(NatReport::default()).1,
            arrived: self.arrived.clone(),
        });
        let receiver: Arc<dyn Receiver> = door.clone();
        sockets.route_stun_listener(&receiver);
        self.listeners.push((listening, door));
        true
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn incoming(&self, arrival: Arrival) -> TransportEvent<Upgrade, DirectError> {
        let hash = self.certificate.hash();
        let (listener_id, source) = (arrival.listener, arrival.source);
        let local_addr = multiaddr(arrival.destination).with(Protocol::Certhash(hash));
        let handshake = accept(self.keypair.clone(), hash, arrival);
        let timeout = self.bounds.timeout;
        let upgrade = async move {
            time::timeout(timeout, handshake)
                .await
                .unwrap_or(Err(DirectError::Timeout))
        };
        TransportEvent::Incoming {
            listener_id,
            upgrade: upgrade.boxed(),
            local_addr,
            send_back_addr: multiaddr(source),
        }
    }
}

/// Goes on with a client until both ends have proved their identities.
async fn accept(
    keypair: Keypair,
    hash: Multihash<64>,
    arrival: Arrival,
) -> Result<Output, DirectError> {
    let Arrival {
        mut connection,
        is_v2,
        place: _place,
        ..
    } = arrival;
    // The first path is that from which the client has answered.
    let proof = wait_for(&mut connection, |event| matches!(event, PeerEvent::Path(_)));
    time::timeout(PROOF_TIMEOUT, proof)
        .await
        .unwrap_or(Err(DirectError::Timeout))?;
    wait_for(&mut connection, |event| {
        matches!(event, PeerEvent::Connected)
    })
    .await?;
    let (client, channel) = connection.client().ok_or(DirectError::Fingerprint)?;
    let client = webrtc_direct::multihash(&client).ok_or(DirectError::Fingerprint)?;
    let secured = Secured {
        connection,
        channel,
        early: VecDeque::new(),
        fin_ack: match is_v2 {
            true => FinAck::known(),
            false => FinAck::default(),
        },
        certificates: [client, hash],
    };
    direct::authenticate(&keypair, secured, |noise, stream| {
        noise.upgrade_outbound(stream, "/noise")
    })
    .await
}

/// Waits for an event. There are no channels yet, so the others do not matter.
async fn wait_for<C>(
    connection: &mut PeerConnection,
    wanted: impl Fn(&PeerEvent<C>) -> bool,
) -> Result<(), DirectError>
where
    PeerConnection: crate::webrtc::backend::PeerConnection<Channel = C>,
{
    loop {
        match poll_fn(|cx| connection.poll_event(cx)).await {
            PeerEvent::Failed(error) => return Err(DirectError::Connection(error)),
            event if wanted(&event) => return Ok(()),
            _ => {}
        }
    }
}

impl transport::Transport for DirectTransport {
    type Output = Output;
    type Error = DirectError;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let Some(address) = socket_addr(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        if !self.listen(id, address) {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        self.wake();
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|(listening, _)| listening.id != id);
        let removed = self.listeners.len() < before;
        if removed {
            self.closed.push_back(id);
            self.wake();
        }
        removed
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(addr))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        if let Some(listener_id) = this.closed.pop_front() {
            return Poll::Ready(TransportEvent::ListenerClosed {
                listener_id,
                reason: Ok(()),
            });
        }
        let hash = this.certificate.hash;
        let named = |address| multiaddr(address).with(Protocol::Certhash(hash));
        for (listening, _) in &mut this.listeners {
            if let Poll::Ready(event) = listening.poll(cx, named) {
                return Poll::Ready(event);
            }
        }
        if let Poll::Ready(Some(arrival)) = this.arrivals.poll_recv(cx) {
            return Poll::Ready(this.incoming(arrival));
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip())
        .with(Protocol::Udp(address.port()))
        .with(Protocol::WebRTCDirect)
}

/// Reads `/ip4|ip6/…/udp/…/webrtc-direct`.
fn socket_addr(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else {
        return None;
    };
    let known = parts.next()? == Protocol::WebRTCDirect && parts.next().is_none();
    known.then_some(SocketAddr::new(ip, port))
}
