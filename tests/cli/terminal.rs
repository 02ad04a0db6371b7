//! A terminal, pipe or device that takes nothing holds up neither peers nor the end of the program.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{ChildStdin, ChildStdout, Stdio},
    thread::{self, JoinHandle},
};

use serde_json::Value;

use super::{Program, listen, serve, throughline};

/// This many lines do not fit into a pipe and the queue of the program.
const LINES: usize = 200;

/// Starts a relay, and a listener of whose output only the ticket is read.
fn unread(arguments: &[&str]) -> (Program, Program, BufReader<ChildStdout>, String) {
    let (server, ready) = serve();
    let (listener, mut stdout) = Program::unread(&mut listen(&ready, arguments));
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let ticket = match serde_json::from_str::<Value>(&line) {
        Ok(ready) => ready["ticket"].as_str().unwrap().to_owned(),
        Err(_) => line.trim().to_owned(),
    };
    (server, listener, stdout, ticket)
}

/// Writes on a thread, because the other side may not read.
fn say(mut stdin: ChildStdin, bytes: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || {
        let _ = stdin.write_all(&bytes);
    })
}

/// Sends all lines to the listener, each with its number.
fn flood(ticket: &str) {
    let mut connect = Program::start(&["connect", ticket]);
    let lines = (0..LINES).map(|n| format!("{n:016000}\n"));
    let said = say(connect.stdin(), lines.collect::<String>().into_bytes());
    let (_, status) = connect.finish();
    assert!(status.success(), "{status}");
    said.join().unwrap();
}

#[track_caller]
fn is_served(ticket: &str) {
    let (events, status) = Program::start(&["ping", ticket, "--count", "1"]).finish();
    assert!(status.success(), "{events:#?}");
}

#[track_caller]
fn stops(listener: Program) {
    listener.signal("-TERM");
    let (_, status) = listener.finish();
    assert!(status.success(), "{status}");
}

#[test]
fn events_that_nobody_reads_hold_up_neither_peers_nor_the_end() {
    let (_server, listener, _stdout, ticket) = unread(&["--json"]);
    flood(&ticket);
    is_served(&ticket);
    stops(listener);
}

#[test]
fn whoever_reads_again_learns_how_many_lines_are_missing() {
    let (_server, mut listener, stdout, ticket) = unread(&["--json"]);
    flood(&ticket);
    listener.read(stdout);
    let mut messages = 0;
    let dropped = loop {
        let event = listener.find(|_| true).expect("an event");
        if event["event"] == "message" {
            let number = event["text"].as_str().unwrap().parse::<usize>();
            assert_eq!(number, Ok(messages), "lines keep their order");
            messages += 1;
        } else if event["event"] == "dropped" {
            break event["lines"].as_u64().unwrap() as usize;
        }
    };
    // A few events of the connection may be missing, too.
    let missing = LINES - messages;
    assert!(missing > 0);
    assert!((missing..missing + 10).contains(&dropped), "{dropped}");
    is_served(&ticket);
    listener.event("connection");
    stops(listener);
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_peers_nor_the_end() {
    let (_server, ready) = serve();
    let mut command = listen(&ready, &["--echo", "--json", "-vvv"]);
    let mut listener = Program::spawn(command.stderr(Stdio::piped()));
    let ticket = listener.event("ready")["ticket"].clone();
    let mut log = listener.stderr();
    for _ in 0..10 {
        is_served(ticket.as_str().unwrap());
    }
    stops(listener);
    let mut text = Vec::new();
    log.read_to_end(&mut text).unwrap();
    assert!(text.len() > 60_000, "it is as much as a pipe holds");
}

#[test]
fn a_transfer_succeeds_although_stderr_is_full() {
    let home = tempfile::tempdir().unwrap();
    let (source, inbox) = (home.path().join("data.bin"), home.path().join("inbox"));
    fs::write(&source, vec![7; 1_000_000]).unwrap();
    let full = || Stdio::from(File::create("/dev/full").unwrap());
    let (_server, ready) = serve();
    let mut command = listen(&ready, &["--recv", inbox.to_str().unwrap(), "-vv"]);
    let (listener, mut stdout) = Program::unread(command.stderr(full()));
    let mut ticket = String::new();
    stdout.read_line(&mut ticket).unwrap();

    let line = ["connect", ticket.trim(), "--send", source.to_str().unwrap()];
    let (connect, mut stdout) = Program::unread(throughline(&line).arg("-vv").stderr(full()));
    let (_, status) = connect.finish();
    assert!(status.success(), "{status}");
    let mut result = String::new();
    stdout.read_to_string(&mut result).unwrap();
    assert!(result.starts_with("sent "), "{result}");
    assert!(fs::read(inbox.join("data.bin")).unwrap() == fs::read(source).unwrap());
    stops(listener);
}

#[test]
fn a_chat_waits_for_its_reader_and_loses_nothing() {
    let (_server, mut listener, mut stdout, ticket) = unread(&[]);
    let (mut connect, _) = Program::unread(&mut throughline(&["connect", &ticket]));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let said = say(connect.stdin(), bytes.clone());
    is_served(&ticket);
    let mut heard = vec![0; bytes.len()];
    stdout.read_exact(&mut heard).unwrap();
    assert!(heard == bytes);
    said.join().unwrap();
    drop(listener.stdin());
    assert!(connect.finish().1.success());
    assert!(listener.finish().1.success());
}

#[test]
fn a_chat_that_nobody_reads_does_not_hold_up_the_end() {
    let (_server, listener, mut stdout, ticket) = unread(&[]);
    let (mut connect, _) = Program::unread(&mut throughline(&["connect", &ticket]));
    let _said = say(connect.stdin(), vec![7; 3_000_000]);
    // From the first byte on, the chat has stdout.
    stdout.read_exact(&mut [0]).unwrap();
    stops(listener);
}

#[test]
fn a_listener_ends_when_nobody_can_read_any_more() {
    let (_server, listener, stdout, ticket) = unread(&["--json"]);
    drop(stdout);
    let ping = Program::start(&["ping", &ticket, "--count", "1"]);
    let (_, status) = listener.finish();
    assert_eq!(status.code(), Some(1));
    drop(ping);
}
