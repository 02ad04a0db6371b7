//! `throughline ping`.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use serde_json::json;
use throughline::{Connection, Error};

use crate::{
    args::PingArgs,
    output::{Output, millis},
    peer, protocols, signal,
    watch::PathWatch,
};

/// The pause between two round trips.
const INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: PingArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    let ticket = peer::ticket(&args.ticket)?;
    let connector = peer::bind(&args.peer, false).await?;
    let pinged = async {
        let start = Instant::now();
        let connection = connector.connect(&ticket).await?;
        let _paths = PathWatch::start(&connection, start, output);
        measure(&connection, args.count, output).await
    };
    let result = tokio::select! {
        result = pinged => result,
        error = stopped => Err(error),
    };
    connector.close().await;
    result
}

/// Measures `count` round trips of eight bytes over one echo stream.
pub(crate) async fn measure(
    connection: &Connection,
    count: u32,
    output: Output,
) -> Result<(), Error> {
    let mut stream = connection.open(protocols::ECHO).await?;
    let mut times = Vec::new();
    for seq in 1..=count {
        if seq > 1 {
            tokio::time::sleep(INTERVAL).await;
        }
        let start = Instant::now();
        let sent = u64::from(seq).to_be_bytes();
        stream.write_all(&sent).await?;
        stream.flush().await?;
        let mut echoed = [0; 8];
        protocols::unless_stalled(stream.read_exact(&mut echoed)).await?;
        if echoed != sent {
            return Err(protocols::violation("echo: the peer sent other bytes back"));
        }
        let rtt = start.elapsed();
        times.push(rtt);
        let (ms, path) = (millis(rtt), connection.path().map(|path| path.kind));
        output.event(
            "pong",
            json!({ "seq": seq, "rtt_ms": ms, "path": path }),
            || {
                let path = path.map_or("none", |path| path.as_str());
                format!("{seq}: {ms} ms, {path}")
            },
        );
    }
    stream.close().await?;
    let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) else {
        return Ok(());
    };
    let mean = times.iter().sum::<Duration>() / count;
    let fields = json!({
        "count": count,
        "min_ms": millis(*min),
        "mean_ms": millis(mean),
        "max_ms": millis(*max),
    });
    output.result("ping", fields, || {
        let (min, mean, max) = (millis(*min), millis(mean), millis(*max));
        format!("{count} round trips: {min} ms at least, {mean} ms on average, {max} ms at most")
    });
    Ok(())
}
