//! The events of the swarm. Each libp2p connection is the link to a relay or a path of a session,
//! and its events go there.

use std::collections::HashSet;

use futures::FutureExt as _;
use libp2p::{
    PeerId, Stream as Substream,
    core::ConnectedPoint,
    identify,
    swarm::{ConnectionId, DialError, SwarmEvent},
};
use web_time::Instant;

use super::{
    behaviour::NodeBehaviourEvent,
    effect::Effect,
    engine::Node,
    farewells::say,
    network::{DialFor, Purpose},
    session::{Conn, on_raw_opened},
};
use crate::{
    backend::{
        self,
        trace::{self, Span},
    },
    core::{
        address::{self, Route},
        circuit::CircuitError,
        liveness::Hint,
    },
    error::Error,
    stream::SessionId,
    swarm::{
        causes, ping,
        reservation::Ask,
        substreams::{OpenError, OpenId, SubstreamEvent},
    },
    webrtc,
};

impl Node {
    pub(super) fn on_swarm(&mut self, event: SwarmEvent<NodeBehaviourEvent>) {
        // Reports of the birthday method come first, because the event may end their attempt.
        self.take_late();
        let effects = &mut self.effects;
        match event {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.on_established(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } => {
                let cause = cause.map(|c| c.to_string());
                self.relays
                    .on_link_closed(peer_id, connection_id, cause.as_deref(), effects);
                self.on_connection_closed(peer_id, connection_id);
            }
            SwarmEvent::Dialing {
                peer_id: Some(peer),
                connection_id,
            } => {
                // This event names the peer only when libp2p dials by itself, to punch a hole
                // (DCUtR).
                if let Some((session, round)) = self.session_with(&peer) {
                    session.on_punching(connection_id, &round);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id,
                connection_id,
                error,
            } => self.on_dial_error(peer_id, connection_id, &error),
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                if self.is_alone() {
                    self.online.settle();
                }
                let direct = address::route(&address) == Route::Direct;
                self.own.listen(listener_id, address);
                self.refresh_ticket();
                if direct {
                    self.probe_all(Hint::Network);
                }
            }
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                self.own.expire(listener_id, &address);
                if address::route(&address) == Route::Direct {
                    self.on_network_changed();
                }
                self.refresh_ticket();
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.own.close(listener_id);
                self.refresh_ticket();
            }
            SwarmEvent::NewExternalAddrCandidate { address } => self.own.observe(address),
            SwarmEvent::ExternalAddrConfirmed { address } => {
                let is_new = self.own.confirm(address);
                if is_new {
                    self.confirmed_changed();
                }
            }
            SwarmEvent::ExternalAddrExpired { address } => {
                self.own.refute(&address);
                self.confirmed_changed();
            }
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: NodeBehaviourEvent) {
        match event {
            NodeBehaviourEvent::Streams(SubstreamEvent::Opened { id, result }) => {
                self.on_opened(id, result);
            }
            NodeBehaviourEvent::Streams(SubstreamEvent::Inbound {
                peer,
                connection,
                protocol,
                stream,
            }) => self.on_inbound(peer, connection, &protocol, stream),
            NodeBehaviourEvent::Streams(SubstreamEvent::Lane {
                peer,
                connection,
                lane,
            }) => match self.session_with(&peer) {
                Some((session, mut round)) => session.on_lane(connection, lane, &mut round),
                None => self.relays.on_lane(&peer, connection, lane),
            },
            NodeBehaviourEvent::Rtc(webrtc::Event::Path {
                peer,
                connection,
                pair,
            }) => {
                if let Some((session, mut round)) = self.session_with(&peer) {
                    session.on_pair(connection, &pair, &mut round);
                }
            }
            NodeBehaviourEvent::Target(event) => {
                if let Some(event) = backend::behaviours::answer(event) {
                    self.on_answer(&event);
                }
            }
            NodeBehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                let target = &mut self.network.swarm.behaviour_mut().target;
                backend::behaviours::identified(target, peer_id, &info.protocols);
                let protocols = info.protocols.iter().map(ToString::to_string);
                self.on_identified(peer_id, protocols.collect());
            }
            _ => {}
        }
    }

    fn on_established(&mut self, peer: PeerId, conn: ConnectionId, endpoint: &ConnectedPoint) {
        let purpose = self.network.dialled(conn);
        let attempt = match purpose {
            Some(DialFor::Attempt(id, attempt)) => Some((id, attempt)),
            Some(DialFor::Relay(_) | DialFor::Replacement(_)) | None => None,
        };
        let route = route_of(endpoint);
        let remote = endpoint.get_remote_address();
        if route == Route::Direct && self.relays.get(&peer).is_some() && attempt.is_none() {
            let probing = self.config.link_probing();
            self.relays
                .on_link_up(peer, conn, remote, purpose, probing, &mut self.effects);
            return;
        }
        let known = self.sessions.with(&peer);
        let (id, attempt) = match (attempt, known) {
            // The session that dialled it may have ended meanwhile.
            (Some((id, attempt)), _) if self.sessions.get(id).is_some() => (id, Some(attempt)),
            (_, Some(id)) => (id, None),
            (None, None) if endpoint.is_listener() => match self.begin_session(peer) {
                Ok(id) => (id, None),
                Err(error) => {
                    tracing::debug!(%error, "an incoming connection is refused");
                    self.turn_away(peer, conn, Vec::new());
                    return;
                }
            },
            _ => {
                self.network.close(conn);
                return;
            }
        };
        let local = self.network.local();
        let (dialled, probing) = (endpoint.is_dialer(), self.config.probing());
        let entry = Conn::new(route, remote, attempt, dialled, Instant::now(), probing);
        if let Some((session, mut round)) = self.session(id) {
            session.on_connection(conn, entry, local, &mut round);
        }
        if known.is_none() && endpoint.is_listener() {
            self.announce(id, Some(conn));
        }
    }

    fn on_connection_closed(&mut self, peer: PeerId, conn: ConnectionId) {
        if let Some((session, mut round)) = self.session_with(&peer) {
            session.on_connection_closed(conn, &mut round);
        } else if !self.network.swarm.is_connected(&peer) {
            self.finish_farewell(peer);
        }
    }

    fn on_dial_error(&mut self, peer: Option<PeerId>, conn: ConnectionId, error: &DialError) {
        let purpose = self.network.dialled(conn);
        if let Some(purpose) = purpose {
            self.on_dial_failed(purpose, error);
        } else if let Some(peer) = peer
            && let Some((session, round)) = self.session_with(&peer)
        {
            session.punch_ended(conn, Some(causes::explain(error)), &round);
        }
    }

    /// Returns the span for what is logged about a dial of ours.
    pub(super) fn dial_span(&self, purpose: DialFor) -> Span {
        match purpose {
            DialFor::Attempt(id, attempt) => match self.sessions.get(id) {
                Some(session) => session.span().in_scope(|| trace::attempt(attempt)),
                None => trace::attempt(attempt),
            },
            DialFor::Relay(relay) | DialFor::Replacement(relay) => trace::connection(&relay),
        }
    }

    /// A dial of ours has failed.
    pub(super) fn on_dial_failed(&mut self, purpose: DialFor, error: &DialError) {
        let (cause, reason) = self.dial_span(purpose).in_scope(|| causes::explain(error));
        match purpose {
            DialFor::Relay(relay) => {
                self.relays
                    .on_link_failed(relay, &reason, &mut self.effects);
            }
            DialFor::Replacement(relay) => {
                self.relays
                    .on_replacement_failed(relay, &reason, &mut self.effects);
            }
            DialFor::Attempt(id, attempt) => {
                self.effects
                    .push(Effect::Failed(id, attempt, cause, reason));
            }
        }
    }

    /// A connection has answered a probe.
    fn on_answer(&mut self, event: &ping::Event) {
        let ping::Event {
            peer,
            connection,
            rtt,
        } = *event;
        self.relays
            .on_answer(&peer, connection, rtt, &mut self.effects);
        if let Some((session, mut round)) = self.session_with(&peer) {
            session.on_answer(connection, rtt, &mut round);
        }
    }

    fn on_identified(&mut self, peer: PeerId, protocols: HashSet<String>) {
        self.relays
            .on_identified(peer, &protocols, &mut self.effects);
        if let Some((session, mut round)) = self.session_with(&peer) {
            session.on_identified(protocols, &mut round);
        }
    }

    /// A request for a substream has been answered.
    fn on_opened(&mut self, open: OpenId, result: Result<Substream, OpenError>) {
        match self.network.opened(open) {
            Some(Purpose::Carry {
                session,
                stream,
                connection,
            }) => {
                if let Some((session, mut round)) = self.session(session) {
                    session.on_carrier(stream, connection, result, &mut round);
                }
            }
            Some(Purpose::Raw {
                protocol,
                reply,
                place,
            }) => on_raw_opened(&protocol, reply, place, result),
            Some(Purpose::Circuit(reply)) => {
                let _ = reply.send(result.map_err(|_| CircuitError::NoLink));
            }
            Some(Purpose::Ask { relay, id, access }) => {
                let how = match access {
                    false => Ask::Reservation,
                    true => Ask::Access {
                        tokens: self.config.relay_tokens.clone(),
                        reserve: id.is_some(),
                        turn: self.config.asks_for_turn(),
                    },
                };
                self.ask_relay(relay, id, how, result);
            }
            Some(Purpose::Profile(relay)) => self.read_profile(relay, result),
            Some(Purpose::Inquire(relay, inquiry)) => self.ask_directory(relay, inquiry, result),
            Some(Purpose::Attend(room, source)) => self.attend_over(room, source, result.ok()),
            Some(Purpose::Early {
                session, stream, ..
            }) => {
                if let Some((session, round)) = self.session(session) {
                    session.on_early_stream(stream, result, &round);
                }
            }
            Some(Purpose::Offer { session, relay, .. }) => {
                if let Some((session, mut round)) = self.session(session) {
                    session.on_offer_stream(&relay, result, &mut round);
                }
            }
            Some(Purpose::Doubt) => {
                if let Ok(substream) = result {
                    self.effects.push(Effect::Spawn(say(substream).boxed()));
                }
            }
            Some(Purpose::Farewell(peer, ending)) => self.say_farewell(peer, ending, result),
            None => {}
        }
    }

    /// Begins a session with `peer`, which has none.
    pub(super) fn begin_session(&mut self, peer: PeerId) -> Result<SessionId, Error> {
        let (sessions, mut round) = self.split();
        sessions.begin(peer, &mut round)
    }
}

/// Returns by which route a connection was made.
fn route_of(endpoint: &ConnectedPoint) -> Route {
    match endpoint {
        ConnectedPoint::Dialer { address, .. } => address::route(address),
        ConnectedPoint::Listener {
            local_addr,
            send_back_addr,
        } => match address::route(local_addr) {
            Route::Direct => address::route(send_back_addr),
            other => other,
        },
    }
}
