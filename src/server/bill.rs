//! Who pays for what a circuit or an offer carries.
//!
//! | who | pays for both directions | from |
//! | --- | --- | --- |
//! | the dialler | with the quota and the rate of its token, if it has one | the first byte |
//! | the dialler | with its share of the rate of all | the first byte, until the peer agrees |
//! | the peer with the reservation | with its share of the rate of all | then on |
//! | the peer with the reservation | with its quotas, its rates and the record of usage | the first byte, once it has agreed |
//!
//! What is sent to a peer before it has agreed costs that peer nothing if it refuses, so that no stranger
//! uses up its quota. The dialler can send [`EARLY`] bytes until then, and has to wait with the rest.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    access::Meter,
    fairness::{Fairness, Flow},
    usage::{Account, Amounts, Tally, Usage},
};

/// The most bytes that pass before the peer agrees. A dialler sends less than that in its first round
/// trip, and an offer with a hundred candidates is half as long.
const EARLY: u64 = 64 * 1024;

/// One of the two peers of a circuit.
pub(crate) struct Party {
    pub(crate) account: Account,
    /// What counts the bytes that it pays for.
    pub(crate) meters: Vec<Arc<Meter>>,
    /// The weight of its share in the rate of all.
    pub(crate) weight: u32,
}

/// Counts the bytes of one circuit or one offer.
pub(crate) struct Bill {
    of_dialler: Vec<Arc<Meter>>,
    share_of_dialler: Flow,
    of_peer: Vec<Arc<Meter>>,
    share_of_peer: Flow,
    /// Counts for the record of usage.
    tally: Tally,
    /// The bytes that have passed, until the peer agrees.
    early: watch::Sender<Option<u64>>,
}

