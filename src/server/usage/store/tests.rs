use std::{
    cell::Cell,
    ops::Bound,
    time::{Duration, UNIX_EPOCH},
};

use redb::BackendError;

use super::*;

fn day(number: u64) -> Day {
    Day::of(UNIX_EPOCH + Duration::from_secs(number * 86_400))
}

fn row(token: &str, peer: &str, bytes: u64) -> (Account, Amounts) {
    let account = Account {
        token: token.into(),
        peer: peer.into(),
    };
    let amounts = Amounts {
        bytes,
        circuits: 1,
        ..Amounts::default()
    };
    (account, amounts)
}

fn write<B: StorageBackend>(
    store: &mut Store<B>,
    day: Day,
    rows: &[(Account, Amounts)],
) -> Result<(), redb::Error> {
    store.write(&mut Batch::new(day, rows.to_vec()))
}

fn sums(path: &Path, since: Option<Day>, by: UsageBy) -> Vec<(String, u64, u64)> {
    let rows = read(path, since, by).unwrap();
    let sum = |row: UsageRow| (row.name, row.bytes, row.circuits);
    rows.into_iter().map(sum).collect()
}

fn sum(name: impl ToString, bytes: u64, circuits: u64) -> (String, u64, u64) {
    (name.to_string(), bytes, circuits)
}

#[test]
fn amounts_are_summed_up_and_read_while_the_file_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 10, 100);
    write(&mut store, day(1), &[]).unwrap();
    assert_eq!(sums(&path, None, UsageBy::Day), []);
    write(&mut store, day(1), &[row("", "a", 1), row("t", "b", 2)]).unwrap();
    write(&mut store, day(1), &[row("", "a", 4)]).unwrap();
    write(&mut store, day(2), &[row("t", "a", 8)]).unwrap();
    assert_eq!(
        sums(&path, None, UsageBy::Day),
        [sum(day(1), 7, 3), sum(day(2), 8, 1)]
    );
    assert_eq!(
        sums(&path, None, UsageBy::Peer),
        [sum("a", 13, 3), sum("b", 2, 1)]
    );
    assert_eq!(
        sums(&path, None, UsageBy::Token),
        [sum("", 5, 2), sum("t", 10, 2)]
    );
    assert_eq!(sums(&path, Some(day(2)), UsageBy::Peer), [sum("a", 8, 1)]);
    drop(store);
    // The next server goes on.
    let mut store = Store::new(path.clone(), 10, 100);
    write(&mut store, day(2), &[row("t", "a", 1)]).unwrap();
    drop(store);
    assert_eq!(sums(&path, Some(day(2)), UsageBy::Peer), [sum("a", 9, 2)]);
}

#[test]
fn old_days_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 2, 100);
    for number in 1..=4 {
        write(&mut store, day(number), &[row("", "a", number)]).unwrap();
    }
    assert_eq!(
        sums(&path, None, UsageBy::Day),
        [sum(day(3), 3, 1), sum(day(4), 4, 1)]
    );
}

#[test]
fn peers_without_a_row_of_their_own_share_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 2, 2);
    let rows = [
        row("", "a", 1),
        row("", "b", 1),
        row("", "c", 1),
        row("t", "c", 1),
    ];
    write(&mut store, day(1), &rows).unwrap();
    write(&mut store, day(1), &rows).unwrap();
    // Another server counts the rows of the day again.
    drop(store);
    let mut store = Store::new(path.clone(), 2, 2);
    write(&mut store, day(1), &[row("", "d", 1)]).unwrap();
    let others = sum("*", 5, 5);
    assert_eq!(
        sums(&path, None, UsageBy::Peer),
        [others, sum("a", 2, 2), sum("b", 2, 2)]
    );
    assert_eq!(
        sums(&path, None, UsageBy::Token),
        [sum("", 7, 7), sum("t", 2, 2)]
    );
}

#[cfg(unix)]
#[test]
fn only_the_owner_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 2, 2);
    write(&mut store, day(1), &[]).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Each day has 17 MiB of rows. The file keeps room for its next pages.
#[test]
fn a_hundred_thousand_peers_a_day_take_a_bounded_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 3, 100_000);
    let rows: Vec<_> = (0..100_000)
        .map(|peer| {
            row(
                "token",
                &format!("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6v{peer:07}"),
                1,
            )
        })
        .collect();
    let mut sizes = Vec::new();
    for number in 1..=8 {
        for batch in rows.chunks(25_000) {
            write(&mut store, day(number), batch).unwrap();
        }
        sizes.push(std::fs::metadata(&path).unwrap().len() >> 20);
    }
    assert!(sizes[7] <= 120, "{sizes:?}");
}

