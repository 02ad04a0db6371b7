//! The end of a session.

use libp2p::swarm::ConnectionId;

use super::Session;
use crate::{
    backend::IS_PAGE,
    error::{Error, ErrorKind},
    node::{
        effect::{Conns, Effect},
        round::Round,
    },
    stream::{BoxedStream, PumpHandle},
};

impl Session {
    /// Returns the connection on which the peer is told that the session is being closed, and the
    /// streams that may end in good order before that. Returns `None` if there is no path or the
    /// peer does not speak resumable streams.
    pub(in crate::node) fn farewell(
        &mut self,
        round: &Round<'_>,
    ) -> Option<(ConnectionId, Vec<PumpHandle<BoxedStream>>)> {
        let active = self
            .paths
            .active()
            .filter(|_| self.streams.are_resumable())?;
        let ending = self.streams.take_ending();
        // A page that is being closed can still send over its WebSocket, but no new data channel opens
        // there. Streams that end in good order must not be overtaken.
        let circuit = self.paths.sound_circuit();
        let connection = match circuit {
            Some((circuit, _)) if IS_PAGE && ending.is_empty() => circuit,
            _ => active,
        };
        round.metrics.streams.dec_by(ending.len() as i64);
        Some((connection, ending))
    }

    /// The peer has closed the connection on purpose.
    pub(in crate::node) fn on_farewell(&self, round: &mut Round<'_>) {
        let kind = ErrorKind::ConnectionClosed;
        round.push(Effect::End(self.id, kind, Conns::Close));
    }

    /// Ends the session. Its streams and the callers that wait get an error, and its handles see
    /// the end.
    pub(in crate::node) fn end(mut self, kind: ErrorKind, conns: Conns, round: &mut Round<'_>) {
        let ended = || Error::new(kind, "the connection is closed");
        self.end_attempts(ended, round);
        let metrics = round.metrics;
        metrics.path_changed(self.state.path().map(|path| path.strategy), None);
        metrics.connections.dec();
        metrics.streams.dec_by(self.streams.end(ended) as i64);
        self.state.close(kind);
        if conns == Conns::Close {
            for conn in self.paths.ids() {
                round.push(Effect::CloseConnection(conn));
            }
        }
    }
}
