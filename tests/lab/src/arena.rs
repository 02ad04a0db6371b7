//! Where our program and programs over other SDKs meet.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    compare::Contender,
    error::{LabError, Result},
    program::Program,
    run::Run,
    spec::Spec,
    stage::{Parts, Stage},
    topology::RELAY,
};

/// How long a peer may take to be reachable.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a direct path is waited for.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(15);
/// What a program may take beyond that and its measurement.
const GRACE: Duration = Duration::from_secs(25);
/// Where iroh's relay listens; it takes the next port too.
const IROH_PORT: u16 = 3340;
/// Where libp2p's relay listens.
const LIBP2P_PORT: u16 = 3350;
/// What makes our `connect` reach its relay before the clock starts, as it has in a program that runs for a while.
/// The peers do so always.
const WARM: &str = "--warm";

/// A lab with everybody's relay in it.
pub(crate) struct Arena {
    // Fields drop in this order: the relays before the lab they run in.
    _relays: [Program; 2],
    pub(crate) stage: Stage,
    /// The address of libp2p's own relay.
    stock: String,
    parts: Parts,
    peers: PathBuf,
}

impl Arena {
    pub(crate) fn up(spec: Spec, parts: &Parts, peers: &Path) -> Result<Self> {
        for program in ["iroh-peer", "libp2p-peer"] {
            if !peers.join(program).is_file() {
                return Err(LabError::Missing(format!(
                    "there is no {program} in {} (make bench builds it)",
                    peers.display()
                )));
            }
        }
        let stage = Stage::up(spec, parts)?;
        let serve = |program: &str, port: u16| {
            let mut command = stage.lab.host("relay")?.command(peers.join(program));
            command.args(["serve", "--host", &RELAY[0].to_string()]);
            command.args(["--port", &port.to_string()]);
            let relay = Program::start(format!("the relay of {program}"), command)?;
            let ready = relay.wait("ready", READY_WITHIN)?;
            Ok::<_, LabError>((relay, ready))
        };
        let (iroh, _) = serve("iroh-peer", IROH_PORT)?;
        let (libp2p, ready) = serve("libp2p-peer", LIBP2P_PORT)?;
        let stock = ready["address"].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            _relays: [iroh, libp2p],
            stage,
            stock,
            parts: parts.clone(),
            peers: peers.to_owned(),
        })
    }

    /// The contender's peer on host `a` connects to the one on host `b`, both of them new processes.
    pub(crate) fn meet(
        &self,
        contender: Contender,
        bench: Option<f64>,
    ) -> Result<(Run, Option<f64>)> {
        let relay = match contender {
            Contender::Throughline => self.stage.peer_arguments(),
            Contender::Iroh => relay(format!("http://{}:{IROH_PORT}", RELAY[0])),
            Contender::Libp2p => relay(self.ours()?),
        };
        let wait = DIRECT_WITHIN.as_secs().to_string();
        self.talk(contender, &relay, &["--wait-direct", &wait], bench)
    }

    /// The same through a relay, ours or the `stock` one, and nowhere else, both links of the circuit over QUIC.
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

    /// Our relay's address over QUIC.
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
        let echo: &[&str] = if ours {
            &["listen", "--echo"]
        } else {
            &["listen"]
        };
        let listener = self.start(contender, "b", echo, both)?;
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
            // Something to do: without it the program would talk to its standard input.
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
            Contender::Iroh => self.peers.join("iroh-peer"),
            Contender::Libp2p => self.peers.join("libp2p-peer"),
        };
        let mut command = self.stage.lab.host(host)?.command(program);
        command.args(arguments).arg("--json").args(both);
        Program::start(format!("{contender} {} on {host}", arguments[0]), command)
    }
}

fn relay(address: String) -> Vec<String> {
    vec!["--relay".into(), address]
}
