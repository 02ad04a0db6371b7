//! The native backend.

pub(crate) mod gather;
pub(crate) mod identity;
pub(crate) mod rtc;
pub(crate) mod runtime;
pub(crate) mod socket;
pub(crate) mod transports;
pub(crate) mod turn;

use crate::{
    Config, Error, ErrorKind,
    config::server_url,
    core::server_url::{Service, Transport},
};

/// What makes WebRTC connections on this target.
pub(crate) type Rtc = rtc::Backend;

/// Checks that the servers in `config` are ones this target can use.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] naming the server that is not, or the file.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
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
