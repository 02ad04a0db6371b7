//! Local candidates: addresses of interfaces, the addresses that STUN servers see, the address that
//! the router forwards, and the ports that a NAT will use next.
//!
//! They are found once for all connections, on the socket that carries the connections, and kept
//! current. So an offer can carry them at once.

mod interfaces;
mod reflexive;

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use libp2p::PeerId;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use self::reflexive::Reflexive;
use super::{
    port_mapping::PortMapping,
    stun::StunClient,
    turn::{Hold, LINGER, Roots, Server, TurnRelays},
};
use crate::{
    core::{candidate::CandidateKind, dial::Policy, server_url::ServerTransport},
    native::{
        runtime,
        udp::{Receiver, Sockets},
    },
    report::NatReport,
};

/// The origin of an address that is offered. Peers are told only its [`CandidateKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The address belongs to an interface.
    Interface,
    /// The router was asked to forward the address (UPnP-IGD, NAT-PMP, PCP).
    PortMapping,
    /// A STUN server saw the address.
    Stun,
    /// The NAT is expected to use the address next.
    Prediction,
    /// A TURN server that was asked over this transport allocated the address.
    Turn(ServerTransport),
    /// The birthday method found the address.
    Birthday,
}

impl Origin {
    pub(crate) fn kind(self) -> CandidateKind {
        match self {
            Self::Interface | Self::Birthday => CandidateKind::Host,
            Self::PortMapping | Self::Stun | Self::Prediction => CandidateKind::ServerReflexive,
            Self::Turn(_) => CandidateKind::Relayed,
        }
    }
}

/// A local address to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LocalCandidate {
    pub(crate) origin: Origin,
    /// The address that peers are told.
    pub(crate) addr: SocketAddr,
    /// The local address that datagrams are sent from.
    pub(crate) base: SocketAddr,
}

impl LocalCandidate {
    pub(crate) fn kind(&self) -> CandidateKind {
        self.origin.kind()
    }
}

/// The candidates that are known now. The first value that is `ready` has the addresses of the
/// interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gathered {
    pub(crate) ready: bool,
    /// The candidates, with the best origins first.
    pub(crate) candidates: Vec<LocalCandidate>,
}

impl Gathered {
    /// The candidates of one origin.
    pub(crate) fn of(&self, origin: Origin) -> impl Iterator<Item = &LocalCandidate> {
        let is = move |candidate: &&LocalCandidate| candidate.origin == origin;
        self.candidates.iter().filter(is)
    }

    /// The addresses of the interfaces.
    pub(crate) fn hosts(&self) -> HashSet<IpAddr> {
        self.of(Origin::Interface).map(|c| c.addr.ip()).collect()
    }

    /// Replaces all candidates of one origin by `new`. Returns whether that changed anything.
    pub(crate) fn replace(&mut self, origin: Origin, new: &[LocalCandidate]) -> bool {
        if self.of(origin).eq(new) {
            return false;
        }
        self.candidates.retain(|old| old.origin != origin);
        self.candidates.extend_from_slice(new);
        self.candidates.sort_by_key(|candidate| candidate.origin);
        true
    }
}

/// The servers to ask, and how long to wait for them.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The STUN servers, as `host:port`.
    pub(crate) stun: Vec<String>,
    pub(crate) stun_timeout: Duration,
    pub(crate) turn: Vec<Server>,
    /// The certificate authorities that `turns:` trusts.
    pub(crate) roots: Roots,
    /// How long the router may take to map a port. With `None`, the router is not asked.
    pub(crate) port_mapping: Option<Duration>,
    /// Which addresses the STUN servers may have that relays name.
    pub(crate) policy: Policy,
}

/// Keeps the local candidates current for as long as it lives. Dropping it removes the port
/// mapping, without waiting for the router.
pub(crate) struct Gatherer {
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    attempts: Arc<Notify>,
    doubts: Arc<Notify>,
    /// The STUN servers that relays have named.
    named: watch::Sender<Vec<(PeerId, Vec<String>)>>,
    /// The routes refer to the client only weakly, so it is kept here.
    _client: Arc<StunClient>,
    relays: TurnRelays,
    tasks: [AbortHandle; 2],
    port_mapping: PortMapping,
}

