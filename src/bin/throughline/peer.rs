//! Makes a [`Connector`] from the command line.

use std::{net::SocketAddr, path::PathBuf};

use throughline::{
    Builder, Config, Connector, Error, ErrorKind, Identity, RelayTokens, Ticket, TurnServer,
    server, unknown_option,
};
use tokio::net::TcpListener;

use crate::{args::PeerArgs, output::io_error, protocols};

/// Starts the peer that `args` describe. With `reserve`, others can reach it through its relays.
pub(crate) async fn bind(args: &PeerArgs, reserve: bool) -> Result<Connector, Error> {
    let mut config = config(args)?;
    config.reserve &= reserve;
    let connector = builder(args, config)?.bind().await?;
    if let Some(addr) = args.metrics {
        serve_metrics(addr, connector.clone()).await?;
    }
    Ok(connector)
}

/// Returns what starts the peer, with its `config` and the identity of `args`.
pub(crate) fn builder(args: &PeerArgs, config: Config) -> Result<Builder, Error> {
    let mut builder = Connector::builder().config(config);
    for protocol in protocols::ALL {
        builder = builder.protocol(protocol);
    }
    if let Some(path) = &args.identity {
        builder = builder.identity(Identity::load_or_create(path)?);
    }
    Ok(builder)
}

/// Reads the ticket of the command line.
///
/// # Errors
/// The error says what else the text looks like.
pub(crate) fn ticket(text: &str) -> Result<Ticket, Error> {
    text.parse::<Ticket>().map_err(|error| {
        let text = text.trim();
        let looks = if text.starts_with('/') {
            "; this is an address: a ticket is what the other peer has printed"
        } else if text.contains("://") {
            "; the link has no ticket behind its #: copy the whole of it"
        } else {
            "; a ticket is what `throughline listen` prints, and begins with tl1"
        };
        Error::new(error.kind(), format!("{}{looks}", error.message()))
    })
}

/// Serves the counters over HTTP until the program ends.
async fn serve_metrics(addr: SocketAddr, connector: Connector) -> Result<(), Error> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| io_error(format_args!("--metrics {addr}"), error))?;
    tokio::spawn(server::serve_metrics(listener, move || connector.metrics()));
    Ok(())
}

/// Makes the configuration: the file, then the changes and additions of the command line.
pub(crate) fn config(args: &PeerArgs) -> Result<Config, Error> {
    let mut settings = toml::Table::new();
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path)
            .map_err(|error| io_error(format_args!("--config {}", path.display()), error))?;
        settings = parsed(&text, format_args!("--config {}", path.display()))?;
    }
    for set in &args.set {
        let set: toml::Table = parsed(set, format_args!("--set {set}"))?;
        merge(&mut settings, set);
    }
    let given = match (&args.config, &args.set[..]) {
        (Some(path), []) => format!("--config {}", path.display()),
        _ => String::from("--set"),
    };
    let mut config: Config = settings
        .try_into()
        .map_err(|error| invalid(given, &error))?;
    config.relays.extend_from_slice(&args.relay);
    config.stun.extend_from_slice(&args.stun);
    config.listen.extend_from_slice(&args.bind);
    config.direct &= !args.relay_only;
    config.port_mapping &= !args.no_port_mapping;
    if let Some(path) = args.relay_token.clone() {
        config.relay_tokens = Some(RelayTokens::from_fn(move || token_in(path.clone())));
    }
    config.relay_ca = args.relay_ca.clone().or(config.relay_ca);
    config.turn_ca = args.turn_ca.clone().or(config.turn_ca);
    if let (Some(username), Some(credential)) = (&args.turn_user, &args.turn_pass) {
        config.turn.extend(args.turn.iter().map(|url| TurnServer {
            url: url.clone(),
            username: username.clone(),
            credential: credential.clone(),
        }));
    }
    Ok(config)
}

/// Reads the token for relays. The file may hold another one than before.
async fn token_in(path: PathBuf) -> Result<String, Error> {
    let token = tokio::fs::read_to_string(&path).await;
    let named = |error| io_error(format_args!("--relay-token {}", path.display()), error);
    Ok(token.map_err(named)?.trim().to_owned())
}

fn parsed(text: &str, given: impl std::fmt::Display) -> Result<toml::Table, Error> {
    toml::from_str(text).map_err(|error| invalid(given, &error))
}

