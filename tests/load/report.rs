//! The table.

use std::{
    fmt::{self, Write as _},
    fs,
    process::Command,
    time::Duration,
};

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// About a minute, for every run of the tests.
    Short,
    /// About a quarter of an hour, for figures.
    Long,
    /// The same, with connections that come and go for an hour.
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

/// Nothing was promised of a scenario, or nothing more is aimed at.
pub(crate) const NONE: &str = "-";

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) promised: &'static str,
    pub(crate) aim: &'static str,
    pub(crate) measured: String,
    /// The promise holds; otherwise the test fails.
    pub(crate) kept: bool,
    /// The aim is reached; otherwise the table says so.
    pub(crate) reached: bool,
    /// Why a broken promise is no news; it is shown, and fails no test.
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

    /// The table with what is needed to judge it.
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
             load averages {} before, {} after: what else the machine does is in the figures.\n\n\
             Peers and relay share one process, so that the connects of both ends and of the relay are paid for by the \
             same cores; the cold start is of processes, and what connections hold is read from a peer that is a \
             process of its own. All circuits end as direct paths. The faults that need a network are in \
             tests/lab/tests/faults.rs, those that need none in tests/faults and tests/hostile.\n\n\
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

/// Times in order.
#[derive(Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "nothing was measured");
        times.sort();
        Self(times)
    }

    /// The time that `percent` of them do not exceed.
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

/// Milliseconds for people.
pub(crate) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}
