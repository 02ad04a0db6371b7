//! `throughline connect`.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use serde_json::json;
use throughline::{Connection, Connector, Error, ErrorKind, Ticket};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    task::JoinHandle,
};

use crate::{
    args::ConnectArgs,
    output::{Output, millis},
    peer, ping,
    protocols::{self, bench, chat, ticks},
    sending, signal,
    watch::PathWatch,
};

/// How long to wait for the first echoed byte when everything else is done.
const FIRST_BYTE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: ConnectArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    if let Some(time) = &args.bench
        && !(Duration::from_millis(100)..=bench::MAX_TIME).contains(&time.0)
    {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "--bench: the time must be 0.1 to 60 seconds",
        ));
    }
    let ticket = peer::ticket(&args.ticket)?;
    let files = sending::Files::find(&args.send, args.rename.as_deref(), output)?;
    let connector = peer::bind(&args.peer, args.warm).await?;
    let result = tokio::select! {
        result = connected(&connector, &ticket, &args, &files, output) => result,
        error = stopped => Err(error),
    };
    connector.close().await;
    result
}

async fn connected(
    connector: &Connector,
    ticket: &Ticket,
    args: &ConnectArgs,
    files: &sending::Files,
    output: Output,
) -> Result<(), Error> {
    let start = Instant::now();
    // A chat in a terminal does not need this measurement.
    let measured = output.is_json() || args.wait_direct.is_some();
    let first_byte = measured.then(|| spawn_first_byte(connector, ticket, start, output));
    let connection = connector.connect(ticket).await?;
    let paths = PathWatch::start(&connection, start, output);
    if let Some(time) = args.wait_direct {
        if let Err(error) = connection.wait_direct(time.0).await {
            paths.leave_to_error();
            let message = format!("--wait-direct: {}", error.message());
            return Err(Error::new(error.kind(), message).with_attempts(error.attempts().to_vec()));
        }
        paths.direct().await;
    }
    if !args.send.is_empty() {
        files.send(&connection, output).await?;
    } else if let Some(time) = args.bench {
        let measured = measure(&connection, time.0, args.download, output);
        let ticks = async {
            match args.ticks {
                true => tick(&connection, time.0, output).await,
                false => Ok(()),
            }
        };
        futures::future::try_join(measured, ticks).await?;
    } else if let Some(count) = args.ping {
        ping::measure(&connection, count, output).await?;
    } else if args.wait_direct.is_none() {
        converse(&connection, output).await?;
    }
    if let Some(first_byte) = first_byte {
        // If its event comes, it comes before the end of the output.
        let _ = tokio::time::timeout(FIRST_BYTE, first_byte).await;
    }
    Ok(())
}

/// Reports when the first byte has come back. A peer that echoes nothing is not a failure.
fn spawn_first_byte(
    connector: &Connector,
    ticket: &Ticket,
    start: Instant,
    output: Output,
) -> JoinHandle<()> {
    let (connector, ticket) = (connector.clone(), ticket.clone());
    tokio::spawn(async move {
        let echoed = async {
            let (_connection, mut stream) = connector.open(&ticket, protocols::ECHO).await?;
            stream.write_all(&[0]).await?;
            stream.flush().await?;
            stream.read_exact(&mut [0]).await?;
            let ms = millis(start.elapsed());
            output.event("first_byte", json!({ "ms": ms }), || {
                format!("first byte after {ms:.0} ms")
            });
            stream.close().await?;
            Ok::<_, Error>(())
        };
        if let Err(error) = echoed.await {
            tracing::info!(%error, "the peer echoes nothing");
        }
    })
}

async fn measure(
    connection: &Connection,
    time: Duration,
    download: bool,
    output: Output,
) -> Result<(), Error> {
    let (writer, reader) = connection.open(bench::PROTOCOL).await?.split();
    let (measured, direction) = if download {
        (bench::download(reader, writer, time).await?, "download")
    } else {
        (bench::upload(reader, writer, time).await?, "upload")
    };
    let rate = measured.mbit_per_second();
    let fields = json!({
        "mbit_s": rate,
        "bytes": measured.bytes,
        "seconds": measured.elapsed.as_secs_f64(),
        "direction": direction,
        "path": connection.path().map(|path| path.kind),
    });
    output.result("bench", fields, || format!("{direction}: {rate:.1} Mbit/s"));
    Ok(())
}

async fn tick(connection: &Connection, time: Duration, output: Output) -> Result<(), Error> {
    let ticks = ticks::measure(connection, time).await?;
    let (sent, arrived) = (ticks.sent, ticks.times.len());
    let quantile = |part| ticks.quantile(part).map(millis);
    let (median, most) = (quantile(0.5), quantile(0.99));
    let fields = json!({
        "sent": sent,
        "arrived": arrived,
        "min_ms": quantile(0.0),
        "p50_ms": median,
        "p99_ms": most,
        "max_ms": quantile(1.0),
    });
    output.result("ticks", fields, || match median.zip(most) {
        Some((median, most)) => {
            format!("{arrived} of {sent} datagrams: half within {median} ms, 99 % within {most} ms")
        }
        None => format!("none of {sent} datagrams came back"),
    });
    Ok(())
}

/// Connects stdin and stdout with the other side. This happens if no other action was requested.
async fn converse(connection: &Connection, output: Output) -> Result<(), Error> {
    if !output.is_json() {
        let (writer, reader) = connection.open(chat::PROTOCOL).await?.split();
        return Ok(chat::pipe(reader, writer, chat::Until::BothEnd, output).await?);
    }
    // Stdout carries events here, so the lines of the other side become events, too.
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let Some(mut line) = lines.next_line().await? else {
        return Ok(());
    };
    let (mut writer, reader) = connection.open(chat::PROTOCOL).await?.split();
    let send = async {
        loop {
            line.push('\n');
            writer.write_all(line.as_bytes()).await?;
            match lines.next_line().await? {
                Some(next) => line = next,
                None => break,
            }
        }
        writer.close().await?;
        Ok::<_, Error>(())
    };
    let peer = connection.peer_id().to_string();
    let receive = async {
        let mut lines = chat::Lines::new(reader);
        while let Some(text) = lines.next().await? {
            let fields = json!({ "peer_id": peer, "text": text });
            output.message(fields, String::new).await;
        }
        Ok(())
    };
    futures::future::try_join(send, receive).await?;
    Ok(())
}
