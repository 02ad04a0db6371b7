//! Our program beside programs over other SDKs: in one lab, one run, one after another.

use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{LabError, Result},
    link::{PEER_ROUND_TRIP, RELAY_ROUND_TRIP},
    matrix::Times,
    nat::NatKind,
    program::Program,
    run::Run,
    spec::Spec,
    stage::{Parts, Stage},
    topology::RELAY,
};

/// How long a peer may take to be reachable.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a direct path is waited for.
const DIRECT_WITHIN: Duration = Duration::from_secs(15);
/// What a program may take beyond that and its measurement.
const GRACE: Duration = Duration::from_secs(25);
/// Where iroh's relay listens; it takes the next port too.
const IROH_PORT: u16 = 3340;
/// What makes our `connect` reach its relay before the clock starts, as it has in a program that runs for a while.
/// The peers do so always.
const WARM: &[&str] = &["--warm"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Contest {
    /// How often each contender connects, at least once.
    pub repeat: usize,
    /// How often the throughput of each is measured; 0 leaves it out.
    pub throughput: usize,
    /// How long each of those measurements takes.
    pub seconds: f64,
    /// The folder of the peers' programs; see `benches/peers`.
    pub peers: PathBuf,
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Ours.
    Throughline,
    /// iroh with its own relay.
    Iroh,
    /// rust-libp2p with circuit relay, DCUtR and QUIC, through our relay.
    Libp2p,
}

impl Contender {
    /// All of them, ours first.
    pub const ALL: [Self; 3] = [Self::Throughline, Self::Iroh, Self::Libp2p];
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Throughline => "throughline",
            Self::Iroh => "iroh 1.4",
            Self::Libp2p => "libp2p 0.57",
        })
    }
}

/// The results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Milliseconds of the round trip between a peer and the relay.
    pub relay_round_trip_ms: u64,
    /// Milliseconds of the round trip between the peers.
    pub peer_round_trip_ms: u64,
    /// The machine's load averages before the run and after it.
    pub load: [String; 2],
    /// One for each contender, ours first.
    pub scores: Vec<Score>,
}

/// What one contender came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Score {
    /// Whose it is.
    pub contender: Contender,
    /// Milliseconds to the first echoed byte, with a warm relay link.
    pub first_byte_ms: Option<Times>,
    /// Milliseconds to a direct path.
    pub direct_ms: Option<Times>,
    /// Megabits a second over the direct path between two NATs, on links without delay.
    pub mbit_s: Option<Times>,
    /// Every attempt to connect.
    pub runs: Vec<Run>,
}

/// Where they meet.
struct Arena {
    // Fields drop in this order: the relay before the lab it runs in.
    _relay: Program,
    stage: Stage,
    parts: Parts,
    peers: PathBuf,
}

/// Lets all contenders connect in turn, so that whatever the machine does meanwhile happens to all of them.
///
/// # Errors
/// Only what is the lab's own fault; that peers do not meet is a [`Run`] like another.
pub fn compare(
    contest: &Contest,
    parts: &Parts,
    progress: impl Fn(Contender, &Run),
) -> Result<Comparison> {
    let before = load();
    let mut runs: [Vec<Run>; 3] = Default::default();
    let mut rates: [Vec<f64>; 3] = Default::default();
    let spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
    let arena = Arena::up(spec.clone().figure_delays(), parts, &contest.peers)?;
    for index in turns(contest.repeat.max(1)) {
        let (run, _) = arena.meet(Contender::ALL[index], None)?;
        progress(Contender::ALL[index], &run);
        runs[index].push(run);
    }
    drop(arena);
    if contest.throughput > 0 {
        let arena = Arena::up(spec, parts, &contest.peers)?;
        for index in turns(contest.throughput) {
            let (run, rate) = arena.meet(Contender::ALL[index], Some(contest.seconds))?;
            progress(Contender::ALL[index], &run);
            rates[index].extend(rate);
        }
    }
    let scores = Contender::ALL
        .into_iter()
        .zip(runs.into_iter().zip(rates))
        .map(|(contender, (runs, rates))| Score {
            contender,
            first_byte_ms: Times::of(runs.iter().filter_map(|run| run.first_byte_ms)),
            direct_ms: Times::of(runs.iter().filter_map(|run| run.direct_ms)),
            mbit_s: slowest(&rates),
            runs,
        });
    Ok(Comparison {
        relay_round_trip_ms: RELAY_ROUND_TRIP.as_millis() as u64,
        peer_round_trip_ms: PEER_ROUND_TRIP.as_millis() as u64,
        load: [before, load()],
        scores: scores.collect(),
    })
}

/// Each contender once a round, and each round another one first.
fn turns(rounds: usize) -> impl Iterator<Item = usize> {
    let all = Contender::ALL.len();
    (0..rounds).flat_map(move |round| (0..all).map(move |turn| (round + turn) % all))
}

