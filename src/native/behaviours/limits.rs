//! Limits on the number of connections.
//!
//! libp2p's own behaviour has limits in all and for each peer, so one address with made-up
//! identities can take everything. It also keeps some data of every peer that was ever connected.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use super::{
    forwarded::Forwarded,
    pool::{Observer, Place, Pool, Quotas},
};
use crate::core::quota::{Holder, Refusal};

/// The pools that count connections. Clones share them.
///
/// Each kind of transport has its own pool of handshakes, so a flood on one leaves the others
/// alone. Transports over UDP count their handshakes themselves, QUIC with
/// [`Admission`](crate::native::quic::Admission).
#[derive(Clone)]
pub(crate) struct Limits {
    /// Connections. A connection that this peer made counts for the other peer and for all, but not
    /// for the address, because this peer has chosen the address.
    pub(crate) connections: Pool,
    /// Handshakes over TCP and WebSocket, where the system has verified that the peer is at its
    /// address.
    pub(crate) handshakes: Pool,
    /// Handshakes over circuits. They are counted for the relay, because only the relay knows whom
    /// it brings.
    circuits: Pool,
    dials: Pool,
    /// The clients of connections that come through proxies.
    pub(crate) forwarded: Forwarded,
}

impl Limits {
    /// Allows at most `connections`, and at most `handshakes` of each kind and `dials` under way.
    pub(crate) fn new(
        connections: impl Into<Quotas>,
        handshakes: impl Into<Quotas>,
        dials: impl Into<Quotas>,
        observer: &impl Observer,
    ) -> Self {
        let handshakes = handshakes.into();
        // One relay has at most half of the circuit handshakes, so other relays find room.
        let circuits = handshakes.map(|all| all.per_peer(all.all.div_ceil(2)));
        Self {
            connections: Pool::new("connection", connections, observer),
            handshakes: Pool::new("handshake", handshakes, observer),
            circuits: Pool::new("circuit_handshake", circuits, observer),
            dials: Pool::new("dial", dials, observer),
            forwarded: Forwarded::default(),
        }
    }

    /// Takes the place of a handshake that comes from `remote`. Returns `None` if the transport has
    /// counted it.
    fn handshake(&self, local: &Multiaddr, remote: &Multiaddr) -> Result<Option<Place>, Exceeded> {
        let over_udp = remote.iter().any(|part| matches!(part, Protocol::Udp(_)));
        let (pool, what, holder) = match ip_of(remote) {
            Some(_) if over_udp => return Ok(None),
            // The proxy has not named the client of this connection yet.
            Some(_) => (&self.handshakes, "handshakes", self.holder(remote)),
            None => (&self.circuits, "handshakes over circuits", relay_of(local)),
        };
        pool.take(holder).map(Some).map_err(exceeded(what))
    }

    /// Returns the holder that a connection from `remote` counts for.
    fn holder(&self, remote: &Multiaddr) -> Holder {
        Holder {
            ip: self.forwarded.source(remote),
            peer: None,
        }
    }
}

/// Returns the first IP address of `address`, or `None` if the address is a circuit.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    let mut ip = None;
    for part in address {
        match part {
            Protocol::Ip4(v4) => ip = ip.or(Some(v4.into())),
            Protocol::Ip6(v6) => ip = ip.or(Some(v6.into())),
            Protocol::P2pCircuit => return None,
            _ => {}
        }
    }
    ip
}

/// Returns the relay of a circuit that was accepted at the address `local`.
fn relay_of(local: &Multiaddr) -> Holder {
    let mut parts = local.iter();
    let relay = parts.find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    });
    Holder {
        ip: None,
        peer: relay,
    }
}

/// Refuses connections beyond the limits.
pub(crate) struct LimitsBehaviour {
    limits: Limits,
    /// Handshakes and dials under way.
    pending: HashMap<ConnectionId, Place>,
    connections: HashMap<ConnectionId, Place>,
}

#[derive(Debug)]
struct Exceeded {
    what: &'static str,
    refusal: Refusal,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many {} ({})", self.what, self.refusal.name())
    }
}

impl std::error::Error for Exceeded {}

fn exceeded(what: &'static str) -> impl Fn(Refusal) -> Exceeded {
    move |refusal| Exceeded { what, refusal }
}

