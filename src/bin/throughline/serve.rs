//! `throughline serve`.

use serde_json::json;
use throughline::{
    Error, ErrorKind,
    server::{Server, ServerConfig, turn_secret},
};

use crate::{
    args::ServeArgs,
    output::{Output, io_error},
    signal,
};

pub(crate) async fn run(args: ServeArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped()?;
    let server = Server::start(config(args)?).await?;
    announce(&server, output);
    stopped.await;
    server.shutdown().await;
    Ok(())
}

/// Prints the first line: where this server is.
pub(crate) fn announce(server: &Server, output: Output) {
    let mut fields = json!({
        "peer_id": server.peer_id().to_string(),
        "addresses": server.addresses(),
        "stun": server.stun_urls(),
        "turn": server.turn_urls(),
        "http": server.http_url(),
    });
    if let Some(credentials) = server.turn_credentials() {
        fields["turn_user"] = credentials.username.as_str().into();
        fields["turn_pass"] = credentials.credential.as_str().into();
    }
    output.result("ready", fields, || {
        let mut text = format!("relay {}\n", server.peer_id());
        for address in server.addresses() {
            text += &format!("  {address}\n");
        }
        for url in server.stun_urls() {
            text += &format!("  {url}\n");
        }
        for url in server.turn_urls() {
            text += &format!("  {url}\n");
        }
        if let Some(credentials) = server.turn_credentials() {
            let (user, pass) = (&credentials.username, &credentials.credential);
            text += &format!("  --turn-user {user} --turn-pass {pass}\n");
        }
        text + &format!("  {}", server.http_url())
    });
}

/// The configuration file, then what the command line says.
pub(crate) fn config(args: ServeArgs) -> Result<ServerConfig, Error> {
    let mut config = match &args.config {
        None => ServerConfig::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| io_error(format_args!("--config {}", path.display()), error))?;
            toml::from_str(&text).map_err(|error| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!("--config {}: {error}", path.display()),
                )
            })?
        }
    };
    if !args.host.is_empty() {
        config.hosts = args.host;
    }
    if let Some(port) = args.port {
        config.port = port;
    }
    if let Some(circuits) = args.max_circuits {
        config.relay.circuits = circuits;
    }
    if let Some(circuits) = args.max_circuits_per_peer {
        config.relay.circuits_per_peer = circuits;
    }
    config.data = args.data.or(config.data);
    if args.no_turn {
        config.turn.secret = None;
    } else if config.turn.secret.is_none() {
        config.turn.secret = Some(turn_secret(config.data.as_deref())?);
    }
    config.announce.extend(args.announce);
    config.http.www = args.www.or(config.http.www);
    config.http.npm = args.npm.or(config.http.npm);
    Ok(config)
}
