//! A gate that allows one guess of ports at a time through each gateway.
//!
//! A guess takes hundreds of places in a router's table. A second guess at the same time could fill
//! the table of a small router, and then nobody behind it could connect.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

/// The gateways through which a guess goes on, by their external address.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<HashSet<IpAddr>>>);

impl Gate {
    /// The gate of this process, which several connectors share.
    pub(super) fn of_process() -> Self {
        static GATE: LazyLock<Gate> = LazyLock::new(Gate::default);
        GATE.clone()
    }

    /// Lets one guess through. Returns `None` while another guess goes through the gateway.
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

/// The right to guess through a gateway. Dropping it lets the next guess through.
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
    fn each_gateway_has_one_guess_at_a_time() {
        let gate = Gate::default();
        let [home, office] = [[198, 51, 100, 1], [198, 51, 100, 2]].map(IpAddr::from);
        let first = gate.enter(home);
        assert!(first.is_some() && gate.enter(home).is_none());
        assert!(gate.clone().enter(office).is_some());
        drop(first);
        assert!(gate.enter(home).is_some());
    }
}
