//! Streams that do not wait for a path: their first bytes are sealed for the peer and go through
//! the relay at once, beside the requests that bring the path about.

use std::sync::Arc;

use futures::{
    FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{PeerId, Stream as Substream, StreamProtocol};

use super::{
    engine::{Internal, Node, Timer},
    opening::{HEADER_TIMEOUT, Purpose},
    relays::Link,
    resumable,
    session::Waiting,
    streams::OpenError,
};
use crate::{
    backend::{
        self,
        offer::{Sealed, carrier, sealing},
    },
    connection::Connection,
    core::{
        offer::{Content, OFFER_PROTOCOL},
        resume::StreamId,
    },
    error::Error,
    stream::Stream,
    ticket::Ticket,
};

/// Sealed offers and streams that are being opened; each is some curve arithmetic.
const MAX_OFFERS: usize = 32;

impl Node {
    /// Begins a connection, if there is none, and a stream on it, without waiting for either.
    pub(super) fn open_early(
        &mut self,
        ticket: &Ticket,
        protocol: &str,
    ) -> Result<(Connection, Stream), Error> {
        let id = self.session_by(ticket)?;
        let session = self
            .sessions
            .get(&id)
            .ok_or_else(crate::connector::closed)?;
        session.check_room(self.config.max_streams)?;
        let connection = self.handle(id)?;
        let (stream_id, stream) = self.open_resumable(id, protocol)?;
        self.pursue(id, Waiting::Stream(stream_id));
        Ok((connection, stream))
    }

    /// The way to the peer has come up, or may have: sends what waits for that.
    pub(super) fn send_all_early(&mut self, id: u64) {
        let session = self.sessions.get(&id).filter(|s| s.active.is_none());
        let Some(session) = session.filter(|s| sealing(&s.peer).is_some()) else {
            return;
        };
        let ours = session.pumps.iter().filter(|(_, pump)| pump.opener);
        for stream in ours.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            self.send_early(id, stream);
        }
    }

    /// Asks a relay to carry one of our streams to the peer until there is a path.
    pub(super) fn send_early(&mut self, id: u64, stream: StreamId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let targets = session.targets.as_ref();
        let taken = targets.and_then(|targets| targets.incarnation).is_some();
        if let Some((relay, link, sealing)) = session.offer_relay(&self.relays).filter(|_| taken)
            && let Link::Up(conn, _) = link.link
            && let Some(pump) = session.pumps.get_mut(&stream).filter(|pump| !pump.early)
        {
            pump.early = true;
            let protocol = StreamProtocol::new(OFFER_PROTOCOL);
            let streams = &mut self.swarm.behaviour_mut().streams;
            let open = streams.open(relay, conn, protocol);
            let purpose = Purpose::Early {
                session: id,
                stream,
                _sealing: sealing,
            };
            self.opening.insert(open, purpose);
        }
    }

    /// The stream to the relay is there. What goes wrong with it is no failure: the path that is
    /// being sought carries the stream as well.
    pub(super) fn on_early_stream(
        &mut self,
        id: u64,
        stream: StreamId,
        result: Result<Substream, OpenError>,
    ) {
        let Some(session) = self.sessions.get(&id).filter(|s| s.active.is_none()) else {
            return;
        };
        let targets = session.targets.as_ref();
        let (Some(pump), Some(incarnation)) = (
            session.pumps.get(&stream),
            targets.and_then(|targets| targets.incarnation),
        ) else {
            return;
        };
        if let Some(sealed) = self.seal(&session.peer, Content::Stream(incarnation), result) {
            pump.handle.attach(carrier(sealed), None);
        }
    }

    /// Seals what will be said to `peer` on a stream to its relay.
    pub(super) fn seal(
        &self,
        peer: &PeerId,
        content: Content,
        stream: Result<Substream, OpenError>,
    ) -> Option<Sealed<Substream>> {
        let sealer = self.sealer.as_ref()?;
        sealer.offer(peer, content, stream.ok()?).ok()
    }

    /// A relay passes something sealed on; who sent it shows when it is opened.
    pub(super) fn take_offer(&mut self, relay: PeerId, stream: Substream) {
        let reserved = self.relays.get(&relay).and_then(|r| r.listener()).is_some();
        let Some(sealer) = self.sealer.clone().filter(|_| reserved) else {
            return;
        };
        if Arc::strong_count(&self.offers) > MAX_OFFERS {
            tracing::debug!("too many offers at once");
            return;
        }
        let (permit, report) = (self.offers.clone(), self.internal_tx.clone());
        backend::runtime::spawn(async move {
            let opened = async {
                let (peer, content, mut sealed) = sealer.open(stream).await?;
                if let (Content::Signalling, Some(sealing)) = (content, sealing(&peer)) {
                    return Ok(Internal::Offered(peer, Box::pin(sealed), sealing));
                }
                let header = resumable::read_header(&mut sealed).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Internal::Header {
                    peer,
                    connection: None,
                    header,
                    substream: carrier(sealed),
                })
            };
            match select(opened.boxed(), Delay::new(HEADER_TIMEOUT)).await {
                Either::Left((Ok(event), _)) => _ = report.send(event).await,
                Either::Left((Err(error), _)) => tracing::debug!(%error, "an offer is dropped"),
                Either::Right(_) => {}
            }
            drop(permit);
        });
    }

    /// A peer that we have no path to has sent early data: its connection begins with it, and ends
    /// if no path follows.
    pub(super) fn begin_early(&mut self, peer: PeerId) -> Option<u64> {
        self.sealer.as_ref()?;
        let id = match self.new_session(peer) {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(%error, "early data is refused");
                return None;
            }
        };
        let timeout = self.config.resume_timeout;
        self.timers.after(timeout, Timer::ResumeDeadline(id));
        self.announce(id, None);
        self.sessions.contains_key(&id).then_some(id)
    }
}
