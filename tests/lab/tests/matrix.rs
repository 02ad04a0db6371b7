//! The short form of the connectivity matrix. All peers connect, and no path is relayed that could
//! be direct.

use std::sync::{Mutex, PoisonError};

use throughline_lab::{Cell, Matrix, Pairing, Plan, Verdict, matrix};

mod common;

/// Runs the tests one at a time. Browsers and many labs at once would be so slow that they look
/// like failures.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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
    let red = results
        .cells
        .iter()
        .filter(|cell| cell.verdict >= Verdict::Worse);
    let red: Vec<_> = red.map(|cell: &Cell| cell.line(false)).collect();
    assert!(red.is_empty(), "these cells are red:\n{}", red.join("\n"));
}

#[test]
fn native_peers_connect_behind_the_most_important_nats() {
    nothing_is_red(vec![Pairing::ALL[0]]);
}

#[test]
fn pages_and_programs_connect_behind_the_most_important_nats() {
    nothing_is_red(Pairing::ALL[1..].to_vec());
}
