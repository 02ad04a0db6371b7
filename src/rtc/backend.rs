//! The seam between `/webrtc` and what provides peer connections: str0m's parts on native
//! targets, `RTCPeerConnection` in a browser.
//!
//! Everything is polled and owned by one task at a time. `Send` is demanded because libp2p
//! demands it; a browser backend satisfies it with `SendWrapper`, being single-threaded.

use std::{
    error, fmt,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use libp2p::{PeerId, core::muxing::StreamMuxerBox};

use crate::core::{candidate::CandidateKind, signalling::IceCandidate};

/// Label of the channel an offerer opens so that its SDP has a data section. The offerer
/// closes it once connected; it never carries data.
pub(crate) const INIT_LABEL: &str = "init";

/// Makes peer connections. Cheap to clone: every clone shares configuration and sockets.
pub trait Backend: Clone + Send + Unpin + 'static {
    /// The peer connections it makes.
    type Connection: PeerConnection;

    /// A new peer connection to `peer` that has not done anything yet.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where the platform has no WebRTC (a worker, an insecure
    /// context, Node.js) or refuses another connection.
    fn connect(&self, peer: PeerId) -> Result<Self::Connection, BackendError>;
}

/// One peer connection: ICE, DTLS and SCTP to one peer.
///
/// The methods only start things; results and failures come from
/// [`poll_event`](PeerConnection::poll_event). Dropping it closes it at once, and everything it
/// holds (sockets, tasks, JavaScript callbacks) with it.
pub trait PeerConnection: Send + Unpin + 'static {
    /// The channels it opens.
    type Channel: DataChannel;

    /// Becomes the offerer (and the ICE controlling agent): opens the [`INIT_LABEL`] channel
    /// and produces an offer as [`PeerEvent::Description`]. The backend closes the `init`
    /// channel by itself after connecting.
    fn create_offer(&mut self);

    /// Becomes the answerer of `sdp`: produces an answer as [`PeerEvent::Description`].
    fn accept_offer(&mut self, sdp: &str);

    /// Completes what [`create_offer`](Self::create_offer) began.
    fn accept_answer(&mut self, sdp: &str);

    /// Adds one candidate of the peer, `None` when the peer says that there are no more. Only
    /// called after the remote description was given. A candidate it cannot use (a `.local`
    /// name, another transport, a parse error) is skipped, never an error.
    fn add_remote_candidate(&mut self, candidate: Option<&IceCandidate>);

    /// What happened since. After [`PeerEvent::Failed`] only `Pending` follows. Must be polled
    /// for as long as the connection lives.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<Self::Channel>>;

    /// Opens an in-band negotiated, ordered, reliable channel with an empty label. Data may be
    /// sent as soon as [`DataChannel::poll_ready`] allows.
    ///
    /// # Errors
    /// [`BackendError::Closed`] when the connection is gone, [`BackendError::TooManyChannels`]
    /// at the limit of stream ids.
    fn open_channel(&mut self) -> Result<Self::Channel, BackendError>;

    /// The streams of a connection that has streams of its own instead of channels. Asked once,
    /// after [`PeerEvent::Connected`]; closing them comes before [`close`](Self::close).
    fn take_streams(&mut self) -> Option<StreamMuxerBox> {
        None
    }

    /// Closes every channel and the connection. Idempotent.
    fn close(&mut self);

    /// Ready when what [`close`](Self::close) had to tell the peer has been sent.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What a [`PeerConnection`] reports.
#[derive(Debug)]
pub enum PeerEvent<C> {
    /// The local offer or answer, to be sent to the peer. Comes once.
    Description(String),
    /// A local candidate found after the description was made, to be sent to the peer.
    /// Never a `null` or empty one.
    Candidate(IceCandidate),
    /// ICE and DTLS are up and the peer's certificate fits the fingerprint of its SDP.
    Connected,
    /// The nominated candidate pair, first some time around [`Connected`](Self::Connected) and
    /// then at every change of it.
    Path(CandidatePair),
    /// The peer opened a channel. Never the [`INIT_LABEL`] one, which the peer closes.
    Channel(C),
    /// Connecting may take this long from now, whatever the limit was: ports are being guessed.
    MoreTime(Duration),
    /// The connection is over: refused input, ICE or DTLS failure, or closed by the peer.
    Failed(BackendError),
}

