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

/// How many places a pool has. A pool asks each time, so a server can change its limits while it runs.
/// A pool that becomes smaller refuses new places, and takes none back.
#[derive(Clone)]
pub(crate) struct Quotas(Arc<dyn Fn() -> Quota + Send + Sync>);

impl From<Quota> for Quotas {
    fn from(quota: Quota) -> Self {
        Self::new(move || quota)
    }
}

impl Quotas {
    pub(crate) fn new(now: impl Fn() -> Quota + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> Quota {
        (self.0)()
    }

    /// Returns quotas that follow these.
    pub(crate) fn map(&self, change: impl Fn(Quota) -> Quota + Send + Sync + 'static) -> Self {
        let quotas = self.clone();
        Self::new(move || change(quotas.now()))
    }
}

/// A pool. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    quotas: Quotas,
    ledger: Mutex<Ledger>,
    refused: Box<dyn Fn(&'static str, Option<IpAddr>) + Send + Sync>,
}

impl Pool {
    /// Makes a pool that is called `name` in metrics and logs.
    pub(crate) fn new(
        name: &'static str,
        quotas: impl Into<Quotas>,
        observer: &impl Observer,
    ) -> Self {
        let observer = observer.clone();
        Self(Arc::new(Inner {
            quotas: quotas.into(),
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
        let quota = self.0.quotas.now();
        let looked = self.lock().look(&quota, holder);
        looked.inspect_err(|refusal| (self.0.refused)(refusal.name(), holder.ip))
    }

    /// Takes a place as [`take`](Self::take) does, but does not tell the observer of a refusal. It
    /// is for callers that do not send anybody away yet.
    pub(crate) fn try_take(&self, holder: impl Into<Holder>) -> Result<Place, Refusal> {
        let holder = holder.into();
        let quota = self.0.quotas.now();
        self.lock().take(&quota, holder)?;
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
        self.taken() >= self.0.quotas.now().all
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
