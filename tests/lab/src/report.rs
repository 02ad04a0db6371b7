//! A matrix as text, for a terminal and as Markdown.

use std::fmt::Write;

use crate::{
    matrix::{Cell, Matrix, Times},
    run::{Run, Verdict},
};

impl Cell {
    /// Returns one line for a terminal. It is red if the cell is worse than theory, and yellow if
    /// runs differ.
    pub fn line(&self, colours: bool) -> String {
        let colour = match self.verdict {
            _ if !colours => "",
            Verdict::AsTheory if self.flaky => "\x1b[33m",
            Verdict::AsTheory => "\x1b[32m",
            _ => "\x1b[31m",
        };
        let reset = if colours { "\x1b[0m" } else { "" };
        let mut line = format!(
            "{:>7}/{:<7} {:<28} {:<28} {:<24} {colour}{:<24} {:<11}{reset} {:>11} {:>11}",
            self.dialler,
            self.listener,
            self.a,
            self.b,
            self.theory.to_string(),
            self.result(),
            self.verdict.to_string(),
            times(self.first_byte_ms),
            times(self.direct_ms),
        );
        if self.flaky {
            line += &format!(" {colour}FLAKY{reset}");
        }
        if let Some(error) = self
            .worst_run()
            .and_then(Run::reason)
            .filter(|_| self.verdict != Verdict::AsTheory)
        {
            line += &format!(" {}", error.lines().next().unwrap_or_default());
        }
        line
    }

    /// Returns the path and the strategy of the run that decided.
    fn result(&self) -> String {
        let Some(run) = self.worst_run() else {
            return String::new();
        };
        match (&run.path, &run.strategy) {
            _ if !run.connected => "not connected".into(),
            (Some(path), Some(strategy)) => format!("{path} ({strategy})"),
            (Some(path), None) => path.clone(),
            _ => "connected".into(),
        }
    }
}

fn times(times: Option<Times>) -> String {
    match times {
        None => "-".into(),
        Some(Times { median, worst }) if median == worst => format!("{median:.0}"),
        Some(Times { median, worst }) => format!("{median:.0} ({worst:.0})"),
    }
}

impl Matrix {
    /// The heading of [`Cell::line`].
    pub fn heading() -> String {
        format!(
            "{:<15} {:<28} {:<28} {:<24} {:<24} {:<11} {:>11} {:>11}",
            "pairing",
            "dialler behind",
            "listener behind",
            "theory",
            "result",
            "verdict",
            "1st byte ms",
            "direct ms"
        )
    }

    /// Returns the line below the cells.
    pub fn summary(&self) -> String {
        let count = |verdict| {
            self.cells
                .iter()
                .filter(|cell| cell.verdict == verdict)
                .count()
        };
        format!(
            "{} cells in {:.0} s: {} as theory, {} relayed although ports could be guessed, {} worse than theory, {} dead, {} flaky; \
             round trips {} ms to the relay, {} ms between peers",
            self.cells.len(),
            self.seconds,
            count(Verdict::AsTheory),
            count(Verdict::Unguessed),
            count(Verdict::Worse),
            count(Verdict::Dead),
            self.cells.iter().filter(|cell| cell.flaky).count(),
            self.relay_round_trip_ms,
            self.peer_round_trip_ms,
        )
    }

    /// Returns a table for each pairing.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Connectivity matrix\n\n{}.\n", self.summary());
        let mut pairing = None;
        for cell in &self.cells {
            if pairing != Some((cell.dialler, cell.listener)) {
                pairing = Some((cell.dialler, cell.listener));
                let _ = write!(
                    text,
                    "\n## {} to {}\n\n| dialler behind | listener behind | theory | result | verdict | first byte ms | direct ms |\n\
                     | --- | --- | --- | --- | --- | ---: | ---: |\n",
                    cell.dialler, cell.listener
                );
            }
            let verdict = match cell.verdict {
                Verdict::AsTheory => "as theory".to_owned(),
                red => format!("🟥 {red}"),
            };
            let flaky = if cell.flaky { ", flaky" } else { "" };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {verdict}{flaky} | {} | {} |",
                cell.a,
                cell.b,
                cell.theory,
                cell.result(),
                times(cell.first_byte_ms),
                times(cell.direct_ms)
            );
        }
        text.push_str("\nTimes are median (worst) in milliseconds from the call to connect.\n");
        text
    }
}
