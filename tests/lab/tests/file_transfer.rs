//! The main use of the project: a page and a program, each behind its own NAT, connect directly,
//! and a file is sent.

use std::{fs, process::Command, time::Duration};

use throughline_lab::{NatKind, Spec, Stage};

mod common;

const BYTES: u64 = 50 << 20;

#[test]
fn a_page_and_a_program_behind_nats_connect_directly_and_send_a_file() {
    let Some(parts) = common::parts_or_skip(true) else {
        return;
    };
    // The page is on host a, the program on host b, and the relay is public.
    let mut stage = Stage::up(
        Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted),
        &parts,
    )
    .unwrap();
    stage.launch(&["a"]).unwrap();
    let received = stage.lab.directory().join("received");
    fs::create_dir(&received).unwrap();
    let listener = stage.receive("b", &received).unwrap();

    let sent = stage
        .send_file("a", &listener.ticket, BYTES, Duration::from_secs(150))
        .unwrap();
    println!(
        "connected over {} in {} ms, direct after {} ms, {} MiB in {} s",
        sent["first"]["path"],
        sent["connectedMs"],
        sent["directMs"],
        BYTES >> 20,
        sent["seconds"]
    );
    assert_eq!(sent["path"]["path"], "direct", "{sent}");
    assert_eq!(sent["receipt"]["ok"], true, "{sent}");
    assert_eq!(sent["receipt"]["sha256"], sent["sha256"]);

    // The program reports the file, and the file is on its disk.
    let event = listener
        .program
        .as_ref()
        .unwrap()
        .wait("file", Duration::from_secs(10))
        .unwrap();
    assert_eq!(event["sha256"], sent["sha256"]);
    let files: Vec<_> = fs::read_dir(&received)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(&files[0]).unwrap().len(), BYTES);
    let digest = Command::new("sha256sum").arg(&files[0]).output().unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    assert_eq!(digest.split_whitespace().next(), sent["sha256"].as_str());
}
