//! Quotas of which each server of the fleet has a part.

use std::{collections::HashSet, time::Duration};

use data_encoding::HEXLOWER;
use futures::{StreamExt as _, stream};
use tokio::time::{self, MissedTickBehavior};

use super::{
    Fleet, REASONS,
    nats::{Buckets, Fault},
};
use crate::{
    core::lease::Leases,
    server::access::{Payer, Sharing},
};

/// How often it is looked whose lease is not used, so that the rest of it is given back.
const REST: Duration = Duration::from_secs(60);
/// The pause before a lease that was not given is asked for again, and before more is given back.
const PAUSE: Duration = Duration::from_millis(250);
/// How many leases are asked for at once, and how many are given back between two pauses.
const ASKS: usize = 32;
/// How often one is tried to be changed while other servers change it as well.
const TRIES: usize = 8;

/// The key of the leases of a quota.
fn key(payer: &Payer) -> String {
    let (kind, id) = match payer {
        Payer::Name(name) => ("name", name),
        Payer::Admitted(peer) => ("admitted", peer),
        Payer::Peer(peer) => ("peer", peer),
    };
    format!("{kind}.{}", HEXLOWER.encode(id.as_bytes()))
}

impl Fleet {
    /// Asks for the leases that this server needs, and gives back what it does not need.
    pub(super) async fn lease(&self, buckets: &Buckets, sharing: &Sharing) -> Fault {
        let rests = &self.0.rests;
        let (mut wanted, mut resting) = (HashSet::<Payer>::new(), HashSet::<Payer>::new());
        let (mut is_last, mut said) = (false, HashSet::new());
        let mut look = time::interval_at(time::Instant::now() + REST, REST);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_idle = wanted.is_empty() && resting.is_empty();
            tokio::select! {
                payers = sharing.wanted() => wanted.extend(payers),
                () = rests.wanted.notified() => {
                    is_last = true;
                    resting.extend(sharing.resting(true));
                }
                _ = look.tick() => resting.extend(sharing.resting(false)),
                () = time::sleep(PAUSE), if !is_idle => {}
            }
            resting.retain(|payer| !wanted.contains(payer));
            // Those that need something do not wait for many that give something back.
            let most = if is_last { usize::MAX } else { ASKS };
            let some = resting
                .iter()
                .take(most)
                .cloned()
                .map(|payer| (payer, true));
            let asks = wanted.drain().map(|payer| (payer, false));
            let asks: Vec<_> = asks.chain(some).collect();
            let mut asked = stream::iter(asks)
                .map(|(payer, rests)| async move {
                    let given = self.ask(buckets, sharing, &payer, rests).await;
                    (payer, rests, given)
                })
                .buffer_unordered(ASKS);
            while let Some((payer, rests, given)) = asked.next().await {
                let Err(fault) = given else {
                    resting.remove(&payer);
                    continue;
                };
                self.0.metrics.written("failed");
                let reason = fault.to_string();
                if said.len() < REASONS && !said.contains(&reason) {
                    tracing::warn!(
                        %reason,
                        "a quota is not shared with the fleet; it ends here when this relay's part is used up"
                    );
                    said.insert(reason);
                }
                if !rests {
                    wanted.insert(payer);
                }
            }
            if is_last && resting.is_empty() {
                is_last = false;
                rests.done.notify_waiters();
            }
        }
    }

    /// Asks for a lease, or gives the rest of it back.
    async fn ask(
        &self,
        buckets: &Buckets,
        sharing: &Sharing,
        payer: &Payer,
        rests: bool,
    ) -> Result<(), Fault> {
        let key = key(payer);
        for _ in 0..TRIES {
            let (value, revision) = buckets.leases(&key).await?;
            let value = value.unwrap_or_default();
            let mut leases = Leases::decode(&value).unwrap_or_else(|| {
                self.0.metrics.unsound();
                Leases::default()
            });
            let Some(ask) = sharing.ask(payer, rests) else {
                // Nobody needs it any more.
                return Ok(());
            };
            let Some(given) = leases.take(self.0.own, &ask) else {
                return Err(Fault::Other("too many relays have a part".to_owned()));
            };
            let new = leases.encode();
            if new[..] != value[..] {
                match buckets.lease(key.clone(), new, revision).await {
                    Ok(_) => self.0.metrics.written("written"),
                    Err(Fault::Differs) => continue,
                    Err(fault) => return Err(fault),
                }
            }
            sharing.given(payer, &ask, given);
            return Ok(());
        }
        Err(Fault::Differs)
    }
}
