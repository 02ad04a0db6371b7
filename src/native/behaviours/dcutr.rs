//! Direct connections to stock libp2p peers, by libp2p's own hole punching over a circuit
//! (specification `relay/DCUtR.md`).
//!
//! Peers of this library get direct connections by ICE over the same circuit, so this behaviour
//! leaves them alone. The end that accepted the circuit begins the punching. It waits until
//! identify has told what the other end is.

use std::{
    collections::HashSet,
    task::{Context, Poll, Waker},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    dcutr,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionClosed,
        handler::{ConnectionEvent, ProtocolsChange},
    },
};

use crate::core::{
    address::{self, Route},
    resume,
};

type Inner = THandler<dcutr::Behaviour>;

/// libp2p's behaviour, which is not used with peers of this library.
pub(crate) struct DcutrBehaviour {
    inner: dcutr::Behaviour,
    /// The connections that the inner behaviour knows as direct. It panics at the end of a direct
    /// connection that it does not know. It decides by the address, and the address of a `/webrtc`
    /// connection names a circuit at first and a host later.
    direct: HashSet<ConnectionId>,
}

impl DcutrBehaviour {
    pub(crate) fn new(local: PeerId) -> Self {
        Self {
            inner: dcutr::Behaviour::new(local),
            direct: HashSet::new(),
        }
    }

    /// Converts `address` to the form in which libp2p's behaviour may see it.
    fn established(&mut self, connection: ConnectionId, address: &Multiaddr) -> Multiaddr {
        if matches!(address::route(address), Route::Circuit(_)) {
            return address.clone();
        }
        self.direct.insert(connection);
        match address::route(address) {
            Route::WebRtc => Multiaddr::empty(),
            _ => address.clone(),
        }
    }
}

impl NetworkBehaviour for DcutrBehaviour {
    type ConnectionHandler = DcutrHandler;
    type ToSwarm = dcutr::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let local = self.established(connection, local);
        let begins = !self.direct.contains(&connection);
        let inner = self
            .inner
            .handle_established_inbound_connection(connection, peer, &local, remote)?;
        Ok(DcutrHandler::new(inner, begins))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let address = self.established(connection, address);
        let inner = self
            .inner
            .handle_established_outbound_connection(connection, peer, &address, role, port_use)?;
        Ok(DcutrHandler::new(inner, false))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let FromSwarm::ConnectionClosed(closed) = event else {
            return self.inner.on_swarm_event(event);
        };
        // The inner behaviour does nothing at the end of a circuit.
        if self.direct.remove(&closed.connection_id) {
            let endpoint = &ConnectedPoint::Listener {
                local_addr: Multiaddr::empty(),
                send_back_addr: Multiaddr::empty(),
            };
            let closed = ConnectionClosed { endpoint, ..closed };
            self.inner
                .on_swarm_event(FromSwarm::ConnectionClosed(closed));
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

/// The handler of one connection. On a circuit that this peer accepted, libp2p's handler begins as
/// soon as it is polled, so polling waits.
pub(crate) struct DcutrHandler {
    inner: Inner,
    waits: bool,
    waker: Option<Waker>,
}

impl DcutrHandler {
    fn new(inner: Inner, waits: bool) -> Self {
        Self {
            inner,
            waits,
            waker: None,
        }
    }

    /// Takes note of the `protocols` that identify reports for the peer.
    fn learn<'a>(&mut self, protocols: impl Iterator<Item = &'a StreamProtocol>) {
        let (mut ours, mut stock) = (false, false);
        for protocol in protocols {
            ours |= protocol.as_ref() == resume::PROTOCOL;
            stock |= *protocol == dcutr::PROTOCOL_NAME;
        }
        if stock && !ours {
            self.waits = false;
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

impl ConnectionHandler for DcutrHandler {
    type FromBehaviour = <Inner as ConnectionHandler>::FromBehaviour;
    type ToBehaviour = <Inner as ConnectionHandler>::ToBehaviour;
    type InboundProtocol = <Inner as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <Inner as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = <Inner as ConnectionHandler>::InboundOpenInfo;
    type OutboundOpenInfo = <Inner as ConnectionHandler>::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        self.inner.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        !self.waits && self.inner.connection_keep_alive()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<
        ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>,
    > {
        if self.waits {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.inner.poll(cx)
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.inner.on_behaviour_event(event);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        if let ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Added(added)) = &event {
            self.learn(added.clone());
        }
        self.inner.on_connection_event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit_taken_in() -> DcutrHandler {
        let local = "/ip4/192.0.2.1/udp/1/quic-v1/p2p-circuit".parse().unwrap();
        let (connection, peer) = (ConnectionId::new_unchecked(1), PeerId::random());
        DcutrBehaviour::new(PeerId::random())
            .handle_established_inbound_connection(connection, peer, &local, &Multiaddr::empty())
            .unwrap()
    }

    fn polled(handler: &mut DcutrHandler) -> bool {
        handler
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn only_a_stock_peer_is_asked() {
        let (stock, ours) = (dcutr::PROTOCOL_NAME, StreamProtocol::new(resume::PROTOCOL));
        let mut handler = circuit_taken_in();
        assert!(
            !polled(&mut handler),
            "asked before identify has told the protocols"
        );
        handler.learn([&ours, &stock].into_iter());
        assert!(!polled(&mut handler), "a peer of this library is asked");
        handler.learn([&stock].into_iter());
        assert!(polled(&mut handler), "a stock peer is not asked");
    }

    #[test]
    fn a_webrtc_connection_that_changes_its_address_may_close() {
        let dialled = "/ip4/192.0.2.1/udp/1/quic-v1/p2p-circuit/webrtc"
            .parse()
            .unwrap();
        let (connection_id, peer_id) = (ConnectionId::new_unchecked(1), PeerId::random());
        let mut behaviour = DcutrBehaviour::new(PeerId::random());
        behaviour
            .handle_established_outbound_connection(
                connection_id,
                peer_id,
                &dialled,
                Endpoint::Dialer,
                PortUse::Reuse,
            )
            .unwrap();
        let endpoint = ConnectedPoint::Dialer {
            address: "/ip4/198.51.100.1/udp/1/webrtc".parse().unwrap(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id,
            connection_id,
            endpoint: &endpoint,
            cause: None,
            remaining_established: 0,
        }));
        assert!(behaviour.direct.is_empty());
    }
}
