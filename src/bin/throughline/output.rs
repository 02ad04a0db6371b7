//! Prints the output of the program: JSON lines for scripts, or text for people.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use serde_json::{Value, json};
use throughline::{Error, ErrorKind};

use crate::{
    attempts,
    exit::{self, Caught},
    printer::{OnFailure, Printer},
};

/// Where events, results and the log go. Only what a peer says waits until somebody reads it.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    stdout: &'static Printer,
    stderr: &'static Printer,
}

impl Output {
    /// Starts the threads that print.
    pub(crate) fn start(json: bool) -> Result<Self, Error> {
        let failed = |error| io_error("cannot start threads", error);
        let missing = |lines| format!("lines are missing here, because nobody read them: {lines}");
        let stderr = Printer::new(OnFailure::Skip, missing, None);
        let stderr = stderr.start(|| io::stderr().lock()).map_err(failed)?;
        let dropped = |lines| line("dropped", json!({ "lines": lines }));
        let after = (!json).then_some(stderr);
        let stdout = Printer::new(OnFailure::Stop, dropped, after);
        let stdout = stdout.start(|| io::stdout().lock()).map_err(failed)?;
        Ok(Self {
            json,
            stdout,
            stderr,
        })
    }

    /// Whether stdout belongs to JSON lines.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether stdout shows colours: it is a terminal whose user wants them.
    pub(crate) fn is_coloured(self) -> bool {
        let no_color = std::env::var_os("NO_COLOR");
        !self.json && wants_colours(io::stdout().is_terminal(), no_color.as_deref())
    }

    /// Prints `event` with its `fields` as a JSON line, or `text` on stderr for people: their
    /// stdout belongs to what the peers say.
    pub(crate) fn event(self, event: &str, fields: Value, text: impl FnOnce() -> String) {
        if self.json {
            self.stdout.line(line(event, fields));
            return;
        }
        let text = text();
        if !text.is_empty() {
            self.stderr.line(text);
        }
    }

    /// Prints what a peer says as an event, no faster than it is read. If nobody reads, it may be
    /// lost as any other event.
    pub(crate) async fn message(self, fields: Value, text: impl FnOnce() -> String) {
        if self.json {
            self.stdout.line_when_read(line("message", fields)).await;
        } else {
            self.event("message", fields, text);
        }
    }

    /// Prints the result that a person asked for on stdout.
    pub(crate) fn result(self, event: &str, fields: Value, text: impl FnOnce() -> String) {
        let text = if self.json {
            line(event, fields)
        } else {
            text()
        };
        self.stdout.keep(text);
    }

    /// Prints the bytes of a peer on stdout, as they are and no faster than they are read.
    pub(crate) async fn payload(self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.payload(bytes.to_vec()).await
    }

    /// Ends stdout after the last bytes of a peer. A terminal stays open.
    pub(crate) fn end_payload(self) -> io::Result<()> {
        #[cfg(unix)]
        if !io::stdout().is_terminal() {
            rustix::stdio::dup2_stdout(std::fs::File::create("/dev/null")?)?;
        }
        Ok(())
    }

    /// Returns where the log goes.
    pub(crate) fn log(self) -> &'static Printer {
        self.stderr
    }

    /// Returns where the progress of a long action is shown, if stderr is a terminal.
    pub(crate) fn progress_printer(self) -> Option<&'static Printer> {
        (!self.json && io::stderr().is_terminal()).then_some(self.stderr)
    }

    /// Completes when nobody can read stdout any more, with the reason.
    pub(crate) async fn failed(self) -> Error {
        io_error("stdout", self.stdout.failed().await)
    }

    /// Blocks until everything is printed, or until it is clear that nobody reads.
    ///
    /// # Errors
    /// Returns the failure of stdout.
    pub(crate) fn drain(self) -> Result<(), Error> {
        self.stderr.drain();
        self.stdout.drain();
        match self.stdout.failure() {
            Some(error) => Err(io_error("stdout", error)),
            None => Ok(()),
        }
    }

    /// Prints why the program fails, and gives its exit status. Whoever has pressed Ctrl-C knows why.
    pub(crate) fn fail(self, error: &Error) -> ExitCode {
        let mut fields = json!({
            "code": error.code(),
            "message": error.message(),
            "attempts": error.attempts(),
        });
        if let Some(code) = error.reset_code() {
            fields["reset_code"] = code.0.into();
        }
        if self.json {
            self.stdout.keep(line("error", fields));
        } else if !Caught::is_cause(error) {
            let mut text = format!("error: {}: {}", error.code(), error.message());
            for attempt in attempts::told(error.attempts()) {
                text += &format!("\n  {attempt}");
            }
            self.stderr.keep(text);
        }
        ExitCode::from(exit::status(error))
    }
}

/// Whether the output has colours. One that goes to a file has none, and a terminal has none if the
/// user says so (<https://no-color.org>).
pub(crate) fn wants_colours(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Returns one JSON object with the event's name first.
fn line(event: &str, mut fields: Value) -> String {
    if let Value::Object(fields) = &mut fields {
        fields.remove("event");
    }
    let fields = fields.to_string();
    let rest = fields.strip_prefix('{').unwrap_or("}");
    let comma = if rest == "}" { "" } else { "," };
    format!("{{\"event\":{}{comma}{rest}", Value::from(event))
}

/// Makes an error of this program's own: of a file, a folder or stdin.
pub(crate) fn io_error(what: impl std::fmt::Display, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{what}: {error}")).with_source(error)
}

/// Returns milliseconds with one decimal, as all events have them.
pub(crate) fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// Returns `bytes` with a unit that people read.
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
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(wants_colours(true, None));
        assert!(wants_colours(true, Some(OsStr::new(""))));
        assert!(!wants_colours(true, Some(OsStr::new("1"))));
        assert!(!wants_colours(false, None));
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
