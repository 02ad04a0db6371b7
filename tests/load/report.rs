//! The table of results.

use std::{
    fmt::{self, Write as _},
    fs,
    process::Command,
    time::Duration,
};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// This form takes about a minute, and is part of every run of the tests.
    Short,
    /// This form takes about a quarter of an hour, and its figures are published.
    Long,
    /// This is the long form, with connections that come and go for an hour.
    Hour,
}

impl Form {
    pub(crate) fn pick<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long | Self::Hour => long,
        }
    }
}

/// Stands for a scenario without a promise, or without a further aim.
pub(crate) const NONE: &str = "-";

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) promised: &'static str,
    pub(crate) aim: &'static str,
    pub(crate) measured: String,
    /// Whether the promise holds. If not, the test fails.
    pub(crate) kept: bool,
    /// Whether the aim is reached. If not, the table says so.
    pub(crate) reached: bool,
    /// The known reason of a broken promise. It is shown, and the test does not fail.
    pub(crate) known: Option<&'static str>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.kept, self.reached, self.known) {
            (false, _, Some(why)) => &format!("BROKEN, known: {why}"),
            (false, _, None) => "BROKEN",
            (true, ..) if self.aim == NONE => "kept",
            (true, false, _) => "kept, aim missed",
            (true, true, _) => "aim reached",
        };
        write!(
            f,
            "| {} | {} | {} | {} | {verdict} |",
            self.scenario, self.promised, self.aim, self.measured
        )
    }
}

/// The whole run.
pub(crate) struct Report {
    form: Form,
    load: String,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn begin(form: Form) -> Self {
        Self {
            form,
            load: load(),
            rows: Vec::new(),
        }
    }

    /// Returns the table, with what is needed to judge it.
    pub(crate) fn end(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let build = if cfg!(debug_assertions) {
            "development build"
        } else {
            "release build"
        };
        let mut text = format!(
            "# Load and faults\n\n\
             Measured on {} by `make load`, {} form, {build}, everything on loopback on one machine of {cores} cores; \
             load averages {} before, {} after. Other work of the machine is part of the figures.\n\n\
             Peers and relay share one process, so both ends and the relay use the same cores. Two things are measured \
             on separate processes: the cold start, and what connections hold. All circuits end as direct paths. Faults \
             that need a network are tested in tests/lab/tests/faults.rs, the others in tests/faults and \
             tests/hostile.\n\n\
             | scenario | promised | aimed at | measured | |\n| --- | --- | --- | --- | --- |\n",
            today(),
            self.form.pick("short", "long"),
            self.load,
            load(),
        );
        for row in &self.rows {
            let _ = writeln!(text, "{row}");
        }
        text
    }
}

fn today() -> String {
    let output = Command::new("date").args(["-u", "+%F"]).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Times in ascending order.
#[derive(Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "nothing was measured");
        times.sort();
        Self(times)
    }

    /// Returns the time that `percent` of the times do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent).div_ceil(100).max(1) - 1]
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    pub(crate) fn worst(&self) -> Duration {
        self.percentile(100)
    }
}

/// Formats a time in milliseconds, for people.
pub(crate) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}
