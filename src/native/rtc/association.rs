//! Data channels of one SCTP association (RFC 8831).
//!
//! # Back-pressure
//! Received messages stay in the association until the channel's reader takes them, so a reader
//! that pauses closes the receive window and stops the sender: what a connection can hold is
//! [`RECEIVE_WINDOW`], over all channels. SCTP has no window per stream; a peer whose channel
//! nobody reads can therefore stop its other channels, but never grow our memory. A sender that
//! is stopped for seconds takes its unanswered window probes for congestion (RFC 9260 section
//! 7.2.3) and needs some round trips to get back to speed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use sctp_proto::{
    Association as Sctp, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig,
    Event, Payload, PayloadProtocolIdentifier as Ppi, ReliabilityType, ServerConfig, StreamEvent,
    TransportConfig,
};

use super::dcep;
use crate::rtc::backend::{BackendError, INIT_LABEL};

/// Received bytes held for readers, over all channels of a connection. At 50 ms round trip it
/// lets 330 Mbit/s in.
pub(crate) const RECEIVE_WINDOW: u32 = 2 << 20;

/// Bytes a channel may have sent and not seen acknowledged before it must wait; with it, one
/// channel fills 330 Mbit/s at 50 ms round trip.
pub(crate) const SEND_BUFFER: usize = 2 << 20;

/// Below this a channel that had to wait goes on: half, so that it is not woken for each message.
const SEND_LOW: usize = SEND_BUFFER / 2;

/// Largest message accepted, as our session descriptions say: four frames, for peers that join
/// them.
pub(crate) const MAX_MESSAGE_SIZE: u32 = 64 * 1024;

/// Payload of one SCTP packet. With at most 80 bytes of SCTP and DTLS around it, a datagram
/// stays within the 1200 bytes that every path carries.
const MAX_PAYLOAD: u32 = 1120;

/// Stream ids in use, from 0; Chromium takes no greater ones. Half of them are ours, which with
/// those that wait for their reset bounds the channels of a connection.
const STREAM_IDS: u16 = 1024;

/// Retransmission timeouts in milliseconds. RFC 9260 section 16 has 1 s for the first and the
/// least, meant for the open Internet of its time; ICE has just measured this path. The greatest
/// is what a stalled transfer waits after the path is back, so seconds and not a minute.
const RTO_INITIAL: u64 = 500;
const RTO_MIN: u64 = 200;
const RTO_MAX: u64 = 5_000;

/// Bytes that readers took since the peer last heard of our window, after which it is told.
const WINDOW_STEP: usize = RECEIVE_WINDOW as usize / 4;

/// What [`Association::poll`] reports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The peer opened a channel.
    Opened(ChannelId),
    /// The association is gone.
    Lost(String),
}

/// A channel: its SCTP stream, and which of the channels that this stream carried.
///
/// A peer may open the stream again as soon as both resets are over (RFC 8831 section 6.7), while
/// the owner of the handle has not even seen the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelId {
    stream: u16,
    generation: u64,
}

/// One SCTP association over DTLS and its data channels.
pub(super) struct Association {
    endpoint: Endpoint,
    sctp: Option<(AssociationHandle, Sctp)>,
    established: bool,
    lost: bool,
    /// By stream; a channel leaves when the peer's reset has come and its data was taken.
    channels: HashMap<u16, Channel>,
    /// Streams whose own reset the peer has not confirmed: not to be opened.
    resetting: HashSet<u16>,
    generations: u64,
    /// The DTLS client has even ids, the server odd ones (RFC 8832 section 6).
    next_id: u16,
    changes: VecDeque<Change>,
    /// Something was done that may have something to send.
    dirty: bool,
    /// The last packet with DATA, and what readers took since: see `announce_window`.
    last_data: Bytes,
    taken: usize,
    now: Instant,
}

#[derive(Debug)]
struct Channel {
    generation: u64,
    label: &'static str,
    origin: Origin,
    /// Nothing more will come.
    ended: bool,
    /// We closed it.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Ours; `DATA_CHANNEL_OPEN` is still to be sent.
    Opening,
    /// Ours, or the peer's whose `DATA_CHANNEL_OPEN` was read.
    Open,
    /// The peer's, before its `DATA_CHANNEL_OPEN`.
    Announced,
}

