//! Peers on loopback that echo, and the program. Each test file uses its own part of it.
#![allow(dead_code, unused_imports)]

use std::{io, net::Ipv4Addr};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use throughline::{Config, Connection, Connector, PathKind, Stream};
use tokio::time::timeout;

#[cfg(feature = "cli")]
pub(crate) mod program;
#[path = "../../src/testing.rs"]
mod testing;

pub(crate) use testing::{PATIENCE, free_ports, until, until_polled, until_some, warned};

/// Returns the configuration of a server on loopback, at ports that the system chooses.
#[cfg(feature = "server")]
pub(crate) fn server_config() -> throughline::server::ServerConfig {
    let mut config = throughline::server::ServerConfig::default();
    config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config
}

/// Starts a relay that also tests the addresses of peers on loopback.
#[cfg(feature = "server")]
pub(crate) async fn relay() -> throughline::server::Server {
    let mut config = server_config();
    config.autonat.allow_private = true;
    throughline::server::Server::start(config).await.unwrap()
}

/// Returns the configuration of a peer that uses loopback only and asks no router for a mapping.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.listen = vec![
        "/ip4/127.0.0.1/udp/0/quic-v1".into(),
        "/ip4/127.0.0.1/tcp/0".into(),
    ];
    config.port_mapping = false;
    // A test chooses the ways to a peer by what it leaves in a ticket.
    config.directory = false;
    config
}

pub(crate) async fn peer(config: Config) -> Connector {
    Connector::builder().config(config).bind().await.unwrap()
}

/// Starts a peer that echoes every stream until it closes.
pub(crate) async fn echoing(config: Config) -> Connector {
    let me = peer(config).await;
    let connector = me.clone();
    tokio::spawn(async move {
        while let Some(connection) = connector.accept().await {
            echo_streams(connection);
        }
    });
    me
}

/// Echoes every stream of a connection.
pub(crate) fn echo_streams(connection: Connection) {
    tokio::spawn(async move {
        while let Some((_, stream)) = connection.accept_stream().await {
            tokio::spawn(async move {
                let (mut send, mut recv) = stream.split();
                futures::io::copy(&mut recv, &mut send).await?;
                send.close().await
            });
        }
    });
}

/// Opens a stream and waits for an echo on it.
pub(crate) async fn echo(connection: &Connection) -> io::Result<Stream> {
    let mut stream = connection.open("echo/1").await.map_err(io::Error::other)?;
    exchange(&mut stream, b"still there").await?;
    Ok(stream)
}

/// Sends `bytes` and waits until they come back.
pub(crate) async fn exchange(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    let mut back = vec![0; bytes.len()];
    let exchange = async {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        stream.read_exact(&mut back).await
    };
    timeout(PATIENCE, exchange).await??;
    assert!(back == bytes);
    Ok(())
}

/// Checks that an echo comes on a new stream.
pub(crate) async fn echoed(connection: &Connection) {
    echo(connection).await.unwrap().close().await.unwrap();
}

pub(crate) async fn until_path(connection: &Connection, kind: PathKind) {
    let mut events = connection.path_events();
    let changed = async {
        while connection.path().is_none_or(|path| path.kind != kind) {
            assert!(events.next().await.is_some(), "closed before it was {kind}");
        }
    };
    timeout(PATIENCE, changed).await.expect("the path changes");
}
