//! Programs that report one JSON object per line, such as `throughline --json`.

use std::{
    collections::VecDeque,
    fmt, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::error::{Context, LabError, Result};

/// How many events and lines of standard error are kept for error messages.
const LOG_LINES: usize = 60;

/// The variable that makes the output of programs appear on our standard error too.
const ECHO_LOG: &str = "LAB_LOG";

/// A running program. Dropping this value kills the program.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    events: mpsc::Receiver<Value>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Program {
    /// Starts `command` with its streams connected to this handle. Errors show `name`.
    ///
    /// # Errors
    /// [`LabError::Io`] if the program cannot be started.
    pub fn start(name: impl Into<String>, mut command: Command) -> Result<Self> {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(format!(
                "start {name} ({})",
                command.get_program().display()
            ))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, events) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            let (log, name) = (Arc::clone(&log), name.clone());
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    match serde_json::from_str::<Value>(&line) {
                        Ok(event) if event.is_object() => {
                            keep(&log, &name, line);
                            if sender.send(event).is_err() {
                                return;
                            }
                        }
                        _ => keep(&log, &name, format!("not JSON on stdout: {line}")),
                    }
                }
            });
        }
        if let Some(stderr) = child.stderr.take() {
            let (log, name) = (Arc::clone(&log), name.clone());
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    keep(&log, &name, line);
                }
            });
        }
        let stdin = child.stdin.take();
        Ok(Self {
            name,
            child,
            stdin,
            events,
            log,
        })
    }

    /// Waits for the next event. Returns `None` if none came by `deadline`, or the program ended.
    pub fn next(&self, deadline: Instant) -> Option<Value> {
        self.events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .ok()
    }

    /// Waits for an event of this name, and drops those before it.
    ///
    /// # Errors
    /// [`LabError::Program`] if the program reports an error or ends, [`LabError::Timeout`].
    pub fn wait(&self, event: &str, within: Duration) -> Result<Value> {
        self.wait_for(within, event, |value| value["event"] == event)
    }

    /// Waits for an event that is `wanted`, and drops those before it. Errors call the event
    /// `what`.
    ///
    /// # Errors
    /// The errors of [`wait`](Self::wait).
    pub fn wait_for(
        &self,
        within: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + within;
        loop {
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(value) if wanted(&value) => return Ok(value),
                Ok(value) if value["event"] == "error" => {
                    return Err(LabError::Program(format!(
                        "{} says {value}\n{}",
                        self.name,
                        self.log()
                    )));
                }
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(LabError::Timeout {
                        what: format!("{what} from {}", self.name),
                        after: within,
                        log: self.log(),
                    });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(LabError::Program(format!(
                        "{} ended before {what}:\n{}",
                        self.name,
                        self.log()
                    )));
                }
            }
        }
    }

    /// Returns the least memory that the program holds during the time `within`, in KiB. Memory
    /// that is about to be released does not count.
    ///
    /// # Errors
    /// [`LabError::Io`] if the program has ended.
    pub fn resident_kib(&self, within: Duration) -> Result<f64> {
        let (start, mut least) = (Instant::now(), f64::INFINITY);
        while start.elapsed() < within {
            let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
                .context(format!("read what {} holds", self.name))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = resident.and_then(|text| text.trim().strip_suffix(" kB"));
            let kib = kib.and_then(|text| text.parse().ok());
            least = least.min(kib.ok_or_else(|| {
                LabError::Program(format!("{} has no memory: it ended", self.name))
            })?);
            // This is a measurement. No event says that memory is released.
            thread::sleep(Duration::from_millis(100));
        }
        Ok(least)
    }

    /// Writes one JSON line to the program's standard input.
    ///
    /// # Errors
    /// [`LabError::Io`] if the program has closed it.
    pub fn send(&mut self, value: &Value) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        writeln!(stdin, "{value}")
            .and_then(|()| stdin.flush())
            .context(format!("write to {}", self.name))
    }

    /// Ends the program without a chance to say anything.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last events and lines of standard error.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

fn keep(log: &Mutex<VecDeque<String>>, name: &str, line: String) {
    if std::env::var_os(ECHO_LOG).is_some() {
        eprintln!("[{name}] {line}");
    }
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() == LOG_LINES {
        log.pop_front();
    }
    log.push_back(line);
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("id", &self.child.id())
            .finish_non_exhaustive()
    }
}
