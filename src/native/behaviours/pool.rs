//! A pool of places that strangers can hold.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::core::quota::{Holder, Ledger, Quota, Refusal};

/// An observer, which is told of every refusal.
pub(crate) trait Observer: Clone + Send + Sync + 'static {
    /// The pool `what` refused a place to `ip` for `reason`.
    fn refused(&self, what: &'static str, reason: &'static str, ip: Option<IpAddr>);
}

/// The observer of a peer. It only writes to the log, because nobody watches a peer.
#[derive(Clone)]
pub(crate) struct Debug;

impl Observer for Debug {
    fn refused(&self, what: &'static str, reason: &'static str, _: Option<IpAddr>) {
        tracing::debug!(what, reason, "refused");
    }
}

/// A pool. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    quota: Quota,
    ledger: Mutex<Ledger>,
    refused: Box<dyn Fn(&'static str, Option<IpAddr>) + Send + Sync>,
}

impl Pool {
    /// Makes a pool that is called `name` in metrics and logs.
    pub(crate) fn new(name: &'static str, quota: Quota, observer: &impl Observer) -> Self {
        let observer = observer.clone();
        Self(Arc::new(Inner {
            quota,
            ledger: Mutex::default(),
            refused: Box::new(move |reason, ip| observer.refused(name, reason, ip)),
        }))
    }

    /// Takes a place for `holder`. The place is held until it is dropped. The observer is told of a
    /// refusal.
    pub(crate) fn take(&self, holder: impl Into<Holder>) -> Result<Place, Refusal> {
        let holder = holder.into();
        self.try_take(holder).inspect_err(|refusal| {
            (self.0.refused)(refusal.name(), holder.ip);
        })
    }

    /// Says whether there is a place for `holder`, and takes none. The observer is told of a refusal.
    pub(crate) fn look(&self, holder: impl Into<Holder>) -> Result<(), Refusal> {
        let holder = holder.into();
        let looked = self.lock().look(&self.0.quota, holder);
        looked.inspect_err(|refusal| (self.0.refused)(refusal.name(), holder.ip))
    }

    /// Takes a place as [`take`](Self::take) does, but does not tell the observer of a refusal. It
    /// is for callers that do not send anybody away yet.
    pub(crate) fn try_take(&self, holder: impl Into<Holder>) -> Result<Place, Refusal> {
        let holder = holder.into();
        self.lock().take(&self.0.quota, holder)?;
        Ok(Place {
            pool: self.clone(),
            holder,
        })
    }

    /// How many places are taken.
    #[cfg(any(feature = "server", test))]
    pub(crate) fn taken(&self) -> usize {
        self.lock().taken()
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A poisoned lock is fine, because a ledger is consistent after every call.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "server")]
impl Pool {
    /// Whether `peer` holds a place.
    pub(crate) fn is_held_by(&self, peer: libp2p::PeerId) -> bool {
        self.lock().is_held_by(peer)
    }

    /// Whether no place is left for anybody.
    pub(crate) fn is_full(&self) -> bool {
        self.taken() >= self.0.quota.all
    }
}

/// A place in a [`Pool`]. Dropping it gives the place back.
pub(crate) struct Place {
    pool: Pool,
    holder: Holder,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.lock().give_back(self.holder);
        tracing::trace!("a place is free");
    }
}
