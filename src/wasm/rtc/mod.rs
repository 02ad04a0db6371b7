//! The [`Backend`](crate::webrtc::backend::Backend) over the browser's `RTCPeerConnection`.

mod channel;
mod connection;
mod stats;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use js_sys::Array;
use libp2p::PeerId;
use tokio::sync::watch;
use wasm_bindgen::JsValue;
use web_sys::{RtcConfiguration, RtcIceServer, RtcPeerConnection};

pub(crate) use self::connection::PeerConnection;
use super::{platform, value};
use crate::{
    Config, Error, ErrorKind, TurnServer,
    report::NatReport,
    webrtc::{
        self, IceServer,
        backend::{Backend, BackendError},
    },
};

/// Makes peer connections with one configuration.
#[derive(Debug, Clone, Default)]
pub struct Rtc {
    servers: Vec<IceServer>,
    /// The TURN servers that relays have given us access to.
    given: Arc<Mutex<Vec<(PeerId, TurnServer)>>>,
}

impl Rtc {
    /// Makes a new peer connection, to any peer.
    pub(crate) fn open(&self) -> Result<PeerConnection, BackendError> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = self.servers.iter().cloned();
        let servers: Vec<_> = servers
            .chain(given.iter().map(|(_, server)| turn(server)))
            .collect();
        RtcPeerConnection::new_with_configuration(&configuration(&servers))
            .map(PeerConnection::new)
            .map_err(|error| BackendError::Unavailable(value::describe_error(&error)))
    }

    /// Uses `servers` from now on, to which `relay` gives access, in the place of those before.
    pub(crate) fn use_turn(&self, relay: PeerId, servers: Vec<TurnServer>) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(from, _)| *from != relay);
        given.extend(servers.into_iter().map(|server| (relay, server)));
    }

    /// Does nothing, because a page has no socket to send from.
    pub(crate) fn open_nat(&self, _: &[SocketAddr]) {}

    /// Does nothing, because the browser asks STUN servers for each connection anew.
    pub(crate) fn doubt_mapping(&self) {}

    /// Never fails. Without WebRTC, each connection fails on its own, so relays still work.
    pub(crate) fn new(config: &webrtc::Config) -> Result<Self, BackendError> {
        Ok(Self {
            servers: config.ice_servers.clone(),
            given: Arc::default(),
        })
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

    fn connect(&self, _: PeerId) -> Result<PeerConnection, BackendError> {
        self.open()
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
    let servers: Vec<_> = stun.chain(config.turn.iter().map(turn)).collect();
    match RtcPeerConnection::new_with_configuration(&configuration(&servers)) {
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

fn turn(server: &TurnServer) -> IceServer {
    IceServer {
        urls: vec![server.url.clone()],
        username: Some(server.username.clone()),
        credential: Some(server.credential.clone()),
    }
}

fn configuration(servers: &[IceServer]) -> RtcConfiguration {
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
