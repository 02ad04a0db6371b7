//! The file of the amounts, by day, token and peer.
//!
//! The server is the only one who writes it. Others may read it meanwhile, and see what was written.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadableDatabase, ReadableTable,
    StorageBackend, TableDefinition, TableError, backends::FileBackend,
};

use super::{
    Sums, UsageBy, UsageRow,
    book::{Account, Amounts, OTHERS},
    calendar::Calendar,
    day::Day,
};
use crate::{core::allowance::Period, server::access::Before};

/// The day, the token and the peer.
type Key = (u32, &'static str, &'static str);
/// The fields of [`Amounts`] in their order.
type Value = (u64, u64, u64, u64, u64);

const TABLE: TableDefinition<Key, Value> = TableDefinition::new("usage");
/// The number of the last batch. It is written together with the batch.
const LAST: TableDefinition<(), u64> = TableDefinition::new("last");

/// How many sums are kept for quotas at a start. They take about 20 MiB.
const MOST_CARRIED: usize = 1 << 17;

/// The memory for pages of the file. A batch touches few of them.
const CACHE: usize = 4 << 20;

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE)
        .set_concurrency_mode(ConcurrencyMode::SingleWriter);
    builder
}

fn amounts((bytes, circuits, reservations, allocations, seconds): Value) -> Amounts {
    Amounts {
        bytes,
        circuits,
        reservations,
        allocations,
        seconds,
    }
}

fn value(amounts: Amounts) -> Value {
    let Amounts {
        bytes,
        circuits,
        reservations,
        allocations,
        seconds,
    } = amounts;
    (bytes, circuits, reservations, allocations, seconds)
}

/// Opens the file for reading and writing, and makes it if it is missing. Only its owner can read it.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Amounts that are written together.
pub(super) struct Batch {
    day: u32,
    rows: Vec<(Account, Amounts)>,
    /// Its number, if the disk has failed while it was written. Then it may be in the file, or not.
    number: Option<u64>,
}

impl Batch {
    pub(super) fn new(day: Day, rows: Vec<(Account, Amounts)>) -> Self {
        Self {
            day: day.number(),
            rows,
            number: None,
        }
    }
}

/// The file, opened for writing.
pub(super) struct Store<B = FileBackend> {
    path: PathBuf,
    /// How many days are kept, this one included.
    days: u32,
    /// The most peers of a day that have a row of their own.
    most: u64,
    backend: fn(File) -> Result<B, DatabaseError>,
    /// The file is opened again after a failure, because only that finds out what it holds.
    database: Option<Database>,
    /// The day of the last batch, and how many rows it has.
    day: Option<(u32, u64)>,
}

impl Store {
    /// Makes a store that opens the file for the first batch.
    pub(super) fn new(path: PathBuf, days: u32, most: u64) -> Self {
        Self::with(path, (days, most), FileBackend::new)
    }
}

impl<B: StorageBackend> Store<B> {
    fn with(
        path: PathBuf,
        (days, most): (u32, u64),
        backend: fn(File) -> Result<B, DatabaseError>,
    ) -> Self {
        Self {
            path,
            days,
            most,
            backend,
            database: None,
            day: None,
        }
    }

