//! The record of usage of all servers, in one bucket.
//!
//! Each server writes the rows of its own record there, each with the sum up to now and not with what was
//! added. So a row may be written twice, and counts once. The rows of all servers are added up when
//! somebody reads them.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use data_encoding::HEXLOWER;
use futures::{StreamExt as _, stream};
use libp2p::PeerId;
use tokio::time::{self, MissedTickBehavior};

use super::{
    Fleet,
    keys::Bucket,
    metrics::FleetMetrics,
    nats::{Buckets, Cluster, Fault},
};
use crate::{
    core::protobuf::{skip_field, take_varint, varint},
    error::{Error, ErrorKind},
    server::{
        config::FleetConfig,
        usage::{Account, Amounts, Day, Sums, Usage, UsageBy, UsageRow, today},
    },
};

/// How often rows that have changed are written. They are in the server's own record before.
const PERIOD: Duration = Duration::from_secs(15);
/// How soon a look that somebody waits for is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How many rows are read at a time, and written at once.
const PAGE: usize = 4096;
const WRITES: usize = 32;
/// How many rows may wait because NATS has not taken them. With more of them, it takes nothing.
const MOST_WAITING: usize = 256;
/// A day may get rows for so many days after it, if the disk has failed.
const LATE: u32 = 2;
/// What stands for a peer without a token.
const NO_TOKEN: &str = "_";

/// The day and the account of a row.
type Row = (u32, Account);

/// What the bucket has of this server's record.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The first day that may change yet, as far as the bucket has been asked.
    since: Option<u32>,
    /// The same as the bucket has it, for the next start.
    marked: u32,
    /// The rows of the days that may change yet.
    rows: HashMap<Row, Amounts>,
    /// The rows that NATS has not taken. They are written again with the next pass.
    waiting: HashMap<Row, Amounts>,
    /// The last key that was written, and its revision.
    last: Option<(String, u64)>,
    /// Whether it was said that rows wait.
    is_behind: bool,
}

impl Told {
    /// Has every row written again if the bucket has lost the last one.
    pub(super) async fn check(&mut self, buckets: &Buckets) -> Result<(), Fault> {
        if let Some((key, revision)) = &self.last
            && !buckets.has(Bucket::Usage, key, *revision).await?
        {
            *self = Self {
                since: Some(0),
                is_behind: self.is_behind,
                ..Self::default()
            };
        }
        Ok(())
    }

    /// Forgets the rows of days that change no more, seen from this one.
    fn pass(&mut self, day: u32) {
        let since = self.since.unwrap_or(0).max(day.saturating_sub(LATE));
        self.since = Some(since);
        self.rows.retain(|(day, _), _| *day >= since);
    }

    /// Returns the day from which on the next start has to look at rows.
    fn mark(&self) -> u32 {
        let waiting = self.waiting.keys().map(|(day, _)| *day).min();
        let since = self.since.unwrap_or(0);
        since.min(waiting.unwrap_or(since))
    }

    /// The bucket has confirmed `key`.
    fn confirmed(&mut self, key: String, revision: u64) {
        if self.last.as_ref().is_none_or(|(_, last)| *last < revision) {
            self.last = Some((key, revision));
        }
    }
}

// Row { bytes = 1, circuits = 2, reservations = 3, allocations = 4, seconds = 5 }
fn encode(amounts: &Amounts) -> Vec<u8> {
    let fields = [
        amounts.bytes,
        amounts.circuits,
        amounts.reservations,
        amounts.allocations,
        amounts.seconds,
    ];
    let fields = (1_u8..).zip(fields);
    let fields = fields.flat_map(|(number, value)| [vec![number << 3], varint(value)].concat());
    fields.collect()
}

fn decode(mut rest: &[u8]) -> Option<Amounts> {
    let mut amounts = Amounts::default();
    while !rest.is_empty() {
        let field = match take_varint(&mut rest)? {
            0x08 => &mut amounts.bytes,
            0x10 => &mut amounts.circuits,
            0x18 => &mut amounts.reservations,
            0x20 => &mut amounts.allocations,
            0x28 => &mut amounts.seconds,
            tag => {
                skip_field(tag, &mut rest)?;
                continue;
            }
        };
        *field = take_varint(&mut rest)?;
    }
    Some(amounts)
}

/// The key of a row: the server, the day, the token and the peer.
fn key(relay: &PeerId, day: u32, account: &Account) -> String {
    let token = match account.token.is_empty() {
        true => NO_TOKEN.to_owned(),
        false => HEXLOWER.encode(account.token.as_bytes()),
    };
    let peer = HEXLOWER.encode(account.peer.as_bytes());
    format!("{relay}.{day}.{token}.{peer}")
}

