//! A lab with our server, in which native peers and pages connect.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    arena::Iroh,
    browser::Browsers,
    error::{LabError, Result},
    lab::Lab,
    mobility::Link as RelayLink,
    program::Program,
    run::Run,
    scenario::Pairing,
    servers::Serve,
    spec::Spec,
    theory::Peer,
};

/// How long a peer may take to be reachable.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a program may take beyond the wait for a direct path.
const GRACE: Duration = Duration::from_secs(25);

/// How long a page rests until it connects, if the link to its relay is to be warm. A page that was just opened
/// learns of its TURN servers in that time, and asks its STUN servers.
const PAGE_REST: Duration = Duration::from_secs(1);

/// The places of the parts under test.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The `throughline` program.
    pub program: PathBuf,
    /// The root of the project's clone, for the npm package and the browser driver.
    pub repository: PathBuf,
}

impl Parts {
    /// Finds the program that `cargo build` makes, unless `program` or the variable `THROUGHLINE`
    /// names another one.
    ///
    /// # Errors
    /// [`LabError::Missing`] if the program does not exist.
    pub fn find(program: Option<PathBuf>) -> Result<Self> {
        Self::find_built("debug", program)
    }

    /// Finds a program as [`find`](Self::find) does, but the one that `cargo build --release`
    /// makes.
    ///
    /// # Errors
    /// The errors of [`find`](Self::find).
    pub fn find_release(program: Option<PathBuf>) -> Result<Self> {
        Self::find_built("release", program)
    }

    /// The folder in which `cargo build --release` in `benches/peers` puts the peers' programs.
    pub fn peers(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = target.unwrap_or_else(|| "benches/peers/target".into());
        self.repository.join(target).join("release")
    }

    fn find_built(profile: &str, program: Option<PathBuf>) -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let repository = repository.canonicalize().unwrap_or(repository);
        // A relative folder is below the root of the clone, where cargo is called.
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let target = repository.join(target);
        let program = program
            .or_else(|| std::env::var_os("THROUGHLINE").map(PathBuf::from))
            .unwrap_or_else(|| target.join(profile).join("throughline"));
        if !program.is_file() {
            return Err(LabError::Missing(format!(
                "there is no program {} (cargo build --all-features, for figures with --release)",
                program.display()
            )));
        }
        Ok(Self {
            program,
            repository,
        })
    }
}

/// A lab, `throughline serve` on its relay host, and browsers that stay open from case to case.
#[derive(Debug)]
pub struct Stage {
    // Fields drop in this order, so programs end before the lab that they run in.
    browsers: Option<Browsers>,
    parts: Parts,
    launched: HashSet<String>,
    /// Whether native diallers have their link to the relay before they connect.
    pub warm: bool,
    /// Whether pages use js-libp2p instead of our package.
    pub stock_pages: bool,
    /// If set, native peers get only the addresses of the relay that make such a link.
    pub(crate) link_over: Option<RelayLink>,
    arguments: Vec<String>,
    /// If there is one, native peers are iroh's.
    iroh: Option<Iroh>,
    /// Our server.
    pub serve: Serve,
    /// The lab. Its NATs and links may be changed between cases.
    pub lab: Lab,
}

impl Stage {
    /// Builds the lab and starts the server.
    ///
    /// # Errors
    /// The errors of [`Lab::up`] and [`Serve::start`].
    pub fn up(spec: Spec, parts: &Parts) -> Result<Self> {
        let lab = Lab::up(spec)?;
        let serve = Serve::start(&lab, &parts.program, &parts.repository.join("js"))?;
        Ok(Self {
            browsers: None,
            parts: parts.clone(),
            launched: HashSet::new(),
            warm: false,
            stock_pages: false,
            link_over: None,
            arguments: Vec::new(),
            iroh: None,
            serve,
            lab,
        })
    }

    /// Makes native peers iroh's from now on, with iroh's relay. Their program is in the folder `peers`.
    pub(crate) fn use_iroh(&mut self, peers: &Path) -> Result<()> {
        self.iroh = Some(Iroh::start(&self.lab, peers)?);
        Ok(())
    }

    /// Kills the server.
    pub(crate) fn kill_relay(&mut self) {
        self.serve.program.kill();
    }

    /// Starts the server that was killed again, with its identity and at its ports.
    ///
    /// # Errors
    /// The errors of [`Serve::start`].
    pub(crate) fn start_relay(&mut self) -> Result<()> {
        let npm = self.parts.repository.join("js");
        self.serve = Serve::start(&self.lab, &self.parts.program, &npm)?;
        Ok(())
    }

    /// Gives native peers further arguments from now on.
    pub fn add_arguments(&mut self, more: impl IntoIterator<Item = String>) {
        self.arguments.extend(more);
    }

