//! What peers ask the directory.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::ready};
use libp2p::PeerId;
use tokio::time::timeout;

use super::Relay;
use crate::{
    core::{
        directory::{Answer, Refusal, Request, Topic},
        quota::{self, Holder},
    },
    server::{
        access::Meter,
        circuits::{self, Asked},
        directory::{Entry, Paid, attend},
        pool::{Place, Pool},
        relay_rates::Rate,
        usage::{Amounts, Tally},
    },
};

/// The bytes per second that one peer exchanges in all its rooms. A room of a thousand members that show
/// as much as they may has gone through in three seconds.
const ROOMS_RATE: u64 = 512 * 1024;
/// How long an answer waits for the rate of its peer. Who asks does not wait longer.
const PATIENCE: Duration = Duration::from_secs(5);

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
        let meters = self.access.meters_of(peer, peer);
        // Whoever goes is let go.
        if meters.is_err() && request != Request::Forget {
            return asked.answer(&Answer::Refused(Refusal::Limit));
        }
        let meters = meters.unwrap_or_default().concat();
        let paid = self.paid(&asked, meters, now);
        match request {
            Request::Find(sought) => {
                let is_here = self.clients.is_holder(&sought, now);
                let found = self.directory.find(&sought, is_here, now);
                let found = found.map(|envelope| match envelope {
                    Some(envelope) => Answer::Record(envelope.to_vec()),
                    None => Answer::Done,
                });
                reply(asked, paid, 0, found);
            }
            Request::Put(envelope) => {
                let size = envelope.len();
                let put = self.put(holder, envelope);
                self.count_directory();
                let answer = put.map_or_else(Answer::Refused, |()| Answer::Done);
                reply(asked, paid, size, ready(answer));
            }
            Request::Forget => {
                self.directory.forget(&peer, now);
                self.count_directory();
                asked.answer(&Answer::Done);
            }
            Request::Join(topic, envelope) => {
                let size = envelope.len();
                match self.join(holder, &topic, envelope) {
                    Ok(place) => {
                        let mut paid = paid;
                        paid.meters.extend(self.room_rate(peer));
                        let directory = self.directory.clone();
                        let stream = asked.into_stream();
                        circuits::spawn(&peer, async move {
                            if paid.carry(size).await.is_ok() {
                                attend(stream, directory, topic, (peer, place, paid)).await;
                            }
                        });
                    }
                    Err(refusal) => reply(asked, paid, size, ready(Answer::Refused(refusal))),
                }
            }
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
        let seat = |room: &Pool| -> Result<_, quota::Refusal> {
            Ok(vec![room.take(holder)?, self.pools.members.take(holder)?])
        };
        let now = Instant::now();
        self.directory
            .join(topic, entry, shown, now, &seat)
            .map(|()| attends)
    }

    /// Returns what counts the bytes that a peer exchanges with the directory. A peer without a reservation
    /// has no line in the record of usage, because anybody can make such peers.
    fn paid(&self, asked: &Asked, meters: Vec<Arc<Meter>>, now: Instant) -> Paid {
        let (peer, connection) = (asked.source, asked.connection);
        let account = self.access.account(&peer);
        let weight = self.treatment(peer, connection).weight();
        let flow = self.pools.fairness.flow(&account, weight);
        let tally = match self.clients.is_reserved(&peer, connection, now) {
            true => self.usage.tally(account, Amounts::default()),
            false => Tally::default(),
        };
        Paid {
            meters,
            flow,
            tally,
        }
    }

    /// Returns what bounds a peer's exchange in all its rooms.
    fn room_rate(&mut self, peer: PeerId) -> Option<Arc<Meter>> {
        let rate = self.room_rates.get(&peer).and_then(Weak::upgrade);
        let rate = rate.or_else(|| Meter::of_rate(ROOMS_RATE));
        if let Some(rate) = &rate {
            self.room_rates.insert(peer, Arc::downgrade(rate));
        }
        rate
    }
}

/// Answers a request of `size` bytes once it is paid for.
fn reply(
    asked: Asked,
    paid: Paid,
    size: usize,
    answer: impl Future<Output = Answer> + Send + 'static,
) {
    circuits::spawn(&asked.source.clone(), async move {
        let answer = answer.await;
        let carried = paid.carry(size + answer.encode().len());
        match timeout(PATIENCE, carried).await {
            Ok(Ok(())) => asked.answer(&answer),
            _ => asked.answer(&Answer::Refused(Refusal::Limit)),
        }
    });
}