impl Bill {
    /// Opens a bill. The record of usage counts `once` as soon as the [tally](Self::tally) begins.
    pub(crate) fn new(
        (dialler, peer): (Party, Party),
        fairness: &Fairness,
        usage: &Usage,
        once: Amounts,
    ) -> Self {
        Self {
            share_of_dialler: fairness.flow(&dialler.account, dialler.weight),
            of_dialler: dialler.meters,
            share_of_peer: fairness.flow(&peer.account, peer.weight),
            of_peer: peer.meters,
            tally: usage.tally(peer.account, once),
            early: watch::Sender::new(Some(0)),
        }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Counts bytes that are about to be carried. Returns how long they have to wait. It waits itself
    /// if the peer has to agree first.
    ///
    /// # Errors
    /// Nothing is left of a quota.
    pub(crate) async fn carry(&self, bytes: u64) -> io::Result<Duration> {
        let wait = pay(&self.of_dialler, bytes)?;
        let Some(early) = self.owe(bytes) else {
            let share = self.share_of_peer.carry(bytes);
            let wait = wait.max(pay(&self.of_peer, bytes)?);
            self.tally.carried(bytes);
            return Ok(wait.max(share));
        };
        let share = self.share_of_dialler.carry(bytes);
        if early > EARLY {
            // An error is not possible, because the sender is here.
            let _ = self.early.subscribe().wait_for(Option::is_none).await;
        }
        Ok(wait.max(share))
    }

    /// The peer has agreed, so it pays from now on, and for what has passed.
    ///
    /// # Errors
    /// Nothing is left of its quota.
    pub(crate) fn agree(&self) -> io::Result<()> {
        let early = self.early.send_replace(None).unwrap_or(0);
        // They have passed, whatever is left of a quota.
        self.tally.carried(early);
        pay(&self.of_peer, early).map(drop)
    }

    /// Notes bytes for which the peer pays when it agrees. Returns how many these are by now, or
    /// `None` if it has agreed.
    fn owe(&self, bytes: u64) -> Option<u64> {
        // Most bytes come later, and then a look is cheaper.
        (*self.early.borrow())?;
        let mut owed = None;
        self.early.send_if_modified(|early| {
            if let Some(early) = early {
                *early = early.saturating_add(bytes);
            }
            owed = *early;
            false
        });
        owed
    }
}

/// Counts bytes at each meter. Returns the longest wait.
///
/// # Errors
/// [`io::ErrorKind::QuotaExceeded`] if nothing is left of a quota.
pub(crate) fn pay(meters: &[Arc<Meter>], bytes: u64) -> io::Result<Duration> {
    let waits = meters.iter().map(|meter| meter.carry(bytes));
    let longest = waits.reduce(|a, b| Ok(a?.max(b?)));
    let longest = longest.unwrap_or(Ok(Duration::ZERO));
    longest.map_err(|_| io::ErrorKind::QuotaExceeded.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt as _;

    use super::*;
    use crate::server::access::Limits;

    fn quota() -> Arc<Meter> {
        Meter::limited(Limits {
            quota: crate::server::access::quota("1kB/day"),
            rate: None,
        })
    }

    fn party(meter: &Arc<Meter>) -> Party {
        Party {
            account: Account::of("a"),
            meters: vec![meter.clone()],
            weight: 4,
        }
    }

    fn bill(dialler: &Arc<Meter>, peer: &Arc<Meter>) -> Bill {
        let parties = (party(dialler), party(peer));
        Bill::new(
            parties,
            &Fairness::new(0),
            &Usage::default(),
            Amounts::default(),
        )
    }

    fn is_used_up(meter: &Meter) -> bool {
        meter.check(std::time::SystemTime::now()).is_err()
    }

    #[test]
    fn a_peer_that_does_not_agree_pays_nothing_and_its_dialler_pays() {
        let (dialler, peer) = (quota(), quota());
        let bill = bill(&dialler, &peer);
        let carried = bill.carry(2000).now_or_never();
        assert_eq!(carried.unwrap().unwrap(), Duration::ZERO);
        drop(bill);
        assert!(is_used_up(&dialler) && !is_used_up(&peer));
    }

    #[test]
    fn a_peer_that_agrees_pays_for_what_has_passed_and_for_the_rest() {
        let (dialler, peer) = (Meter::of_rate(1 << 40).unwrap(), quota());
        let bill = bill(&dialler, &peer);
        bill.carry(600).now_or_never().unwrap().unwrap();
        bill.agree().unwrap();
        assert!(!is_used_up(&peer));
        bill.carry(400).now_or_never().unwrap().unwrap();
        assert!(is_used_up(&peer));
        let more = bill.carry(1).now_or_never().unwrap().unwrap_err();
        assert_eq!(more.kind(), io::ErrorKind::QuotaExceeded);
    }

    #[test]
    fn what_is_more_than_early_data_waits_until_the_peer_agrees() {
        let rate = Meter::of_rate(1 << 40).unwrap();
        let bill = bill(&rate, &rate);
        assert!(bill.carry(EARLY).now_or_never().is_some());
        let mut more = Box::pin(bill.carry(1));
        assert!((&mut more).now_or_never().is_none());
        bill.agree().unwrap();
        assert!((&mut more).now_or_never().is_some());
        assert!(bill.carry(EARLY).now_or_never().is_some());
    }

    #[test]
    fn a_stranger_waits_for_its_own_share() {
        let fairness = Fairness::new(1_000_000);
        let party = |peer: &str| Party {
            account: Account::of(peer),
            meters: Vec::new(),
            weight: 4,
        };
        let bill = |dialler: &str| {
            let parties = (party(dialler), party("peer"));
            Bill::new(parties, &fairness, &Usage::default(), Amounts::default())
        };
        let flood = bill("stranger");
        for _ in 0..100 {
            let _ = flood.carry(EARLY).now_or_never();
        }
        let other = bill("friend");
        other.agree().unwrap();
        let wait = other.carry(1000).now_or_never().unwrap().unwrap();
        assert_eq!(wait, Duration::ZERO);
        other.tally().begin(Instant::now());
    }
}