impl Channel {
    fn new(generation: u64, label: &'static str, origin: Origin) -> Self {
        Self {
            generation,
            label,
            origin,
            ended: false,
            closed: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

fn transport_config() -> Arc<TransportConfig> {
    let config = TransportConfig::default()
        .with_max_receive_buffer_size(RECEIVE_WINDOW)
        .with_max_receive_message_size(MAX_MESSAGE_SIZE)
        // ICE decides when a path is dead.
        .with_max_init_retransmits(None)
        .with_max_data_retransmits(None)
        .with_rto_initial_ms(RTO_INITIAL)
        .with_rto_min_ms(RTO_MIN)
        .with_rto_max_ms(RTO_MAX);
    Arc::new(config)
}

/// The channel of `id`, unless its stream ended or carries another one by now.
fn find(channels: &mut HashMap<u16, Channel>, id: ChannelId) -> Option<&mut Channel> {
    let channel = channels.get_mut(&id.stream)?;
    (channel.generation == id.generation).then_some(channel)
}

/// The next id of the same parity.
fn following(id: u16) -> u16 {
    (id + 2) % STREAM_IDS
}

/// SCTP runs over DTLS and needs no address; the library wants one.
fn nowhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 5000).into()
}

impl Association {
    /// Starts the association once DTLS is up; the DTLS client begins the handshake.
    pub(super) fn start(
        client: bool,
        max_message_size: u32,
        now: Instant,
    ) -> Result<Self, BackendError> {
        let mut config = EndpointConfig::default();
        config.max_payload_size(MAX_PAYLOAD);
        let mut server = ServerConfig::default();
        server.transport = transport_config();
        let mut endpoint = Endpoint::new(Arc::new(config), Some(Arc::new(server)));
        let mut sctp = None;
        if client {
            let mut config = ClientConfig::new();
            config.transport = transport_config();
            let (handle, mut association) = endpoint
                .connect(config, nowhere())
                .map_err(|error| BackendError::Sctp(error.to_string()))?;
            association.set_max_send_message_size(max_message_size);
            sctp = Some((handle, association));
        }
        Ok(Self {
            endpoint,
            sctp,
            established: false,
            lost: false,
            channels: HashMap::new(),
            resetting: HashSet::new(),
            generations: 0,
            next_id: u16::from(!client),
            changes: VecDeque::new(),
            dirty: false,
            last_data: Bytes::new(),
            taken: 0,
            now,
        })
    }

    /// A packet came out of DTLS.
    pub(super) fn receive(&mut self, now: Instant, packet: &[u8]) {
        const COMMON_HEADER: usize = 12;
        const DATA: u8 = 0;
        self.now = now;
        let packet = Bytes::copy_from_slice(packet);
        if packet.get(COMMON_HEADER) == Some(&DATA) {
            self.last_data = packet.clone();
            self.taken = 0;
        }
        self.handle(packet);
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
            // A second association has no place on a connection (RFC 8831 section 6.2).
            Some((_, DatagramEvent::NewAssociation(_))) | None => {}
        }
        self.process();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if let Some((handle, sctp)) = &mut self.sctp {
            sctp.handle_timeout(now);
            while let Some(event) = sctp.poll_endpoint_event() {
                if let Some(event) = self.endpoint.handle_event(*handle, event) {
                    sctp.handle_event(event);
                }
            }
        }
        self.process();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.sctp.as_ref().and_then(|(_, sctp)| sctp.poll_timeout())
    }

