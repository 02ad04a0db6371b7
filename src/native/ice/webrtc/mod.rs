//! The native [`Backend`](backend::Backend): ICE and DTLS of `str0m`, with SCTP above DTLS, on the
//! shared UDP sockets.

mod agent;
mod association;
mod burst;
mod connection;
pub(crate) mod dcep;
#[cfg(feature = "server")]
pub(crate) mod direct;
mod gate;
mod identity;
mod session;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

use self::{
    connection::{Handshake, Network},
    gate::Gate,
    identity::Identity,
    session::IceSession,
};
use super::{
    gather::{Gatherer, Settings},
    stun,
    turn::{Roots, Server},
};
use crate::{
    core::{
        dial::Policy,
        plan::Late,
        server_url::{ServerTransport, ServerUrl, Service},
    },
    native::{
        quic::Quic,
        trace,
        udp::{Addresses, Sockets, any_source},
    },
    report::NatReport,
    webrtc::{
        Config, Effort, IceServer,
        backend::{self, BackendError, SpareTurn},
    },
};

use self::connection::PeerConnection;

/// Takes what strategies report that join ICE by themselves, for each peer.
pub(crate) type LateSender = mpsc::Sender<(PeerId, Late)>;

/// Makes peer connections on one pair of UDP sockets. It is public because it is a parameter of a
/// public type, but no user can name it.
#[derive(Clone)]
pub struct Backend(Arc<Inner>);

struct Inner {
    sockets: Sockets,
    gatherer: Gatherer,
    identity: Arc<Identity>,
    /// The addresses to which peers may have datagrams sent.
    policy: Policy,
    birthday: Option<Effort>,
    /// How long a connection waits before it asks TURN servers.
    turn_delay: Duration,
    /// Whether names are asked for in the local network.
    mdns: bool,
    /// Takes what strategies report that join ICE by themselves.
    late: Option<LateSender>,
    /// QUIC, for connections with peers of this library.
    quic: Option<Quic>,
    /// The peers with which TURN is left out, because there is a path over TURN already.
    spared: Mutex<HashMap<PeerId, SpareTurn>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backend").field(&self.0.sockets).finish()
    }
}

impl Backend {
    /// Makes a backend with sockets of its own, on UDP ports that the system chooses.
    ///
    /// # Errors
    /// Fails with [`BackendError::Unavailable`] outside a Tokio runtime, and with
    /// [`BackendError::Io`] when no socket can be bound or the URL of a server is invalid.
    #[cfg(any(feature = "libp2p", test))]
    pub(crate) fn new(config: &Config) -> Result<Self, BackendError> {
        Self::over(config, bind(Addresses::default())?, None, None)
    }

    /// Makes a backend over `sockets`. It uses QUIC if `quic` is given and the peer supports it.
    /// What strategies report that join ICE by themselves goes to `late`.
    ///
    /// # Errors
    /// Fails with [`BackendError::Io`] when the URL of a server is invalid.
    pub(crate) fn over(
        config: &Config,
        sockets: Sockets,
        quic: Option<Quic>,
        late: Option<LateSender>,
    ) -> Result<Self, BackendError> {
        let (stun, turn) = servers(&config.ice_servers)?;
        let roots = Roots::load(config.turn_ca.as_deref())
            .map_err(|error| BackendError::Io(error.to_string()))?;
        let settings = Settings {
            stun,
            stun_timeout: config.stun_timeout,
            turn,
            roots,
            port_mapping: config.port_mapping.then_some(config.port_mapping_timeout),
            policy: Policy::new(config.dial_private, Vec::new()),
        };
        Ok(Self(Arc::new(Inner {
            gatherer: Gatherer::start(&sockets, settings),
            sockets,
            identity: Arc::new(Identity::generate()?),
            policy: Policy::new(config.dial_private, Vec::new()),
            birthday: config.birthday,
            turn_delay: config.turn_delay,
            mdns: config.mdns,
            late,
            quic,
            spared: Mutex::default(),
        })))
    }
}

impl Backend {
    /// A watch of the facts about the NAT.
    pub(crate) fn nat(&self) -> Option<watch::Receiver<NatReport>> {
        Some(self.0.gatherer.nat())
    }

    /// Does nothing, because the sockets are there and know their mappings.
    pub(crate) fn prepare(&self) {}

    /// Asks the STUN servers anew, because the NAT may have mapped our sockets anew.
    pub(crate) fn doubt_mapping(&self) {
        self.0.gatherer.doubt_mapping();
    }

    /// Uses a TURN server to which `relay` gives access.
    pub(crate) fn use_turn(&self, relay: PeerId, server: IceServer) {
        if let Ok((_, turn)) = servers(&[server]) {
            self.0.gatherer.use_turn(relay, turn, &self.0.policy);
        }
    }

    /// Uses the servers of `relay` no longer.
    pub(crate) fn forget_servers(&self, relay: &PeerId) {
        self.0.gatherer.forget_servers(relay);
    }

