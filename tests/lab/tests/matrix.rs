//! The short form of the connectivity matrix: nobody is left unconnected, and nobody relayed who could be direct.

use std::sync::{Mutex, PoisonError};

use throughline_lab::{Cell, Matrix, Pairing, Plan, Verdict, matrix};

mod common;

/// Browsers and many labs at once would be slow enough to look like failures.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Cells that are red for a reason: the strategy that would make them direct is not there yet. Each must stay as it
/// is said here; one that turns green has to leave the list.
const NOT_YET: [&str; 2] = [
    // No port is asked for by UPnP-IGD, NAT-PMP or PCP yet.
    "symmetric-random with UPnP",
    "symmetric-random with PCP",
];

fn nothing_is_red(pairings: Vec<Pairing>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let browsers = pairings.iter().any(|pairing| !pairing.is_native());
    let Some(parts) = common::parts_or_skip(browsers) else {
        return;
    };
    let plan = Plan {
        pairings,
        ..Plan::default()
    };
    println!("{}", Matrix::heading());
    let results = matrix(&plan, &parts, |cell| println!("{}", cell.line(false))).unwrap();
    println!("{}", results.summary());
    let unexpected = |cell: &Cell| match NOT_YET.contains(&cell.a.as_str()) {
        true => cell.verdict != Verdict::Worse,
        false => cell.verdict >= Verdict::Worse,
    };
    let lines = results
        .cells
        .iter()
        .filter(|cell| unexpected(cell))
        .map(|cell| cell.line(false));
    let unexpected: Vec<_> = lines.collect();
    assert!(
        unexpected.is_empty(),
        "not as it should be:\n{}",
        unexpected.join("\n")
    );
}

#[test]
fn native_peers_meet_behind_every_telling_nat() {
    nothing_is_red(vec![Pairing::ALL[0]]);
}

#[test]
fn pages_and_programs_meet_behind_every_telling_nat() {
    nothing_is_red(Pairing::ALL[1..].to_vec());
}
