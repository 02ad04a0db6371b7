//! The native [`Backend`](backend::Backend): ICE and DTLS of `str0m`, and SCTP underneath them, on
//! the shared UDP sockets.

mod agent;
mod association;
mod connection;
pub(crate) mod dcep;
mod identity;
mod session;

use std::{fmt, sync::Arc, time::Instant};

use self::{identity::Identity, session::Session};
use super::{gather::Gatherer, socket::Sockets};
use crate::rtc::{
    Config,
    backend::{self, BackendError},
};

use self::connection::PeerConnection;

const STUN_PORT: u16 = 3478;

/// Makes peer connections on one pair of UDP sockets. Public as a parameter of a public type, and
/// nameable by nobody.
#[derive(Clone)]
pub struct Backend(Arc<Inner>);

struct Inner {
    sockets: Sockets,
    gatherer: Gatherer,
    identity: Arc<Identity>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backend").field(&self.0.sockets).finish()
    }
}

impl Backend {
    /// With sockets of its own, on UDP ports of the system's choice.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] outside a Tokio runtime, [`BackendError::Io`] when no socket
    /// can be bound or a server's URL is not one.
    pub(crate) fn new(config: &Config) -> Result<Self, BackendError> {
        if tokio::runtime::Handle::try_current().is_err() {
            let why = "no Tokio runtime here".to_owned();
            return Err(BackendError::Unavailable(why));
        }
        let urls = config.ice_servers.iter().flat_map(|server| &server.urls);
        let stun = urls.filter(|url| url.starts_with("stun:"));
        let stun = stun.map(|url| parse_stun(url)).collect::<Result<_, _>>()?;
        let sockets = Sockets::bind(0).map_err(|error| BackendError::Io(error.to_string()))?;
        Ok(Self(Arc::new(Inner {
            gatherer: Gatherer::start(sockets.clone(), stun, config.stun_timeout),
            sockets,
            identity: Arc::new(Identity::generate()?),
        })))
    }
}

impl backend::Backend for Backend {
    type Connection = PeerConnection;

    fn connect(&self) -> Result<PeerConnection, BackendError> {
        let session = Session::new(self.0.identity.clone(), Instant::now());
        let sockets = self.0.sockets.clone();
        Ok(PeerConnection::start(
            session,
            sockets,
            self.0.gatherer.watch(),
        ))
    }
}

/// `host:port` of a `stun:` URL (RFC 7064).
pub(crate) fn parse_stun(url: &str) -> Result<String, BackendError> {
    let invalid = || BackendError::Io(format!("not a STUN server: {url}"));
    let rest = url.strip_prefix("stun:").ok_or_else(invalid)?;
    let bare_v6 = rest.starts_with('[') && rest.ends_with(']');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !bare_v6 => (host, port.parse().map_err(|_| invalid())?),
        _ => (rest, STUN_PORT),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || port == 0 || (host.contains(':') && !bracketed) {
        return Err(invalid());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stun_urls() {
        let parse = |url| parse_stun(url).ok();
        assert_eq!(parse("stun:a.example").as_deref(), Some("a.example:3478"));
        assert_eq!(parse("stun:192.0.2.1:99").as_deref(), Some("192.0.2.1:99"));
        assert_eq!(parse("stun:[::1]").as_deref(), Some("[::1]:3478"));
        assert_eq!(parse("stun:[::1]:9").as_deref(), Some("[::1]:9"));
        for url in ["turn:a", "stun:", "stun:a:b", "stun:::1", "stun:a:0"] {
            assert!(parse_stun(url).is_err(), "{url}");
        }
    }
}
