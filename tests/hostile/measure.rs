//! Measures how others fare during an attack, by the same rounds before it and during it, in one
//! run.
//!
//! `make test` makes a few rounds in a debug build, on a machine that may do anything else, and so
//! allows much. `scripts/hostile` makes many rounds in a release build, one test after the other.
//! Their 99th percentile during the attack must stay below twice that before it and [`SCHEDULING`].

use std::time::Instant;

use super::*;

/// The number of rounds in each half without [`ROUNDS`].
const FEW: usize = 6;
/// The variable with the number of rounds in each half. With a hundred or more, the 99th
/// percentile is not just the worst.
const ROUNDS: &str = "HOSTILE_ROUNDS";

/// How much a loaded machine may add to a round of the short form.
const LOADED: Duration = Duration::from_secs(3);
/// How much the scheduler may add to a round of the long form. It is some turns of a few
/// milliseconds each, because attackers, honest peers and the server share two cores with
/// everything else.
const SCHEDULING: Duration = Duration::from_millis(50);

/// How often an attacker that was sent away comes back in the short form.
const RETURNS: usize = 10;

fn many() -> Option<usize> {
    let rounds = std::env::var(ROUNDS).ok()?;
    Some(rounds.parse().expect(ROUNDS))
}

/// Whether this is the long form.
pub(crate) fn is_long() -> bool {
    many().is_some()
}

/// Returns the number of rounds of honest peers in each half of a test.
pub(crate) fn rounds() -> usize {
    many().unwrap_or(FEW)
}

/// Returns how often an attacker that was sent away comes back. In the long form, it does so
/// without end.
pub(crate) fn returns() -> usize {
    match is_long() {
        true => usize::MAX,
        false => RETURNS,
    }
}

/// Returns how much more than twice as long as a quiet round another one may take.
pub(crate) fn noise() -> Duration {
    match is_long() {
        true => SCHEDULING,
        false => LOADED,
    }
}

/// The times that rounds took.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Times rounds that follow each other. With the pause between them, one address stays below
    /// its rates.
    pub(crate) async fn of(pause: Duration, round: impl AsyncFn()) -> Self {
        let mut times = Self::default();
        for _ in 0..rounds() {
            let begun = Instant::now();
            round().await;
            times.0.push(begun.elapsed());
            tokio::time::sleep(pause).await;
        }
        times
    }

    /// Returns the time that `percent` of all rounds do not exceed, by the nearest rank.
    fn quantile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |percent| self.quantile(percent).as_secs_f64() * 1000.0;
        write!(f, "{:.1}/{:.1} ms", millis(50), millis(99))
    }
}

/// Checks that others are unharmed by the attack that `what` names.
pub(crate) fn unharmed(what: &str, quiet: &Times, attacked: &Times) {
    let (count, of) = (attacked.0.len(), quiet.0.len());
    println!("{what}: p50/p99 quiet {quiet} ({of}), attacked {attacked} ({count})");
    let (quiet, attacked) = (quiet.quantile(99), attacked.quantile(99));
    let most = 2 * quiet + noise();
    assert!(attacked < most, "{what}: {attacked:?} after {quiet:?}");
}

/// Does `step` again and again, and begins no two of them within `period`.
pub(crate) async fn at_a_pace<F: Future>(period: Duration, mut step: impl FnMut() -> F) {
    for _ in 0..returns() {
        let next = tokio::time::Instant::now() + period;
        step().await;
        tokio::time::sleep_until(next).await;
    }
}

/// A process of its own that accepts connections and ends them as cheaply as possible. An attack on
/// it shows how much of the machine the attacker itself takes.
pub(crate) struct Bystander {
    process: std::process::Child,
    pub(crate) address: std::net::SocketAddr,
}

const BYSTANDER: &str = "HOSTILE_BYSTANDER";

impl Bystander {
    pub(crate) fn start() -> Self {
        let address = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports()));
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "measure::bystander", "--nocapture"]);
        command.env(BYSTANDER, address.to_string());
        command.stdout(std::process::Stdio::null());
        let process = command.spawn().unwrap();
        Self { process, address }
    }

    pub(crate) async fn is_ready(&self) {
        let connects = || std::net::TcpStream::connect(self.address).is_ok();
        until_polled(connects).await;
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This is not a test. A [`Bystander`] runs it.
#[test]
fn bystander() {
    let Ok(address) = std::env::var(BYSTANDER) else {
        return;
    };
    let listener = std::net::TcpListener::bind(address).unwrap();
    for stream in listener.incoming().flatten() {
        // The connection is reset, as the server does it.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}