/// A data channel. Dropping it resets it (both directions), unless [`close`](Self::close) was
/// called before.
pub trait DataChannel: Send + Unpin + 'static {
    /// Ready when one message of up to 16 KiB may be sent: the channel is open (or can queue
    /// before it is) and less than its share of the send buffer is taken.
    ///
    /// # Errors
    /// [`BackendError::Closed`] once the channel is closed by either side.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>>;

    /// Queues one binary message; call after [`poll_ready`](Self::poll_ready) said `Ok`.
    ///
    /// # Errors
    /// [`BackendError::Closed`] once the channel is closed by either side.
    fn send(&mut self, message: &[u8]) -> Result<(), BackendError>;

    /// The next message of the peer, in order; `None` when the peer has closed the channel and
    /// everything received before has been taken. Not calling it must bound memory: the
    /// backend stops the sender, or fails the channel with [`BackendError::Overflow`].
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BackendError>>>;

    /// Starts the closing procedure (RFC 8831 section 6.7): messages already queued are sent,
    /// then the outgoing stream is reset. What the peer still sends is lost.
    fn close(&mut self);
}

/// The candidate pair that carries a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CandidatePair {
    /// Our end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// Round-trip time of the last connectivity check, when the backend knows it.
    pub rtt: Option<Duration>,
    /// Whether a port of it was guessed by the birthday method, which is native only.
    pub guessed: bool,
}

impl CandidatePair {
    /// A pair whose round-trip time is not known yet.
    pub fn new(local: Endpoint, remote: Endpoint) -> Self {
        Self {
            local,
            remote,
            rtt: None,
            guessed: false,
        }
    }

    /// Whether a TURN server carries it.
    pub fn is_relayed(&self) -> bool {
        self.local.kind == CandidateKind::Relayed || self.remote.kind == CandidateKind::Relayed
    }
}

/// One end of a [`CandidatePair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// How the address was learned.
    pub kind: CandidateKind,
    /// The candidate's address; a browser does not always tell it.
    pub addr: Option<SocketAddr>,
    /// Whether a router forwards it by request (UPnP-IGD, NAT-PMP, PCP). Known of our own end and
    /// of peers that use this library.
    pub mapped: bool,
}

/// Why a backend failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendError {
    /// This platform has no WebRTC here, and why.
    Unavailable(String),
    /// The peer's description was refused; names the field.
    Description(String),
    /// No candidate pair answered in time, or the nominated one stopped answering.
    Ice,
    /// The DTLS handshake failed, or the certificate does not fit the fingerprint.
    Dtls(String),
    /// The QUIC handshake or connection failed.
    Quic(String),
    /// The SCTP association was lost.
    Sctp(String),
    /// The connection or channel is closed.
    Closed,
    /// All stream ids are in use or waiting for their reset.
    TooManyChannels,
    /// The peer sent more than the receive bound while nobody read.
    Overflow,
    /// The socket or the browser failed in another way.
    Io(String),
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "WebRTC is not available: {why}"),
            Self::Description(what) => write!(f, "session description refused: {what}"),
            Self::Ice => f.write_str("no candidate pair works"),
            Self::Dtls(what) => write!(f, "DTLS failed: {what}"),
            Self::Quic(what) => write!(f, "QUIC failed: {what}"),
            Self::Sctp(what) => write!(f, "SCTP failed: {what}"),
            Self::Closed => f.write_str("closed"),
            Self::TooManyChannels => f.write_str("no free data channel id"),
            Self::Overflow => f.write_str("peer sent more than the receive bound"),
            Self::Io(what) => write!(f, "WebRTC failed: {what}"),
        }
    }
}

impl error::Error for BackendError {}
