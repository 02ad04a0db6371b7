//! What peers ask the directory.

use std::time::Instant;

use super::Relay;
use crate::{
    core::{
        directory::{Answer, Refusal, Request, Topic},
        quota::Holder,
    },
    server::{
        circuits::{self, Asked},
        directory::{Entry, attend},
        pool::Place,
        relay_rates::Rate,
    },
};

impl Relay {
    /// A peer that is admitted asks the directory for something. Everything but a look-up takes a
    /// reservation on the same connection, so the rules of reservations bound who is in the directory.
    pub(super) fn on_directory(&mut self, asked: Asked, request: Request) {
        let (peer, connection) = (asked.source, asked.connection);
        let now = Instant::now();
        let (rate, is_open) = match request {
            Request::Find(_) => (Rate::Lookups, true),
            _ => (
                Rate::Records,
                self.clients.is_reserved(&peer, connection, now),
            ),
        };
        if !is_open {
            return asked.answer(&Answer::Refused(Refusal::Denied));
        }
        if !self.allows(rate, peer, connection) {
            return asked.answer(&Answer::Refused(Refusal::Limit));
        }
        let holder = self.holder(peer, connection);
        match request {
            Request::Find(sought) => {
                let found = self.directory.find(&sought, now);
                circuits::spawn(&peer, async move {
                    let found = found.await;
                    let answer = found.map(|envelope| Answer::Record(envelope.to_vec()));
                    asked.answer(&answer.unwrap_or(Answer::Done));
                });
            }
            Request::Put(envelope) => {
                let put = self.put(holder, envelope);
                self.count_directory();
                asked.answer(&put.map_or_else(Answer::Refused, |()| Answer::Done));
            }
            Request::Forget => {
                self.directory.forget(&peer, now);
                self.count_directory();
                asked.answer(&Answer::Done);
            }
            Request::Join(topic, envelope) => match self.join(holder, &topic, envelope) {
                Ok(place) => {
                    let directory = self.directory.clone();
                    let attended = attend(asked.into_stream(), directory, topic, (peer, place));
                    circuits::spawn(&peer, attended);
                }
                Err(refusal) => asked.answer(&Answer::Refused(refusal)),
            },
        }
    }

    fn put(&self, holder: Holder, envelope: Vec<u8>) -> Result<(), Refusal> {
        let peer = holder.peer.ok_or(Refusal::Denied)?;
        let entry = Entry::record(peer, envelope)?;
        let place = || self.pools.records.take(holder);
        self.directory.put(entry, Instant::now(), &place)
    }

    /// Returns the place of the stream over which the room is attended.
    fn join(&self, holder: Holder, topic: &Topic, envelope: Vec<u8>) -> Result<Place, Refusal> {
        let peer = holder.peer.ok_or(Refusal::Denied)?;
        let (entry, shown) = Entry::member(peer, topic, envelope)?;
        let attends = self.pools.attending.take(holder);
        let attends = attends.map_err(|_| Refusal::Limit)?;
        let place = || self.pools.members.take(holder);
        let now = Instant::now();
        self.directory
            .join(topic, entry, shown, now, &place)
            .map(|()| attends)
    }
}
