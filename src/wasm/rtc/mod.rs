//! The [`Backend`](crate::webrtc::backend::Backend) over the browser's `RTCPeerConnection`.

mod channel;
mod connection;
mod description;
mod spare;
mod stats;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use js_sys::Array;
use libp2p::PeerId;
use tokio::sync::watch;
use wasm_bindgen::JsValue;
use web_sys::{RtcConfiguration, RtcIceServer, RtcPeerConnection};

pub(crate) use self::connection::PeerConnection;
use self::spare::Spare;
use super::{platform, value};
use crate::{
    Config, Error, ErrorKind,
    report::NatReport,
    webrtc::{
        self, IceServer,
        backend::{Backend, BackendError, SpareTurn},
    },
};

/// Makes peer connections with one configuration.
#[derive(Debug, Clone, Default)]
pub struct Rtc(Arc<Mutex<Servers>>);

#[derive(Debug, Default)]
struct Servers {
    /// Those of the configuration.
    configured: Vec<IceServer>,
    /// Those of relays, by the relay and whether they are TURN servers.
    named: Vec<(PeerId, bool, IceServer)>,
    /// The peers with which TURN is left out, because there is a path over TURN already.
    spared: Vec<(PeerId, SpareTurn)>,
    /// How often the STUN servers have changed.
    version: u64,
    /// What the next connection is, without TURN.
    spare: Option<Spare>,
    /// Whether the browser can make none.
    unable: bool,
    /// How often a spare connection was asked for.
    prepared: u64,
}

/// How a peer connection was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// With STUN servers only, which the browser has asked already.
    Gathered,
    /// With STUN servers only, or without any.
    WithoutTurn,
    /// With all servers.
    WithTurn,
}

impl Rtc {
    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new peer connection, without STUN and TURN.
    pub(crate) fn open(&self) -> Result<PeerConnection, BackendError> {
        let connection = make(&RtcConfiguration::new())?;
        Ok(PeerConnection::new(
            connection,
            self.clone(),
            Made::WithoutTurn,
            None,
        ))
    }

    /// Makes the browser ask the STUN servers now for the next connection.
    ///
    /// A page is told its addresses only after that. So without this, each connection waits for a
    /// round trip to a STUN server before the peer can check a pair.
    pub(crate) fn prepare(&self) {
        spare::prepare(self, Duration::ZERO);
    }

    fn has_turn(&self) -> bool {
        self.servers().chosen(true).any(is_turn)
    }

    /// Returns the configuration with the STUN servers, and with `turn` the TURN servers too.
    fn configuration(&self, turn: bool) -> RtcConfiguration {
        configuration(self.servers().chosen(turn))
    }

    /// Sets whether new connections with `peer` leave TURN out.
    pub(crate) fn spare_turn(&self, peer: PeerId, spare: Option<SpareTurn>) {
        let spared = &mut self.servers().spared;
        spared.retain(|(other, _)| *other != peer);
        spared.extend(spare.map(|spare| (peer, spare)));
    }

    /// Uses a TURN server to which `relay` gives access, in the place of the one before.
    pub(crate) fn use_turn(&self, relay: PeerId, server: IceServer) {
        self.replace(relay, true, server);
    }

    /// Uses the servers of `relay` no longer.
    pub(crate) fn forget_servers(&self, relay: &PeerId) {
        let mut servers = self.servers();
        servers.named.retain(|(known, ..)| known != relay);
        servers.version += 1;
    }

    /// Uses STUN servers that `relay` has named, in the place of those before.
    pub(crate) fn use_stun(&self, relay: PeerId, urls: Vec<String>) {
        let server = IceServer {
            urls,
            ..IceServer::default()
        };
        self.replace(relay, false, server);
    }

    fn replace(&self, relay: PeerId, turn: bool, server: IceServer) {
        let mut servers = self.servers();
        let named = &mut servers.named;
        named.retain(|(known, is_turn, _)| (*known, *is_turn) != (relay, turn));
        // Browsers refuse a server without an address, and all others with it.
        if !server.urls.is_empty() {
            named.push((relay, turn, server));
        }
        servers.version += u64::from(!turn);
    }

    /// Does nothing, because a page has no socket to send from.
    pub(crate) fn open_nat(&self, _: &[SocketAddr]) {}

