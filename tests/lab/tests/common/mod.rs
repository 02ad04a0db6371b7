//! Code that the lab's tests share. Each test file uses a part of it.
#![allow(dead_code)]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;
use throughline_lab::{Browsers, Host, Lab, Parts, Peer, Stage};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Returns `None` and says so if no lab can run. In CI, that is a failure.
pub(crate) fn lab_or_skip() -> Option<()> {
    match Lab::available() {
        Ok(()) => Some(()),
        Err(missing) if std::env::var_os("CI").is_some() => panic!("{missing}"),
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            None
        }
    }
}

/// How long anything may take in a lab without delays.
pub(crate) const SOON: Duration = Duration::from_millis(400);

/// The port of [`echo`].
pub(crate) const ECHO: u16 = 7;

/// Starts to answer every datagram on port 7 of `host` with the sender's address as seen there.
pub(crate) fn echo(host: &Host) -> SocketAddr {
    let address = SocketAddr::new(host.ip().unwrap(), ECHO);
    let (ready, started) = std::sync::mpsc::channel();
    host.spawn(async move || {
        let socket = UdpSocket::bind(address).await.unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 2_048];
        loop {
            let (_, from) = socket.recv_from(&mut buffer).await.unwrap();
            let _ = socket.send_to(from.to_string().as_bytes(), from).await;
        }
    })
    .unwrap();
    started.recv().unwrap();
    address
}

/// Returns the address of `socket` that [`echo`] at `server` sees.
pub(crate) async fn seen_by(socket: &UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    socket.send_to(b"?", server).await.ok()?;
    let deadline = Instant::now() + SOON;
    let mut buffer = [0; 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (length, from) = timeout(left, socket.recv_from(&mut buffer))
            .await
            .ok()?
            .ok()?;
        if from == server {
            return std::str::from_utf8(&buffer[..length]).ok()?.parse().ok();
        }
    }
}

/// Returns the sender of the next datagram, if one arrives within [`SOON`].
pub(crate) async fn receives(socket: &UdpSocket) -> Option<SocketAddr> {
    timeout(SOON, socket.recv_from(&mut [0; 64]))
        .await
        .ok()?
        .ok()
        .map(|(_, from)| from)
}

/// Returns the parts under test, or `None` if they are missing or no lab can run. It says so, and
/// in CI that is a failure. With `browsers`, the parts that drive browsers are needed too.
pub(crate) fn parts_or_skip(browsers: bool) -> Option<Parts> {
    lab_or_skip()?;
    let parts = Parts::find(None)
        .map_err(|error| error.to_string())
        .and_then(|parts| match browsers {
            true => Browsers::available(&parts.repository).map(|()| parts),
            false => Ok(parts),
        });
    match parts {
        Ok(parts) => Some(parts),
        Err(missing) if std::env::var_os("CI").is_some() => panic!("{missing}"),
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            None
        }
    }
}

/// The address at which programs serve their counters, on their own loopback.
pub(crate) const METRICS: &str = "127.0.0.1:9464";

/// Connects the program on `a` to the one on `b`, and waits for an event of `a` that is `wanted`.
/// Returns every counter and gauge of the race that is not 0, and the count of each histogram, as
/// `attempts stun 1`.
pub(crate) fn books(
    stage: &mut Stage,
    within: Duration,
    wanted: impl Fn(&Value) -> bool,
) -> BTreeSet<String> {
    let listener = stage.listen(Peer::Native, "b").unwrap();
    let dialler = stage
        .dial("a", &listener.ticket, &["--metrics", METRICS])
        .unwrap();
    let deadline = Instant::now() + within;
    let mut told = Vec::new();
    while !told.last().is_some_and(&wanted) {
        match dialler.next(deadline) {
            Some(event) => told.push(event),
            None => panic!("{told:#?}\n{}", dialler.log()),
        }
    }
    let text = metrics(&stage.lab.host("a").unwrap());
    text.lines().filter_map(entry).collect()
}

/// Returns the metrics of the program on `host`, which was started with `--metrics` [`METRICS`].
pub(crate) fn metrics(host: &Host) -> String {
    let get = async || {
        let mut stream = TcpStream::connect(METRICS).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    host.run(get).unwrap()
}

/// Reads one line of the metrics text.
fn entry(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("nat_traversal_")?.split_once('{')?;
    let (labels, value) = rest.split_once("} ")?;
    let name = name.trim_end_matches("_total");
    let counts = !name.ends_with("_sum") && !name.ends_with("_bucket") && value != "0";
    let labels: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
    counts.then(|| format!("{name} {} {value}", labels.join(" ")))
}

/// Returns the lines as a set, to compare with [`books`].
pub(crate) fn entries(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}
