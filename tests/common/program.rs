//! The `throughline` program as scripts drive it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Instant,
};

use serde_json::Value;

use super::PATIENCE;

/// A running `throughline --json`. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Value>,
}

pub(crate) fn throughline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    command.args(arguments).env_remove("RUST_LOG");
    let is_peer = |command: &&str| ["listen", "connect", "ping", "netcheck"].contains(command);
    if arguments.first().is_some_and(is_peer) {
        // No router is asked from here.
        command.arg("--no-port-mapping");
    }
    command
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(throughline(arguments).arg("--json"))
    }

    /// Starts what prints as the program does with `--json`.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("no JSON on stdout: {line}: {error}"));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The next event of this name; those before it are skipped.
    pub(crate) fn event(&self, name: &str) -> Value {
        self.find(|event| event["event"] == name)
            .unwrap_or_else(|seen| panic!("no `{name}`, only {seen:#?}"))
    }

    pub(crate) fn find(&self, pick: impl Fn(&Value) -> bool) -> Result<Value, Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(event) if pick(&event) => return Ok(event),
                Ok(event) => seen.push(event),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(seen);
                }
            }
        }
    }

    /// Everything up to the end of the output, and how the program ended.
    pub(crate) fn finish(mut self) -> (Vec<Value>, ExitStatus) {
        drop(self.child.stdin.take());
        let Err(events) = self.find(|_| false) else {
            unreachable!("nothing is picked");
        };
        (events, self.child.wait().unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let killed = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
