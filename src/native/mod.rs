//! The native backend.

mod autonat;
mod dcutr;
pub(crate) mod gather;
pub(crate) mod guard;
pub(crate) mod heap;
pub(crate) mod identity;
pub(crate) mod limits;
mod mdns;
pub(crate) mod message;
pub(crate) mod offer;
pub(crate) mod pool;
mod portmap;
pub(crate) mod quic;
pub(crate) mod rtc;
pub(crate) mod runtime;
pub(crate) mod secret;
pub(crate) mod socket;
pub(crate) mod stock;
pub(crate) mod stun;
pub(crate) mod transports;
pub(crate) mod turn;
pub(crate) mod websocket;

use std::net::SocketAddr;

use libp2p::identity::Keypair;

use self::{guard::Guard, quic::Quic, socket::Addresses};
use crate::{
    Config, Error, ErrorKind,
    config::server_url,
    core::{
        dial::Policy,
        server_url::{Service, Transport},
    },
    rtc::{BackendError, Config as RtcConfig},
};

/// What makes WebRTC connections on this target.
pub(crate) type Rtc = rtc::Backend;

/// What the transports of one peer share: the UDP sockets, and what speaks over them.
pub(crate) struct Net {
    pub(crate) rtc: Rtc,
    pub(crate) quic: Quic,
    pub(crate) guard: Guard,
}

impl Net {
    /// Binds the sockets. What becomes of guessing ports goes to `guesses`, and what is dialled is
    /// what `policy` allows.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] outside a Tokio runtime, [`BackendError::Io`] when an address
    /// is taken.
    pub(crate) fn open(
        config: &Config,
        rtc_config: &RtcConfig,
        keypair: &Keypair,
        guesses: rtc::Guesses,
        policy: &Policy,
    ) -> Result<Self, BackendError> {
        let addresses = addresses(config).map_err(|error| BackendError::Io(error.to_string()))?;
        let sockets = rtc::bind(addresses)?;
        let quic = Quic::new(keypair, sockets.clone())
            .map_err(|error| BackendError::Io(error.to_string()))?;
        Ok(Self {
            rtc: Rtc::over(rtc_config, sockets, Some(quic.clone()), Some(guesses))?,
            quic,
            guard: Guard::new(policy.clone()),
        })
    }
}

/// Where the sockets are bound: at the QUIC addresses that the configuration names.
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
                "listen: QUIC has one address of each family, because all UDP goes over one socket",
            ));
        }
    }
    Ok(addresses)
}

/// Checks that the servers in `config` are ones this target can use.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] naming the server that is not, or the file.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    addresses(config)?;
    for url in &config.stun {
        server_url("stun", url, |service| service == Service::Stun)?;
    }
    for server in &config.turn {
        server_url(
            "turn",
            &server.url,
            |service| matches!(service, Service::Turn(transport) if transport != Transport::Dtls),
        )?;
    }
    turn::Roots::load(config.turn_ca.as_deref()).map_err(|error| {
        Error::new(ErrorKind::InvalidConfig, format!("turn_ca: {error}")).with_source(error)
    })?;
    Ok(())
}
