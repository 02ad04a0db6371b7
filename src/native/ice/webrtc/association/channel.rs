//! The data channels of an association.

use std::{
    collections::HashMap,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use sctp_proto::{PayloadProtocolIdentifier as Ppi, ReliabilityType, Stream};

use super::{Association, CLOSE_TIMEOUT, Change};
use crate::{
    native::ice::webrtc::dcep,
    webrtc::backend::{BackendError, INIT_LABEL, LANE_LABEL, LANE_MARKS},
};

/// The bytes that a channel may have sent without an acknowledgement before it must wait. With it,
/// one channel fills 330 Mbit/s at a round trip of 50 ms.
pub(crate) const SEND_BUFFER: usize = 2 << 20;

/// The number of stream ids in use, from 0. Chromium accepts no greater ones. Half of them belong
/// to this side. Peers on rust-libp2p take greater ones and use none again, so only the number of the
/// channels that are open or wait for their reset is bounded.
const STREAM_IDS: u16 = 1024;

/// The id of a channel: its SCTP stream, and which of the channels on this stream it is.
///
/// A peer may open the stream again as soon as both resets are over (RFC 8831 section 6.7). The
/// owner of the old handle may not even have seen the end by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::native::ice::webrtc) struct ChannelId {
    pub(super) stream: u16,
    generation: u64,
}

impl ChannelId {
    #[cfg(test)]
    pub(super) fn of(stream: u16, generation: u64) -> Self {
        Self { stream, generation }
    }

    /// Whether `channel`, on `stream`, is the channel of this id.
    pub(super) fn is(self, stream: u16, channel: &Channel) -> bool {
        self.stream == stream && self.generation == channel.generation
    }
}

#[derive(Debug)]
pub(super) struct Channel {
    generation: u64,
    label: &'static str,
    origin: Origin,
    /// The bytes that may be sent without an acknowledgement.
    send_buffer: usize,
    /// Whether the peer may get data. On an unordered channel, data could overtake
    /// `DATA_CHANNEL_OPEN`, so it waits for the acknowledgement (RFC 8832 section 6).
    known: bool,
    /// Nothing more will arrive.
    pub(super) ended: bool,
    /// This side has closed the channel.
    closed: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// This side opened the channel. `DATA_CHANNEL_OPEN` is still to be sent.
    Opening,
    /// The channel is open. Its `DATA_CHANNEL_OPEN` was sent or read.
    Open,
    /// The peer opened the channel. Its `DATA_CHANNEL_OPEN` was not read yet.
    Announced,
    /// The peer opened the channel. `DATA_CHANNEL_ACK` is still to be sent.
    Unacknowledged,
    /// Both sides have the channel without saying so. Its stream is still to be opened.
    Negotiated,
}

impl Channel {
    fn new(generation: u64, label: &'static str, origin: Origin, send_buffer: usize) -> Self {
        Self {
            generation,
            label,
            origin,
            send_buffer,
            known: label != LANE_LABEL,
            ended: false,
            closed: false,
            reader: None,
            writer: None,
        }
    }

    /// Whether the stream of the channel is still to be opened by this side.
    fn is_to_open(&self) -> bool {
        matches!(self.origin, Origin::Opening | Origin::Negotiated)
    }

    fn is_lane(&self) -> bool {
        self.label == LANE_LABEL
    }

    /// The bytes above which the channel waits, and below which it goes on. The second number is
    /// half of the first, so that the channel is not woken for each message.
    fn marks(&self) -> (usize, usize) {
        match self.is_lane() {
            true => (LANE_MARKS.0 as usize, LANE_MARKS.1 as usize),
            false => (self.send_buffer, self.send_buffer / 2),
        }
    }

