//! Chromium on hosts of the lab. One Node process drives the browsers and keeps them running across
//! cases.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    available,
    error::{LabError, Result},
    lab::Lab,
    program::Program,
};

const LAUNCH_WITHIN: Duration = Duration::from_secs(30);
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// The driver process with its browsers. Dropping it ends them.
#[derive(Debug)]
pub struct Browsers {
    driver: Program,
    next: u64,
}

impl Browsers {
    /// Checks whether browsers can be driven here. `repository` is the root of the project's clone.
    ///
    /// # Errors
    /// A text that names what is missing, and the command that installs it.
    pub fn available(repository: &Path) -> Result<(), String> {
        available::check(available::BROWSER)?;
        for (path, command) in [
            (
                playwright(repository).join("node_modules/playwright-core"),
                "npm --prefix tests/browser ci",
            ),
            (repository.join("js/dist/index.js"), "make wasm"),
        ] {
            if !path.exists() {
                return Err(format!(
                    "browsers in the lab need {} ({command})",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// Starts the driver.
    ///
    /// # Errors
    /// [`LabError::Missing`], or [`LabError::Io`] if Node does not start.
    pub fn start(repository: &Path) -> Result<Self> {
        Self::available(repository).map_err(LabError::Missing)?;
        let mut command = Command::new("node");
        command
            .arg(repository.join("tests/lab/driver/driver.mjs"))
            .arg(playwright(repository));
        Ok(Self {
            driver: Program::start("the browser driver", command)?,
            next: 0,
        })
    }

    /// Launches Chromium on each of `hosts` at the same time, and loads the npm package there. The
    /// server at the host's URL serves the package under `/npm/`.
    ///
    /// # Errors
    /// [`LabError::Program`] with the output of the browser.
    pub fn launch(&mut self, lab: &Lab, hosts: &[(&str, String)]) -> Result<()> {
        let mut calls = Vec::new();
        for (host, http) in hosts {
            let executable: PathBuf = lab
                .host(host)?
                .wrapper(lab.directory(), "/usr/bin/chromium")?;
            let launch =
                json!({ "op": "launch", "browser": host, "executable": executable, "http": http });
            calls.push((self.ask(launch)?, *host));
        }
        // Replies come in any order. An error among them ends the wait.
        let deadline = Instant::now() + LAUNCH_WITHIN;
        while !calls.is_empty() {
            let (id, reply) = self
                .reply(deadline)
                .ok_or_else(|| self.silence("launch", LAUNCH_WITHIN))?;
            if let Some(at) = calls.iter().position(|call| call.0 == id) {
                let (_, host) = calls.swap_remove(at);
                self.result(&format!("launch on {host}"), &reply)?;
            }
        }
        Ok(())
    }

    /// Starts an echoing peer in the page. The reply has a `ticket`.
    ///
    /// # Errors
    /// [`LabError::Program`] with the page's error, [`LabError::Timeout`].
    pub fn listen(&mut self, host: &str, options: &Value, within: Duration) -> Result<Value> {
        self.call(
            json!({ "op": "listen", "browser": host, "options": options }),
            within,
        )
    }

    /// Connects from the page `rest` after its peer is there, and returns the events, in the form that the
    /// `throughline` program prints.
    ///
    /// # Errors
    /// [`LabError::Timeout`], or [`LabError::Program`] if the page itself fails.
    pub fn connect(
        &mut self,
        host: &str,
        options: &Value,
        ticket: &str,
        wait_direct: Duration,
        rest: Duration,
    ) -> Result<Vec<Value>> {
        let reply = self.call(
            json!({ "op": "connect", "browser": host, "options": options, "ticket": ticket, "waitDirectMs": wait_direct.as_millis() as u64, "restMs": rest.as_millis() as u64 }),
            wait_direct + Duration::from_secs(40),
        )?;
        Ok(reply["events"].as_array().cloned().unwrap_or_default())
    }

    /// Connects from the page, and lets it echo eight bytes again and again. What happens is told as
    /// [events](Self::event), in the form that the `throughline` program prints.
    ///
    /// # Errors
    /// [`LabError::Io`] if the driver has ended.
    pub(crate) fn converse(&mut self, host: &str, options: &Value, ticket: &str) -> Result<()> {
        let converse =
            json!({ "op": "converse", "browser": host, "options": options, "ticket": ticket });
        self.ask(converse).map(drop)
    }

    /// Returns the next event of a page.
    pub(crate) fn event(&self, deadline: Instant) -> Option<Value> {
        self.driver.next(deadline)
    }

    /// Connects from the page, waits for a direct path and sends a file. The reply has both hashes.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    pub fn send_file(
        &mut self,
        host: &str,
        options: &Value,
        ticket: &str,
        bytes: u64,
        within: Duration,
    ) -> Result<Value> {
        let send = json!({ "op": "send", "browser": host, "options": options, "ticket": ticket, "bytes": bytes, "waitDirectMs": 15_000 });
        self.call(send, within)
    }

    /// Closes the peer in the page. The browser goes on.
    ///
    /// # Errors
    /// The errors of [`listen`](Self::listen).
    pub fn close(&mut self, host: &str) -> Result<()> {
        self.call(json!({ "op": "close", "browser": host }), CLOSE_WITHIN)
            .map(drop)
    }

    /// The last output of the driver and the pages.
    pub fn log(&self) -> String {
        self.driver.log()
    }

    fn call(&mut self, command: Value, within: Duration) -> Result<Value> {
        let what = format!("{} in browser {}", command["op"], command["browser"]);
        let asked = self.ask(command)?;
        let deadline = Instant::now() + within;
        loop {
            match self.reply(deadline) {
                Some((id, reply)) if id == asked => return self.result(&what, &reply),
                // This is the late answer to an earlier call that was given up.
                Some(_) => {}
                None => return Err(self.silence(&what, within)),
            }
        }
    }

    fn ask(&mut self, mut command: Value) -> Result<u64> {
        self.next += 1;
        command["id"] = self.next.into();
        self.driver.send(&command)?;
        Ok(self.next)
    }

    fn reply(&self, deadline: Instant) -> Option<(u64, Value)> {
        let reply = self.driver.next(deadline)?;
        Some((reply["id"].as_u64().unwrap_or_default(), reply))
    }

    fn result(&self, what: &str, reply: &Value) -> Result<Value> {
        match reply.get("error") {
            Some(error) => Err(LabError::Program(format!(
                "{what}: {error}\n{}",
                self.log()
            ))),
            None => Ok(reply["result"].clone()),
        }
    }

    fn silence(&self, what: &str, after: Duration) -> LabError {
        LabError::Timeout {
            what: what.to_owned(),
            after,
            log: self.log(),
        }
    }
}

fn playwright(repository: &Path) -> PathBuf {
    repository.join("tests/browser")
}