#[test]
fn the_present_day_and_month_are_summed_up_for_quotas() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::new(folder.path().join("usage"), 90, 100);
    // 1970-01-31, 1970-02-01 and 1970-02-02.
    let now = UNIX_EPOCH + Duration::from_secs(32 * 86_400 + 5);
    let calendar = Calendar::default();
    assert!(store.carried(&calendar, now).unwrap().sums.is_empty());
    for (at, bytes) in [(30, 1), (31, 10), (32, 100)] {
        let rows = [
            row("t", "a", bytes),
            row("", "a", bytes),
            row("t", OTHERS, bytes),
        ];
        write(&mut store, day(at), &rows).unwrap();
    }
    write(&mut store, day(32), &[row("", "idle", 0)]).unwrap();
    let carried = store.carried(&calendar, now).unwrap();
    assert_eq!(carried.then.as_secs(), 32 * 86_400 + 5);
    let mut sums: Vec<_> = carried.sums.into_iter().collect();
    sums.sort_unstable();
    assert_eq!(
        sums,
        [
            ((false, "a".to_owned()), [200, 220]),
            ((true, "t".to_owned()), [200, 220]),
        ]
    );
}

/// What is in the file is the floor of the days.
#[test]
fn a_clock_that_went_back_over_a_restart_goes_on_with_the_last_day() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 90, 100);
    write(&mut store, day(40), &[row("", "a", 100)]).unwrap();
    drop(store);
    let mut store = Store::new(path, 90, 100);
    let calendar = Calendar::default();
    let clock = UNIX_EPOCH + Duration::from_secs(39 * 86_400 + 5);
    let carried = store.carried(&calendar, clock).unwrap();
    assert_eq!(carried.then.as_secs(), 40 * 86_400);
    assert_eq!(carried.sums[&(false, "a".to_owned())], [100, 100]);
    assert_eq!(calendar.at(clock).behind.as_secs(), 86_400 - 5);
}

thread_local! {
    /// How many syncs of the disk of this thread pass before one fails.
    static SYNCS: Cell<Option<u32>> = const { Cell::new(None) };
}

/// A disk that fails to sync after it has taken everything.
#[derive(Debug)]
struct Failing(FileBackend);

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match SYNCS.get() {
            Some(0) => Err(io::Error::other("the disk is gone")),
            left => {
                SYNCS.set(left.map(|left| left - 1));
                self.0.sync_data()
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

/// Whenever the disk fails, each batch is in the file once.
#[test]
fn a_disk_that_fails_at_the_end_of_a_batch_makes_nothing_count_twice_or_never() {
    let mut arrived = false;
    for syncs in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage");
        let mut store = Store::with(path.clone(), (10, 100), |file| {
            FileBackend::new(file).map(Failing)
        });
        write(&mut store, day(1), &[row("", "a", 1)]).unwrap();
        let mut batch = Batch::new(day(1), vec![row("", "a", 2)]);
        SYNCS.set(Some(syncs));
        let failed = store.write(&mut batch).is_err();
        SYNCS.set(None);
        if failed {
            let there = sums(&path, None, UsageBy::Peer);
            arrived |= there == [sum("a", 3, 2)];
            store.write(&mut batch).unwrap();
        }
        // Another batch is not taken for that one.
        write(&mut store, day(1), &[row("", "a", 4)]).unwrap();
        drop(store);
        assert_eq!(
            sums(&path, None, UsageBy::Peer),
            [sum("a", 7, 3)],
            "{syncs}"
        );
    }
    assert!(
        arrived,
        "a batch has arrived, and its writer has heard of a failure"
    );
}

#[test]
fn the_rows_are_read_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 10, 100);
    let rows = [row("", "a", 1), row("", "b", 2), row("t", "a", 3)];
    write(&mut store, day(1), &rows).unwrap();
    write(&mut store, day(2), &rows[..1]).unwrap();
    let mut after = (0, Account::default());
    let mut read = Vec::new();
    loop {
        let next = page(&path, &after, 2).unwrap();
        assert!(next.len() <= 2);
        let Some((day, account, _)) = next.last() else {
            break;
        };
        after = (*day, account.clone());
        read.extend(next);
    }
    let of_day = |day: Day, rows: &[(Account, Amounts)]| -> Vec<Row> {
        let rows = rows.iter().cloned();
        rows.map(|(account, amounts)| (day.number(), account, amounts))
            .collect()
    };
    let all = [of_day(day(1), &rows), of_day(day(2), &rows[..1])].concat();
    assert_eq!(read, all);
    let since = (day(2).number(), Account::default());
    assert_eq!(page(&path, &since, 9).unwrap(), all[3..]);
}
