//! The session's datagrams. The lane of the path in use sends them, and every lane receives them.

use std::{collections::HashSet, sync::Arc};

use libp2p::swarm::ConnectionId;

use super::{Session, paths::Conn};
use crate::{
    core::datagram::{MAX_LEN, PROTOCOL},
    datagrams::Lane,
    event::Path,
    node::round::Round,
};

impl Session {
    /// A connection has a lane, or its lane carries another length than before.
    pub(in crate::node) fn on_lane(
        &mut self,
        id: ConnectionId,
        lane: Arc<Lane>,
        round: &mut Round<'_>,
    ) {
        let Some(conn) = self.paths.conns.get_mut(&id) else {
            return lane.belong_to(None);
        };
        lane.belong_to(Some(&self.state.datagrams));
        conn.lane = Some(lane);
        self.choose_path(round);
    }

    /// Identify has reported what the peer serves.
    pub(super) fn on_datagrams_known(
        &mut self,
        protocols: &HashSet<String>,
        round: &mut Round<'_>,
    ) {
        self.state.datagrams.support(protocols.contains(PROTOCOL));
        self.choose_path(round);
    }

    /// Sends datagrams over the path in use from now on.
    pub(super) fn use_lane(&self) {
        let conn = self.paths.active().and_then(|id| self.paths.conns.get(&id));
        let lane = conn.and_then(|conn| conn.lane.clone());
        self.state.datagrams.send_over(lane);
    }

    /// Returns the path of a connection, with the size of its datagrams.
    pub(super) fn measured(&self, conn: &Conn) -> Option<Path> {
        let mut path = conn.path.clone()?;
        let size = || conn.lane.as_ref().map_or(MAX_LEN, |lane| lane.max_len());
        path.max_datagram_size = self.state.datagrams.may_be_supported().then(size);
        Some(path)
    }
}
