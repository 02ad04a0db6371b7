//! Local candidates: addresses of interfaces, what STUN servers see of them, what the router
//! forwards to us, and which ports a NAT will use next.
//!
//! They are found once for all connections, on the socket that carries them, and kept current, so
//! that an offer carries them at once.

mod interfaces;
mod reflexive;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use self::reflexive::Reflexive;
use super::{
    portmap::PortMapping,
    socket::{Receiver, Sockets},
    stun::StunClient,
    turn::{Hold, LINGER, Relays, Roots, Server},
};
use crate::{
    core::{candidate::CandidateKind, server_url::Transport},
    report::NatReport,
};

/// How we came by an address that we offer; [`CandidateKind`] is what of it peers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// It is an interface's.
    Interface,
    /// The router was asked to forward it to us (UPnP-IGD, NAT-PMP, PCP).
    PortMapping,
    /// A STUN server saw it.
    Stun,
    /// The NAT is expected to use it next.
    Prediction,
    /// A TURN server, asked over this, allocated it.
    Turn(Transport),
    /// The birthday method met it.
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
    /// What peers are told.
    pub(crate) addr: SocketAddr,
    /// Where datagrams are sent from.
    pub(crate) base: SocketAddr,
}

impl LocalCandidate {
    pub(crate) fn kind(&self) -> CandidateKind {
        self.origin.kind()
    }
}

/// What is known now. The first value that is `ready` has the addresses of the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gathered {
    pub(crate) ready: bool,
    /// The best origins first.
    pub(crate) candidates: Vec<LocalCandidate>,
}

impl Gathered {
    /// The candidates of one origin.
    pub(crate) fn of(&self, origin: Origin) -> impl Iterator<Item = &LocalCandidate> {
        let is = move |candidate: &&LocalCandidate| candidate.origin == origin;
        self.candidates.iter().filter(is)
    }

    /// Puts `new` in the place of all candidates of one origin. Returns whether that changed
    /// anything.
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

/// Where to ask, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// STUN servers, as `host:port`.
    pub(crate) stun: Vec<String>,
    pub(crate) stun_timeout: Duration,
    pub(crate) turn: Vec<Server>,
    /// Whom `turns:` trusts.
    pub(crate) roots: Roots,
    /// How long the router may take to map a port; `None` not to ask it.
    pub(crate) port_mapping: Option<Duration>,
}

/// Keeps the local candidates current for as long as it lives. Dropping it takes the port mapping
/// back, without waiting for it.
pub(crate) struct Gatherer {
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    attempts: Arc<Notify>,
    /// Kept: the routes know it only weakly.
    _client: Arc<StunClient>,
    relays: Relays,
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
        let client = Arc::<StunClient>::default();
        let handle: Arc<dyn Receiver> = client.clone();
        sockets.route_stun_client(&handle);
        let port_mapping =
            PortMapping::start(sockets, settings.port_mapping, current.clone(), nat.clone());
        let turn = settings.turn.clone();
        let relays = Relays::start(sockets, turn, &settings.roots, LINGER, (&current, &nat));
        let hosts = interfaces::watch(sockets.clone(), current.clone());
        let reflexive = Reflexive::new(
            sockets.clone(),
            settings,
            client.clone(),
            current.clone(),
            nat.clone(),
        );
        Self {
            relays,
            tasks: [
                tokio::spawn(hosts).abort_handle(),
                tokio::spawn(reflexive.keep(attempts.clone())).abort_handle(),
            ],
            current,
            nat,
            attempts,
            _client: client,
            port_mapping,
        }
    }

    /// Asks for relayed candidates, which cost a server something, for as long as it lives. A
    /// connection holds one until it has a path that does without.
    pub(crate) fn relays(&self) -> Hold {
        self.relays.hold()
    }

    /// The candidates, now and as they change.
    pub(crate) fn watch(&self) -> watch::Receiver<Gathered> {
        self.current.subscribe()
    }

    /// What is known of the NAT, now and as it changes.
    pub(crate) fn nat(&self) -> watch::Receiver<NatReport> {
        self.nat.subscribe()
    }

    /// Says that a connection is about to be made: where ports are guessed, they are guessed anew.
    pub(crate) fn attempt_begins(&self) {
        self.attempts.notify_one();
    }

    /// Takes the port mapping back and waits until the router knows, a moment at most.
    pub(crate) async fn close(&self) {
        self.port_mapping.close().await;
    }
}

#[cfg(test)]
mod tests;
