//! A relay and peers in this process.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use throughline::{Config, Connection, Connector, Error, PathEvent, PathKind, server::Server};
use tokio::time::timeout;

use crate::common::{peer, server_config};

/// How long to wait at most. It is far beyond every promise, because a busy machine is only slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const PROTOCOL: &str = "echo/1";

/// Starts a relay with high limits, except for `circuits` of one peer.
pub(crate) async fn relay(circuits: usize) -> Server {
    let many = NonZeroU32::new(1_000_000).unwrap();
    let mut config = server_config();
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

/// The configuration of a peer that reaches others through `relay`, and then directly.
pub(crate) fn config(relay: &Server) -> Config {
    let mut config = quiet();
    config.relays = relay.addresses().to_vec();
    config.relays.retain(|relay| relay.contains("/quic-v1/"));
    config
}

/// The configuration of a peer that stays on loopback and asks no router for a mapping.
pub(crate) fn quiet() -> Config {
    let mut config = Config::default();
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into()];
    config.max_connections = 8192;
    config.max_circuits = 1024;
    config.port_mapping = false;
    config
}

/// Starts a peer that only dials.
pub(crate) async fn dialler(mut config: Config) -> Connector {
    config.reserve = false;
    peer(config).await
}

/// Connects through the relay and waits for a first byte. Returns the time that this took.
pub(crate) async fn meet(
    from: &Connector,
    to: &Connector,
) -> Result<(Connection, Duration), Error> {
    let start = Instant::now();
    let connection = from.connect(&to.ticket().without_addresses()).await?;
    round_trip(&connection).await?;
    Ok((connection, start.elapsed()))
}

/// Returns how long a byte takes there and back on a new stream.
pub(crate) async fn round_trip(connection: &Connection) -> Result<Duration, Error> {
    let start = Instant::now();
    let mut stream = connection.open(PROTOCOL).await?;
    let exchange = async {
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_exact(&mut [0]).await?;
        stream.close().await
    };
    match timeout(DEADLINE, exchange).await {
        Ok(result) => result?,
        Err(_) => return Err(Error::new(throughline::ErrorKind::Timeout, "no echo")),
    }
    Ok(start.elapsed())
}

/// Returns the code of an error, and the reason of each failed attempt.
pub(crate) fn reasons(error: &Error) -> String {
    let attempts = error.attempts().iter();
    let reasons = attempts.filter_map(|attempt| attempt.reason.as_deref());
    let reasons: Vec<_> = reasons.collect();
    format!("{} ({})", error.code(), reasons.join("; "))
}

/// Waits until the path is direct. Returns `false` if that does not happen.
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
    timeout(DEADLINE, direct).await.unwrap_or(false)
}
