//! Many connects at the same time.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, future::join_all, stream};

use crate::{
    Form, Row, common, peers,
    report::{NONE, Times, ms},
};

const PROMISED: Duration = Duration::from_secs(120);
const AIM: Duration = Duration::from_secs(5);
/// The promise is for this many connects, and the aim is for ten times as many.
const MANY: usize = 100;
/// How many connects one dialler makes. A stock relay drops the requests of a peer beyond 10 that
/// wait.
const EACH: usize = 8;
/// How many peers make their reservation at the same time.
const COMING: usize = 32;

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let mut rows = vec![at_once(MANY, EACH).await];
    if form == Form::Long {
        rows.push(at_once(10 * MANY, EACH).await);
        rows.push(at_once(10 * MANY, 10 * MANY).await);
    }
    rows.push(at_once(MANY, MANY).await);
    rows
}

/// Connects to `count` listeners at the same time. Each dialler connects to `each` of them.
async fn at_once(count: usize, each: usize) -> Row {
    let relay = peers::relay(2 * count).await;
    // Listeners start a few at a time, as peers do. Only the connects are measured.
    let listeners = (0..count).map(|_| common::echoing(peers::config(&relay)));
    let listeners: Vec<_> = stream::iter(listeners).buffered(COMING).collect().await;
    let diallers = (0..count.div_ceil(each)).map(|_| peers::dialler(peers::config(&relay)));
    let diallers = join_all(diallers).await;

    let start = Instant::now();
    let outcomes = listeners.iter().enumerate().map(async |(index, listener)| {
        let met = peers::meet(&diallers[index / each], listener);
        let met = tokio::time::timeout(PROMISED, met).await;
        let (connection, first_byte) = met.map_err(|_| String::from("no answer"))??;
        let direct = peers::until_direct(&connection).await;
        Ok((first_byte, direct.then(|| start.elapsed()), connection))
    });
    let outcomes: Vec<Result<_, Failure>> = join_all(outcomes).await;
    let (mut times, mut direct, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for outcome in &outcomes {
        match outcome {
            Ok((first_byte, until_direct, _connection)) => {
                times.push(*first_byte);
                direct.extend(*until_direct);
            }
            Err(Failure(error)) => errors.push(error),
        }
    }
    let relayed = times.len() - direct.len();
    let first_bytes = Times::new(times);
    let mut measured = format!(
        "{} failed; first byte median {}, 99th percentile {}, worst {}",
        errors.len(),
        ms(first_bytes.median()),
        ms(first_bytes.percentile(99)),
        ms(first_bytes.worst()),
    );
    if !direct.is_empty() {
        let direct = Times::new(direct);
        let (median, worst) = (ms(direct.median()), ms(direct.worst()));
        measured += &format!("; direct median {median}, worst {worst}, {relayed} stayed relayed");
    }
    if let Some(error) = errors.first() {
        measured += &format!("; the first error: {error}");
    }
    let none_failed = errors.is_empty();
    drop(outcomes);
    join_all(diallers.iter().map(|dialler| dialler.close())).await;
    join_all(listeners.iter().map(|listener| listener.close())).await;
    Row {
        scenario: format!(
            "{count} connects at once to as many peers, by {} peers through one relay",
            diallers.len()
        ),
        promised: if count > MANY {
            NONE
        } else {
            "none failing, none over 2 min"
        },
        aim: if count > MANY {
            "none failing, 99th percentile < 5 s"
        } else {
            NONE
        },
        measured,
        kept: count > MANY || none_failed && first_bytes.worst() < PROMISED,
        reached: none_failed && first_bytes.percentile(99) < AIM,
        known: None,
    }
}

/// Why two peers did not connect. It holds the attempts, which say more than the error.
struct Failure(String);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<throughline::Error> for Failure {
    fn from(error: throughline::Error) -> Self {
        Self(peers::reasons(&error))
    }
}
