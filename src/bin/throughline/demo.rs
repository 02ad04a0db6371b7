//! `throughline demo`: a server and a demo peer in one process.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
};

use serde_json::json;
use throughline::{Config, Connector, Error, server::Server};

use crate::{
    args::{AllowArgs, DemoArgs},
    output::{Output, io_error},
    page::FILES,
    places::AllPlaces,
    protocols::{
        self,
        file::{Inbox, active::Active},
    },
    serve,
    service::{Chat, Service},
    signal,
};

/// The largest file that the demo peer takes. It comes from a visitor and goes into a temporary
/// directory.
const MAX_FILE: u64 = 2 << 30;

/// Requests per second from one address: ten visitors come at once.
const REQUESTS: NonZeroU32 = NonZeroU32::new(500).unwrap();
/// The percentage of the server's places that one address may hold.
const SHARE: u8 = 50;

pub(crate) async fn run(args: DemoArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    let credentials = args.serve.print_turn_credentials;
    // A host in a file, or the wildcard on the command line, is what the user wants. With https, the
    // page is for others, too.
    let https = !args.serve.domain.is_empty() || args.serve.tls_cert.is_some();
    let configured = args.serve.config.is_some();
    let named = https || configured || !args.serve.host.is_empty();
    let mut config = serve::config(args.serve)?;
    let default = throughline::server::ServerConfig::default();
    if !named {
        // A page may use WebRTC and the clipboard only from this machine or over https.
        config.hosts = vec![Ipv4Addr::LOCALHOST.into()];
    }
    if !configured {
        // The visitors of a room often share an address, and each asks for fifty files at once.
        config.http.requests_per_source = REQUESTS;
        config.connections.share_per_address = SHARE;
    }
    let without_page = config.http.www.is_none() && FILES.is_empty();
    let loopback = config.hosts.iter().all(IpAddr::is_loopback);
    // On loopback, all peers are on this machine.
    config.autonat.allow_private |= loopback;
    // The usual port comes first, so that a reload finds the page again. Another program may have
    // it.
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
    // Visitors on this machine need no router.
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
    server.set_page(FILES);
    server.set_demo_peer(&connector.ticket(), program());
    if output.is_json() {
        serve::announce(&server, credentials, output);
    }
    let url = format!("{}/", server.http_url());
    let elsewhere = if url.starts_with("https:") {
        ""
    } else {
        "Browsers of other devices need it over https: see --domain and --tls-cert.\n"
    };
    let page = if without_page {
        "There is no page to try: this program was built without it. In a clone, `make demo` has it, and \
         `make page` puts it into what is built with the feature `demo`.\n"
    } else {
        ""
    };
    let fields = json!({
        "url": url,
        "peer_id": connector.peer_id().to_string(),
        "ticket": connector.ticket().to_string(),
        "inbox": inbox,
    });
    output.result("demo", fields, || {
        format!(
            "Open {url}\n{page}{elsewhere}The demo peer stores the files that you send in {}",
            inbox.display()
        )
    });
    let service = Service {
        output,
        inbox: Some(Inbox {
            directory: inbox,
            max_size: MAX_FILE,
            active: Active::default(),
        }),
        chat: Chat::Demo,
        allow: AllowArgs::default(),
        places: AllPlaces::default(),
    };
    tokio::spawn(Arc::new(service).run(connector.clone()));
    let error = stopped.await;
    connector.close().await;
    server.shutdown().await;
    signal::ended(error)
}

/// Returns how to start this program from here, for the terminal line on the page. It is the path
/// below the working directory if the program is there, and else only the name. The page does not
/// learn the whole path.
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
