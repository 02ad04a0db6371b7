//! Many servers that are one for their clients.
//!
//! Each server carries what its own peers send. What it knows of peers is shared: where they are, who is
//! in which room, which servers are about to end, and which tokens do not count any more. It is shared
//! through NATS JetStream. While NATS is away, a server goes on with what it knows.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `shared` | what is known, and what has to be written, without NATS |
//! | `keys` | the names of the buckets and of what they hold |
//! | `nats` | the connection and the buckets |
//! | `writing` | what is written, and what was lost and is written again |
//! | `revoked` | the tokens that do not count any more |
//! | `sisters` | the other servers |
//! | `quotas` | which part of a quota this server has |
//! | `usage` | what peers took, of all servers |
//! | `metrics` | what is counted |

mod keys;
mod metrics;
mod nats;
mod quotas;
mod revoked;
mod shared;
mod sisters;
mod usage;
mod writing;

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{self, timeout},
};
use tracing::Instrument as _;

pub use self::usage::usage_of_fleet;
use self::{
    keys::{Bucket, Found, Key},
    metrics::FleetMetrics,
    nats::{Buckets, Cluster, Fault},
    shared::{Known, Shared, Unsound},
    usage::Told,
};
pub(in crate::server) use self::{shared::Elsewhere, sisters::Sisters};
use super::{
    access::{Revoked, Sharing},
    config::FleetConfig,
    directory::{Change, Directory, Entry, Envelope, Memory, Seat, Take},
    metrics::Metrics,
    settings::Settings,
    usage::Usage,
};
use crate::{
    core::{
        backoff::Backoff,
        directory::{Refusal, Topic},
        fleet::{BEAT, MAX_STATUS_ADDRESSES, Status},
        record::Sequence,
    },
    envelope,
    error::Error,
};

/// How long a look-up waits for NATS. Whoever asks waits for a circuit at the same time.
const LOOK_UP: Duration = Duration::from_secs(1);
/// How many look-ups ask NATS at once. Further ones get what is known.
const LOOK_UPS: usize = 256;
/// How many rooms are read at once.
const READS: usize = 16;
/// The pauses between two tries to reach NATS. With it back, everything is known again in 5 s.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked which rooms are watched, and what is over.
const LOOK: Duration = Duration::from_secs(1);
/// How many reasons are logged why NATS is away, until it is reached again.
const REASONS: usize = 8;
/// How long NATS may take nothing before it counts as away, and another of its servers is tried. A bucket
/// whose leader has died needs a part of this until it has another one.
const LOST: Duration = Duration::from_secs(10);

/// A server's part of the fleet, which is its directory. Clones share it.
#[derive(Clone)]
pub(in crate::server) struct Fleet(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    own: PeerId,
    shared: Shared,
    sisters: Sisters,
    /// Those of the present connection to NATS, if there is one.
    buckets: watch::Sender<Option<Buckets>>,
    look_ups: Semaphore,
    reads: Semaphore,
    metrics: FleetMetrics,
    /// That the fleet has what the record of usage has, and the rests of all leases.
    usage: Wish,
    rests: Wish,
}

/// Something that somebody asks for and waits for.
#[derive(Default)]
struct Wish {
    wanted: Notify,
    done: Notify,
}

impl Wish {
    /// Asks for it, and waits until it is done.
    async fn wait(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        // What is done from now on is not missed.
        done.as_mut().enable();
        self.wanted.notify_one();
        done.await;
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fleet").finish()
    }
}

/// What a server tells the others.
pub(in crate::server) struct Own {
    pub(in crate::server) key: Keypair,
    /// The addresses that it announces. Each ends in its peer id.
    pub(in crate::server) addresses: watch::Receiver<Vec<String>>,
    pub(in crate::server) settings: Settings,
    /// The tokens that do not count any more, if there are tokens.
    pub(in crate::server) revoked: Option<Revoked>,
    /// What peers took here.
    pub(in crate::server) usage: Usage,
}

/// What outlives a connection to NATS.
#[derive(Default)]
struct Past {
    /// The numbers of what this server says of itself.
    sequence: Sequence,
    told: Told,
    /// When NATS was reached.
    reached: Option<Instant>,
}

impl Fleet {
    /// Makes the part of the server `own`, whose peers `memory` knows. Members of rooms that are elsewhere
    /// get places of `elsewhere`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if a setting cannot be used.
    pub(in crate::server) fn new(
        config: &FleetConfig,
        own: PeerId,
        (memory, elsewhere): (Memory, Elsewhere),
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        Ok(Self(Arc::new(Inner {
            cluster: Cluster::new(config)?,
            own,
            shared: Shared::new(own, memory, elsewhere),
            sisters: Sisters::default(),
            buckets: watch::Sender::new(None),
            look_ups: Semaphore::new(LOOK_UPS),
            reads: Semaphore::new(READS),
            metrics: FleetMetrics::new(metrics),
            usage: Wish::default(),
            rests: Wish::default(),
        })))
    }

    pub(in crate::server) fn sisters(&self) -> Sisters {
        self.0.sisters.clone()
    }

