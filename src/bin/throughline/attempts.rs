//! Says to people why there is no direct path.

use throughline::{Attempt, Cause, Outcome, Strategy};

use crate::output::millis;

/// Returns a line for each way that has failed, in the order of the first failures. A way that was
/// tried several times is told once, with its last reason.
pub(crate) fn told(attempts: &[Attempt]) -> Vec<String> {
    let failed = attempts.iter().filter(|a| a.outcome == Outcome::Failed);
    let mut ways: Vec<(&Attempt, u32)> = Vec::new();
    for attempt in failed {
        let same = |(known, _): &&mut (&Attempt, u32)| way(known) == way(attempt);
        match ways.iter_mut().find(same) {
            Some(known) => *known = (attempt, known.1 + 1),
            None => ways.push((attempt, 1)),
        }
    }
    let line = |(attempt, times): &(&Attempt, u32)| line(attempt, *times);
    ways.iter().map(line).collect()
}

/// What makes two attempts the same for people.
pub(crate) fn way(attempt: &Attempt) -> (Strategy, Option<Cause>) {
    (attempt.strategy, attempt.cause)
}

/// Describes an attempt that has failed so many `times`.
pub(crate) fn line(attempt: &Attempt, times: u32) -> String {
    let reason = attempt.reason.as_deref().unwrap_or("no reason is known");
    let took = millis(attempt.ended.saturating_sub(attempt.started));
    let again = match times {
        1 => String::new(),
        times => format!(", the last of {times} times"),
    };
    let (name, strategy) = (name(attempt.strategy), attempt.strategy);
    // The reason may hold what a peer or a server has written.
    let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
    format!("{name} ({strategy}, {took:.0} ms{again}): {reason}")
}

/// Names a way as people do.
fn name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Direct => "an address of the peer",
        Strategy::Stun => "hole punching",
        Strategy::Upnp => "a port of the router",
        Strategy::CircuitRelay => "a relay",
        Strategy::Turn => "a TURN server",
        Strategy::Birthday => "guessing ports",
        _ => "another way",
    }
}
