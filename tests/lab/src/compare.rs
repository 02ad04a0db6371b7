//! Our program and package beside programs over other SDKs. They run in one lab and in one run, one
//! after another.

use std::{
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    arena::{Arena, DIRECT_WITHIN},
    error::Result,
    link::{PEER_ROUND_TRIP, RELAY_ROUND_TRIP},
    matrix::Times,
    nat::NatKind,
    run::Run,
    scenario::Pairing,
    spec::Spec,
    stage::Parts,
    theory::Peer,
};

/// The measurements to make.
#[derive(Clone, Debug)]
pub struct Contest {
    /// How often each contender connects, at least once.
    pub repeat: usize,
    /// How often each contender with a page connects; 0 leaves them out.
    pub pages: usize,
    /// How often each throughput is measured, directly and through relays; 0 leaves it out.
    pub throughput: usize,
    /// How long each measurement of throughput takes.
    pub seconds: f64,
    /// How many idle connections the memory is measured with; 0 leaves it out.
    pub held: usize,
    /// The folder of the peers' programs. See `benches/peers`.
    pub peers: PathBuf,
}

/// A contender that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Our program.
    Throughline,
    /// iroh with its own relay.
    Iroh,
    /// rust-libp2p with circuit relay, DCUtR and QUIC, through our relay.
    Libp2p,
}

impl Contender {
    /// All contenders. The others are compared with the first one.
    pub const ALL: [Self; 3] = [Self::Iroh, Self::Libp2p, Self::Throughline];
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Throughline => "throughline",
            Self::Iroh => "iroh 1.4",
            Self::Libp2p => "rust-libp2p 0.57",
        })
    }
}

/// The contenders with a page: js-libp2p first, then ours.
const PAGES: [(&str, Pairing, bool); 4] = [
    (
        "js-libp2p 3.3, page to page",
        pairing(Peer::Browser, Peer::Browser),
        true,
    ),
    (
        "throughline, page to page",
        pairing(Peer::Browser, Peer::Browser),
        false,
    ),
    (
        "throughline, page to program",
        pairing(Peer::Browser, Peer::Native),
        false,
    ),
    (
        "throughline, program to page",
        pairing(Peer::Native, Peer::Browser),
        false,
    ),
];

/// The contenders that connect through a relay, and whether the relay is libp2p's.
const RELAYED: [(&str, Contender, bool); 4] = [
    ("rust-libp2p through its own", Contender::Libp2p, true),
    (
        "rust-libp2p through throughline's",
        Contender::Libp2p,
        false,
    ),
    (
        "throughline through rust-libp2p's",
        Contender::Throughline,
        true,
    ),
    ("throughline through its own", Contender::Throughline, false),
];

const fn pairing(dialler: Peer, listener: Peer) -> Pairing {
    Pairing { dialler, listener }
}

/// The results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The round trip between a peer and the relay, in milliseconds.
    pub relay_round_trip_ms: u64,
    /// The round trip between the peers, in milliseconds.
    pub peer_round_trip_ms: u64,
    /// The machine's load averages before and after the run.
    pub load: [String; 2],
    /// The results from program to program, in the order of [`Contender::ALL`].
    pub programs: Vec<Score>,
    /// The results with a page: js-libp2p first, then ours.
    pub pages: Vec<Score>,
    /// The results through relays, of the two contenders that can use both relays.
    pub relayed: Vec<Score>,
    /// The memory of connections, in the order of [`Contender::ALL`].
    pub held: Vec<Score>,
}

/// The result of one contender.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Score {
    /// The contender's name.
    pub name: String,
    /// The time to the first echoed byte, in milliseconds.
    pub first_byte_ms: Option<Times>,
    /// The time to a direct path, in milliseconds.
    pub direct_ms: Option<Times>,
    /// The throughput between two NATs on links without delay, in megabits per second.
    pub mbit_s: Option<Times>,
    /// The memory that a peer holds for an idle connection, in KiB.
    pub idle_kib: Option<Times>,
    /// The memory that a peer holds for a connection on which the other peer sends as fast as it
    /// can, in KiB.
    pub active_kib: Option<Times>,
    /// Every attempt to connect.
    pub runs: Vec<Run>,
    /// Every throughput.
    pub rates: Vec<f64>,
}

impl Score {
    fn new(name: impl ToString) -> Self {
        Self {
            name: name.to_string(),
            ..Self::default()
        }
    }

