//! `throughline demo`: a server and a peer to talk to, in one process.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use serde_json::json;
use throughline::{Config, Connector, Error, server::Server};

use crate::{
    args::DemoArgs,
    output::{Output, io_error},
    protocols, serve,
    service::{Chat, Service},
    signal,
};

/// Largest file that the demo peer takes: a visitor's, into a temporary directory.
const MAX_FILE: u64 = 2 << 30;

pub(crate) async fn run(args: DemoArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped()?;
    let credentials = args.serve.print_turn_credentials;
    let mut config = serve::config(args.serve)?;
    let default = throughline::server::ServerConfig::default();
    if config.hosts == default.hosts {
        // A page may use WebRTC and the clipboard only on this machine or over https.
        config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    }
    let loopback = config.hosts.iter().all(IpAddr::is_loopback);
    // Nobody comes from elsewhere.
    config.autonat.allow_private |= loopback;
    // The usual port, so that a reload finds the page again, unless another program has it.
    let server = match Server::start(config.clone()).await {
        Err(_) if config.port == default.port => {
            config.port = 0;
            Server::start(config).await?
        }
        started => started?,
    };
    let inbox = match args.recv {
        Some(directory) => directory,
        None => std::env::temp_dir().join(format!("throughline-demo-{}", std::process::id())),
    };
    std::fs::create_dir_all(&inbox)
        .map_err(|error| io_error(format_args!("--recv {}", inbox.display()), error))?;

    let mut peer = Config::default();
    // Whoever sees the page on this machine needs no router.
    peer.port_mapping = !loopback;
    let mut builder = Connector::builder().config(peer);
    for address in server.addresses() {
        builder = builder.relay(address);
    }
    for url in server.stun_urls() {
        builder = builder.stun(url);
    }
    for protocol in protocols::ALL {
        builder = builder.protocol(protocol);
    }
    let connector = builder.bind().await?;
    server.set_demo_peer(&connector.ticket(), program());
    if output.is_json() {
        serve::announce(&server, credentials, output);
    }
    let url = format!("{}/", server.http_url());
    let fields = json!({
        "url": url,
        "peer_id": connector.peer_id().to_string(),
        "ticket": connector.ticket().to_string(),
        "inbox": inbox,
    });
    output.result("demo", fields, || {
        format!(
            "Open {url}\nFiles that you send arrive in {}",
            inbox.display()
        )
    });
    let service = Service {
        output,
        inbox: Some((inbox, MAX_FILE)),
        chat: Chat::Demo,
    };
    tokio::spawn(Arc::new(service).run(connector.clone()));
    stopped.await;
    connector.close().await;
    server.shutdown().await;
    Ok(())
}

/// How to start this program from here, for the terminal line on the page: below the working
/// directory where it is there, else by its name. A page need not learn the whole path.
fn program() -> String {
    let name = || String::from(env!("CARGO_BIN_NAME"));
    let (Ok(program), Ok(here)) = (std::env::current_exe(), std::env::current_dir()) else {
        return name();
    };
    match program.strip_prefix(here) {
        Ok(below) => below.display().to_string(),
        Err(_) => name(),
    }
}