impl fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gatherer").finish_non_exhaustive()
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Gatherer {
    /// Starts to gather. Needs a Tokio runtime.
    pub(crate) fn start(sockets: &Sockets, settings: Settings) -> Self {
        let current = Arc::new(watch::Sender::new(Gathered::default()));
        let unknown = NatReport {
            stun_pending: !settings.stun.is_empty(),
            ..NatReport::default()
        };
        let nat = Arc::new(watch::Sender::new(unknown));
        let attempts = Arc::<Notify>::default();
        let doubts = Arc::<Notify>::default();
        let named = watch::Sender::default();
        let client = Arc::<StunClient>::default();
        let handle: Arc<dyn Receiver> = client.clone();
        sockets.route_stun_client(&handle);
        let port_mapping =
            PortMapping::start(sockets, settings.port_mapping, current.clone(), nat.clone());
        let turn = settings.turn.clone();
        let relays = TurnRelays::start(sockets, turn, &settings.roots, LINGER, (&current, &nat));
        let hosts = interfaces::watch(sockets.clone(), current.clone());
        let reflexive = Reflexive::new(
            sockets.clone(),
            settings,
            client.clone(),
            current.clone(),
            nat.clone(),
        );
        let reflexive = reflexive.keep(attempts.clone(), doubts.clone(), named.subscribe());
        Self {
            relays,
            named,
            tasks: [
                runtime::task(hosts).abort_handle(),
                runtime::task(reflexive).abort_handle(),
            ],
            current,
            nat,
            attempts,
            doubts,
            _client: client,
            port_mapping,
        }
    }

    /// Returns a demand for relayed candidates, which cost a server resources. There are some for as long
    /// as it says that they are needed.
    pub(crate) fn relays(&self) -> Hold {
        self.relays.demand()
    }

    /// Uses TURN servers to which `relay` gives access, as far as `policy` lets it.
    pub(crate) fn use_turn(&self, relay: PeerId, servers: Vec<Server>, policy: &Policy) {
        self.relays.give(relay, servers, policy);
    }

    /// Uses the servers of `relay` no longer.
    pub(crate) fn forget_servers(&self, relay: &PeerId) {
        self.relays.forget(relay);
        self.named.send_if_modified(|named| {
            let before = named.len();
            named.retain(|(known, _)| known != relay);
            named.len() < before
        });
    }

    /// Uses STUN servers that `relay` has named, as `host:port`, in the place of those before.
    pub(crate) fn use_stun(&self, relay: PeerId, servers: Vec<String>) {
        self.named.send_if_modified(|named| {
            let known = named.iter().position(|(known, _)| *known == relay);
            match known {
                Some(at) if named[at].1 == servers => return false,
                Some(at) => named[at].1 = servers,
                None => named.push((relay, servers)),
            }
            true
        });
    }

    /// A watch of the candidates.
    pub(crate) fn watch(&self) -> watch::Receiver<Gathered> {
        self.current.subscribe()
    }

    /// A watch of the facts about the NAT.
    pub(crate) fn nat(&self) -> watch::Receiver<NatReport> {
        self.nat.subscribe()
    }

    /// Tells that a connection is about to be made. Where ports are predicted, they are predicted
    /// anew.
    pub(crate) fn attempt_begins(&self) {
        self.attempts.notify_one();
    }

    /// Tells that the NAT may have mapped the sockets anew. The STUN servers are asked at once.
    pub(crate) fn doubt_mapping(&self) {
        self.doubts.notify_one();
    }

    /// Removes the port mapping, and waits for the router to confirm it for a moment at most.
    pub(crate) async fn close(&self) {
        self.port_mapping.close().await;
    }
}

#[cfg(test)]
mod tests;