    fn settled(mut self) -> Self {
        self.first_byte_ms = Times::of(self.runs.iter().filter_map(|run| run.first_byte_ms));
        self.direct_ms = Times::of(self.runs.iter().filter_map(|run| run.direct_ms));
        self.mbit_s = slowest(&self.rates);
        self
    }
}

/// Connects all contenders in turn, so that other work of the machine affects all of them alike.
///
/// # Errors
/// Fails only if the lab itself fails. If peers do not connect, that is a [`Run`] as any other.
pub fn compare(
    contest: &Contest,
    parts: &Parts,
    progress: impl Fn(&str, &str),
) -> Result<Comparison> {
    let before = load();
    let mut programs = Contender::ALL.map(Score::new);
    let mut pages = PAGES.map(|(name, ..)| Score::new(name));
    let mut relayed = RELAYED.map(|(name, ..)| Score::new(name));
    let mut held = Contender::ALL.map(Score::new);
    let spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);

    let mut arena = Arena::up(spec.clone().figure_delays(), parts, &contest.peers)?;
    for index in turns(contest.repeat.max(1), programs.len()) {
        let (run, _) = arena.meet(Contender::ALL[index], None)?;
        progress(&programs[index].name, &told(&run, None));
        programs[index].runs.push(run);
    }
    // The programs above reach their relay first too, and pages always do.
    arena.stage.warm = true;
    for index in turns(contest.pages, pages.len()) {
        let (name, pairing, stock) = PAGES[index];
        arena.stage.stock_pages = stock;
        let run = arena.stage.meet(pairing, "a", "b", DIRECT_WITHIN)?;
        progress(name, &told(&run, None));
        pages[index].runs.push(run);
    }
    drop(arena);

    if contest.throughput > 0 || contest.held > 0 {
        let arena = Arena::up(spec, parts, &contest.peers)?;
        for index in turns(contest.throughput, programs.len()) {
            let (run, rate) = arena.meet(Contender::ALL[index], Some(contest.seconds))?;
            progress(&programs[index].name, &told(&run, rate));
            programs[index].rates.extend(rate);
        }
        for index in turns(contest.throughput, relayed.len()) {
            let (name, contender, stock) = RELAYED[index];
            let (run, rate) = arena.carry(contender, stock, contest.seconds)?;
            progress(name, &told(&run, rate));
            relayed[index].rates.extend(rate);
        }
        if contest.held > 0 {
            for (score, contender) in held.iter_mut().zip(Contender::ALL) {
                match arena.hold(contender, contest.held) {
                    Ok([idle, active]) => {
                        let told = format!("{idle:.0} KiB idle, {active:.0} KiB active");
                        progress(&score.name, &told);
                        score.idle_kib = Times::of([idle].into_iter());
                        score.active_kib = Times::of([active].into_iter());
                    }
                    // The row stays empty, as for a contender that does not connect.
                    Err(error) => progress(&score.name, &told(&Run::failed(error), None)),
                }
            }
        }
    }
    let settled = |scores: Vec<Score>| scores.into_iter().map(Score::settled).collect();
    Ok(Comparison {
        relay_round_trip_ms: RELAY_ROUND_TRIP.as_millis() as u64,
        peer_round_trip_ms: PEER_ROUND_TRIP.as_millis() as u64,
        load: [before, load()],
        programs: settled(programs.into()),
        pages: settled(pages.into()),
        relayed: settled(relayed.into()),
        held: held.into(),
    })
}

/// Returns one run as a line.
fn told(run: &Run, rate: Option<f64>) -> String {
    let ms = |time: Option<f64>| time.map_or("-".into(), |ms| format!("{ms:.0}"));
    let (first_byte, direct) = (ms(run.first_byte_ms), ms(run.direct_ms));
    let error = run.error.as_deref().and_then(|error| error.lines().next());
    let error = error.unwrap_or_default();
    let rate = rate.map_or(String::new(), |rate| format!(", {rate:.0} Mbit/s"));
    format!("first byte {first_byte:>5} ms, direct {direct:>5} ms{rate} {error}")
}

/// Returns each index below `all` once a round. Each round begins with another one.
fn turns(rounds: usize, all: usize) -> impl Iterator<Item = usize> {
    (0..rounds).flat_map(move |round| (0..all).map(move |turn| (round + turn) % all))
}

/// Returns the median and the worst rate. The worst rate is the lowest.
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

