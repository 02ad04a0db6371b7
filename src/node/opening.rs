//! Brings streams to the path in use, and takes in those that peers open.

use std::{sync::Arc, time::Duration};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{Multiaddr, PeerId, Stream as Substream, StreamProtocol, swarm::ConnectionId};
use tokio::sync::oneshot;

use super::{
    connect::Conns,
    engine::{FAREWELL, Internal, LAST_STREAMS, Node, Timer, raw_protocol},
    resumable::{self, PumpEvent, PumpHandle, StreamConfig, Via},
    session::Pump,
    streams::OpenError,
};
use crate::{
    backend::{
        self,
        offer::{Carrier, Sealing, carrier},
    },
    core::{
        circuit::CircuitError,
        offer::OFFER_PROTOCOL,
        resume::{self, Header, Refusal, Request, StreamId},
    },
    error::{Error, ErrorKind},
    stream::Stream,
};

/// Opening a substream for this says that the connection is being closed on purpose, so that the
/// other end does not wait for it to come back.
pub(super) const CLOSE_PROTOCOL: &str = "/throughline/close/1";

/// How long the header of a substream may take; a peer sends it at once.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long identify may take before a peer counts as a stock one.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a substream is opened anew on a path that still stands.
const REATTACH_PAUSE: Duration = Duration::from_millis(200);

type OpenReply = oneshot::Sender<Result<Stream, Error>>;
type CircuitReply = futures::channel::oneshot::Sender<Result<Substream, CircuitError>>;

/// What a substream is opened for.
pub(super) enum Purpose {
    /// To carry a resumable stream.
    Carry {
        session: u64,
        stream: StreamId,
        connection: ConnectionId,
    },
    /// To be a stock peer's stream.
    Raw { protocol: String, reply: OpenReply },
    /// To ask a relay for a circuit.
    Circuit(CircuitReply),
    /// To carry a resumable stream before there is a path, sealed.
    Early {
        session: u64,
        stream: StreamId,
        _sealing: Sealing,
    },
    /// To signal ICE by a sealed offer, for a dial at this relay's address.
    Offer {
        session: u64,
        way: usize,
        relay: Multiaddr,
        sealing: Sealing,
    },
    /// To say goodbye, behind the end of streams.
    Farewell(PeerId, Vec<PumpHandle<Carrier>>),
}

impl Node {
    pub(super) fn open(&mut self, id: u64, protocol: String, reply: OpenReply) {
        let max_streams = self.config.max_streams;
        let Some(session) = self.sessions.get_mut(&id) else {
            let closed = Error::new(ErrorKind::ConnectionClosed, "the connection is closed");
            let _ = reply.send(Err(closed));
            return;
        };
        if let Err(full) = session.check_room(max_streams) {
            let _ = reply.send(Err(full));
            return;
        }
        match session.resumable {
            Some(true) => {
                let opened = self.open_resumable(id, &protocol);
                let _ = reply.send(opened.map(|(_, stream)| stream));
            }
            Some(false) => self.open_raw(id, protocol, reply),
            None => {
                if session.opens.is_empty() {
                    self.timers.after(IDENTIFY_TIMEOUT, Timer::OpenDeadline(id));
                }
                session.opens.push((protocol, reply));
            }
        }
    }

    fn stream_config(&self) -> StreamConfig {
        StreamConfig {
            window: self.config.stream_window,
            resume_timeout: self.config.resume_timeout,
        }
    }

    pub(super) fn open_resumable(
        &mut self,
        id: u64,
        protocol: &str,
    ) -> Result<(StreamId, Stream), Error> {
        let (stream, handle, pump) =
            resumable::open(protocol, self.stream_config(), self.pump_tx.clone())?;
        backend::runtime::spawn(pump);
        let stream_id = handle.id();
        self.keep(id, handle, true);
        self.attach(id, stream_id);
        Ok((stream_id, stream))
    }

