//! The progress of a file: a line for people, which is redrawn ten times a second at most, and events for
//! scripts, of which there are two a second at most.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use serde_json::json;

use crate::{output::Output, printer::Printer};

/// How often the line is redrawn, in a second.
const REDRAWS: u8 = 10;
/// The pause between two events.
const PAUSE: Duration = Duration::from_millis(500);
/// The rate, the time left and the name, which gets what is left of the line.
const LINE: &str =
    "{percent:>3} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left  {wide_msg}";

/// The progress of one file. Dropping it removes the line.
pub(crate) struct Progress {
    output: Output,
    bar: ProgressBar,
    name: String,
    told: Option<Instant>,
}

impl Progress {
    /// Begins to show a file of `size` bytes.
    pub(crate) fn start(output: Output, name: &str, size: u64) -> Self {
        let target = match output.progress_printer() {
            Some(printer) => {
                let line = Line {
                    printer,
                    text: Mutex::default(),
                };
                ProgressDrawTarget::term_like_with_hz(Box::new(line), REDRAWS)
            }
            None => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(size), target);
        // The template is a constant, and a test parses it.
        if let Ok(style) = ProgressStyle::with_template(LINE) {
            bar.set_style(style);
        }
        let name = name.to_owned();
        bar.set_message(name.clone());
        Self {
            output,
            bar,
            name,
            told: None,
        }
    }

    /// So many bytes are there.
    pub(crate) fn at(&mut self, done: u64) {
        // What was there before the transfer is no part of its rate.
        self.bar.set_position(done);
        if self.told.is_none() {
            self.bar.reset_eta();
        }
        if self.told.is_none_or(|told| told.elapsed() >= PAUSE) {
            self.told = Some(Instant::now());
            if self.output.is_json() {
                let fields = json!({
                    "name": self.name,
                    "done": done,
                    "size": self.bar.length(),
                    "bytes_s": self.bar.per_sec().round(),
                    "seconds_left": self.bar.eta().as_secs_f64().round(),
                });
                self.output.event("progress", fields, String::new);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The line of a terminal, which nobody waits for. What the bar draws is collected until it is whole.
#[derive(Debug)]
struct Line {
    printer: &'static Printer,
    text: Mutex<String>,
}

impl Line {
    fn add(&self, text: &str) -> io::Result<()> {
        let mut line = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        line.push_str(text);
        Ok(())
    }

    /// Moves the cursor so many times in one direction (ECMA-48 section 8.3.18 and on).
    fn steer(&self, times: usize, direction: char) -> io::Result<()> {
        match times {
            0 => Ok(()),
            times => self.add(&format!("\x1b[{times}{direction}")),
        }
    }
}

impl TermLike for Line {
    fn width(&self) -> u16 {
        // The line is short enough for the smallest terminal, and asking would need the terminal.
        let columns = std::env::var("COLUMNS").ok();
        columns
            .and_then(|columns| columns.parse().ok())
            .unwrap_or(79)
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.steer(lines, 'A')
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.steer(lines, 'B')
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.steer(columns, 'C')
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.steer(columns, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)?;
        self.add("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\x1b[K")
    }

    fn flush(&self) -> io::Result<()> {
        let mut line = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = std::mem::take(&mut *line);
        if !text.is_empty() {
            self.printer.glimpse(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_a_template() {
        ProgressStyle::with_template(LINE).unwrap();
    }
}
