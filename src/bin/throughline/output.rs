//! What the program prints: JSON lines for scripts, or text for people.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use serde_json::{Value, json};
use throughline::{Error, ErrorKind};

/// Where events go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether stdout belongs to JSON lines.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints `event` with its `fields` as a JSON line, or `text` on stderr for people: their
    /// stdout belongs to what the peers say.
    pub(crate) fn event(self, event: &str, fields: Value, text: impl FnOnce() -> String) {
        if !self.json {
            let text = text();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            return;
        }
        print_line(&line(event, fields));
    }

    /// Prints the result that a person asked for on stdout.
    pub(crate) fn result(self, event: &str, fields: Value, text: impl FnOnce() -> String) {
        if self.json {
            self.event(event, fields, String::new);
        } else {
            print_line(&text());
        }
    }

    /// Progress of a long action, on a terminal only.
    pub(crate) fn progress(self, done: u64, size: u64) {
        if !self.json && io::stderr().is_terminal() {
            let percent = (done * 100).checked_div(size).unwrap_or(100);
            eprint!("\r{percent:3} % of {}\x1b[K", human_bytes(size));
            if done == size {
                eprintln!();
            }
        }
    }

    /// Prints why the program fails, and gives its exit status.
    pub(crate) fn fail(self, error: &Error) -> ExitCode {
        let fields = json!({
            "code": error.code(),
            "message": error.message(),
            "attempts": error.attempts(),
        });
        self.event("error", fields, || format!("error: {error}"));
        ExitCode::FAILURE
    }
}

/// One JSON object with the event's name first.
fn line(event: &str, mut fields: Value) -> String {
    if let Value::Object(fields) = &mut fields {
        fields.remove("event");
    }
    let fields = fields.to_string();
    let rest = fields.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    format!("{{\"event\":{}{comma}{rest}", Value::from(event))
}

/// Writes `line` at once. When nobody reads any more there is nobody to tell.
fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    if writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// An error of this program's own: a file, a folder, stdin.
pub(crate) fn io_error(what: impl std::fmt::Display, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{what}: {error}")).with_source(error)
}

/// Milliseconds with one decimal, as all events have them.
pub(crate) fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// `bytes` with a unit that people read.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} bytes")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_event_comes_first() {
        assert_eq!(
            line("a", json!({"event": "b", "x": 1})),
            r#"{"event":"a","x":1}"#
        );
        assert_eq!(line("a", json!({})), r#"{"event":"a"}"#);
        assert_eq!(line("a", Value::Null), r#"{"event":"a"}"#);
    }

    #[test]
    fn sizes_and_times_as_people_and_scripts_read_them() {
        assert_eq!(human_bytes(0), "0 bytes");
        assert_eq!(human_bytes(1023), "1023 bytes");
        assert_eq!(human_bytes(50 << 20), "50.0 MiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(millis(std::time::Duration::from_micros(1260)), 1.3);
    }
}
