//! The native backend.

pub(crate) mod gather;
pub(crate) mod identity;
mod portmap;
pub(crate) mod rtc;
pub(crate) mod runtime;
pub(crate) mod socket;
pub(crate) mod stun;
pub(crate) mod transports;

use crate::{Config, Error, ErrorKind};

/// What makes WebRTC connections on this target.
pub(crate) type Rtc = rtc::Backend;

/// Checks that the servers in `config` are ones this target can use.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] naming the server that is not.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    for url in &config.stun {
        rtc::parse_stun(url)
            .map_err(|error| Error::new(ErrorKind::InvalidConfig, error.to_string()))?;
    }
    Ok(())
}
