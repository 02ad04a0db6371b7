//! One attempt of two peers to connect, and its result, read from the events that they print.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::theory::Theory;

/// The result of one `connect`. Times count from the call to `connect`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Whether a byte was echoed.
    pub connected: bool,
    /// The last path in use: `direct`, `relayed` or `turn`.
    pub path: Option<String>,
    /// The strategy that found that path.
    pub strategy: Option<String>,
    /// The time until `connect` returned, in milliseconds.
    pub connected_ms: Option<f64>,
    /// The time until the first byte was echoed, in milliseconds.
    pub first_byte_ms: Option<f64>,
    /// The time until the first direct path carried the connection, in milliseconds.
    pub direct_ms: Option<f64>,
    /// Whether the dialler's link to the relay was up before it called `connect`.
    #[serde(default)]
    pub warm: bool,
    /// The error, if there was one.
    pub error: Option<String>,
    /// Every attempt, as the dialler reports it.
    #[serde(default)]
    pub attempts: Vec<Value>,
}

impl Run {
    /// Reads the events of the dialling side in order. They have the format of the program's
    /// `--json`.
    pub fn from_events(events: &[Value]) -> Self {
        let mut run = Self::default();
        for event in events {
            let ms = event["ms"].as_f64();
            let text = |field: &str| event[field].as_str().map(str::to_owned);
            match event["event"].as_str() {
                Some("connected") => run.connected_ms = ms,
                Some("first_byte") => {
                    run.connected = true;
                    run.first_byte_ms = ms;
                }
                Some("attempt") => run.attempts.push(event.clone()),
                // The peers connected, but not directly within the wait. That is a result, not a
                // failure.
                Some("error") if run.connected && event["code"] == "timeout" => {}
                Some("error") => {
                    run.error = Some(format!(
                        "{}: {}",
                        text("code").unwrap_or_default(),
                        text("message").unwrap_or_default()
                    ));
                }
                _ => {}
            }
            if matches!(
                event["event"].as_str(),
                Some("connected" | "path" | "final")
            ) && let Some(path) = text("path")
            {
                if path == "direct" && run.direct_ms.is_none() {
                    run.direct_ms = ms;
                }
                run.path = Some(path);
                run.strategy = text("strategy").or(run.strategy);
            }
        }
        run
    }

    /// Returns a run that failed before it dialled.
    pub fn failed(error: impl ToString) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::default()
        }
    }

    /// Returns why the run is not better: the error, or the reason of the last attempt that failed.
    pub fn reason(&self) -> Option<String> {
        let failed = self
            .attempts
            .iter()
            .rev()
            .find(|attempt| attempt["outcome"] == "failed");
        let reason = failed.map(|attempt| {
            let text = |field: &str| attempt[field].as_str().unwrap_or("?").to_owned();
            format!("{}: {}", text("strategy"), text("reason"))
        });
        self.error.clone().or(reason)
    }

    /// Compares the run with what theory allows.
    pub fn verdict(&self, theory: Theory) -> Verdict {
        match (self.connected, self.path.as_deref(), theory) {
            (false, ..) => Verdict::Dead,
            (true, Some("direct"), _) | (true, _, Theory::Relay) => Verdict::AsTheory,
            (true, _, Theory::Guess) => Verdict::Unguessed,
            (true, _, Theory::Direct) => Verdict::Worse,
        }
    }
}

/// A result beside its theory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As good as theory allows, or better.
    AsTheory,
    /// Relayed, although guessing ports might have made it direct.
    Unguessed,
    /// Relayed, although it could have been direct.
    Worse,
    /// Not connected at all.
    Dead,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::AsTheory => "as theory",
            Self::Unguessed => "not guessed",
            Self::Worse => "WORSE",
            Self::Dead => "DEAD",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_events_of_an_upgrade_make_one_run() {
        let run = Run::from_events(&[
            json!({"event":"connected","path":"relayed","strategy":"circuit_relay","ms":210}),
            json!({"event":"first_byte","ms":262.5}),
            json!({"event":"attempt","strategy":"upnp","outcome":"failed","ms":300,"reason":"no gateway"}),
            json!({"event":"path","path":"direct","strategy":"stun","ms":420}),
        ]);
        let expected = Run {
            connected: true,
            path: Some("direct".into()),
            strategy: Some("stun".into()),
            connected_ms: Some(210.0),
            first_byte_ms: Some(262.5),
            direct_ms: Some(420.0),
            warm: false,
            error: None,
            attempts: run.attempts.clone(),
        };
        assert_eq!(run, expected);
        assert_eq!(run.reason().unwrap(), "upnp: no gateway");
        assert_eq!(run.verdict(Theory::Relay), Verdict::AsTheory);
    }

    #[test]
    fn falling_back_counts_as_relayed() {
        let run = Run::from_events(&[
            json!({"event":"connected","path":"direct","strategy":"direct","ms":90}),
            json!({"event":"first_byte","ms":95}),
            json!({"event":"path","path":"relayed","strategy":"circuit_relay","ms":4_000}),
        ]);
        assert_eq!(run.verdict(Theory::Direct), Verdict::Worse);
        assert_eq!(run.verdict(Theory::Guess), Verdict::Unguessed);
        assert_eq!(run.direct_ms, Some(90.0));
    }

    #[test]
    fn an_error_before_the_first_byte_is_no_connection() {
        let run = Run::from_events(&[
            json!({"event":"error","code":"unreachable","message":"nothing worked"}),
        ]);
        assert_eq!(run.verdict(Theory::Relay), Verdict::Dead);
        assert_eq!(run.error.unwrap(), "unreachable: nothing worked");
    }
}
