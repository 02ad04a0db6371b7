//! `lab`: the NAT lab for people.

use std::{
    fs,
    io::{IsTerminal, stdout},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use throughline_lab::{
    Browsers, CHANGES, Contest, Cost, Coturn, Lab, LabError, Matrix, NatKind, Pairing, Parts, Peer,
    Plan, Result, Spec, Tour, Verdict, classify::classify, compare, matrix, mobility,
};

/// Real kernel NATs in network namespaces.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Say whether a lab can run here, and if not, what to install.
    Check,
    /// Connect peers behind every NAT, and print the results beside what theory allows.
    ///
    /// Exits with 1 if a cell is not connected, or relayed although it could be direct.
    Matrix(MatrixArguments),
    /// Change the network of peers that are connected, and print what each change costs.
    ///
    /// Exits with 1 if a change costs more than it may.
    Mobility(MobilityArguments),
    /// Connect our program and programs over other SDKs in turn, and print medians and ratios.
    Compare(CompareArguments),
    /// Build a lab and open a shell on one of its hosts.
    Shell {
        #[command(flatten)]
        lab: Description,
    },
    /// Build a lab and run a command on one of its hosts.
    Run {
        #[command(flatten)]
        lab: Description,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Say what a host's NAT does, as an RFC 5780 client behind it measures with coturn.
    Classify {
        #[command(flatten)]
        lab: Description,
    },
}

#[derive(Args)]
struct Description {
    /// NAT of site a.
    #[arg(long, default_value_t = NatKind::PortRestricted)]
    a: NatKind,
    /// NAT of site b.
    #[arg(long, default_value_t = NatKind::PortRestricted)]
    b: NatKind,
    /// Delay the links: 50 ms round trip to the relay, 80 ms between the peers.
    #[arg(long)]
    figures: bool,
    /// A JSON description of the whole lab, instead of two sites.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["a", "b", "figures"])]
    spec: Option<PathBuf>,
    /// The host: a, b, a-router, b-router, relay, other, internet, or a name from the description.
    #[arg(long, default_value = "a")]
    host: String,
}

impl Description {
    fn up(&self) -> Result<Lab> {
        let spec = match &self.spec {
            None => Spec::pair(self.a, self.b),
            Some(file) => {
                let text = fs::read_to_string(file)
                    .map_err(|e| LabError::Spec(format!("{}: {e}", file.display())))?;
                serde_json::from_str(&text)
                    .map_err(|e| LabError::Spec(format!("{}: {e}", file.display())))?
            }
        };
        Lab::up(if self.figures {
            spec.figure_delays()
        } else {
            spec
        })
    }
}

#[derive(Args)]
struct MatrixArguments {
    /// Try every kind with every kind. This takes long.
    #[arg(long, conflicts_with = "short")]
    full: bool,
    /// Try the most important cells only. This is the default.
    #[arg(long)]
    short: bool,
    /// How often to try each cell. With more than one, median and worst are shown, and flaky cells
    /// are named.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// How many native cells are tried at the same time. Use 1 for figures.
    #[arg(long, value_name = "N", default_value_t = Plan::default().jobs)]
    jobs: usize,
    /// Let native diallers reach their relay before they connect, as in a program that has run for
    /// a while.
    #[arg(long)]
    warm: bool,
    /// Let the relay be no TURN server.
    #[arg(long)]
    no_turn: bool,
    /// Pairings, dialler first: native/native, browser/native, native/browser, browser/browser. The
    /// default is all four, or only the native one if no browser can be driven.
    #[arg(long, value_name = "PAIRING", value_delimiter = ',')]
    pairing: Vec<PairingName>,
    /// Try only cells whose NAT names contain this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The program to try [default: $THROUGHLINE, or what cargo build made].
    #[arg(long, value_name = "FILE")]
    throughline: Option<PathBuf>,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Args)]
