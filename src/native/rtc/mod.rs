//! The native [`Backend`](backend::Backend): ICE and DTLS of `str0m`, and SCTP underneath them, on
//! the shared UDP sockets.

mod agent;
mod association;
mod burst;
mod connection;
pub(crate) mod dcep;
mod identity;
mod session;

use std::{fmt, net::SocketAddr, sync::Arc, time::Instant};

use libp2p::PeerId;
use tokio::sync::watch;

use self::{connection::Handshake, identity::Identity, session::Session};
use super::{
    gather::{Gatherer, Settings},
    quic::{Link, Quic, Route},
    socket::{Addresses, Sockets, any_source},
    stun,
};
use crate::{
    report::NatReport,
    rtc::{
        Config, Effort,
        backend::{self, BackendError},
    },
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
    birthday: Option<Effort>,
    /// Where peers of our own kind are spoken to in QUIC.
    quic: Option<Quic>,
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
        Self::over(config, bind(Addresses::default())?, None)
    }

    /// Over `sockets`, and with QUIC where that is given and the peer speaks it.
    ///
    /// # Errors
    /// [`BackendError::Io`] when a server's URL is not one.
    pub(crate) fn over(
        config: &Config,
        sockets: Sockets,
        quic: Option<Quic>,
    ) -> Result<Self, BackendError> {
        let urls = config.ice_servers.iter().flat_map(|server| &server.urls);
        let stun = urls.filter(|url| !url.starts_with("turn"));
        let stun = stun.map(|url| parse_stun(url)).collect::<Result<_, _>>()?;
        let settings = Settings {
            stun,
            stun_timeout: config.stun_timeout,
            port_mapping: config.port_mapping.then_some(config.port_mapping_timeout),
        };
        Ok(Self(Arc::new(Inner {
            gatherer: Gatherer::start(&sockets, settings),
            sockets,
            identity: Arc::new(Identity::generate()?),
            birthday: config.birthday,
            quic,
        })))
    }
}

impl Backend {
    /// What is known of the NAT, now and as it changes.
    pub(crate) fn nat(&self) -> Option<watch::Receiver<NatReport>> {
        Some(self.0.gatherer.nat())
    }

    /// Opens our NAT for what comes from `addresses`, before anybody there has heard of us.
    pub(crate) fn open_nat(&self, addresses: &[SocketAddr]) {
        let indication = stun::message::indication();
        for address in addresses {
            // An address that cannot be reached needs no opening.
            let source = any_source(*address);
            let _ = self
                .0
                .sockets
                .try_send(source, *address, &indication, indication.len());
        }
    }

    /// Takes back what was asked of the router; takes half a second at most.
    pub(crate) async fn close(&self) {
        self.0.gatherer.close().await;
    }
}

/// Binds the shared sockets.
///
/// # Errors
/// [`BackendError::Unavailable`] outside a Tokio runtime, [`BackendError::Io`] when an address
/// cannot be bound.
pub(crate) fn bind(addresses: Addresses) -> Result<Sockets, BackendError> {
    if tokio::runtime::Handle::try_current().is_err() {
        let why = "no Tokio runtime here".to_owned();
        return Err(BackendError::Unavailable(why));
    }
    Sockets::bind(addresses).map_err(|error| BackendError::Io(error.to_string()))
}

impl backend::Backend for Backend {
    type Connection = PeerConnection;

    fn connect(&self, peer: PeerId) -> Result<PeerConnection, BackendError> {
        self.0.gatherer.attempt_begins();
        let sockets = self.0.sockets.clone();
        let handshake = self.0.quic.clone().map(|quic| Handshake {
            link: Link::new(sockets.clone(), Route::Pair(None)),
            quic,
            peer,
        });
        let link = handshake.as_ref().map(|quic| quic.link.clone());
        let mut session = Session::new(self.0.identity.clone(), link, Instant::now());
        session.may_guess(self.0.birthday);
        let network = (self.0.gatherer.watch(), self.0.gatherer.nat());
        Ok(PeerConnection::start(session, sockets, network, handshake))
    }
}

/// `host:port` of a `stun:` URL (RFC 7064).
pub(crate) fn parse_stun(url: &str) -> Result<String, BackendError> {
    let invalid = || BackendError::Io(format!("not a STUN server: {url}"));
    if url.starts_with("stuns:") {
        let why = "STUN over TLS finds no address that a peer can send to";
        return Err(BackendError::Io(format!("{url}: {why}")));
    }
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
        for url in [
            "turn:a", "stuns:a", "stun:", "stun:a:b", "stun:::1", "stun:a:0",
        ] {
            assert!(parse_stun(url).is_err(), "{url}");
        }
    }
}