fn read_key(key: &str) -> Option<(u32, Account)> {
    let mut parts = key.split('.').skip(1);
    let text = |part: &str| String::from_utf8(HEXLOWER.decode(part.as_bytes()).ok()?).ok();
    let day = parts.next()?.parse().ok()?;
    let token = match parts.next()? {
        NO_TOKEN => String::new(),
        token => text(token)?,
    };
    let peer = text(parts.next()?)?;
    parts
        .next()
        .is_none()
        .then_some((day, Account { token, peer }))
}

/// The day of this server from which on rows have to be looked at.
fn mark(relay: &PeerId) -> String {
    format!("{relay}.since")
}

impl Fleet {
    /// Keeps the bucket up with the record of this server.
    pub(super) async fn tell(&self, buckets: &Buckets, usage: &Usage, told: &mut Told) -> Fault {
        let inner = &*self.0;
        if !usage.is_kept() {
            return std::future::pending().await;
        }
        let mut look = time::interval(PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A look that is wanted and fails is wanted still.
        let mut is_wanted = false;
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = time::sleep(RETRY), if is_wanted => {}
                () = inner.usage.wanted.notified() => is_wanted = true,
            }
            let mut pass = Pass {
                buckets,
                relay: &inner.own,
                metrics: &inner.metrics,
                told,
                fault: None,
            };
            match pass.run(usage).await {
                Ok(()) => {
                    told.is_behind = false;
                    if mem::take(&mut is_wanted) {
                        inner.usage.done.notify_waiters();
                    }
                }
                Err(fault) if !mem::replace(&mut told.is_behind, true) => {
                    tracing::warn!(reason = %fault, "what peers took is not told to the fleet");
                }
                Err(fault) => {
                    tracing::debug!(reason = %fault, "what peers took is still not told to the fleet");
                }
            }
        }
    }
}

/// A look at the record.
struct Pass<'a> {
    buckets: &'a Buckets,
    relay: &'a PeerId,
    metrics: &'a FleetMetrics,
    told: &'a mut Told,
    /// Why the last row was not taken that was not.
    fault: Option<Fault>,
}

impl Pass<'_> {
    /// Writes the rows that have changed since the last pass.
    async fn run(&mut self, usage: &Usage) -> Result<(), Fault> {
        self.told.check(self.buckets).await?;
        let today = today();
        let since = match self.told.since {
            Some(since) => since,
            None => {
                let mark = self.buckets.usage_of(&mark(self.relay)).await?;
                let mark = mark.and_then(|mark| std::str::from_utf8(&mark).ok()?.parse().ok());
                self.told.marked = mark.unwrap_or(0);
                self.told.marked
            }
        };
        // A clock that was ahead has left a mark in days to come.
        let since = since.min(today.saturating_sub(LATE));
        self.told.since = Some(since);
        let waiting = self.told.waiting.clone();
        self.write(waiting).await?;
        let mut after = (since, Account::default());
        loop {
            let (reader, from) = (usage.clone(), after.clone());
            let page = tokio::task::spawn_blocking(move || reader.page(&from, PAGE)).await;
            let page = page.map_err(|error| Fault::Other(error.to_string()))?;
            let page = page.map_err(|error| Fault::Other(error.to_string()))?;
            let Some((day, account, _)) = page.last() else {
                break;
            };
            after = (*day, account.clone());
            let known = &self.told.rows;
            let changed = page.into_iter().filter_map(|(day, account, amounts)| {
                let row = (day, account);
                (known.get(&row) != Some(&amounts)).then_some((row, amounts))
            });
            let changed: Vec<_> = changed.collect();
            self.write(changed).await?;
            self.told.pass(after.0.min(today));
        }
        let newest = self.told.mark();
        if newest != self.told.marked {
            let mark = mark(self.relay);
            let revision = self.buckets.count(&mark, newest.to_string().into()).await?;
            self.told.confirmed(mark, revision);
            self.told.marked = newest;
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        tracing::trace!("the fleet knows what peers took");
        Ok(())
    }

    /// Writes rows. Those that are not taken wait.
    async fn write(&mut self, rows: impl IntoIterator<Item = (Row, Amounts)>) -> Result<(), Fault> {
        let (buckets, relay) = (self.buckets, self.relay);
        let mut writes = stream::iter(rows)
            .map(|(row, amounts)| async move {
                let key = key(relay, row.0, &row.1);
                let written = buckets.count(&key, encode(&amounts)).await;
                (row, amounts, written.map(|revision| (key, revision)))
            })
            .buffer_unordered(WRITES);
        while let Some((row, amounts, written)) = writes.next().await {
            match written {
                Ok((key, revision)) => {
                    self.metrics.written("written");
                    self.told.waiting.remove(&row);
                    self.told.rows.insert(row, amounts);
                    self.told.confirmed(key, revision);
                }
                Err(fault) => {
                    self.metrics.written("failed");
                    self.told.waiting.insert(row, amounts);
                    if self.told.waiting.len() > MOST_WAITING {
                        return Err(fault);
                    }
                    self.fault = Some(fault);
                }
            }
        }
        Ok(())
    }
}

