use super::*;
use crate::server::config::ServerConfig;

fn circuit() -> Amounts {
    Amounts {
        circuits: 1,
        ..Amounts::default()
    }
}

#[test]
fn what_is_open_counts_and_nothing_is_lost_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = ServerConfig::default();
    let metrics = Metrics::new(&config);
    let usage = Usage::start(Some(folder.path()), &config.usage, metrics).unwrap();
    let account = Account::of("a");
    let (open, closed) = (
        usage.tally(account.clone(), circuit()),
        usage.tally(account.clone(), circuit()),
    );
    open.begin(Instant::now());
    open.carried(3);
    closed.carried(4);
    drop(closed);
    let once = Amounts {
        reservations: 1,
        ..Amounts::default()
    };
    usage.add(&account, once);
    usage.stop().unwrap().join().unwrap();
    let rows = super::usage(folder.path(), None, UsageBy::Peer).unwrap();
    let [row] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(
        (&*row.name, row.bytes, row.circuits, row.reservations),
        ("a", 7, 1, 1)
    );
    assert_eq!(usage.fault(), None);
}

/// A server that cannot start has no other way to stop the thread.
#[test]
fn the_file_is_free_when_the_last_handle_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let config = ServerConfig::default();
    let metrics = Metrics::new(&config);
    let start = || Usage::start(Some(folder.path()), &config.usage, metrics.clone()).unwrap();
    let usage = start();
    let thread = Arc::downgrade(&usage.0.as_ref().unwrap().shared);
    drop(usage);
    // The thread holds what it shares with the handles until it has ended.
    while thread.strong_count() > 0 {
        thread::yield_now();
    }
    start().stop().unwrap().join().unwrap();
    assert!(super::usage(folder.path(), None, UsageBy::Day).is_ok());
}

#[test]
fn seconds_are_counted_once() {
    let now = Instant::now();
    let counts = Counts {
        account: Account::of("a"),
        once: circuit(),
        bytes: AtomicU64::new(0),
        clock: Mutex::new(Clock::Begun(now)),
    };
    let at = |millis| now + Duration::from_millis(millis);
    let taken = [at(1_700), at(1_900), at(2_100), at(2_000)].map(|at| counts.take(at));
    assert_eq!(taken.map(|amounts| amounts.seconds), [1, 0, 1, 0]);
    assert_eq!(taken.map(|amounts| amounts.circuits), [1, 0, 0, 0]);
}

#[test]
fn nothing_is_counted_without_a_directory() {
    let config = ServerConfig::default();
    let usage = Usage::start(None, &config.usage, Metrics::new(&config)).unwrap();
    usage.tally(Account::of("a"), circuit()).carried(1);
    assert!(usage.0.is_none() && usage.stop().is_none());
}
