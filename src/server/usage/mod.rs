//! What peers took, by day, token and peer.
//!
//! Circuits and allocations count into a [`Tally`], which costs one atomic addition for each piece of
//! data. A thread sums the tallies up every two seconds, and writes the amounts to a file in the data
//! directory (`store`). Until then, they are in a book (`book`). Nothing waits for the thread: if the
//! disk is full, the thread tries again with the same batch, and what comes later stays in the book.
//!
//! Each amount is written once. The file has the number of its last batch, which is written together
//! with the batch. So if the disk fails at the end of a batch, the thread sees in the file whether the
//! batch is there. What was carried before the start is read before anything is written, so that quotas
//! count nothing twice. The days are those of the `calendar`, which never goes back.

mod book;
mod calendar;
mod day;
mod store;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;

pub use self::day::{Day, DayError};
use self::{
    book::Book,
    store::{Batch, Store},
};
pub(crate) use self::{
    book::{Account, Amounts},
    calendar::Calendar,
    store::Row,
};
use super::{access::Before, config::UsageConfig, metrics::Metrics};
use crate::error::{Error, ErrorKind};

/// The file in the data directory.
const FILE: &str = "usage.redb";

/// The time between two batches. A power cut costs this much at most, and the time of one batch.
const PERIOD: Duration = Duration::from_secs(2);
/// The longest pause after a failure.
const MOST_PAUSE: Duration = Duration::from_secs(60);

/// By what amounts are summed up.
///
/// ```no_run
/// use throughline::server::{UsageBy, usage};
///
/// # fn run() -> Result<(), throughline::Error> {
/// let days = usage("/var/lib/throughline".as_ref(), None, UsageBy::Day)?;
/// println!("{} days are in the record", days.len());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageBy {
    /// The day, in UTC.
    Day,
    /// The peer id. Peers for which there was no row share the name `*`. Users of the TURN server
    /// that are no peers have the name `turn:` and the user.
    Peer,
    /// The name of the token by which a peer was admitted, which is empty without a token.
    Token,
}

/// What was taken under one name.
///
/// ```no_run
/// use throughline::server::{UsageBy, usage};
///
/// # fn run() -> Result<(), throughline::Error> {
/// let tokens = usage("/var/lib/throughline".as_ref(), None, UsageBy::Token)?;
/// let most = tokens.iter().max_by_key(|row| row.bytes);
/// println!("{:?} took the most", most.map(|row| &row.name));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageRow {
    /// The day, the peer or the token.
    pub name: String,
    /// Bytes that circuits and the TURN server carried, and that went to the directory and to rooms, in both
    /// directions together.
    pub bytes: u64,
    /// Circuits to the peer that were accepted.
    pub circuits: u64,
    /// New reservations. Renewals do not count.
    pub reservations: u64,
    /// Allocations on the TURN server.
    pub allocations: u64,
    /// Seconds for which circuits and allocations were open. They are added up if several are open at
    /// a time.
    pub seconds: u64,
}

impl UsageRow {
    fn new(name: String, amounts: Amounts) -> Self {
        let Amounts {
            bytes,
            circuits,
            reservations,
            allocations,
            seconds,
        } = amounts;
        Self {
            name,
            bytes,
            circuits,
            reservations,
            allocations,
            seconds,
        }
    }
}

/// Reads what the peers of a server took, also while the server runs. What they took in the last few
/// seconds may be missing then. `data` is the [data directory](super::ServerConfig::data) of the
/// server. Days before `since` do not count. The rows are in the order of their names.
///
/// It reads the whole file, so an async program calls it from a thread of its own.
///
/// # Errors
/// [`ErrorKind::Io`] if there is no such file, or if it cannot be read.
///
/// ```no_run
/// use throughline::server::{UsageBy, usage};
///
/// # fn run() -> Result<(), throughline::Error> {
/// for row in usage("/var/lib/throughline".as_ref(), None, UsageBy::Peer)? {
///     println!("{} took {} bytes", row.name, row.bytes);
/// }
/// # Ok(()) }
/// ```
pub fn usage(data: &Path, since: Option<Day>, by: UsageBy) -> Result<Vec<UsageRow>, Error> {
    let path = data.join(FILE);
    store::read(&path, since, by).map_err(|error| fault(&path, &error))
}

/// The number of the present day, by the clock of the machine.
pub(crate) fn today() -> u32 {
    Day::of(SystemTime::now()).number()
}

/// Sums rows up by what is asked for. Rows of days before `since` do not count.
#[derive(Debug)]
pub(crate) struct Sums {
    since: u32,
    by: UsageBy,
    sums: BTreeMap<String, Amounts>,
}

