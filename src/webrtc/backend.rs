//! The seam between `/webrtc` and the provider of peer connections: str0m's parts on native
//! targets, and `RTCPeerConnection` in a browser.
//!
//! Everything is owned and polled by one task at a time. `Send` is required because libp2p requires
//! it. A browser is single-threaded, so its backend satisfies this with `SendWrapper`.

use std::{
    error, fmt,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use libp2p::{PeerId, core::muxing::StreamMuxerBox};

use crate::core::{candidate::CandidateKind, signalling::IceCandidate};

/// The label of the channel that an offerer opens so that its SDP has a data section. The offerer
/// closes the channel once it is connected. The channel never carries data.
pub(crate) const INIT_LABEL: &str = "init";

/// The label of the channel for datagrams between two peers of this library. It is the only channel
/// that is neither ordered nor reliable, and it carries no stream.
pub(crate) const LANE_LABEL: &str = "datagrams";

/// The bytes that a channel for datagrams may hold until they are sent, and below which it takes more.
/// The rest wait where the oldest are dropped.
pub(crate) const LANE_MARKS: (u32, u32) = (16 * 1024, 8 * 1024);

/// How new connections with a peer leave TURN out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpareTurn {
    /// Until it is needed. A page makes the connection anew then, but a peer that can ask a server late
    /// does so.
    Late,
    /// For good, because there is a path over TURN already.
    Never {
        /// Whether ports may be guessed. A guess takes hundreds of places in the tables of routers, so
        /// one for each path over TURN is enough.
        #[allow(dead_code, reason = "a page guesses nothing")]
        may_guess: bool,
    },
}

/// Makes peer connections. A backend is cheap to clone, and all clones share configuration and
/// sockets.
pub trait Backend: Clone + Send + Unpin + 'static {
    /// The type of the peer connections.
    type Connection: PeerConnection;

    /// Makes a new peer connection to `peer` that has not done anything yet.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the platform has no WebRTC (a worker, an insecure context,
    /// Node.js) or refuses another connection.
    fn connect(&self, peer: PeerId) -> Result<Self::Connection, BackendError>;
}

/// One peer connection: ICE, DTLS and SCTP to one peer.
///
/// The methods only start something. Results and failures come from
/// [`poll_event`](PeerConnection::poll_event). Dropping a peer connection closes it at once,
/// together with everything that it holds (sockets, tasks, JavaScript callbacks).
pub trait PeerConnection: Send + Unpin + 'static {
    /// The type of the channels.
    type Channel: DataChannel;

    /// Makes this side the offerer, which is the controlling agent of ICE. It opens the
    /// [`INIT_LABEL`] channel and produces an offer as [`PeerEvent::Description`]. The backend
    /// closes the `init` channel by itself after connecting.
    ///
    /// `sealed` says that the offer goes to a peer of this library, and that nothing can follow it until
    /// the answer is there.
    fn create_offer(&mut self, sealed: bool);

    /// Makes this side the answerer of `sdp`. It produces an answer as [`PeerEvent::Description`].
    fn accept_offer(&mut self, sdp: &str);

    /// Takes the peer's answer to the offer of [`create_offer`](Self::create_offer).
    fn accept_answer(&mut self, sdp: &str);

    /// Adds one candidate of the peer, or `None` when the peer has no more. It is only called after
    /// the remote description was given. A candidate that the backend cannot use (a `.local` name,
    /// another transport, a parse error) is skipped and is never an error.
    fn add_remote_candidate(&mut self, candidate: Option<&IceCandidate>);

    /// Returns the next event. After [`PeerEvent::Failed`], only `Pending` follows. It must be
    /// polled for as long as the connection lives.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<Self::Channel>>;

    /// Opens an in-band negotiated, ordered, reliable channel with an empty label. Data may be sent
    /// as soon as [`DataChannel::poll_ready`] allows it.
    ///
    /// # Errors
    /// [`BackendError::Closed`] if the connection is gone, and [`BackendError::TooManyChannels`] if
    /// all stream ids are in use.
    fn open_channel(&mut self) -> Result<Self::Channel, BackendError>;

    /// Opens a channel with the label `datagrams` that is neither ordered nor reliable. Only a peer
    /// that is known to take datagrams knows it.
    ///
    /// # Errors
    /// Fails as [`open_channel`](Self::open_channel) does.
    fn open_lane(&mut self) -> Result<Self::Channel, BackendError>;

    /// Takes the streams of a connection that has its own streams instead of channels. It is called
    /// once, after [`PeerEvent::Connected`]. The streams are closed before [`close`](Self::close)
    /// is called.
    fn take_streams(&mut self) -> Option<StreamMuxerBox> {
        None
    }

    /// Closes every channel and the connection. Calling it again has no effect.
    fn close(&mut self);

    /// Is ready when everything that [`close`](Self::close) had to tell the peer has been sent.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The events of a [`PeerConnection`].
