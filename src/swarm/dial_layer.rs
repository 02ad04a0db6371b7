//! A transport that changes how addresses are dialled, and leaves the rest to the transport below it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent},
};

/// A dial that has begun, or the reason why the address is not dialled.
pub(crate) type Begun<O> = Result<BoxFuture<'static, io::Result<O>>, TransportError<io::Error>>;

/// How a layer dials.
pub(crate) trait Dials<T: Transport> {
    /// Begins to dial `address`, mostly by `below`.
    fn dial(&mut self, below: &mut T, address: Multiaddr, options: DialOpts) -> Begun<T::Output>;
}

/// The transport `below`, with another way to dial.
pub(crate) struct DialLayer<T, D> {
    below: T,
    dials: D,
}

impl<T, D> DialLayer<T, D> {
    pub(crate) fn new(below: T, dials: D) -> Self {
        Self { below, dials }
    }
}

impl<T, D> Transport for DialLayer<T, D>
where
    T: Transport<Error = io::Error> + Unpin,
    D: Dials<T> + Unpin,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<T::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.below.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.below.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Begun<T::Output> {
        self.dials.dial(&mut self.below, address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.below).poll(cx)
    }
}
