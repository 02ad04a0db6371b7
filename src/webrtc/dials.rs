//! Keeps track of the negotiations under way, so that two peers that dial each other end with one
//! connection.
//!
//! The offers of a peer to which this node has a dial under way are handed to that dial. The dial
//! decides which of the two negotiations goes on (see [`Attempt`](super::attempt::Attempt)). A peer
//! that starts a dial while it is answering the same peer waits for that answer instead.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::channel::{mpsc, oneshot};
use libp2p::PeerId;

use crate::stream::BoxedStream;

/// How many offers may wait for one dial. A peer has no reason to send a second one.
const MAX_OFFERS: usize = 1;

/// How many offers of one peer are answered at once. The limit keeps one peer from taking all
/// places. js-libp2p makes one offer through each relay on which it knows the peer.
const MAX_ANSWERS: usize = 4;

/// The negotiations under way, shared by a transport and its futures. `T` is a connection.
pub(crate) struct Dials<T>(Arc<Mutex<HashMap<PeerId, Entry<T>>>>);

struct Entry<T> {
    dials: Vec<(u64, mpsc::Sender<BoxedStream>)>,
    next_id: u64,
    answering: usize,
    waiting: Vec<oneshot::Sender<T>>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            dials: Vec::new(),
            next_id: 0,
            answering: 0,
            waiting: Vec::new(),
        }
    }
}

impl<T> Clone for Dials<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Dials<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Dials<T> {
    /// Registers a dial. The receiver gets the signalling streams that the peer opens meanwhile.
    pub(crate) fn dialling(&self, peer: PeerId) -> (Dialling<T>, mpsc::Receiver<BoxedStream>) {
        let (sender, receiver) = mpsc::channel(MAX_OFFERS);
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_default();
        let id = entry.next_id;
        entry.next_id += 1;
        entry.dials.push((id, sender));
        let guard = Dialling {
            dials: self.clone(),
            peer,
            id,
        };
        (guard, receiver)
    }

    /// Hands a signalling stream of `peer` to a dial to this peer. Returns the stream if there is
    /// no such dial.
    pub(crate) fn hand_to_dial(&self, peer: PeerId, stream: BoxedStream) -> Option<BoxedStream> {
        let mut peers = self.lock();
        match peers.get_mut(&peer).and_then(|e| e.dials.first_mut()) {
            // A full queue means that a second offer came before the first was settled. It is
            // reset.
            Some((_, dial)) => {
                let _ = dial.try_send(stream);
                None
            }
            None => Some(stream),
        }
    }

    /// Registers an answer to `peer`. Returns `None` while the peer has as many as it may have.
    pub(crate) fn answering(&self, peer: PeerId) -> Option<Answering<T>> {
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_default();
        (entry.answering < MAX_ANSWERS).then(|| {
            entry.answering += 1;
            Answering {
                dials: self.clone(),
                peer,
            }
        })
    }

    /// Returns a receiver for the connection that an answer under way will give, if there is one.
    /// The receiver is cancelled when the answer fails.
    pub(crate) fn wait_for_answer(&self, peer: PeerId) -> Option<oneshot::Receiver<T>> {
        let mut peers = self.lock();
        let entry = peers.get_mut(&peer).filter(|e| e.answering > 0)?;
        let (sender, receiver) = oneshot::channel();
        entry.waiting.push(sender);
        Some(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Entry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, peer: PeerId, change: impl FnOnce(&mut Entry<T>)) {
        let mut peers = self.lock();
        if let Some(entry) = peers.get_mut(&peer) {
            change(entry);
            if entry.dials.is_empty() && entry.answering == 0 {
                peers.remove(&peer);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A registered dial. Dropping it ends the registration.
pub(crate) struct Dialling<T> {
    dials: Dials<T>,
    peer: PeerId,
    id: u64,
}

impl<T> Drop for Dialling<T> {
    fn drop(&mut self) {
        let id = self.id;
        self.dials
            .change(self.peer, |entry| entry.dials.retain(|(i, _)| *i != id));
    }
}

/// A registered answer. Dropping it ends the registration and lets waiting dials go on.
pub(crate) struct Answering<T> {
    dials: Dials<T>,
    peer: PeerId,
}

impl<T> Answering<T> {
    /// Gives the connection to a dial that waits for it, or else returns it.
    pub(crate) fn finish(self, mut connection: T) -> Option<T> {
        let waiting = match self.dials.lock().get_mut(&self.peer) {
            Some(entry) => std::mem::take(&mut entry.waiting),
            None => Vec::new(),
        };
        for dial in waiting {
            match dial.send(connection) {
                Ok(()) => return None,
                Err(back) => connection = back,
            }
        }
        Some(connection)
    }
}

impl<T> Drop for Answering<T> {
    fn drop(&mut self) {
        self.dials.change(self.peer, |entry| {
            entry.answering -= 1;
            if entry.answering == 0 {
                entry.waiting.clear();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_takes_over_the_connection_of_an_answer() {
        let dials = Dials::<u8>::default();
        let peer = PeerId::random();
        assert!(dials.wait_for_answer(peer).is_none());
        let answering = dials.answering(peer).unwrap();
        let mut wait = dials.wait_for_answer(peer).unwrap();
        assert_eq!(answering.finish(7), None);
        assert_eq!(wait.try_recv(), Ok(Some(7)));
        assert_eq!(dials.len(), 0);
    }

    #[test]
    fn answers_to_one_peer_are_limited() {
        let dials = Dials::<u8>::default();
        let peer = PeerId::random();
        let mut answers: Vec<_> = (0..MAX_ANSWERS).map(|_| dials.answering(peer)).collect();
        assert!(answers.iter().all(Option::is_some) && dials.answering(peer).is_none());
        assert!(dials.answering(PeerId::random()).is_some());
        answers.pop();
        assert!(dials.answering(peer).is_some());
    }

    #[test]
    fn an_answer_that_fails_lets_the_dial_go_on() {
        let dials = Dials::<u8>::default();
        let peer = PeerId::random();
        let answering = dials.answering(peer).unwrap();
        let mut wait = dials.wait_for_answer(peer).unwrap();
        drop(answering);
        assert!(wait.try_recv().is_err());
    }

    #[test]
    fn an_answer_without_a_waiting_dial_keeps_its_connection() {
        let dials = Dials::<u8>::default();
        let peer = PeerId::random();
        let (dialling, _offers) = dials.dialling(peer);
        let answering = dials.answering(peer).unwrap();
        drop(dials.wait_for_answer(peer));
        assert_eq!(answering.finish(7), Some(7));
        drop(dialling);
        assert_eq!(dials.len(), 0);
    }
}
