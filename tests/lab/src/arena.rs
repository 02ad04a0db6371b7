//! A lab in which our program and programs over other SDKs connect, each with its own kind.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    compare::Contender,
    error::{LabError, Result},
    lab::Lab,
    program::Program,
    run::Run,
    spec::Spec,
    stage::{Parts, Stage},
    topology::RELAY,
};

/// How long a peer may take to be reachable.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long to wait for a direct path.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(15);
/// How long a program may take beyond the wait for a direct path and its measurement.
const GRACE: Duration = Duration::from_secs(25);
/// The program of iroh's peers.
const IROH: &str = "iroh-peer";
/// The port of iroh's relay, which takes the next port too.
const IROH_PORT: u16 = 3340;
/// The port of libp2p's relay.
const LIBP2P_PORT: u16 = 3350;
/// How many connections a listener holds before the measured ones. They make it allocate what it
/// allocates once.
const HELD_BEFORE: usize = 4;
/// How many processes connect at the same time to hold a connection.
const COMING: usize = 8;
/// How long to wait until a connection has released what it only needed while it came up.
const SETTLED: Duration = Duration::from_secs(6);
/// The options that make our peers give back the circuit of an idle connection at once. They do so after a
/// minute by default, and a measurement should not take that long.
const AT_REST: [&str; 2] = ["--set", "circuit_idle_timeout_ms=1000"];
/// How many peers send at the same time. More would slow each other down and use less memory.
const SENDERS: usize = 4;
/// How long each peer sends, in seconds. All sending processes have started by then.
const SENDING: &str = "60";
/// The option that makes our `connect` reach its relay before the clock starts, as in a program
/// that has run for a while. The other peers always do so.
const WARM: &str = "--warm";

/// A lab with the relays of all contenders.
pub(crate) struct Arena {
    // Fields drop in this order, so the relays end before the lab that they run in.
    _relays: [Program; 2],
    pub(crate) stage: Stage,
    /// The address of libp2p's own relay.
    stock: String,
    parts: Parts,
    peers: PathBuf,
}

