//! Substreams that peers and relays open: streams, farewells, sealed offers and circuits.

use std::time::Duration;

use futures::{
    FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{PeerId, Stream as Substream, StreamProtocol, swarm::ConnectionId};

use super::{
    effect::{Conns, Effect},
    engine::{Internal, Node},
    farewells::CLOSE_PROTOCOL,
    relays::Relay,
    session::DOUBT_PROTOCOL,
    timers::{Deadline, Timer},
};
use crate::{
    arriving::read_message,
    core::{
        allowance::{Left, Period},
        drain::{self, Drain},
        notice,
        offer::{Content, OFFER_PROTOCOL},
        reservation::STOP_PROTOCOL,
        resume::{self, Header},
    },
    error::ErrorKind,
    event::{ConnectorEvent, QuotaPeriod},
    stream::{BoxedStream, SessionId, Via, resumable},
    swarm::reservation,
};

/// How long a sealed offer may take to arrive. It is sent in one flight, and its 33 KB take as long
/// as this at 64 kbit/s. Together with the pace of a relay's offers, this bounds how many arrive at
/// the same time and how much memory they hold.
const OFFER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a relay may take to say that it is about to end, or what is left of a quota. It is one
/// small message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// A peer opened a substream.
    pub(super) fn on_inbound(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: &StreamProtocol,
        substream: Substream,
    ) {
        if protocol.as_ref() == OFFER_PROTOCOL {
            self.on_offer(peer, substream);
            return;
        }
        if protocol.as_ref() == STOP_PROTOCOL {
            self.on_circuit(peer, substream);
            return;
        }
        if protocol.as_ref() == drain::PROTOCOL {
            self.on_drain(peer, connection, substream);
            return;
        }
        if protocol.as_ref() == notice::PROTOCOL {
            self.on_notice(peer, substream);
            return;
        }
        let raw = self.network.name_of(protocol).map(str::to_owned);
        let Some((session, mut round)) = self.session_with(&peer) else {
            return;
        };
        if protocol.as_ref() == CLOSE_PROTOCOL {
            session.on_farewell(&mut round);
        } else if protocol.as_ref() == DOUBT_PROTOCOL {
            session.on_doubt(connection, &mut round);
        } else if protocol.as_ref() == resume::PROTOCOL {
            session.on_resumable(connection, substream, &mut round);
        } else if let Some(name) = raw {
            session.on_raw(name, substream, &round);
        }
    }

    /// The header of a substream that a peer opened has arrived.
    pub(super) fn on_header(
        &mut self,
        peer: PeerId,
        connection: Via,
        header: Header,
        substream: BoxedStream,
    ) {
        if connection.is_none() && self.sessions.with(&peer).is_none() {
            self.begin_early(peer);
        }
        if let Some((session, mut round)) = self.session_with(&peer) {
            session.on_header(connection, header, substream, &mut round);
        }
    }

    /// A relay brings a circuit. Only a relay that we have asked for a reservation may.
    fn on_circuit(&mut self, relay: PeerId, stream: Substream) {
        let arrivals = self.network.arrivals();
        let known = self.relays.get(&relay);
        let Some((address, place)) = known.and_then(Relay::circuit_place) else {
            tracing::debug!(%relay, "a circuit that nobody asked for, or one too many, is dropped");
            return;
        };
        let take_in = reservation::take_in(stream, address, arrivals);
        let task = take_in.map(|()| drop(place)).boxed();
        self.effects.push(Effect::Spawn(task));
    }

    /// A relay says that it is about to end.
    fn on_drain(&mut self, relay: PeerId, link: ConnectionId, mut stream: Substream) {
        if !self.relays.may_drain(&relay, link) {
            return;
        }
        let report = self.outbox.internal.clone();
        let read = async move {
            let message = read_message(&mut stream, drain::MAX_MESSAGE);
            let Either::Left((Ok(message), _)) =
                select(message.boxed(), Delay::new(MESSAGE_TIMEOUT)).await
            else {
                return;
            };
            if let Some(drain) = Drain::decode(&message) {
                let _ = report.send(Internal::Drains(relay, link, drain)).await;
            }
        };
        self.effects.push(Effect::Spawn(read.boxed()));
    }

    /// A relay says what is left of this peer's quota there.
    fn on_notice(&mut self, relay: PeerId, mut stream: Substream) {
        if !self.relays.may_notify(&relay) {
            return;
        }
        let events = self.outbox.events.clone();
        let read = async move {
            let message = read_message(&mut stream, notice::MAX_MESSAGE);
            let read = select(message.boxed(), Delay::new(MESSAGE_TIMEOUT)).await;
            if let Either::Left((Ok(message), _)) = read
                && let Some(left) = notice::decode(&message)
            {
                tracing::info!(%relay, left = left.left, total = left.all, "a quota is nearly used up");
                // An error means that nobody listens.
                let _ = events.send(quota_event(relay, left));
            }
        };
        self.effects.push(Effect::Spawn(read.boxed()));
    }

    /// A relay passes a sealed offer on. Its sender is known when the seal is opened.
    fn on_offer(&mut self, relay: PeerId, stream: Substream) {
        let reserved = self.relays.get_mut(&relay);
        let reserved = reserved.filter(|relay| relay.reservation.id().is_some());
        let (Some(sealer), Some(relay)) = (self.sealer.clone(), reserved) else {
            return;
        };
        let turn = relay.offers.take(sealer.uptime(), 1, Duration::ZERO);
        if turn.is_none() {
            tracing::debug!("a relay brings too many offers, one is dropped");
            return;
        }
        let report = self.outbox.internal.clone();
        let open = async move {
            let opened = async {
                let (peer, content, mut sealed) = sealer.open(stream).await?;
                if content == Content::Signalling {
                    return Ok(Internal::Offered(peer, Box::pin(sealed)));
                }
                let header = resumable::read_header(&mut sealed).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Internal::Header {
                    peer,
                    connection: None,
                    header,
                    substream: Box::pin(sealed),
                })
            };
            match select(opened.boxed(), Delay::new(OFFER_TIMEOUT)).await {
                Either::Left((Ok(event), _)) => _ = report.send(event).await,
                Either::Left((Err(error), _)) => tracing::debug!(%error, "an offer is dropped"),
                Either::Right(_) => {}
            }
        };
        self.effects.push(Effect::Spawn(open.boxed()));
    }

    /// A peer without a session has sent early data. Begins a session with it, which ends if no
    /// path follows.
    fn begin_early(&mut self, peer: PeerId) {
        if self.sealer.is_none() {
            return;
        }
        match self.begin_session(peer) {
            Ok(id) => {
                let timeout = self.config.resume_timeout;
                let deadline = Timer::Session(id, Deadline::Resume);
                self.effects.push(Effect::After(timeout, deadline));
                self.announce(id, None);
            }
            Err(error) => tracing::debug!(%error, "early data is refused"),
        }
    }

    /// Hands a connection that the peer made to whoever accepts. If the queue is full or nobody
    /// accepts, the connection is refused, and the peer is told over `conn`.
    pub(super) fn announce(&mut self, id: SessionId, conn: Option<ConnectionId>) {
        let Some((session, round)) = self.session(id) else {
            return;
        };
        let peer = session.peer();
        let Ok(connection) = session.handle(&round) else {
            return;
        };
        if let Err(error) = self.outbox.incoming.try_send(connection) {
            tracing::debug!(%error, "nobody accepts, an incoming connection is refused");
            self.end_session(id, ErrorKind::ConnectionClosed, Conns::Keep);
            if let Some(conn) = conn {
                self.turn_away(peer, conn, Vec::new());
            }
        }
    }
}

/// Returns what the user hears of a quota.
fn quota_event(relay: PeerId, left: Left) -> ConnectorEvent {
    ConnectorEvent::Quota {
        relay: relay.to_string(),
        left: left.left,
        total: left.all,
        period: match left.period {
            Period::Day => QuotaPeriod::Day,
            Period::Month => QuotaPeriod::Month,
        },
        ends: left.ends,
    }
}
