//! The shared part of behaviours that only exchange messages over
//! [substreams](crate::swarm::substreams).

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::swarm::{NetworkBehaviour, THandlerInEvent, ToSwarm};

use crate::swarm::substreams::{SubstreamEvent, Substreams};

/// A command of such a behaviour for the swarm. The behaviour has no events of its own.
pub(crate) type News = ToSwarm<Infallible, THandlerInEvent<Substreams>>;

/// The next item from the substreams.
pub(crate) enum Next {
    /// An event for the behaviour.
    Event(SubstreamEvent),
    /// A command for the swarm.
    News(News),
}

/// Polls `streams` for the next item.
pub(crate) fn poll(streams: &mut Substreams, cx: &mut Context<'_>) -> Poll<Next> {
    match streams.poll(cx) {
        Poll::Ready(ToSwarm::GenerateEvent(event)) => Poll::Ready(Next::Event(event)),
        Poll::Ready(ToSwarm::NotifyHandler {
            peer_id,
            handler,
            event,
        }) => Poll::Ready(Next::News(ToSwarm::NotifyHandler {
            peer_id,
            handler,
            event,
        })),
        // `Substreams` returns nothing else.
        _ => Poll::Pending,
    }
}
