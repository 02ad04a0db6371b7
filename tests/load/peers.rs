//! A relay and peers in this process.

use std::{
    net::Ipv4Addr,
    num::{NonZeroU32, NonZeroUsize},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use throughline::{
    Config, Connection, Connector, Error, PathEvent, PathKind,
    server::{Server, ServerConfig},
};
use tokio::time::timeout;

use crate::common::peer;

/// Far beyond every promise; a loaded machine is slow, not broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const PROTOCOL: &str = "echo/1";

/// A relay whose limits are not what is measured, but for `circuits` from one peer.
pub(crate) async fn relay(circuits: usize) -> Server {
    let many = NonZeroU32::new(1_000_000).unwrap();
    let mut config = ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config.relay.circuits_per_peer = NonZeroUsize::new(circuits).unwrap();
    config.relay.circuits = NonZeroUsize::new(8192).unwrap();
    config.relay.reservation_burst = many;
    config.relay.circuit_burst = many;
    config.stun.per_source = many;
    config.connections.pending = 4096;
    // All are at one address.
    config.connections.share_per_address = 100;
    Server::start(config).await.unwrap()
}

/// Settings of a peer that reaches others through `relay` only, and then directly.
pub(crate) fn config(relay: &Server) -> Config {
    let mut config = quiet();
    config.relays = relay.addresses().to_vec();
    config.relays.retain(|relay| relay.contains("/quic-v1/"));
    config
}

/// Settings of a peer that leaves the networks of whoever runs this alone.
pub(crate) fn quiet() -> Config {
    let mut config = Config::default();
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into()];
    config.max_connections = 8192;
    config.max_circuits = 1024;
    config.port_mapping = false;
    config
}

/// A peer that only dials.
pub(crate) async fn dialler(mut config: Config) -> Connector {
    config.reserve = false;
    peer(config).await
}

/// Connects through the relay and waits for a first byte; gives the time that took.
pub(crate) async fn meet(
    from: &Connector,
    to: &Connector,
) -> Result<(Connection, Duration), Error> {
    let start = Instant::now();
    let connection = from.connect(&to.ticket().without_addresses()).await?;
    round_trip(&connection).await?;
    Ok((connection, start.elapsed()))
}

/// How long a byte takes there and back on a new stream.
pub(crate) async fn round_trip(connection: &Connection) -> Result<Duration, Error> {
    let start = Instant::now();
    let mut stream = connection.open(PROTOCOL).await?;
    let exchange = async {
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_exact(&mut [0]).await?;
        stream.close().await
    };
    match timeout(PATIENCE, exchange).await {
        Ok(result) => result?,
        Err(_) => return Err(Error::new(throughline::ErrorKind::Timeout, "no echo")),
    }
    Ok(start.elapsed())
}

/// The code of an error and why each attempt failed.
pub(crate) fn reasons(error: &Error) -> String {
    let attempts = error.attempts().iter();
    let reasons = attempts.filter_map(|attempt| attempt.reason.as_deref());
    let reasons: Vec<_> = reasons.collect();
    format!("{} ({})", error.code(), reasons.join("; "))
}

/// Waits until the path is direct; `false` if that does not happen.
pub(crate) async fn until_direct(connection: &Connection) -> bool {
    let direct = async {
        let mut events = connection.path_events();
        if connection
            .path()
            .is_some_and(|path| path.kind == PathKind::Direct)
        {
            return true;
        }
        while let Some(event) = events.next().await {
            if matches!(&event, PathEvent::Changed { path, .. } if path.kind == PathKind::Direct) {
                return true;
            }
        }
        false
    };
    timeout(PATIENCE, direct).await.unwrap_or(false)
}