struct MobilityArguments {
    /// Make only changes whose names contain this text, also the slow ones.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print the names of all changes, and make none.
    #[arg(long)]
    list: bool,
    /// Make the slow changes too, with 200 MiB under way between programs, and random changes with
    /// five seeds.
    #[arg(long)]
    long: bool,
    /// Connect iroh's peers, by iroh's relay, instead of ours. `make bench` builds their program.
    #[arg(long, conflicts_with = "pairing")]
    iroh: bool,
    /// What decides the random changes [default: the time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Pairings, dialler first, as for the matrix. The default is native/native.
    #[arg(long, value_name = "PAIRING", value_delimiter = ',')]
    pairing: Vec<PairingName>,
    /// The program to try [default: $THROUGHLINE, or what cargo build made].
    #[arg(long, value_name = "FILE")]
    throughline: Option<PathBuf>,
    /// Write the results, with all events, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Args)]
struct CompareArguments {
    /// How often each contender connects.
    #[arg(long, value_name = "N", default_value_t = 10)]
    repeat: usize,
    /// How often each contender with a page connects; 0 leaves them out.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pages: usize,
    /// How often each throughput is measured, directly and through relays; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 3)]
    throughput: usize,
    /// How long each measurement of throughput takes.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// How many idle connections the memory is measured with; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 60)]
    held: usize,
    /// The program to try [default: $THROUGHLINE, or what cargo build --release made].
    #[arg(long, value_name = "FILE")]
    throughline: Option<PathBuf>,
    /// The folder of the peers' programs [default: where cargo build --release puts them].
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy)]
struct PairingName(Pairing);

