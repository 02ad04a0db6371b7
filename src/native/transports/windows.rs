//! Bounds how many unread bytes from its peers a server holds.
//!
//! A connection begins with a small window, which is enough for requests. Each circuit over the
//! connection widens the window by as much as one circuit may hold. So a circuit whose other end
//! does not read leaves room for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::Multiaddr;

/// The sizes of windows in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// The window of a connection without circuits.
    pub(crate) connection: u32,
    /// The window of a circuit, and of any single stream.
    pub(crate) circuit: u32,
}

impl Sizes {
    fn with(self, circuits: u32) -> u32 {
        let circuits = self.circuit.saturating_mul(circuits);
        self.connection.saturating_add(circuits)
    }
}

/// The connections whose windows are bounded, by their remote address. Clones share one map.
#[derive(Clone)]
pub(crate) struct Windows(Arc<Inner>);

struct Inner {
    sizes: Sizes,
    connections: Mutex<HashMap<Multiaddr, Arc<Entry>>>,
}

struct Entry {
    set: Box<dyn Fn(u32) + Send + Sync>,
    circuits: Mutex<u32>,
}

impl Entry {
    /// Changes the number of circuits and sets the window to match.
    fn count(&self, sizes: Sizes, change: impl FnOnce(&mut u32)) {
        // The lock is held while the window is set, so that the last change wins.
        let mut circuits = lock(&self.circuits);
        change(&mut circuits);
        (self.set)(sizes.with(*circuits));
    }
}

/// Locks `mutex`, even if it is poisoned: a number or a map is consistent after every call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Windows {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self(Arc::new(Inner {
            sizes,
            connections: Mutex::default(),
        }))
    }

    pub(crate) fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    /// Adds a connection from `remote`, with the function that sets its window. Dropping the
    /// [`Known`] removes it.
    pub(crate) fn add(
        &self,
        remote: &Multiaddr,
        set: impl Fn(u32) + Send + Sync + 'static,
    ) -> Known {
        let entry = Arc::new(Entry {
            set: Box::new(set),
            circuits: Mutex::new(0),
        });
        lock(&self.0.connections).insert(remote.clone(), entry.clone());
        Known {
            windows: self.clone(),
            remote: remote.clone(),
            entry,
        }
    }

    /// Widens the window of the connection from `remote` by one circuit. Dropping the [`Wide`]
    /// undoes it.
    pub(crate) fn widen(&self, remote: &Multiaddr) -> Option<Wide> {
        let entry = lock(&self.0.connections).get(remote).cloned()?;
        entry.count(self.0.sizes, |circuits| *circuits += 1);
        Some(Wide {
            sizes: self.0.sizes,
            entry,
        })
    }
}

/// A connection whose window can be widened.
pub(crate) struct Known {
    windows: Windows,
    remote: Multiaddr,
    entry: Arc<Entry>,
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut connections = lock(&self.windows.0.connections);
        let is_ours = |entry: &Arc<Entry>| Arc::ptr_eq(entry, &self.entry);
        // A newer connection from the same address may have replaced this one.
        if connections.get(&self.remote).is_some_and(is_ours) {
            connections.remove(&self.remote);
        }
    }
}

/// A circuit's share of a window.
pub(crate) struct Wide {
    sizes: Sizes,
    entry: Arc<Entry>,
}

impl Drop for Wide {
    fn drop(&mut self) {
        self.entry.count(self.sizes, |circuits| *circuits -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn each_circuit_widens_its_connections() {
        let windows = Windows::new(Sizes {
            connection: 10,
            circuit: 100,
        });
        let remote: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let set = Arc::new(AtomicU32::new(10));
        let size = || set.load(Ordering::Relaxed);
        let set_to = set.clone();
        let add = || {
            let set = set_to.clone();
            windows.add(&remote, move |bytes| set.store(bytes, Ordering::Relaxed))
        };
        assert!(windows.widen(&remote).is_none(), "nobody is there");
        let first = add();
        let (one, other) = (windows.widen(&remote), windows.widen(&remote));
        assert!(one.is_some() && other.is_some());
        assert_eq!(size(), 210);
        drop(one);
        assert_eq!(size(), 110);
        // When the first connection ends, the second one from the same address stays.
        let second = add();
        drop(first);
        let of_second = windows.widen(&remote).unwrap();
        drop((of_second, other));
        assert_eq!(size(), 10);
        drop(second);
        assert!(windows.widen(&remote).is_none());
        assert!(lock(&windows.0.connections).is_empty());
    }
}
