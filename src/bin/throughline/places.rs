//! Bounds how much of this machine the streams of peers take at once.
//!
//! A connection that has few places gets one also when all are taken: the connection that has the most
//! loses its newest one. So a few greedy connections do not shut others out, and what is there is
//! shared equally.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// There are places for this many connections that take all they can.
const CONNECTIONS: usize = 4;

/// How many files one connection brings at once. Each has 64 KiB of memory and two open files.
const FILES: usize = 16;
/// How many TCP connections one connection carries at once. It has 1,024 streams by default.
pub(crate) const TUNNELS: usize = 480;
/// At how many ports this machine listens for one connection.
const LISTENERS: usize = 16;

/// The places for one kind of stream.
#[derive(Debug, Default)]
struct Taken {
    /// The oldest one is the first.
    held: Vec<Held>,
    /// Numbers connections and places.
    last: u64,
}

#[derive(Debug)]
struct Held {
    connection: u64,
    place: u64,
    /// Dropping it tells the holder that the place is lost.
    _lost: oneshot::Sender<()>,
}

impl Taken {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn of(&self, connection: u64) -> usize {
        let own = |held: &&Held| held.connection == connection;
        self.held.iter().filter(own).count()
    }

    /// Takes a place away from the connection that has the most, if it has two more than `own`. Returns
    /// whether it did.
    fn take_away(&mut self, own: usize) -> bool {
        let mut counts = HashMap::<u64, usize>::new();
        for held in &self.held {
            *counts.entry(held.connection).or_default() += 1;
        }
        let newest_of_most = (0..self.held.len()).max_by_key(|&i| counts[&self.held[i].connection]);
        match newest_of_most {
            Some(i) if counts[&self.held[i].connection] > own + 1 => {
                self.held.remove(i);
                true
            }
            _ => false,
        }
    }
}

/// The places of all peers.
#[derive(Debug)]
pub(crate) struct AllPlaces {
    files: Share,
    tunnels: Share,
    listeners: Share,
}

impl Default for AllPlaces {
    fn default() -> Self {
        Self {
            files: Share::new(FILES),
            tunnels: Share::new(TUNNELS),
            listeners: Share::new(LISTENERS),
        }
    }
}

impl AllPlaces {
    /// Returns the places that one connection may take.
    pub(crate) fn of_connection(&self) -> Shares {
        Shares {
            files: self.files.of_connection(),
            tunnels: self.tunnels.of_connection(),
            listeners: self.listeners.of_connection(),
        }
    }
}

/// The places of one connection.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) files: Share,
    pub(crate) tunnels: Share,
    pub(crate) listeners: Share,
}

/// The places of one connection for one kind of stream.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    all: Arc<Mutex<Taken>>,
    connection: u64,
    /// The most places of one connection.
    most: usize,
}

/// A place of one stream. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    all: Arc<Mutex<Taken>>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Share {
    fn new(most: usize) -> Self {
        Self {
            all: Arc::default(),
            connection: 0,
            most,
        }
    }

    fn of_connection(&self) -> Self {
        Self {
            connection: lock(&self.all).number(),
            ..self.clone()
        }
    }

    /// Takes a place, if one is free or another connection has too many.
    pub(crate) fn take(&self) -> Option<Place> {
        let mut taken = lock(&self.all);
        let own = taken.of(self.connection);
        let free = taken.held.len() < self.most * CONNECTIONS;
        if own >= self.most || !free && !taken.take_away(own) {
            return None;
        }
        let (sender, lost) = oneshot::channel();
        let number = taken.number();
        taken.held.push(Held {
            connection: self.connection,
            place: number,
            _lost: sender,
        });
        Some(Place {
            all: Arc::clone(&self.all),
            number,
            lost,
        })
    }
}

impl Place {
    /// Ends when the place has gone to another connection. The holder then has to end at once.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.lost).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.all)
            .held
            .retain(|held| held.place != self.number);
    }
}

/// Nothing panics while it holds the lock, so what a poisoned one guards is whole.
fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn all(share: &Share) -> Vec<Place> {
        std::iter::from_fn(|| share.take()).collect()
    }

    fn lost(places: &mut [Place]) -> usize {
        let lost = |place: &mut Place| place.lost().now_or_never().is_some();
        places.iter_mut().map(lost).filter(|lost| *lost).count()
    }

    #[test]
    fn no_connection_takes_all_places() {
        let places = Share::new(2);
        let (greedy, other) = (places.of_connection(), places.of_connection());
        let taken = all(&greedy);
        assert_eq!(taken.len(), 2);
        assert!(other.take().is_some());
        drop(taken);
        assert!(greedy.take().is_some());
    }

    #[test]
    fn greedy_connections_make_room_for_a_new_one() {
        let places = Share::new(4);
        let greedy: Vec<_> = (0..CONNECTIONS).map(|_| places.of_connection()).collect();
        let mut taken: Vec<_> = greedy.iter().flat_map(all).collect();
        assert_eq!(taken.len(), 4 * CONNECTIONS);
        let newcomer = places.of_connection();
        // 16 places for five connections: each has three, and one of the greedy ones has four.
        let new = all(&newcomer);
        assert_eq!(new.len(), 3);
        assert!(greedy.iter().all(|share| share.take().is_none()));
        assert_eq!(lost(&mut taken), 3);
        assert_eq!(lock(&places.all).held.len(), 4 * CONNECTIONS);
    }

    #[test]
    fn equal_connections_take_nothing_from_each_other() {
        let places = Share::new(1);
        let shares: Vec<_> = (0..9).map(|_| places.of_connection()).collect();
        let mut taken: Vec<_> = shares.iter().filter_map(Share::take).collect();
        assert_eq!(taken.len(), CONNECTIONS);
        assert_eq!(lost(&mut taken), 0);
    }

    #[test]
    fn a_lost_place_frees_nothing_when_its_holder_ends() {
        let places = Share::new(2);
        let greedy: Vec<_> = (0..CONNECTIONS).map(|_| places.of_connection()).collect();
        let taken: Vec<_> = greedy.iter().flat_map(all).collect();
        let newcomer = places.of_connection().take();
        assert_eq!(lock(&places.all).held.len(), 2 * CONNECTIONS);
        drop(taken);
        assert_eq!(lock(&places.all).held.len(), 1);
        drop(newcomer);
        assert!(lock(&places.all).held.is_empty());
    }
}
