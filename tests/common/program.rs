//! The `throughline` program as scripts drive it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Instant,
};

use serde_json::Value;

use super::PATIENCE;

/// A running `throughline --json`. Dropping this value kills the program.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Value>,
}

pub(crate) fn throughline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    command.args(arguments).env_remove("RUST_LOG");
    let is_peer = |command: &&str| {
        ["listen", "connect", "ping", "netcheck", "forward", "pipe"].contains(command)
    };
    if arguments.first().is_some_and(is_peer) {
        // Tests ask no router for a mapping.
        command.arg("--no-port-mapping");
    }
    command
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(throughline(arguments).arg("--json"))
    }

    /// Starts a command that prints as the program does with `--json`.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let (mut program, stdout) = Self::unread(command);
        program.read(stdout);
        program
    }

    /// Starts a program with other streams than pipes.
    pub(crate) fn with_streams(command: &mut Command, stdin: Stdio, stderr: Stdio) -> Self {
        let command = command.stdin(stdin).stderr(stderr);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = channel().1;
        let mut program = Self { child, lines };
        program.read(stdout);
        program
    }

    /// Starts a program whose stdout nobody reads yet.
    pub(crate) fn unread(command: &mut Command) -> (Self, BufReader<ChildStdout>) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = channel().1;
        (Self { child, lines }, stdout)
    }

    /// Reads events from `stdout` from now on.
    pub(crate) fn read(&mut self, stdout: BufReader<ChildStdout>) {
        let (sender, lines) = channel();
        self.lines = lines;
        thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("no JSON on stdout: {line}: {error}"));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
    }

    /// Returns the next event with this name, and skips those before it.
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

    /// Returns the events up to the end of the output, and how the program ended. A program that
    /// does not end is killed.
    pub(crate) fn finish(mut self) -> (Vec<Value>, ExitStatus) {
        drop(self.child.stdin.take());
        let Err(events) = self.find(|_| false) else {
            unreachable!("nothing is picked");
        };
        let id = self.id();
        let (ended, deadline) = channel::<()>();
        thread::spawn(move || {
            if deadline.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                signal("-KILL", id);
            }
        });
        let status = self.child.wait().unwrap();
        drop(ended);
        (events, status)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.id());
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Returns the stderr of a program that was started with a pipe there.
    pub(crate) fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().unwrap()
    }
}

fn signal(name: &str, id: u32) {
    let mut kill = Command::new("kill");
    let killed = kill.args([name, &id.to_string()]).status().unwrap();
    assert!(killed.success());
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
