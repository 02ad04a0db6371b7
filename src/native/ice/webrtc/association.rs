//! Data channels of one SCTP association (RFC 8831).
//!
//! # Back-pressure
//! Received messages stay in the association until the channel's reader takes them. A reader that
//! pauses therefore closes the receive window and stops the sender. A connection holds at most
//! [`RECEIVE_WINDOW`] over all channels. SCTP has no window for each stream, so a peer whose
//! channel nobody reads can stop its other channels, but can never make memory grow. A sender that
//! is stopped for seconds takes its unanswered window probes for congestion (RFC 9260 section
//! 7.2.3), and needs some round trips to get back to speed.
//!
//! # Closing
//! A channel closes by a reset of its stream in each direction (RFC 8831 section 6.7). Whoever opened
//! the channel owns the stream id, and opens it again as soon as both resets are over. So a stream of
//! the peer gets one reset from this side, as the answer to the peer's reset. A second reset could
//! arrive after the peer has opened the next channel on the stream, and would end that channel. The
//! library answers a reset by itself, and answers even where this side has already sent its own.
//! Therefore this side waits for the peer's reset, for [`CLOSE_TIMEOUT`]. On its own streams a
//! second reset does no harm, because the id is free only after the peer has confirmed it.

mod channel;
mod leftovers;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sctp_proto::{
    Association as Sctp, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig,
    Event, Payload, ServerConfig, StreamEvent, TransportConfig,
};

pub(super) use self::channel::ChannelId;
use self::channel::SEND_BUFFER;
use self::{channel::Channel, leftovers::Leftovers, recovery::Recovery};
use crate::webrtc::backend::BackendError;

/// The received bytes that are held for readers, over all channels of a connection. It allows 330
/// Mbit/s at a round trip of 50 ms.
pub(crate) const RECEIVE_WINDOW: u32 = 2 << 20;

/// The largest message that is accepted, as the session descriptions say. It has room for four
/// frames, because some peers join frames.
pub(crate) const MAX_MESSAGE_SIZE: u32 = 64 * 1024;

/// The payload of one SCTP packet. SCTP and DTLS add at most 80 bytes, so a datagram stays within
/// the 1200 bytes that every path carries.
const MAX_PAYLOAD: u32 = 1120;

/// The first retransmission timeout, in milliseconds. RFC 9260 section 16 has 1 s for this and for
/// the least timeout, meant for the internet of its time. Here, ICE has just measured the path.
const RTO_INITIAL: u64 = 500;
/// The least retransmission timeout, in milliseconds.
const RTO_MIN: u64 = 200;
/// The greatest retransmission timeout, in milliseconds. A stalled transfer waits this long after
/// the path is back, so it is some seconds and not a minute.
const RTO_MAX: u64 = 5_000;

/// How long a channel of the peer that this side has closed waits for the peer's reset. After it,
/// this side resets the stream itself. Peers reset a stream within a round trip of its last frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The bytes that an association holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffers {
    /// The received bytes that wait for their readers, over all channels.
    pub(crate) receive: u32,
    /// The sent bytes that one channel may leave without an acknowledgement.
    pub(crate) send: usize,
}

impl Default for Buffers {
    /// The buffers of a peer.
    fn default() -> Self {
        Self {
            receive: RECEIVE_WINDOW,
            send: SEND_BUFFER,
        }
    }
}

/// The changes that [`Association::poll`] reports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The peer opened a channel.
    Opened(ChannelId),
    /// The peer opened a channel for datagrams.
    Lane(ChannelId),
    /// The association is gone.
    Lost(String),
}

/// One SCTP association over DTLS and its data channels.
pub(super) struct Association {
    endpoint: Endpoint,
    sctp: Option<(AssociationHandle, Sctp)>,
    established: bool,
    lost: bool,
    buffers: Buffers,
    /// The channels by stream. A channel is removed when the peer's reset has come and its data was
    /// taken.
    channels: HashMap<u16, Channel>,
    leftovers: Leftovers,
    recovery: Recovery,
    /// The channels of the peer that wait for its reset, and until when.
    closing: VecDeque<(Instant, ChannelId)>,
    generations: u64,
    /// The next stream id. The DTLS client has even ids, the server odd ones (RFC 8832 section 6).
    next_id: u16,
    changes: VecDeque<Change>,
    /// Whether something was done that may have made packets to send.
    dirty: bool,
    /// The last packet with DATA. `announce_window` uses it.
    last_data: Bytes,
    /// The bytes that readers took since that packet.
    taken: usize,
    now: Instant,
    /// How many calls of `process` are under way.
    depth: u8,
}

/// See [`Association::process`].
const MAX_DEPTH: u8 = 8;

/// The length of the header of an SCTP packet (RFC 9260 section 3.1).
const COMMON_HEADER: usize = 12;
/// The type of a chunk with data (RFC 9260 section 3.3.1).
const DATA: u8 = 0;
/// The type of a chunk that acknowledges data (RFC 9260 section 3.3.4).
const SACK: u8 = 3;