    /// Returns the open file. It is made if it is missing.
    fn database(&mut self) -> Result<&Database, redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let file = (self.backend)(open_file(&self.path)?)?;
                builder().create_with_backend(file)?
            }
        };
        Ok(self.database.insert(database))
    }

    /// Sums up the bytes of the present day and of the present month, by name of the token and by peer.
    /// It stops at [`MOST_CARRIED`] of them. The present day is no earlier than the last one in the
    /// file, and the calendar learns of that one.
    pub(super) fn carried(
        &mut self,
        calendar: &Calendar,
        time: SystemTime,
    ) -> Result<Before, redb::Error> {
        let carried = self.sum_of_present(calendar, time);
        if carried.is_err() {
            self.database = None;
        }
        carried
    }

    fn sum_of_present(
        &mut self,
        calendar: &Calendar,
        time: SystemTime,
    ) -> Result<Before, redb::Error> {
        let batch = self.database()?.begin_read()?;
        let table = match batch.open_table(TABLE) {
            Err(TableError::TableDoesNotExist(_)) => None,
            table => Some(table?),
        };
        let last = table.as_ref().map(ReadableTable::last).transpose()?;
        if let Some((key, _)) = last.flatten() {
            let since = key.value().0.saturating_sub(Day::of(UNIX_EPOCH).number());
            calendar.see(since.into());
        }
        let then = calendar.at(time).now;
        let mut sums = HashMap::new();
        let Some(table) = table else {
            return Ok(Before { sums, then });
        };
        let number = |since: Duration| Day::of(UNIX_EPOCH + since).number();
        let (first, today) = (number(Period::Month.begun(then)), number(then));
        for row in table.range((first, "", "")..)? {
            let (key, value) = row?;
            let (day, token, peer) = key.value();
            let bytes = amounts(value.value()).bytes;
            for (has_name, id) in [(true, token), (false, peer)] {
                let key = (has_name, id.to_owned());
                if bytes == 0 || id.is_empty() || id == OTHERS {
                    continue;
                }
                if sums.len() >= MOST_CARRIED && !sums.contains_key(&key) {
                    continue;
                }
                let of_key: &mut [u64; 2] = sums.entry(key).or_default();
                let of_today = if day == today { bytes } else { 0 };
                for (sum, more) in of_key.iter_mut().zip([of_today, bytes]) {
                    *sum = sum.saturating_add(more);
                }
            }
        }
        Ok(Before { sums, then })
    }

    /// Adds the amounts of a batch to the rows of its day, once. After a failure, it is not known
    /// whether the file holds them, so the same batch has to be written again.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<(), redb::Error> {
        let written = self.add(batch);
        match &written {
            Ok(count) => self.day = Some((batch.day, *count)),
            Err(_) => {
                self.database = None;
                self.day = None;
            }
        }
        written.map(drop)
    }

    /// Returns how many rows the day of the batch has afterwards.
    fn add(&mut self, batch: &mut Batch) -> Result<u64, redb::Error> {
        let day = batch.day;
        let (most, kept) = (self.most, day.saturating_sub(self.days - 1));
        let known = self.day.filter(|(of, _)| *of == day);
        let transaction = self.database()?.begin_write()?;
        let mut table = transaction.open_table(TABLE)?;
        let mut last = transaction.open_table(LAST)?;
        let number = last.get(())?.map_or(0, |number| number.value());
        let is_there = batch.number == Some(number);
        let mut count = match known {
            Some((_, count)) => count,
            None => {
                // The first batch of a day removes what is too old.
                table.retain_in(..(kept, "", ""), |_, _| false)?;
                let mut count = 0;
                for row in table.range((day, "", "")..(day + 1, "", ""))? {
                    row?;
                    count += 1;
                }
                count
            }
        };
        for (account, more) in batch.rows.iter().filter(|_| !is_there) {
            let mut account = account.clone();
            let mut held = row_of(&table, day, &account)?;
            if held.is_none() && count >= most {
                account = account.others();
                held = row_of(&table, day, &account)?;
            }
            count += u64::from(held.is_none());
            let mut sum = held.unwrap_or_default();
            sum += *more;
            table.insert((day, &*account.token, &*account.peer), value(sum))?;
        }
        if !is_there {
            last.insert((), number + 1)?;
            batch.number = Some(number + 1);
        }
        drop((table, last));
        // The disk may fail after the batch has arrived there.
        transaction.commit()?;
        Ok(count)
    }
}

/// Returns the row of an account.
fn row_of(
    table: &impl ReadableTable<Key, Value>,
    day: u32,
    account: &Account,
) -> Result<Option<Amounts>, redb::StorageError> {
    let row = table.get((day, &*account.token, &*account.peer))?;
    Ok(row.map(|row| amounts(row.value())))
}

/// Sums up the rows of the file at `path` since a day.
pub(super) fn read(
    path: &Path,
    since: Option<Day>,
    by: UsageBy,
) -> Result<Vec<UsageRow>, redb::Error> {
    match builder().open_read_only(path) {
        Ok(database) => sum_up(&database, since, by),
        // The server was killed, so the file has to be repaired first.
        Err(DatabaseError::RepairAborted) => sum_up(&builder().open(path)?, since, by),
        Err(error) => Err(error.into()),
    }
}

/// A row of the file: its day, its account, and the sums up to now.
pub(crate) type Row = (u32, Account, Amounts);

/// Returns the rows of the file at `path` that come after one of a day and an account, at most `most`.
pub(super) fn page(
    path: &Path,
    after: &(u32, Account),
    most: usize,
) -> Result<Vec<Row>, redb::Error> {
    let database = builder().open_read_only(path)?;
    let batch = database.begin_read()?;
    let table = match batch.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let (day, account) = after;
    let after = (*day, &*account.token, &*account.peer);
    let rows = table.range(after..)?.filter_map(|row| {
        let row = row.map(|(key, value)| {
            let (day, token, peer) = key.value();
            let account = Account {
                token: token.to_owned(),
                peer: peer.to_owned(),
            };
            ((day, token, peer) != after).then(|| (day, account, amounts(value.value())))
        });
        row.transpose()
    });
    rows.take(most)
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}

fn sum_up(
    database: &impl ReadableDatabase,
    since: Option<Day>,
    by: UsageBy,
) -> Result<Vec<UsageRow>, redb::Error> {
    let batch = database.begin_read()?;
    let table = match batch.open_table(TABLE) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut sums = Sums::new(since, by);
    for row in table.range((since.map_or(0, Day::number), "", "")..)? {
        let (key, value) = row?;
        let (day, token, peer) = key.value();
        sums.add(day, (token, peer), amounts(value.value()));
    }
    Ok(sums.rows())
}

#[cfg(test)]
mod tests;
