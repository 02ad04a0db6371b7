//! Placeholders for sealed offers. A page neither seals nor opens offers, because that would take
//! 10 KB of wasm, a fortieth of the whole. It signals over the circuit.

use std::time::Duration;

use libp2p::{PeerId, Stream, identity::Keypair};

use crate::core::offer::{Content, Incarnation};

/// A page cannot seal, so this type has no values.
#[derive(Clone, Copy)]
pub(crate) enum Sealing {}

pub(crate) fn sealing(_: &PeerId) -> Option<Sealing> {
    None
}

/// The type of whatever carries a resumable stream.
pub(crate) type Carrier = Stream;

/// The type of a sealed stream.
pub(crate) type Sealed<S> = S;

pub(crate) fn carrier(substream: Stream) -> Carrier {
    substream
}

/// A page cannot seal, so this type has no values.
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