impl Sums {
    pub(crate) fn new(since: Option<Day>, by: UsageBy) -> Self {
        Self {
            since: since.map_or(0, Day::number),
            by,
            sums: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, day: u32, (token, peer): (&str, &str), amounts: Amounts) {
        if day < self.since {
            return;
        }
        let name = match self.by {
            UsageBy::Day => Day::from_number(day).map_or_else(String::new, |day| day.to_string()),
            UsageBy::Token => token.to_owned(),
            UsageBy::Peer => peer.to_owned(),
        };
        *self.sums.entry(name).or_default() += amounts;
    }

    /// Returns the sums in the order of their names.
    pub(crate) fn rows(self) -> Vec<UsageRow> {
        let row = |(name, amounts)| UsageRow::new(name, amounts);
        self.sums.into_iter().map(row).collect()
    }
}

fn fault(path: &Path, error: &redb::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{}: {error}", path.display()))
}

/// Counts what peers take. Clones share it. The thread ends when the last one is dropped.
#[derive(Clone, Default)]
pub(crate) struct Usage(Option<Arc<Running>>);

struct Running {
    shared: Arc<Shared>,
    path: PathBuf,
    /// The thread runs as long as the sender exists.
    thread: Mutex<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
    /// What was carried before the start, once it is read.
    before: Mutex<Option<oneshot::Receiver<Before>>>,
}

struct Shared {
    state: Mutex<State>,
    calendar: Calendar,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    book: Book,
    /// The tallies that may still grow.
    open: HashMap<u64, Arc<Counts>>,
    next: u64,
    /// Why the amounts are not written, if they are not.
    fault: Option<String>,
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Usage").finish()
    }
}

impl Usage {
    /// Starts to count, and to write to a file in `data`. Without a directory, nothing is counted. A file
    /// that cannot be used keeps no server from its work.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(crate) fn start(
        data: Option<&Path>,
        config: &UsageConfig,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let Some(data) = data.filter(|_| config.record) else {
            return Ok(Self::default());
        };
        let most = config.peers_per_day.get().into();
        let path = data.join(FILE);
        let store = Store::new(path.clone(), config.days.get(), most);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            calendar: Calendar::default(),
            metrics,
        });
        let (stop, stopped) = mpsc::channel();
        let (read, before) = oneshot::channel();
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new().name("usage".into());
        let thread = thread.spawn(move || writer.write(store, read, &stopped));
        let thread = thread.map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
        Ok(Self(Some(Arc::new(Running {
            shared,
            path,
            thread: Mutex::new(Some((stop, thread))),
            before: Mutex::new(Some(before)),
        }))))
    }

    /// Returns the calendar by whose days the record counts.
    pub(crate) fn calendar(&self) -> Calendar {
        let running = self.0.as_ref();
        running.map_or_else(Calendar::default, |running| running.shared.calendar.clone())
    }

    /// Counts what `account` took at once.
    pub(crate) fn add(&self, account: &Account, amounts: Amounts) {
        if let Some(running) = &self.0 {
            running.shared.state().book.add(account, amounts);
        }
    }

    /// Opens a tally for what `account` takes. `once` counts as soon as the tally begins.
    pub(crate) fn tally(&self, account: Account, once: Amounts) -> Tally {
        let Some(running) = &self.0 else {
            return Tally::default();
        };
        let shared = &running.shared;
        let counts = Arc::new(Counts {
            account,
            once,
            bytes: AtomicU64::new(0),
            clock: Mutex::new(Clock::Waiting),
        });
        let mut state = shared.state();
        let key = state.next;
        state.next += 1;
        state.open.insert(key, counts.clone());
        drop(state);
        Tally(Some(Arc::new(Open {
            counts,
            key,
            shared: shared.clone(),
        })))
    }

    /// Whether anything is counted.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the rows of the record that come after one of a day and an account, at most `most`. It waits
    /// for the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the file cannot be read.
    pub(crate) fn page(&self, after: &(u32, Account), most: usize) -> Result<Vec<Row>, Error> {
        match &self.0 {
            Some(running) => {
                let page = store::page(&running.path, after, most);
                page.map_err(|error| fault(&running.path, &error))
            }
            None => Ok(Vec::new()),
        }
    }

    /// Returns why the amounts are not written, if they are not.
    pub(crate) fn fault(&self) -> Option<String> {
        self.0.as_ref()?.shared.state().fault.clone()
    }

    /// Returns what was carried in the present day and month before the start, once. It is read in the
    /// background.
    pub(crate) fn before(&self) -> Option<oneshot::Receiver<Before>> {
        lock(&self.0.as_ref()?.before).take()
    }

    /// Stops, and returns the thread that writes what is left.
    pub(crate) fn stop(&self) -> Option<JoinHandle<()>> {
        let (stop, thread) = lock(&self.0.as_ref()?.thread).take()?;
        drop(stop);
        Some(thread)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes what is to be written.
    fn take(&self, now: Instant) -> Vec<(Account, Amounts)> {
        let mut state = self.state();
        let State { book, open, .. } = &mut *state;
        for counts in open.values() {
            book.add(&counts.account, counts.take(now));
        }
        book.take()
    }

    /// Writes a batch now and then, and the last one when `stopped` is closed.
    fn write(
        &self,
        mut store: Store,
        before: oneshot::Sender<Before>,
        stopped: &mpsc::Receiver<()>,
    ) {
        let mut before = Some(before);
        let mut batch = None;
        let mut pause = PERIOD;
        // The operator hears at once if the file cannot be used.
        loop {
            pause = match self.flush(&mut store, &mut before, &mut batch) {
                true => PERIOD,
                false => (pause * 2).min(MOST_PAUSE),
            };
            let next = stopped.recv_timeout(pause);
            if next != Err(mpsc::RecvTimeoutError::Timeout) {
                break;
            }
        }
        self.flush(&mut store, &mut before, &mut batch);
    }

    /// Writes the batch that could not be written before, if there is one, and then what came since.
    /// Returns whether that worked.
    fn flush(
        &self,
        store: &mut Store,
        before: &mut Option<oneshot::Sender<Before>>,
        batch: &mut Option<Batch>,
    ) -> bool {
        let had_batch = batch.is_some();
        self.read(store, before)
            && self.batch(store, batch)
            && (!had_batch || self.batch(store, batch))
    }

    /// Reads what was carried before the start, if that is not done. Returns whether it is done.
    fn read(&self, store: &mut Store, before: &mut Option<oneshot::Sender<Before>>) -> bool {
        if before.is_none() {
            return true;
        }
        let carried = store.carried(&self.calendar, SystemTime::now());
        self.tell(carried.map(|carried| {
            // An error says that nobody waits for it.
            _ = before.take().map(|before| before.send(carried));
        }))
    }

    /// Writes `batch`, or what was counted since the last one. Returns whether that worked. Otherwise
    /// the batch is left there.
    fn batch(&self, store: &mut Store, batch: &mut Option<Batch>) -> bool {
        let mut next = match batch.take() {
            Some(batch) => batch,
            None => {
                let rows = self.take(Instant::now());
                if rows.is_empty() {
                    return true;
                }
                let now = self.calendar.at(SystemTime::now()).now;
                Batch::new(Day::of(UNIX_EPOCH + now), rows)
            }
        };
        let works = self.tell(store.write(&mut next));
        match works {
            true => self.metrics.usage("written"),
            false => *batch = Some(next),
        }
        works
    }

    /// Notes whether the file can be used, and tells the operator when that changes.
    fn tell(&self, outcome: Result<(), redb::Error>) -> bool {
        let fault = outcome.err().map(|error| error.to_string());
        let works = fault.is_none();
        let before = std::mem::replace(&mut self.state().fault, fault.clone());
        match (before, fault) {
            (None, Some(error)) => {
                tracing::error!(%error, "what peers take is not written; it is kept in memory");
            }
            (Some(_), None) => tracing::warn!("what peers take is written again"),
            _ => {}
        }
        if !works {
            self.metrics.usage("failed");
        }
        works
    }
}

