//! Bounds how much of this machine the streams of peers take at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// There are places for this many connections that take all they can.
const CONNECTIONS: usize = 4;

/// How many files one connection brings at once. Each has 64 KiB of memory and two open files.
const FILES: usize = 16;
/// How many TCP connections one connection carries at once. It has 1,024 streams by default.
pub(crate) const TUNNELS: usize = 480;
/// At how many ports this machine listens for one connection.
const LISTENERS: usize = 16;

/// The places for one kind of stream.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    share: usize,
}

impl Places {
    fn new(share: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(share * CONNECTIONS)),
            share,
        }
    }

    fn share(&self) -> Share {
        Share {
            all: self.all.clone(),
            own: Arc::new(Semaphore::new(self.share)),
        }
    }
}

/// The places of all peers.
#[derive(Debug)]
pub(crate) struct AllPlaces {
    files: Places,
    tunnels: Places,
    listeners: Places,
}

impl Default for AllPlaces {
    fn default() -> Self {
        Self {
            files: Places::new(FILES),
            tunnels: Places::new(TUNNELS),
            listeners: Places::new(LISTENERS),
        }
    }
}

impl AllPlaces {
    /// Returns the places that one connection may take.
    pub(crate) fn of_connection(&self) -> Shares {
        Shares {
            files: self.files.share(),
            tunnels: self.tunnels.share(),
            listeners: self.listeners.share(),
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
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// A place of one stream. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Share {
    /// Takes a place, if one is free.
    pub(crate) fn take(&self) -> Option<Place> {
        let own = self.own.clone().try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Place {
            _own: own,
            _all: all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_takes_all_places() {
        let places = Places::new(2);
        let all = |share: &Share| std::iter::from_fn(|| share.take()).collect::<Vec<_>>();
        let (greedy, other) = (places.share(), places.share());
        let taken = all(&greedy);
        assert_eq!(taken.len(), 2);
        assert!(other.take().is_some());
        drop(taken);
        assert!(greedy.take().is_some());
    }

    #[test]
    fn many_connections_share_what_there_is() {
        let places = Places::new(2);
        let shares: Vec<_> = (0..9).map(|_| places.share()).collect();
        let taken: Vec<_> = shares.iter().filter_map(Share::take).collect();
        assert_eq!(taken.len(), 2 * CONNECTIONS);
    }
}
