//! libp2p `/webrtc` (private to private) for any rust-libp2p program, native or in a web page.
//!
//! Two peers that can only reach each other through a circuit relay exchange session
//! descriptions over that circuit and then talk directly: DTLS and SCTP data channels over the
//! candidate pair that ICE finds, one channel per libp2p stream. The wire format is that of
//! js-libp2p's `@libp2p/webrtc`, in both roles.
//!
//! [`new`] gives a transport and a behaviour that belong together, as
//! `libp2p::relay::client::new` does. Put the transport before the relay client's, so that the
//! latter does not take `/p2p-circuit/webrtc` addresses for its own:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use libp2p::{Transport, core::muxing::StreamMuxerBox, identity, relay};
//! use throughline::rtc;
//!
//! let key = identity::Keypair::generate_ed25519();
//! let me = key.public().to_peer_id();
//! let (webrtc, webrtc_behaviour) = rtc::new(me, rtc::Config::default())?;
//! let (circuit, circuit_behaviour) = relay::client::new(me);
//! let transport = webrtc
//!     .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
//!     .boxed();
//! // .or_transport(circuit upgraded with noise and yamux), .or_transport(quic), ...
//! # let _ = (transport, webrtc_behaviour, circuit, circuit_behaviour);
//! # Ok(()) }
//! ```
//!
//! `swarm.listen_on("/webrtc".parse()?)` then offers `<circuit>/webrtc` for every circuit the
//! node has a reservation on, and `swarm.dial("<relay>/p2p/R/p2p-circuit/webrtc/p2p/B")` connects
//! to a peer that does. `examples/libp2p_webrtc.rs` is a whole program.
//!
//! # Security
//! The peer is the one that the signalling connection authenticated (noise, over the circuit);
//! its description carries the fingerprint that its DTLS certificate must have. A relay sees
//! descriptions only if it breaks noise.

pub(crate) mod address;
mod attempt;
pub(crate) mod backend;
mod behaviour;
mod dials;
mod error;
mod handler;
mod muxer;
mod negotiation;
mod stream;
mod transport;

use std::{fmt, path::PathBuf, time::Duration};

use futures::channel::mpsc;
use libp2p::PeerId;

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

/// How long a stream that was closed waits for the peer's FIN_ACK before its channel is closed
/// anyway; the value of js-libp2p.
pub const FIN_ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Default of [`Config::timeout`]: the value promised for one strategy. js-libp2p gives up
/// dialling an address after 6 s, so an answerer never needs more.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default of [`Config::stun_timeout`]. Nothing waits for it, and an address that is learned late is
/// offered late.
pub const DEFAULT_STUN_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`Config::port_mapping_timeout`]. Nothing waits for it either.
pub const DEFAULT_PORT_MAPPING_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`Config::max_inbound`]: each answer costs sockets, timers and a DTLS handshake,
/// and a peer that floods must not starve the rest.
pub const DEFAULT_MAX_INBOUND: usize = 32;

/// Messages between a transport and its behaviour that may wait.
const QUEUE: usize = 32;

/// How `/webrtc` connections are made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// STUN and TURN servers. Default: none, which connects peers on one network, and peers
    /// behind NATs if the other side is reachable.
    pub ice_servers: Vec<IceServer>,
    /// Time for one dial or one answer, from the first step of signalling until ICE and DTLS
    /// are up. Default: [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// Time a STUN server has to answer, where we ask it ourselves (not in a browser). Default:
    /// [`DEFAULT_STUN_TIMEOUT`].
    pub stun_timeout: Duration,
    /// Whether to ask the router to forward a port to us, by PCP, NAT-PMP or UPnP-IGD (not in a
    /// browser). Default: `true`.
    pub port_mapping: bool,
    /// Time the router has to answer that. Default: [`DEFAULT_PORT_MAPPING_TIMEOUT`].
    pub port_mapping_timeout: Duration,
    /// Whether to ask the local network, by multicast DNS, for the addresses that browsers hide
    /// behind `<uuid>.local` names. Native only. Default: `true`.
    pub mdns: bool,
    /// How much may be tried to guess the port of a NAT that gives each destination another one;
    /// `None` guesses none. Native only. Default: [`Effort::default`].
    pub birthday: Option<Effort>,
    /// Whether candidates in private networks and on this machine are checked, where we check them
    /// ourselves (not in a browser). Link-local, multicast, reserved and metadata addresses never
    /// are. Default: `true`.
    pub dial_private: bool,
    /// A PEM file of certificate authorities to trust for `turns:` besides the public ones, where
    /// we connect ourselves (not in a browser). Default: none.
    pub turn_ca: Option<PathBuf>,
    /// Offers answered at the same time; more are refused. Default: [`DEFAULT_MAX_INBOUND`].
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
            turn_ca: None,
            max_inbound: DEFAULT_MAX_INBOUND,
        }
    }
}

/// A STUN or TURN server, as `RTCIceServer` has it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct IceServer {
    /// `stun:host[:port]`, `turn:host[:port][?transport=udp|tcp]` or `turns:...`.
    pub urls: Vec<String>,
    /// For TURN.
    pub username: Option<String>,
    /// For TURN. Never printed by `Debug`.
    pub credential: Option<String>,
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServer")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// The transport for this platform: see [`new`].
pub type Transport = transport::Transport<crate::backend::Rtc>;

/// Makes a transport and the behaviour that goes with it.
///
/// # Errors
/// [`BackendError::Unavailable`] where the platform has no WebRTC, [`BackendError::Io`] when no
/// UDP socket can be bound.
pub fn new(local_peer: PeerId, config: Config) -> Result<(Transport, Behaviour), BackendError> {
    let backend = crate::backend::Rtc::new(&config)?;
    Ok(with_backend(local_peer, config, backend))
}

/// [`new`] over a backend that exists already, to share its sockets.
pub(crate) fn with_backend<B: backend::Backend>(
    local_peer: PeerId,
    config: Config,
    backend: B,
) -> (transport::Transport<B>, Behaviour) {
    let (request, requests) = mpsc::channel(QUEUE);
    let (path, paths) = mpsc::channel(QUEUE);
    let (notice, notices) = mpsc::channel(QUEUE);
    let transport = transport::Transport::new(local_peer, config, backend, request, path, notices);
    (transport, Behaviour::new(requests, paths, notice))
}