/// Reads what the peers of all servers of a fleet took. It has what
/// [`usage`](crate::server::usage) returns for one server. What they took in the last 20 seconds may be
/// missing, and what a server has counted while NATS was away. A server that is shut down tells it before.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] if a setting cannot be used, or [`ErrorKind::Io`] if NATS cannot be asked.
///
/// # Cancel safety
/// Dropping the future changes nothing.
///
/// ```no_run
/// # async fn run() -> Result<(), throughline::Error> {
/// use throughline::server::{ServerConfig, UsageBy, usage_of_fleet};
///
/// let mut config = ServerConfig::default();
/// config.fleet.servers = vec!["nats://nats.example.org".into()];
/// for row in usage_of_fleet(&config.fleet, None, UsageBy::Token).await? {
///     println!("{} took {} bytes", row.name, row.bytes);
/// }
/// # Ok(()) }
/// ```
pub async fn usage_of_fleet(
    config: &FleetConfig,
    since: Option<Day>,
    by: UsageBy,
) -> Result<Vec<UsageRow>, Error> {
    if config.servers.is_empty() {
        let message = "fleet.servers: no NATS server is named";
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    }
    let failed = |fault: Fault| Error::new(ErrorKind::Io, format!("fleet.servers: {fault}"));
    let cluster = Cluster::new(config)?;
    let (client, _lost) = cluster.connect().await.map_err(failed)?;
    let read = Mutex::new((Sums::new(since, by), HashMap::new()));
    let settled = today().saturating_sub(LATE);
    let hear = |key: &str, value: &[u8]| {
        let Some(((day, account), amounts)) = read_key(key).zip(decode(value)) else {
            return;
        };
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        match day < settled {
            true => read.0.add(day, (&account.token, &account.peer), amounts),
            // It may be written anew while it is read. Then it comes twice, the newer one last.
            false => _ = read.1.insert(key.to_owned(), amounts),
        }
    };
    cluster.read_usage(client, &hear).await.map_err(failed)?;
    let (mut sums, young) = read.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (key, amounts) in young {
        if let Some((day, account)) = read_key(&key) {
            sums.add(day, (&account.token, &account.peer), amounts);
        }
    }
    Ok(sums.rows())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_have_the_documented_keys_and_bytes() {
        let relay: PeerId = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
            .parse()
            .unwrap();
        let account = Account {
            token: String::new(),
            peer: "turn:a".into(),
        };
        let of_peer = key(&relay, 7, &account);
        assert_eq!(of_peer, format!("{relay}.7._.7475726e3a61"));
        assert_eq!(read_key(&of_peer), Some((7, account)));
        let amounts = Amounts {
            bytes: 300,
            seconds: 1,
            ..Amounts::default()
        };
        assert_eq!(encode(&amounts), [8, 0xac, 2, 16, 0, 24, 0, 32, 0, 40, 1]);
        assert_eq!(decode(&encode(&amounts)), Some(amounts));
        for wrong in [
            "",
            "a",
            "a.1.2",
            "a.x._.61",
            "a.1.x.61",
            "a.1._.61.b",
            "a.1._.ff",
        ] {
            assert_eq!(read_key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rows_are_kept_for_days_that_may_change_and_those_that_wait_are_looked_at_again() {
        let row = |day| (day, Account::default());
        let mut told = Told::default();
        for day in 1..=9 {
            told.rows.insert(row(day), Amounts::default());
            told.pass(day);
            assert!(told.rows.len() <= LATE as usize + 1);
        }
        assert_eq!(told.mark(), 7);
        told.waiting.insert(row(3), Amounts::default());
        assert_eq!((told.mark(), told.since), (3, Some(7)));
        told.pass(5);
        assert_eq!(told.since, Some(7), "it never goes back");
    }

    proptest! {
        #[test]
        fn keys_are_read_as_they_were_written(day: u32, token in ".{0,20}", peer in ".{0,60}") {
            let account = Account { token, peer };
            let key = key(&PeerId::random(), day, &account);
            prop_assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte)));
            prop_assert_eq!(read_key(&key), Some((day, account)));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), key in ".{0,64}") {
            let _ = (decode(&bytes), read_key(&key));
        }
    }
}
