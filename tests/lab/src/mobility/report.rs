//! Costs as text, for a terminal and as Markdown.

use std::fmt::Write;

use super::{Cost, Mobility};

impl Cost {
    /// The heading of [`line`](Self::line).
    pub fn heading() -> String {
        format!(
            "{:<15} {:<66} {:>9} {:>10} {:<8} {:>5}",
            "pairing", "change", "stall ms", "direct ms", "path", "moves"
        )
    }

    /// Returns one line for a terminal. It is red if the change cost more than it may.
    pub fn line(&self, colours: bool) -> String {
        let (colour, reset) = match (colours, self.faults.is_empty()) {
            (false, _) => ("", ""),
            (true, true) => ("\x1b[32m", "\x1b[0m"),
            (true, false) => ("\x1b[31m", "\x1b[0m"),
        };
        let mut line = format!(
            "{:<15} {:<66} {colour}{:>9.0} {:>10} {:<8} {:>5}{reset}",
            self.peers(),
            self.title(),
            self.stall_ms,
            self.direct(),
            self.path.as_deref().unwrap_or("none"),
            self.moves,
        );
        for fault in &self.faults {
            line += &format!(" {}", fault.lines().next().unwrap_or_default());
        }
        line
    }

    fn peers(&self) -> String {
        match self.iroh {
            true => "iroh".to_owned(),
            false => format!("{}/{}", self.dialler, self.listener),
        }
    }

    fn title(&self) -> String {
        match self.seed {
            Some(seed) => format!("{}, seed {seed}", self.name),
            None => self.name.clone(),
        }
    }

    fn direct(&self) -> String {
        self.direct_ms
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"))
    }
}

impl Mobility {
    /// Returns all costs as a table.
    pub fn markdown(&self) -> String {
        let mut text = "# Mobility\n\n\
            | peers | change | longest stall, ms | direct again after, ms | path in the end | changes of the path | hashes | faults |\n\
            | --- | --- | ---: | ---: | --- | ---: | --- | --- |\n"
            .to_owned();
        for cost in &self.rows {
            let faults: Vec<_> = cost
                .faults
                .iter()
                .filter_map(|fault| fault.lines().next())
                .collect();
            let hashes = cost.sha256.as_ref().map_or("", |_| "equal");
            let _ = writeln!(
                text,
                "| {} | {} | {:.0} | {} | {} | {} | {hashes} | {} |",
                cost.peers(),
                cost.title(),
                cost.stall_ms,
                cost.direct(),
                cost.path.as_deref().unwrap_or("none"),
                cost.moves,
                faults.join(", "),
            );
        }
        text.push_str(
            "\nA stall is the longest time without a byte that could have come. `-` says that the path was never \
             another one, or is not direct in the end.\n",
        );
        text
    }
}
