//! The address that the router says it forwards to us, as one of ours for libp2p: AutoNAT servers
//! are asked to dial it, and it is advertised once one of them has.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll, Waker},
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

/// Tells the swarm of the mapping and of its end.
#[derive(Default)]
pub(crate) struct Behaviour {
    mapped: Option<SocketAddr>,
    /// What the swarm has not been told yet; a mapping that changes leaves two.
    news: VecDeque<ToSwarm<Infallible, Infallible>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Takes in what the router forwards to us now.
    pub(crate) fn set(&mut self, mapped: Option<SocketAddr>) {
        let before = std::mem::replace(&mut self.mapped, mapped);
        if before == mapped {
            return;
        }
        let ended = before.map(|addr| ToSwarm::ExternalAddrExpired(address(addr)));
        let begun = mapped.map(|addr| ToSwarm::NewExternalAddrCandidate(address(addr)));
        self.news.extend(ended.into_iter().chain(begun));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// All UDP goes over one socket, so what is mapped takes QUIC.
fn address(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip())
        .with(Protocol::Udp(addr.port()))
        .with(Protocol::QuicV1)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.news.pop_front() {
            Some(news) => Poll::Ready(news),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::*;

    fn told(behaviour: &mut Behaviour) -> Vec<String> {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut told = Vec::new();
        while let Poll::Ready(news) = behaviour.poll(&mut cx) {
            told.push(match news {
                ToSwarm::NewExternalAddrCandidate(address) => format!("+{address}"),
                ToSwarm::ExternalAddrExpired(address) => format!("-{address}"),
                other => panic!("{other:?}"),
            });
        }
        told
    }

    #[test]
    fn a_mapping_is_a_candidate_until_it_ends() {
        let mut behaviour = Behaviour::default();
        let [first, second] = ["203.0.113.1:9", "203.0.113.1:10"].map(|a| a.parse().ok());
        behaviour.set(None);
        assert!(told(&mut behaviour).is_empty());
        behaviour.set(first);
        behaviour.set(first);
        assert_eq!(told(&mut behaviour), ["+/ip4/203.0.113.1/udp/9/quic-v1"]);
        behaviour.set(second);
        let moved = [
            "-/ip4/203.0.113.1/udp/9/quic-v1",
            "+/ip4/203.0.113.1/udp/10/quic-v1",
        ];
        assert_eq!(told(&mut behaviour), moved);
        behaviour.set(None);
        assert_eq!(told(&mut behaviour), ["-/ip4/203.0.113.1/udp/10/quic-v1"]);
    }
}
