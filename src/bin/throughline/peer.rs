//! From the command line to a [`Connector`].

use throughline::{Config, Connector, Error, ErrorKind, Identity, TurnServer};

use crate::{args::PeerArgs, output::io_error, protocols};

/// Starts the peer that `args` describe. With `reserve` it can be reached through its relays.
pub(crate) async fn bind(args: &PeerArgs, reserve: bool) -> Result<Connector, Error> {
    let mut config = config(args)?;
    config.reserve &= reserve;
    let mut builder = Connector::builder().config(config);
    for protocol in protocols::ALL {
        builder = builder.protocol(protocol);
    }
    if let Some(path) = &args.identity {
        builder = builder.identity(Identity::load_or_create(path)?);
    }
    builder.bind().await
}

/// The configuration file, then what the command line adds.
fn config(args: &PeerArgs) -> Result<Config, Error> {
    let mut config = match &args.config {
        None => Config::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| io_error(format_args!("--config {}", path.display()), error))?;
            toml::from_str(&text).map_err(|error| {
                let message = format!("--config {}: {error}", path.display());
                Error::new(ErrorKind::InvalidConfig, message)
            })?
        }
    };
    config.relays.extend_from_slice(&args.relay);
    config.stun.extend_from_slice(&args.stun);
    config.listen.extend_from_slice(&args.bind);
    config.direct &= !args.relay_only;
    config.port_mapping &= !args.no_port_mapping;
    if let (Some(url), Some(username), Some(credential)) =
        (&args.turn, &args.turn_user, &args.turn_pass)
    {
        config.turn.push(TurnServer {
            url: url.clone(),
            username: username.clone(),
            credential: credential.clone(),
        });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

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

        std::fs::write(&path, "stunn = []\n").unwrap();
        let error = super::config(&args).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().contains("stunn"), "{error}");
    }
}