    /// Prepares the stream of the channel for what it carries.
    fn configure(&self, stream: &mut Stream<'_>) -> Result<(), sctp_proto::Error> {
        let kind = match self.is_lane() {
            true => ReliabilityType::Rexmit,
            false => ReliabilityType::Reliable,
        };
        stream.set_reliability_params(self.is_lane(), kind, 0)?;
        stream.set_buffered_amount_low_threshold(self.marks().1)
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// Finds the channel of `id`, unless its stream has ended or carries another channel now.
fn find(channels: &mut HashMap<u16, Channel>, id: ChannelId) -> Option<&mut Channel> {
    let channel = channels.get_mut(&id.stream)?;
    (channel.generation == id.generation).then_some(channel)
}

/// The next id of the same parity.
fn following(id: u16) -> u16 {
    (id + 2) % STREAM_IDS
}

impl Association {
    /// Opens a channel with an empty label, for a stream.
    pub(in crate::native::ice::webrtc) fn open(&mut self) -> Result<ChannelId, BackendError> {
        self.open_labelled("")
    }

    /// Opens a channel for datagrams.
    pub(in crate::native::ice::webrtc) fn open_lane(&mut self) -> Result<ChannelId, BackendError> {
        self.open_labelled(LANE_LABEL)
    }

    /// Adds the channel with this id, which the peer has as well without being told.
    pub(in crate::native::ice::webrtc) fn negotiate(&mut self, id: u16) -> ChannelId {
        self.insert(id, "", Origin::Negotiated)
    }

    fn open_labelled(&mut self, label: &'static str) -> Result<ChannelId, BackendError> {
        if self.lost {
            return Err(BackendError::Closed);
        }
        // Taking the ids in turn nearly always finds a free one at once.
        let mut id = self.next_id;
        while !self.reserve(id) {
            id = following(id);
            if id == self.next_id {
                return Err(BackendError::TooManyChannels);
            }
        }
        self.next_id = following(id);
        let opened = self.insert(id, label, Origin::Opening);
        self.announce(id);
        Ok(opened)
    }

    /// Whether the stream is free. If the association is up, the stream is open afterwards. The library
    /// opens no stream whose resets are not over (RFC 8831 section 6.7).
    pub(super) fn reserve(&mut self, id: u16) -> bool {
        match self.sctp.as_mut().filter(|_| self.established) {
            Some((_, sctp)) => sctp.open_stream(id, Ppi::Binary).is_ok(),
            None => !self.channels.contains_key(&id),
        }
    }

    fn insert(&mut self, stream: u16, label: &'static str, origin: Origin) -> ChannelId {
        self.generations += 1;
        let generation = self.generations;
        self.channels.insert(
            stream,
            Channel::new(generation, label, origin, self.buffers.send),
        );
        ChannelId { stream, generation }
    }

    /// Sends `DATA_CHANNEL_OPEN`, if the association is up. Data may follow at once (RFC 8832
    /// section 6), which saves a round trip for each channel.
    pub(super) fn announce(&mut self, id: u16) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let Some((_, sctp)) = self.sctp.as_mut().filter(|_| self.established) else {
            return;
        };
        if !channel.is_to_open() {
            return;
        }
        let opened = sctp.stream(id).and_then(|mut stream| {
            channel.configure(&mut stream)?;
            if channel.origin == Origin::Opening {
                stream.write_with_ppi(&dcep::open(channel.label), Ppi::Dcep)?;
            }
            Ok(())
        });
        channel.origin = Origin::Open;
        self.dirty = true;
        if let Err(error) = opened {
            tracing::debug!(%error, id, "the channel cannot be opened");
            channel.ended = true;
        }
        channel.wake();
    }

    pub(super) fn readable(&mut self, id: u16) {
        match self.channels.get_mut(&id) {
            Some(channel) if channel.closed => {
                let id = ChannelId {
                    stream: id,
                    generation: channel.generation,
                };
                self.discard(id);
            }
            Some(channel) if channel.origin != Origin::Announced => {
                if let Some(reader) = channel.reader.take() {
                    reader.wake();
                }
            }
            Some(_) => self.accept(id),
            None => {
                let announced = self.insert(id, "", Origin::Announced);
                match self.channels.len() <= usize::from(STREAM_IDS) {
                    true => self.accept(id),
                    false => self.reset(announced),
                }
            }
        }
    }

    /// Makes room for other channels: takes what the peer sends on a channel that this side has closed.
    fn discard(&mut self, id: ChannelId) {
        while find(&mut self.channels, id).is_some()
            && let Some((_, sctp)) = &mut self.sctp
            && let Ok(mut stream) = sctp.stream(id.stream)
            && let Ok(Some(message)) = stream.read_sctp()
        {
            self.taken += message.len();
            // Taking the last message can end the channel, and begin the next one on this stream.
            self.process();
        }
        self.announce_window(false);
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
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        channel.origin = Origin::Unacknowledged;
        if let Some(known) = [LANE_LABEL, INIT_LABEL]
            .into_iter()
            .find(|known| label == Some(known))
        {
            channel.label = known;
        }
        let opened = ChannelId {
            stream: id,
            generation: channel.generation,
        };
        // Taking the last message can end the channel, and begin the next one on this stream.
        self.process();
        if find(&mut self.channels, opened).is_none() {
            return;
        }
        let Some(label) = label else {
            tracing::debug!(id, "the channel is refused");
            return self.reset(opened);
        };
        self.acknowledge(id);
        // The offerer closes the channel with this label, and stock peers wait until it has closed. If
        // this side closed it, they could miss that it was ever open.
        match label {
            INIT_LABEL => {}
            LANE_LABEL => self.changes.push_back(Change::Lane(opened)),
            _ => self.changes.push_back(Change::Opened(opened)),
        }
    }

    /// Sends `DATA_CHANNEL_ACK`, if it was not sent. The peer may open a stream before it has confirmed
    /// the reset of the last channel on it, and this side can write only afterwards.
    pub(super) fn acknowledge(&mut self, id: u16) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let Some((_, sctp)) = self.sctp.as_mut().filter(|_| self.established) else {
            return;
        };
        if channel.origin != Origin::Unacknowledged {
            return;
        }
        let acknowledged = sctp.stream(id).and_then(|mut stream| {
            channel.configure(&mut stream)?;
            stream.write_with_ppi(&dcep::ACK, Ppi::Dcep)
        });
        match acknowledged {
            Ok(_) => {
                self.dirty = true;
                channel.origin = Origin::Open;
                channel.wake();
            }
            Err(error) => tracing::debug!(%error, id, "the acknowledgement of a channel waits"),
        }
    }

