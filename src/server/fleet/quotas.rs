//! Quotas of which each server of the fleet has a part.

use std::{collections::HashMap, future::pending, mem, time::Duration};

use data_encoding::HEXLOWER;
use futures::{StreamExt as _, stream};
use tokio::time::{self, MissedTickBehavior};

use super::{
    Fleet,
    nats::{Buckets, Fault},
};
use crate::{
    core::lease::Leases,
    server::access::{Payer, Sharing},
};

/// How often it is looked whose lease is not used, so that the rest of it is given back.
const REST: Duration = Duration::from_secs(60);
/// How soon a lease that was not given is asked for again.
const RETRY: Duration = Duration::from_millis(250);
/// How many leases are asked for at once.
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
    pub(super) async fn lease(&self, buckets: &Buckets, sharing: &mut Sharing) -> Fault {
        // Whose lease is asked for, and whether the rest of it is given back.
        let mut waiting = HashMap::<Payer, bool>::new();
        let mut is_told = false;
        let mut rest = time::interval_at(time::Instant::now() + REST, REST);
        rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asks = sharing.wanted() => match asks {
                    Some(asks) => waiting.extend(asks.into_iter().map(|payer| (payer, false))),
                    None => return pending().await,
                },
                _ = rest.tick() => {
                    for payer in sharing.resting() {
                        waiting.entry(payer).or_insert(true);
                    }
                }
                () = time::sleep(RETRY), if !waiting.is_empty() => {}
            }
            let asks = stream::iter(waiting.drain().collect::<Vec<_>>());
            let sharing = &*sharing;
            let mut asked = asks
                .map(|(payer, rests)| async move {
                    let given = self.ask(buckets, sharing, &payer, rests).await;
                    (payer, rests, given)
                })
                .buffer_unordered(ASKS);
            while let Some((payer, rests, given)) = asked.next().await {
                match given {
                    Ok(()) => {
                        is_told = false;
                        self.0.metrics.written("written");
                    }
                    Err(fault) => {
                        self.0.metrics.written("failed");
                        match mem::replace(&mut is_told, true) {
                            false => tracing::warn!(
                                reason = %fault,
                                "a quota is not shared with the fleet; it ends here when this relay's part is used up"
                            ),
                            true => tracing::debug!(reason = %fault, "a quota is not shared"),
                        }
                        waiting.insert(payer, rests);
                    }
                }
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
            let mut leases = match value.as_deref().map(Leases::decode) {
                Some(None) => {
                    self.0.metrics.unsound();
                    Leases::default()
                }
                known => known.flatten().unwrap_or_default(),
            };
            let Some(ask) = sharing.ask(payer, rests) else {
                // Nobody needs it any more.
                return Ok(());
            };
            let Some(given) = leases.take(self.0.own, &ask) else {
                return Err(Fault::Other("too many relays have a part".to_owned()));
            };
            match buckets.lease(key.clone(), leases.encode(), revision).await {
                Ok(_) => {
                    sharing.given(payer, &ask, given);
                    return Ok(());
                }
                Err(Fault::Differs) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Differs)
    }
}
