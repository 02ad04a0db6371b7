//! Load and faults on loopback, through the public API and the program. Each row of the table has a
//! promise, an aim, and what was measured.
//!
//! `cargo test --all-features --test load` runs the short form. It fails if a promise is broken,
//! and shows an aim that is missed. `make load` runs the long form and writes the table to
//! docs/load.md. With `--hour`, connections come and go for an hour. An argument that is no option
//! runs only the scenarios whose name contains it.

mod churn;
mod circuits;
#[path = "../common/mod.rs"]
mod common;
mod connects;
mod held;
mod peers;
mod report;
mod restart;
mod start;
mod stun;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use report::{Form, Report, Row};

/// Makes glibc return large blocks to the system when they are freed. Without it, glibc's threshold
/// grows, and the receive buffers of peers that are gone stay resident, which would hide a leak.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

fn main() -> ExitCode {
    if std::env::var_os(GIVE_BACK.0).is_some() {
        return run();
    }
    // The allocator reads the variable only at the start of the process.
    let again = std::env::current_exe().and_then(|this| {
        let mut command = Command::new(this);
        command.args(std::env::args_os().skip(1));
        command.env(GIVE_BACK.0, GIVE_BACK.1).status()
    });
    match again {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[tokio::main]
async fn run() -> ExitCode {
    let mut form = Form::Short;
    let (mut markdown, mut only) = (None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--long" => form = Form::Long,
            "--hour" => form = Form::Hour,
            held::MEASURED => {
                held::measured(arguments.next().unwrap_or_default()).await;
                return ExitCode::SUCCESS;
            }
            "--markdown" => markdown = arguments.next().map(PathBuf::from),
            // Options of test runners, such as --nocapture, are ignored.
            option if option.starts_with('-') => {}
            _ => only.push(argument),
        }
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part));
    let mut report = Report::begin(form);
    // Churn comes first, because a leak would find room in the heap that the others leave.
    for name in [
        "churn", "start", "connects", "stun", "circuits", "restart", "held",
    ] {
        if !wanted(name) {
            continue;
        }
        let begun = Instant::now();
        let rows = match name {
            "start" => start::run(form).await,
            "connects" => connects::run(form).await,
            "stun" => stun::run(form).await,
            "circuits" => circuits::run().await,
            "restart" => restart::run(form).await,
            "held" => held::run(form).await,
            _ => churn::run(form).await,
        };
        for row in rows {
            println!("{row}");
            report.rows.push(row);
        }
        println!("  ({name} took {:.0} s)", begun.elapsed().as_secs_f64());
    }
    let text = report.end();
    println!("\n{text}");
    if let Some(path) = markdown
        && let Err(error) = std::fs::write(&path, text)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let failed = report
        .rows
        .iter()
        .filter(|row| !row.kept && row.known.is_none())
        .count();
    println!("{} passed, {failed} failed", report.rows.len() - failed);
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
