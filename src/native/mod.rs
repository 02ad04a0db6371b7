//! The native backend: sockets, transports, and the behaviours that only native peers have.
//!
//! - `udp`: the shared sockets, and the routes of their datagrams.
//! - `quic`, `ice`: the protocols over these sockets.
//! - `transports`: the chain of libp2p transports, with `websocket` and the guard of dials.
//! - `behaviours`: protocols of libp2p that a page does not have, and limits.
//! - `signals`: what the system tells of this machine's network.
//! - `environment`, `interfaces`: files and interfaces, which are read again when they change.
//! - `nat64`: how IPv4 addresses are reached in a network that has only IPv6.
//! - `roots`: the certificate authorities that TLS trusts.
//! - `lan`, `multicast`: peers on the local network, and the sockets of multicast DNS.
//! - `site`: asking relays what they say of themselves.
//! - `runtime`, `trace`: tasks, and the spans that they carry in the log.

pub(crate) mod behaviours;
pub(crate) mod environment;
pub(crate) mod ice;
pub(crate) mod identity;
#[cfg(feature = "server")]
pub(crate) mod inherited;
pub(crate) mod interfaces;
mod lan;
mod multicast;
pub(crate) mod nat64;
pub(crate) mod quic;
pub(crate) mod roots;
pub(crate) mod runtime;
pub(crate) mod secret;
mod signals;
mod site;
pub(crate) mod trace;
pub(crate) mod transports;
pub(crate) mod udp;

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use libp2p::{PeerId, identity::Keypair};
use tokio::{sync::mpsc, task::AbortHandle};

pub(crate) use self::signals::Signals;
use self::{
    ice::webrtc,
    lan::Lan,
    nat64::Nat64,
    quic::Quic,
    roots::Roots,
    site::Asker,
    transports::{guard::Guard, names::Names},
    udp::Addresses,
};
use crate::{
    Config, Error, ErrorKind,
    config::server_url,
    core::{
        dial::Policy,
        plan::Late,
        server_url::{ServerTransport, Service},
    },
    webrtc::{BackendError, Config as RtcConfig},
};

/// How many reports wait for the loop. It takes them at once, and one that is lost only ends with its attempt.
const REPORTS: usize = 256;

/// Whether this peer is in a page.
pub(crate) const IS_PAGE: bool = false;

/// The backend that makes WebRTC connections on this target.
pub(crate) type Rtc = webrtc::Backend;

/// The parts that the transports of one peer share: the UDP sockets and the protocols over them.
pub(crate) struct Net {
    pub(crate) rtc: Rtc,
    /// What strategies report that join ICE by themselves.
    late: mpsc::Receiver<(PeerId, Late)>,
    pub(crate) quic: Quic,
    pub(crate) guard: Guard,
    pub(crate) names: Names,
    /// Whom TLS to relays trusts.
    pub(crate) roots: Roots,
    pub(crate) sites: Asker,
    pub(crate) lan: Lan,
    nat64: Nat64,
    /// Keeps `nat64` current.
    keeper: AbortHandle,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Net {
    /// Returns the next report of a strategy that joins ICE by itself, and the peer that it is about.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<(PeerId, Late)> {
        match ready!(self.late.poll_recv(cx)) {
            Some(report) => Poll::Ready(report),
            None => Poll::Pending,
        }
    }

    /// Returns the next report if there is one already.
    pub(crate) fn take_late(&mut self) -> Option<(PeerId, Late)> {
        self.late.try_recv().ok()
    }

    /// Binds the sockets. Only addresses that `policy` allows are dialled.
    ///
    /// # Errors
    /// Fails with [`BackendError::Unavailable`] outside a Tokio runtime, and with
    /// [`BackendError::Io`] when an address is taken.
    pub(crate) fn open(
        config: &Config,
        rtc_config: &RtcConfig,
        keypair: &Keypair,
        policy: &Policy,
    ) -> Result<Self, BackendError> {
        let addresses = addresses(config).map_err(|error| BackendError::Io(error.to_string()))?;
        let sockets = webrtc::bind(addresses)?;
        let quic = Quic::new(keypair, sockets.clone())
            .map_err(|error| BackendError::Io(error.to_string()))?;
        let names = Names::of_system();
        let roots = Roots::load(config.relay_ca.as_deref())
            .map_err(|error| BackendError::Io(error.to_string()))?;
        let (told, late) = mpsc::channel(REPORTS);
        let nat64 = sockets.nat64().clone();
        let keeper = runtime::task(nat64.clone().keep(names.clone())).abort_handle();
        Ok(Self {
            rtc: Rtc::over(rtc_config, sockets, Some(quic.clone()), Some(told))?,
            late,
            quic,
            guard: Guard::new(policy.clone()).through(nat64.clone()),
            sites: Asker {
                names: names.clone(),
                roots: roots.clone(),
                policy: Arc::new(policy.clone()),
                nat64: nat64.clone(),
            },
            names,
            roots,
            // A peer that stays on the relay gives its addresses to nobody.
            lan: match config.lan_discovery && config.direct {
                true => Lan::new(keypair.public().to_peer_id()),
                false => Lan::off(),
            },
            nat64,
            keeper,
        })
    }

    /// Tells that this machine may be in another network.
    pub(crate) fn network_changed(&self) {
        self.names.renew();
        self.nat64.doubt();
    }
}

/// The addresses of the sockets: the QUIC addresses that the configuration names.
fn addresses(config: &Config) -> Result<Addresses, Error> {
    let mut addresses = Addresses::default();
    let (mut v4, mut v6) = (None, None);
    for listen in config.listen_addrs()? {
        let Some((address, _)) = quic::socket_addr(&listen) else {
            continue;
        };
        let again = match address {
            SocketAddr::V4(address) => {
                addresses.v4 = address;
                v4.replace(address).is_some()
            }
            SocketAddr::V6(address) => {
                addresses.v6 = address;
                v6.replace(address).is_some()
            }
        };
        if again {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "listen: QUIC has one socket for each family; name at most one address of each",
            ));
        }
    }
    Ok(addresses)
}

/// Checks that this target can use the servers in `config`.
///
/// # Errors
/// Fails with [`ErrorKind::InvalidConfig`]. The error names the server or the file that cannot be
/// used.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    addresses(config)?;
    for url in &config.stun {
        server_url("stun", url, |service| service == Service::Stun)?;
    }
    for server in &config.turn {
        server_url(
            "turn",
            &server.url,
            |service| matches!(service, Service::Turn(transport) if transport != ServerTransport::Dtls),
        )?;
    }
    let files = [("relay_ca", &config.relay_ca), ("turn_ca", &config.turn_ca)];
    for (name, file) in files {
        Roots::load(file.as_deref()).map_err(|error| {
            Error::new(ErrorKind::InvalidConfig, format!("{name}: {error}")).with_source(error)
        })?;
    }
    Ok(())
}