    /// Uses STUN servers that `relay` has named, in the place of those that it has named before.
    pub(crate) fn use_stun(&self, relay: PeerId, urls: Vec<String>) {
        let server = IceServer {
            urls,
            ..IceServer::default()
        };
        if let Ok((stun, _)) = servers(&[server]) {
            self.0.gatherer.use_stun(relay, stun);
        }
    }

    /// Opens the NAT for datagrams from `addresses`, before the peers there know this peer's
    /// addresses.
    pub(crate) fn open_nat(&self, addresses: &[SocketAddr]) {
        let indication = stun::message::indication();
        for address in addresses
            .iter()
            .filter(|to| self.0.policy.allows(**to).is_ok())
        {
            let sockets = &self.0.sockets;
            let Some(to) = sockets.nat64().route(*address) else {
                continue;
            };
            // A failure is ignored, because an address that cannot be reached needs no opening.
            let mut data = indication.as_slice();
            let _ = sockets.try_send(any_source(to), to, &mut data, indication.len());
        }
    }

    /// Sets whether new connections with `peer` leave TURN out.
    pub(crate) fn spare_turn(&self, peer: PeerId, spare: Option<SpareTurn>) {
        let mut spared = self.spared();
        match spare {
            Some(spare) => _ = spared.insert(peer, spare),
            None => _ = spared.remove(&peer),
        }
    }

    fn spared(&self) -> MutexGuard<'_, HashMap<PeerId, SpareTurn>> {
        self.0.spared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the port mapping from the router. This takes half a second at most.
    pub(crate) async fn close(&self) {
        self.0.gatherer.close().await;
    }
}

/// Binds the shared sockets.
///
/// # Errors
/// Fails with [`BackendError::Unavailable`] outside a Tokio runtime, and with [`BackendError::Io`]
/// when an address cannot be bound.
pub(crate) fn bind(addresses: Addresses) -> Result<Sockets, BackendError> {
    if tokio::runtime::Handle::try_current().is_err() {
        let why = "there is no Tokio runtime here".to_owned();
        return Err(BackendError::Unavailable(why));
    }
    Sockets::bind(addresses).map_err(|error| BackendError::Io(error.to_string()))
}

impl backend::Backend for Backend {
    type Connection = PeerConnection;

    fn connect(&self, peer: PeerId) -> Result<PeerConnection, BackendError> {
        self.0.gatherer.attempt_begins();
        let sockets = self.0.sockets.clone();
        let handshake = match self.0.quic.clone() {
            Some(quic) => {
                let link = quic.pair_link();
                let link = link.map_err(|error| BackendError::Io(error.to_string()))?;
                Some(Handshake { quic, link, peer })
            }
            None => None,
        };
        let link = handshake.as_ref().map(|quic| quic.link.clone());
        let mut session = IceSession::new(self.0.identity.clone(), link, Instant::now());
        session.keep_to(self.0.policy.clone(), self.0.sockets.nat64().clone());
        let spared = self.spared().get(&peer).copied();
        let may_guess = spared != Some(SpareTurn::Never { may_guess: false });
        let effort = self.0.birthday.filter(|_| may_guess);
        session.may_guess(effort, Gate::of_process());
        match spared {
            Some(_) => session.leave_turn_out(),
            None => session.ask_turn_after(self.0.turn_delay),
        }
        let network = Network {
            candidates: self.0.gatherer.watch(),
            nat: self.0.gatherer.nat(),
            relays: spared.is_none().then(|| self.0.gatherer.relays()),
            mdns: self.0.mdns,
        };
        let told = self.0.late.clone().map(|late| (peer, late));
        let start = || PeerConnection::start(session, sockets, network, handshake, told);
        Ok(trace::ice(&peer).in_scope(start))
    }
}

/// The servers that this target can use: STUN servers as `host:port`, and TURN servers.
fn servers(all: &[IceServer]) -> Result<(Vec<String>, Vec<Server>), BackendError> {
    let (mut stun, mut turn) = (Vec::new(), Vec::new());
    for server in all {
        for text in &server.urls {
            let invalid = |why: &dyn fmt::Display| BackendError::Io(format!("{text}: {why}"));
            let url: ServerUrl = text.parse().map_err(|error| invalid(&error))?;
            match url.service {
                Service::Stun if url.host.contains(':') => {
                    stun.push(format!("[{}]:{}", url.host, url.port));
                }
                Service::Stun => stun.push(format!("{}:{}", url.host, url.port)),
                Service::Stuns | Service::Turn(ServerTransport::Dtls) => {
                    return Err(invalid(&"cannot be used on this target"));
                }
                Service::Turn(_) => turn.push(Server {
                    url,
                    username: server.username.clone().unwrap_or_default(),
                    credential: server.credential.clone().unwrap_or_default(),
                }),
            }
        }
    }
    Ok((stun, turn))
}
