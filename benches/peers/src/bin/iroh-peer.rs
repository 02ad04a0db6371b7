//! iroh as a peer, with its own relay, written as its documentation recommends.

use std::{
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser as _;
use futures::{
    StreamExt as _,
    future::{Either, select},
};
use iroh::{
    Endpoint, EndpointAddr, RelayMap, RelayMode, RelayUrl,
    endpoint::{Connection, presets},
};
use iroh_relay::{
    RelayConfig, RelayQuicConfig,
    server::{self, Server, ServerConfig},
    tls::CaTlsConfig,
};
use serde_json::json;
use throughline_peers::{Cli, Command, Connect, Listen, Result, Serve, answer, event, ms};

const ALPN: &[u8] = b"bench";
/// The relay answers QUIC address discovery one port above its HTTP.
const DISCOVERY: u16 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    throughline_peers::run(async {
        match cli.command {
            Command::Serve(args) => serve(args).await,
            Command::Listen(args) => listen(args).await,
            Command::Connect(args) => connect(args).await,
        }
    })
}

/// Runs the relay over plain HTTP. Its address discovery has a certificate that nobody checks.
async fn serve(args: Serve) -> Result<()> {
    let mut config = ServerConfig::default();
    config.relay = Some(server::RelayConfig::new((args.host, args.port)));
    let mut quic = server::testing::quic_config();
    quic.bind_addr = (args.host, args.port + DISCOVERY).into();
    config.quic = Some(quic);
    let _server = Server::spawn(config).await?;
    event(json!({ "event": "ready", "url": format!("http://{}:{}", args.host, args.port) }));
    std::future::pending().await
}

/// Makes an endpoint, and waits until its link to the relay is up.
async fn endpoint(relay: Option<&str>) -> Result<Endpoint> {
    let mode = match relay {
        None => RelayMode::Disabled,
        Some(url) => {
            let url: RelayUrl = url.parse()?;
            let port = url.port().ok_or("a relay without a port")? + DISCOVERY;
            let relay = RelayConfig::new(url, Some(RelayQuicConfig::new(port)));
            RelayMode::Custom(RelayMap::from(relay))
        }
    };
    let endpoint = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(mode)
        .ca_tls_config(CaTlsConfig::insecure_skip_verify())
        .bind()
        .await?;
    if relay.is_some() {
        endpoint.online().await;
    }
    Ok(endpoint)
}

async fn listen(args: Listen) -> Result<()> {
    let endpoint = endpoint(args.relay.as_deref()).await?;
    let ticket = serde_json::to_string(&endpoint.addr())?;
    event(json!({ "event": "ready", "peer_id": endpoint.id().to_string(), "ticket": ticket }));
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await?;
            while let Ok((writer, reader)) = connection.accept_bi().await {
                tokio::spawn(answer(reader, writer));
            }
            Ok::<_, iroh::endpoint::ConnectingError>(())
        });
    }
    Ok(())
}

async fn connect(args: Connect) -> Result<()> {
    let endpoint = endpoint(args.relay.as_deref()).await?;
    let peer: EndpointAddr = serde_json::from_str(&args.ticket)?;
    let start = Instant::now();
    let connection = endpoint.connect(peer, ALPN).await?;
    event(json!({ "event": "connected", "path": path(&connection), "ms": ms(start) }));
    let direct = async {
        let mut events = connection.path_events();
        while path(&connection) != Some("direct") {
            events
                .next()
                .await
                .ok_or("closed before there was a direct path")?;
        }
        event(json!({ "event": "path", "path": "direct", "ms": ms(start) }));
        Result::<()>::Ok(())
    };
    let first_byte = async {
        let (writer, reader) = connection.open_bi().await?;
        throughline_peers::first_byte(reader, writer).await?;
        event(json!({ "event": "first_byte", "ms": ms(start) }));
        Result::<()>::Ok(())
    };
    match args.wait_direct {
        None => first_byte.await?,
        Some(seconds) => {
            let direct = async {
                match tokio::time::timeout(Duration::from_secs_f64(seconds), direct).await {
                    Ok(result) => result,
                    Err(_) => Err("no direct path in time".into()),
                }
            };
            futures::future::try_join(direct, first_byte).await?;
        }
    }
    if let Some(seconds) = args.bench {
        let (writer, reader) = connection.open_bi().await?;
        throughline_peers::upload(reader, writer, seconds).await?;
    }
    if let Some(count) = args.ping {
        let (writer, reader) = connection.open_bi().await?;
        let paths = pin!(tell_paths(&connection, start));
        let pings = pin!(throughline_peers::ping(reader, writer, count));
        match select(paths, pings).await {
            Either::Left(((), pings)) => pings.await?,
            Either::Right((result, _)) => result?,
        }
    }
    if args.hold {
        throughline_peers::held().await?;
    }
    endpoint.close().await;
    Ok(())
}

/// Tells of each change of the selected path, for as long as the connection lasts.
async fn tell_paths(connection: &Connection, start: Instant) {
    let (mut events, mut told) = (connection.path_events(), None);
    loop {
        let selected = path(connection);
        if selected != told {
            event(json!({ "event": "path", "path": selected, "ms": ms(start) }));
            told = selected;
        }
        if events.next().await.is_none() {
            return;
        }
    }
}

/// Returns whether the selected path is `direct` or `relayed`.
fn path(connection: &Connection) -> Option<&'static str> {
    let paths = connection.paths();
    let selected = paths.iter().find(|path| path.is_selected())?;
    Some(if selected.is_ip() {
        "direct"
    } else {
        "relayed"
    })
}
