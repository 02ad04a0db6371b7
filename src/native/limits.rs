//! How many connections there may be.
//!
//! libp2p's own behaviour keeps something of every peer that was ever connected: 30 MB for an hour of
//! coming and going, and as much as it likes for who makes up identities.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// The most there may be. `u32::MAX` is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) established: u32,
    pub(crate) per_peer: u32,
    /// Handshakes under way that others have begun, and that we have.
    pub(crate) incoming: u32,
    pub(crate) outgoing: u32,
}

/// Refuses connections beyond that.
pub(crate) struct Behaviour {
    most: Most,
    incoming: HashSet<ConnectionId>,
    outgoing: HashSet<ConnectionId>,
    established: usize,
    /// No peer has 0.
    per_peer: HashMap<PeerId, usize>,
}

#[derive(Debug)]
struct Exceeded {
    most: u32,
    what: &'static str,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at most", self.most, self.what)
    }
}

impl std::error::Error for Exceeded {}

fn check(now: usize, most: u32, what: &'static str) -> Result<(), ConnectionDenied> {
    match u32::try_from(now) {
        Ok(now) if now < most => Ok(()),
        _ => Err(ConnectionDenied::new(Exceeded { most, what })),
    }
}

impl Behaviour {
    pub(crate) fn new(most: Most) -> Self {
        Self {
            most,
            incoming: HashSet::new(),
            outgoing: HashSet::new(),
            established: 0,
            per_peer: HashMap::new(),
        }
    }

    fn check_established(&self, peer: &PeerId) -> Result<(), ConnectionDenied> {
        let of_peer = self.per_peer.get(peer).copied().unwrap_or_default();
        check(of_peer, self.most.per_peer, "connections of one peer")?;
        check(self.established, self.most.established, "connections")
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let most = self.most.incoming;
        check(self.incoming.len(), most, "handshakes that others began")?;
        self.incoming.insert(connection);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.incoming.remove(&connection);
        self.check_established(&peer)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        check(self.outgoing.len(), self.most.outgoing, "dials")?;
        self.outgoing.insert(connection);
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
        self.outgoing.remove(&connection);
        self.check_established(&peer)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(now) => {
                self.established += 1;
                *self.per_peer.entry(now.peer_id).or_default() += 1;
            }
            FromSwarm::ConnectionClosed(gone) => {
                self.established = self.established.saturating_sub(1);
                match self.per_peer.get_mut(&gone.peer_id) {
                    Some(left) if *left > 1 => *left -= 1,
                    _ => _ = self.per_peer.remove(&gone.peer_id),
                }
            }
            FromSwarm::DialFailure(failed) => _ = self.outgoing.remove(&failed.connection_id),
            FromSwarm::ListenFailure(failed) => _ = self.incoming.remove(&failed.connection_id),
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
        swarm::behaviour::{ConnectionClosed, ConnectionEstablished},
    };

    use super::*;

    const MOST: Most = Most {
        established: 3,
        per_peer: 2,
        incoming: 2,
        outgoing: 1,
    };

    fn endpoint() -> ConnectedPoint {
        ConnectedPoint::Listener {
            local_addr: Multiaddr::empty(),
            send_back_addr: Multiaddr::empty(),
        }
    }

    /// A connection of `peer` that comes in; whether it may.
    fn comes(limits: &mut Behaviour, id: usize, peer: PeerId) -> bool {
        let (connection_id, none) = (ConnectionId::new_unchecked(id), Multiaddr::empty());
        let begun = limits.handle_pending_inbound_connection(connection_id, &none, &none);
        let made = limits.handle_established_inbound_connection(connection_id, peer, &none, &none);
        let may = begun.is_ok() && made.is_ok();
        if may {
            let endpoint = &endpoint();
            limits.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: peer,
                connection_id,
                endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
        }
        may
    }

    fn goes(limits: &mut Behaviour, id: usize, peer: PeerId) {
        limits.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(id),
            endpoint: &endpoint(),
            cause: None,
            remaining_established: 0,
        }));
    }

    #[test]
    fn each_limit_holds_at_its_edge_and_frees_what_is_gone() {
        let mut limits = Behaviour::new(MOST);
        let [one, other] = [(); 2].map(|()| PeerId::random());
        assert!(comes(&mut limits, 1, one) && comes(&mut limits, 2, one));
        assert!(!comes(&mut limits, 3, one), "per peer");
        assert!(comes(&mut limits, 4, other));
        assert!(!comes(&mut limits, 5, other), "in all");
        goes(&mut limits, 1, one);
        assert!(comes(&mut limits, 6, other));
    }

    #[test]
    fn handshakes_and_dials_count_until_they_end() {
        let mut limits = Behaviour::new(MOST);
        let none = Multiaddr::empty();
        let begins = |limits: &mut Behaviour, id| {
            let id = ConnectionId::new_unchecked(id);
            limits
                .handle_pending_inbound_connection(id, &none, &none)
                .is_ok()
        };
        assert!(begins(&mut limits, 1) && begins(&mut limits, 2) && !begins(&mut limits, 3));
        let (id, peer) = (ConnectionId::new_unchecked(1), PeerId::random());
        let made = limits.handle_established_inbound_connection(id, peer, &none, &none);
        assert!(made.is_ok() && begins(&mut limits, 4) && !begins(&mut limits, 5));
        let dials = |limits: &mut Behaviour, id| {
            let id = ConnectionId::new_unchecked(id);
            let role = Endpoint::Dialer;
            limits
                .handle_pending_outbound_connection(id, None, &[], role)
                .is_ok()
        };
        assert!(dials(&mut limits, 6) && !dials(&mut limits, 7));
    }

    #[test]
    fn nothing_is_kept_of_peers_that_are_gone() {
        let mut limits = Behaviour::new(MOST);
        for id in 0..1000 {
            let peer = PeerId::random();
            assert!(comes(&mut limits, id, peer));
            goes(&mut limits, id, peer);
        }
        assert_eq!((limits.established, limits.per_peer.len()), (0, 0));
        assert!(limits.incoming.is_empty());
    }
}
