//! Streams that do not wait for a path: their first bytes are sealed for the peer and go through
//! the relay at once, beside the requests that bring the path about.

use std::time::Duration;

use futures::{
    FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{PeerId, Stream as Substream, StreamProtocol};

use super::{
    engine::{Internal, Node, Timer},
    opening::Purpose,
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
        offer::{Content, Incarnation, OFFER_PROTOCOL},
        resume::StreamId,
    },
    error::Error,
    stream::Stream,
    ticket::Ticket,
};

/// For how long an offer may come in, which is sent in one flight: 33 KB take as long at 64 kbit/s.
/// With the pace of a relay's offers it bounds how many come in at once, and what they hold.
const OFFER_TIMEOUT: Duration = Duration::from_secs(4);

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
        if let Some((relay, link, sealing)) = session.offer_relay(&self.relays)
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
        let (peer, incarnation) = (&session.peer, session.incarnation());
        if let Some(pump) = session.pumps.get(&stream)
            && let Some(sealed) = self.seal(peer, incarnation, Content::Stream, result)
        {
            pump.handle.attach(carrier(sealed), None);
        }
    }

    /// Seals what will be said to the run `incarnation` of `peer` on a stream to its relay.
    pub(super) fn seal(
        &self,
        peer: &PeerId,
        incarnation: Option<Incarnation>,
        content: Content,
        stream: Result<Substream, OpenError>,
    ) -> Option<Sealed<Substream>> {
        let sealer = self.sealer.as_ref()?;
        sealer.offer(peer, incarnation?, content, stream.ok()?).ok()
    }

    /// A relay passes something sealed on; who sent it shows when it is opened.
    pub(super) fn take_offer(&mut self, relay: PeerId, stream: Substream) {
        let reserved = self.relays.get_mut(&relay);
        let reserved = reserved.filter(|relay| relay.listener().is_some());
        let (Some(sealer), Some(relay)) = (self.sealer.clone(), reserved) else {
            return;
        };
        let turn = relay.offers.take(sealer.uptime(), 1, Duration::ZERO);
        if turn.is_none() {
            tracing::debug!("a relay brings too many offers");
            return;
        }
        let report = self.internal_tx.clone();
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
            match select(opened.boxed(), Delay::new(OFFER_TIMEOUT)).await {
                Either::Left((Ok(event), _)) => _ = report.send(event).await,
                Either::Left((Err(error), _)) => tracing::debug!(%error, "an offer is dropped"),
                Either::Right(_) => {}
            }
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
