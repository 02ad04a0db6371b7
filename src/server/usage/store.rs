//! The file of the amounts, by day, token and peer.
//!
//! The server is the only one who writes it. Others may read it meanwhile, and see what was written.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use redb::{
    Builder, ConcurrencyMode, Database, DatabaseError, ReadableDatabase, ReadableTable,
    TableDefinition, TableError, backends::FileBackend,
};

use super::{
    UsageBy, UsageRow,
    book::{Account, Amounts, OTHERS},
    day::Day,
};
use crate::{core::allowance::Period, server::access::Before};

/// The day, the token and the peer.
type Key = (u32, &'static str, &'static str);
/// The fields of [`Amounts`] in their order.
type Value = (u64, u64, u64, u64, u64);

const TABLE: TableDefinition<Key, Value> = TableDefinition::new("usage");

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

/// The file, opened for writing.
pub(super) struct Store {
    path: PathBuf,
    /// How many days are kept, this one included.
    days: u32,
    /// The most peers of a day that have a row of their own.
    most: u64,
    /// The file is opened again after a failure, because only that finds out what it holds.
    database: Option<Database>,
    /// The day of the last batch, and how many rows it has.
    day: Option<(u32, u64)>,
}

impl Store {
    /// Makes a store that opens the file for the first batch.
    pub(super) fn new(path: PathBuf, days: u32, most: u64) -> Self {
        Self {
            path,
            days,
            most,
            database: None,
            day: None,
        }
    }

    /// Returns the open file. It is made if it is missing.
    fn database(&mut self) -> Result<&Database, redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let file = FileBackend::new(open_file(&self.path)?)?;
                builder().create_with_backend(file)?
            }
        };
        Ok(self.database.insert(database))
    }

    /// Sums up the bytes of the present day and of the present month, by name of the token and by peer.
    /// It stops at [`MOST_CARRIED`] of them.
    pub(super) fn carried(&mut self, now: SystemTime) -> Result<Before, redb::Error> {
        let since = Period::Month.begun(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let (first, today) = (Day::of(UNIX_EPOCH + since).number(), Day::of(now).number());
        let mut carried = Before::new();
        let batch = self.database()?.begin_read()?;
        let table = match batch.open_table(TABLE) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(carried),
            table => table?,
        };
        for row in table.range((first, "", "")..)? {
            let (key, value) = row?;
            let (day, token, peer) = key.value();
            let bytes = amounts(value.value()).bytes;
            for (has_name, id) in [(true, token), (false, peer)] {
                let key = (has_name, id.to_owned());
                if bytes == 0 || id.is_empty() || id == OTHERS {
                    continue;
                }
                if carried.len() >= MOST_CARRIED && !carried.contains_key(&key) {
                    continue;
                }
                let sums = carried.entry(key).or_default();
                let of_today = if day == today { bytes } else { 0 };
                for (sum, more) in sums.iter_mut().zip([of_today, bytes]) {
                    *sum = sum.saturating_add(more);
                }
            }
        }
        Ok(carried)
    }

    /// Adds the amounts of a batch to the rows of `day`. After a failure, the file holds none of
    /// them.
    pub(super) fn write(
        &mut self,
        day: Day,
        rows: &[(Account, Amounts)],
    ) -> Result<(), redb::Error> {
        let day = day.number();
        let written = self.batch(day, rows);
        match &written {
            Ok(count) => self.day = Some((day, *count)),
            Err(_) => {
                self.database = None;
                self.day = None;
            }
        }
        written.map(drop)
    }

    /// Returns how many rows `day` has afterwards.
    fn batch(&mut self, day: u32, rows: &[(Account, Amounts)]) -> Result<u64, redb::Error> {
        let (most, kept) = (self.most, day.saturating_sub(self.days - 1));
        let known = self.day.filter(|(of, _)| *of == day);
        let batch = self.database()?.begin_write()?;
        let mut table = batch.open_table(TABLE)?;
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
        for (account, more) in rows {
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
        drop(table);
        batch.commit()?;
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
    let mut sums = BTreeMap::<String, Amounts>::new();
    for row in table.range((since.map_or(0, Day::number), "", "")..)? {
        let (key, value) = row?;
        let (day, token, peer) = key.value();
        let name = match by {
            UsageBy::Day => Day::from_number(day).map_or_else(String::new, |day| day.to_string()),
            UsageBy::Token => token.to_owned(),
            UsageBy::Peer => peer.to_owned(),
        };
        *sums.entry(name).or_default() += amounts(value.value());
    }
    let row = |(name, amounts)| UsageRow::new(name, amounts);
    Ok(sums.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests;
