//! A gate that allows one guess of ports at a time through each gateway.
//!
//! A guess takes hundreds of places in a router's table. A second guess at the same time could fill
//! the table of a small router, and then nobody behind it could connect. A guess that rested on a doubt
//! (`core/birthday.rs`) and was in vain is not made again for a while.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a guess in vain is remembered. Peers that cannot be direct try again every minute.
const VAIN: Duration = Duration::from_secs(30 * 60);
/// How many of these are remembered.
const MOST_VAIN: usize = 64;

/// A gate, which all its clones share.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The gateways through which a guess goes on, by their external address.
    busy: HashSet<IpAddr>,
    /// The addresses of peers' NATs that were guessed at in vain, and when.
    vain: VecDeque<(IpAddr, Instant)>,
}

impl Gate {
    /// The gate of this process, which several connectors share.
    pub(super) fn of_process() -> Self {
        static GATE: LazyLock<Gate> = LazyLock::new(Gate::default);
        GATE.clone()
    }

    /// Lets one guess through. Returns `None` while another guess goes through the gateway.
    pub(super) fn enter(&self, gateway: IpAddr) -> Option<Pass> {
        self.state().busy.insert(gateway).then(|| Pass {
            gate: self.clone(),
            gateway,
        })
    }

    /// Notes that a guess at the NAT with this address was in vain.
    pub(super) fn note_vain(&self, target: IpAddr, now: Instant) {
        let vain = &mut self.state().vain;
        vain.retain(|(known, _)| *known != target);
        if vain.len() == MOST_VAIN {
            vain.pop_front();
        }
        vain.push_back((target, now));
    }

    /// Whether a guess at the NAT with this address was in vain not long ago.
    pub(super) fn is_vain(&self, target: IpAddr, now: Instant) -> bool {
        let vain = &self.state().vain;
        let known = vain.iter().find(|(known, _)| *known == target);
        known.is_some_and(|(_, at)| now.saturating_duration_since(*at) < VAIN)
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        self.gate.state().busy.remove(&self.gateway);
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

    #[test]
    fn a_guess_in_vain_is_remembered_for_a_while() {
        let (gate, now) = (Gate::default(), Instant::now());
        let nat = |number: u8| IpAddr::from([198, 51, 100, number]);
        gate.note_vain(nat(1), now);
        assert!(gate.is_vain(nat(1), now) && !gate.is_vain(nat(2), now));
        assert!(!gate.is_vain(nat(1), now + VAIN));
        gate.note_vain(nat(1), now + VAIN);
        assert!(gate.is_vain(nat(1), now + VAIN));
        for number in 2..255 {
            gate.note_vain(nat(number), now + VAIN);
        }
        assert_eq!(gate.state().vain.len(), MOST_VAIN);
        assert!(!gate.is_vain(nat(1), now + VAIN), "it made room");
    }
}