/// Makes the error for wrong options in `given`.
pub(crate) fn invalid(given: impl std::fmt::Display, error: &toml::de::Error) -> Error {
    let why = unknown(error.message()).unwrap_or_else(|| {
        let message = without_value(error.message());
        // An error in a file goes on with the line itself, which may hold a secret.
        let text = error.to_string();
        match text.lines().next().filter(|_| error.span().is_some()) {
            Some(place) => format!("{place}: {message}"),
            None => text.replacen(error.message(), &message, 1),
        }
    });
    Error::new(ErrorKind::InvalidConfig, format!("{given}: {why}"))
}

/// Returns serde's message about a value without the value, which may be a secret.
fn without_value(message: &str) -> String {
    for what in ["invalid type", "invalid value", "invalid length"] {
        if message.starts_with(what)
            && let Some((_, expected)) = message.rsplit_once(", expected ")
        {
            return format!("{what}: expected {expected}");
        }
    }
    message.to_owned()
}

/// Rewrites serde's message about an option that does not exist. Serde names every option that
/// exists.
fn unknown(message: &str) -> Option<String> {
    let (name, expected) = message
        .strip_prefix("unknown field `")?
        .split_once("`, expected ")?;
    let known = expected.split('`').skip(1).step_by(2);
    Some(unknown_option(name, known))
}

/// Sets the values of `over` in `under`. Other values of a table stay.
fn merge(under: &mut toml::Table, over: toml::Table) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::free_ports;

    #[tokio::test]
    async fn metrics_are_served() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let addr = (std::net::Ipv4Addr::LOCALHOST, free_ports()).into();
        let args = PeerArgs {
            metrics: Some(addr),
            ..PeerArgs::default()
        };
        let connector = bind(&args, false).await.unwrap();
        let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        socket.write_all(request).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("throughline_connections 0"), "{answer}");
        connector.close().await;
    }

    #[test]
    fn the_command_line_adds_to_the_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peer.toml");
        std::fs::write(&path, "stun = [\"stun:a\"]\nidle_timeout_ms = 5\n").unwrap();
        let args = PeerArgs {
            stun: vec![String::from("stun:b")],
            config: Some(path.clone()),
            relay_only: true,
            ..PeerArgs::default()
        };
        let config = config(&args).unwrap();
        assert_eq!(config.stun, ["stun:a", "stun:b"]);
        assert_eq!(config.idle_timeout.as_millis(), 5);
        assert!(!config.direct);

        let set = [
            "idle_timeout_ms=7",
            "birthday = false",
            "start_delays_ms.turn=9",
        ];
        let args = PeerArgs {
            set: set.map(String::from).to_vec(),
            ..args
        };
        let config = super::config(&args).unwrap();
        assert_eq!(config.stun, ["stun:a", "stun:b"]);
        assert_eq!(config.idle_timeout.as_millis(), 7);
        assert!(!config.birthday);
        assert_eq!(config.start_delays.turn.as_millis(), 9);
    }

    #[test]
    fn an_unknown_option_names_only_the_nearest_known_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peer.toml");
        let told = |file: &str, set: &[&str]| {
            std::fs::write(&path, file).unwrap();
            let args = PeerArgs {
                config: Some(path.clone()),
                set: set.iter().copied().map(String::from).collect(),
                ..PeerArgs::default()
            };
            let error = config(&args).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            error.message().to_owned()
        };
        let file = format!("--config {}", path.display());
        assert_eq!(
            told("relay = []\n", &[]),
            format!("{file}: unknown option \"relay\": did you mean \"relays\"?")
        );
        assert_eq!(
            told("[start_delays_ms]\ntrun = 1\n", &[]),
            format!("{file}: unknown option \"trun\": did you mean \"turn\"?")
        );
        assert_eq!(told("", &["colour=1"]), "--set: unknown option \"colour\"");
        // A value may be a secret.
        for wrong in ["relays = \"s3cret, expected x\"\n", "relay_tokens = 42\n"] {
            let message = told(wrong, &[]);
            assert!(message.contains("expected"), "{message}");
            assert!(
                !message.contains("s3cret") && !message.contains("42"),
                "{message}"
            );
        }
        let server = "[[turn]]\nurl = \"turn:h\"\nuser = \"u\"\n";
        assert_eq!(
            told(server, &[]),
            format!("{file}: unknown option \"user\"")
        );
    }
}
