//! The [`Backend`](crate::webrtc::backend::Backend) over the browser's `RTCPeerConnection`.

mod channel;
mod connection;
mod stats;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use js_sys::Array;
use libp2p::PeerId;
use tokio::sync::watch;
use wasm_bindgen::JsValue;
use web_sys::{RtcConfiguration, RtcIceServer, RtcPeerConnection};

pub(crate) use self::connection::PeerConnection;
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
    spared: Vec<PeerId>,
}

impl Rtc {
    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new peer connection, which leaves TURN out if there is a path over TURN to `peer`.
    pub(crate) fn open(&self, peer: Option<&PeerId>) -> Result<PeerConnection, BackendError> {
        let servers = self.servers();
        let spared = peer.is_some_and(|peer| servers.spared.contains(peer));
        let without_turn = servers.configuration(false);
        let all = servers.configuration(true);
        let chosen = if spared { &without_turn } else { &all };
        RtcPeerConnection::new_with_configuration(chosen)
            .map(|connection| PeerConnection::new(connection, without_turn, spared))
            .map_err(|error| BackendError::Unavailable(value::describe_error(&error)))
    }

    /// Sets whether new connections with `peer` leave TURN out.
    pub(crate) fn spare_turn(&self, peer: PeerId, spare: Option<SpareTurn>) {
        let spared = &mut self.servers().spared;
        spared.retain(|other| *other != peer);
        spared.extend(spare.map(|_| peer));
    }

    /// Uses a TURN server to which `relay` gives access, in the place of the one before.
    pub(crate) fn use_turn(&self, relay: PeerId, server: IceServer) {
        self.replace(relay, true, server);
    }

    /// Uses the servers of `relay` no longer.
    pub(crate) fn forget_servers(&self, relay: &PeerId) {
        self.servers().named.retain(|(known, ..)| known != relay);
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
        let named = &mut self.servers().named;
        named.retain(|(known, is_turn, _)| (*known, *is_turn) != (relay, turn));
        // Browsers refuse a server without an address, and all others with it.
        if !server.urls.is_empty() {
            named.push((relay, turn, server));
        }
    }

    /// Does nothing, because a page has no socket to send from.
    pub(crate) fn open_nat(&self, _: &[SocketAddr]) {}

    /// Does nothing, because the browser asks STUN servers for each connection anew.
    pub(crate) fn doubt_mapping(&self) {}

    /// Never fails. Without WebRTC, each connection fails on its own, so relays still work.
    pub(crate) fn new(config: &webrtc::Config) -> Result<Self, BackendError> {
        Ok(Self(Arc::new(Mutex::new(Servers {
            configured: config.ice_servers.clone(),
            named: Vec::new(),
            spared: Vec::new(),
        }))))
    }

    /// Always `None`, because a browser tells nothing about the NAT.
    pub(crate) fn nat(&self) -> Option<watch::Receiver<NatReport>> {
        None
    }

    /// Does nothing, because a page has asked nothing of the router.
    pub(crate) async fn close(&self) {}
}

impl Backend for Rtc {
    type Connection = PeerConnection;

    fn connect(&self, peer: PeerId) -> Result<PeerConnection, BackendError> {
        self.open(Some(&peer))
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

impl Servers {
    fn configuration(&self, with_turn: bool) -> RtcConfiguration {
        let named = self.named.iter().map(|(_, _, server)| server);
        let all = self.configured.iter().chain(named);
        // Only TURN servers have users.
        configuration(all.filter(|server| with_turn || server.username.is_none()))
    }
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
