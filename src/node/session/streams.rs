//! The session's streams. Either end opens them, and its opener moves each to the path in use.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{Stream as Substream, StreamProtocol, swarm::ConnectionId};

use super::{Session, early::FIRST_BYTES};
use crate::{
    backend::trace,
    core::resume::{self, Header, Refusal, Request, StreamId},
    error::{Error, ErrorKind},
    node::{
        effect::Effect,
        engine::Internal,
        network::{OpenReply, Purpose},
        round::Round,
        start::raw_protocol,
        timers::Deadline,
    },
    stream::{
        Activity, BoxedStream, PumpEvent, PumpHandle, Stream, Via,
        resumable::{self, StreamConfig},
    },
    swarm::substreams::OpenError,
    webrtc::MOST_CHANNELS,
};

/// How long the header of a substream may take. A peer sends it at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long identify may take. After that, the peer counts as a stock peer.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a stream gets a new substream on a path that is still up.
const REATTACH_PAUSE: Duration = Duration::from_millis(200);

/// One resumable stream: the handle of its pump, and how it began.
pub(super) struct Pump {
    pub(super) handle: PumpHandle<BoxedStream>,
    pub(super) opener: bool,
    /// Whether a relay was asked to carry the stream before there was a path.
    pub(super) early: bool,
}

/// The streams of a session.
#[derive(Default)]
pub(super) struct Streams {
    /// Whether the peer speaks resumable streams. It is `None` until that is known.
    resumable: Option<bool>,
    /// The protocols that the peer serves, according to identify.
    protocols: HashSet<String>,
    /// The calls of `open` that wait until `resumable` is known.
    opens: Vec<(String, OpenReply)>,
    pumps: HashMap<StreamId, Pump>,
    /// Its clones count the streams of a stock peer, those on their way included.
    raw: Arc<()>,
    /// Where the streams note that their bytes move.
    pub(super) activity: Arc<Activity>,
    /// Its clones count the peer's substreams whose header has not arrived yet.
    unread: Arc<()>,
}

impl Streams {
    /// Whether there is any resumable stream.
    pub(super) fn any(&self) -> bool {
        !self.pumps.is_empty()
    }

    /// Returns how many streams there are.
    fn count(&self) -> usize {
        self.pumps.len() + self.opens.len() + Arc::strong_count(&self.raw) - 1
    }

    /// Whether the peer is known to speak resumable streams.
    pub(super) fn are_resumable(&self) -> bool {
        self.resumable == Some(true)
    }

    /// Notes whether the peer speaks resumable streams.
    pub(super) fn is_resumable(&mut self, resumable: bool) {
        self.resumable = Some(resumable);
    }

    /// Returns the streams that we opened. We move these to another path, and the peer moves its
    /// own.
    pub(super) fn opened(&self) -> Vec<StreamId> {
        let ours = self.pumps.iter().filter(|(_, pump)| pump.opener);
        ours.map(|(stream, _)| *stream).collect()
    }

    pub(super) fn get_mut(&mut self, stream: StreamId) -> Option<&mut Pump> {
        self.pumps.get_mut(&stream)
    }

    pub(super) fn fail(&self, stream: StreamId, error: Error) {
        if let Some(pump) = self.pumps.get(&stream) {
            pump.handle.fail(error);
        }
    }

    /// Takes out the streams that both ends have finished or one end has reset.
    pub(super) fn take_ending(&mut self) -> Vec<PumpHandle<BoxedStream>> {
        let ending = self.pumps.extract_if(|_, pump| pump.handle.is_ending());
        ending.map(|(_, pump)| pump.handle).collect()
    }

    /// Ends every stream and every `open` that waits. Returns how many streams there were.
    pub(super) fn end(&mut self, ended: impl Fn() -> Error) -> usize {
        for (_, reply) in self.opens.drain(..) {
            let _ = reply.send(Err(ended()));
        }
        let pumps = self.pumps.drain();
        pumps.map(|(_, pump)| pump.handle.fail(ended())).count()
    }
}

