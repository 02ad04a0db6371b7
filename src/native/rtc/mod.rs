//! The native [`Backend`](backend::Backend): ICE and DTLS of `str0m`, and SCTP underneath them, on
//! the shared UDP sockets.

mod agent;
mod association;
mod connection;
mod dcep;
mod identity;
mod session;

use std::{fmt, sync::Arc, time::Instant};

use self::{identity::Identity, session::Session};
use super::{
    gather::Gatherer,
    socket::Sockets,
    turn::{Roots, Server},
};
use crate::{
    core::server_url::{ServerUrl, Service, Transport},
    rtc::{
        Config,
        backend::{self, BackendError},
    },
};

use self::connection::PeerConnection;

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
        let io = |error: std::io::Error| BackendError::Io(error.to_string());
        let (stun, turn) = servers(config)?;
        let roots = Roots::load(config.turn_ca.as_deref()).map_err(io)?;
        let sockets = Sockets::bind(0).map_err(io)?;
        let gatherer = Gatherer::start(sockets.clone(), stun, config.stun_timeout, (turn, &roots));
        Ok(Self(Arc::new(Inner {
            gatherer,
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
            self.0.gatherer.relays(),
        ))
    }
}

/// The servers of `config` that are of use here: STUN ones as `host:port`, and TURN ones.
fn servers(config: &Config) -> Result<(Vec<String>, Vec<Server>), BackendError> {
    let (mut stun, mut turn) = (Vec::new(), Vec::new());
    for server in &config.ice_servers {
        for text in &server.urls {
            let invalid = |why: &dyn fmt::Display| BackendError::Io(format!("{text}: {why}"));
            let url: ServerUrl = text.parse().map_err(|error| invalid(&error))?;
            match url.service {
                Service::Stun if url.host.contains(':') => {
                    stun.push(format!("[{}]:{}", url.host, url.port));
                }
                Service::Stun => stun.push(format!("{}:{}", url.host, url.port)),
                Service::Stuns | Service::Turn(Transport::Dtls) => {
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
