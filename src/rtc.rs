//! libp2p `/webrtc` (private to private) for any rust-libp2p program, native or in a web page.
//!
//! Two peers that can only reach each other through a circuit relay exchange session descriptions
//! over that circuit. Then they talk directly, over the candidate pair that ICE finds, by DTLS and
//! SCTP data channels with one channel per libp2p stream. The wire format is that of js-libp2p's
//! `@libp2p/webrtc`, in both roles.
//!
//! [`new`] returns a transport and a behaviour that belong together, like
//! `libp2p::relay::client::new`. Put the transport before the relay client's transport, so that the
//! relay client does not take `/p2p-circuit/webrtc` addresses:
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
//! After that, `swarm.listen_on("/webrtc".parse()?)` offers `<circuit>/webrtc` for every circuit on
//! which the node has a reservation. `swarm.dial("<relay>/p2p/R/p2p-circuit/webrtc/p2p/B")`
//! connects to a peer that does so. `examples/libp2p_webrtc.rs` is a complete program.
//!
//! # Security
//! The signalling connection authenticates the peer (by noise, over the circuit). The peer's
//! description carries the fingerprint that its DTLS certificate must have. A relay can see the
//! descriptions only if it breaks noise.

use libp2p::PeerId;

pub use crate::webrtc::{
    BackendError, Behaviour, CandidateKind, CandidatePair, Config, DEFAULT_MAX_INBOUND,
    DEFAULT_PORT_MAPPING_TIMEOUT, DEFAULT_STUN_TIMEOUT, DEFAULT_TIMEOUT, DEFAULT_TURN_DELAY,
    Effort, Endpoint, Error, Event, FIN_ACK_TIMEOUT, IceServer, MAX_MESSAGE_LEN, Muxer, Phase,
    SdpError, SignallingError, Stream,
};

/// The transport for this platform. [`new`] makes it.
pub type Transport = crate::webrtc::Transport<crate::backend::Rtc>;

/// Makes a transport and the behaviour that belongs to it.
///
/// # Errors
/// [`BackendError::Unavailable`] if the platform has no WebRTC, and [`BackendError::Io`] if no UDP
/// socket can be bound.
pub fn new(local_peer: PeerId, config: Config) -> Result<(Transport, Behaviour), BackendError> {
    let backend = crate::backend::Rtc::new(&config)?;
    Ok(crate::webrtc::with_backend(local_peer, config, backend))
}