impl Arena {
    pub(crate) fn up(spec: Spec, parts: &Parts, peers: &Path) -> Result<Self> {
        let stage = Stage::up(spec, parts)?;
        let (iroh, _) = serve(&stage.lab, &found(peers, IROH)?, IROH_PORT)?;
        let (libp2p, ready) = serve(&stage.lab, &found(peers, "libp2p-peer")?, LIBP2P_PORT)?;
        let stock = ready["address"].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            _relays: [iroh, libp2p],
            stage,
            stock,
            parts: parts.clone(),
            peers: peers.to_owned(),
        })
    }

    /// Connects the contender's peer on host `a` to its peer on host `b`. Both are new processes.
    pub(crate) fn meet(
        &self,
        contender: Contender,
        bench: Option<f64>,
    ) -> Result<(Run, Option<f64>)> {
        let relay = self.relay_for(contender)?;
        let wait = DIRECT_WITHIN.as_secs().to_string();
        self.talk(contender, &relay, &["--wait-direct", &wait], bench)
    }

    /// Measures the memory that the contender's peer on host `b` holds for each peer on host `a`,
    /// in KiB. The first figure is for `count` idle peers, and the second for a few peers that send
    /// to it. All are separate processes that are connected directly.
    pub(crate) fn hold(&self, contender: Contender, count: usize) -> Result<[f64; 2]> {
        let mut relay = self.relay_for(contender)?;
        if contender == Contender::Throughline {
            relay.extend(AT_REST.map(str::to_owned));
        }
        let listener = self.listen(contender, &relay)?;
        let ready = listener.wait("ready", READY_WITHIN)?;
        let ticket = ready["ticket"].as_str().unwrap_or_default();
        let wait = DIRECT_WITHIN.as_secs().to_string();
        let connect = |count: usize, action: &[&str]| {
            let mut arguments = vec!["connect", ticket];
            arguments.extend(action);
            arguments.extend((contender == Contender::Throughline).then_some(WARM));
            let mut held = Vec::new();
            while held.len() < count {
                let come = 0..COMING.min(count - held.len());
                let come = come.map(|_| self.start(contender, "a", &arguments, &relay));
                let come = come.collect::<Result<Vec<_>>>()?;
                for program in &come {
                    let direct = |event: &Value| event["path"] == "direct";
                    program.wait_for(READY_WITHIN + DIRECT_WITHIN, "a direct path", direct)?;
                }
                held.extend(come);
            }
            Ok::<_, LabError>(held)
        };
        let hold: &[&str] = match contender {
            // Its standard input is silent, so the program does nothing.
            Contender::Throughline => &[],
            Contender::Iroh | Contender::Libp2p => &["--wait-direct", &wait, "--hold"],
        };
        let _first = connect(HELD_BEFORE, hold)?;
        let before = listener.resident_kib(SETTLED)?;
        let _idle = connect(count, hold)?;
        let idle = listener.resident_kib(SETTLED)?;
        let _active = connect(SENDERS, &["--wait-direct", &wait, "--bench", SENDING])?;
        let active = listener.resident_kib(SETTLED)?;
        Ok([
            (idle - before) / count as f64,
            (active - idle) / SENDERS as f64,
        ])
    }

    /// Returns the arguments that make the contender's peers use their relay.
    fn relay_for(&self, contender: Contender) -> Result<Vec<String>> {
        Ok(match contender {
            Contender::Throughline => self.stage.peer_arguments(),
            Contender::Iroh => iroh_relay(),
            Contender::Libp2p => relay(self.ours()?),
        })
    }

    fn listen(&self, contender: Contender, both: &[String]) -> Result<Program> {
        self.start(contender, "b", &["listen", "--echo"], both)
    }

    /// Measures the throughput through a relay only: ours, or libp2p's if `stock`. Both links of
    /// the circuit are QUIC.
    pub(crate) fn carry(
        &self,
        contender: Contender,
        stock: bool,
        bench: f64,
    ) -> Result<(Run, Option<f64>)> {
        let address = if stock {
            self.stock.clone()
        } else {
            self.ours()?
        };
        let mut arguments = relay(address);
        arguments.push("--relay-only".into());
        self.talk(contender, &arguments, &[], Some(bench))
    }

    /// Returns our relay's address over QUIC.
    fn ours(&self) -> Result<String> {
        let quic = |address: &String| address.contains("/quic-v1/p2p/");
        let address = self.stage.relays().into_iter().find(quic);
        address.ok_or_else(|| LabError::Program("no QUIC relay".into()))
    }

    fn talk(
        &self,
        contender: Contender,
        both: &[String],
        connect: &[&str],
        bench: Option<f64>,
    ) -> Result<(Run, Option<f64>)> {
        let ours = contender == Contender::Throughline;
        let listener = self.listen(contender, both)?;
        let ready = match listener.wait("ready", READY_WITHIN) {
            Ok(ready) => ready,
            Err(error) => return Ok((Run::failed(format!("the listener: {error}")), None)),
        };
        let ticket = ready["ticket"].as_str().unwrap_or_default();
        let mut arguments = vec!["connect", ticket];
        arguments.extend(connect);
        if ours {
            arguments.push(WARM);
        }
        let seconds = bench.unwrap_or_default().to_string();
        match bench {
            Some(_) => arguments.extend(["--bench", &seconds]),
            // The program needs an action. Without one, it would talk to its standard input.
            None if ours => arguments.extend(["--ping", "1"]),
            None => {}
        }
        let dialler = self.start(contender, "a", &arguments, both)?;
        let patience = DIRECT_WITHIN + Duration::from_secs_f64(bench.unwrap_or_default()) + GRACE;
        let deadline = Instant::now() + patience;
        let events: Vec<Value> = std::iter::from_fn(|| dialler.next(deadline)).collect();
        let measured = events.iter().find(|event| event["event"] == "bench");
        let rate = measured.and_then(|event| event["mbit_s"].as_f64());
        Ok((Run::from_events(&events), rate))
    }

    fn start(
        &self,
        contender: Contender,
        host: &str,
        arguments: &[&str],
        both: &[String],
    ) -> Result<Program> {
        let program = match contender {
            Contender::Throughline => self.parts.program.clone(),
            Contender::Iroh => self.peers.join(IROH),
            Contender::Libp2p => self.peers.join("libp2p-peer"),
        };
        let mut command = self.stage.lab.host(host)?.command(program);
        command.args(arguments).arg("--json").args(both);
        Program::start(format!("{contender} {} on {host}", arguments[0]), command)
    }
}

/// Finds the program of a peer over another SDK.
fn found(peers: &Path, name: &str) -> Result<PathBuf> {
    let program = peers.join(name);
    match program.is_file() {
        true => Ok(program),
        false => Err(LabError::Missing(format!(
            "there is no {name} in {} (make bench builds it)",
            peers.display()
        ))),
    }
}

/// Starts the relay of another SDK, and returns what it says of itself.
fn serve(lab: &Lab, program: &Path, port: u16) -> Result<(Program, Value)> {
    let mut command = lab.host("relay")?.command(program);
    command.args(["serve", "--host", &RELAY[0].to_string()]);
    command.args(["--port", &port.to_string()]);
    let relay = Program::start(format!("the relay of {}", program.display()), command)?;
    let ready = relay.wait("ready", READY_WITHIN)?;
    Ok((relay, ready))
}

/// iroh's peers, and their relay.
#[derive(Debug)]
pub(crate) struct Iroh {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    _relay: Program,
}

impl Iroh {
    /// Starts iroh's relay beside ours.
    pub(crate) fn start(lab: &Lab, peers: &Path) -> Result<Self> {
        let program = found(peers, IROH)?;
        let (relay, _) = serve(lab, &program, IROH_PORT)?;
        Ok(Self {
            program,
            arguments: iroh_relay(),
            _relay: relay,
        })
    }
}

fn iroh_relay() -> Vec<String> {
    relay(format!("http://{}:{IROH_PORT}", RELAY[0]))
}

fn relay(address: String) -> Vec<String> {
    vec!["--relay".into(), address]
}