    /// The next packets to send through DTLS.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        self.now = now;
        self.dirty = false;
        let transmit = self.endpoint.poll_transmit().or_else(|| {
            let (_, sctp) = self.sctp.as_mut()?;
            sctp.poll_transmit(self.now)
        })?;
        match transmit.payload {
            Payload::RawEncode(packets) => Some(packets),
            Payload::PartialDecode(_) => None,
        }
    }

    pub(super) fn poll(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Whether everything was sent and the association has shut down, or never came up.
    pub(super) fn is_closed(&self) -> bool {
        self.lost || self.sctp.as_ref().is_none_or(|(_, sctp)| sctp.is_closed())
    }

    /// Sends what is queued, then shuts down (RFC 9260 section 9.2).
    pub(super) fn shutdown(&mut self) {
        match &mut self.sctp {
            Some((_, sctp)) if self.established => {
                if let Err(error) = sctp.shutdown() {
                    tracing::debug!(%error, "SCTP shutdown");
                    self.lose("closed");
                }
            }
            _ => self.lose("closed"),
        }
    }

    /// Ends all channels without a word.
    pub(super) fn lose(&mut self, why: &str) {
        if !std::mem::replace(&mut self.lost, true) {
            self.changes.push_back(Change::Lost(why.to_owned()));
        }
        for channel in self.channels.values_mut() {
            channel.ended = true;
            channel.wake();
        }
    }

    /// Opens a channel with an empty label.
    pub(super) fn open(&mut self) -> Result<ChannelId, BackendError> {
        if self.lost {
            return Err(BackendError::Closed);
        }
        // An id is free again only after its reset (RFC 8831 section 6.7); taking them in turn
        // finds a free one at once, nearly always.
        let mut id = self.next_id;
        while self.channels.contains_key(&id) || self.resetting.contains(&id) {
            id = following(id);
            if id == self.next_id {
                return Err(BackendError::TooManyChannels);
            }
        }
        self.next_id = following(id);
        let opened = self.insert(id, Origin::Opening);
        self.announce(id);
        Ok(opened)
    }

    fn insert(&mut self, stream: u16, origin: Origin) -> ChannelId {
        self.generations += 1;
        let generation = self.generations;
        self.channels
            .insert(stream, Channel::new(generation, "", origin));
        ChannelId { stream, generation }
    }

    /// Sends `DATA_CHANNEL_OPEN`, if the association is up. Data may follow at once (RFC 8832
    /// section 6), which saves a round trip for each channel.
    fn announce(&mut self, id: u16) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let Some((_, sctp)) = self.sctp.as_mut().filter(|_| self.established) else {
            return;
        };
        if channel.origin != Origin::Opening {
            return;
        }
        let opened = sctp.open_stream(id, Ppi::Binary).and_then(|mut stream| {
            stream.set_reliability_params(false, ReliabilityType::Reliable, 0)?;
            stream.set_buffered_amount_low_threshold(SEND_LOW)?;
            stream.write_with_ppi(&dcep::open(channel.label), Ppi::Dcep)
        });
        channel.origin = Origin::Open;
        self.dirty = true;
        if let Err(error) = opened {
            tracing::debug!(%error, id, "channel not opened");
            channel.ended = true;
        }
        channel.wake();
    }

    /// Handles what SCTP reports.
    fn process(&mut self) {
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
                        self.announce(id);
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
                self.close_stream(id);
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.ended = true;
                    channel.wake();
                }
            }
            StreamEvent::Finished { id } => {
                // The peer's outgoing stream is reset, so ours is in return (RFC 8831 section 6.7).
                self.close_stream(id);
                self.resetting.insert(id);
                if let Some(mut channel) = self.channels.remove(&id) {
                    channel.wake();
                }
                // What the stream holds now belongs to the next channel on it.
                if let Some((_, sctp)) = &mut self.sctp
                    && sctp.stream(id).is_ok_and(|stream| stream.is_readable())
                {
                    self.readable(id);
                }
            }
            StreamEvent::ResetComplete { id } => {
                self.resetting.remove(&id);
            }
            _ => {}
        }
    }

    fn readable(&mut self, id: u16) {
        match self.channels.get_mut(&id) {
            Some(channel) if channel.origin != Origin::Announced => {
                if let Some(reader) = channel.reader.take() {
                    reader.wake();
                }
            }
            Some(_) => self.accept(id),
            None => {
                let announced = self.insert(id, Origin::Announced);
                match id < STREAM_IDS {
                    true => self.accept(id),
                    false => self.detach(announced),
                }
            }
        }
    }

    /// Reads the `DATA_CHANNEL_OPEN` of a channel that the peer opened.
    fn accept(&mut self, id: u16) {
        let Some((_, sctp)) = &mut self.sctp else {
            return;
        };
        let Ok(mut stream) = sctp.stream(id) else {
            return;
        };
        let Ok(Some(message)) = stream.read_sctp() else {
            return;
        };
        let mut open = vec![0; message.len()];
        let read = message.read(&mut open);
        let label = match (message.ppi, read) {
            (Ppi::Dcep, Ok(_)) => dcep::parse_open(&open),
            _ => None,
        };
        let answered = label.is_some()
            && stream
                .set_reliability_params(false, ReliabilityType::Reliable, 0)
                .and_then(|()| stream.set_buffered_amount_low_threshold(SEND_LOW))
                .and_then(|()| stream.write_with_ppi(&dcep::ACK, Ppi::Dcep))
                .is_ok();
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let opened = ChannelId {
            stream: id,
            generation: channel.generation,
        };
        match label {
            // The offerer closes it, and stock peers wait for the end of that: were it closed
            // here, they could miss that it was ever open.
            Some(INIT_LABEL) if answered => channel.origin = Origin::Open,
            Some(_) if answered => {
                channel.origin = Origin::Open;
                self.changes.push_back(Change::Opened(opened));
            }
            _ => {
                tracing::debug!(id, "channel refused");
                self.detach(opened);
            }
        }
    }

    /// See [`DataChannel::poll_ready`](crate::rtc::backend::DataChannel::poll_ready).
    pub(super) fn poll_ready(
        &mut self,
        id: ChannelId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BackendError>> {
        let channel = match find(&mut self.channels, id) {
            Some(channel) if !channel.ended && !channel.closed => channel,
            _ => return Poll::Ready(Err(BackendError::Closed)),
        };
        let stream = match &mut self.sctp {
            Some((_, sctp)) if channel.origin == Origin::Open => sctp.stream(id.stream),
            _ => {
                channel.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        match stream.and_then(|stream| stream.buffered_amount()) {
            Ok(buffered) if buffered < SEND_BUFFER => Poll::Ready(Ok(())),
            Ok(_) => {
                channel.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(_) => Poll::Ready(Err(BackendError::Closed)),
        }
    }

    /// See [`DataChannel::send`](crate::rtc::backend::DataChannel::send).
    pub(super) fn send(&mut self, id: ChannelId, message: &[u8]) -> Result<(), BackendError> {
        match find(&mut self.channels, id) {
            Some(channel) if !channel.ended && !channel.closed => {}
            _ => return Err(BackendError::Closed),
        }
        let (_, sctp) = self.sctp.as_mut().ok_or(BackendError::Closed)?;
        let written = sctp
            .stream(id.stream)
            .and_then(|mut stream| stream.write_with_ppi(message, Ppi::Binary));
        self.dirty = true;
        match written {
            Ok(_) => Ok(()),
            Err(_) => Err(BackendError::Closed),
        }
    }

    /// See [`DataChannel::poll_next`](crate::rtc::backend::DataChannel::poll_next).
    pub(super) fn poll_next(&mut self, id: ChannelId, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some(channel) = find(&mut self.channels, id) else {
                return Poll::Ready(None);
            };
            let Some((_, sctp)) = &mut self.sctp else {
                if channel.ended {
                    return Poll::Ready(None);
                }
                channel.reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let message = sctp
                .stream(id.stream)
                .and_then(|mut stream| stream.read_sctp());
            match message {
                Ok(Some(message)) => {
                    let mut data = vec![0; message.len()];
                    let read = message.read(&mut data);
                    self.taken += data.len();
                    self.announce_window(false);
                    match message.ppi {
                        // The acknowledgement of our own open.
                        Ppi::Dcep => continue,
                        Ppi::BinaryEmpty | Ppi::StringEmpty => continue,
                        _ if read.is_ok() => return Poll::Ready(Some(data.into())),
                        _ => return Poll::Ready(None),
                    }
                }
                Ok(None) if !channel.ended => {
                    channel.reader = Some(cx.waker().clone());
                    self.announce_window(true);
                    // Taking the last message can be what lets a reset through.
                    self.process();
                    if find(&mut self.channels, id).is_some_and(|channel| !channel.ended) {
                        return Poll::Pending;
                    }
                }
                // Before the association is up there is no stream yet.
                Err(_) if !channel.ended && channel.origin == Origin::Opening => {
                    channel.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Ok(None) | Err(_) => return Poll::Ready(None),
            }
        }
    }

    /// Tells the peer of the window that readers have opened.
    ///
    /// RFC 9260 section 6.2 wants a SACK for that; the library sends one only in answer to DATA.
    /// So the last DATA packet is given to it again: a duplicate is acknowledged at once, with
    /// the window of now. Without it a stopped sender would wait for its next window probe.
    fn announce_window(&mut self, drained: bool) {
        let step = if drained {
            WINDOW_STEP / 4
        } else {
            WINDOW_STEP
        };
        if self.taken >= step && !self.last_data.is_empty() {
            self.taken = 0;
            self.dirty = true;
            self.handle(self.last_data.clone());
        }
    }

    /// Starts closing a channel; what was sent before still goes.
    pub(super) fn close(&mut self, id: ChannelId) {
        if let Some(channel) = find(&mut self.channels, id)
            && !std::mem::replace(&mut channel.closed, true)
        {
            self.close_stream(id.stream);
        }
    }

    /// The handle of a channel is gone: closes it, and frees its stream once that is done.
    pub(super) fn detach(&mut self, id: ChannelId) {
        self.close(id);
        let no_reset_comes = find(&mut self.channels, id)
            .is_some_and(|channel| channel.origin == Origin::Opening || self.lost);
        if no_reset_comes {
            self.channels.remove(&id.stream);
        }
    }

    fn close_stream(&mut self, id: u16) {
        self.dirty = true;
        if let Some((_, sctp)) = &mut self.sctp
            && let Ok(mut stream) = sctp.stream(id)
            && let Err(error) = stream.close()
        {
            tracing::debug!(%error, id, "stream not reset");
        }
    }

    /// Whether there may be something to send that the driver has not heard of.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Channels that are open or wait for their reset.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.channels.len() + self.resetting.len()
    }
}