/// The chunks of a packet: the type of each, and its bytes with all that follows.
fn chunks(packet: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = packet.get(COMMON_HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [kind, _, length @ ..] = *rest.first_chunk::<4>()?;
        // A chunk is padded to a multiple of four bytes.
        let length = usize::from(u16::from_be_bytes(length)).next_multiple_of(4);
        let chunk = rest;
        rest = rest.get(length.max(4)..).unwrap_or_default();
        Some((kind, chunk))
    })
}

/// The streams of the DATA chunks of a packet.
fn streams_of(packet: &[u8]) -> impl Iterator<Item = u16> {
    chunks(packet)
        .filter(|(kind, _)| *kind == DATA)
        .filter_map(|(_, chunk)| Some(u16::from_be_bytes(*chunk.get(8..)?.first_chunk()?)))
}

fn transport_config(buffers: Buffers) -> Arc<TransportConfig> {
    let config = TransportConfig::default()
        .with_max_receive_buffer_size(buffers.receive)
        .with_max_receive_message_size(MAX_MESSAGE_SIZE)
        // ICE decides when a path is dead.
        .with_max_init_retransmits(None)
        .with_max_data_retransmits(None)
        .with_rto_initial_ms(RTO_INITIAL)
        .with_rto_min_ms(RTO_MIN)
        .with_rto_max_ms(RTO_MAX);
    Arc::new(config)
}

/// The address of the peer for the library. SCTP runs over DTLS and needs no address, but the
/// library wants one.
fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 5000).into()
}

/// The first chunks of the handshakes of both ends, which the descriptions have told. With them, the
/// association is established at once.
#[derive(Clone, Debug)]
pub(super) struct Inits {
    pub(super) ours: Bytes,
    pub(super) theirs: Bytes,
}

/// Makes the first chunk of a handshake, for the description.
pub(super) fn init() -> Option<Bytes> {
    sctp_proto::generate_snap_token(&transport_config(Buffers::default())).ok()
}

impl Association {
    /// Starts the association once DTLS is up. Without `inits`, the DTLS client begins the handshake.
    pub(super) fn start(
        client: bool,
        max_message_size: u32,
        inits: Option<Inits>,
        now: Instant,
    ) -> Result<Self, BackendError> {
        Self::with(client, max_message_size, Buffers::default(), inits, now)
    }

    /// Starts an association that holds no more than `buffers` says.
    pub(super) fn bounded(
        client: bool,
        max_message_size: u32,
        buffers: Buffers,
        now: Instant,
    ) -> Result<Self, BackendError> {
        Self::with(client, max_message_size, buffers, None, now)
    }

    fn with(
        client: bool,
        max_message_size: u32,
        buffers: Buffers,
        inits: Option<Inits>,
        now: Instant,
    ) -> Result<Self, BackendError> {
        let mut config = EndpointConfig::default();
        config.max_payload_size(MAX_PAYLOAD);
        let mut server = ServerConfig::default();
        server.transport = transport_config(buffers);
        let mut endpoint = Endpoint::new(Arc::new(config), Some(Arc::new(server)));
        let mut sctp = None;
        if client || inits.is_some() {
            let mut config = ClientConfig::new();
            if let Some(Inits { ours, theirs }) = inits {
                config = config.with_snap(ours, theirs);
            }
            config.transport = transport_config(buffers);
            let (handle, mut association) = endpoint
                .connect(config, nowhere())
                .map_err(|error| BackendError::Sctp(error.to_string()))?;
            association.set_max_send_message_size(max_message_size);
            sctp = Some((handle, association));
        }
        let mut this = Self {
            endpoint,
            sctp,
            established: false,
            lost: false,
            buffers,
            channels: HashMap::new(),
            leftovers: Leftovers::new(buffers.receive),
            recovery: Recovery::default(),
            closing: VecDeque::new(),
            generations: 0,
            next_id: u16::from(!client),
            changes: VecDeque::new(),
            dirty: false,
            last_data: Bytes::new(),
            taken: 0,
            now,
            depth: 0,
        };
        this.process();
        Ok(this)
    }

    /// Handles a packet that came out of DTLS.
    pub(super) fn receive(&mut self, now: Instant, packet: &[u8]) {
        self.now = now;
        let packet = Bytes::copy_from_slice(packet);
        if packet.get(COMMON_HEADER) == Some(&DATA) {
            self.last_data = packet.clone();
            self.taken = 0;
        }
        self.recovery.received(&packet);
        self.handle(packet.clone());
        for id in streams_of(&packet) {
            self.make_way(id);
        }
    }

