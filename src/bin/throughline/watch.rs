//! Follows the paths of a connection and prints its events.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::{Value, json};
use throughline::{Connection, Error, ErrorKind, Path, PathEvent, PathKind};
use tokio::{sync::watch, task::JoinHandle};

use crate::output::{Output, millis};

/// Prints the events of one connection until it is dropped.
pub(crate) struct PathWatch {
    kind: watch::Receiver<Option<PathKind>>,
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
        let (kind, receiver) = watch::channel(path.map(|path| path.kind));
        let connection = connection.clone();
        let task = tokio::spawn(async move {
            let mut printed = print_attempts(&connection, 0, output);
            while let Some(event) = events.next().await {
                match &event {
                    PathEvent::Changed { path, at, .. } => {
                        let text = describe(&path_fields(Some(path)));
                        let ms = millis(*at);
                        output.event("path", json!(event), || format!("{text} after {ms:.0} ms"));
                        kind.send_replace(Some(path.kind));
                    }
                    PathEvent::Lost { at, .. } => {
                        let ms = millis(*at);
                        output.event("lost", json!(event), || format!("no path after {ms:.0} ms"));
                        kind.send_replace(None);
                    }
                    PathEvent::Attempt(_) => {
                        printed = print_attempts(&connection, printed, output);
                    }
                    PathEvent::Closed { kind, .. } => {
                        output.event("closed", json!(event), || format!("closed ({kind})"));
                    }
                    _ => {}
                }
            }
        });
        Self {
            kind: receiver,
            task,
        }
    }

    /// Waits until the path is direct.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if it is not direct `within` that time, and
    /// [`ErrorKind::ConnectionClosed`] if the connection ends before.
    pub(crate) async fn direct(&mut self, within: Duration) -> Result<(), Error> {
        let direct = self.kind.wait_for(|kind| *kind == Some(PathKind::Direct));
        match tokio::time::timeout(within, direct).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::new(
                ErrorKind::ConnectionClosed,
                "--wait-direct: the connection ended before there was a direct path",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "--wait-direct: no direct path within {} s",
                    within.as_secs_f64()
                ),
            )),
        }
    }

    /// Returns the kind of the present path.
    pub(crate) fn kind(&self) -> Option<PathKind> {
        *self.kind.borrow()
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Prints the attempts after the first `printed`, and returns how many there are now. It reads them
/// from the connection and not from the event, so that attempts from before the subscription are
/// there, too.
fn print_attempts(connection: &Connection, printed: usize, output: Output) -> usize {
    let attempts = connection.attempts();
    for attempt in attempts.iter().skip(printed) {
        let mut fields = json!(attempt);
        fields["ms"] = millis(attempt.ended).into();
        output.event("attempt", fields, String::new);
    }
    attempts.len()
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
        (Some("direct"), Some(strategy)) => format!("directly ({strategy})"),
        (Some("turn"), _) => String::from("through a TURN server"),
        (Some(_), _) => String::from("through a relay"),
        (None, _) => String::from("without a path"),
    }
}
