//! Tests what streams carry: files, measurements and chats.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::Stdio,
};

use sha2::Digest as _;

use super::{Program, Value, has_fields, listening, refused, relay, serve, throughline};

#[test]
fn files_arrive_with_the_same_hash_and_under_safe_names() {
    let home = tempfile::tempdir().unwrap();
    let inbox = home.path().join("inbox");
    let source = home.path().join("data.bin");
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    std::fs::write(&source, &bytes).unwrap();
    let hash = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(&bytes));
    let (_server, listener, ticket) = listening(&["--recv", inbox.to_str().unwrap()]);

    let send = |path: &Path| {
        Program::start(&["connect", &ticket, "--send", path.to_str().unwrap()]).finish()
    };
    let (events, status) = send(&source);
    assert!(status.success(), "{events:#?}");
    let sent = events
        .iter()
        .find(|event| event["event"] == "sent")
        .unwrap();
    assert_eq!(sent["bytes"], bytes.len());
    assert_eq!(sent["sha256"], hash);
    assert!(sent["seconds"].as_f64().unwrap() > 0.0);

    let file = listener.event("file");
    has_fields(&file, &["peer_id", "name", "path", "bytes", "sha256"]);
    assert_eq!(file["sha256"], hash);
    assert_eq!(file["name"], "data.bin");
    assert_eq!(std::fs::read(inbox.join("data.bin")).unwrap(), bytes);

    refused(
        &["connect", &ticket, "--send", "/no/such"],
        "io",
        "/no/such",
    );
    let names: Vec<_> = std::fs::read_dir(&inbox)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["data.bin"], "nothing else is left");
}

#[test]
fn a_sender_that_was_killed_goes_on_from_what_is_there() {
    const SIZE: u64 = 300_000_000;
    let home = tempfile::tempdir().unwrap();
    let (inbox, source) = (home.path().join("inbox"), home.path().join("big.bin"));
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    let (_server, listener, ticket) = listening(&["--recv", inbox.to_str().unwrap()]);
    let arguments = ["connect", &ticket, "--send", source.to_str().unwrap()];
    let mut relayed = arguments.to_vec();
    relayed.push("--relay-only");
    let killed = Program::start(&relayed);
    let enough =
        |event: &Value| event["event"] == "progress" && event["done"].as_u64() >= Some(10_000_000);
    killed.find(enough).expect("a part");
    // The listener does not know yet that the sender is gone when it comes again.
    killed.signal("-KILL");
    drop(killed);
    let (events, status) = Program::start(&arguments).finish();
    assert!(status.success(), "{events:#?}");
    let sent = events
        .iter()
        .find(|event| event["event"] == "sent")
        .unwrap();
    let resumed = sent["resumed"].as_u64().unwrap();
    assert!((1_000_000..SIZE).contains(&resumed), "{sent}");
    let file = listener.event("file");
    assert_eq!(
        (&file["bytes"], &file["sha256"]),
        (&SIZE.into(), &sent["sha256"])
    );
    assert_eq!(file["resumed"], resumed);
}

#[test]
fn a_directory_and_several_files_are_sent_by_one_command() {
    let home = tempfile::tempdir().unwrap();
    let (inbox, photos) = (home.path().join("inbox"), home.path().join("photos"));
    std::fs::create_dir_all(photos.join("deep")).unwrap();
    for name in ["a", "deep/b", ".hidden"] {
        std::fs::write(photos.join(name), name).unwrap();
    }
    let note = home.path().join("c:d.txt");
    std::fs::write(&note, "note").unwrap();
    let (_server, _listener, ticket) = listening(&["--recv", inbox.to_str().unwrap()]);
    let both = [
        "connect",
        &ticket,
        "--send",
        photos.to_str().unwrap(),
        note.to_str().unwrap(),
    ];
    refused(&both, "invalid_config", "`:`");
    let line = [
        "connect",
        &ticket,
        "--as",
        "d.txt",
        "--send",
        note.to_str().unwrap(),
    ];
    assert!(Program::start(&line).finish().1.success());
    let (events, status) = Program::start(&both[..4]).finish();
    assert!(status.success(), "{events:#?}");
    let skipped = events
        .iter()
        .find(|event| event["event"] == "skipped")
        .unwrap();
    assert!(
        skipped["reason"].as_str().unwrap().contains("a dot"),
        "{skipped}"
    );
    for (name, text) in [
        ("photos/a", "a"),
        ("photos/deep/b", "deep/b"),
        ("d.txt", "note"),
    ] {
        assert_eq!(std::fs::read_to_string(inbox.join(name)).unwrap(), text);
    }
}

