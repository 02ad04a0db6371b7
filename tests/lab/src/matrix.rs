//! The connectivity matrix: every pairing in every situation, beside what theory allows.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    link::{PEER_ROUND_TRIP, RELAY_ROUND_TRIP},
    nat::NatKind,
    run::{Run, Verdict},
    scenario::{Pairing, Scenario},
    spec::Spec,
    stage::{Parts, Stage},
    theory::{Peer, Theory},
};

/// The cells to try.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which peers connect to which.
    pub pairings: Vec<Pairing>,
    /// Whether to try every kind with every kind. If not, only the most important cells are tried.
    pub full: bool,
    /// How often each cell is tried, at least once. A failure is never tried again to make it good.
    pub repeat: usize,
    /// How many cells of native peers are tried at the same time, each in its own lab. More than
    /// the machine has cores spoils the times, but not the paths.
    pub jobs: usize,
    /// Whether native diallers have their link to the relay before they connect.
    pub warm: bool,
    /// Whether our server is no TURN server.
    pub no_turn: bool,
    /// If set, only cells whose two names contain this text are tried.
    pub only: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            pairings: Pairing::ALL.to_vec(),
            full: false,
            repeat: 1,
            jobs: 3,
            warm: false,
            no_turn: false,
            only: None,
        }
    }
}

/// The results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Matrix {
    /// The round trip between a peer and the relay, in milliseconds.
    pub relay_round_trip_ms: u64,
    /// The round trip between the peers, in milliseconds.
    pub peer_round_trip_ms: u64,
    /// How long the whole matrix took.
    pub seconds: f64,
    /// One cell for each situation and pairing.
    pub cells: Vec<Cell>,
}

/// One situation for one pairing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The peer that dials.
    pub dialler: Peer,
    /// The peer that listens.
    pub listener: Peer,
    /// The network that the dialler is behind.
    pub a: String,
    /// The network that the listener is behind.
    pub b: String,
    /// The best path that theory allows.
    pub theory: Theory,
    /// The verdict of the worst run.
    pub verdict: Verdict,
    /// Whether runs ended on different kinds of path.
    pub flaky: bool,
    /// The time to the first echoed byte, in milliseconds.
    pub first_byte_ms: Option<Times>,
    /// The time to a direct path, in milliseconds.
    pub direct_ms: Option<Times>,
    /// Every attempt.
    pub runs: Vec<Run>,
}

/// The times of the runs that got to a point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The median.
    pub median: f64,
    /// The slowest.
    pub worst: f64,
}

impl Times {
    pub(crate) fn of(times: impl Iterator<Item = f64>) -> Option<Self> {
        let mut times: Vec<_> = times.collect();
        times.sort_by(f64::total_cmp);
        Some(Self {
            median: *times.get(times.len() / 2)?,
            worst: *times.last()?,
        })
    }
}

impl Cell {
    fn new(scenario: &Scenario, pairing: Pairing, runs: Vec<Run>) -> Self {
        let theory = scenario.theory(pairing);
        let outcome = |run: &Run| (run.connected, run.path.clone());
        Self {
            dialler: pairing.dialler,
            listener: pairing.listener,
            a: scenario.a.clone(),
            b: scenario.b.clone(),
            theory,
            verdict: runs
                .iter()
                .map(|run| run.verdict(theory))
                .max()
                .unwrap_or(Verdict::Dead),
            flaky: runs
                .windows(2)
                .any(|pair| outcome(&pair[0]) != outcome(&pair[1])),
            first_byte_ms: Times::of(runs.iter().filter_map(|run| run.first_byte_ms)),
            direct_ms: Times::of(runs.iter().filter_map(|run| run.direct_ms)),
            runs,
        }
    }

    /// The run that decided the verdict.
    pub fn worst_run(&self) -> Option<&Run> {
        self.runs.iter().max_by_key(|run| run.verdict(self.theory))
    }
}

/// Tries everything in `plan`, and passes each cell to `progress` when it is done.
///
/// # Errors
/// Fails only if the lab or its server cannot be started. Peers that do not connect are results.
pub fn matrix(plan: &Plan, parts: &Parts, progress: impl Fn(&Cell) + Sync) -> Result<Matrix> {
    let start = Instant::now();
    let mut cells = Vec::new();
    for &pairing in &plan.pairings {
        let mut scenarios = if plan.full {
            Scenario::full(pairing)
        } else {
            Scenario::short(pairing)
        };
        for scenario in &mut scenarios {
            scenario.spec.no_turn = plan.no_turn;
        }
        if let Some(text) = &plan.only {
            scenarios.retain(|scenario| {
                format!("{} {}", scenario.a, scenario.b).contains(text.as_str())
            });
        }
        cells.extend(if pairing.is_native() {
            native(&scenarios, pairing, plan, parts, &progress)?
        } else {
            browsers(&scenarios, pairing, plan, parts, &progress)?
        });
    }
    Ok(Matrix {
        relay_round_trip_ms: RELAY_ROUND_TRIP.as_millis() as u64,
        peer_round_trip_ms: PEER_ROUND_TRIP.as_millis() as u64,
        seconds: start.elapsed().as_secs_f64(),
        cells,
    })
}

