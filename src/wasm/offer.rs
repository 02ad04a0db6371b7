//! A page seals no offers and opens none: what that takes is 10 KB of wasm, a fortieth of the whole,
//! and a page signals over the circuit.

use std::time::Duration;

use libp2p::{PeerId, Stream, identity::Keypair};

use crate::core::offer::{Content, Incarnation};

/// There is none.
#[derive(Clone, Copy)]
pub(crate) enum Sealing {}

pub(crate) fn sealing(_: &PeerId) -> Option<Sealing> {
    None
}

/// What carries a resumable stream.
pub(crate) type Carrier = Stream;

/// What is said under a seal.
pub(crate) type Sealed<S> = S;

pub(crate) fn carrier(substream: Stream) -> Carrier {
    substream
}

/// There is none.
#[derive(Clone)]
pub(crate) enum Sealer {}

impl Sealer {
    pub(crate) fn new(_: &Keypair) -> Option<Self> {
        None
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        match *self {}
    }

    pub(crate) fn uptime(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn offer(
        &self,
        _: &PeerId,
        _: Incarnation,
        _: Content,
        _: Stream,
    ) -> Result<Stream, std::io::Error> {
        match *self {}
    }

    pub(crate) async fn open(
        &self,
        _: Stream,
    ) -> Result<(PeerId, Content, Stream), std::io::Error> {
        match *self {}
    }
}