/// Counts what one circuit or one allocation takes. Clones share it. It ends with the last clone.
#[derive(Clone, Default)]
pub(crate) struct Tally(Option<Arc<Open>>);

struct Open {
    counts: Arc<Counts>,
    key: u64,
    shared: Arc<Shared>,
}

struct Counts {
    account: Account,
    once: Amounts,
    bytes: AtomicU64,
    clock: Mutex<Clock>,
}

/// The time up to which seconds are counted.
#[derive(Clone, Copy)]
enum Clock {
    Waiting,
    /// Nothing was counted since the tally began.
    Begun(Instant),
    Running(Instant),
}

impl Tally {
    /// Begins to count seconds.
    pub(crate) fn begin(&self, now: Instant) {
        if let Some(open) = &self.0 {
            *lock(&open.counts.clock) = Clock::Begun(now);
        }
    }

    /// Counts bytes.
    pub(crate) fn carried(&self, bytes: u64) {
        if let Some(open) = &self.0 {
            open.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Counts {
    /// Takes what was counted since the last call.
    fn take(&self, now: Instant) -> Amounts {
        let mut clock = lock(&self.clock);
        let (mut amounts, since) = match *clock {
            Clock::Waiting => (Amounts::default(), None),
            Clock::Begun(since) => (self.once, Some(since)),
            Clock::Running(since) => (Amounts::default(), Some(since)),
        };
        amounts.bytes = self.bytes.swap(0, Ordering::Relaxed);
        if let Some(since) = since {
            // The rest of a second counts next time.
            amounts.seconds = now.saturating_duration_since(since).as_secs();
            *clock = Clock::Running(since + Duration::from_secs(amounts.seconds));
        }
        amounts
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.open.remove(&self.key);
        let amounts = self.counts.take(Instant::now());
        state.book.add(&self.counts.account, amounts);
    }
}

#[cfg(test)]
mod tests;
