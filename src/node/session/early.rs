//! Streams that do not wait for a path. Their first bytes are sealed for the peer and go through
//! the relay at once, at the same time as the requests that make a path.

use std::time::Duration;

use libp2p::{Stream as Substream, StreamProtocol};

use super::Session;
use crate::{
    core::{
        offer::{Content, OFFER_PROTOCOL},
        resume::StreamId,
    },
    node::{effect::Effect, network::Purpose, round::Round},
    swarm::substreams::OpenError,
};

/// How long the first flight of such a stream waits for the application's first bytes. The next
/// flight is a round trip later. A page's application gets the stream some tasks after the event
/// loop, so the relay's substream may be open before it can write.
pub(super) const FIRST_BYTES: Duration = Duration::from_millis(10);

impl Session {
    /// A link to a relay of the peer is up, or the relay has said what it serves. Sends the streams
    /// that wait for that.
    pub(in crate::node) fn send_all_early(&mut self, round: &mut Round<'_>) {
        if !self.has_path() {
            for stream in self.streams.opened() {
                self.send_early(stream, round);
            }
        }
    }

    /// Asks a relay to carry one of our streams to the peer until there is a path. Each stream asks
    /// once.
    pub(super) fn send_early(&mut self, stream: StreamId, round: &mut Round<'_>) {
        let Some(via) = self.offer_relay(round.relays) else {
            return;
        };
        if let Some(pump) = self.streams.get_mut(stream)
            && !pump.early
        {
            pump.early = true;
            let purpose = Purpose::Early {
                session: self.id,
                stream,
            };
            round.push(Effect::Open {
                peer: via.relay,
                connection: via.connection,
                protocol: StreamProtocol::new(OFFER_PROTOCOL),
                purpose,
            });
        }
    }

    /// The request for the substream to the relay has been answered. An error is ignored, because
    /// the stream goes over the path as soon as there is one.
    pub(in crate::node) fn on_early_stream(
        &mut self,
        stream: StreamId,
        result: Result<Substream, OpenError>,
        round: &Round<'_>,
    ) {
        if self.has_path() {
            return;
        }
        let sealed = self.seal(Content::Stream, result, round);
        if let (Some(pump), Some(sealed)) = (self.streams.get_mut(stream), sealed) {
            pump.handle.attach(Box::pin(sealed), None);
        }
    }
}
