//! One guess of ports at a time through each gateway.
//!
//! A guess takes hundreds of places in a router's table; a second one beside it could fill the
//! table of a small router, and with it everybody's way out.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

/// The gateways that are being guessed through, by their address on the outside.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<HashSet<IpAddr>>>);

impl Gate {
    /// The one of this process, which several connectors share.
    pub(super) fn of_process() -> Self {
        static GATE: LazyLock<Gate> = LazyLock::new(Gate::default);
        GATE.clone()
    }

    /// Lets one through; `None` while another is.
    pub(super) fn enter(&self, gateway: IpAddr) -> Option<Pass> {
        self.busy().insert(gateway).then(|| Pass {
            gate: self.clone(),
            gateway,
        })
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to guess through a gateway. Dropping it gives it to the next.
pub(super) struct Pass {
    gate: Gate,
    gateway: IpAddr,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.busy().remove(&self.gateway);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_goes_through_each_gateway() {
        let gate = Gate::default();
        let [home, office] = [[198, 51, 100, 1], [198, 51, 100, 2]].map(IpAddr::from);
        let first = gate.enter(home);
        assert!(first.is_some() && gate.enter(home).is_none());
        assert!(gate.clone().enter(office).is_some());
        drop(first);
        assert!(gate.enter(home).is_some());
    }
}
