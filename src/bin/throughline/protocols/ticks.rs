//! Datagrams that come back: how long each takes beside a stream that fills the path.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use throughline::{Connection, Error};
use tokio::time::{MissedTickBehavior, interval, timeout_at};

/// The pause between two datagrams, as in a game or in speech.
const TICK: Duration = Duration::from_millis(20);

/// How long the last datagrams may take to come back.
const GRACE: Duration = Duration::from_secs(1);

/// The datagrams of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    pub(crate) sent: usize,
    /// The round trips of those that came back, sorted.
    pub(crate) times: Vec<Duration>,
}

impl Ticks {
    /// Returns the round trip that this part of the datagrams stays below.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let last = self.times.len().checked_sub(1)?;
        let at = (part * last as f64).round() as usize;
        self.times.get(at).copied()
    }
}

/// Sends every datagram back until the connection is closed. Whoever sends too many loses some.
pub(crate) async fn echo(connection: Connection) {
    let mut datagrams = connection.datagrams();
    while let Some(datagram) = datagrams.next().await {
        if connection.send_datagram(&datagram).is_err() {
            return;
        }
    }
}

/// Sends a datagram every 20 ms for `time`, and measures how long each takes to come back.
///
/// # Errors
/// Fails as [`Connection::send_datagram`] does.
pub(crate) async fn measure(connection: &Connection, time: Duration) -> Result<Ticks, Error> {
    let mut datagrams = connection.datagrams();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut sent = Vec::new();
    let mut ticks = Ticks::default();
    let start = Instant::now();
    let end = tokio::time::Instant::from_std(start + time + GRACE);
    loop {
        tokio::select! {
            now = tick.tick(), if start.elapsed() < time => {
                connection.send_datagram(&(sent.len() as u32).to_be_bytes())?;
                sent.push(now.into_std());
            }
            next = timeout_at(end, datagrams.next()) => {
                let Ok(Some(datagram)) = next else { break };
                let number = <[u8; 4]>::try_from(datagram).map(u32::from_be_bytes);
                let began = number.ok().and_then(|number| sent.get(number as usize));
                ticks.times.extend(began.map(Instant::elapsed));
            }
        }
    }
    ticks.sent = sent.len();
    ticks.times.sort_unstable();
    Ok(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut ticks = Ticks::default();
        assert_eq!(ticks.quantile(0.5), None);
        ticks.times = (0..=100).map(Duration::from_millis).collect();
        for (part, ms) in [(0.0, 0), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(ticks.quantile(part), Some(Duration::from_millis(ms)));
        }
    }
}
