//! `throughline serve`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::json;
use throughline::{
    Error,
    server::{
        DEFAULT_PORT, HTTPS_PORT, Layout, Server, ServerConfig, inherit_sockets, turn_secret,
    },
};

use crate::{
    args::ServeArgs,
    check,
    output::{Output, io_error},
    peer::invalid,
    reloads::Reloads,
    signal::{Stop, Stops},
    supervisor::Supervisor,
};

pub(crate) async fn run(args: ServeArgs, output: Output) -> Result<(), Error> {
    if args.check {
        return check::run(args, output).await;
    }
    inherit_sockets()?;
    let supervisor = Supervisor::from_env();
    let mut stops = Stops::new(output)?;
    let credentials = args.print_turn_credentials;
    let config = config(args.clone())?;
    // It is there before anybody knows of the server, because SIGHUP ends a program that does not
    // take it.
    let mut reloads = Reloads::new(args, &config)?;
    let server = Server::start(config).await?;
    announce(&server, credentials, output);
    supervisor.ready();
    let alive = || server.is_alive();
    let mut stop = loop {
        tokio::select! {
            stop = stops.next() => break stop,
            () = reloads.wanted() => {
                supervisor.reloading();
                reloads.apply(&server, output);
                supervisor.ready();
            }
            () = supervisor.watch(alive) => {}
        }
    };
    supervisor.stopping(server.longest_drain());
    if stop == Stop::Gently {
        output.event("draining", json!({}), String::new);
        tokio::select! {
            () = server.drain() => {}
            next = stops.next() => stop = next,
            () = supervisor.watch(alive) => {}
        }
    }
    server.shutdown().await;
    stop.ended()
}

/// Prints the addresses of this server. The output may end in a log, so it contains credentials
/// only if the user asked for them.
pub(crate) fn announce(server: &Server, credentials: bool, output: Output) {
    let credentials = server.turn_credentials().filter(|_| credentials);
    let mut fields = json!({
        "peer_id": server.peer_id().to_string(),
        "addresses": server.addresses(),
        "stun": server.stun_urls(),
        "turn": server.turn_urls(),
        "http": server.http_url(),
    });
    if let Some(admin) = server.admin_url() {
        fields["admin"] = admin.into();
    }
    if let Some(credentials) = credentials {
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
        if let Some(credentials) = credentials {
            let (user, pass) = (&credentials.username, &credentials.credential);
            text += &format!("  --turn-user {user} --turn-pass {pass}\n");
        }
        text += &format!("  {}", server.http_url());
        if let Some(admin) = server.admin_url() {
            text += &format!("\n  {admin}/metrics");
        }
        text
    });
}

/// Makes the configuration: the [settings], and a secret for TURN if they name none.
pub(crate) fn config(args: ServeArgs) -> Result<ServerConfig, Error> {
    let no_turn = args.no_turn;
    let mut config = settings(args)?;
    if !no_turn && config.turn.secret.is_none() {
        config.turn.secret = Some(turn_secret(config.data.as_deref())?);
    }
    Ok(config)
}

/// Reads the settings of the file at `path`.
pub(crate) fn file_of<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| io_error(format_args!("--config {}", path.display()), error))?;
    toml::from_str(&text)
        .map_err(|error| invalid(format_args!("--config {}", path.display()), &error))
}

/// Makes what is configured: the file, then the changes of the command line.
pub(crate) fn settings(args: ServeArgs) -> Result<ServerConfig, Error> {
    let mut config = match &args.config {
        None => ServerConfig::default(),
        Some(path) => {
            let config: ServerConfig = file_of(path)?;
            if config.turn.secret.is_some() {
                warn_of_readers(path);
            }
            config
        }
    };
    secure(&mut config, &args);
    if !args.host.is_empty() {
        config.hosts = args.host;
    }
    if let Some(port) = args.port {
        config.port = port;
    }
    config.stun.alternate_port = args.stun_alternate.or(config.stun.alternate_port);
    if let Some(circuits) = args.max_circuits {
        config.relay.circuits = circuits;
    }
    if let Some(circuits) = args.max_circuits_per_peer {
        config.relay.circuits_per_peer = circuits;
    }
    config.data = args.data.or(config.data);
    if config.data.is_none() && !config.tls.domains.is_empty() {
        config.data = state_directory();
    }
    if args.no_turn {
        config.turn.secret = None;
    }
    config.external_ip = args.external_ip.or(config.external_ip);
    config.announce.extend(args.announce);
    if !args.fleet.is_empty() {
        config.fleet.servers = args.fleet;
    }
    config.http.www = args.www.or(config.http.www);
    config.http.npm = args.npm.or(config.http.npm);
    config.http.admin = args.admin.or(config.http.admin);
    Ok(config)
}

/// Sets TLS up as the command line says.
fn secure(config: &mut ServerConfig, args: &ServeArgs) {
    let tls = &mut config.tls;
    if !args.domain.is_empty() {
        tls.domains.clone_from(&args.domain);
        config.layout = Layout::One;
        if args.port.is_none() && config.port == DEFAULT_PORT {
            config.port = HTTPS_PORT;
        }
    }
    tls.contact = args.contact.clone().or(tls.contact.take());
    tls.cert = args.tls_cert.clone().or(tls.cert.take());
    tls.key = args.tls_key.clone().or(tls.key.take());
}

/// The directory for what a service keeps: systemd's, or the user's (XDG Base Directory
/// Specification).
fn state_directory() -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let of_service = named("STATE_DIRECTORY").filter(|path| path.is_absolute());
    of_service.or_else(|| {
        let of_user = named("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let of_user = of_user.or_else(|| Some(named("HOME")?.join(".local/share")));
        Some(of_user?.join("throughline"))
    })
}

/// Warns if everybody can read the secret. The file may belong to a group of operators.
#[cfg(unix)]
fn warn_of_readers(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o007 != 0 {
        let path = path.display();
        tracing::warn!(%path, "everybody on this machine can read turn.secret; run `chmod o-rwx`");
    }
}

#[cfg(not(unix))]
fn warn_of_readers(_: &std::path::Path) {}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn configured(line: &str) -> ServerConfig {
        let line = format!("throughline serve --no-turn {line}");
        match Cli::parse_from(line.split(' ')).command {
            Command::Serve(args) => config(args).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_domain_has_the_port_of_pages_and_no_other() {
        let config = configured("--domain a.example --contact b@a.example --data d");
        assert_eq!((config.port, config.layout), (HTTPS_PORT, Layout::One));
        assert_eq!(config.tls.domains, ["a.example"]);
        assert_eq!(config.data, Some("d".into()));
        config.validate().unwrap();
        assert_eq!(configured("--domain a.example --port 8443").port, 8443);
        let files = configured("--tls-cert c --tls-key k");
        assert_eq!((files.port, files.layout), (DEFAULT_PORT, Layout::One));
        assert_eq!(files.tls.key, Some("k".into()));
    }
}