    /// Launches Chromium on those of `hosts` that have none yet. The page comes from the server, so
    /// the hosts' NATs must let HTTP through at this moment.
    ///
    /// # Errors
    /// The errors of [`Browsers::start`] and [`Browsers::launch`].
    pub fn launch(&mut self, hosts: &[&str]) -> Result<()> {
        let mut missing = Vec::new();
        for host in hosts.iter().filter(|host| !self.launched.contains(**host)) {
            let ipv6_only = self.lab.host(host)?.ipv4().is_none();
            missing.push((*host, self.serve.http(ipv6_only)?));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let browsers = match &mut self.browsers {
            Some(browsers) => browsers,
            none => none.insert(Browsers::start(&self.parts.repository)?),
        };
        browsers.launch(&self.lab, &missing)?;
        self.launched
            .extend(missing.into_iter().map(|(host, _)| host.to_owned()));
        Ok(())
    }

    /// Returns those of the two hosts on which `pairing` needs a browser.
    pub fn browser_hosts<'a>(pairing: Pairing, a: &'a str, b: &'a str) -> Vec<&'a str> {
        let ends = [(pairing.dialler, a), (pairing.listener, b)];
        ends.into_iter()
            .filter(|(peer, _)| *peer == Peer::Browser)
            .map(|(_, host)| host)
            .collect()
    }

    /// Whether browsers run on all of `hosts`.
    pub fn is_launched(&self, hosts: &[&str]) -> bool {
        hosts.iter().all(|host| self.launched.contains(*host))
    }

    /// Connects the peer on host `a` to the peer on host `b`, and waits up to `wait_direct` for a
    /// direct path.
    ///
    /// # Errors
    /// Fails only if the lab itself fails. If peers do not connect, that is a [`Run`] as any other.
    pub fn meet(
        &mut self,
        pairing: Pairing,
        a: &str,
        b: &str,
        wait_direct: Duration,
    ) -> Result<Run> {
        let browser_hosts = Self::browser_hosts(pairing, a, b);
        self.launch(&browser_hosts)?;
        let listener = match self.listen(pairing.listener, b) {
            Ok(listener) => listener,
            Err(error) => return Ok(Run::failed(format!("the listener: {error}"))),
        };
        let events = match pairing.dialler {
            Peer::Native => self.connect_native(a, &listener.ticket, wait_direct),
            Peer::Browser => self.connect_browser(a, &listener.ticket, wait_direct),
        };
        let run = match events {
            Ok(events) => Run {
                warm: self.warm && pairing.dialler == Peer::Native,
                ..Run::from_events(&events)
            },
            Err(error) => Run::failed(format!("the dialler: {error}")),
        };
        drop(listener);
        for host in browser_hosts {
            if let Some(browsers) = &mut self.browsers {
                browsers.close(host)?;
            }
        }
        Ok(run)
    }

    /// Starts an echoing peer on a host.
    ///
    /// # Errors
    /// [`LabError::Timeout`] or [`LabError::Program`] if the peer does not become reachable.
    pub fn listen(&mut self, peer: Peer, host: &str) -> Result<Listener> {
        match peer {
            Peer::Native => self.listen_native(host, &["--echo"]),
            Peer::Browser => {
                let options = self.browser_options();
                let browsers = self
                    .browsers
                    .as_mut()
                    .ok_or_else(|| LabError::Spec(format!("no browser on {host}")))?;
                let reply = browsers.listen(host, &options, READY_WITHIN)?;
                Listener::new(None, &reply)
            }
        }
    }

    /// Starts a native peer on a host that receives files into `directory`.
    ///
    /// # Errors
    /// The errors of [`listen`](Self::listen).
    pub fn receive(&mut self, host: &str, directory: &Path) -> Result<Listener> {
        let directory = directory.to_string_lossy();
        self.listen_native(host, &["--recv", &directory])
    }

    /// Starts a native peer on a host that hears lines of text.
    ///
    /// # Errors
    /// The errors of [`listen`](Self::listen).
    pub fn chat(&self, host: &str) -> Result<Listener> {
        self.listen_native(host, &[])
    }

    /// Sends a file of `bytes` bytes from the page on a host. The reply has both ends' hashes and
    /// paths.
    ///
    /// # Errors
    /// [`LabError::Program`] with the page's error, [`LabError::Timeout`].
    pub fn send_file(
        &mut self,
        host: &str,
        ticket: &str,
        bytes: u64,
        within: Duration,
    ) -> Result<Value> {
        let options = self.browser_options();
        let browsers = self
            .browsers
            .as_mut()
            .ok_or_else(|| LabError::Spec(format!("no browser on {host}")))?;
        browsers.send_file(host, &options, ticket, bytes, within)
    }

    fn listen_native(&self, host: &str, mode: &[&str]) -> Result<Listener> {
        let mut command = self.lab.host(host)?.command(self.program());
        command
            .args(["listen", "--json"])
            .args(mode)
            .args(self.peer_arguments());
        let program = Program::start(format!("the listener on {host}"), command)?;
        let ready = program.wait("ready", READY_WITHIN)?;
        Listener::new(Some(program), &ready)
    }

    fn connect_native(
        &self,
        host: &str,
        ticket: &str,
        wait_direct: Duration,
    ) -> Result<Vec<Value>> {
        let wait = wait_direct.as_secs_f64().to_string();
        let program = self.dial(host, ticket, &["--ping", "1", "--wait-direct", &wait])?;
        let deadline = Instant::now() + wait_direct + GRACE;
        let events: Vec<_> = std::iter::from_fn(|| program.next(deadline)).collect();
        if events.is_empty() {
            return Err(LabError::Program(format!(
                "the program said nothing; its log:\n{}",
                program.log()
            )));
        }
        Ok(events)
    }

    /// Starts a native peer on a host. It connects, and does what `action` says.
    ///
    /// # Errors
    /// [`LabError::Io`] if the program cannot be started.
    pub fn dial(&self, host: &str, ticket: &str, action: &[&str]) -> Result<Program> {
        let mut command = self.lab.host(host)?.command(self.program());
        command
            .args(["connect", ticket, "--json"])
            .args(self.warm.then_some("--warm"))
            .args(action)
            .args(self.peer_arguments());
        Program::start(format!("the dialler on {host}"), command)
    }

    fn connect_browser(
        &mut self,
        host: &str,
        ticket: &str,
        wait_direct: Duration,
    ) -> Result<Vec<Value>> {
        let options = self.browser_options();
        let browsers = self
            .browsers
            .as_mut()
            .ok_or_else(|| LabError::Spec(format!("no browser on {host}")))?;
        let rest = if self.warm { PAGE_REST } else { Duration::ZERO };
        browsers.connect(host, &options, ticket, wait_direct, rest)
    }

    /// Starts a peer in the page on a host. It connects, and its echoes and paths are
    /// [events](Self::page_event) from then on.
    pub(crate) fn converse(&mut self, host: &str, ticket: &str) -> Result<()> {
        let options = self.browser_options();
        let browsers = self
            .browsers
            .as_mut()
            .ok_or_else(|| LabError::Spec(format!("no browser on {host}")))?;
        browsers.converse(host, &options, ticket)
    }

    /// Returns the next event of the page that converses.
    pub(crate) fn page_event(&self, deadline: Instant) -> Option<Value> {
        self.browsers.as_ref()?.event(deadline)
    }

    /// The addresses of the server by which native peers use it as a relay.
    pub(crate) fn relays(&self) -> Vec<String> {
        let mut relays = self.serve.addresses();
        relays.retain(|a| a.contains("/p2p/") && !a.contains("/webrtc-direct"));
        if let Some(link) = self.link_over {
            relays.retain(|address| link.is_made_by(address));
        }
        relays
    }

    /// Returns the program of native peers.
    pub fn program(&self) -> &Path {
        let iroh = self.iroh.as_ref().map(|iroh| &iroh.program);
        iroh.unwrap_or(&self.parts.program)
    }

    pub(crate) fn peer_arguments(&self) -> Vec<String> {
        if let Some(iroh) = &self.iroh {
            return iroh.arguments.clone();
        }
        let relays = self
            .relays()
            .into_iter()
            .flat_map(|address| ["--relay".to_owned(), address]);
        relays
            .chain(
                self.serve
                    .stun()
                    .into_iter()
                    .flat_map(|url| ["--stun".to_owned(), url]),
            )
            .chain(self.arguments.iter().cloned())
            .collect()
    }

    fn browser_options(&self) -> Value {
        let relays: Vec<_> = self
            .serve
            .addresses()
            .into_iter()
            .filter(|a| a.contains("/ws/p2p/"))
            .collect();
        let servers = [json!({ "urls": self.serve.stun() })];
        let mut options = json!({ "relays": relays, "iceServers": servers });
        if self.stock_pages {
            options["stock"] = true.into();
        }
        options
    }
}

/// A peer that waits for connections. Dropping a native one ends it.
#[derive(Debug)]
pub struct Listener {
    /// The ticket for `connect`.
    pub ticket: String,
    /// The program, if the peer is native.
    pub program: Option<Program>,
}

impl Listener {
    fn new(program: Option<Program>, ready: &Value) -> Result<Self> {
        let ticket = ready["ticket"]
            .as_str()
            .ok_or_else(|| LabError::Program(format!("no ticket in {ready}")))?
            .to_owned();
        Ok(Self { ticket, program })
    }
}
