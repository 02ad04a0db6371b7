//! How long relayed addresses are needed: as long as a connection says so or uses them.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};

use super::lock;
use crate::native::ice::gather::Gathered;

#[derive(Clone, Copy, Default)]
pub(super) struct Demand {
    pub(super) holds: usize,
    /// Counts the holds that have begun.
    pub(super) begun: u64,
    /// How many servers there are to ask.
    pub(super) servers: usize,
    pub(super) closed: bool,
}

/// The demand of one connection for relayed addresses. It ends when this is dropped.
pub(crate) struct Hold {
    demand: Arc<watch::Sender<Demand>>,
    held: bool,
}

impl Hold {
    /// Will say to `demand` whether relayed addresses are needed. None are needed at first.
    pub(super) fn new(demand: &Arc<watch::Sender<Demand>>) -> Self {
        Self {
            demand: demand.clone(),
            held: false,
        }
    }

    /// Whether there is a server to ask.
    pub(crate) fn has_servers(&self) -> bool {
        self.demand.borrow().servers > 0
    }

    /// Says whether relayed addresses are needed now.
    pub(crate) fn set(&mut self, needed: bool) {
        if std::mem::replace(&mut self.held, needed) == needed {
            return;
        }
        self.demand.send_modify(|demand| match needed {
            true => {
                demand.holds += 1;
                demand.begun += 1;
            }
            false => demand.holds -= 1,
        });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// When the addresses of a server last carried anything but ICE checks. The two ends of a connection
/// may choose different pairs, so an address that this end does not send from may still be the one
/// that the peer sends to.
#[derive(Default)]
pub(super) struct LastUse(Mutex<Option<Instant>>);

impl LastUse {
    pub(super) fn note(&self, now: Instant) {
        *lock(&self.0) = Some(now);
    }

    pub(super) fn at(&self) -> Option<Instant> {
        *lock(&self.0)
    }
}

/// The addresses of the machine's interfaces, and the next change of them.
pub(super) struct Hosts {
    known: HashSet<IpAddr>,
    current: Option<watch::Receiver<Gathered>>,
}

impl Hosts {
    pub(super) fn watch(current: &Weak<watch::Sender<Gathered>>) -> Self {
        let current = current.upgrade().map(|current| current.subscribe());
        Self {
            known: current
                .as_ref()
                .map_or_else(HashSet::new, |c| c.borrow().hosts()),
            current,
        }
    }

    /// Waits until the addresses change. Returns those that are gone. Once nobody gathers any more,
    /// this never resolves.
    pub(super) async fn changed(&mut self) -> Vec<IpAddr> {
        if let Some(current) = &mut self.current
            && let Ok(now) = current.wait_for(|now| now.hosts() != self.known).await
        {
            let before = std::mem::replace(&mut self.known, now.hosts());
            return before.difference(&self.known).copied().collect();
        }
        std::future::pending().await
    }
}

/// Waits until nobody has needed or used an address for `linger`, or until nobody ever will.
pub(super) async fn released(
    mut demand: watch::Receiver<Demand>,
    used: Arc<LastUse>,
    linger: Duration,
) {
    loop {
        let unneeded = demand.wait_for(|now| now.closed || now.holds == 0);
        if unneeded.await.map_or(true, |now| now.closed) {
            return;
        }
        let mut until = Instant::now() + linger;
        loop {
            let needed = demand.wait_for(|now| now.closed || now.holds > 0);
            match time::timeout_at(until.into(), needed).await {
                Ok(Ok(now)) if !now.closed => break,
                Ok(_) => return,
                Err(_) => {}
            }
            let last = used.at().map(|last| last + linger);
            match last.filter(|later| *later > Instant::now()) {
                Some(later) => until = later,
                None => return,
            }
        }
    }
}
