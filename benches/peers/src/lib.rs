//! Code that the programs share: the command line and the events of the `throughline` program, as
//! far as benchmarks need them.

use std::{
    error::Error,
    io::Write as _,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use serde_json::{Value, json};

/// A result with any error, which is printed and ends the program.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How many bytes are moved at a time, as in the `throughline` program.
const CHUNK: usize = 64 * 1024;
/// How long a first byte may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a pinging peer waits between an echo and the next ping, as the `throughline` program does.
const PAUSE: Duration = Duration::from_millis(200);

/// The command line.
#[derive(Debug, Parser)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Accepted for compatibility. The output is always JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The role of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the SDK's own relay, if it has one.
    Serve(Serve),
    /// Print a ticket, echo bytes and count them.
    Listen(Listen),
    /// Connect to the peer that a ticket names.
    Connect(Connect),
}

/// `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    #[arg(long)]
    pub host: IpAddr,
    #[arg(long)]
    pub port: u16,
}

/// `listen`.
#[derive(Debug, Args)]
pub struct Listen {
    /// The relay through which the peer is reached. Loopback needs none.
    #[arg(long)]
    pub relay: Option<String>,
    /// Stay on the circuit.
    #[arg(long)]
    pub relay_only: bool,
    /// Accepted for compatibility. The peer always echoes.
    #[arg(long)]
    pub echo: bool,
}

/// `connect`.
#[derive(Debug, Args)]
pub struct Connect {
    pub ticket: String,
    /// The relay, whose link comes up before the clock starts.
    #[arg(long)]
    pub relay: Option<String>,
    /// Stay on the circuit.
    #[arg(long)]
    pub relay_only: bool,
    /// How long to wait for a direct path, in seconds.
    #[arg(long)]
    pub wait_direct: Option<f64>,
    /// Measure throughput for this long, in seconds.
    #[arg(long)]
    pub bench: Option<f64>,
    /// Send so many pings, one after another, and wait for the echo of each.
    #[arg(long)]
    pub ping: Option<u64>,
    /// Stay connected until the standard input ends.
    #[arg(long)]
    pub hold: bool,
}

/// Runs `work` on tokio. Its error becomes an event.
pub fn run(work: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Box<dyn Error + Send + Sync>) -> ExitCode {
    event(json!({ "event": "error", "code": "peer", "message": error.to_string() }));
    ExitCode::FAILURE
}

/// Prints one event.
pub fn event(event: Value) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{event}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// Returns the milliseconds since `start`.
pub fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Waits for the end of the standard input.
pub async fn held() -> Result<()> {
    let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(read).await??;
    Ok(())
}

/// Sends a byte and waits until it comes back.
pub async fn first_byte(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<()> {
    let echoed = async {
        writer.write_all(b"e").await?;
        writer.flush().await?;
        reader.read_exact(&mut [0]).await
    };
    tokio::time::timeout(PATIENCE, echoed).await??;
    Ok(writer.close().await?)
}

/// Sends for `seconds`, and waits until the other side has counted everything.
pub async fn upload(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    seconds: f64,
) -> Result<()> {
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    writer.write_all(b"u").await?;
    while start.elapsed().as_secs_f64() < seconds {
        writer.write_all(&chunk).await?;
    }
    writer.close().await?;
    let mut count = [0; 8];
    reader.read_exact(&mut count).await?;
    let (bytes, seconds) = (u64::from_be_bytes(count), start.elapsed().as_secs_f64());
    let rate = bytes as f64 * 8.0 / 1e6 / seconds;
    event(json!({ "event": "bench", "mbit_s": rate, "bytes": bytes, "seconds": seconds }));
    Ok(())
}

/// Sends pings of eight bytes, and waits for the echo of each, however long it takes.
pub async fn ping(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    count: u64,
) -> Result<()> {
    writer.write_all(b"p").await?;
    for number in 0..count {
        let (start, mut echo) = (Instant::now(), [0; 8]);
        writer.write_all(&number.to_be_bytes()).await?;
        writer.flush().await?;
        reader.read_exact(&mut echo).await?;
        event(json!({ "event": "pong", "rtt_ms": ms(start) }));
        tokio::time::sleep(PAUSE).await;
    }
    Ok(writer.close().await?)
}

/// Serves the other side of [`first_byte`], [`ping`] and [`upload`].
pub async fn answer(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<()> {
    let mut kind = [0];
    reader.read_exact(&mut kind).await?;
    if &kind == b"e" {
        writer.write_all(&kind).await?;
    } else if &kind == b"p" {
        let mut ping = [0; 8];
        while reader.read_exact(&mut ping).await.is_ok() {
            writer.write_all(&ping).await?;
            writer.flush().await?;
        }
    } else {
        let mut buffer = vec![0; CHUNK];
        let mut total = 0u64;
        loop {
            match reader.read(&mut buffer).await? {
                0 => break,
                length => total += length as u64,
            }
        }
        writer.write_all(&total.to_be_bytes()).await?;
    }
    writer.flush().await?;
    Ok(writer.close().await?)
}