impl FromStr for PairingName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Pairing::ALL
            .into_iter()
            .find(|pairing| pairing.to_string() == text);
        known.map(Self).ok_or_else(|| {
            format!(
                "{text:?} is none of native/native, browser/native, native/browser, browser/browser"
            )
        })
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Check => {
            Lab::available().map_err(LabError::Missing)?;
            println!("a lab can run here");
            Ok(ExitCode::SUCCESS)
        }
        Task::Matrix(arguments) => print_matrix(arguments),
        Task::Mobility(arguments) => print_mobility(arguments),
        Task::Compare(arguments) => print_comparison(arguments),
        Task::Shell { lab } => {
            let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
            let running = lab.up()?;
            let names: Vec<_> = running
                .names()
                .map(|name| describe(&running, name))
                .collect();
            eprintln!(
                "lab up in {:?}; you are on {}\n{}",
                running.setup_time(),
                lab.host,
                names.join("\n")
            );
            status(running.host(&lab.host)?.command(shell))
        }
        Task::Run { lab, command } => {
            let running = lab.up()?;
            let mut program = running.host(&lab.host)?.command(&command[0]);
            program.args(&command[1..]);
            status(program)
        }
        Task::Classify { lab } => {
            let running = lab.up()?;
            let coturn = Coturn::start(&running)?;
            let host = running.host(&lab.host)?;
            let server = if host.ipv4().is_some() {
                coturn.address()
            } else {
                coturn.address6()
            };
            match host.run(async move || classify(server).await)? {
                Ok(Some(report)) => println!("{report:#?}"),
                Ok(None) => println!("no UDP passes"),
                Err(error) => return Err(LabError::Program(error.to_string())),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn describe(lab: &Lab, name: &str) -> String {
    let host = lab.host(name).ok();
    let addresses = host.map(|host| {
        [
            host.ipv4().map(|ip| ip.to_string()),
            host.ipv6().map(|ip| ip.to_string()),
        ]
    });
    let addresses: Vec<_> = addresses.into_iter().flatten().flatten().collect();
    format!("  {name:<12} {}", addresses.join(" "))
}

fn status(mut program: Command) -> Result<ExitCode> {
    let status = program
        .status()
        .map_err(|e| LabError::Program(format!("{}: {e}", program.get_program().display())))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn print_matrix(arguments: MatrixArguments) -> Result<ExitCode> {
    Lab::available().map_err(LabError::Missing)?;
    let parts = Parts::find(arguments.throughline)?;
    let mut pairings: Vec<_> = arguments.pairing.iter().map(|name| name.0).collect();
    if pairings.is_empty() {
        pairings = Pairing::ALL.to_vec();
        if let Err(missing) = Browsers::available(&parts.repository) {
            eprintln!("lab: SKIPPED the pairings with a browser: {missing}");
            pairings.retain(|pairing| {
                pairing.dialler == Peer::Native && pairing.listener == Peer::Native
            });
        }
    }
    let plan = Plan {
        pairings,
        full: arguments.full,
        repeat: arguments.repeat,
        jobs: arguments.jobs,
        warm: arguments.warm,
        no_turn: arguments.no_turn,
        only: arguments.only,
    };
    let colours = stdout().is_terminal();
    println!("{}", Matrix::heading());
    let results = matrix(&plan, &parts, |cell| println!("{}", cell.line(colours)))?;
    println!("{}", results.summary());
    if let Some(file) = arguments.json {
        write_json(&file, &results)?;
    }
    if let Some(file) = arguments.markdown {
        write(&file, &results.markdown())?;
    }
    let red = results
        .cells
        .iter()
        .any(|cell| cell.verdict >= Verdict::Worse);
    Ok(if red {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print_mobility(arguments: MobilityArguments) -> Result<ExitCode> {
    if arguments.list {
        CHANGES
            .iter()
            .for_each(|change| println!("{}", change.name));
        return Ok(ExitCode::SUCCESS);
    }
    Lab::available().map_err(LabError::Missing)?;
    let parts = Parts::find(arguments.throughline)?;
    let pairings: Vec<_> = arguments.pairing.iter().map(|name| name.0).collect();
    if pairings.iter().any(|pairing| !pairing.is_native()) {
        Browsers::available(&parts.repository).map_err(LabError::Missing)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let tour = Tour {
        long: arguments.long,
        only: arguments.only,
        pairings: match pairings.is_empty() {
            true => vec![Pairing::ALL[0]],
            false => pairings,
        },
        seed: arguments
            .seed
            .unwrap_or_else(|| now.map_or(0, |now| now.as_secs() % 1_000_000)),
        iroh: arguments.iroh,
    };
    let colours = stdout().is_terminal();
    println!("{}", Cost::heading());
    let results = mobility(&tour, &parts, |cost| println!("{}", cost.line(colours)))?;
    if let Some(file) = arguments.json {
        write_json(&file, &results)?;
    }
    if let Some(file) = arguments.markdown {
        write(&file, &results.markdown())?;
    }
    Ok(
        match results.rows.iter().all(|cost| cost.faults.is_empty()) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
    )
}

fn print_comparison(arguments: CompareArguments) -> Result<ExitCode> {
    Lab::available().map_err(LabError::Missing)?;
    let parts = Parts::find_release(arguments.throughline)?;
    let mut pages = arguments.pages;
    if pages > 0
        && let Err(missing) = Browsers::available(&parts.repository)
    {
        eprintln!("lab: SKIPPED the contenders with a page: {missing}");
        pages = 0;
    }
    let contest = Contest {
        repeat: arguments.repeat,
        pages,
        throughput: arguments.throughput,
        seconds: arguments.seconds,
        held: arguments.held,
        peers: arguments.peers.unwrap_or_else(|| parts.peers()),
    };
    let results = compare(&contest, &parts, |name, told| {
        eprintln!("{name:<33} {told}")
    })?;
    print!("{}", results.tables());
    if let Some(file) = arguments.json {
        write_json(&file, &results)?;
    }
    if let Some(file) = arguments.markdown {
        write(&file, &results.tables())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_json(file: &Path, results: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(results).map_err(|e| LabError::Program(e.to_string()))?;
    write(file, &text)
}

fn write(file: &Path, text: &str) -> Result<()> {
    // The folder may be missing, because cargo may use another one than target/.
    let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(file, text))
        .map_err(|source| LabError::Io {
            what: format!("write {}", file.display()),
            source,
        })
}