#[derive(Debug)]
pub enum PeerEvent<C> {
    /// The local offer or answer, which has to be sent to the peer. It comes once.
    Description(String),
    /// A local candidate that was found after the description was made and has to be sent to the
    /// peer. It is never `null` or empty.
    Candidate(IceCandidate),
    /// ICE and DTLS are up, and the peer's certificate fits the fingerprint in its SDP.
    Connected,
    /// The nominated candidate pair. It comes first around the time of
    /// [`Connected`](Self::Connected), and then whenever the pair changes.
    Path(CandidatePair),
    /// The peer opened a channel. It is never the [`INIT_LABEL`] channel, which the peer closes
    /// itself.
    Channel(C),
    /// The peer opened a channel for datagrams, as [`PeerConnection::open_lane`] does.
    Lane(C),
    /// Connecting may take this long from now, whatever the limit was before, because ports are
    /// being guessed.
    MoreTime(Duration),
    /// The connection is over: input was refused, ICE or DTLS failed, or the peer closed it.
    Failed(BackendError),
}

/// A data channel. Dropping it resets both directions, unless [`close`](Self::close) was called
/// before.
pub trait DataChannel: Send + Unpin + 'static {
    /// Is ready when one message of up to 16 KiB may be sent. This is so when the channel is open
    /// (or can queue messages before it is) and has not used up its share of the send buffer.
    ///
    /// # Errors
    /// [`BackendError::Closed`] once either side has closed the channel.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>>;

    /// Queues one binary message. Call it after [`poll_ready`](Self::poll_ready) returned `Ok`.
    ///
    /// # Errors
    /// [`BackendError::Closed`] once either side has closed the channel.
    fn send(&mut self, message: &[u8]) -> Result<(), BackendError>;

    /// Returns the next message of the peer, in order. Returns `None` when the peer has closed the
    /// channel and all earlier messages were taken. While nobody calls it, memory must stay
    /// bounded: the backend stops the sender, or fails the channel with [`BackendError::Overflow`].
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BackendError>>>;

    /// Starts the closing procedure (RFC 8831 section 6.7). Messages that were queued before are
    /// sent, and then the outgoing stream is reset. Messages that the peer still sends are lost.
    fn close(&mut self);
}

/// The candidate pair that carries a connection.
///
/// ```
/// use throughline::rtc::{CandidateKind, CandidatePair, Endpoint};
///
/// let end = |kind| Endpoint { kind, addr: None, mapped: false };
/// let pair = CandidatePair::new(end(CandidateKind::Host), end(CandidateKind::Relayed));
/// assert!(pair.is_relayed());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CandidatePair {
    /// The end of this peer.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// The round-trip time of the last connectivity check, if the backend knows it.
    pub rtt: Option<Duration>,
    /// Whether the birthday method guessed one of the ports. This is native only.
    pub guessed: bool,
}

impl CandidatePair {
    /// Makes a pair whose round-trip time is not known yet.
    pub fn new(local: Endpoint, remote: Endpoint) -> Self {
        Self {
            local,
            remote,
            rtt: None,
            guessed: false,
        }
    }

    /// Whether a TURN server carries the pair.
    pub fn is_relayed(&self) -> bool {
        self.local.kind == CandidateKind::Relayed || self.remote.kind == CandidateKind::Relayed
    }
}

/// One end of a [`CandidatePair`].
///
/// ```
/// use throughline::rtc::{CandidateKind, Endpoint};
///
/// let end = Endpoint {
///     kind: CandidateKind::ServerReflexive,
///     addr: Some("192.0.2.7:4001".parse()?),
///     mapped: false,
/// };
/// assert_eq!(end.kind.as_str(), "srflx");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// How the address was learned.
    pub kind: CandidateKind,
    /// The candidate's address. A browser does not always reveal it.
    pub addr: Option<SocketAddr>,
    /// Whether a router forwards the address on request (UPnP-IGD, NAT-PMP, PCP). This is known for
    /// this peer's end and for peers that use this library.
    pub mapped: bool,
}

/// Why a backend failed.
///
/// ```
/// use throughline::rtc::{BackendError, Error};
///
/// let error = Error::Backend(BackendError::Closed);
/// assert!(matches!(error, Error::Backend(BackendError::Closed)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendError {
    /// WebRTC is not available here. The value says why.
    Unavailable(String),
    /// The peer's description was refused. The value names the field.
    Description(String),
    /// No candidate pair answered in time, or the nominated pair stopped answering.
    Ice,
    /// The DTLS handshake failed, or the certificate does not fit the fingerprint.
    Dtls(String),
    /// The QUIC handshake or connection failed.
    Quic(String),
    /// The SCTP association was lost.
    Sctp(String),
    /// The connection or channel is closed.
    Closed,
    /// All stream ids are in use or wait for their reset.
    TooManyChannels,
    /// The peer sent more than the receive limit while nobody read.
    Overflow,
    /// The socket or the browser failed in another way.
    Io(String),
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "WebRTC is not available: {why}"),
            Self::Description(what) => write!(f, "the session description was refused: {what}"),
            Self::Ice => f.write_str("no candidate pair works"),
            Self::Dtls(what) => write!(f, "DTLS failed: {what}"),
            Self::Quic(what) => write!(f, "QUIC failed: {what}"),
            Self::Sctp(what) => write!(f, "SCTP failed: {what}"),
            Self::Closed => f.write_str("the connection or channel is closed"),
            Self::TooManyChannels => f.write_str("no data channel id is free"),
            Self::Overflow => f.write_str("the peer sent more than the receive limit"),
            Self::Io(what) => write!(f, "WebRTC failed: {what}"),
        }
    }
}

impl error::Error for BackendError {}
