use std::time::{Duration, UNIX_EPOCH};

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
    store.write(day(1), &[]).unwrap();
    assert_eq!(sums(&path, None, UsageBy::Day), []);
    store
        .write(day(1), &[row("", "a", 1), row("t", "b", 2)])
        .unwrap();
    store.write(day(1), &[row("", "a", 4)]).unwrap();
    store.write(day(2), &[row("t", "a", 8)]).unwrap();
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
    store.write(day(2), &[row("t", "a", 1)]).unwrap();
    drop(store);
    assert_eq!(sums(&path, Some(day(2)), UsageBy::Peer), [sum("a", 9, 2)]);
}

#[test]
fn old_days_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let mut store = Store::new(path.clone(), 2, 100);
    for number in 1..=4 {
        store.write(day(number), &[row("", "a", number)]).unwrap();
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
    store.write(day(1), &rows).unwrap();
    store.write(day(1), &rows).unwrap();
    // Another server counts the rows of the day again.
    drop(store);
    let mut store = Store::new(path.clone(), 2, 2);
    store.write(day(1), &[row("", "d", 1)]).unwrap();
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
    store.write(day(1), &[]).unwrap();
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
            store.write(day(number), batch).unwrap();
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
    assert!(store.carried(now).unwrap().is_empty());
    for (at, bytes) in [(30, 1), (31, 10), (32, 100)] {
        let rows = [
            row("t", "a", bytes),
            row("", "a", bytes),
            row("t", OTHERS, bytes),
        ];
        store.write(day(at), &rows).unwrap();
    }
    store.write(day(32), &[row("", "idle", 0)]).unwrap();
    let carried = store.carried(now).unwrap();
    let mut sums: Vec<_> = carried.into_iter().collect();
    sums.sort_unstable();
    assert_eq!(
        sums,
        [
            ((false, "a".to_owned()), [200, 220]),
            ((true, "t".to_owned()), [200, 220]),
        ]
    );
}