#[test]
fn what_cannot_be_sent_is_told_before_a_connection() {
    let (server, _listener, ticket) = listening(&["--echo"]);
    drop(server);
    for (path, why) in [("/dev/null", "a device"), ("/proc/version", "no size")] {
        let arguments = ["connect", &ticket, "--send", path];
        refused(&arguments, "io", why);
    }
}

#[test]
fn a_file_above_the_limit_is_refused_on_both_sides() {
    let home = tempfile::tempdir().unwrap();
    let inbox = home.path().join("inbox");
    let source = home.path().join("big");
    std::fs::write(&source, [0; 1001]).unwrap();
    let arguments = ["--recv", inbox.to_str().unwrap(), "--max-size", "1000"];
    let (_server, listener, ticket) = listening(&arguments);
    let arguments = ["connect", &ticket, "--send", source.to_str().unwrap()];
    refused(&arguments, "limit_exceeded", "too_large");
    let failed = listener.event("file_failed");
    has_fields(&failed, &["peer_id", "code", "message"]);
}

#[test]
fn throughput_is_measured_both_ways() {
    let (_server, _listener, ticket) = listening(&["--echo"]);
    for (option, direction) in [(None, "upload"), (Some("--download"), "download")] {
        let mut arguments = vec!["connect", &ticket, "--bench", "0.3"];
        arguments.extend(option);
        let (events, status) = Program::start(&arguments).finish();
        assert!(status.success(), "{events:#?}");
        let bench = events
            .iter()
            .find(|event| event["event"] == "bench")
            .unwrap();
        assert!(bench["mbit_s"].as_f64().unwrap() > 0.0);
        assert_eq!(bench["direction"], direction);
        has_fields(bench, &["bytes", "seconds", "path"]);
    }
}

#[test]
fn chat_lines_are_events_for_scripts() {
    let (_server, listener, ticket) = listening(&[]);
    let mut connect = Program::start(&["connect", &ticket]);
    let mut stdin = connect.stdin();
    writeln!(stdin, "hello").unwrap();
    let message = listener.event("message");
    assert_eq!(message["text"], "hello");
    has_fields(&message, &["peer_id"]);
    drop(stdin);
    let (events, status) = connect.finish();
    assert!(status.success(), "{events:#?}");
}

#[test]
fn terminals_are_piped_for_people() {
    let (_server, ready) = serve();
    let mut listener = throughline(&["listen", "--relay", relay(&ready, "quic-v1")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(listener.stdout.take().unwrap());
    let mut ticket = String::new();
    heard.read_line(&mut ticket).unwrap();
    let mut connect = throughline(&["connect", ticket.trim()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answers = connect.stdout.take().unwrap();
    connect.stdin.take().unwrap().write_all(b"ping\n").unwrap();
    let mut line = String::new();
    heard.read_line(&mut line).unwrap();
    assert_eq!(line, "ping\n");
    listener
        .stdin
        .take()
        .unwrap()
        .write_all(b"pong\xff")
        .unwrap();
    let mut answer = Vec::new();
    answers.read_to_end(&mut answer).unwrap();
    assert_eq!(
        answer, b"pong\xff",
        "stdout carries what the peer says and nothing else"
    );
    assert!(connect.wait().unwrap().success());
    assert!(listener.wait().unwrap().success());
}