impl Session {
    /// Fails with [`ErrorKind::LimitExceeded`] if no further stream may be opened.
    pub(in crate::node) fn check_room(&self, round: &Round<'_>) -> Result<(), Error> {
        let most = match self.streams.resumable {
            Some(false) if self.paths.has_channels() => round.config.max_streams.min(MOST_CHANNELS),
            _ => round.config.max_streams,
        };
        if self.streams.count() < most {
            return Ok(());
        }
        let limit = format!("max_streams: {most} are open on this connection");
        Err(Error::new(ErrorKind::LimitExceeded, limit))
    }

    pub(in crate::node) fn open(
        &mut self,
        protocol: String,
        reply: OpenReply,
        round: &mut Round<'_>,
    ) {
        if let Err(full) = self.check_room(round) {
            let _ = reply.send(Err(full));
            return;
        }
        match self.streams.resumable {
            Some(true) => {
                let opened = self.open_resumable(&protocol, round);
                let _ = reply.send(opened.map(|(_, stream)| stream));
            }
            Some(false) => self.open_raw(protocol, reply, round),
            None => {
                if self.streams.opens.is_empty() {
                    self.wake_after(IDENTIFY_TIMEOUT, Deadline::Identify, round);
                }
                self.streams.opens.push((protocol, reply));
            }
        }
    }

    fn stream_config(&self, round: &Round<'_>) -> StreamConfig {
        StreamConfig {
            session: self.id,
            activity: self.streams.activity.clone(),
            first_bytes: FIRST_BYTES,
            window: round.config.stream_window,
            resume_timeout: round.config.resume_timeout,
        }
    }

    pub(in crate::node) fn open_resumable(
        &mut self,
        protocol: &str,
        round: &mut Round<'_>,
    ) -> Result<(StreamId, Stream), Error> {
        let pumps = round.outbox.pumps.clone();
        let (stream, handle, pump) = resumable::open(protocol, self.stream_config(round), pumps)?;
        round.push(Effect::Spawn(trace::within(self.span(), pump)));
        let id = handle.id();
        self.keep(handle, true, round);
        self.attach(id, round);
        Ok((id, stream))
    }

    fn keep(&mut self, handle: PumpHandle<BoxedStream>, opener: bool, round: &Round<'_>) {
        round.metrics.streams.inc();
        let pump = Pump {
            handle,
            opener,
            early: false,
        };
        self.streams.pumps.insert(pump.handle.id(), pump);
    }

    /// Opens a substream for one of our streams on the path in use. If there is no path, the stream
    /// waits for one, and goes through a relay as early data if it can.
    pub(in crate::node) fn attach(&mut self, stream: StreamId, round: &mut Round<'_>) {
        if !self.streams.pumps.contains_key(&stream) {
            return;
        }
        let Some(connection) = self.paths.active() else {
            self.send_early(stream, round);
            return;
        };
        round.push(Effect::Open {
            peer: self.peer,
            connection,
            protocol: StreamProtocol::new(resume::PROTOCOL),
            purpose: Purpose::Carry {
                session: self.id,
                stream,
                connection,
            },
        });
    }

    /// The path has changed. Moves the streams that we opened. The peer moves its own.
    pub(super) fn move_streams(&mut self, round: &mut Round<'_>) {
        for stream in self.streams.opened() {
            self.attach(stream, round);
        }
    }

