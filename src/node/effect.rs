//! Effects: what sessions and relays want done, as data.
//!
//! Methods of sessions and relays change their own state and push effects. The loop performs the
//! effects one by one after such a method has returned, so no method is entered while it runs.

use std::{collections::VecDeque, time::Duration};

use futures::future::BoxFuture;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    swarm::{ConnectionId, dial_opts::DialOpts},
};

use super::{
    network::{DialFor, Purpose},
    relays::SiteId,
    timers::Timer,
};
use crate::{
    core::{
        liveness::Probe,
        plan::AttemptId,
        site::{By, Site},
    },
    error::ErrorKind,
    event::Cause,
    stream::{BoxedStream, SessionId},
    webrtc::{IceServer, backend::SpareTurn},
};

/// The fate of the libp2p connections of a session that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conns {
    Close,
    /// The connections stay, because one of them is needed to tell the peer.
    Keep,
}

pub(super) enum Effect {
    /// The race of a session starts an attempt. The flag says whether ICE needs TURN now.
    Start(SessionId, AttemptId, bool),
    /// The race of the session with a peer takes an attempt back.
    Cancel(SessionId, PeerId, AttemptId),
    /// An attempt of a session has failed.
    Failed(SessionId, AttemptId, Cause, String),
    /// The link to a relay is up, so a session dials its circuit over it.
    DialOver(SessionId, PeerId),
    /// The link to a relay is up, or the relay has said what it serves. The sessions that it leads
    /// to are told.
    RelayChanged(PeerId),
    /// A relay was not reached. The sessions that it leads to are told.
    RelayGone(PeerId),
    /// The number of reservations may have changed.
    Reserved,
    /// The directory of a relay can be used.
    Directory(PeerId),
    /// Every configured relay has failed, so waiting for a reservation is in vain.
    NoRelay,
    Dial(DialFor, Box<DialOpts>),
    /// Takes a dial back that is under way.
    GiveUp(DialFor),
    /// Tells other peers that these addresses of relays lead to us.
    Announce(Vec<Multiaddr>),
    /// Tells nobody any more that these addresses of relays lead to us.
    Withdraw(Vec<Multiaddr>),
    CloseConnection(ConnectionId),
    /// Probes a connection with a peer.
    Probe(PeerId, ConnectionId),
    /// Has the link to a relay probed, as the function says.
    ProbeLink(PeerId, Probe),
    /// A path has died, and a new mapping of our NAT may be the reason.
    DoubtMapping,
    Open {
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        purpose: Purpose,
    },
    /// A relay has given us access to this TURN server.
    UseTurn(PeerId, IceServer),
    /// Whether ICE with a peer leaves TURN out from now on, and how.
    SpareTurn(PeerId, Option<SpareTurn>),
    /// A relay has said that these are its STUN servers, and its TURN server if everybody may use it.
    UseServers(PeerId, Vec<String>, Option<IceServer>),
    /// Another relay is where this one was, so its servers are used no longer.
    ForgetServers(PeerId),
    /// Asks a site for its relay.
    AskSite(SiteId, Site, By),
    /// A site that this session needs was asked, and may have told which relay is there.
    Found(SessionId, Option<PeerId>),
    /// What the status says may have changed.
    StatusChanged,
    /// ICE with a peer is signalled over this stream.
    SignalOver(PeerId, BoxedStream),
    Spawn(BoxFuture<'static, ()>),
    After(Duration, Timer),
    /// Ends a session without telling the peer.
    End(SessionId, ErrorKind, Conns),
    /// Ends a session and tells the peer.
    CloseSession(SessionId),
    /// A part of the ticket has changed.
    Settle,
    /// A farewell is over, so the connections to the peer can be closed.
    FarewellDone(PeerId),
    /// Closes links that only ended sessions needed.
    ReleaseRelays,
    /// Ends the loop if a shutdown has begun and every peer knows of it.
    StopIfDone,
}

impl Effect {
    /// Whether the status may say something else afterwards.
    pub(super) fn is_news(&self) -> bool {
        use Effect::{NoRelay, RelayChanged, RelayGone, Reserved, Settle, StatusChanged};
        matches!(
            self,
            NoRelay | RelayChanged(_) | RelayGone(_) | Reserved | Settle | StatusChanged
        )
    }
}

/// The effects that wait to be performed, and the sessions that wait for a new plan.
#[derive(Default)]
pub(super) struct Effects {
    queue: VecDeque<Effect>,
    /// The effects that were pushed since [`Effects::next`] was last called, in their order.
    new: Vec<Effect>,
    replans: Vec<SessionId>,
}

impl Effects {
    pub(super) fn push(&mut self, effect: Effect) {
        self.new.push(effect);
    }

    /// Notes that what a session knows has changed. Its race gets a new plan when all effects are
    /// performed.
    pub(super) fn replan(&mut self, session: SessionId) {
        if !self.replans.contains(&session) {
            self.replans.push(session);
        }
    }