    fn keep(&mut self, id: u64, handle: PumpHandle<Carrier>, opener: bool) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.shared.metrics.streams.inc();
            let pump = Pump {
                handle,
                opener,
                early: false,
            };
            session.pumps.insert(pump.handle.id(), pump);
        }
    }

    /// Opens a substream for one of our streams on the path in use. Without a path, the stream
    /// waits for the next one, and meanwhile goes early if it can.
    pub(super) fn attach(&mut self, id: u64, stream: StreamId) {
        let session = self.sessions.get(&id);
        let Some(session) = session.filter(|s| s.pumps.contains_key(&stream)) else {
            return;
        };
        let Some(connection) = session.active else {
            self.send_early(id, stream);
            return;
        };
        let protocol = StreamProtocol::new(resume::PROTOCOL);
        let streams = &mut self.swarm.behaviour_mut().streams;
        let open = streams.open(session.peer, connection, protocol);
        let purpose = Purpose::Carry {
            session: id,
            stream,
            connection,
        };
        self.opening.insert(open, purpose);
    }

    /// The path has changed: streams that we opened move; the peer moves its own.
    pub(super) fn move_streams(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let ours = session.pumps.iter().filter(|(_, pump)| pump.opener);
        for stream in ours.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            self.attach(id, stream);
        }
    }

    fn open_raw(&mut self, id: u64, protocol: String, reply: OpenReply) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let wire = match raw_protocol(&protocol) {
            Ok(wire) => wire,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        // Identify lists what the peer serves. Asking anyway would let the refusal come at some
        // later read, because negotiation is lazy.
        if !session.protocols.is_empty() && !session.protocols.contains(wire.as_ref()) {
            let refused = format!("the peer does not serve `{protocol}`");
            let _ = reply.send(Err(Error::new(ErrorKind::ProtocolRefused, refused)));
            return;
        }
        let Some(connection) = session.active else {
            let lost = Error::new(ErrorKind::ConnectionLost, "there is no path to the peer");
            let _ = reply.send(Err(lost));
            return;
        };
        let streams = &mut self.swarm.behaviour_mut().streams;
        let open = streams.open(session.peer, connection, wire);
        self.opening.insert(open, Purpose::Raw { protocol, reply });
    }

    /// It is known what the peer speaks: opens what had to wait for that.
    pub(super) fn release_opens(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for (protocol, reply) in std::mem::take(&mut session.opens) {
            if !reply.is_closed() {
                self.open(id, protocol, reply);
            }
        }
    }

    pub(super) fn on_open_deadline(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.resumable.get_or_insert(false);
            self.release_opens(id);
        }
    }

    pub(super) fn on_opened(
        &mut self,
        open: super::streams::OpenId,
        result: Result<Substream, OpenError>,
    ) {
        match self.opening.remove(&open) {
            Some(Purpose::Carry {
                session,
                stream,
                connection,
            }) => self.on_carrier(session, stream, connection, result),
            Some(Purpose::Raw { protocol, reply }) => {
                let result = result
                    .map(|substream| Stream::plain(&protocol, substream))
                    .map_err(|error| match error {
                        OpenError::Unsupported => Error::new(
                            ErrorKind::ProtocolRefused,
                            format!("the peer does not serve `{protocol}`"),
                        ),
                        _ => Error::new(ErrorKind::ConnectionLost, "the path broke while opening"),
                    });
                let _ = reply.send(result);
            }
            Some(Purpose::Circuit(reply)) => {
                let _ = reply.send(result.map_err(|_| CircuitError::NoLink));
            }
            Some(Purpose::Early {
                session, stream, ..
            }) => {
                self.on_early_stream(session, stream, result);
            }
            Some(Purpose::Offer {
                session,
                way,
                relay,
                sealing,
            }) => self.on_offer_stream(session, way, &relay, sealing, result),
            Some(Purpose::Farewell(peer, ending)) => self.say_farewell(peer, ending, result),
            None => {}
        }
    }

    fn on_carrier(
        &mut self,
        id: u64,
        stream: StreamId,
        connection: ConnectionId,
        result: Result<Substream, OpenError>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(pump) = session.pumps.get(&stream) else {
            return;
        };
        match result {
            // A slow open must not bring the stream back to a path that was left meanwhile.
            Ok(substream) if session.active == Some(connection) => {
                pump.handle.attach(carrier(substream), Some(connection));
            }
            Err(OpenError::Unsupported) => pump.handle.fail(Error::new(
                ErrorKind::ProtocolRefused,
                "the peer does not speak resumable streams",
            )),
            // If the path is gone, the next one brings another substream.
            Err(_) if session.active == Some(connection) => {
                self.timers
                    .after(REATTACH_PAUSE, Timer::Reattach(id, stream));
            }
            Ok(_) | Err(_) => {}
        }
    }

    pub(super) fn on_pump(&mut self, event: PumpEvent) {
        match event {
            PumpEvent::Lost { id, connection } => {
                let owner = self.sessions.iter().find_map(|(session_id, session)| {
                    let pump = session.pumps.get(&id)?;
                    Some((*session_id, pump.opener, session.active))
                });
                match owner {
                    Some((session, true, Some(active))) if connection == Some(active) => {
                        self.timers
                            .after(REATTACH_PAUSE, Timer::Reattach(session, id));
                    }
                    Some((session, true, Some(_))) => self.attach(session, id),
                    _ => {}
                }
            }
            PumpEvent::Done { id } => {
                for session in self.sessions.values_mut() {
                    if session.pumps.remove(&id).is_some() {
                        self.shared.metrics.streams.dec();
                    }
                }
            }
        }
    }

    /// A peer opened a substream.
    pub(super) fn on_inbound(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        mut substream: Substream,
    ) {
        if protocol.as_ref() == OFFER_PROTOCOL {
            self.take_offer(peer, substream);
            return;
        }
        let Some(&id) = self.by_peer.get(&peer) else {
            return;
        };
        if protocol.as_ref() == CLOSE_PROTOCOL {
            self.end_session(id, ErrorKind::ConnectionClosed, Conns::Close);
            return;
        }
        if protocol.as_ref() == resume::PROTOCOL {
            let unread = self.sessions.get(&id).map(|session| session.unread.clone());
            let Some(unread) =
                unread.filter(|u| Arc::strong_count(u) <= self.config.max_streams + 1)
            else {
                tracing::debug!("too many substreams without a header, one is dropped");
                return;
            };
            let report = self.internal_tx.clone();
            backend::runtime::spawn(async move {
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
                            substream: carrier(substream),
                        };
                        let _ = report.send(event).await;
                    }
                    Err(error) => tracing::debug!(%error, "a substream is dropped"),
                }
            });
            return;
        }
        let Some(name) = self.raw.get(&protocol).cloned() else {
            return;
        };
        if let Some(session) = self.sessions.get(&id) {
            let stream = Stream::plain(&name, substream);
            if session.incoming.try_send(Box::new((name, stream))).is_err() {
                tracing::debug!("nobody accepts, an incoming stream is refused");
            }
        }
    }

    pub(super) fn on_header(
        &mut self,
        peer: PeerId,
        connection: Via,
        header: Header,
        substream: Carrier,
    ) {
        let known = self.by_peer.get(&peer).copied();
        let begin = || connection.is_none().then(|| self.begin_early(peer))?;
        let Some(id) = known.or_else(begin) else {
            return;
        };
        let max_streams = self.config.max_streams;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.resumable = Some(true);
        let refusal = match (session.pumps.get(&header.id), &header.request) {
            (Some(pump), _) if !pump.opener => {
                pump.handle.resume(header, substream, connection);
                return self.release_opens(id);
            }
            (None, Request::Open { .. }) if session.pumps.len() >= max_streams => {
                Refusal::TooManyStreams
            }
            (None, Request::Open { protocol, .. }) => {
                match session.incoming.clone().try_reserve_owned() {
                    Ok(place) => {
                        let protocol = protocol.clone();
                        self.take_in(id, header, substream, connection, |stream| {
                            place.send(Box::new((protocol, stream)));
                        });
                        return self.release_opens(id);
                    }
                    Err(_) => Refusal::TooManyStreams,
                }
            }
            _ => Refusal::UnknownStream,
        };
        self.release_opens(id);
        backend::runtime::spawn(async move {
            let refuse = resumable::refuse(substream, &header, refusal).boxed();
            select(refuse, Delay::new(HEADER_TIMEOUT)).await;
        });
    }

    fn take_in(
        &mut self,
        id: u64,
        header: Header,
        substream: Carrier,
        connection: Via,
        deliver: impl FnOnce(Stream),
    ) {
        let accepted = resumable::accept(
            header,
            substream,
            connection,
            self.stream_config(),
            self.pump_tx.clone(),
        );
        match accepted {
            Ok((stream, handle, pump)) => {
                backend::runtime::spawn(pump);
                self.keep(id, handle, false);
                deliver(stream);
            }
            Err(error) => tracing::debug!(%error, "an incoming stream is refused"),
        }
    }

    /// Closes a connection and tells the peer. `reply` is answered when the peer knows, or has had
    /// its time.
    pub(super) fn close_session(&mut self, id: u64, reply: Option<oneshot::Sender<()>>) {
        let Some(session) = self.sessions.get_mut(&id) else {
            if let Some(reply) = reply {
                let _ = reply.send(());
            }
            return;
        };
        let peer = session.peer;
        let farewell = session.active.filter(|_| session.resumable == Some(true));
        let waiting = self.farewells.entry(peer).or_default();
        waiting.extend(reply);
        match farewell {
            Some(connection) => {
                let ending = session.pumps.extract_if(|_, pump| pump.handle.is_ending());
                let ending: Vec<_> = ending.map(|(_, pump)| pump.handle).collect();
                self.shared.metrics.streams.dec_by(ending.len() as i64);
                self.turn_away(peer, connection, ending);
                self.end_session(id, ErrorKind::ConnectionClosed, Conns::Keep);
            }
            None => {
                self.end_session(id, ErrorKind::ConnectionClosed, Conns::Close);
                self.finish_farewell(peer);
            }
        }
    }

    /// Tells a peer that has no session that this is on purpose, so that it does not come back, and
    /// lets it go. Streams that are `ending` may end first: the peer, which may wait for just that,
    /// would take them for cut short.
    pub(super) fn turn_away(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        ending: Vec<PumpHandle<Carrier>>,
    ) {
        self.farewells.entry(peer).or_default();
        let protocol = StreamProtocol::new(CLOSE_PROTOCOL);
        let streams = &mut self.swarm.behaviour_mut().streams;
        let open = streams.open(peer, connection, protocol);
        self.opening.insert(open, Purpose::Farewell(peer, ending));
    }

    fn say_farewell(
        &mut self,
        peer: PeerId,
        ending: Vec<PumpHandle<Carrier>>,
        result: Result<Substream, OpenError>,
    ) {
        let Ok(mut substream) = result else {
            self.finish_farewell(peer);
            return;
        };
        let report = self.internal_tx.clone();
        backend::runtime::spawn(async move {
            let ended = async {
                for stream in ending {
                    stream.ended().await;
                }
            };
            select(ended.boxed(), Delay::new(LAST_STREAMS)).await;
            // Lazy negotiation sends the protocol with the close; the peer's end of stream tells
            // that it has come.
            let told = async {
                let _ = substream.close().await;
                let _ = substream.read(&mut [0]).await;
            };
            select(told.boxed(), Delay::new(FAREWELL)).await;
            let _ = report.send(Internal::FarewellDone(peer)).await;
        });
    }

    pub(super) fn finish_farewell(&mut self, peer: PeerId) {
        if let Some(waiting) = self.farewells.remove(&peer) {
            // Not being connected is what is wanted. A new session with the peer is left alone.
            if !self.by_peer.contains_key(&peer) {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            for reply in waiting {
                let _ = reply.send(());
            }
            self.release_relays();
            self.stop_if_done();
        }
    }
}
