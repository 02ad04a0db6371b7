//! The directories of relays: this peer's record is left there, and other peers are looked up.

use std::time::Duration;

use futures::FutureExt as _;
use libp2p::{PeerId, Stream as Substream, StreamProtocol};

use super::{
    effect::Effect,
    engine::{Internal, Node},
    farewells::FAREWELL,
    network::Purpose,
    session::Session,
};
use crate::{
    core::{
        directory::{Answer, PROTOCOL, Refusal, Request},
        record::{LIFETIME, Record, Seen, Sequence},
    },
    envelope,
    stream::SessionId,
    swarm::{directory, substreams::OpenError},
    ticket::Ticket,
};

/// How long a directory may take to answer. It is one round trip, and another one where a fleet has to be
/// asked. A connect goes on meanwhile, and does not fail before the answer is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a directory is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inquiry {
    /// Keep this version of our record.
    Put(u64),
    /// Find the peer of this session.
    Find(SessionId),
    /// Forget us, because we go.
    Forget,
}

/// What the directories are told of this peer, and what they have told of others.
#[derive(Default)]
pub(super) struct Records {
    pub(super) sequence: Sequence,
    /// How often it has changed.
    version: u64,
    seen: Seen,
}

impl Node {
    /// The ticket has changed, so relays are told another record.
    pub(super) fn ticket_changed(&mut self) {
        self.records.version += 1;
        for relay in self.relays.directories() {
            self.put_record(relay);
        }
    }

    /// The directory of a relay can be used.
    pub(super) fn on_directory(&mut self, relay: PeerId) {
        self.put_record(relay);
        self.attend_all(relay);
    }

    /// Leaves our record with a relay, unless the relay knows it.
    pub(super) fn put_record(&mut self, relay: PeerId) {
        if !self.config.directory || self.shutdown.has_begun() {
            return;
        }
        let version = self.records.version;
        let begun = self.relays.begin_record(relay, version, &mut self.effects);
        if begun.is_some() {
            self.inquire(relay, Inquiry::Put(version));
        }
    }

    /// Looks the peer of a session up in the directories of its relays and of ours, once over each
    /// link. The answers come beside what else goes on.
    pub(super) fn look_up(&mut self, id: SessionId) {
        let own: Vec<_> = self.relays.of_user().collect();
        let Some((session, round)) = self.session(id) else {
            return;
        };
        let relays = session.relays_to_ask(own, &round);
        if !relays.is_empty() {
            session.await_places(relays.len());
            round.effects.replan(id);
        }
        for relay in relays {
            self.inquire(relay, Inquiry::Find(id));
        }
    }

    /// Asks the local network for the peer of a session without a path, if the configuration says so.
    pub(super) fn look_around(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id).filter(|s| !s.has_path()) else {
            return;
        };
        let Some(found) = self.net.lan.find(session.peer()) else {
            return;
        };
        session.await_places(1);
        let report = self.outbox.internal.clone();
        let ask = async move {
            let _ = report.send(Internal::Nearby(id, found.await)).await;
        };
        self.effects.push(Effect::Spawn(ask.boxed()));
    }

    fn inquire(&mut self, relay: PeerId, inquiry: Inquiry) {
        if let Some(connection) = self.relays.link_to(&relay) {
            self.effects.push(Effect::Open {
                peer: relay,
                connection,
                protocol: StreamProtocol::new(PROTOCOL),
                purpose: Purpose::Inquire(relay, inquiry),
            });
        }
    }

    /// The request for a stream on which a directory is asked has been answered.
    pub(super) fn ask_directory(
        &mut self,
        relay: PeerId,
        inquiry: Inquiry,
        stream: Result<Substream, OpenError>,
    ) {
        let request = match inquiry {
            Inquiry::Put(_) => self.own_record().map(Request::Put),
            Inquiry::Find(id) => self.sessions.get(id).map(|s| Request::Find(s.peer())),
            Inquiry::Forget => Some(Request::Forget),
        };
        let (Ok(stream), Some(request)) = (stream, request) else {
            return self.on_inquired(relay, inquiry, None);
        };
        let patience = match inquiry {
            Inquiry::Forget => FAREWELL,
            _ => PATIENCE,
        };
        let report = self.outbox.internal.clone();
        let ask = async move {
            let answer = directory::ask(stream, request, patience).await;
            let _ = report
                .send(Internal::Inquired(relay, inquiry, answer))
                .await;
        };
        self.effects.push(Effect::Spawn(ask.boxed()));
    }

    /// A directory has answered, or has not.
    pub(super) fn on_inquired(&mut self, relay: PeerId, inquiry: Inquiry, answer: Option<Answer>) {
        match inquiry {
            Inquiry::Put(version) => {
                if let Some(Answer::Refused(Refusal::Stale(known))) = answer {
                    self.records.sequence.pass(known, envelope::now());
                }
                let effects = &mut self.effects;
                self.relays
                    .on_record(relay, version, answer.as_ref(), effects);
                if answer == Some(Answer::Done) {
                    // It may have changed meanwhile.
                    self.put_record(relay);
                }
            }
            Inquiry::Find(id) => {
                if let Some(Answer::Record(envelope)) = answer {
                    self.on_found(id, &envelope);
                }
                if let Some((session, mut round)) = self.session(id) {
                    session.found(None, &mut round);
                }
            }
            Inquiry::Forget => self.finish_leave(relay),
        }
    }

    /// A directory shows the record of a session's peer. The relay is not trusted: a record counts if
    /// the peer has signed it, it is not over, and no newer one was seen, in whatever session.
    fn on_found(&mut self, id: SessionId, envelope: &[u8]) {
        let now = envelope::now();
        let peer = self.sessions.get(id).map(Session::peer);
        let record = envelope::open(envelope, now).filter(|record| Some(record.peer) == peer);
        let Some(record) = record else {
            return;
        };
        let number = (record.seq, record.expires);
        if !self.records.seen.admits(&record.peer, number, now) {
            return;
        }
        let Ok(ticket) = Ticket::from_record(record) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(id) {
            session.expect_run(ticket.incarnation());
        }
        self.learn(id, &ticket);
        if let Some((session, mut round)) = self.session(id) {
            session.on_found(&ticket, &mut round);
            round.effects.replan(id);
            if let Some(relay) = session.link_for_offers(&round) {
                self.relays.dial(relay, &mut self.effects);
            }
        }
    }

    /// Signs what the ticket says now.
    fn own_record(&mut self) -> Option<Vec<u8>> {
        let now = envelope::now();
        let seq = self.records.sequence.next(now);
        let record: Record = self.shared.ticket().to_record(seq, now + LIFETIME);
        envelope::sign(&self.key, &record)
    }

    /// Has every directory that knows us forget us. The relays keep their links until they have.
    pub(super) fn leave_directories(&mut self) {
        if !self.config.directory && self.rooms.is_empty() {
            return;
        }
        self.rooms.leave_all();
        for relay in self.relays.directories() {
            self.farewells.leave(relay);
            self.inquire(relay, Inquiry::Forget);
        }
    }
}
