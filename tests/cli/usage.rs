//! Tests `throughline usage` with relays whose peers take something.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    common::{
        PATIENCE,
        program::{Program, throughline},
    },
    listen, relay,
};

/// Returns the rows of the record in `data`, or the failure to read it.
fn rows(data: &Path, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let mut usage = throughline(&["usage", "--json", "--data"]);
    let output = usage.arg(data).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        return Err(text);
    }
    let lines = text.lines();
    Ok(lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect())
}

/// Waits for what only the file or HTTP shows.
fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the row of a peer.
fn row(data: &Path, peer: &str) -> Option<Value> {
    let rows = rows(data, &["--by", "peer"]).unwrap();
    rows.into_iter().find(|row| row["peer"] == peer)
}

#[test]
fn usage_says_what_a_peer_took_while_the_relay_runs_and_afterwards() {
    const SIZE: u64 = 300_000;
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let file = home.path().join("file");
    std::fs::write(&file, vec![7; SIZE as usize]).unwrap();
    let mut serve = throughline(&["serve", "--host", "127.0.0.1", "--port", "0", "--json"]);
    let server = Program::spawn(serve.arg("--data").arg(&data));
    let ready = server.event("ready");
    let received = home.path().join("received");
    let mut listener = listen(&ready, &["--json", "--relay-only", "--recv"]);
    let listener = Program::spawn(listener.arg(&received));
    let listening = listener.event("ready");
    let peer = listening["peer_id"].as_str().unwrap();
    let ticket = listening["ticket"].as_str().unwrap();
    let mut send = throughline(&["connect", ticket, "--json", "--relay-only"]);
    send.arg("--send")
        .arg(&file)
        .args(["--relay", relay(&ready, "quic-v1")]);
    let sender = Program::spawn(&mut send);
    sender.event("sent");
    // The sender has ended, so its circuit has.
    assert!(sender.finish().1.success());

    let taken = until("the circuit is in the record", || {
        row(&data, peer).filter(|row| row["bytes"].as_u64() >= Some(SIZE))
    });
    assert_eq!(
        (&taken["circuits"], &taken["reservations"]),
        (&1.into(), &1.into())
    );
    let tokens = rows(&data, &["--by", "token"]).unwrap();
    assert!(
        tokens
            .iter()
            .any(|row| row["token"] == "" && row["circuits"] == 1)
    );
    assert_eq!(rows(&data, &["--since", "2999-01-01"]), Ok(Vec::new()));

    server.signal("-TERM");
    assert!(server.finish().1.success());
    let days = rows(&data, &["--by", "day"]).unwrap();
    assert!(
        days.iter()
            .any(|row| row["bytes"].as_u64() >= taken["bytes"].as_u64())
    );
    let nowhere = home.path().join("nowhere");
    let failure = rows(&nowhere, &[]).unwrap_err();
    assert!(failure.contains("nowhere"), "{failure}");
}

/// Returns the body of what the server answers.
fn get(url: &str, path: &str) -> String {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The data directory is a file system of its own, which only the server sees.
#[cfg(target_os = "linux")]
#[test]
fn the_nats_of_a_fleet_is_read_from_the_file_of_a_relay() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("relay.toml");
    let server = "[fleet]\nservers = [\"nats://127.0.0.1:1\"]\n";
    for (text, fault) in [
        ("", "fleet.servers: no NATS server"),
        (server, "fleet.servers: "),
        (&format!("{server}ca = \"nowhere\"\n"), "fleet.ca: "),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut usage = throughline(&["usage", "--json", "--config"]);
        let output = usage.arg(&file).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && told.contains(fault), "{told}");
    }
}

#[test]
fn a_full_disk_stops_the_record_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m,mode=700 tmpfs \"$0\" && exec \"$@\"";
    let mut serve = Command::new("unshare");
    serve.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    serve
        .arg(home.path())
        .arg(env!("CARGO_BIN_EXE_throughline"));
    serve.args([
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--json",
        "--data",
    ]);
    let server = Program::spawn(serve.arg(home.path()));
    let ready = server.event("ready");
    let http = ready["http"].as_str().unwrap();
    assert_eq!(get(http, "/health"), "ok\n");
    let inside = Path::new("/proc")
        .join(server.id().to_string())
        .join("root");
    let data = inside.join(home.path().strip_prefix("/").unwrap());
    let filler = data.join("filler");
    // The copy fails when nothing more has room.
    let zeros = &mut std::fs::File::open("/dev/zero").unwrap();
    std::io::copy(zeros, &mut std::fs::File::create(&filler).unwrap()).unwrap_err();

    let listener = Program::spawn(&mut listen(&ready, &["--json", "--echo"]));
    let listening = listener.event("ready");
    let told = "ok, but usage is not written\n";
    until("the fault is told", || {
        (get(http, "/health") == told).then_some(())
    });
    let metrics = get(http, "/metrics");
    assert!(
        metrics.contains("usage_batches_total{outcome=\"failed\"}"),
        "{metrics}"
    );
    let ticket = listening["ticket"].as_str().unwrap();
    let ping = throughline(&["ping", ticket, "--count", "1"])
        .output()
        .unwrap();
    assert!(ping.status.success(), "{ping:?}");

    std::fs::remove_file(&filler).unwrap();
    until("the record goes on", || {
        (get(http, "/health") == "ok\n").then_some(())
    });
    let peer = listening["peer_id"].as_str().unwrap();
    let taken = row(&data, peer).expect("what was kept in memory is written");
    assert_eq!(taken["reservations"], 1);
}
