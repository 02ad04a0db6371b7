//! libp2p's `/webrtc` as a transport and a behaviour. The [`backend`] of a target makes the peer
//! connections. The documentation of the public module `rtc` describes the use.

pub(crate) mod address;
mod answers;
mod attempt;
pub(crate) mod backend;
mod behaviour;
mod dials;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "a server's, or a page's")
)]
pub(crate) mod direct;
mod error;
mod handler;
mod lane;
mod muxer;
mod negotiation;
mod stream;
mod transport;

use std::{fmt, path::PathBuf, time::Duration};

use futures::channel::mpsc;
use libp2p::PeerId;

#[cfg_attr(
    not(feature = "server"),
    allow(unused_imports, reason = "a server's, or a page's")
)]
pub(crate) use self::stream::FinAck;
pub(crate) use self::transport::Transport;
pub use self::{
    backend::{BackendError, CandidatePair, Endpoint},
    behaviour::{Behaviour, Event},
    error::{Error, Phase},
    muxer::Muxer,
    stream::Stream,
};
pub use crate::core::{
    birthday::Effort,
    candidate::CandidateKind,
    sdp::SdpError,
    signalling::{MAX_MESSAGE_LEN, SignallingError},
};

/// How long a closed stream waits for the peer's FIN_ACK before its channel is closed without it.
/// js-libp2p has the same value.
pub const FIN_ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of [`Config::timeout`], which equals the default time for one strategy of a
/// connector. js-libp2p gives up dialling an address after 6 s, so an answerer never needs more.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of [`Config::stun_timeout`]. Nothing waits for the answer, and an address that is
/// learned late is offered late.
pub const DEFAULT_STUN_TIMEOUT: Duration = Duration::from_secs(5);

/// The default of [`Config::port_mapping_timeout`]. Nothing waits for this answer either.
pub const DEFAULT_PORT_MAPPING_TIMEOUT: Duration = Duration::from_secs(5);

/// The default of [`Config::turn_delay`]. By then, checks that can succeed have succeeded.
pub const DEFAULT_TURN_DELAY: Duration = crate::core::delays::TURN_START;

/// The default of [`Config::max_inbound`]. Each answer costs sockets, timers and a DTLS handshake,
/// and a peer that floods must not leave the others without.
pub const DEFAULT_MAX_INBOUND: usize = 32;

/// How many data channels are used for streams at a time. Chromium has 1,024 ids, of which half belong
/// to each end. Of these, some are for the streams of libp2p's and this library's protocols, and some
/// wait for the end of their last channel.
pub(crate) const MOST_CHANNELS: usize = 480;

/// How many messages may wait between a transport and its behaviour.
const QUEUE: usize = 32;

/// How `/webrtc` connections are made.
///
/// ```
/// use throughline::rtc::{Config, IceServer};
///
/// let mut config = Config::default();
/// config.ice_servers.push(IceServer {
///     urls: vec!["stun:stun.example".into()],
///     ..IceServer::default()
/// });
/// config.max_inbound = 8;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The STUN and TURN servers. Default: none. Without servers, peers on one network can connect,
    /// and a peer behind a NAT can connect if the other side is reachable.
    pub ice_servers: Vec<IceServer>,
    /// The time for one dial or one answer, from the first step of signalling until ICE and DTLS
    /// are up. Default: [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// How long a STUN server has to answer, if this library asks it (not in a browser). Default:
    /// [`DEFAULT_STUN_TIMEOUT`].
    pub stun_timeout: Duration,
    /// Whether to ask the router to forward a port to this node, by PCP, NAT-PMP or UPnP-IGD (not
    /// in a browser). Default: `true`.
    pub port_mapping: bool,
    /// How long the router has to answer this. Default: [`DEFAULT_PORT_MAPPING_TIMEOUT`].
    pub port_mapping_timeout: Duration,
    /// Whether to ask the local network, by multicast DNS, for the addresses that browsers hide
    /// behind `<uuid>.local` names. Native only. Default: `true`.
    pub mdns: bool,
    /// How much effort may go into guessing the port of a NAT that uses another port for each
    /// destination. `None` guesses no ports. Native only. Default: [`Effort::default`].
    pub birthday: Option<Effort>,
    /// Whether candidates in private networks and on this machine are checked, if this library
    /// checks candidates (not in a browser). Link-local, multicast, reserved and metadata addresses
    /// are never checked. Default: `true`.
    pub dial_private: bool,
    /// How long the other candidates have, from the peer's description on, before TURN servers are asked
    /// for relayed addresses. A server is not asked if the peers are connected by then, and not while
    /// ports are guessed. A browser asks all servers at once. Default: [`DEFAULT_TURN_DELAY`].
    pub turn_delay: Duration,
    /// A PEM file of certificate authorities to trust for `turns:` in addition to the public ones,
    /// if this library connects to the server (not in a browser). Default: none.
    pub turn_ca: Option<PathBuf>,
    /// How many offers are answered at the same time. When so many are, a further offer takes the
    /// place of the oldest one, unless that is younger than two seconds. Default:
    /// [`DEFAULT_MAX_INBOUND`].
    pub max_inbound: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ice_servers: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            stun_timeout: DEFAULT_STUN_TIMEOUT,
            port_mapping: true,
            port_mapping_timeout: DEFAULT_PORT_MAPPING_TIMEOUT,
            mdns: true,
            birthday: Some(Effort::default()),
            dial_private: true,
            turn_delay: DEFAULT_TURN_DELAY,
            turn_ca: None,
            max_inbound: DEFAULT_MAX_INBOUND,
        }
    }
}

/// A STUN or TURN server, as `RTCIceServer` has it.
///
/// ```
/// use throughline::rtc::IceServer;
///
/// let turn = IceServer {
///     urls: vec!["turn:turn.example?transport=udp".into()],
///     username: Some("alice".into()),
///     credential: Some("secret".into()),
/// };
/// assert!(!format!("{turn:?}").contains("secret"));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct IceServer {
    /// `stun:host[:port]`, `turn:host[:port][?transport=udp|tcp]` or `turns:...`.
    pub urls: Vec<String>,
    /// The user name, for TURN.
    pub username: Option<String>,
    /// The password, for TURN. `Debug` never prints it.
    pub credential: Option<String>,
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServer")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// Makes a transport over `backend`, and the behaviour that goes with it.
pub(crate) fn with_backend<B: backend::Backend>(
    local_peer: PeerId,
    config: Config,
    backend: B,
) -> (Transport<B>, Behaviour) {
    let (request, requests) = mpsc::channel(QUEUE);
    let (path, paths) = mpsc::channel(QUEUE);
    let (notice, notices) = mpsc::channel(QUEUE);
    let transport = Transport::new(local_peer, config, backend, request, path, notices);
    (transport, Behaviour::new(requests, paths, notice))
}
