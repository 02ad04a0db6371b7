//! A relay that is restarted, and its clients that come back.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use throughline::{
    Config, Connector,
    server::{Server, ServerConfig},
};

use crate::{
    Form, Row,
    common::{free_ports, peer, server_config, until_polled},
    peers,
    report::ms,
};

const PROMISED: Duration = Duration::from_secs(30);
const AIM: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(5);
/// How many clients begin at the same time, before anything is measured.
const COMING: usize = 32;
/// How many clients have one address, as in a small office.
const PER_ADDRESS: usize = 10;

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let count: usize = form.pick(100, 1000);
    let home = tempfile::tempdir().unwrap();
    // The limits are those of every server, because they must not keep out those who come back.
    let mut config = server_config();
    config.port = free_ports();
    config.data = Some(home.path().join("data"));
    let server = Server::start(config.clone()).await.unwrap();
    let clients = clients(&server, count).await;
    all_reserved(&server, count).await;
    // This is a measurement. A link counts as settled after 5 s, and no event says so.
    tokio::time::sleep(SETTLED).await;

    let begun = Instant::now();
    server.shutdown().await;
    let server = restarted(config).await;
    let started = Instant::now();
    all_reserved(&server, count).await;
    let (down, back) = (started - begun, started.elapsed());
    let refused = counted(&server, "throughline_refused_total");
    drop(clients);
    vec![Row {
        scenario: format!("a relay with the same data is restarted: {count} clients come back"),
        promised: "< 30 s",
        aim: "< 2 s",
        measured: format!(
            "all {} after the start, {} after the shutdown began; {refused} requests refused",
            ms(back),
            ms(down + back)
        ),
        kept: back < PROMISED,
        reached: back < AIM,
        known: None,
    }]
}

/// Starts clients of `server`, some at each address.
async fn clients(server: &Server, count: usize) -> Vec<Connector> {
    let of = |n: usize| -> Config {
        let mut config = peers::config(server);
        let address = n / PER_ADDRESS + 1;
        let ip = format!("127.0.{}.{}", 1 + address / 250, 1 + address % 250);
        config.listen = vec![format!("/ip4/{ip}/udp/0/quic-v1")];
        config
    };
    let clients = (0..count).map(|n| peer(of(n)));
    stream::iter(clients)
        .buffer_unordered(COMING)
        .collect()
        .await
}

/// The ports of the old server are free when its last task has ended.
async fn restarted(config: ServerConfig) -> Server {
    loop {
        match Server::start(config.clone()).await {
            Ok(server) => return server,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn all_reserved(server: &Server, count: usize) {
    let reserved = || counted(server, "throughline_relay_reservations ") == count as u64;
    until_polled(reserved).await;
}

/// Returns the sum of the metrics whose lines begin so.
fn counted(server: &Server, name: &str) -> u64 {
    let metrics = server.metrics();
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}
