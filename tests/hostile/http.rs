//! Tests HTTP against clients that hold their connections and ask for more.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    common::{PATIENCE, program::Program, until_polled},
    measure::{Times, unharmed},
};

/// The number of HTTP connections, as in src/server/config.rs.
const PLACES: usize = 256;

/// The pause between rounds of three requests. An address may make 50 requests a second.
const PAUSE: Duration = Duration::from_millis(80);

async fn connect(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    // With a small buffer, a slow reader soon stops the server.
    socket.set_recv_buffer_size(4096)?;
    socket.connect(to).await
}

/// Returns the code of the status line, and the body.
async fn get(from: [u8; 4], to: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = connect(from, to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    let code = answer.get(9..12).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((code.unwrap_or(0), body.into()))
}

fn http(ready: &Value) -> SocketAddr {
    let url = ready["http"].as_str().unwrap();
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Times rounds of a stranger's requests.
async fn asked(from: [u8; 4], to: SocketAddr) -> Times {
    let round = async || {
        for path in ["/health", "/metrics", "/config.json"] {
            let (code, body) = get(from, to, path).await.unwrap();
            assert_eq!(code, 200, "{path}: {body}");
        }
    };
    Times::of(PAUSE, round).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_drips_does_not_shut_the_others_out() {
    let server = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"]);
    let to = http(&server.event("ready"));
    let quiet = asked([127, 0, 0, 3], to).await;

    let (made, mut connects) = mpsc::channel(10 * PLACES);
    let mut drippers = JoinSet::new();
    for _ in 0..PLACES {
        let made = made.clone();
        drippers.spawn(async move {
            loop {
                let again = Instant::now() + Duration::from_millis(100);
                let Ok(mut stream) = connect([127, 0, 0, 2], to).await else {
                    continue;
                };
                let _ = made.try_send(());
                // The pause is the attack.
                while stream.write_all(b"a").await.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                }
                sleep_until(again).await;
            }
        });
    }
    let all = async {
        for _ in 0..10 * PLACES {
            connects.recv().await.expect("drippers that come back");
        }
    };
    timeout(PATIENCE, all).await.expect("they come back");
    let attacked = asked([127, 0, 0, 4], to).await;
    unharmed("row 8, dripping HTTP connections", &quiet, &attacked);
    let (_, metrics) = get([127, 0, 0, 3], to, "/metrics").await.unwrap();
    assert!(
        metrics.contains("refused_total{what=\"handshake\",reason=\"address\"}"),
        "{metrics}"
    );
    drippers.shutdown().await;
}

/// Returns the resident memory of a process, in KiB.
#[cfg(target_os = "linux")]
fn resident(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.unwrap().trim().trim_end_matches(" kB");
    resident.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_cost_what_they_have_taken() {
    const MIB: usize = 1024;
    let home = tempfile::tempdir().unwrap();
    for (name, length) in [("www/a.wasm", 8 << 20), ("www/large", 60 << 20)] {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path)
            .unwrap()
            .set_len(length)
            .unwrap();
    }
    let config = home.path().join("serve.toml");
    let www = home.path().join("www");
    let text = format!("[http]\nwww = {www:?}\n[connections]\nhttp = 512\n");
    std::fs::write(&config, text).unwrap();
    let server = Program::start(&[
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--config",
        config.to_str().unwrap(),
    ]);
    let to = http(&server.event("ready"));
    let quiet = asked([127, 0, 0, 3], to).await;
    let before = resident(server.id());

    let mut readers = JoinSet::new();
    for n in 0..280u16 {
        let path = if n < 250 { "/a.wasm" } else { "/large" };
        readers.spawn(async move {
            let from = [127, 0, 1, 1 + u8::try_from(n / 25).unwrap()];
            let mut stream = connect(from, to).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut head = [0; 15];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            stream
        });
    }
    let mut held = Vec::new();
    while let Some(reader) = readers.join_next().await {
        held.push(reader.unwrap());
    }
    let during = resident(server.id());
    println!(
        "resident: {before} KiB, with {} slow readers {during} KiB",
        held.len()
    );
    assert!(
        during < before + 24 * MIB,
        "{before} KiB became {during} KiB"
    );
    let attacked = asked([127, 0, 0, 3], to).await;
    unharmed("row 12, slow readers", &quiet, &attacked);
    drop(held);
    until_polled(|| resident(server.id()) < before + 10 * MIB).await;
    assert_eq!(get([127, 0, 0, 3], to, "/health").await.unwrap().0, 200);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn few_descriptors_are_said_and_shared_out() {
    use std::process::Command;
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_throughline"))
        .args(["serve", "--json", "--host", "127.0.0.1", "--port", "0"])
        .env_remove("RUST_LOG")
        .stderr(std::fs::File::create(&log).unwrap());
    let server = Program::spawn(&mut command);
    let ready = server.event("ready");
    let to = http(&ready);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("limit=256") && said.contains("need="),
        "{said}"
    );

    let (code, _) = get([127, 0, 0, 3], to, "/health").await.unwrap();
    assert_eq!(code, 200);
    let folder = format!("/proc/{}/fd", server.id());
    let descriptors = || std::fs::read_dir(&folder).unwrap().count();
    let before = descriptors();

    let relay = ready["addresses"].as_array().unwrap();
    let tcp = relay.iter().filter_map(|address| {
        let address = address
            .as_str()
            .unwrap()
            .strip_prefix("/ip4/127.0.0.1/tcp/")?;
        let (port, _) = address.split_once('/')?;
        Some(SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())))
    });
    let quiet = asked([127, 0, 0, 4], to).await;
    let mut held = Vec::new();
    for port in tcp.chain([to]) {
        for _ in 0..300 {
            held.extend(connect([127, 0, 0, 2], port).await);
        }
    }
    let (code, body) = get([127, 0, 0, 3], to, "/health").await.unwrap();
    assert!([200, 503].contains(&code), "{code} {body}");
    let attacked = Times::of(PAUSE, async || {
        // Either answer is right. Only its time matters.
        for path in ["/health", "/metrics", "/config.json"] {
            let answered = get([127, 0, 0, 4], to, path).await;
            assert!([200, 503].contains(&answered.unwrap().0));
        }
    });
    let attacked = attacked.await;
    unharmed("row 13, few descriptors", &quiet, &attacked);
    drop(held);
    // The program opens some descriptors of its own late.
    until_polled(|| descriptors() <= before + 8).await;
    let (code, body) = get([127, 0, 0, 3], to, "/health").await.unwrap();
    assert_eq!(code, 200, "the server recovers: {body}");
}
