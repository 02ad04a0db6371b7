//! Whose quota counts what, and who is told what is left of it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Instant, SystemTime},
};

use libp2p::PeerId;

use super::{
    Access, lock,
    meter::{Before, Limits, Meter, Payer, Wants},
};
use crate::core::{
    access::Denial,
    allowance::Left,
    lease::{Ask, Lease},
};

impl Access {
    /// Returns the meter of somebody whose use is limited.
    ///
    /// # Errors
    /// [`Denial::Quota`] if nothing is left of the quota.
    pub(super) fn meter(
        &self,
        payer: Payer,
        limits: Limits,
        now: SystemTime,
    ) -> Result<Option<Arc<Meter>>, Denial> {
        if limits == Limits::default() {
            return Ok(None);
        }
        let meter = lock(&self.0.meters).of(payer, limits, (now, Instant::now()))?;
        meter.check(now)?;
        Ok(Some(meter))
    }

    /// Returns the meter of a peer, or of another user of the TURN server, if the settings limit what
    /// each may take.
    pub(super) fn peer_meter(
        &self,
        peer: &str,
        now: SystemTime,
    ) -> Result<Option<Arc<Meter>>, Denial> {
        let limits = self.0.settings.now().traffic.limits_of_a_peer();
        self.meter(Payer::Peer(peer.to_owned()), limits, now)
    }

    /// Returns what counts the bytes that the dialler `source` pays for, and those that `to` pays for,
    /// which has the reservation.
    ///
    /// # Errors
    /// [`Denial::Quota`] if nothing is left of a quota.
    pub(crate) fn meters_of(
        &self,
        source: PeerId,
        to: PeerId,
    ) -> Result<[Vec<Arc<Meter>>; 2], Denial> {
        let now = SystemTime::now();
        let [of_source, of_peer] = {
            let granted = self.granted();
            [source, to].map(|peer| granted.get(&peer)?.meter.clone())
        };
        // Two holders of one token pay once.
        let is_shared =
            |meter: &Arc<Meter>| of_source.as_ref().is_some_and(|of| Arc::ptr_eq(of, meter));
        let of_peer = of_peer.filter(|meter| !is_shared(meter));
        let granted = of_source.iter().chain(&of_peer);
        granted.into_iter().try_for_each(|meter| meter.check(now))?;
        let of_each = self.peer_meter(&to.to_string(), now)?;
        let of_peer = of_peer.into_iter().chain(of_each).collect();
        Ok([of_source.into_iter().collect(), of_peer])
    }

    /// Takes over what was carried before the server started.
    pub(crate) fn follow(&self, before: Before) {
        lock(&self.0.meters).follow(before);
    }

    /// Returns the connected peers that have to be told what is left of their quota.
    pub(crate) fn due(&self) -> Vec<(PeerId, Left)> {
        let mut due = Vec::new();
        let payers = lock(&self.0.meters).due(SystemTime::now());
        for (payer, left) in payers {
            match payer {
                Payer::Name(name) => {
                    let granted = self.granted();
                    let of_name = granted.iter().filter(|(_, grant)| grant.name == name);
                    due.extend(of_name.map(|(peer, _)| (*peer, left)));
                }
                Payer::Admitted(peer) | Payer::Peer(peer) => {
                    due.extend(peer.parse().ok().map(|peer| (peer, left)));
                }
            }
        }
        due
    }

    /// Returns what is left for a peer that has just come, if the others of its quota were told.
    pub(crate) fn left(&self, peer: &PeerId) -> Option<Left> {
        let id = peer.to_string();
        let mut payers = HashSet::from([Payer::Admitted(id.clone()), Payer::Peer(id)]);
        if let Some(grant) = self.granted().get(peer) {
            payers.insert(Payer::Name(grant.name.clone()));
        }
        lock(&self.0.meters).known(&payers, SystemTime::now())
    }
}

/// What somebody needs to know of the quotas who shares them with other servers.
pub(crate) struct Sharing {
    access: Access,
    wants: Arc<Wants>,
}

impl Access {
    /// Shares the quotas with other servers from now on. Nobody may have been metered before.
    pub(crate) fn share(&self) -> Sharing {
        Sharing {
            access: self.clone(),
            wants: lock(&self.0.meters).share(),
        }
    }
}

impl Sharing {
    /// Waits for payers whose lease is nearly used up.
    ///
    /// Dropping the future loses none.
    pub(crate) async fn wanted(&self) -> HashSet<Payer> {
        self.wants.next().await
    }

    /// Returns the payers that have a rest to give back: those that have carried nothing since the last call, or
    /// `all`.
    pub(crate) fn resting(&self, all: bool) -> Vec<Payer> {
        lock(&self.access.0.meters).resting(all)
    }

    /// Returns what to ask for, if `payer` still has a quota.
    pub(crate) fn ask(&self, payer: &Payer, rests: bool) -> Option<Ask> {
        lock(&self.access.0.meters).ask(payer, rests, SystemTime::now())
    }

    /// Notes what was given for `ask`.
    pub(crate) fn given(&self, payer: &Payer, ask: &Ask, given: [Lease; 2]) {
        lock(&self.access.0.meters).given(payer, ask, given);
    }
}