    fn open_raw(&mut self, protocol: String, reply: OpenReply, round: &mut Round<'_>) {
        let wire = match raw_protocol(&protocol) {
            Ok(wire) => wire,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        // Identify lists what the peer serves. Without this check, the refusal would come at some
        // later read, because negotiation is lazy.
        let served = &self.streams.protocols;
        if !served.is_empty() && !served.contains(wire.as_ref()) {
            let _ = reply.send(Err(not_served(&protocol)));
            return;
        }
        let Some(connection) = self.paths.active() else {
            let lost = Error::new(ErrorKind::ConnectionLost, "there is no path to the peer");
            let _ = reply.send(Err(lost));
            return;
        };
        round.push(Effect::Open {
            peer: self.peer,
            connection,
            protocol: wire,
            purpose: Purpose::Raw {
                protocol,
                reply,
                place: self.streams.raw.clone(),
            },
        });
    }

    /// Identify has reported what the peer serves.
    pub(in crate::node) fn on_identified(
        &mut self,
        protocols: HashSet<String>,
        round: &mut Round<'_>,
    ) {
        let resumable = protocols.contains(resume::PROTOCOL);
        self.streams.is_resumable(resumable);
        self.on_datagrams_known(&protocols, round);
        self.streams.protocols = protocols;
        self.release_opens(round);
    }

    /// The time for identify is over.
    pub(super) fn on_identify_deadline(&mut self, round: &mut Round<'_>) {
        self.streams.resumable.get_or_insert(false);
        self.release_opens(round);
    }

    /// It is known now whether the peer speaks resumable streams. Opens the streams that had to
    /// wait for that.
    fn release_opens(&mut self, round: &mut Round<'_>) {
        for (protocol, reply) in std::mem::take(&mut self.streams.opens) {
            if !reply.is_closed() {
                self.open(protocol, reply, round);
            }
        }
    }

    /// The request for a substream that is to carry one of our streams has been answered.
    pub(in crate::node) fn on_carrier(
        &mut self,
        stream: StreamId,
        connection: ConnectionId,
        result: Result<Substream, OpenError>,
        round: &mut Round<'_>,
    ) {
        let Some(pump) = self.streams.pumps.get(&stream) else {
            return;
        };
        let is_active = self.paths.active() == Some(connection);
        match result {
            // An open that took long must not bring the stream back to a path that is no longer in
            // use.
            Ok(substream) if is_active => {
                pump.handle.attach(Box::pin(substream), Some(connection));
            }
            Err(OpenError::Unsupported) => pump.handle.fail(Error::new(
                ErrorKind::ProtocolRefused,
                "the peer does not speak resumable streams",
            )),
            // If the path is gone, the next one brings another substream.
            Err(_) if is_active => {
                self.wake_after(REATTACH_PAUSE, Deadline::Reattach(stream), round)
            }
            Ok(_) | Err(_) => {}
        }
    }

    pub(in crate::node) fn on_pump(&mut self, event: PumpEvent, round: &mut Round<'_>) {
        match event {
            PumpEvent::Lost { id, connection, .. } => {
                let Some(pump) = self.streams.pumps.get(&id).filter(|pump| pump.opener) else {
                    return;
                };
                let stream = pump.handle.id();
                match self.paths.active() {
                    Some(active) if connection == Some(active) => {
                        self.wake_after(REATTACH_PAUSE, Deadline::Reattach(stream), round);
                    }
                    Some(_) => self.attach(stream, round),
                    None => {}
                }
            }
            PumpEvent::Busy { connection, .. } => {
                if let Some(connection) = connection {
                    self.on_busy(connection, round);
                }
            }
            PumpEvent::Done { id, .. } => {
                if self.streams.pumps.remove(&id).is_some() {
                    round.metrics.streams.dec();
                }
            }
        }
    }

    /// The peer opened a substream for one of its resumable streams. Reads the header in a task.
    pub(in crate::node) fn on_resumable(
        &mut self,
        connection: ConnectionId,
        mut substream: Substream,
        round: &mut Round<'_>,
    ) {
        let unread = self.streams.unread.clone();
        if Arc::strong_count(&unread) > round.config.max_streams + 1 {
            tracing::debug!("too many substreams without a header, one is dropped");
            return;
        }
        let report = round.outbox.internal.clone();
        let peer = self.peer;
        let read = async move {
            let _unread = unread;
            let header = resumable::read_header(&mut substream).boxed();
            let header = match select(header, Delay::new(HEADER_TIMEOUT)).await {
                Either::Left((header, _)) => header,
                Either::Right(_) => return,
            };
            match header {
                Ok(header) => {
                    let event = Internal::Header {
                        peer,
                        connection: Some(connection),
                        header,
                        substream: Box::pin(substream),
                    };
                    let _ = report.send(event).await;
                }
                Err(error) => tracing::debug!(%error, "a substream is dropped"),
            }
        };
        round.push(Effect::Spawn(trace::within(self.span(), read)));
    }

    /// The peer opened a stream as stock peers do.
    pub(in crate::node) fn on_raw(
        &mut self,
        name: String,
        substream: Substream,
        round: &Round<'_>,
    ) {
        if let Err(full) = self.check_room(round) {
            tracing::debug!(error = %full, "an incoming stream is refused");
            return;
        }
        let stream = Stream::plain(&name, substream, self.streams.raw.clone());
        if self.incoming.try_send(Box::new((name, stream))).is_err() {
            tracing::debug!("nobody accepts, an incoming stream is refused");
        }
    }

    /// The header of a substream that the peer opened has arrived. Begins or moves its stream.
    pub(in crate::node) fn on_header(
        &mut self,
        connection: Via,
        header: Header,
        substream: BoxedStream,
        round: &mut Round<'_>,
    ) {
        self.streams.is_resumable(true);
        let refusal = match (self.streams.pumps.get(&header.id), &header.request) {
            (Some(pump), _) if !pump.opener => {
                pump.handle.resume(header, substream, connection);
                return self.release_opens(round);
            }
            (None, Request::Open { protocol, .. }) => {
                let protocol = protocol.clone();
                let has_room = self.check_room(round).is_ok();
                let place = self.incoming.clone().try_reserve_owned();
                match place {
                    Ok(place) if has_room => {
                        self.take_in(header, substream, connection, round, |stream| {
                            place.send(Box::new((protocol, stream)));
                        });
                        return self.release_opens(round);
                    }
                    _ => Refusal::TooManyStreams,
                }
            }
            _ => Refusal::UnknownStream,
        };
        self.release_opens(round);
        let refuse = async move {
            let refuse = resumable::refuse(substream, &header, refusal).boxed();
            select(refuse, Delay::new(HEADER_TIMEOUT)).await;
        };
        round.push(Effect::Spawn(trace::within(self.span(), refuse)));
    }

    fn take_in(
        &mut self,
        header: Header,
        substream: BoxedStream,
        connection: Via,
        round: &mut Round<'_>,
        deliver: impl FnOnce(Stream),
    ) {
        let (config, pumps) = (self.stream_config(round), round.outbox.pumps.clone());
        match resumable::accept(header, substream, connection, config, pumps) {
            Ok((stream, handle, pump)) => {
                round.push(Effect::Spawn(trace::within(self.span(), pump)));
                self.keep(handle, false, round);
                deliver(stream);
            }
            Err(error) => tracing::debug!(%error, "an incoming stream is refused"),
        }
    }
}

/// The request for the substream of a stream to a stock peer has been answered.
pub(in crate::node) fn on_raw_opened(
    protocol: &str,
    reply: OpenReply,
    place: Arc<()>,
    result: Result<Substream, OpenError>,
) {
    let result = result
        .map(|substream| Stream::plain(protocol, substream, place))
        .map_err(|error| match error {
            OpenError::Unsupported => not_served(protocol),
            _ => Error::new(ErrorKind::ConnectionLost, "the path broke while opening"),
        });
    let _ = reply.send(result);
}

fn not_served(protocol: &str) -> Error {
    let refused = format!("the peer does not serve `{protocol}`");
    Error::new(ErrorKind::ProtocolRefused, refused)
}