    /// Returns the next effect. New effects come before those that were pushed earlier, so that the
    /// effects of one event stay together.
    pub(super) fn next(&mut self) -> Option<Effect> {
        for effect in self.new.drain(..).rev() {
            self.queue.push_front(effect);
        }
        self.queue.pop_front()
    }

    /// Returns the next session that needs a new plan.
    pub(super) fn next_replan(&mut self) -> Option<SessionId> {
        (!self.replans.is_empty()).then(|| self.replans.remove(0))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Effect {
        /// Returns the effect as a line that tests compare.
        pub(in crate::node) fn brief(&self) -> String {
            match self {
                Self::Start(_, attempt, _) => format!("start {attempt:?}"),
                Self::Cancel(_, _, attempt) => format!("cancel {attempt:?}"),
                Self::Failed(_, attempt, cause, _) => format!("failed {attempt:?} {cause:?}"),
                Self::DialOver(..) => "dial over".to_owned(),
                Self::RelayChanged(_) => "relay changed".to_owned(),
                Self::RelayGone(_) => "relay gone".to_owned(),
                Self::Reserved => "reserved".to_owned(),
                Self::Directory(_) => "directory".to_owned(),
                Self::NoRelay => "no relay".to_owned(),
                Self::Dial(DialFor::Relay(_), _) => "dial relay".to_owned(),
                Self::Dial(DialFor::Replacement(_), _) => "dial replacement".to_owned(),
                Self::Dial(DialFor::Attempt(_, attempt), _) => format!("dial {attempt:?}"),
                Self::GiveUp(_) => "give up dial".to_owned(),
                Self::Announce(_) => "announce".to_owned(),
                Self::Withdraw(_) => "withdraw".to_owned(),
                Self::CloseConnection(conn) => format!("close {conn}"),
                Self::Probe(_, conn) => format!("probe {conn}"),
                Self::ProbeLink(..) => "probe link".to_owned(),
                Self::DoubtMapping => "doubt mapping".to_owned(),
                Self::Open {
                    connection,
                    protocol,
                    ..
                } => format!("open {protocol} on {connection}"),
                Self::UseTurn(_, server) => format!("turn {}", server.urls.join(" ")),
                Self::SpareTurn(_, None) => "turn".to_owned(),
                Self::SpareTurn(_, Some(SpareTurn::Late)) => "late turn".to_owned(),
                Self::SpareTurn(_, Some(SpareTurn::Never { .. })) => "no turn".to_owned(),
                Self::UseServers(_, stun, turn) => {
                    let turn = turn.iter().flat_map(|turn| &turn.urls).cloned();
                    let all = stun.iter().cloned().chain(turn);
                    format!("servers {}", all.collect::<Vec<_>>().join(" "))
                }
                Self::ForgetServers(..) => "forget servers".to_owned(),
                Self::AskSite(_, site, _) => format!("ask {site}"),
                Self::Found(..) => "found".to_owned(),
                Self::StatusChanged => "status changed".to_owned(),
                Self::SignalOver(..) => "signal over".to_owned(),
                Self::Spawn(_) => "spawn".to_owned(),
                Self::After(pause, _) => format!("after {} ms", pause.as_millis()),
                Self::End(_, kind, conns) => format!("end {kind:?} {conns:?}"),
                Self::CloseSession(_) => "close session".to_owned(),
                Self::Settle => "settle".to_owned(),
                Self::FarewellDone(_) => "farewell done".to_owned(),
                Self::ReleaseRelays => "release relays".to_owned(),
                Self::StopIfDone => "stop if done".to_owned(),
            }
        }
    }

    /// Takes all effects that wait, as lines.
    pub(in crate::node) fn briefs(effects: &mut Effects) -> Vec<String> {
        std::iter::from_fn(|| effects.next())
            .map(|effect| effect.brief())
            .collect()
    }

    #[test]
    fn new_effects_come_before_earlier_ones() {
        let mut effects = Effects::default();
        effects.push(Effect::Reserved);
        effects.push(Effect::Settle);
        assert_eq!(effects.next().unwrap().brief(), "reserved");
        effects.push(Effect::NoRelay);
        effects.push(Effect::Reserved);
        assert_eq!(briefs(&mut effects), ["no relay", "reserved", "settle"]);
    }

    #[test]
    fn a_session_is_planned_once_however_often_it_is_touched() {
        let mut effects = Effects::default();
        for session in [1, 2, 1] {
            effects.replan(SessionId::new(session));
        }
        let next = |effects: &mut Effects| effects.next_replan();
        assert_eq!(next(&mut effects), Some(SessionId::new(1)));
        assert_eq!(next(&mut effects), Some(SessionId::new(2)));
        assert_eq!(next(&mut effects), None);
    }
}