    /// See [`DataChannel::poll_ready`](crate::webrtc::backend::DataChannel::poll_ready).
    pub(in crate::native::ice::webrtc) fn poll_ready(
        &mut self,
        id: ChannelId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BackendError>> {
        let channel = match find(&mut self.channels, id) {
            Some(channel) if !channel.ended && !channel.closed => channel,
            _ => return Poll::Ready(Err(BackendError::Closed)),
        };
        let stream = match &mut self.sctp {
            Some((_, sctp)) if channel.origin == Origin::Open && channel.known => {
                sctp.stream(id.stream)
            }
            _ => {
                channel.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        let Ok(stream) = stream else {
            return Poll::Ready(Err(BackendError::Closed));
        };
        // The peer has reset the stream. What came before the reset can still be read.
        if !stream.is_writable() {
            return Poll::Ready(Err(BackendError::Closed));
        }
        let room = stream
            .buffered_amount()
            .is_ok_and(|buffered| buffered < channel.marks().0);
        if room {
            return Poll::Ready(Ok(()));
        }
        channel.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// See [`DataChannel::send`](crate::webrtc::backend::DataChannel::send).
    pub(in crate::native::ice::webrtc) fn send(
        &mut self,
        id: ChannelId,
        message: &[u8],
    ) -> Result<(), BackendError> {
        match find(&mut self.channels, id) {
            Some(channel) if !channel.ended && !channel.closed => {}
            _ => return Err(BackendError::Closed),
        }
        let (_, sctp) = self.sctp.as_mut().ok_or(BackendError::Closed)?;
        // SCTP has no empty messages (RFC 8831 section 6.6).
        let (message, ppi) = match message {
            [] => (&[0][..], Ppi::BinaryEmpty),
            message => (message, Ppi::Binary),
        };
        let written = sctp
            .stream(id.stream)
            .and_then(|mut stream| stream.write_with_ppi(message, ppi));
        self.dirty = true;
        match written {
            Ok(_) => Ok(()),
            Err(_) => Err(BackendError::Closed),
        }
    }

    /// See [`DataChannel::poll_next`](crate::webrtc::backend::DataChannel::poll_next).
    pub(in crate::native::ice::webrtc) fn poll_next(
        &mut self,
        id: ChannelId,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Bytes>> {
        if let Some(data) = self.leftovers.take(id) {
            return Poll::Ready(Some(data));
        }
        loop {
            let Some(channel) = find(&mut self.channels, id) else {
                return Poll::Ready(None);
            };
            let is_lane = channel.is_lane();
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
                    // Taking the last message can let a reset through. What is read next then belongs
                    // to the next channel on this stream.
                    self.process();
                    match message.ppi {
                        // This is the acknowledgement of the open message.
                        Ppi::Dcep => {
                            if let Some(channel) = find(&mut self.channels, id) {
                                channel.known = true;
                            }
                        }
                        Ppi::BinaryEmpty | Ppi::StringEmpty if is_lane => {
                            return Poll::Ready(Some(Bytes::new()));
                        }
                        Ppi::BinaryEmpty | Ppi::StringEmpty => {}
                        _ if read.is_ok() => return Poll::Ready(Some(data.into())),
                        _ => return Poll::Ready(None),
                    }
                }
                Ok(None) if !channel.ended => {
                    channel.reader = Some(cx.waker().clone());
                    self.announce_window(true);
                    if find(&mut self.channels, id).is_some_and(|channel| !channel.ended) {
                        return Poll::Pending;
                    }
                }
                // Before the association is up, there is no stream yet.
                Err(_) if !channel.ended && channel.is_to_open() => {
                    channel.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Ok(None) | Err(_) => return Poll::Ready(None),
            }
        }
    }

    /// Tells the peer of the window that readers have opened, after they took a good part of it.
    ///
    /// RFC 9260 section 6.2 wants a SACK for this, but the library sends one only in answer to
    /// DATA. So the library gets the last DATA packet again: it acknowledges the duplicate at once,
    /// with the current window. Otherwise a stopped sender would wait for its next window probe.
    fn announce_window(&mut self, drained: bool) {
        let window = self.buffers.receive as usize;
        let step = if drained { window / 16 } else { window / 4 };
        if self.taken >= step && !self.last_data.is_empty() {
            self.taken = 0;
            self.dirty = true;
            self.handle(self.last_data.clone());
        }
    }

    /// Frees the stream `id` for the next channel, if the peer has reset it and data of the channel
    /// on it is unread. The peer may use the stream again as soon as the resets are over, however long
    /// the owner of the channel takes to read.
    pub(super) fn make_way(&mut self, id: u16) {
        let Some(channel) = self.channels.get(&id) else {
            return;
        };
        // A lane may lose its data, and nobody reads the first channel of a connection.
        let is_kept = !channel.is_lane() && channel.label != INIT_LABEL;
        let old = ChannelId {
            stream: id,
            generation: channel.generation,
        };
        // Once a channel is open, only a reset keeps this side from writing to its stream.
        if channel.origin != Origin::Open || channel.closed {
            return;
        }
        while find(&mut self.channels, old).is_some()
            && let Some((_, sctp)) = &mut self.sctp
            && let Ok(mut stream) = sctp.stream(id)
            && !stream.is_writable()
            && let Ok(Some(message)) = stream.read_sctp()
        {
            let mut data = vec![0; message.len()];
            self.taken += data.len();
            let is_data = !matches!(message.ppi, Ppi::Dcep | Ppi::BinaryEmpty | Ppi::StringEmpty);
            if is_kept && is_data && message.read(&mut data).is_ok() {
                self.leftovers.keep(old, data.into());
            }
            // Taking the last message ends the channel, and begins the next one on this stream.
            self.process();
        }
        self.announce_window(false);
    }

    /// Starts closing a channel. Messages that were sent before still go. A channel of the peer waits
    /// for the peer's reset first.
    pub(in crate::native::ice::webrtc) fn close(&mut self, id: ChannelId) {
        self.leftovers.forget(id);
        let own = id.stream % 2 == self.next_id % 2;
        if own || self.lost {
            return self.reset(id);
        }
        if let Some(channel) = find(&mut self.channels, id)
            && !std::mem::replace(&mut channel.closed, true)
        {
            self.closing.push_back((self.now + CLOSE_TIMEOUT, id));
            self.dirty = true;
            self.discard(id);
        }
    }

    /// Closes the channel of a dropped handle, unless it is closed. The peer is told at once.
    pub(in crate::native::ice::webrtc) fn detach(&mut self, id: ChannelId) {
        self.leftovers.forget(id);
        if find(&mut self.channels, id).is_some_and(|channel| !channel.closed) {
            self.reset(id);
        }
        let no_reset_comes =
            find(&mut self.channels, id).is_some_and(|channel| channel.is_to_open() || self.lost);
        if no_reset_comes {
            self.channels.remove(&id.stream);
        }
    }

    /// Resets the stream of a channel.
    pub(super) fn reset(&mut self, id: ChannelId) {
        if let Some(channel) = find(&mut self.channels, id) {
            channel.closed = true;
            self.reset_stream(id.stream);
        }
    }

    pub(super) fn reset_stream(&mut self, id: u16) {
        self.dirty = true;
        if let Some((_, sctp)) = &mut self.sctp
            && let Ok(mut stream) = sctp.stream(id)
            && let Err(error) = stream.close()
        {
            tracing::debug!(%error, id, "the stream cannot be reset");
        }
    }
}