/// Returns how long to wait for a direct path. If there is one, the wait suffices for a second try
/// after a first one that took its whole 10 s in vain. If there is none, it suffices to see that.
fn patience(theory: Theory) -> Duration {
    Duration::from_secs(match theory {
        Theory::Direct => 16,
        Theory::Guess => 12,
        Theory::Relay => 4,
    })
}

/// Runs several labs at a time. Every run has a new lab.
fn native(
    scenarios: &[Scenario],
    pairing: Pairing,
    plan: &Plan,
    parts: &Parts,
    progress: &(impl Fn(&Cell) + Sync),
) -> Result<Vec<Cell>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(scenario) = scenarios.get(index) else {
                return Ok(());
            };
            let wait = patience(scenario.theory(pairing));
            let runs = (0..plan.repeat.max(1))
                .map(|_| {
                    let mut stage = Stage::up(scenario.spec.clone(), parts)?;
                    stage.warm = plan.warm;
                    stage.meet(pairing, &scenario.a_host, &scenario.b_host, wait)
                })
                .collect::<Result<Vec<_>>>()?;
            let cell = Cell::new(scenario, pairing, runs);
            progress(&cell);
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(index, cell);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect())
}

/// Runs the cells in one lab, whose NATs are swapped from cell to cell while the browsers stay
/// open. Situations of another shape get their own lab.
fn browsers(
    scenarios: &[Scenario],
    pairing: Pairing,
    plan: &Plan,
    parts: &Parts,
    progress: &(impl Fn(&Cell) + Sync),
) -> Result<Vec<Cell>> {
    let mut shared: Option<Stage> = None;
    let mut cells = Vec::new();
    for scenario in scenarios {
        let wait = patience(scenario.theory(pairing));
        let mut own = None;
        let mut runs = Vec::new();
        for _ in 0..plan.repeat.max(1) {
            let stage = match scenario.kinds {
                Some(_) => &mut shared,
                None => &mut own,
            };
            match try_once(stage, scenario, pairing, parts, wait) {
                Ok(run) => runs.push(run),
                Err(error) => {
                    // The next run gets new browsers, whatever failed.
                    *stage = None;
                    runs.push(Run::failed(error));
                }
            }
        }
        let cell = Cell::new(scenario, pairing, runs);
        progress(&cell);
        cells.push(cell);
    }
    Ok(cells)
}

fn try_once(
    stage: &mut Option<Stage>,
    scenario: &Scenario,
    pairing: Pairing,
    parts: &Parts,
    wait: Duration,
) -> Result<Run> {
    let stage = match stage {
        Some(stage) => stage,
        none => {
            let spec = match scenario.kinds {
                // The NATs are friendly at first, because the page must load before a firewall
                // forbids that.
                Some(_) => Spec {
                    no_turn: scenario.spec.no_turn,
                    ..Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted).figure_delays()
                },
                None => scenario.spec.clone(),
            };
            none.insert(Stage::up(spec, parts)?)
        }
    };
    if let Some((a, b)) = scenario.kinds {
        let hosts = Stage::browser_hosts(pairing, &scenario.a_host, &scenario.b_host);
        if !stage.is_launched(&hosts) {
            for host in &hosts {
                stage.lab.set_nat(host, NatKind::PortRestricted)?;
            }
            stage.launch(&hosts)?;
        }
        stage.lab.set_nat("a", a)?;
        stage.lab.set_nat("b", b)?;
    }
    stage.meet(pairing, &scenario.a_host, &scenario.b_host, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(path: &str, ms: f64) -> Run {
        Run {
            connected: true,
            path: Some(path.into()),
            first_byte_ms: Some(ms),
            ..Run::default()
        }
    }

    #[test]
    fn the_worst_run_decides_a_cell_and_runs_that_differ_make_it_flaky() {
        let scenario = Scenario::kinds(NatKind::PortRestricted, NatKind::PortRestricted);
        let cell = Cell::new(
            &scenario,
            Pairing::ALL[0],
            vec![
                run("direct", 10.0),
                run("relayed", 30.0),
                run("direct", 20.0),
            ],
        );
        assert_eq!((cell.verdict, cell.flaky), (Verdict::Worse, true));
        assert_eq!(
            cell.first_byte_ms,
            Some(Times {
                median: 20.0,
                worst: 30.0
            })
        );
        assert_eq!(cell.worst_run(), Some(&run("relayed", 30.0)));
        let steady = Cell::new(&scenario, Pairing::ALL[0], vec![run("direct", 10.0); 3]);
        assert_eq!((steady.verdict, steady.flaky), (Verdict::AsTheory, false));
    }
}