/// Of rates the worst is the lowest.
fn slowest(rates: &[f64]) -> Option<Times> {
    let times = Times::of(rates.iter().map(|rate| -rate))?;
    Some(Times {
        median: -times.median,
        worst: -times.worst,
    })
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

impl Arena {
    fn up(spec: Spec, parts: &Parts, peers: &Path) -> Result<Self> {
        for program in ["iroh-peer", "libp2p-peer"] {
            if !peers.join(program).is_file() {
                return Err(LabError::Missing(format!(
                    "there is no {program} in {} (make bench builds it)",
                    peers.display()
                )));
            }
        }
        let stage = Stage::up(spec, parts)?;
        let mut command = stage.lab.host("relay")?.command(peers.join("iroh-peer"));
        command.args(["serve", "--host", &RELAY[0].to_string()]);
        command.args(["--port", &IROH_PORT.to_string()]);
        let relay = Program::start("iroh's relay", command)?;
        relay.wait("ready", READY_WITHIN)?;
        Ok(Self {
            _relay: relay,
            stage,
            parts: parts.clone(),
            peers: peers.to_owned(),
        })
    }

    /// The contender's peer on host `a` connects to the one on host `b`, both of them new processes.
    fn meet(&self, contender: Contender, bench: Option<f64>) -> Result<(Run, Option<f64>)> {
        let listener = self.start(contender, "b", &["listen"])?;
        let ready = match listener.wait("ready", READY_WITHIN) {
            Ok(ready) => ready,
            Err(error) => return Ok((Run::failed(format!("the listener: {error}")), None)),
        };
        let ticket = ready["ticket"].as_str().unwrap_or_default();
        let wait = DIRECT_WITHIN.as_secs().to_string();
        let mut arguments = vec!["connect", ticket, "--wait-direct", &wait];
        let seconds = bench.unwrap_or_default().to_string();
        if bench.is_some() {
            arguments.extend(["--bench", &seconds]);
        }
        let dialler = self.start(contender, "a", &arguments)?;
        let patience = DIRECT_WITHIN + Duration::from_secs_f64(bench.unwrap_or_default()) + GRACE;
        let deadline = Instant::now() + patience;
        let events: Vec<_> = std::iter::from_fn(|| dialler.next(deadline)).collect();
        let measured = events.iter().find(|event| event["event"] == "bench");
        let rate = measured.and_then(|event| event["mbit_s"].as_f64());
        Ok((Run::from_events(&events), rate))
    }

    fn start(&self, contender: Contender, host: &str, arguments: &[&str]) -> Result<Program> {
        let ours = contender == Contender::Throughline;
        let (program, relay) = match contender {
            Contender::Throughline => (self.parts.program.clone(), self.stage.peer_arguments()),
            Contender::Iroh => {
                let url = format!("http://{}:{IROH_PORT}", RELAY[0]);
                (self.peers.join("iroh-peer"), vec!["--relay".into(), url])
            }
            Contender::Libp2p => {
                let quic = |address: &String| address.contains("/quic-v1/p2p/");
                let address = self.stage.relays().into_iter().find(quic);
                let address = address.ok_or_else(|| LabError::Program("no QUIC relay".into()))?;
                (
                    self.peers.join("libp2p-peer"),
                    vec!["--relay".into(), address],
                )
            }
        };
        let mut command = self.stage.lab.host(host)?.command(program);
        command.args(arguments).arg("--json").args(relay);
        match arguments[0] {
            "listen" if ours => _ = command.arg("--echo"),
            // Something to do: without it the program would talk to its standard input.
            "connect" if ours => {
                command.args(WARM);
                if !arguments.contains(&"--bench") {
                    command.args(["--ping", "1"]);
                }
            }
            _ => {}
        }
        Program::start(format!("{contender} {} on {host}", arguments[0]), command)
    }
}

impl Comparison {
    /// A table in Markdown, which is fit for a terminal too. The ratio is the peer's figure by ours, turned so that
    /// more than 1 speaks for ours.
    pub fn table(&self) -> String {
        let mut text = format!(
            "| {:<11} | {:>5} | {:<22} | {:<22} | {:<22} |\n| --- | ---: | --- | --- | --- |\n",
            "", "met", "first byte ms", "direct ms", "Mbit/s"
        );
        let Some(ours) = self.scores.first() else {
            return text;
        };
        for score in &self.scores {
            let met = score
                .runs
                .iter()
                .filter(|run| run.path.as_deref() == Some("direct"));
            let _ = writeln!(
                text,
                "| {:<11} | {:>5} | {:<22} | {:<22} | {:<22} |",
                score.contender,
                format!("{}/{}", met.count(), score.runs.len()),
                figure(
                    score.first_byte_ms,
                    ours.first_byte_ms,
                    |theirs, ours| theirs / ours
                ),
                figure(score.direct_ms, ours.direct_ms, |theirs, ours| theirs
                    / ours),
                figure(score.mbit_s, ours.mbit_s, |theirs, ours| ours / theirs),
            );
        }
        let _ = writeln!(
            text,
            "\nMedian (worst), and how many times better ours is. Two port-restricted NATs, {} ms round trip to the \
             relay, {} ms between the peers, relay links warm; throughput over the direct path without delay. \
             Load averages {} before, {} after.",
            self.relay_round_trip_ms, self.peer_round_trip_ms, self.load[0], self.load[1],
        );
        text
    }
}

fn figure(theirs: Option<Times>, ours: Option<Times>, ratio: impl Fn(f64, f64) -> f64) -> String {
    let Some(times) = theirs else {
        return "-".into();
    };
    let mut text = format!("{:.0} ({:.0})", times.median, times.worst);
    if let Some(ours) = ours {
        let _ = write!(text, ", x{:.2}", ratio(times.median, ours.median));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_takes_part_equally_and_starts_as_often() {
        let order: Vec<_> = turns(3).collect();
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn the_worst_rate_is_the_lowest_and_more_is_better() {
        let rates = slowest(&[300.0, 100.0, 200.0]).unwrap();
        assert_eq!((rates.median, rates.worst), (200.0, 100.0));
        let ours = slowest(&[400.0]);
        let text = figure(Some(rates), ours, |theirs, ours| ours / theirs);
        assert_eq!(text, "200 (100), x2.00");
        assert_eq!(figure(None, ours, |theirs, _| theirs), "-");
    }
}
