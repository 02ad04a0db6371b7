//! The data channels of an association.

use std::{
    collections::HashMap,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use sctp_proto::{PayloadProtocolIdentifier as Ppi, ReliabilityType};

use super::{Association, Change, RECEIVE_WINDOW};
use crate::{
    native::rtc::dcep,
    rtc::backend::{BackendError, INIT_LABEL},
};

/// Bytes a channel may have sent and not seen acknowledged before it must wait; with it, one
/// channel fills 330 Mbit/s at 50 ms round trip.
pub(crate) const SEND_BUFFER: usize = 2 << 20;

/// Below this a channel that had to wait goes on: half, so that it is not woken for each message.
const SEND_LOW: usize = SEND_BUFFER / 2;

/// Stream ids in use, from 0; Chromium takes no greater ones. Half of them are ours, which with
/// those that wait for their reset bounds the channels of a connection.
const STREAM_IDS: u16 = 1024;

/// Bytes that readers took since the peer last heard of our window, after which it is told.
const WINDOW_STEP: usize = RECEIVE_WINDOW as usize / 4;

/// A channel: its SCTP stream, and which of the channels that this stream carried.
///
/// A peer may open the stream again as soon as both resets are over (RFC 8831 section 6.7), while
/// the owner of the handle has not even seen the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::native::rtc) struct ChannelId {
    stream: u16,
    generation: u64,
}

#[derive(Debug)]
pub(super) struct Channel {
    generation: u64,
    label: &'static str,
    origin: Origin,
    /// Nothing more will come.
    pub(super) ended: bool,
    /// We closed it.
    closed: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
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

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
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

impl Association {
    /// Opens a channel with an empty label.
    pub(in crate::native::rtc) fn open(&mut self) -> Result<ChannelId, BackendError> {
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
    pub(super) fn announce(&mut self, id: u16) {
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

    pub(super) fn readable(&mut self, id: u16) {
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
    pub(in crate::native::rtc) fn poll_ready(
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
    pub(in crate::native::rtc) fn send(
        &mut self,
        id: ChannelId,
        message: &[u8],
    ) -> Result<(), BackendError> {
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
    pub(in crate::native::rtc) fn poll_next(
        &mut self,
        id: ChannelId,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Bytes>> {
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
    pub(in crate::native::rtc) fn close(&mut self, id: ChannelId) {
        if let Some(channel) = find(&mut self.channels, id)
            && !std::mem::replace(&mut channel.closed, true)
        {
            self.close_stream(id.stream);
        }
    }

    /// The handle of a channel is gone: closes it, and frees its stream once that is done.
    pub(in crate::native::rtc) fn detach(&mut self, id: ChannelId) {
        self.close(id);
        let no_reset_comes = find(&mut self.channels, id)
            .is_some_and(|channel| channel.origin == Origin::Opening || self.lost);
        if no_reset_comes {
            self.channels.remove(&id.stream);
        }
    }

    pub(super) fn close_stream(&mut self, id: u16) {
        self.dirty = true;
        if let Some((_, sctp)) = &mut self.sctp
            && let Ok(mut stream) = sctp.stream(id)
            && let Err(error) = stream.close()
        {
            tracing::debug!(%error, id, "stream not reset");
        }
    }
}
