//! Checks what a change of the network costs a connection that is in use. The changes are those of
//! `make lab LAB="--mobility"`.

use std::sync::{Mutex, PoisonError};

use throughline_lab::{Cost, Pairing, Tour, mobility};

mod common;

/// The seed of the random changes.
const SEED: u64 = 15;

/// Runs the tests one at a time, because a busy machine looks like a slow network.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Makes the changes between these peers whose names have `word`, or that of `MOBILITY="replaced"`.
fn each_is_mended(pairings: Vec<Pairing>, word: Option<&str>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let browsers = pairings.iter().any(|pairing| !pairing.is_native());
    let Some(parts) = common::parts_or_skip(browsers) else {
        return;
    };
    let tour = Tour {
        only: std::env::var("MOBILITY").ok().or(word.map(str::to_owned)),
        pairings,
        seed: SEED,
        ..Tour::default()
    };
    println!("{}", Cost::heading());
    let costs = mobility(&tour, &parts, |cost| println!("{}", cost.line(false))).unwrap();
    let failed = costs.rows.iter().filter(|cost| !cost.faults.is_empty());
    let failed: Vec<_> = failed
        .map(|cost| format!("{}\n{:#?}", cost.line(false), cost.faults))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_change_of_the_network_is_mended_in_about_a_second() {
    each_is_mended(vec![Pairing::ALL[0]], None);
}

#[test]
fn a_page_and_a_program_go_on_when_the_network_of_either_moves() {
    each_is_mended(Pairing::ALL[1..3].to_vec(), Some("address is replaced"));
}