impl Comparison {
    /// Returns tables in Markdown, which can be read on a terminal too.
    pub fn tables(&self) -> String {
        let mut text = String::from("### Program to program\n\n");
        text += &table(&self.programs);
        if self.pages.iter().any(|score| !score.runs.is_empty()) {
            text += "\n### With a page\n\n";
            text += &table(&self.pages);
        }
        if self.relayed.iter().any(|score| !score.rates.is_empty()) {
            text += "\n### Through a relay\n\n";
            text += &table(&self.relayed);
        }
        if self.held.iter().any(|score| score.idle_kib.is_some()) {
            text += "\n### Memory of a connection\n\n";
            text += &table(&self.held);
        }
        let _ = writeln!(
            text,
            "\nEach cell has the median, the worst in brackets, and how many times better than the first row it is. The \
             peers are behind two port-restricted NATs. Round trips take {} ms to the relay and {} ms between the peers, \
             and relay links are warm. Throughput is measured without delay, directly or over circuits of QUIC \
             connections. Load averages {} before, {} after.",
            self.relay_round_trip_ms, self.peer_round_trip_ms, self.load[0], self.load[1],
        );
        text
    }
}

/// Returns a table with the columns that were measured.
fn table(scores: &[Score]) -> String {
    type Figure = (&'static str, fn(&Score) -> Option<Times>, bool);
    const FIGURES: [Figure; 5] = [
        ("first byte ms", |score| score.first_byte_ms, false),
        ("direct ms", |score| score.direct_ms, false),
        ("Mbit/s", |score| score.mbit_s, true),
        ("idle KiB", |score| score.idle_kib, false),
        ("active KiB", |score| score.active_kib, false),
    ];
    let measured = |(_, of, _): &Figure| scores.iter().any(|score| of(score).is_some());
    let figures: Vec<_> = FIGURES.into_iter().filter(measured).collect();
    let met = scores.iter().any(|score| !score.runs.is_empty());
    let mut text = format!("| {:<33} |", "");
    let mut line = String::from("| --- |");
    if met {
        text += " direct |";
        line += " ---: |";
    }
    for (name, ..) in &figures {
        let _ = write!(text, " {name:<22} |");
        line += " --- |";
    }
    let _ = writeln!(text, "\n{line}");
    for (row, score) in scores.iter().enumerate() {
        let _ = write!(text, "| {:<33} |", score.name);
        if met {
            let direct = |run: &&Run| run.path.as_deref() == Some("direct");
            let direct = score.runs.iter().filter(direct).count();
            let _ = write!(text, " {:>6} |", format!("{direct}/{}", score.runs.len()));
        }
        let reference = scores.first().filter(|_| row > 0);
        for (_, of, more) in &figures {
            let cell = figure(of(score), reference.and_then(of), *more);
            let _ = write!(text, " {cell:<22} |");
        }
        text.push('\n');
    }
    text
}

/// Returns median, worst, and how many times better than `reference` the median is.
fn figure(times: Option<Times>, reference: Option<Times>, more: bool) -> String {
    let Some(times) = times else {
        return "-".into();
    };
    let mut text = format!("{:.0} ({:.0})", times.median, times.worst);
    if let Some(reference) = reference {
        let ratio = times.median / reference.median;
        let ratio = if more { ratio } else { ratio.recip() };
        let _ = write!(text, ", x{ratio:.2}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_runs_and_starts_equally_often() {
        let order: Vec<_> = turns(3, 3).collect();
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
    }

    #[test]
    fn the_worst_rate_is_the_lowest_and_more_is_better() {
        let rates = slowest(&[300.0, 100.0, 200.0]).unwrap();
        assert_eq!((rates.median, rates.worst), (200.0, 100.0));
        assert_eq!(
            figure(Some(rates), slowest(&[400.0]), true),
            "200 (100), x0.50"
        );
        assert_eq!(
            figure(Some(rates), slowest(&[400.0]), false),
            "200 (100), x2.00"
        );
        assert_eq!(figure(None, Some(rates), true), "-");
    }

    #[test]
    fn a_table_has_the_columns_that_were_measured() {
        let score = Score {
            rates: vec![100.0],
            ..Score::new("one")
        };
        let text = table(&[score.clone().settled(), score.settled()]);
        assert!(
            text.contains("Mbit/s") && !text.contains("direct ms"),
            "{text}"
        );
        assert!(
            text.contains("100 (100)  ") && text.contains("100 (100), x1.00"),
            "{text}"
        );
    }
}
