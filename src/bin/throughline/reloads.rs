//! Reads the settings of a running server again: on SIGHUP, and when their file has changed.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use throughline::{
    Error,
    server::{Server, ServerConfig},
};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{args::ServeArgs, output::Output, serve::settings, signal::Hangups};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Whatever may ask for a reload.
pub(crate) struct Reloads {
    args: ServeArgs,
    /// The secret of TURN that the server has, which no file may name.
    secret: Option<String>,
    hangups: Hangups,
    file: Option<Watched>,
    looks: Interval,
}

impl Reloads {
    /// Watches what `args` name. A server was started with them and `config`.
    pub(crate) fn new(args: ServeArgs, config: &ServerConfig) -> Result<Self, Error> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            secret: config.turn.secret.clone(),
            hangups: Hangups::new()?,
            file: args.config.clone().map(Watched::new),
            args,
            looks,
        })
    }

    /// Completes when the settings are to be read again.
    pub(crate) async fn wanted(&mut self) {
        loop {
            tokio::select! {
                () = self.hangups.next() => return,
                _ = self.looks.tick() => {
                    if self.file.as_mut().is_some_and(Watched::has_changed) {
                        return;
                    }
                }
            }
        }
    }

    /// Reads the settings, and hands them to `server`. Faulty ones change nothing.
    pub(crate) fn apply(&self, server: &Server, output: Output) {
        match self.read().and_then(|config| server.reload(config)) {
            Ok(kept) => {
                if !kept.is_empty() {
                    let settings = kept.join(", ");
                    tracing::warn!(settings, "these settings change at the next start only");
                }
                output.event("reloaded", json!({ "kept": kept }), String::new);
            }
            Err(error) => {
                tracing::error!(%error, "the settings are not taken over");
                let fields = json!({"code": error.code(), "message": error.message()});
                output.event("reload_failed", fields, String::new);
            }
        }
    }

    fn read(&self) -> Result<ServerConfig, Error> {
        let mut config = settings(self.args.clone())?;
        if config.turn.secret.is_none() && !self.args.no_turn {
            config.turn.secret.clone_from(&self.secret);
        }
        Ok(config)
    }
}

/// A file whose changes are noticed. A change counts when two looks in a row have seen the same, so
/// that nothing is read that is only half written.
struct Watched {
    path: PathBuf,
    known: Option<Vec<u8>>,
    last: Option<Vec<u8>>,
}

impl Watched {
    fn new(path: PathBuf) -> Self {
        let known = std::fs::read(&path).ok();
        Self {
            path,
            last: known.clone(),
            known,
        }
    }

    fn has_changed(&mut self) -> bool {
        // An editor may replace the file, so it may be missing for a moment.
        let Ok(now) = std::fs::read(&self.path) else {
            return false;
        };
        let now = Some(now);
        let is_complete = self.last == now;
        self.last.clone_from(&now);
        let changed = is_complete && self.known != now;
        if changed {
            self.known = now;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_once_it_is_written() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("serve.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("a");
        let mut watched = Watched::new(path.clone());
        assert!(!watched.has_changed());
        write("ab");
        assert!(!watched.has_changed(), "it may be half written");
        write("abc");
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
        assert!(!watched.has_changed(), "it is known");
        std::fs::remove_file(&path).unwrap();
        assert!(!watched.has_changed() && !watched.has_changed());
        write("abc");
        assert!(!watched.has_changed() && !watched.has_changed());
    }
}
