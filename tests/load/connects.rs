//! Many peers at once.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::{
    Form, Row, peers,
    report::{Times, ms},
};

const PROMISED: Duration = Duration::from_secs(120);
const AIM: Duration = Duration::from_secs(5);

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let count = form.pick(100, 1000);
    let relay = peers::relay(2 * count).await;
    let listeners = (0..count).map(|_| peers::listener(peers::config(&relay)));
    let listeners = join_all(listeners).await;
    let dialler = peers::dialler(peers::config(&relay)).await;

    let start = Instant::now();
    let outcomes = join_all(listeners.iter().map(async |listener| {
        let met = tokio::time::timeout(PROMISED, peers::meet(&dialler, listener)).await;
        let (connection, first_byte) = met
            .map_err(|_| "no answer".to_owned())?
            .map_err(|e| e.to_string())?;
        let direct = peers::until_direct(&connection).await;
        Ok::<_, String>((first_byte, direct.then(|| start.elapsed()), connection))
    }));
    let (outcomes, errors): (Vec<_>, Vec<_>) = outcomes.await.into_iter().partition(Result::is_ok);
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    let failed = errors.len();
    for error in errors.into_iter().filter_map(Result::err).take(3) {
        println!("  {error}");
    }
    let first_bytes = Times::new(outcomes.iter().map(|outcome| outcome.0).collect());
    let direct: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.1).collect();
    let relayed = outcomes.len() - direct.len();
    let mut measured = format!(
        "{failed} failed; first byte median {}, 99th percentile {}, worst {}",
        ms(first_bytes.median()),
        ms(first_bytes.percentile(99)),
        ms(first_bytes.worst()),
    );
    if !direct.is_empty() {
        let direct = Times::new(direct);
        measured += &format!(
            "; direct median {}, worst {}, {relayed} stayed relayed",
            ms(direct.median()),
            ms(direct.worst())
        );
    }
    drop(outcomes);
    dialler.close().await;
    join_all(listeners.iter().map(|listener| listener.close())).await;
    vec![Row {
        scenario: format!("{count} connects at once to as many peers, through one relay"),
        promised: "100, none over 2 min",
        aim: "1,000, none failing, 99th percentile < 5 s",
        measured,
        kept: failed == 0 && first_bytes.worst() < PROMISED,
        reached: count >= 1000 && failed == 0 && first_bytes.percentile(99) < AIM,
    }]
}
