//! Relayed addresses: when a session asks TURN servers for some, and how long it needs them.
//!
//! An address costs its server a port and a state, and most connections come up without one. A pair
//! over TURN would also end the search for a direct one, because the first pair to answer is nominated.
//! So a session asks only when everything else has had its time: the checks of its other candidates,
//! and the guessing of ports, unless that rests on a doubt. Circuits carry the traffic meanwhile.

use std::time::{Duration, Instant};

use super::{IceSession, SessionEvent};
use crate::{
    core::{candidate::CandidateKind, plan::Late},
    event::Strategy,
    native::ice::gather::LocalCandidate,
};

/// How long connecting may take once ports were guessed in vain, if a TURN server can be asked. An
/// allocation, its way to the peer, and the checks and the handshake through it take ten round trips.
const TIME: Duration = Duration::from_secs(5);

/// When TURN servers are asked.
#[derive(Default)]
pub(super) struct Relayed {
    /// How long the other candidates have, from the peer's description on.
    wait: Duration,
    /// When that time is over, if the description has come.
    at: Option<Instant>,
    /// Whether there is a server to ask.
    known: bool,
    /// Whether addresses are wanted. This stays so.
    wanted: bool,
}

impl IceSession {
    /// Leaves TURN out, on both sides. It is called before the description is made.
    pub(in crate::native::ice::webrtc) fn leave_turn_out(&mut self) {
        self.no_turn = true;
    }

    /// Sets how long the other candidates have before TURN servers are asked. It is called before the
    /// peer's description comes.
    pub(in crate::native::ice::webrtc) fn ask_turn_after(&mut self, wait: Duration) {
        self.relayed.wait = wait;
    }

    /// Sets whether there is a TURN server to ask.
    pub(in crate::native::ice::webrtc) fn know_turn(&mut self, known: bool) {
        self.relayed.known = known;
    }

    /// Whether there is a TURN server that may be asked.
    pub(super) fn may_ask_turn(&self) -> bool {
        self.relayed.known && !self.no_turn
    }

    /// The peer's description has come.
    pub(super) fn plan_relayed(&mut self) {
        self.relayed.at = Some(self.now + self.relayed.wait);
    }

    /// The time at which TURN servers are asked, as far as it is known.
    pub(super) fn relayed_at(&self) -> Option<Instant> {
        let is_open = self.may_ask_turn() && !self.relayed.wanted && !self.closed;
        let is_over = self.nominated.is_none() && !self.guess_comes_first();
        self.relayed.at.filter(|_| is_open && is_over)
    }

    /// Asks TURN servers, if that is due.
    pub(super) fn relayed_timeout(&mut self) {
        if self.relayed_at().is_some_and(|at| self.now >= at) {
            self.relayed.wanted = true;
            tracing::debug!("TURN servers are asked");
            self.tell(Late::Began(Strategy::Turn));
        }
    }

    /// Ports were guessed in vain.
    pub(super) fn leave_time_for_relayed(&mut self) {
        if self.relayed_at().is_some() {
            self.event(SessionEvent::MoreTime(TIME));
        }
    }

    /// Whether relayed addresses are offered to the peer. Those that another connection has asked for
    /// wait as well.
    pub(in crate::native::ice::webrtc) fn offers_relayed(&self) -> bool {
        self.relayed.wanted && !self.no_turn
    }

    /// Whether a relayed address of this side carries the connection, or may still do so.
    pub(in crate::native::ice::webrtc) fn needs_relayed(&self) -> bool {
        let carries = |source| {
            let is = |local: &&LocalCandidate| local.base == source;
            let mut local = self.local.iter().filter(is);
            local.any(|local| local.kind() == CandidateKind::Relayed)
        };
        match self.nominated {
            Some((source, _)) if self.connected => self.offers_relayed() && carries(source),
            _ => self.offers_relayed(),
        }
    }

    pub(super) fn tell(&mut self, what: Late) {
        self.event(SessionEvent::Late(what));
    }
}
