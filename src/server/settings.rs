//! The settings of a running server, in one place.
//!
//! Each part of the server reads a setting at the moment when it needs it. So a reload changes a
//! setting for all parts at once, and no part has to be told.

use std::sync::Arc;

use tokio::sync::watch;

use super::config::ServerConfig;

/// The settings that apply now, and whether the server drains. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Settings(watch::Receiver<Now>);

/// The one place where the settings of a server change.
#[derive(Debug)]
pub(crate) struct Changes(watch::Sender<Now>);

#[derive(Debug)]
struct Now {
    config: Arc<ServerConfig>,
    /// Whether the server is about to end and takes nothing new.
    draining: bool,
}

impl Settings {
    /// Makes settings that begin as `config`.
    pub(crate) fn new(config: ServerConfig) -> (Changes, Self) {
        let (sender, receiver) = watch::channel(Now {
            config: Arc::new(config),
            draining: false,
        });
        (Changes(sender), Self(receiver))
    }

    /// Makes settings that never change.
    pub(crate) fn fixed(config: ServerConfig) -> Self {
        Self::new(config).1
    }

    pub(crate) fn now(&self) -> Arc<ServerConfig> {
        self.0.borrow().config.clone()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.borrow().draining
    }

    /// Completes when something has changed since the last call.
    ///
    /// Dropping the future loses no change.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could change them.
            std::future::pending::<()>().await;
        }
    }
}

impl Changes {
    /// Takes over what of `config` can change while a server runs. Returns the names of the other
    /// settings that differ.
    pub(crate) fn take(&self, config: &ServerConfig) -> Vec<&'static str> {
        let mut kept = Vec::new();
        self.0
            .send_modify(|now| kept = Arc::make_mut(&mut now.config).take(config));
        kept
    }

    /// From now on, the server takes nothing new.
    pub(crate) fn drain(&self) {
        self.0.send_modify(|now| now.draining = true);
    }

    pub(crate) fn now(&self) -> Arc<ServerConfig> {
        self.0.borrow().config.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn every_clone_sees_a_change_and_what_cannot_change_is_named() {
        let (changes, settings) = Settings::new(ServerConfig::default());
        let mut other = settings.clone();
        assert!(other.changed().now_or_never().is_none());
        let mut config = ServerConfig {
            port: 443,
            log_addresses: true,
            ..ServerConfig::default()
        };
        config.relay.circuits = 7.try_into().unwrap();
        config.connections.window = 65_536;
        assert_eq!(changes.take(&config), ["port", "connections.window"]);
        assert!(other.changed().now_or_never().is_some());
        let now = settings.now();
        assert_eq!((now.relay.circuits.get(), now.log_addresses), (7, true));
        let kept = ServerConfig::default();
        assert_eq!(
            (now.port, now.connections.window),
            (kept.port, kept.connections.window)
        );
        assert_eq!(changes.take(&now), <[&str; 0]>::default());
        drop(changes);
        other.changed().now_or_never();
        assert!(other.changed().now_or_never().is_none());
    }
}
