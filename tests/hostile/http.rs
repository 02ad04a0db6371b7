//! HTTP under those who hold what they get and ask for more.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::common::{PATIENCE, program::Program, until};

/// As src/server/config.rs has them: the places, and those of one address.
const PLACES: usize = 256;

async fn connect(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    // Whoever is slow need not be slow for long until that is felt.
    socket.set_recv_buffer_size(4096)?;
    socket.connect(to).await
}

/// The status line's code, and the body.
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

/// The slowest of a stranger's requests but one in a hundred.
async fn slowest(from: [u8; 4], to: SocketAddr) -> Duration {
    let mut times = Vec::new();
    for _ in 0..20 {
        for path in ["/health", "/metrics", "/config.json"] {
            let start = Instant::now();
            let (code, body) = get(from, to, path).await.unwrap();
            assert_eq!(code, 200, "{path}: {body}");
            times.push(start.elapsed());
        }
    }
    times.sort();
    times[times.len() * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_drips_does_not_shut_the_others_out() {
    let server = Program::start(&["serve", "--host", "127.0.0.1", "--port", "0"]);
    let to = http(&server.event("ready"));
    let quiet = slowest([127, 0, 0, 3], to).await;

    let made = Arc::new(AtomicUsize::new(0));
    let mut drippers = JoinSet::new();
    for _ in 0..PLACES {
        let made = made.clone();
        drippers.spawn(async move {
            loop {
                let Ok(mut stream) = connect([127, 0, 0, 2], to).await else {
                    continue;
                };
                made.fetch_add(1, Ordering::Relaxed);
                while stream.write_all(b"a").await.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    until(|| made.load(Ordering::Relaxed) >= 10 * PLACES).await;
    let busy = slowest([127, 0, 0, 4], to).await;
    println!("99th percentile: quiet {quiet:?}, with drippers {busy:?}");
    assert!(busy < (2 * quiet).max(Duration::from_secs(1)), "{busy:?}");
    let (_, metrics) = get([127, 0, 0, 3], to, "/metrics").await.unwrap();
    assert!(
        metrics.contains("refused_total{what=\"http\",reason=\"address\"}"),
        "{metrics}"
    );
    drippers.shutdown().await;
}

/// What the process holds in memory, in KiB.
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
    slowest([127, 0, 0, 3], to).await;
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
    drop(held);
    until(|| resident(server.id()) < before + 10 * MIB).await;
    assert_eq!(get([127, 0, 0, 3], to, "/health").await.unwrap().0, 200);
}

#[cfg(unix)]
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

    let relay = ready["addresses"].as_array().unwrap();
    let tcp = relay.iter().filter_map(|address| {
        let address = address
            .as_str()
            .unwrap()
            .strip_prefix("/ip4/127.0.0.1/tcp/")?;
        let (port, _) = address.split_once('/')?;
        Some(SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())))
    });
    let mut held = Vec::new();
    for port in tcp.chain([to]) {
        for _ in 0..300 {
            held.extend(connect([127, 0, 0, 2], port).await);
        }
    }
    let (code, body) = get([127, 0, 0, 3], to, "/health").await.unwrap();
    assert!([200, 503].contains(&code), "{code} {body}");
    drop(held);
    let mut code = 0;
    let start = Instant::now();
    while code != 200 && start.elapsed() < PATIENCE {
        code = get([127, 0, 0, 3], to, "/health")
            .await
            .map_or(0, |(code, _)| code);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(code, 200, "the server recovers");
}