    /// Makes the browser ask the STUN servers anew, if it has asked them for the next connection.
    pub(crate) fn doubt_mapping(&self) {
        if self.servers().spare.take().is_some() {
            self.prepare();
        }
    }

    /// Never fails. Without WebRTC, each connection fails on its own, so relays still work.
    pub(crate) fn new(config: &webrtc::Config) -> Result<Self, BackendError> {
        Ok(Self(Arc::new(Mutex::new(Servers {
            configured: config.ice_servers.clone(),
            ..Servers::default()
        }))))
    }

    /// Always `None`, because a browser tells nothing about the NAT.
    pub(crate) fn nat(&self) -> Option<watch::Receiver<NatReport>> {
        None
    }

    /// Ends what was made for connections to come.
    pub(crate) async fn close(&self) {
        let mut servers = self.servers();
        servers.prepared += 1;
        servers.spare = None;
    }
}

impl Backend for Rtc {
    type Connection = PeerConnection;

    /// Leaves TURN out if that is wanted with `peer`.
    fn connect(&self, peer: PeerId) -> Result<PeerConnection, BackendError> {
        let (spared, spare) = {
            let mut servers = self.servers();
            let spare = servers.spare.take();
            let spare = spare.filter(|spare| spare.version == servers.version);
            let spared = servers.spared.iter().find(|(other, _)| *other == peer);
            (spared.map(|(_, how)| *how), spare)
        };
        spare::prepare(self, spare::PAUSE);
        let (connection, how) = match spare {
            Some(spare) => (spare.take(), Made::Gathered),
            None if spared.is_some() || !self.has_turn() => {
                (make(&self.configuration(false))?, Made::WithoutTurn)
            }
            None => (make(&self.configuration(true))?, Made::WithTurn),
        };
        Ok(PeerConnection::new(connection, self.clone(), how, spared))
    }
}

/// Checks that the browser makes connections with the servers of `config`.
///
/// # Errors
/// Fails with [`ErrorKind::UnsupportedPlatform`] if there is no WebRTC, and with
/// [`ErrorKind::InvalidConfig`] when the browser refuses a server. The message has the browser's
/// words.
pub(crate) fn check(config: &Config) -> Result<(), Error> {
    if value::get(&js_sys::global(), "RTCPeerConnection").is_none() {
        return Err(platform::without_webrtc());
    }
    let stun = config.stun.iter().map(|url| IceServer {
        urls: vec![url.clone()],
        ..IceServer::default()
    });
    let turn = config.turn.iter().map(|server| IceServer {
        urls: vec![server.url.clone()],
        username: Some(server.username.clone()),
        credential: Some(server.credential.clone()),
    });
    let servers: Vec<_> = stun.chain(turn).collect();
    match RtcPeerConnection::new_with_configuration(&configuration(servers.iter())) {
        Ok(connection) => {
            connection.close();
            Ok(())
        }
        Err(error) => {
            let message = format!("stun, turn: {}", value::describe_error(&error));
            Err(Error::new(ErrorKind::InvalidConfig, message))
        }
    }
}

fn make(configuration: &RtcConfiguration) -> Result<RtcPeerConnection, BackendError> {
    RtcPeerConnection::new_with_configuration(configuration)
        .map_err(|error| BackendError::Unavailable(value::describe_error(&error)))
}

impl Servers {
    fn chosen(&self, turn: bool) -> impl Iterator<Item = &IceServer> {
        let named = self.named.iter().map(|(_, _, server)| server);
        let all = self.configured.iter().chain(named);
        all.filter(move |server| turn || !is_turn(server))
    }
}

/// Only TURN servers have users.
fn is_turn(server: &IceServer) -> bool {
    server.username.is_some()
}

fn configuration<'a>(servers: impl Iterator<Item = &'a IceServer>) -> RtcConfiguration {
    let entries = Array::new();
    for server in servers {
        let entry = RtcIceServer::new();
        let urls = server.urls.iter().map(|url| JsValue::from_str(url));
        entry.set_urls(&urls.collect::<Array>());
        if let Some(username) = &server.username {
            entry.set_username(username);
        }
        if let Some(credential) = &server.credential {
            entry.set_credential(credential);
        }
        entries.push(&entry);
    }
    let configuration = RtcConfiguration::new();
    configuration.set_ice_servers(&entries);
    configuration
}