impl LimitsBehaviour {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            pending: HashMap::new(),
            connections: HashMap::new(),
        }
    }

    fn established(
        &mut self,
        connection: ConnectionId,
        holder: Holder,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&connection);
        let place = self.limits.connections.take(holder);
        let place = place.map_err(exceeded("connections"));
        let place = place.map_err(ConnectionDenied::new)?;
        self.connections.insert(connection, place);
        Ok(dummy::ConnectionHandler)
    }

    fn ended(&mut self, connection: ConnectionId) {
        self.pending.remove(&connection);
        self.connections.remove(&connection);
    }
}

impl NetworkBehaviour for LimitsBehaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let place = self.limits.handshake(local, remote);
        if let Some(place) = place.map_err(ConnectionDenied::new)? {
            self.pending.insert(connection, place);
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let holder = Holder {
            peer: Some(peer),
            ..self.limits.holder(remote)
        };
        self.established(connection, holder)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let place = self.limits.dials.take(Holder::default());
        let place = place.map_err(exceeded("dials"));
        let place = place.map_err(ConnectionDenied::new)?;
        self.pending.insert(connection, place);
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let holder = Holder {
            ip: None,
            peer: Some(peer),
        };
        self.established(connection, holder)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(gone) => self.ended(gone.connection_id),
            FromSwarm::DialFailure(failed) => self.ended(failed.connection_id),
            FromSwarm::ListenFailure(failed) => self.ended(failed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        core::ConnectedPoint,
        swarm::{DialError, behaviour::ConnectionClosed, behaviour::DialFailure},
    };

    use super::*;
    use crate::{core::quota::Quota, native::behaviours::pool::Debug};

    fn limits() -> LimitsBehaviour {
        let quota = |all, per_address| Quota {
            all,
            per_address,
            per_site: all,
            per_peer: usize::MAX,
        };
        let connections = quota(4, 3).per_peer(2);
        LimitsBehaviour::new(Limits::new(connections, quota(4, 2), quota(4, 4), &Debug))
    }

    fn tcp(ip: &str) -> Multiaddr {
        format!("/ip4/{ip}/tcp/7").parse().unwrap()
    }

    fn begins(limits: &mut LimitsBehaviour, id: usize, from: &Multiaddr) -> bool {
        let id = ConnectionId::new_unchecked(id);
        let local = format!("/p2p/{}/p2p-circuit", PeerId::random()).parse();
        let begun = limits.handle_pending_inbound_connection(id, &local.unwrap(), from);
        begun.is_ok()
    }

    /// Tries to accept a connection of `peer`. Returns whether it is allowed.
    fn comes(limits: &mut LimitsBehaviour, id: usize, peer: PeerId, from: &Multiaddr) -> bool {
        let begun = begins(limits, id, from);
        let id = ConnectionId::new_unchecked(id);
        let none = Multiaddr::empty();
        let made = limits.handle_established_inbound_connection(id, peer, &none, from);
        begun && made.is_ok()
    }

    fn goes(limits: &mut LimitsBehaviour, id: usize, peer: PeerId) {
        limits.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(id),
            endpoint: &ConnectedPoint::Listener {
                local_addr: Multiaddr::empty(),
                send_back_addr: Multiaddr::empty(),
            },
            cause: None,
            remaining_established: 0,
        }));
    }

    fn dials(limits: &mut LimitsBehaviour, id: usize) -> bool {
        let id = ConnectionId::new_unchecked(id);
        let begun = limits.handle_pending_outbound_connection(id, None, &[], Endpoint::Dialer);
        begun.is_ok()
    }

    #[test]
    fn each_limit_holds_at_its_edge_and_closed_connections_free_places() {
        let mut limits = limits();
        let [one, other, third] = [(); 3].map(|()| PeerId::random());
        let (here, there) = (tcp("192.0.2.1"), tcp("192.0.2.2"));
        assert!(comes(&mut limits, 1, one, &here) && comes(&mut limits, 2, one, &here));
        assert!(!comes(&mut limits, 3, one, &there), "passes the peer limit");
        assert!(comes(&mut limits, 4, other, &here));
        assert!(
            !comes(&mut limits, 5, third, &here),
            "passes the address limit"
        );
        assert!(comes(&mut limits, 6, third, &there));
        assert!(
            !comes(&mut limits, 7, other, &there),
            "passes the total limit"
        );
        goes(&mut limits, 1, one);
        assert!(comes(&mut limits, 8, other, &here));
    }

    #[test]
    fn handshakes_of_one_kind_leave_room_for_the_others() {
        let mut limits = limits();
        let (here, there) = (tcp("192.0.2.1"), tcp("192.0.2.2"));
        assert!(begins(&mut limits, 1, &here) && begins(&mut limits, 2, &here));
        assert!(!begins(&mut limits, 3, &here), "passes the address limit");
        assert!(begins(&mut limits, 4, &there) && begins(&mut limits, 5, &there));
        assert!(
            !begins(&mut limits, 6, &tcp("192.0.2.3")),
            "passes the total limit"
        );
        for over_udp in ["quic-v1", "webrtc-direct"] {
            let remote = format!("/ip4/192.0.2.1/udp/7/{over_udp}").parse().unwrap();
            for id in 10..20 {
                assert!(
                    begins(&mut limits, id, &remote),
                    "{over_udp} is counted here"
                );
            }
        }
        assert_eq!(limits.pending.len(), 4);
        // A handshake makes room when it ends, however it ends.
        let (id, peer) = (ConnectionId::new_unchecked(1), PeerId::random());
        let none = Multiaddr::empty();
        let made = limits.handle_established_inbound_connection(id, peer, &none, &here);
        assert!(made.is_ok() && begins(&mut limits, 21, &here));
    }

    #[test]
    fn connections_through_a_proxy_count_for_those_that_it_names() {
        let mut limits = limits();
        limits.limits.forwarded = Forwarded::new(vec!["192.0.2.1".parse().unwrap()]);
        let forwarded = limits.limits.forwarded.clone();
        let through =
            |port: u16| -> Multiaddr { format!("/ip4/192.0.2.1/tcp/{port}/ws").parse().unwrap() };
        // An address has two handshakes and three connections, all have four of each.
        for id in 1..=4 {
            assert!(begins(&mut limits, id, &through(id as u16)), "nobody's yet");
        }
        let mut made = |id: usize, client: &str| {
            let remote = through(id as u16);
            let noted = forwarded.note(&remote, [client].into_iter()).unwrap();
            let (id, peer) = (ConnectionId::new_unchecked(id), PeerId::random());
            let none = Multiaddr::empty();
            let made = limits.handle_established_inbound_connection(id, peer, &none, &remote);
            (made.is_ok(), noted)
        };
        let made = [1, 2, 3]
            .map(|id| made(id, "198.51.100.1"))
            .into_iter()
            .chain([made(4, "198.51.100.1"), made(5, "198.51.100.2")]);
        let made: Vec<_> = made.map(|(made, _noted)| made).collect();
        assert_eq!(made, [true, true, true, false, true]);
    }

    #[test]
    fn circuits_count_for_their_relay() {
        let limits = limits().limits;
        let local = |relay: PeerId| {
            let text = format!("/ip4/192.0.2.1/udp/7/quic-v1/p2p/{relay}/p2p-circuit");
            text.parse::<Multiaddr>().unwrap()
        };
        let [one, other] = [(); 2].map(|()| local(PeerId::random()));
        let remote = format!("/p2p/{}", PeerId::random()).parse().unwrap();
        let take = |local: &Multiaddr| limits.handshake(local, &remote).ok().flatten();
        let _held = [take(&one).unwrap(), take(&one).unwrap()];
        assert!(take(&one).is_none());
        assert!(take(&other).is_some());
        let through: Multiaddr = "/ip4/192.0.2.1/tcp/7/p2p-circuit".parse().unwrap();
        assert_eq!(ip_of(&through), None);
    }

    #[test]
    fn dials_count_until_they_end() {
        let mut limits = limits();
        for id in 0..4 {
            assert!(dials(&mut limits, id));
        }
        assert!(!dials(&mut limits, 4));
        let none = Multiaddr::empty();
        let (id, peer) = (ConnectionId::new_unchecked(0), PeerId::random());
        let (role, port) = (Endpoint::Dialer, PortUse::New);
        let made = limits.handle_established_outbound_connection(id, peer, &none, role, port);
        assert!(made.is_ok() && dials(&mut limits, 5));
        limits.on_swarm_event(FromSwarm::DialFailure(DialFailure {
            peer_id: None,
            error: &DialError::Aborted,
            connection_id: ConnectionId::new_unchecked(1),
        }));
        assert!(dials(&mut limits, 6));
    }

    #[test]
    fn no_data_remains_of_peers_that_are_gone() {
        let mut limits = limits();
        for id in 0..1000 {
            let peer = PeerId::random();
            let octet = (id % 200) as u8;
            assert!(comes(
                &mut limits,
                id,
                peer,
                &tcp(&format!("192.0.2.{octet}"))
            ));
            goes(&mut limits, id, peer);
        }
        assert!(limits.pending.is_empty() && limits.connections.is_empty());
        assert_eq!(limits.limits.connections.taken(), 0);
        assert_eq!(limits.limits.handshakes.taken(), 0);
    }
}
