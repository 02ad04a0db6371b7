//! Follows the paths of a connection and prints its events.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use serde_json::{Value, json};
use throughline::{Attempt, Cause, Connection, Outcome, Path, PathEvent, PathKind, Strategy};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    attempts,
    output::{Output, millis},
};

/// How long a path may stay indirect before people are told why. Most direct paths are up by then.
const HOLD: Duration = Duration::from_secs(1);
/// How long the event of a path that is there may take.
const PRINTED: Duration = Duration::from_secs(1);

/// Prints the events of one connection until it is dropped. People then learn why the path is not
/// direct, if they do not know yet.
pub(crate) struct PathWatch {
    attempts: Arc<Mutex<Attempts>>,
    /// Whether a direct path has been printed.
    direct: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl PathWatch {
    /// Prints `connected`, and from then on each attempt and each change of path. `start` is the
    /// time of the call to connect.
    pub(crate) fn start(connection: &Connection, start: Instant, output: Output) -> Self {
        // The subscription comes before the state is read. So a change in between may be printed
        // twice, but is never missed.
        let mut events = connection.path_events();
        let path = connection.path();
        let elapsed = start.elapsed();
        let mut fields = path_fields(path.as_ref());
        fields["ms"] = millis(elapsed).into();
        output.event("connected", fields.clone(), || {
            format!(
                "connected after {:.0} ms, {}",
                millis(elapsed),
                describe(&fields)
            )
        });
        if output.is_json() && path.is_some() {
            fields["reason"] = "first".into();
            output.event("path", fields, String::new);
        }
        let attempts = Arc::new(Mutex::new(Attempts {
            connection: connection.clone(),
            output,
            printed: 0,
            silent: false,
            told: Vec::new(),
        }));
        let is_direct = |path: &Path| path.kind == PathKind::Direct;
        let (printed, direct) = watch::channel(path.as_ref().is_some_and(is_direct));
        let watched = Arc::clone(&attempts);
        let task = tokio::spawn(async move {
            lock(&watched).print();
            let hold = tokio::time::sleep(HOLD);
            tokio::pin!(hold);
            let mut held = true;
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = &mut hold, if held => {
                        held = false;
                        lock(&watched).tell();
                        continue;
                    }
                };
                let Some(event) = event else { return };
                match &event {
                    PathEvent::Changed { path, at, .. } => {
                        let text = describe(&path_fields(Some(path)));
                        let ms = millis(*at);
                        output.event("path", json!(event), || format!("{text} after {ms:.0} ms"));
                        if is_direct(path) {
                            printed.send_replace(true);
                        }
                    }
                    PathEvent::Lost { at, .. } => {
                        let ms = millis(*at);
                        output.event("lost", json!(event), || format!("no path after {ms:.0} ms"));
                    }
                    PathEvent::Attempt(_) => {
                        lock(&watched).print();
                        if !held {
                            lock(&watched).tell();
                        }
                    }
                    PathEvent::Closed { kind, .. } => {
                        output.event("closed", json!(event), || format!("closed ({kind})"));
                    }
                    _ => {}
                }
            }
        });
        Self {
            attempts,
            direct,
            task,
        }
    }

    /// Waits until the direct path that is there has been printed.
    pub(crate) async fn direct(&self) {
        let mut direct = self.direct.clone();
        // The path may be gone before its event.
        let _ = timeout(PRINTED, direct.wait_for(|printed| *printed)).await;
    }

    /// Tells people nothing more, because an error lists the attempts.
    pub(crate) fn leave_to_error(&self) {
        lock(&self.attempts).silent = true;
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.attempts).tell();
    }
}

/// The attempts of a connection, as far as they are printed.
struct Attempts {
    connection: Connection,
    output: Output,
    /// How many are events already.
    printed: usize,
    silent: bool,
    /// What people know already.
    told: Vec<(Strategy, Option<Cause>)>,
}

/// What is printed is only counted, so a panic elsewhere leaves the state whole.
fn lock(attempts: &Mutex<Attempts>) -> MutexGuard<'_, Attempts> {
    attempts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attempts {
    /// Prints the attempts that are no events yet. It reads them from the connection and not from
    /// an event, so that attempts from before the subscription are there, too.
    fn print(&mut self) {
        let attempts = self.connection.attempts();
        for attempt in attempts.iter().skip(self.printed) {
            let mut fields = json!(attempt);
            fields["ms"] = millis(attempt.ended).into();
            self.output.event("attempt", fields, String::new);
        }
        self.printed = attempts.len();
    }

    /// Tells people why the path is not direct, once for each reason.
    fn tell(&mut self) {
        let path = self.connection.path();
        let silent = self.silent || self.output.is_json();
        if silent || path.is_none_or(|path| path.kind == PathKind::Direct) {
            return;
        }
        let attempts = self.connection.attempts();
        let better =
            |a: &&Attempt| a.outcome == Outcome::Failed && a.strategy != Strategy::CircuitRelay;
        for attempt in attempts.iter().filter(better) {
            let way = attempts::way(attempt);
            if !self.told.contains(&way) {
                self.told.push(way);
                let line = attempts::line(attempt, 1);
                self.output
                    .event("attempt", Value::Null, || format!("not directly by {line}"));
            }
        }
    }
}

/// Returns the fields of `path` as every event has them. `path` is null if there is no path.
pub(crate) fn path_fields(path: Option<&Path>) -> Value {
    match path {
        Some(path) => json!(path),
        None => json!({ "path": null }),
    }
}

/// Describes a path for people.
pub(crate) fn describe(fields: &Value) -> String {
    match (fields["path"].as_str(), fields["strategy"].as_str()) {
        // A strategy of the same name says nothing more.
        (Some("direct"), Some("direct")) => String::from("directly"),
        (Some("direct"), Some(strategy)) => format!("directly ({strategy})"),
        (Some("turn"), _) => String::from("through a TURN server"),
        (Some(_), _) => String::from("through a relay"),
        (None, _) => String::from("without a path"),
    }
}
