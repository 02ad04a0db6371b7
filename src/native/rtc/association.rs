//! Data channels of one SCTP association (RFC 8831).
//!
//! # Back-pressure
//! Received messages stay in the association until the channel's reader takes them, so a reader
//! that pauses closes the receive window and stops the sender: what a connection can hold is
//! [`RECEIVE_WINDOW`], over all channels. SCTP has no window per stream; a peer whose channel
//! nobody reads can therefore stop its other channels, but never grow our memory. A sender that
//! is stopped for seconds takes its unanswered window probes for congestion (RFC 9260 section
//! 7.2.3) and needs some round trips to get back to speed.

mod channel;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use sctp_proto::{
    Association as Sctp, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig,
    Event, Payload, ServerConfig, StreamEvent, TransportConfig,
};

use self::channel::Channel;
pub(super) use self::channel::ChannelId;
use crate::rtc::backend::BackendError;

/// Received bytes held for readers, over all channels of a connection. At 50 ms round trip it
/// lets 330 Mbit/s in.
pub(crate) const RECEIVE_WINDOW: u32 = 2 << 20;

/// Largest message accepted, as our session descriptions say: four frames, for peers that join
/// them.
pub(crate) const MAX_MESSAGE_SIZE: u32 = 64 * 1024;

/// Payload of one SCTP packet. With at most 80 bytes of SCTP and DTLS around it, a datagram
/// stays within the 1200 bytes that every path carries.
const MAX_PAYLOAD: u32 = 1120;

/// Retransmission timeouts in milliseconds. RFC 9260 section 16 has 1 s for the first and the
/// least, meant for the open Internet of its time; ICE has just measured this path. The greatest
/// is what a stalled transfer waits after the path is back, so seconds and not a minute.
const RTO_INITIAL: u64 = 500;
const RTO_MIN: u64 = 200;
const RTO_MAX: u64 = 5_000;

/// What [`Association::poll`] reports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The peer opened a channel.
    Opened(ChannelId),
    /// The association is gone.
    Lost(String),
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
