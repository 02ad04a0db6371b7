//! The transfers under way. A sender that was killed comes again before its old stream has ended, and then
//! the new transfer takes the part over.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::channel::oneshot;

/// What tells transfers apart: a hash of the file's fingerprint and its place.
pub(crate) type Key = [u8; 32];

/// The transfers of an inbox. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Active(Arc<Mutex<HashMap<Key, Running>>>);

#[derive(Debug)]
struct Running {
    /// Dropping it ends the transfer.
    cancel: oneshot::Sender<()>,
    /// Resolves when the transfer has ended.
    ended: oneshot::Receiver<()>,
}

/// The place of one transfer. Dropping it says that the transfer has ended.
#[derive(Debug)]
pub(crate) struct Place {
    cancelled: oneshot::Receiver<()>,
    _ended: oneshot::Sender<()>,
}

impl Active {
    /// Waits until no other transfer has this key, and ends the one that has.
    pub(crate) async fn enter(&self, key: Key) -> Place {
        loop {
            let before = {
                let mut all = self.lock();
                // Those that have ended by themselves are forgotten here, so their number is that of the
                // streams.
                all.retain(|_, running| !running.cancel.is_canceled());
                match all.remove(&key) {
                    Some(before) => before,
                    None => {
                        let (cancel, cancelled) = oneshot::channel();
                        let (sender, ended) = oneshot::channel();
                        all.insert(key, Running { cancel, ended });
                        return Place {
                            cancelled,
                            _ended: sender,
                        };
                    }
                }
            };
            drop(before.cancel);
            // It is cancelled when the sender is dropped, and nothing is ever sent.
            let _ = before.ended.await;
        }
    }

    /// A panic elsewhere leaves the map whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when another transfer of the same file begins.
    pub(crate) async fn cancelled(&mut self) {
        let _ = (&mut self.cancelled).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::join};

    use super::*;

    #[tokio::test]
    async fn the_newest_transfer_of_a_file_takes_over() {
        let active = Active::default();
        let mut first = active.enter([1; 32]).await;
        let other = active.enter([2; 32]).await;
        assert!(first.cancelled().now_or_never().is_none());
        let giving_way = async move {
            first.cancelled().await;
            drop(first);
        };
        let (second, ()) = join(active.enter([1; 32]), giving_way).await;
        drop((second, other));
        let _third = active.enter([3; 32]).await;
        assert_eq!(
            active.lock().len(),
            1,
            "those that have ended are forgotten"
        );
    }
}