    fn handle(&mut self, packet: Bytes) {
        match self
            .endpoint
            .handle(self.now, nowhere(), None, None, packet)
        {
            Some((handle, DatagramEvent::NewAssociation(association))) if self.sctp.is_none() => {
                self.sctp = Some((handle, association));
            }
            Some((_, DatagramEvent::AssociationEvent(event))) => {
                if let Some((_, sctp)) = &mut self.sctp {
                    sctp.handle_event(event);
                }
            }
            // A connection has only one association (RFC 8831 section 6.2).
            Some((_, DatagramEvent::NewAssociation(_))) | None => {}
        }
        self.process();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if let Some((handle, sctp)) = &mut self.sctp {
            sctp.handle_timeout(now);
            self.recovery.timeouts(sctp.stats().get_num_t3timeouts());
            while let Some(event) = sctp.poll_endpoint_event() {
                if let Some(event) = self.endpoint.handle_event(*handle, event) {
                    sctp.handle_event(event);
                }
            }
        }
        self.process();
        while self.closing.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = self.closing.pop_front() {
                self.reset(id);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let sctp = self.sctp.as_ref().and_then(|(_, sctp)| sctp.poll_timeout());
        let closing = self.closing.front().map(|(until, _)| *until);
        sctp.into_iter().chain(closing).min()
    }

    /// The next packets to send through DTLS.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        self.now = now;
        self.dirty = false;
        loop {
            let transmit = self.endpoint.poll_transmit().or_else(|| {
                let (_, sctp) = self.sctp.as_mut()?;
                sctp.poll_transmit(self.now)
            });
            let mut packets = match transmit.map(|transmit| transmit.payload) {
                Some(Payload::RawEncode(packets)) => packets,
                Some(Payload::PartialDecode(_)) => continue,
                None => return Some(self.recovery.due()).filter(|due| !due.is_empty()),
            };
            self.recovery.hold(&mut packets);
            if !packets.is_empty() {
                return Some(packets);
            }
        }
    }

    pub(super) fn poll(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Whether everything was sent and the association has shut down, or never came up.
    pub(super) fn is_closed(&self) -> bool {
        self.lost || self.sctp.as_ref().is_none_or(|(_, sctp)| sctp.is_closed())
    }

    /// Sends the queued messages, then shuts down (RFC 9260 section 9.2).
    pub(super) fn shutdown(&mut self) {
        match &mut self.sctp {
            Some((_, sctp)) if self.established => {
                if let Err(error) = sctp.shutdown() {
                    tracing::debug!(%error, "the SCTP shutdown failed");
                    self.lose("closed");
                }
            }
            _ => self.lose("closed"),
        }
    }

    /// Ends all channels without telling the peer.
    pub(super) fn lose(&mut self, why: &str) {
        if !std::mem::replace(&mut self.lost, true) {
            self.changes.push_back(Change::Lost(why.to_owned()));
        }
        for channel in self.channels.values_mut() {
            channel.ended = true;
            channel.wake();
        }
    }

    /// Handles the events of SCTP. Handling one may take a message, which calls this again. A peer must
    /// not choose how deep that goes, so the outermost call does what is left.
    fn process(&mut self) {
        if self.depth < MAX_DEPTH {
            self.depth += 1;
            self.process_all();
            self.depth -= 1;
        }
    }

    fn process_all(&mut self) {
        loop {
            let Some((_, sctp)) = &mut self.sctp else {
                return;
            };
            match sctp.poll() {
                None => return,
                Some(Event::Connected) => {
                    self.established = true;
                    let waiting: Vec<u16> = self.channels.keys().copied().collect();
                    for id in waiting {
                        // The peer may have opened channels before its last handshake packet came.
                        self.acknowledge(id);
                        if self.reserve(id) {
                            self.announce(id);
                        }
                    }
                }
                Some(Event::HandshakeFailed { reason } | Event::AssociationLost { reason }) => {
                    self.lose(&reason.to_string());
                }
                Some(Event::Stream(event)) => self.stream_event(event),
                Some(_) => {}
            }
        }
    }

    fn stream_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Readable { id } => self.readable(id),
            StreamEvent::BufferedAmountLow { id } => {
                if let Some(writer) = self.channels.get_mut(&id).and_then(|c| c.writer.take()) {
                    writer.wake();
                }
            }
            StreamEvent::Stopped { id, .. } => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.ended = true;
                    channel.wake();
                }
                self.reset_stream(id);
            }
            StreamEvent::Finished { id } => {
                // The peer has reset the stream, and the library answers with this side's reset.
                if let Some(mut channel) = self.channels.remove(&id) {
                    channel.wake();
                    self.closing
                        .retain(|(_, closing)| !closing.is(id, &channel));
                }
            }
            StreamEvent::ResetComplete { id } => self.acknowledge(id),
            // The library writes no more to this stream, and the peer may use it again. It fails where
            // packets are lost while both ends reset streams. A connection that is lost is made anew.
            StreamEvent::ResetFailed { .. } => self.lose("a stream could not be reset"),
            _ => {}
        }
    }

    /// Whether there may be packets to send that the driver does not know of.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// The number of channels whose streams the peer has not reset.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.channels.len()
    }
}