    /// Whether the other servers cannot be told anything.
    pub(in crate::server) fn is_cut_off(&self) -> bool {
        self.0.buckets.borrow().is_none()
    }

    /// Waits until the fleet has the rests of all leases, and with `has_usage` what the record of usage has by now.
    /// While NATS is away, this waits for it.
    pub(in crate::server) async fn tell_last(&self, has_usage: bool) {
        let usage = async {
            if has_usage {
                self.0.usage.wait().await;
            }
        };
        tokio::join!(usage, self.0.rests.wait());
    }

    /// Shares what this server knows, and its quotas, for as long as it runs. It never returns.
    pub(in crate::server) async fn keep(self, mut own: Own, quotas: Sharing) {
        let mut pauses = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut past = Past::default();
        // Why NATS is away, as was said since it was reached last.
        let mut said = Vec::new();
        loop {
            let fault = self.session(&mut own, &quotas, &mut past).await;
            self.0.buckets.send_replace(None);
            // What has lasted is tried again at once.
            let reached = past.reached.take();
            if reached.is_some_and(|reached| reached.elapsed() > LAST_PAUSE) {
                pauses.reset();
            }
            if reached.is_some() {
                said.clear();
            }
            self.0.metrics.up(false);
            let reason = fault.to_string();
            if said.len() < REASONS && !said.contains(&reason) {
                tracing::warn!(
                    %reason,
                    "the fleet is out of reach; peers here are served on, and others are found as they were"
                );
                said.push(reason);
            }
            time::sleep(pauses.fail(rand::random())).await;
        }
    }

    /// Connects to NATS, and shares what is known until that is not possible any more.
    async fn session(&self, own: &mut Own, quotas: &Sharing, past: &mut Past) -> Fault {
        let inner = &*self.0;
        let begun = async {
            let (client, lost) = inner.cluster.connect().await?;
            let buckets = inner.cluster.open(client).await?;
            buckets.are_led().await?;
            inner.shared.begin();
            self.check(&buckets).await?;
            Ok::<_, Fault>((buckets, lost))
        };
        let (buckets, mut lost) = match begun.await {
            Ok(begun) => begun,
            Err(fault) => return fault,
        };
        past.reached = Some(Instant::now());
        inner.buckets.send_replace(Some(buckets.clone()));
        tracing::info!("the fleet is reached");
        inner.metrics.up(true);
        let (revoked, usage) = (own.revoked.clone(), own.usage.clone());
        let Past { sequence, told, .. } = past;
        tokio::select! {
            fault = self.write(&buckets) => fault,
            fault = self.keep_whole(&buckets) => fault,
            fault = self.follow_rooms(&buckets) => fault,
            fault = self.say(&buckets, own, sequence) => fault,
            fault = self.hear_sisters(&buckets) => fault,
            fault = revoked::share(&buckets, revoked, &inner.metrics) => fault,
            fault = self.tell(&buckets, &usage, told) => fault,
            fault = self.lease(&buckets, quotas) => fault,
            _ = lost.wait_for(|lost| *lost) => nats::lost(),
        }
    }

    fn judge(&self, heard: Result<(), Unsound>) {
        if heard == Err(Unsound) {
            self.0.metrics.unsound();
        }
    }

