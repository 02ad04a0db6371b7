//! Who is negotiating with whom, so that two peers that dial each other end with one connection.
//!
//! A peer with a dial under way gets the offers of the other side handed to that dial, which
//! settles which of the two goes on (see [`Attempt`](super::attempt::Attempt)). A peer that
//! starts a dial while it is answering the same peer waits for that answer instead.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::channel::{mpsc, oneshot};
use libp2p::PeerId;

use crate::circuit::Duplex;

/// Offers that one dial takes in; a peer has no reason to send a second one.
const MAX_OFFERS: usize = 1;

/// Offers of one peer that are answered at once, so that no peer takes all the places there are:
/// js-libp2p makes one through each relay that it knows the peer at.
const MAX_ANSWERS: usize = 4;

/// The negotiations under way, shared by a transport and its futures. `T` is a connection.
pub(crate) struct Dials<T>(Arc<Mutex<HashMap<PeerId, Entry<T>>>>);

struct Entry<T> {
    dials: Vec<(u64, mpsc::Sender<Duplex>)>,
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
    /// Registers a dial; the receiver gets the signalling streams the peer opens meanwhile.
    pub(crate) fn dialling(&self, peer: PeerId) -> (Dialling<T>, mpsc::Receiver<Duplex>) {
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

    /// Hands a signalling stream of `peer` to a dial to it; gives it back when there is none.
    pub(crate) fn hand_to_dial(&self, peer: PeerId, stream: Duplex) -> Option<Duplex> {
        let mut peers = self.lock();
        match peers.get_mut(&peer).and_then(|e| e.dials.first_mut()) {
            // A full queue means a second offer before the first was settled: reset.
            Some((_, dial)) => {
                let _ = dial.try_send(stream);
                None
            }
            None => Some(stream),
        }
    }

    /// Registers an answer to `peer`; `None` while it has as many as it may.
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

    /// The connection that is being answered, if one is. Cancelled when the answer fails.
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

    /// How many peers are being negotiated with.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A registered dial; dropping it ends the registration.
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

/// A registered answer; dropping it ends the registration and lets waiting dials go on.
pub(crate) struct Answering<T> {
    dials: Dials<T>,
    peer: PeerId,
}

impl<T> Answering<T> {
    /// Gives the connection to a dial that waits for it, or back.
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
    fn a_dial_takes_over_what_is_being_answered() {
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
    fn one_peer_has_so_many_answers_and_no_more() {
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
    fn an_answer_nobody_waits_for_is_kept_and_nothing_is_left() {
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