    /// Hears of the rooms that are watched here.
    async fn follow_rooms(&self, buckets: &Buckets) -> Fault {
        let shared = &self.0.shared;
        let (mut tasks, mut rooms) = (JoinSet::new(), HashMap::<Topic, AbortHandle>::new());
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let watched = shared.watched();
            rooms.retain(|topic, task| {
                let is_watched = watched.contains(topic);
                if !is_watched {
                    task.abort();
                }
                is_watched
            });
            for topic in watched {
                rooms.entry(topic).or_insert_with(|| {
                    let follow = self.clone().follow_room(buckets.clone(), topic);
                    tasks.spawn(follow.in_current_span())
                });
            }
            tokio::select! {
                () = shared.rooms.notified() => {}
                _ = look.tick() => {
                    let sisters = self.0.sisters.sweep(Instant::now());
                    self.0.metrics.sisters(sisters);
                }
                // It was ended above.
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    /// Hears of a room until it is ended.
    async fn follow_room(self, buckets: Buckets, topic: Topic) {
        let hear = |peer: &str, found: Found| {
            let peer = peer.rsplit('.').next().and_then(|peer| peer.parse().ok());
            if let Some(peer) = peer {
                let key = Key::Member(peer, topic);
                self.judge(self.0.shared.heard(&key, &found, Instant::now()));
                self.0.metrics.heard();
            }
        };
        let keys = format!("{}.*", HEXLOWER.encode(&topic));
        let mut pauses = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            let fault = buckets
                .follow(Bucket::Rooms, &keys, &self.0.reads, &hear)
                .await;
            tracing::debug!(reason = %fault, "a room of the fleet is not followed");
            time::sleep(pauses.fail(rand::random())).await;
        }
    }

    /// Says how this server is, for as long as NATS takes that.
    async fn say(&self, buckets: &Buckets, own: &mut Own, sequence: &mut Sequence) -> Fault {
        let mut beat = time::interval(BEAT);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut failed = None::<Instant>;
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = own.settings.changed() => {}
            }
            let addresses = told(&own.addresses.borrow_and_update());
            let status = Status {
                seq: sequence.next(envelope::now()),
                draining: own.settings.is_draining(),
                addresses,
            };
            let Some(status) = sisters::sign(&own.key, &status) else {
                // A key that cannot sign is none that a server can have.
                continue;
            };
            match buckets.say(&self.0.own, status).await {
                Ok(()) if failed.is_none() => {}
                // Changes may have been missed meanwhile, so all is read again.
                Ok(()) => return Fault::Other("NATS has taken nothing for a while".to_owned()),
                Err(fault) => {
                    tracing::debug!(reason = %fault, "the fleet is not told how this server is");
                    if failed.get_or_insert_with(Instant::now).elapsed() >= LOST {
                        return fault;
                    }
                }
            }
        }
    }

    async fn hear_sisters(&self, buckets: &Buckets) -> Fault {
        let inner = &*self.0;
        let hear = |peer: &str, found: Found| {
            let peer = peer.parse().ok().filter(|peer| *peer != inner.own);
            if let Some((peer, status)) = peer.zip(found.value) {
                let now = Instant::now();
                match inner.sisters.hear(peer, &status, found.age, now) {
                    true => inner.metrics.sisters(inner.sisters.sweep(now)),
                    false => inner.metrics.unsound(),
                }
            }
        };
        buckets
            .follow(Bucket::Relays, "*", &inner.reads, &hear)
            .await
    }

    /// Asks the other servers where a peer is, and returns the newest that is known then.
    async fn look_up(&self, peer: PeerId) -> Option<Envelope> {
        let inner = &*self.0;
        let buckets = inner.buckets.borrow().clone();
        let outcome = match (buckets, inner.look_ups.try_acquire()) {
            (None, _) => "cut_off",
            (_, Err(_)) => "busy",
            (Some(buckets), Ok(_permit)) => {
                let key = Key::Peer(peer);
                match timeout(LOOK_UP, buckets.get(&key)).await {
                    Ok(Ok(Some(found))) => {
                        self.judge(inner.shared.heard(&key, &found, Instant::now()));
                        // Of whoever has said goodbye, a mark is left for a while.
                        match found.value.is_some() {
                            true => "found",
                            false => "absent",
                        }
                    }
                    Ok(Ok(None)) => "absent",
                    Ok(Err(fault)) => {
                        tracing::debug!(reason = %fault, "a look-up in the fleet failed");
                        "failed"
                    }
                    Err(_) => "late",
                }
            }
        };
        inner.metrics.looked_up(outcome);
        inner.shared.newest(&peer, Instant::now())
    }
}

/// The addresses that are passed on: one that pages can use as well, and the one that comes first.
fn told(announced: &[String]) -> Vec<Multiaddr> {
    let all: Vec<Multiaddr> = announced
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let is_web = |address: &&Multiaddr| {
        let mut parts = address.iter();
        parts.any(|part| matches!(part, Protocol::Ws(_)))
    };
    let web = all.iter().find(is_web);
    let rest = all.iter().filter(|address| Some(*address) != web);
    let told = web.into_iter().chain(rest).take(MAX_STATUS_ADDRESSES);
    told.cloned().collect()
}

impl Directory for Fleet {
    fn put(&self, entry: Entry, now: Instant, place: Take<'_>) -> Result<(), Refusal> {
        self.0.shared.put(entry, now, place)
    }

    fn find(
        &self,
        peer: &PeerId,
        is_here: bool,
        now: Instant,
    ) -> BoxFuture<'static, Option<Envelope>> {
        match self.0.shared.known(peer, is_here, now) {
            Known::Newest(found) => ready(found).boxed(),
            Known::AtLeast(found) => {
                let (fleet, peer) = (self.clone(), *peer);
                async move { fleet.look_up(peer).await.or(found) }.boxed()
            }
        }
    }

    fn forget(&self, peer: &PeerId, now: Instant) {
        self.0.shared.forget(peer, now);
    }

    fn join(
        &self,
        topic: &Topic,
        entry: Entry,
        shown: Vec<u8>,
        now: Instant,
        seat: Seat<'_>,
    ) -> Result<(), Refusal> {
        self.0.shared.join(topic, entry, shown, now, seat)
    }

    fn leave(&self, topic: &Topic, peer: &PeerId, now: Instant) {
        self.0.shared.leave(topic, peer, now);
    }

    fn watch(&self, topic: &Topic) -> watch::Receiver<u64> {
        self.0.shared.watch(topic)
    }

    fn size(&self, topic: &Topic) -> usize {
        self.0.shared.size(topic)
    }

    fn changes(&self, topic: &Topic, after: u64, most: usize) -> Option<Vec<(u64, Change)>> {
        self.0.shared.changes(topic, after, most)
    }

    fn sweep(&self, now: Instant) {
        self.0.shared.sweep(now);
    }
}

#[cfg(test)]
mod tests;
